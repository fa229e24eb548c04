"""Find lasting episodes of a noisy series above a threshold, and how long its noise remembers.

Legend: T steps.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gradlab.arrays import Floats


def correlation_time(odds_T: Floats) -> float:
    """Correlation time (1 + rho) / (1 - rho), from trimmed means: bursts do not count.

    Medians would do too, but vary twice as much: at 160 steps they see a memory in white noise.
    """
    one = _trimmed(np.diff(odds_T) ** 2)
    two = _trimmed((odds_T[2:] - odds_T[:-2]) ** 2)
    rho = float(np.clip(two / one - 1.0, 0.0, 0.95)) if one > 0 else 0.0
    return (1.0 + rho) / (1.0 - rho)


def _trimmed(square_T: Floats) -> float:
    """Mean of the lowest 85 %."""
    return float(np.sort(square_T)[: max(math.ceil(0.85 * len(square_T)), 1)].mean())


def running_median(value_T: Floats, window: int) -> Floats:
    """Trailing median; over what there is in the first `window` steps."""
    padded = np.concatenate([np.full(window - 1, math.nan), value_T])
    median_T: Floats = np.nanmedian(
        np.lib.stride_tricks.sliding_window_view(padded, window), axis=1
    )
    return median_T


def hysteresis(value_T: Floats, enter: float, leave: float) -> NDArray[np.bool_]:
    """True from a value >= enter until one < leave."""
    state_T = np.zeros(len(value_T), dtype=bool)
    inside = False
    for t, value in enumerate(value_T):
        inside = value >= (leave if inside else enter)
        state_T[t] = inside
    return state_T


def lasting(state_T: NDArray[np.bool_], window: int) -> NDArray[np.bool_]:
    """Only the episodes of at least `window` steps."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], state_T, [False]]).astype(np.int8)))
    kept_T = np.zeros(len(state_T), dtype=bool)
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        kept_T[start:stop] = stop - start >= window
    return kept_T


def binned(value_T: Floats, stride: int) -> Floats:
    """Medians of `stride` neighbours; the last bin may be short."""
    if stride == 1:
        return value_T
    starts = range(0, len(value_T), stride)
    return np.array([np.median(value_T[start : start + stride]) for start in starts])
