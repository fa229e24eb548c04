"""Name what lies in the directory of a run, for everyone who writes it or looks for it.

RUN/config.json                             configuration, versions, data; written last: a run
RUN/problems.jsonl.gz                       id, split and content hash of every problem
RUN/run.zarr                                the measurements
RUN/episodes/step-000123.jsonl.gz           what every agent said in a step; eval-… in an evaluation
RUN/checkpoints/step-000123/POLICY/         adapter, and trainer_state.pt unless it was dropped
RUN/checkpoints/step-000123/checkpoint.json written last
RUN/alarms.jsonl                            what it was warned of while it trained
RUN/report.html                             the page of its diagnosis
RUN/own_parts/workflow/FILE.py              copy of a file of one's own; reward/, task/, advantage/
RUN/own_parts/workflow/modules/             copies of the modules of one's own that it imports
RUN/replays/NAME/plan.json                  what is repeated
RUN/replays/NAME/control-seed-0/            a run as any other, as it was; changed-… with changes
RUN/replays/NAME/result.json                what came out
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

CONFIG = "config.json"
PROBLEMS = "problems.jsonl.gz"
STORE = "run.zarr"
CHECKPOINTS = "checkpoints"
EPISODES = "episodes"
ALARMS = "alarms.jsonl"
PAGE = "report.html"
REPLAYS = "replays"
OWN_PARTS = "own_parts"

STATE = "trainer_state.pt"
"""Of a policy, in its folder of a checkpoint."""
DONE = "checkpoint.json"
"""Written last inside a checkpoint, before it gets its name."""

PLAN = "plan.json"
RESULT = "result.json"

Said = Literal["step", "eval"]
"""Episodes of a training step, or of an evaluation."""


def is_trained(run: Path) -> bool:
    """Whether this is the directory of a run that was trained here, not imported or made up."""
    return (run / CONFIG).is_file()


def directory_of(store: Path) -> Path:
    """The directory of the run that a store belongs to; a store of another name is its own."""
    return store.parent if store.name == STORE else store


def run_name(store: Path) -> str:
    """What people call the run of a store: its directory, or a store of another name itself."""
    return store.parent.name if store.name == STORE else store.stem


def page_path(run: Path, until: int | None = None) -> Path:
    """Where the diagnosis of a run, or of a bare store, is written if nobody says where.

    That of a part of the run, up to step `until`, is not that of the run.
    """
    part = "" if until is None else f"-until-{until}"
    bare = run.suffix == ".zarr"
    return run.with_name(f"{run.stem}{part}.html") if bare else _marked(run / PAGE, part)


def _marked(path: Path, part: str) -> Path:
    return path.with_name(f"{path.stem}{part}{path.suffix}")


def episodes_path(run: Path, kind: Said, step: int) -> Path:
    return run / EPISODES / f"{kind}-{step:06d}.jsonl.gz"


def steps_of_episodes(run: Path, kind: Said) -> list[int]:
    """Steps, or evaluations, of which it is kept what was said, in order."""
    return sorted(
        int(path.name.split("-")[1].split(".")[0])
        for path in (run / EPISODES).glob(f"{kind}-*.jsonl.gz")
    )


def replay_path(run: Path, name: str) -> Path:
    return run / REPLAYS / name


def results_of_replays(run: Path) -> list[Path]:
    """What finished replays say, by their names."""
    return sorted(run.glob(f"{REPLAYS}/*/{RESULT}"))


def checkpoint_path(run: Path, step: int) -> Path:
    return run / CHECKPOINTS / f"step-{step:06d}"


def steps_of_checkpoints(run: Path) -> list[int]:
    """Steps of all checkpoints that got their name, in order."""
    names = (path.name.removeprefix("step-") for path in (run / CHECKPOINTS).glob("step-*"))
    return sorted(int(name) for name in names if name.isdecimal())


def is_whole(run: Path, step: int) -> bool:
    """Whether the checkpoint of a step was written to its end."""
    return (checkpoint_path(run, step) / DONE).is_file()


def whole_checkpoints(run: Path) -> list[int]:
    """Steps of the whole ones, in order."""
    return [step for step in steps_of_checkpoints(run) if is_whole(run, step)]


def continuable(run: Path) -> list[int]:
    """Steps of the whole ones that still have the optimizer state of every policy, in order."""
    return [
        step
        for step in whole_checkpoints(run)
        if all(
            (path / STATE).is_file()
            for path in checkpoint_path(run, step).iterdir()
            if path.is_dir()
        )
    ]


def beginning(origin: Mapping[str, Any]) -> str:
    """Where a run began that `gradlab train --from` made, in words; `origin` is "from" of its
    config.json."""
    different = [
        f"--{name.replace('_', '-')} {_told(new)} instead of {_told(old)}"
        for name, (old, new) in origin["changed"].items()
    ]
    return (
        f"begins at step {origin['step']} of {origin['path']} (run {origin['run_id']}) with "
        f"{', '.join(different) or 'nothing changed'}"
    )


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key} {item}" for key, item in value.items()) or "none"
    return str(value)
