"""Fit rising curves to many series at once, for every prefix in one pass.

Legend: B series, T points. Pool-adjacent-violators keeps a stack of blocks per series; because it
is incremental, the stack after point t is the isotonic fit of the prefix 0..t, so one pass gives
the squared error of all T prefixes: what a scan over turning points needs. Every shape that
learning has is a rising curve: lines, saturating and S-shaped climbs, plateaus, late bloomers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradlab.arrays import Floats


@dataclass(frozen=True)
class PrefixFits:
    """Isotonic fits of all prefixes of B series."""

    sse_BT: Floats
    """Weighted sum of squared errors of the fit of points 0..t."""
    top_BT: Floats
    """Highest, that is last, level of the fit of points 0..t."""
    fit_BT: Floats
    """The fit of the whole series."""


def fit_prefixes(successes_BT: Floats, trials_T: Floats) -> PrefixFits:
    """Isotonic (non-decreasing) fits of successes/trials, weighted by trials.

    The least-squares fit weighted by trials is also the binomial maximum-likelihood fit.
    """
    num_series, num_points = successes_BT.shape
    rows = np.arange(num_series)
    block_sum = np.zeros((num_series, num_points))
    block_weight = np.ones((num_series, num_points))
    block_start = np.zeros((num_series, num_points), dtype=np.int64)
    below_square = np.zeros((num_series, num_points))  # block_sum^2 / block_weight, under the top
    depth = np.full(num_series, -1)
    square_BT = np.empty((num_series, num_points))
    top_BT = np.empty((num_series, num_points))
    for t in range(num_points):
        if t:
            total, weight = block_sum[rows, depth], block_weight[rows, depth]
            below_square[rows, depth + 1] = below_square[rows, depth] + total**2 / weight
        depth = depth + 1
        block_sum[rows, depth] = successes_BT[:, t]
        block_weight[rows, depth] = trials_T[t]
        block_start[rows, depth] = t
        open_rows = rows[depth > 0]
        while open_rows.size:
            top = depth[open_rows]
            violates = (
                block_sum[open_rows, top - 1] * block_weight[open_rows, top]
                > block_sum[open_rows, top] * block_weight[open_rows, top - 1]
            )
            merged = open_rows[violates]
            top = top[violates]
            block_sum[merged, top - 1] += block_sum[merged, top]
            block_weight[merged, top - 1] += block_weight[merged, top]
            depth[merged] -= 1
            open_rows = merged[depth[merged] > 0]
        total, weight = block_sum[rows, depth], block_weight[rows, depth]
        square_BT[:, t] = below_square[rows, depth] + total**2 / weight
        top_BT[:, t] = total / weight
    sse_BT = np.cumsum(successes_BT**2 / trials_T, axis=1) - square_BT
    return PrefixFits(
        np.maximum(sse_BT, 0.0),
        top_BT,
        _expand(block_sum / block_weight, block_start, depth, num_points),
    )


def _expand(
    level_BT: Floats, start_BT: NDArray[np.int64], depth_B: NDArray[np.int64], num_points: int
) -> Floats:
    """Write each block's level on its points."""
    block_of_BT = np.zeros((len(depth_B), num_points), dtype=np.int64)
    rows, blocks = np.nonzero(np.arange(level_BT.shape[1]) <= depth_B[:, None])
    block_of_BT[rows, start_BT[rows, blocks]] = blocks
    np.maximum.accumulate(block_of_BT, axis=1, out=block_of_BT)
    fit: Floats = np.take_along_axis(level_BT, block_of_BT, axis=1)
    return fit
