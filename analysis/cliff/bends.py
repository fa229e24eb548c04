"""Fit falls that begin gently or at once to a series, beside the straight line of a ramp.

A fall that begins gently is lower than noise only well after its beginning; the straight line then
dates it too late, and is too sure of it.

Legend: T evaluations, E ends of the fall.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from analysis.cliff.isotonic import fit_prefixes

Floats = NDArray[np.float64]

POWERS = (0.5, 1.0, 2.0, 3.0)
"""Shares u of a fall's duration have lost u**power: at once, straight, gently, more gently."""


def errors_by_onset(correct_T: Floats, trials_T: Floats) -> Floats:
    """[T] squared error of the best fall of any shape that begins after each evaluation.

    Isotonic rise, fall, flat end; weighted by trials / mean trials. Infinite where nothing goes
    down.
    """
    num = len(trials_T)
    weight_T = trials_T / trials_T.mean()
    rate_T = correct_T / trials_T
    prefix = fit_prefixes((rate_T * weight_T)[None, :], weight_T)
    mass_T = np.cumsum(weight_T[::-1])[::-1]
    tail_T = np.cumsum((rate_T * weight_T)[::-1])[::-1] / mass_T
    best_T = np.full(num, np.inf)
    for onset in range(num - 1):
        top = float(prefix.top_BT[0, onset])
        end_E = np.arange(onset + 1, num)
        end_E = end_E[tail_T[end_E] < top]
        if not len(end_E):
            continue
        after = np.arange(onset + 1, num)
        share_ET = np.minimum((after - onset) / (end_E - onset)[:, None], 1.0)
        loss_E1 = (top - tail_T[end_E])[:, None]
        for power in POWERS:
            stray_ET = rate_T[after] - top + loss_E1 * share_ET**power
            error_E = stray_ET**2 @ weight_T[after]
            best_T[onset] = min(best_T[onset], float(error_E.min()))
        best_T[onset] += float(prefix.sse_BT[0, onset])
    return best_T
