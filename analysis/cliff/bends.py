"""Fit falls that begin gently or at once to a series, beside the straight line of a ramp.

A fall that begins gently is lower than noise only well after its beginning; the straight line then
dates it too late, and is too sure of it.

Legend: T evaluations, E ends of the fall.
"""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp

from analysis.cliff.isotonic import fit_prefixes
from gradlab.arrays import Floats

POWERS = (0.5, 1.0, 2.0, 3.0)
"""Shares u of a fall's duration have lost u**power: at once, straight, gently, more gently."""
CHANCES = (0.38, 0.38, 0.19, 0.05)
"""Of those shapes, which makes nine of ten intervals hold the truth in the second world."""


def onset_logs(correct_T: Floats, trials_T: Floats, variance: float) -> Floats:
    """[T] log-likelihood of a fall that begins after each evaluation, over all shapes and widths.

    Isotonic rise, fall, flat end; -inf where nothing goes down. Widths of the same order count
    alike: an early beginning fits by many shapes and widths, each of them rarely well, and the best
    of them alone would make it too likely. `variance`: of an evaluation, as a share.
    """
    num = len(trials_T)
    weight_T = trials_T / trials_T.mean()
    rate_T = correct_T / trials_T
    prefix = fit_prefixes((rate_T * weight_T)[None, :], weight_T)
    mass_T = np.cumsum(weight_T[::-1])[::-1]
    tail_T = np.cumsum((rate_T * weight_T)[::-1])[::-1] / mass_T
    log_chance_P1 = np.log(CHANCES)[:, None]
    log_T = np.full(num, -np.inf)
    for onset in range(num - 1):
        top = float(prefix.top_BT[0, onset])
        end_E = np.arange(onset + 1, num)
        end_E = end_E[tail_T[end_E] < top]
        if not len(end_E):
            continue
        after = np.arange(onset + 1, num)
        share_ET = np.minimum((after - onset) / (end_E - onset)[:, None], 1.0)
        loss_E1 = (top - tail_T[end_E])[:, None]
        error_PE = np.array(
            [
                (rate_T[after] - top + loss_E1 * share_ET**power) ** 2 @ weight_T[after]
                for power in POWERS
            ]
        )
        log_PE = log_chance_P1 - error_PE / (2 * variance) - np.log(end_E - onset)
        log_T[onset] = logsumexp(log_PE) - float(prefix.sse_BT[0, onset]) / (2 * variance)
    return log_T
