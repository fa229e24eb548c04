"""Tell a change of level from wander: ramp plus autocorrelated noise against that noise alone.

A series that wanders by itself ends lower, or higher, than where it once was; every test that
assumes independent noise takes that for a change. Here both hypotheses may wander: the covariance
is s^2 ((1 - k) I + k R), R the correlation of an AR(1) process, and (s, k, rho) are fitted under
each. What is left for a ramp to explain is a move too sudden, or a new level too lasting, for the
wander that the rest of the series shows. The likelihood ratio is compared with that of simulated
series of the fitted null; s is estimated in each of them again, as in a t-test.

Legend: T points, B series, C ramps, J covariances, M shapes of the mean under the null.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from gradlab.arrays import Floats

GRID: tuple[tuple[float, float], ...] = (
    (0.0, 0.0),
    *((share, rho) for share in (0.3, 0.6, 0.85, 1.0) for rho in (0.4, 0.65, 0.8, 0.9, 0.96)),
)
"""(k, rho): share of the variance that wanders, and its lag-1 correlation."""
MAX_POINTS = 64
"""Longer series are averaged in neighbours: the cost is quadratic, and a step stays a step."""


CAUTION = 1.0
"""Nats."""


@dataclass(frozen=True)
class Change:
    """The best ramp of a series, and how likely wander alone gives as good a one."""

    p_value: float
    ratio: float
    """2 (log-likelihood with the ramp - without)."""
    onset: int
    """Last point on the old level."""
    end: int
    """First point on the new level."""
    size: float
    """Signed."""
    error: float
    """Standard error of `size`, given onset and end."""


@dataclass(frozen=True)
class _Design:
    """Everything about T points that does not depend on the values."""

    onset_C: NDArray[np.int64]
    end_C: NDArray[np.int64]
    root_JTT: Floats
    """Cholesky factors."""
    logdet_J: Floats
    white_JTT: Floats
    """Their inverses."""
    basis_JM: tuple[tuple[Floats, ...], ...]
    """[T, 1 or 2] orthonormal bases of the whitened means."""
    ramp_JM: tuple[tuple[Floats, ...], ...]
    """[C, T] unit ramps, whitened and orthogonal to the basis."""
    scale_JM: tuple[tuple[Floats, ...], ...]
    """[C] their lengths."""


def find_change(
    value_T: Floats,
    rng: np.random.Generator,
    *,
    sign: int,
    smooth: bool = False,
    floor: float = 0.0,
    settle: int = 1,
    num_draws: int = 299,
) -> Change:
    """Is there a ramp up (sign 1) or down (-1) that wander does not explain?

    `smooth`: the mean may take any smooth way up or down, with or without the ramp
    (`smooth_means`). `floor`: known smallest variance of one point's independent noise. `settle`:
    points that the new level must have kept until the end. The p-value is continued beyond the
    draws by an exponential tail.
    """
    points = len(value_T)
    design = _smooth_design(points, settle) if smooth else _design(points, settle)
    null, full = _fit(value_T[None, :], design, sign, floor)
    cov, shape, variance = _cautious(value_T, design, floor, float(null.loglik_B[0]))
    root = design.root_JTT[cov]
    basis = design.basis_JM[cov][shape]
    mean_T = root @ (basis @ (basis.T @ (design.white_JTT[cov] @ value_T)))
    noise_TB = root @ rng.standard_normal((len(value_T), num_draws))
    drawn_BT = mean_T + math.sqrt(variance) * noise_TB.T
    null_again, full_again = _fit(drawn_BT, design, sign, floor)
    ratio = 2.0 * float(full.loglik_B[0] - null.loglik_B[0])
    p_value = tail_probability(ratio, 2.0 * (full_again.loglik_B - null_again.loglik_B))
    pair, best = int(full.ramp_B[0]), int(full.cov_B[0])
    unit = float(full.score_B[0])
    scale = float(design.scale_JM[best][int(full.shape_B[0])][pair])
    return Change(
        p_value,
        ratio,
        int(design.onset_C[pair]),
        int(design.end_C[pair]),
        unit / scale,
        math.sqrt(float(full.variance_B[0])) / scale,
    )


def _cautious(
    value_T: Floats, design: _Design, floor: float, best: float
) -> tuple[int, int, float]:
    """The most lasting wander within `CAUTION` of the best log-likelihood: where to simulate.

    The best itself is too light: a mean that bends fits part of the wander.
    """
    chosen, memory = (0, 0, 1.0), -1.0
    for j, (share, rho) in enumerate(GRID):
        white_T = design.white_JTT[j] @ value_T
        for m, basis in enumerate(design.basis_JM[j]):
            fitted = basis.T @ white_T
            square_B = np.array([float(((white_T - basis @ fitted) ** 2).sum())])
            lowest = max(floor / max(1.0 - share, 0.05), 1e-300)
            loglik_B, variance_B = _loglik(square_B, len(value_T), lowest, design.logdet_J[j])
            lasting = share * rho / (1 - rho)
            if loglik_B[0] >= best - CAUTION and lasting > memory:
                chosen, memory = (j, m, float(variance_B[0])), lasting
    return chosen


def tail_probability(statistic: float, null_B: Floats) -> float:
    """Share of null draws at or above the statistic; beyond their upper tenth an exponential tail.

    Never below 1e-4: the tail is an assumption.
    """
    exceed = int(np.count_nonzero(null_B >= statistic - 1e-12))
    if exceed > 0.1 * len(null_B):
        return (1 + exceed) / (1 + len(null_B))
    start = float(np.quantile(null_B, 0.9))
    mean_excess = float(np.mean(null_B[null_B > start] - start)) if (null_B > start).any() else 0.0
    if mean_excess <= 0:
        return (1 + exceed) / (1 + len(null_B))
    return max(0.1 * math.exp(-(statistic - start) / mean_excess), 1e-4)


@dataclass(frozen=True)
class _Best:
    """The best covariance, mean and ramp of each series."""

    loglik_B: Floats
    cov_B: NDArray[np.int64]
    shape_B: NDArray[np.int64]
    variance_B: Floats
    ramp_B: NDArray[np.int64]
    score_B: Floats


def _fit(value_BT: Floats, design: _Design, sign: int, floor: float) -> tuple[_Best, _Best]:
    """Maximum likelihood without and with a ramp."""
    num, points = value_BT.shape
    none = np.zeros(num, dtype=np.int64)
    empty = np.full(num, -np.inf)
    null = _Best(empty, none, none, np.ones(num), none, np.zeros(num))
    full = null
    for j, (share, _) in enumerate(GRID):
        white_TB = design.white_JTT[j] @ value_BT.T
        lowest = max(floor / max(1.0 - share, 0.05), 1e-300)
        for m, basis in enumerate(design.basis_JM[j]):
            fitted_TB = basis.T @ white_TB
            left_TB = white_TB - basis @ fitted_TB
            square_B = (left_TB**2).sum(axis=0)
            score_CB = sign * (design.ramp_JM[j][m] @ left_TB)
            ramp_B = np.argmax(score_CB, axis=0)
            score_B = np.maximum(score_CB[ramp_B, np.arange(num)], 0.0)
            with_ramp_B = np.maximum(square_B - score_B**2, 0.0)
            null = _better(
                null,
                _loglik(square_B, points, lowest, design.logdet_J[j]),
                j,
                m,
                ramp_B,
                0.0 * score_B,
            )
            full = _better(
                full,
                _loglik(with_ramp_B, points, lowest, design.logdet_J[j]),
                j,
                m,
                ramp_B,
                sign * score_B,
            )
    return null, full


def _loglik(square_B: Floats, points: int, lowest: float, logdet: float) -> tuple[Floats, Floats]:
    """Gaussian log-likelihood at the best variance that is allowed, and that variance."""
    variance_B = np.maximum(square_B / points, lowest)
    loglik: Floats = -0.5 * (points * np.log(variance_B) + square_B / variance_B + logdet)
    return loglik, variance_B


def _better(
    best: _Best,
    new: tuple[Floats, Floats],
    j: int,
    m: int,
    ramp_B: NDArray[np.int64],
    score_B: Floats,
) -> _Best:
    """Take the new fit where it is more likely."""
    take = new[0] > best.loglik_B
    return _Best(
        np.where(take, new[0], best.loglik_B),
        np.where(take, j, best.cov_B),
        np.where(take, m, best.shape_B),
        np.where(take, new[1], best.variance_B),
        np.where(take, ramp_B, best.ramp_B),
        np.where(take, score_B, best.score_B),
    )


def smooth_means(points: int) -> list[Floats]:
    """[T, 1 to 3] bases of the ways that a signal of healthy training takes: level, line, quick or
    slow saturation, acceleration, and an S over a third of the run or more.

    Logarithms, powers and other saturations are within 2 % of their size of one of these, S-shapes
    within 4 %.
    """
    share_T = np.arange(points, dtype=np.float64) / max(points - 1, 1)
    decay = {speed: np.exp(-speed * share_T) for speed in (3, 8, 20, 50)}
    ways = [[share_T], [share_T, np.exp(3 * share_T)], [share_T, decay[8]]]
    ways += [[decay[3], decay[20]], [decay[8], decay[50]]]
    ways += [
        [share_T, 1 / (1 + np.exp((middle - share_T) / 0.1))]
        for middle in (0.2, 0.35, 0.5, 0.65, 0.8)
    ]
    level_T = np.ones(points)
    return [np.stack([level_T, *way], axis=1) for way in ([], *ways)]


@lru_cache(maxsize=16)
def _design(points: int, settle: int) -> _Design:
    return _design_of([np.ones((points, 1))], points, settle)


@lru_cache(maxsize=2)
def _smooth_design(points: int, settle: int) -> _Design:
    """Some 50 MB for 64 points: few are kept."""
    return _design_of(smooth_means(points), points, settle)


def _design_of(means: list[Floats], points: int, settle: int) -> _Design:
    onset_C, end_C = _ramps(points, settle)
    time_T = np.arange(points, dtype=np.float64)
    ramp_CT = np.clip((time_T - onset_C[:, None]) / (end_C - onset_C)[:, None], 0.0, 1.0)
    distance = np.abs(time_T[:, None] - time_T[None, :])
    roots, logdets, whites, bases, ramps, scales = [], [], [], [], [], []
    for share, rho in GRID:
        correlation = rho**distance if rho else np.eye(points)
        root = np.linalg.cholesky((1 - share) * np.eye(points) + share * correlation)
        white = np.linalg.inv(root)
        roots.append(root)
        whites.append(white)
        logdets.append(2 * np.log(np.diag(root)).sum())
        moved_TC = white @ ramp_CT.T
        own_bases, own_ramps, own_scales = [], [], []
        for mean in means:
            basis, upper = np.linalg.qr(white @ mean)
            basis = basis * np.sign(np.diag(upper))
            left_TC = moved_TC - basis @ (basis.T @ moved_TC)
            scale_C = np.sqrt((left_TC**2).sum(axis=0))
            own_bases.append(basis)
            own_ramps.append(np.ascontiguousarray((left_TC / np.maximum(scale_C, 1e-9)).T))
            own_scales.append(scale_C)
        bases.append(tuple(own_bases))
        ramps.append(tuple(own_ramps))
        scales.append(tuple(own_scales))
    return _Design(
        onset_C,
        end_C,
        np.stack(roots),
        np.array(logdets),
        np.stack(whites),
        tuple(bases),
        tuple(ramps),
        tuple(scales),
    )


def unit_ramps(points: int) -> tuple[NDArray[np.int64], Floats]:
    """Onsets [C] and ramps from 0 to 1 [C, T] that are tried."""
    onset_C, end_C = _ramps(points, settle=1)
    time_T = np.arange(points, dtype=np.float64)
    return onset_C, np.clip((time_T - onset_C[:, None]) / (end_C - onset_C)[:, None], 0.0, 1.0)


def _ramps(points: int, settle: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Onsets and ends: every onset, durations in a Fibonacci ladder."""
    durations = [1, 2]
    while durations[-1] < points:
        durations.append(durations[-1] + durations[-2])
    pairs = [
        (onset, onset + duration)
        for duration in durations
        for onset in range(1, points - duration - settle + 1)
    ]
    onset_C, end_C = np.array(pairs).T
    return onset_C, end_C
