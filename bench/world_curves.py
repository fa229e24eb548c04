"""Draw accuracy series of a run of a named family, with the truth about its fall.

A series is what a real evaluation gives: the same problems every time, of beta-distributed
difficulty, one or several answers to each. The truth is the accuracy that infinitely many answers
to these very problems would have had.

Legend: T evaluations, P problems. Levels and drops in shares of answers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from world_families import FAMILIES, TruePath
from world_paths import Float64Array, Rng, held

FALLEN = 0.05
"""A loss of less is no fall."""
SPACINGS = (5, 10, 20)
"""Steps between evaluations."""


@dataclass(frozen=True)
class Truth:
    """What happened in a series."""

    family: str
    fell: bool
    """The end is 5 points or more under a level that was held for three evaluations."""
    drop: float
    """Best held true level - true level at the last evaluation."""
    drop_least: float
    drop_most: float
    """The least and the most of `drop` under other names for best (mean of three, single best)
    and end (mean of the last three): an interval that reaches between them is right."""
    onset: float
    """Training step at which the true level begins to go down; NaN without a planted fall."""
    second_onset: float
    """Where the second of two falls begins; NaN with one or none."""
    onset_evaluation: float
    """The same in evaluations."""
    width_evaluations: float
    """From the onset to the end of the fall, or of the run."""
    width_share: float
    """The same as a share of the run."""
    in_progress: bool
    """The true level was still going down when the run stopped."""
    progress: str
    """'still falling', 'settled', 'coming back'; '' without a fall."""
    level_T: Float64Array
    """[T] true accuracy."""
    noise_T: Float64Array
    """[T] standard deviation of the accuracy measured."""


@dataclass(frozen=True)
class Drawn:
    """A series as a detector gets it, and the truth."""

    step_T: NDArray[np.int64]
    correct_T: NDArray[np.int64]
    trials_T: NDArray[np.int64]
    truth: Truth
    solved_TP: NDArray[np.int64]
    """[T, P] right answers by problem."""
    samples: int
    """Answers per problem."""


@dataclass(frozen=True)
class Problems:
    """A held-out set and how far the measured level strays from the true one."""

    concentration: float
    """a + b of the beta distribution of success rates; below 2 most problems are easy or hard."""
    drift: float
    """Standard deviation of how much better or worse single problems get than the set."""
    jitter: float
    """Standard deviation of what an evaluation adds beyond sampling: server, checkpoint."""


def draw_series(
    family: str,
    rng: Rng,
    *,
    answers: int,
    num_evaluations: int,
    points: float = 15.0,
    samples: int = 1,
    climb: str | None = None,
    problems: Problems | None = None,
) -> Drawn:
    """Draw one run of a family of `FAMILIES`; `points` is the size of the fall, if there is one."""
    if family not in FAMILIES:
        raise ValueError(f"family is '{family}'; expected one of {', '.join(FAMILIES)}")
    if answers % samples:
        raise ValueError(f"{answers} answers cannot be {samples} to each problem")
    path = FAMILIES[family](rng, num_evaluations, points / 100.0, climb)
    problems = problems or draw_problems(rng)
    spacing = SPACINGS[int(rng.integers(len(SPACINGS)))]
    rate_TP = success_rates(path.level_T, answers // samples, problems, rng)
    noise_T = np.hypot(
        np.sqrt((rate_TP * (1.0 - rate_TP)).mean(1) / answers),
        problems.jitter,
    )
    solved_TP = measure(path, rate_TP, noise_T, samples, problems, rng)
    step_T = spacing * np.arange(num_evaluations)
    return Drawn(
        step_T,
        solved_TP.sum(1),
        np.full(num_evaluations, answers),
        truth_of(family, path, step_T, noise_T),
        solved_TP,
        samples,
    )


def draw_problems(rng: Rng) -> Problems:
    """As in published curves: noise of 0.4 to 1.3 times the binomial variance at 1,400 answers."""
    jitter = rng.uniform(0.0, 0.011) if rng.uniform() < 0.5 else 0.0
    return Problems(rng.uniform(0.6, 1.6), rng.uniform(0.0, 0.5), jitter)


def success_rates(level_T: Float64Array, number: int, problems: Problems, rng: Rng) -> Float64Array:
    """[T, P] each problem's chance of a right answer; their mean is `level_T`, exactly."""
    first = float(np.clip(level_T[0], 0.02, 0.98))
    total = problems.concentration
    rate_P = rng.beta(first * total, (1.0 - first) * total, number)
    score_P = ndtri(np.clip(rate_P, 1e-4, 1.0 - 1e-4))
    time_T = np.linspace(0.0, 1.0, level_T.size)
    score_TP = score_P + time_T[:, None] * problems.drift * rng.normal(size=number)
    return shifted(score_TP, level_T)


def shifted(score_TP: Float64Array, level_T: Float64Array) -> Float64Array:
    """[T, P] normal probabilities of the scores, moved together so that their mean is `level_T`."""
    target_T = np.clip(level_T, 0.002, 0.998)
    low_T, high_T = np.full(level_T.size, -9.0), np.full(level_T.size, 9.0)
    for _ in range(28):
        middle_T = 0.5 * (low_T + high_T)
        is_high_T = ndtr(score_TP + middle_T[:, None]).mean(1) > target_T
        high_T = np.where(is_high_T, middle_T, high_T)
        low_T = np.where(is_high_T, low_T, middle_T)
    return np.asarray(ndtr(score_TP + (0.5 * (low_T + high_T))[:, None]), dtype=np.float64)


def measure(
    path: TruePath,
    rate_TP: Float64Array,
    noise_T: Float64Array,
    samples: int,
    problems: Problems,
    rng: Rng,
) -> NDArray[np.int64]:
    """[T, P] right answers of every evaluation."""
    strayed_T = path.level_T + problems.jitter * rng.normal(size=noise_T.size)
    strayed_T[-1] -= path.outlier * noise_T[-1]
    if problems.jitter or path.outlier:
        score_TP = ndtri(np.clip(rate_TP, 1e-6, 1.0 - 1e-6))
        rate_TP = shifted(score_TP, strayed_T)
    return rng.binomial(samples, rate_TP).astype(np.int64)


def truth_of(
    family: str, path: TruePath, step_T: NDArray[np.int64], noise_T: Float64Array
) -> Truth:
    """The numbers of a path; `fell` follows from them, whatever the family's name says."""
    level_T, last = path.level_T, step_T.size - 1
    three_K = np.lib.stride_tricks.sliding_window_view(level_T, 3).mean(1)
    best = (held(level_T), float(three_K.max()), float(level_T.max()))
    if np.isfinite(path.start_level):
        best = (path.start_level, path.start_level, path.start_level)
    end = (float(level_T[-1]), float(level_T[-3:].mean()))
    drop = best[0] - end[0]
    fell = drop >= FALLEN
    onset_evaluation = path.start * last
    width = min(path.width, 1.0 - path.start)
    return Truth(
        family=family,
        fell=fell,
        drop=drop,
        drop_least=min(best) - max(end),
        drop_most=max(best) - min(end),
        onset=float(onset_evaluation * (step_T[1] - step_T[0])),
        second_onset=float(path.second_start * step_T[-1]),
        onset_evaluation=onset_evaluation,
        width_evaluations=width * last,
        width_share=width,
        in_progress=path.progress == "still falling",
        progress=path.progress if fell else "",
        level_T=level_T,
        noise_T=noise_T,
    )
