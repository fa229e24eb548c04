"""Say where a drop in accuracy sits: in which problems, in which role."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from analysis.cliff.accuracy import AccuracySeries
from analysis.cliff.fall import Fall
from analysis.findings import percent
from gradlab.store.run import Run

ROLE_CHECKS = (
    ("own_accuracy", "own accuracy", -1),
    ("any_correct", "any correct turn", -1),
    ("choice_accuracy", "choice given a correct candidate", -1),
    ("false_accept", "wrong solutions accepted", 1),
    ("false_reject", "correct solutions rejected", 1),
    ("parse_failures", "parse failures", 1),
    ("truncated", "truncated responses", 1),
)
"""Shares of `RoleEvaluation`, and the sign in which they get worse."""


def located(run: Run, series: AccuracySeries, drop: Fall) -> list[str]:
    """Where the drop sits: which problems, which role."""
    if drop.onset is None:
        return []
    sentences = []
    before = (series.step_T <= drop.onset.step) & (
        np.arange(len(series)) > np.searchsorted(series.step_T, drop.onset.step) - drop.window
    )
    after = series.step_T >= drop.end_step
    if series.solved_TP is not None:
        first = _column_means(series.solved_TP[before])
        last = _column_means(series.solved_TP[after])
        lost = int(np.sum((first >= 0.5) & (last < 0.5)))
        gained = int(np.sum((first < 0.5) & (last >= 0.5)))
        sentences.append(
            f"of {len(first)} problems, {lost} were mostly solved before and mostly not after, "
            f"{gained} the other way round"
        )
    evaluations = run.evaluations()
    changes = []
    for role in run.roles:
        for name, title, sign in ROLE_CHECKS:
            signal = evaluations.role(name, role)
            value = np.asarray(signal.value_T, dtype=np.float64)
            early = value[np.isin(signal.step_T, series.step_T[before])]
            late = value[np.isin(signal.step_T, series.step_T[after])]
            early, late = early[np.isfinite(early)], late[np.isfinite(late)]
            if len(early) and len(late):
                change = float(late.mean() - early.mean())
                if sign * change >= 0.05:
                    text = f"{role}: {title} {percent(early.mean())} to {percent(late.mean())}"
                    changes.append((abs(change), text))
    sentences += [text for _, text in sorted(changes, reverse=True)[:3]]
    return sentences


def _column_means(value_TP: NDArray[np.float64]) -> NDArray[np.float64]:
    """[P] means over evaluations of what was graded; NaN where nothing was."""
    known = np.isfinite(value_TP)
    count = known.sum(axis=0)
    total = np.where(known, value_TP, 0.0).sum(axis=0)
    mean: NDArray[np.float64] = np.where(count > 0, total / np.maximum(count, 1), math.nan)
    return mean
