"""Compare gradients and steps of different updates, and of different runs, by their sketches.

Legend: K sketch buckets, T training steps, U and V updates.

Example:
    >>> run.cosine_across("generator")[10, 50]  # of the gradients of updates 10 and 50
    >>> first_run.cosine_between(second_run, "generator")  # [U, V]: do two runs go the same way?
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gradlab.arrays import Floats
from gradlab.readout.gram import quotient
from gradlab.readout.pooling import sum_over_updates

Sketched = Literal["gradient", "update"]
"""The gradient before clipping, or the part of the optimizer's step."""


def cosines(sketch_UK: Floats, sketch_VK: Floats) -> Floats:
    """[U, V] estimated cosines; NaN where one of the two is 0 or was not measured.

    By the norms of the sketches, not by those of the gradients: exactly 1 for a gradient with
    itself, and off by (1 - cos^2) / sqrt(K), not by sqrt((1 + cos^2) / K).
    """
    norm_U, norm_V = (np.linalg.norm(sketch, axis=1) for sketch in (sketch_UK, sketch_VK))
    return np.clip(quotient(sketch_UK @ sketch_VK.T, norm_U[:, None] * norm_V), -1.0, 1.0)


def paired_cosines(sketch_UK: Floats, other_UK: Floats) -> Floats:
    """[U] estimated cosine of each with its partner."""
    norm_U = np.linalg.norm(sketch_UK, axis=1) * np.linalg.norm(other_UK, axis=1)
    return np.clip(quotient((sketch_UK * other_UK).sum(1), norm_U), -1.0, 1.0)


def directness(
    step_U: NDArray[np.int64], sketch_UK: Floats, norm_U: Floats, window: int
) -> tuple[NDArray[np.int64], Floats]:
    """([T], [T]) ||sum d|| / sum ||d|| over the updates of the last `window` training steps.

    1: a march in one direction; 1 / sqrt(number of updates): a random walk. NaN where a step of
    the window was not measured.
    """
    if window < 1:
        raise ValueError(f"window is {window} steps; expected 1 or more")
    step_T, sketch_TK = sum_over_updates(step_U, sketch_UK)
    _, norm_T = sum_over_updates(step_U, norm_U)
    found = []
    for end in range(1, len(step_T) + 1):
        part = slice(max(end - window, 0), end)
        found.append((np.linalg.norm(sketch_TK[part].sum(0)), norm_T[part].sum()))
    above_T, below_T = np.array(found).reshape(-1, 2).T
    return step_T, np.minimum(quotient(above_T, below_T), 1.0)
