"""Date the beginning of a fall by its evaluations and by training rewards together.

Evaluations are far apart, and training is looked at in every step; both fall at one moment, unless
what is rewarded and what is measured came apart.

Legend: B draws, T steps.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from analysis.cliff.fall import Fall

Floats = NDArray[np.float64]

GENTLE = 0.2
"""Of its width, that a line through a gentle fall starts too late: 0.19 for half a wave of a
cosine, 0.16 for a cubic S. Training's fall is dated by such a line."""
APART = 0.1
"""Chance that training fell for itself: then it dates nothing."""


def drawn_together(drop: Fall, training_B: Floats, rng: np.random.Generator) -> Floats:
    """[B] plausible beginnings of a fall that was dated in training at `training_B`.

    What began before the evaluations can have fallen is taken for the beginning itself: whatever
    came after it followed a fall of training rewards.
    """
    num = len(training_B)
    held_B = drop.beginnings(num, rng)
    early_B = training_B - rng.random(num) * GENTLE * np.maximum(drop.end_step - training_B, 0.0)
    first, last = float(drop.onset_step_T[0]), float(drop.onset_step_T[-1])
    edge_T = np.arange(np.floor(first), np.ceil(last) + 2) - 0.5
    held_T = _smoothed(held_B, edge_T)
    training_T = _smoothed(early_B, edge_T)
    if float(np.minimum(held_T, training_T).sum()) < APART:
        return np.minimum(held_B, training_B)
    both_T = held_T * ((1 - APART) * training_T + APART / len(training_T))
    pick_B = rng.choice(len(both_T), num, p=both_T / both_T.sum())
    drawn_B: Floats = np.maximum(edge_T[pick_B] + rng.random(num), first)
    return drawn_B


def _smoothed(drawn_B: Floats, edge_T: Floats) -> Floats:
    """Share of the draws in each step and its neighbours; sums to 1."""
    count_T, _ = np.histogram(drawn_B, edge_T)
    share_T: Floats = np.convolve(count_T, [0.25, 0.5, 0.25], mode="same")
    return share_T / max(float(share_T.sum()), 1.0)
