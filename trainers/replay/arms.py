"""Repeat a run from a checkpoint, as it was and with something changed, over several seeds.

    RUN/replays/NAME/plan.json          what is repeated
    RUN/replays/NAME/control-seed-0/    a run as any other, begun at the checkpoint: as it was
    RUN/replays/NAME/changed-seed-0/    with the changes
    RUN/replays/NAME/result.json        what came out (analysis.replays.compare)

Both arms of a seed draw the same random numbers, and all seeds see the same problems in the same
order and the same evaluations. The control with the run's own seed has to reproduce the run.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from gradlab.run_directory import PLAN, STORE, continuable, is_whole, replay_path
from gradlab.store.disk import put
from trainers.config import TrainConfig
from trainers.preview.highest import HIGHEST
from trainers.replay.changes import changed, merged_from
from trainers.replay.fork import fork, policy_origins
from trainers.rundir.directory import config_of, read_run_directory
from trainers.rundir.own_parts import check_parts
from trainers.training import train
from trainers.watch.progress import Progress

MOST_SEEDS = 100
LONGEST_NAME = 200
"""Bytes; a file system takes 255, and names are built with it."""
CONTROL, CHANGED = "control", "changed"


@dataclass(frozen=True)
class ReplayPlan:
    """What is repeated."""

    run: Path
    name: str
    start: int
    """Step of the checkpoint that all arms begin with."""
    end: int
    """Their last step."""
    changes: tuple[str, ...]
    """As in `trainers.replay.changes`."""
    seeds: tuple[int, ...]
    """The run's own first."""

    @property
    def out(self) -> Path:
        return replay_path(self.run, self.name)

    @property
    def arms(self) -> tuple[tuple[str, int], ...]:
        """(arm, seed) in the order in which they run: the one that checks the replay first."""
        return tuple((arm, seed) for seed in self.seeds for arm in (CONTROL, CHANGED))

    def path(self, arm: str, seed: int) -> Path:
        return self.out / f"{arm}-seed-{seed}"

    def to_json(self) -> dict[str, Any]:
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        del plain["run"]  # which may be moved
        return plain


def make_plan(
    run: Path,
    changes: tuple[str, ...],
    *,
    at_most: int,
    steps: int = 0,
    num_seeds: int = 3,
    name: str = "",
) -> ReplayPlan:
    """Plan a replay from the newest checkpoint that is no later than step `at_most`.

    `steps`: how many to train; 0: to the end of the run. Raises ValueError for what cannot be
    replayed, before anything is written.
    """
    check_parts(run, read_run_directory(run))
    original = config_of(run)
    if not 1 <= num_seeds <= MOST_SEEDS:
        raise ValueError(
            f"--seeds is {num_seeds}; expected 1 to {MOST_SEEDS}, 3 for a verdict: each is two runs"
        )
    for change, count in Counter(changes).items():
        if count > 1:
            raise ValueError(f"--with {change} is given {count} times; expected it once")
    start = starting_step(run, at_most)
    if steps < 0 or start >= original.steps:
        raise ValueError(
            f"--steps is {steps}, the checkpoint is of step {start} of {original.steps}; expected "
            "a checkpoint before the end and a positive number of steps"
        )
    policy_origins(original, changed(original, changes), merged_from(changes))
    end = start + steps if steps else original.steps
    own = original.training_seed
    automatic = "_".join(changes).replace(":", "-").replace("=", "-").replace(",", "-")
    name = name or f"{automatic}_from-{start}_to-{end}"
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name[0] == ".":
        raise ValueError(f"--name is '{name}'; expected letters, digits, - _ and .")
    if len(name) > LONGEST_NAME:
        raise ValueError(
            f"--name has {len(name)} characters ({name[:20]}…); expected at most {LONGEST_NAME}"
        )
    if steps > HIGHEST["steps"]:
        raise ValueError(f"--steps is {steps:g}; expected at most {HIGHEST['steps']:,}")
    return ReplayPlan(run, name, start, end, changes, tuple(range(own, own + num_seeds)))


def starting_step(run: Path, at_most: int) -> int:
    """Step of the newest checkpoint with optimizer state, no later than `at_most`."""
    steps = continuable(run)
    early = [step for step in steps if step <= at_most]
    if early:
        return max(early)
    have = f"steps {', '.join(map(str, steps))}" if steps else "none"
    raise ValueError(
        f"{run} has no checkpoint with optimizer state at or before step {at_most} (there: {have})."
        " Replay from a later one with --from STEP, or train with more of them: --checkpoint-every "
        "5 keeps all states by default; where they are too large, --keep-states 2 "
        "--keep-state-every 50 keeps the last two and every fiftieth step's"
    )


def begin(plan: ReplayPlan) -> None:
    """Write the plan, or find the same one there from before a kill."""
    path = plan.out / PLAN
    # A plan of an earlier version lacks what could not be chosen then.
    defaults = {f.name: f.default for f in fields(plan) if f.default is not MISSING}
    if path.is_file() and (other := defaults | json.loads(path.read_text())) != plan.to_json():
        raise ValueError(
            f"{plan.out} holds another replay: {json.dumps(other)}; give another --name, or the "
            "same options to continue it"
        )
    plan.out.mkdir(parents=True, exist_ok=True)
    put(path, (json.dumps(plan.to_json(), indent=1) + "\n").encode())


def run_arms(
    plan: ReplayPlan,
    progress: Callable[[], Progress] = Progress,
) -> Iterator[tuple[str, int, Path]]:
    """Train the arms one by one; yields (arm, seed, run directory) when each is done.

    Arms that are finished are kept, and one that was killed goes on from its last checkpoint.
    """
    begin(plan)
    original = config_of(plan.run)
    for arm, seed in plan.arms:
        out = plan.path(arm, seed)
        config = arm_config(plan, original, arm, seed)
        if not out.is_dir():
            merge = merged_from(plan.changes) if arm == CHANGED else None
            fork(plan.run, plan.start, original, config, merge)
        if not is_finished(out, plan.end):
            try:
                train(replace(config, resume=True), progress())
            except KeyboardInterrupt as stop:
                raise KeyboardInterrupt(
                    f"stopped in {out}; the same command goes on from there"
                ) from stop
        yield arm, seed, out


def arm_config(plan: ReplayPlan, original: TrainConfig, arm: str, seed: int) -> TrainConfig:
    """The original's configuration, but for where, how long, the seed of sampling, and the
    changes; a seed that is the original's own leaves even that as it was."""
    config = replace(
        original,
        out=plan.path(arm, seed),
        steps=plan.end,
        replay_seed=original.replay_seed if seed == original.training_seed else seed,
        keep_states=1,
        keep_state_every=0,
        alarm="off",
    )
    return changed(config, plan.changes) if arm == CHANGED else config


def is_finished(out: Path, end: int) -> bool:
    """Whether a run has its last checkpoint, which is written after everything else."""
    return (out / STORE).is_dir() and is_whole(out, end)
