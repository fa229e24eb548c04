"""Join what other trainers logged, segment by segment, into one value per metric and step.

A log is rarely one clean table: a run that was resumed repeats steps, drops metrics and leaves
gaps. A later segment replaces the steps it repeats as a whole, since their values belong to other
rollouts, and with them everything that the earlier one logged after it: the run went on from
before, and what came then is no part of it.

Legend: T steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gradlab.arrays import Floats


@dataclass(frozen=True)
class Row:
    """What was logged at once."""

    step: int
    values: Mapping[str, float]
    """By metric; NaN where the log says so."""
    wall_time: float = math.nan
    """Seconds since the epoch."""


@dataclass(frozen=True)
class Part:
    """What one file holds, in its own order."""

    where: str
    rows: Sequence[Row]
    notes: Sequence[str] = ()
    planned: int | None = None
    """Steps that the run was meant to make, where the file says so."""
    lost: Sequence[str] = ()
    """Metrics that the file had and a cut took, somewhere or everywhere."""


@dataclass(frozen=True)
class History:
    """A whole run as it was logged."""

    step_T: NDArray[np.int64]
    """Ascending, every step once."""
    metrics: Mapping[str, Floats]
    """[T] by name, NaN where nothing was logged."""
    wall_time_T: Floats
    notes: Sequence[str] = ()
    """What was repaired, in words."""
    planned: int | None = None
    is_logged: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    """[T] by name: the metric is in the log at the step, be it as NaN."""
    lost: Sequence[str] = ()
    """Metrics that a cut took, somewhere or everywhere."""


Steps = dict[int, Row]


def join(parts: Sequence[Part]) -> History:
    """One history of all files: those with a metric in common are segments, others add columns."""
    families: list[tuple[set[str], list[Part]]] = []
    for part in parts:
        names = {name for row in part.rows for name in row.values}
        related = [family for family in families if family[0] & names]
        merged = (
            names.union(*(family[0] for family in related)),
            [*(other for family in related for other in family[1]), part],
        )
        families = [family for family in families if family not in related] + [merged]
    notes = [note for part in parts for note in part.notes]
    steps: Steps = {}
    for _, family in families:
        in_order = sorted(family, key=_first_step)
        if in_order != family:
            notes.append(
                f"read in the order of their steps: {', '.join(p.where for p in in_order)}"
            )
        for step, row in stitch(in_order, notes).items():
            steps[step] = merge(steps[step], row) if step in steps else row
    step_T = np.array(sorted(steps), dtype=np.int64)
    logged = dict.fromkeys(name for row in steps.values() for name in row.values)
    at = {step: t for t, step in enumerate(step_T.tolist())}
    metrics = {name: np.full(len(step_T), math.nan) for name in logged}
    is_logged = {name: np.zeros(len(step_T), dtype=np.bool_) for name in logged}
    wall_time_T = np.full(len(step_T), math.nan)
    for step, row in steps.items():
        wall_time_T[at[step]] = row.wall_time
        for name, value in row.values.items():
            metrics[name][at[step]] = value
            is_logged[name][at[step]] = True
    planned = next((part.planned for part in reversed(parts) if part.planned), None)
    lost = tuple(dict.fromkeys(name for part in parts for name in part.lost))
    return History(step_T, metrics, wall_time_T, notes, planned, is_logged, lost)


def stitch(parts: Sequence[Part], notes: list[str]) -> Steps:
    """The steps of files that log the same metrics; `notes` is told what did not fit."""
    kept: Steps = {}
    for part in parts:
        for segment in segments(part.rows):
            if kept and not _names(segment) & _names(kept):
                # Evaluations after the whole training: columns of the same run.
                for step, row in segment.items():
                    kept[step] = merge(kept[step], row) if step in kept else row
                continue
            first = min(segment)
            repeated = sorted(step for step in segment if step in kept)
            abandoned = sorted(step for step in kept if step >= first and step not in segment)
            if not repeated and abandoned:
                notes.append(f"{part.where}: {_steps(sorted(segment))} out of order; sorted")
            elif repeated and first <= min(kept):
                notes.append(
                    f"{part.where}: begins again at step {first}: a start from scratch or another "
                    f"run; only what comes after was taken, {len(kept)} steps before were dropped"
                )
                kept.clear()
            elif repeated:
                for step in [step for step in kept if step >= first]:
                    del kept[step]
                notes.append(
                    f"{part.where}: {_steps(repeated)} logged again after a resume; the later log "
                    f"was taken"
                )
                if abandoned:
                    notes.append(
                        f"{part.where}: {_steps(abandoned)} dropped: the run was resumed from "
                        f"before them and did not log them again"
                    )
            for step, row in segment.items():
                kept[step] = row
    return kept


def _names(steps: Steps) -> set[str]:
    return {name for row in steps.values() for name in row.values}


def segments(rows: Sequence[Row]) -> list[Steps]:
    """Cut where the step goes back, or a metric of the same step has another value."""
    cut: list[Steps] = []
    last = None
    for row in rows:
        is_new = last is None or row.step < last
        if not is_new and row.step == last and contradicts(cut[-1][row.step], row):
            is_new = True
        if is_new:
            cut.append({})
        known = cut[-1].get(row.step)
        cut[-1][row.step] = row if known is None else merge(known, row)
        last = row.step
    return cut


def contradicts(one: Row, other: Row) -> bool:
    """Whether two rows give a metric different values."""
    return any(
        name in one.values
        and one.values[name] != value
        and not (math.isnan(one.values[name]) and math.isnan(value))
        for name, value in other.values.items()
    )


def merge(one: Row, other: Row) -> Row:
    wall_time = one.wall_time if math.isnan(other.wall_time) else other.wall_time
    return Row(one.step, {**one.values, **other.values}, wall_time)


def _first_step(part: Part) -> int:
    return min((row.step for row in part.rows), default=0)


def _steps(steps: Sequence[int]) -> str:
    """'step 7', 'steps 7 to 12', '5 steps between 7 and 30'."""
    if len(steps) == 1:
        return f"step {steps[0]}"
    if steps[-1] - steps[0] == len(steps) - 1:
        return f"steps {steps[0]} to {steps[-1]}"
    return f"{len(steps)} steps between {steps[0]} and {steps[-1]}"
