"""Read tables of evaluations that say how many answers were right, out of how many."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from gradlab.interop.logs.history import History
from gradlab.interop.logs.naming.targets import Target

RIGHT = ("num_correct", "n_correct", "correct")
TOTAL = ("num_total", "answers", "num_answers", "n_total", "total")
RATE = ("accuracy", "acc", "pass@1", "pass_at_1")


@dataclass(frozen=True)
class Counted:
    """Where a table of evaluations has its accuracy, and the answers behind it."""

    accuracy: str
    targets: Mapping[str, tuple[Target, ...]]
    notes: tuple[str, ...]


def with_counts(history: History, mapped: Collection[str]) -> tuple[History, Counted | None]:
    """The accuracy from counts where both are logged, else beside the number of answers; the
    history with it as a metric. None if the run logs no such thing, or a map speaks of it."""
    names = {name.lower(): name for name in history.metrics if name not in mapped}
    total = next((names[known] for known in TOTAL if known in names), None)
    right = next((names[known] for known in RIGHT if known in names), None)
    rate = next((names[known] for known in RATE if known in names), None)
    if total is None or (right is None and rate is None):
        return history, None
    size_T = history.metrics[total]
    if not np.nanmin(size_T, initial=math.inf) > 0:
        return history, None
    accuracy = rate or ""
    notes: tuple[str, ...] = ()
    if right is not None and np.all(_within(history.metrics[right], size_T)):
        accuracy = f"{right}/{total}"
        value_T = history.metrics[right] / size_T
        logged_T = history.is_logged.get(right, np.isfinite(value_T))
        history = replace(
            history,
            metrics={**history.metrics, accuracy: value_T},
            is_logged={**history.is_logged, accuracy: logged_T},
        )
        notes = (f"accuracy in evaluations is '{right}' of '{total}'",)
    elif rate is None:
        return history, None
    targets = {
        accuracy: (Target("Evaluation", "accuracy"),),
        total: (Target("Evaluation", "answers"),),
    }
    return history, Counted(accuracy, targets, notes)


def _within(right_T: np.ndarray, size_T: np.ndarray) -> np.ndarray:
    known = np.isfinite(right_T) & np.isfinite(size_T)
    within: np.ndarray = (right_T[known] >= 0) & (right_T[known] <= size_T[known])
    return within
