"""gradlab replay and diagnose --confirm: train the arms of a replay and compare them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import Positional

from gradlab.commands.note import note
from gradlab.commands.parsing import parse
from gradlab.run_directory import RESULT

if TYPE_CHECKING:
    from analysis.findings import Diagnosis
    from gradlab.store.run import Run
    from trainers.replay.arms import ReplayPlan


@dataclass(frozen=True)
class ReplayOptions:
    """Repeat a run from a checkpoint with one thing changed, beside controls without it.

    Says whether the change gives back what was lost: confirmed, refuted, or cannot tell. A replay
    that was stopped goes on with the same command.
    """

    run: Positional[Path]
    """Run directory with checkpoints that have optimizer states."""
    changes: Annotated[tuple[str, ...], tyro.conf.arg(name="with"), tyro.conf.UseAppendAction] = ()
    """What to change, as in kl-anchor:aggregator=0.05, lr:0.5, max-share:generator=0.5, equalize,
    damping:0.3, isolate; may be given several times. --with help lists all."""
    start: Annotated[str, tyro.conf.arg(name="from")] = "before-onset"
    """before-onset: the last checkpoint before accuracy fell; or a step."""
    steps: int = 0
    """Steps to train in every arm; 0: to the end of the run."""
    seeds: int = 3
    """Seeds per arm, the run's own first; 3 are needed for a verdict."""
    name: str = ""
    """Folder in RUN/replays; default: what is changed."""
    dry_run: bool = False
    """Print what would be trained, and how long it would take."""


def replay(arguments: Sequence[str]) -> int:
    """Repeat a run from a checkpoint with one thing changed."""
    options = parse(ReplayOptions, "replay", arguments)
    from analysis.diagnosis import diagnose as run_diagnosis
    from analysis.replays.propose import suspect_of
    from gradlab.store.run import open_run
    from trainers.replay.arms import make_plan
    from trainers.replay.changes import listed
    from trainers.rundir.directory import config_of

    if options.changes == ("help",):
        print(listed())
        return 0
    config_of(options.run)  # refuses what is no run
    run = open_run(options.run)
    diagnosis = run_diagnosis(run)
    plan = make_plan(
        options.run,
        options.changes,
        at_most=_first_step(diagnosis, options.start),
        steps=options.steps,
        num_seeds=options.seeds,
        name=options.name,
    )
    suspect = suspect_of(run, diagnosis, options.changes)
    run_replay(plan, suspect, is_dry=options.dry_run)
    return 0


def _first_step(diagnosis: Diagnosis, start: str) -> int:
    """The step that --from names."""
    from analysis.findings import DROPS

    if start != "before-onset":
        if not start.isdecimal():
            raise ValueError(f"--from is '{start}'; expected before-onset or a step")
        return int(start)
    onsets = {
        finding.kind: finding.onset.lower
        for finding in reversed(diagnosis.findings)
        if finding.onset
    }
    for kinds in (DROPS, ("role breakdown", "capture")):
        found = [onsets[kind] for kind in kinds if kind in onsets]
        if found:
            return min(found)
    raise ValueError(
        f"--from before-onset: {diagnosis.name} shows no drop or breakdown; give a step"
    )


def confirm(path: Path, run: Run, diagnosis: Diagnosis) -> None:
    """Run the replay that the diagnosis asks for."""
    from analysis.explain.commands import run_directory
    from analysis.replays.propose import SEEDS, announced, propose, start_of
    from trainers.replay.arms import make_plan, starting_step

    found = propose(run, diagnosis)
    path = run_directory(run) or path
    start = start_of(run, found) or starting_step(path, found.at_most[1])
    note(announced(run, found))
    plan = make_plan(
        path, (found.change,), at_most=start, steps=found.until - start, num_seeds=SEEDS
    )
    run_replay(plan, {"kind": found.kind, "subject": found.subject})


def run_replay(plan: ReplayPlan, suspect: dict[str, str], *, is_dry: bool = False) -> None:
    """Train the arms of a replay, compare them and write result.json; reports to stderr."""
    from rich.console import Console

    from analysis.replays.compare import compare, described, write_result
    from gradlab.store.run import open_run
    from trainers.replay.arms import run_arms
    from trainers.watch.progress import Progress

    original = open_run(plan.run)
    for line in described(original, plan.name, plan.start, plan.end, plan.changes, plan.seeds):
        note(line)
    if is_dry:
        return
    runs: dict[str, list[Run]] = {"control": [], "changed": []}
    for arm, _, out in run_arms(plan, lambda: Progress(Console(stderr=True))):
        runs[arm].append(open_run(out))
    result = compare(original, runs["control"], runs["changed"], plan.start)
    change = " ".join(f"--with {change}" for change in plan.changes)
    about = {"suspect": suspect, "change": change, "plan": plan.to_json()}
    write_result(plan.out / RESULT, result, about)
    for line in result.lines():
        note(line)
    note(f"written: {plan.out / RESULT}")
