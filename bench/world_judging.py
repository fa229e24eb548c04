"""Ask the diagnosis about series and runs of the second world; keep its words beside the truth.

The only file of the second world that knows `analysis`, and only its public results.
"""

from __future__ import annotations

import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from world_curves import draw_series
from world_runs import SCENARIOS, write_run
from world_signals import CAUSES

DROPS = frozenset(
    {
        "cliff",
        "fall",
        "decay",
        "slow decay",
        "unresolved drop",
        "small loss",
        "early collapse",
        "two falls",
        "swings",
        "dip",
    }
)
"""Kinds of findings that speak of accuracy."""
DESCRIPTIONS = frozenset({"amplification", "path amplification", "dominance", "trend", "schedule"})
"""Kinds that describe a run and raise no alarm (docs/training.md)."""

BESIDE = ("with", "after", "coincid", "follow")
"""Words of what began with a fall or after it, and is told, but accused of nothing."""


@dataclass(frozen=True)
class Case:
    """One series to draw: everything that fixes it."""

    family: str
    answers: int
    num_evaluations: int
    points: float
    index: int
    seed: int

    def rng(self) -> np.random.Generator:
        """A stream of its own for every case, whichever others are asked for."""
        name = zlib.crc32(self.family.encode())
        key = (self.seed, name, self.answers, self.num_evaluations, int(self.points), self.index)
        return np.random.default_rng(key)


@dataclass(frozen=True)
class Said:
    """What was said of a series, and what is true. Drops in points, onsets in evaluations."""

    case: Case
    fell: bool
    true_fell: bool
    shape: str
    progress: str
    true_progress: str
    drop_error: float
    """Drop told - true drop; NaN where none was told."""
    is_drop_covered: bool
    onset_error: float
    is_onset_covered: bool
    width_ratio: float
    """Width told / true width."""


def judge_series(case: Case) -> Said:
    """Draw the series of a case and measure its fall."""
    from analysis.cliff.accuracy import AccuracySeries
    from analysis.cliff.cliff import FallTest

    drawn = draw_series(
        case.family,
        case.rng(),
        answers=case.answers,
        num_evaluations=case.num_evaluations,
        points=case.points,
    )
    truth, step_T = drawn.truth, drawn.step_T
    said: Any = FallTest().measure(
        AccuracySeries(
            step_T, drawn.correct_T.astype(np.float64), drawn.trials_T.astype(np.float64)
        )
    )
    spacing = float(step_T[1] - step_T[0])
    onset = getattr(said.onset, "step", np.nan)
    # Of two falls, either is a right answer.
    true_onset = min(
        (one for one in (truth.onset, truth.second_onset) if np.isfinite(one)),
        key=lambda one: abs(one - onset) if np.isfinite(onset) else one,
        default=np.nan,
    )
    # An onset is known to the evaluation: the two around the true one are both right.
    is_onset_covered = said.onset is not None and bool(
        said.onset.lower - spacing <= true_onset <= said.onset.upper + spacing
    )
    return Said(
        case=case,
        fell=bool(said.fell),
        true_fell=truth.fell,
        shape=str(said.shape),
        progress=str(said.progress),
        true_progress=truth.progress,
        drop_error=100.0 * (float(said.drop) - truth.drop),
        is_drop_covered=bool(
            said.drop_lower <= truth.drop_most and truth.drop_least <= said.drop_upper
        ),
        onset_error=(onset - true_onset) / spacing,
        is_onset_covered=is_onset_covered,
        width_ratio=float(said.width_steps or np.nan) / (truth.width_evaluations * spacing),
    )


@dataclass(frozen=True)
class RunCase:
    """One run to write and diagnose."""

    scenario: int
    """Index in `SCENARIOS`."""
    index: int
    seed: int


@dataclass(frozen=True)
class Diagnosed:
    """What was said of a run. Causes are (kind and words, subject) as they were told, in order."""

    case: RunCase
    status: str
    findings: tuple[str, ...]
    """'kind (subject, confidence)' of those that are neither about accuracy nor a description."""
    has_drop: bool
    """A finding says that accuracy fell."""
    causes: tuple[str, ...]
    is_right: tuple[bool, ...]
    """Of each cause: it is the planted one, or follows from it by arithmetic."""


def judge_run(case: RunCase) -> Diagnosed:
    """Write the run of a case to a temporary directory and diagnose it."""
    from analysis.diagnosis import diagnose
    from gradlab.store.run import open_run

    scenario = SCENARIOS[case.scenario]
    rng = np.random.default_rng((case.seed, zlib.crc32(scenario.name.encode()), case.index))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.zarr"
        truth = write_run(path, scenario, rng)
        said: Any = diagnose(open_run(path))
    drops = [one for one in said.findings if one.kind in DROPS]
    suspects = [one for one in said.causes if not any(word in one.words for word in BESIDE)]
    others = [one for one in said.findings if one.kind not in DROPS | DESCRIPTIONS]
    return Diagnosed(
        case=case,
        status=str(said.status),
        findings=tuple(f"{one.kind} ({one.subject}, {one.confidence})" for one in others),
        has_drop=bool(drops),
        causes=tuple(f"{one.kind} ({one.subject})" for one in suspects),
        is_right=tuple(
            is_named(scenario.cause, truth.subjects, f"{one.kind}", f"{one.subject}")
            for one in suspects
        ),
    )


def is_named(cause: str, subjects: tuple[str, ...], kind: str, subject: str) -> bool:
    """Whether a suspect of this kind and subject is the planted cause under one of its names."""
    kind = kind.lower().replace("_", " ")
    if not cause or not any(part in kind for part in CAUSES[cause]):
        return False
    return any(name in subject for name in subjects)
