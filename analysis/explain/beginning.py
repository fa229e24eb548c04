"""Date the beginning of a fall by its evaluations, and by training rewards that fell with it.

Legend: T steps, P points that the beginning is dated on, B draws.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from analysis.cliff.bends import onset_logs
from analysis.cliff.fall import Fall
from analysis.cliff.ramp import SOFTER
from analysis.series.bend import bins, bridged
from gradlab.arrays import Floats

TRUST = 0.5
"""Chance that training fell when held-out accuracy did. The true beginnings of 70 falls of the
second world lay below 10 % of the draws in 14 %; at 0 (evaluations alone) in 19, at 1 in 23 %."""
APART = 0.1
"""Share of training's own beginnings within those of the evaluations, below which it fell for
itself."""
MAX_POINTS = 100
"""That training is averaged to: the search is cubic."""


def beginnings(
    drop: Fall,
    step_T: NDArray[np.int64],
    reward_T: Floats,
    num: int,
    rng: np.random.Generator,
) -> Floats:
    """[num] plausible beginnings of a fall, of which training shows `reward_T` (empty: nothing).

    Evaluations are far apart, and training is looked at in every step. The two are of other answers
    but of one policy: if they fell at one time, a beginning is as plausible as both find it.
    Whether they did is not known, so that half of the draws are of the evaluations alone.
    """
    held_B = drop.beginnings(num, rng)
    if not len(held_B) or not len(reward_T):
        return held_B
    edge_P, likelihood_P = _in_training(step_T, reward_T)
    if not len(likelihood_P):
        return held_B
    width_P = np.diff(edge_P)
    held_P = _by_point(drop, edge_P)
    both_P = held_P * likelihood_P
    own_P = likelihood_P * width_P / (likelihood_P * width_P).sum()
    if own_P[held_P > 0].sum() < APART or not both_P.sum() > 0:
        return held_B
    pick_B = rng.choice(len(both_P), num, p=both_P / both_P.sum())
    both_B = edge_P[pick_B] + width_P[pick_B] * rng.random(num)
    # A point may reach beyond what the evaluations leave open.
    both_B = np.clip(both_B, held_B.min(), held_B.max())
    drawn: Floats = np.where(rng.random(num) < TRUST, both_B, held_B)
    return drawn


def _in_training(step_T: NDArray[np.int64], reward_T: Floats) -> tuple[Floats, Floats]:
    """[P + 1] steps, and the likelihood [P] of a fall that begins between each and the next; or
    nothing."""
    nothing = np.zeros(0), np.zeros(0)
    stride = max(1, math.ceil(len(step_T) / MAX_POINTS))
    step_P, value_P = bins(step_T.astype(np.float64), stride), bins(reward_T, stride)
    known = np.flatnonzero(np.isfinite(value_P))
    if len(known) < 8:
        return nothing
    within = slice(int(known[0]), int(known[-1]) + 1)
    step_P, value_P = step_P[within], bridged(value_P[within])
    # Second differences: neither a climb nor a fall that lasts counts as noise.
    variance = float(np.mean(np.diff(value_P, 2) ** 2)) / 6
    if not variance > 0:
        return nothing
    log_P = onset_logs(value_P, np.ones(len(value_P)), SOFTER * variance)[:-1]
    if not np.isfinite(log_P).any():
        return nothing
    return step_P, np.exp(log_P - log_P.max())


def _by_point(drop: Fall, edge_P: Floats) -> Floats:
    """[P] plausibility by the evaluations: each spreads its own evenly up to the next one."""
    step_T = drop.onset_step_T.astype(np.float64)
    at_T = np.concatenate([[0.0], np.cumsum(drop.onset_weight_T[:-1])])
    between: Floats = np.diff(np.interp(edge_P, step_T, at_T))
    return between
