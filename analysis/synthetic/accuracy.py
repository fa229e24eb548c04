"""Make accuracies and answers with planted drops, difficulties and wander.

Legend: E evaluations, P problems, S samples, T steps.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from analysis.synthetic.planted import Cliff
from gradlab.arrays import Floats


def accuracy_curve(step_E: NDArray[np.int64], steps: int, cliff: Cliff | None) -> Floats:
    """[E] true accuracy: a saturating rise from 0.35 to 0.6, minus the planted drop."""
    rate = 0.35 + 0.25 * (1 - np.exp(-5 * step_E / steps))
    if cliff is None or not len(step_E):
        return np.asarray(rate)
    after = step_E - cliff.step
    if cliff.kind == "last":
        lost = (np.arange(len(step_E)) == len(step_E) - 1).astype(np.float64)
    elif cliff.kind == "dip":
        lost = ((after >= 0) & (after < max(cliff.duration, 1))).astype(np.float64)
    else:
        duration = cliff.duration or (1 if cliff.kind == "cliff" else steps // 2)
        lost = np.clip((after + (duration == 1)) / duration, 0.0, 1.0)
    curve: Floats = np.clip(rate - cliff.drop * lost, 0.01, 0.99)
    return curve


def evaluation_matrix(
    rate_E: Floats,
    problems: int,
    samples: int,
    rng: np.random.Generator,
    *,
    spread: float = 1.5,
    wander: float = 0.0,
    correlation: float = 0.7,
) -> NDArray[np.uint8]:
    """[E, P, S] answers of a model of mean accuracy `rate_E`; difficulties have logit sd `spread`.

    `wander` adds an AR(1) path to the model's ability, in logits.
    """
    difficulty_P = spread * rng.standard_normal(problems)
    grid = np.linspace(-12, 12, 481)
    mean = expit(grid[:, None] - difficulty_P[None, :]).mean(axis=1) if problems else grid
    ability_E = np.interp(rate_E, mean, grid)
    if wander:
        ability_E = ability_E + wander * autoregressive(len(rate_E), correlation, rng)
    chance_EP = expit(ability_E[:, None] - difficulty_P[None, :])
    draws = rng.random((len(rate_E), problems, samples))
    return (draws < chance_EP[:, :, None]).astype(np.uint8)


def autoregressive(num: int, correlation: float, rng: np.random.Generator) -> Floats:
    """[T] stationary AR(1) path with standard deviation 1."""
    draw = rng.standard_normal(num)
    innovation = math.sqrt(1 - correlation**2)
    for t in range(1, num):
        draw[t] = correlation * draw[t - 1] + innovation * draw[t]
    return draw
