"""Add up what the cells of a plan will take: time, memory, disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trainers.config import TrainConfig
from trainers.matrix.plan import Cell
from trainers.preview.estimates import plan
from trainers.preview.times import Speed
from trainers.preview.words import duration, size
from trainers.replay.begin import DATA
from trainers.tasks.problem import Task
from trainers.training import task_of


@dataclass(frozen=True)
class Kind:
    """Cells that differ in their seed alone, and what one of them takes."""

    name: str
    """Of the first, its seed left out."""
    cells: tuple[Cell, ...]
    seconds: float | None
    """None where its device is not here."""
    memory: int
    """Bytes at the peak."""
    disk: int
    """Bytes at the end, at most."""
    missing: str
    """Why its problems cannot be read; '' where they can."""


def kinds_of(cells: Sequence[Cell], told: Callable[[int], None] = lambda _: None) -> list[Kind]:
    """What every kind of cell takes; `told` hears how many are known.

    Raises ValueError for a cell that cannot be trained, its name first.
    """
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(repr(replace(cell.config, seed=0, out=Path())), []).append(cell)
    tasks: dict[str, Task | str] = {}
    speeds: dict[tuple[str, str, int], Speed | None] = {}
    found = []
    for members in groups.values():
        found.append(_kind(members, tasks, speeds))
        told(len(found))
    return found


def _kind(
    members: Sequence[Cell],
    tasks: dict[str, Task | str],
    speeds: dict[tuple[str, str, int], Speed | None],
) -> Kind:
    config = members[0].config
    # Which problems there are depends on --seed where no --problem-seed is given.
    key = repr([getattr(config, name) for name in DATA]) + str(config.problems_per_step)
    if key not in tasks:
        tasks[key] = _task(config)
    task = tasks[key]
    place = (config.device, config.dtype, config.threads)
    try:
        taken = plan(config, task if isinstance(task, Task) else None, speeds.get(place))
    except ValueError as error:
        raise ValueError(f"cell {members[0].name}: {error}") from error
    speeds[place] = taken.times.speed if taken.is_here else None
    disk = taken.disk
    labels = [label for axis, label in members[0].place.items() if axis != "seed"]
    return Kind(
        ".".join(labels) or members[0].name, tuple(members),
        taken.all_seconds if taken.is_here else None,
        taken.memory.peak, disk.store + disk.adapters + disk.states + disk.episodes,
        task if isinstance(task, str) else "",
    )  # fmt: skip


def _task(config: TrainConfig) -> Task | str:
    try:
        return task_of(config)
    except ValueError as error:
        return str(error)


def described(
    kinds: Sequence[Kind], finished: frozenset[str], at_once: int, out: Path
) -> Iterator[str]:
    """What the cells that are not finished take, kind by kind and in all."""
    left = [(kind, sum(cell.name not in finished for cell in kind.cells)) for kind in kinds]
    rows = [("cells", "runs", "time each", "memory", "disk each")]
    for kind, runs in left:
        seconds = "?" if kind.seconds is None else duration(kind.seconds)
        rows.append((kind.name, str(runs), seconds, size(kind.memory), size(kind.disk)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)).rstrip()
    total, todo = sum(len(kind.cells) for kind in kinds), sum(runs for _, runs in left)
    yield ""
    yield f"cells   {total}: {total - todo} finished, {todo} to train"
    if todo:
        yield from summed([kind for kind, runs in left for _ in range(runs)], at_once, out)


def summed(runs: Sequence[Kind], at_once: int, out: Path) -> Iterator[str]:
    """What runs of these kinds take together."""
    times = [run.seconds for run in runs if run.seconds is not None]
    if len(times) < len(runs):
        yield "time    unknown: the device of some cells is not here, so no seconds"
    else:
        shortest = max(*times, sum(times) / at_once)
        yield (
            f"time    about {duration(sum(times))} one after the other, {duration(shortest)} "
            f"with --at-once {at_once} if each is as fast beside the others"
        )
    peaks = sorted((run.memory for run in runs), reverse=True)
    yield (
        f"memory  at most about {size(peaks[0])} a cell, {size(sum(peaks[:at_once]))} with "
        f"--at-once {at_once}, beside 0.5 GiB of Python and libraries a process"
    )
    free = shutil.disk_usage(next(p for p in (out, *out.absolute().parents) if p.exists())).free
    disk = sum(run.disk for run in runs)
    short = "" if disk < free else ": MORE THAN IS FREE"
    yield f"disk    at most {size(disk)}, {size(free)} free at {out}{short}"
    for missing in dict.fromkeys(run.missing for run in runs if run.missing):
        yield f"missing {missing}"
