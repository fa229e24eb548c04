"""Date the beginning of a fall by its evaluations, and by training rewards that fell with it.

Legend: B draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.cliff.fall import Fall
from gradlab.arrays import Floats

APART = 0.1
"""Share of training's draws within those of the evaluations, below which it fell for itself."""


def drawn_together(
    drop: Fall, in_training: Sequence[Floats], num: int, rng: np.random.Generator
) -> Floats:
    """[num] plausible beginnings of a fall that was dated in training by these draws, each [num].

    Evaluations are far apart, and training is looked at in every step: what came after it fell
    followed the fall, although the next evaluation was still to come. So the earlier of the two
    counts. The two are of other answers but of one policy, and are not multiplied: a line dates a
    gentle beginning late, and would make it sure of that. Training that fell at another time, for
    another reason, dates nothing.
    """
    began_B = held_B = drop.beginnings(num, rng)
    for training_B in in_training:
        within = (training_B >= held_B.min()) & (training_B <= held_B.max())
        if within.mean() >= APART:
            began_B = np.minimum(began_B, training_B)
    return began_B
