"""Pool a series: updates into training steps, training steps into windows.

Legend: T training steps, U updates of a policy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradlab.arrays import Floats
from gradlab.readout.gram import quotient

Reduce = Callable[[NDArray[np.int64], Floats], tuple[NDArray[np.int64], Floats]]
"""([U] steps in order, [U, ...] values) -> ([T] steps, [T, ...] values)."""


def sum_over_updates(step_U: NDArray[np.int64], value_U: Floats) -> tuple[NDArray[np.int64], Any]:
    step_T, first_T = np.unique(step_U, return_index=True)
    if not len(step_T):
        return step_T, value_U
    return step_T, np.add.reduceat(value_U, first_T, axis=0)


def mean_over_updates(
    step_U: NDArray[np.int64], value_U: Floats
) -> tuple[NDArray[np.int64], Floats]:
    step_T, sum_T = sum_over_updates(step_U, value_U)
    _, count_T = sum_over_updates(step_U, np.ones(len(step_U)))
    return step_T, quotient(sum_T, count_T)


def mean_of_defined(step_U: NDArray[np.int64], value_U: Floats) -> tuple[NDArray[np.int64], Floats]:
    is_defined_U = np.isfinite(value_U)
    step_T, sum_T = sum_over_updates(step_U, np.where(is_defined_U, value_U, 0.0))
    _, count_T = sum_over_updates(step_U, is_defined_U.astype(np.float64))
    return step_T, quotient(sum_T, count_T)


def last_update(step_U: NDArray[np.int64], value_U: Floats) -> tuple[NDArray[np.int64], Floats]:
    is_last_U = np.append(step_U[1:] != step_U[:-1], True)[: len(step_U)]
    return step_U[is_last_U], value_U[is_last_U]


def trailing_mean(value_T: Floats, window: int) -> Floats:
    """[T] mean over the last `window` steps, fewer at the start; NaN counts as no step."""
    if window < 1:
        raise ValueError(f"window is {window} steps; expected 1 or more")
    # Not a difference of cumulative sums: after one value of 1e30 that has no digits left.
    parts = [value_T[max(end - window, 0) : end] for end in range(1, len(value_T) + 1)]
    parts = [part[np.isfinite(part)] for part in parts]
    return np.array([part.mean() if len(part) else np.nan for part in parts])
