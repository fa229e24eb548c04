"""Compare the end of a series with every earlier stretch of it, at many lengths at once.

Legend: T points, B series, W earlier stretches.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from gradlab.arrays import Floats

Indices = NDArray[np.int64]

FEW = 8
"""Points below which a single one has to do for a stretch."""

IN_PROGRESS = 1 / 3
"""Loss one point before the last, as a share of that at the last, where a fall has just begun."""


def largest_loss(value_BT: Floats, variance_T: Floats, weight_T: Floats) -> Floats:
    """[B] largest (mean of an earlier stretch - mean of the end) in standard errors; at least 0.

    `weight_T`: of the points in a mean, such as the answers behind them. An inner stretch has two
    points or more: one outlier is no level. Read backwards, it is the largest gain over the start.
    """
    zero = np.zeros((len(value_BT), 1))
    total_BT = np.concatenate([zero, np.cumsum(value_BT * weight_T, axis=1)], axis=1)
    weight = np.concatenate([[0.0], np.cumsum(weight_T)])
    square = np.concatenate([[0.0], np.cumsum(weight_T**2 * variance_T)])
    best_B = np.zeros(len(value_BT))
    points = len(weight_T)
    for length, start_W, stop_W in stretches(points):
        size_W = weight[stop_W] - weight[start_W]
        early_BW = (total_BT[:, stop_W] - total_BT[:, start_W]) / size_W
        variance_W = (square[stop_W] - square[start_W]) / size_W**2
        ends = [weight_T[points - length :]]
        if length == 2 and points >= FEW:
            ends.append(ends[0] * (IN_PROGRESS, 1.0))
        for end_L in ends:
            share_L = end_L / end_L.sum()
            end_B = value_BT[:, points - length :] @ share_L
            variance_end = float(share_L**2 @ variance_T[points - length :])
            z_BW = (early_BW - end_B[:, None]) / np.sqrt(variance_W + variance_end)
            best_B = np.maximum(best_B, z_BW.max(axis=1))
    return best_B


@lru_cache(maxsize=64)
def stretches(points: int) -> tuple[tuple[int, Indices, Indices], ...]:
    """For every length of the end: starts and stops of the stretches before it."""
    shortest = 1 if points < FEW else 2
    result = []
    for length in _ladder(shortest, max(points // 3, shortest)):
        pairs = [
            (start, start + size)
            for size in (1, *_ladder(2, max(points // 2, 2)))
            for start in range(points - length - size + 1)
            if size >= shortest or start == 0  # the base model is a level of its own
        ]
        if pairs:
            start_W, stop_W = np.array(pairs, dtype=np.int64).T
            result.append((length, start_W, stop_W))
    return tuple(result)


def _ladder(first: int, last: int) -> list[int]:
    """Lengths a factor of about 1.5 apart."""
    lengths = [first]
    while lengths[-1] < last:
        lengths.append(min(last, max(lengths[-1] + 1, math.ceil(1.5 * lengths[-1]))))
    return lengths
