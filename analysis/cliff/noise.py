"""Say how far one evaluation lies from the true accuracy by chance, and draw evaluations like it.

How noisy evaluations are is estimated from their second differences, so that neither a climb nor a
fall that lasts counts as noise. Held-out problems are the same every time and differ in difficulty,
so an evaluation varies less than as many independent draws would: on four published curves of 1,412
answers each, 0.4 to 0.65 of the binomial variance (first differences, which take climbs and falls
for noise, give 0.5 to 1.2). The estimate is drawn towards a value between that and 1, and is itself
uncertain; draws carry that, which is what keeps short runs honest.

Legend: T evaluations, B series.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import gammainc, gammaincinv

from analysis.cliff.accuracy import AccuracySeries
from gradlab.arrays import Floats

TYPICAL = 0.7
"""Variance of an evaluation over the binomial one where the problems' own answers are unknown."""
PRIOR_FREEDOM = 8.0
"""How much `TYPICAL` counts, in independent differences."""
MIN_DISPERSION = 0.2
"""Floor of the dispersion from problems: greedy answers can repeat exactly for a while."""

TRIM = 0.85


@dataclass(frozen=True)
class Noise:
    """Chance in one evaluation."""

    trials_T: Floats
    dispersion: float
    """Variance over binomial; with `variance`, of no meaning (1)."""
    freedom: float
    """Independent differences that the estimate is worth."""
    variance: float = math.nan
    """Of a rate whose number of answers is unknown, squared share; NaN where it is known."""

    @classmethod
    def of(cls, series: AccuracySeries) -> Noise:
        """Estimated from the series alone: no curve is fitted, so no shape is assumed."""
        num = max(len(series) - 2, 0)
        freedom = 0.5 * num  # second differences share two points in three
        if series.is_assumed:
            bend = _bends(series.rate_T) ** 2 / 6
            variance = _trimmed_mean(bend) if len(bend) else 0.0
            # Values that repeat exactly (all right, all wrong) have no noise to be seen.
            return cls(series.trials_T, 1.0, max(freedom, 1.0), max(variance, 1e-6))
        is_known = series.solved_TP is not None
        base = dispersion_of_problems(series)
        prior = base if is_known else TYPICAL
        seen = dispersion_of_differences(series)
        mixed = (PRIOR_FREEDOM * prior + freedom * seen) / (PRIOR_FREEDOM + freedom)
        lowest = base if is_known else MIN_DISPERSION
        return cls(series.trials_T, max(mixed, lowest), PRIOR_FREEDOM + freedom)

    def variance_T(self, curve_T: Floats) -> Floats:
        """[T] of one evaluation where the true accuracy is `curve_T`."""
        if math.isfinite(self.variance):
            return np.full(len(curve_T), self.variance)
        # Half an answer from 0 and 1: nothing is known to be impossible.
        rate_T = np.clip(curve_T, 0.5 / self.trials_T, 1 - 0.5 / self.trials_T)
        result: Floats = self.dispersion * rate_T * (1 - rate_T) / self.trials_T
        return result

    def simulate(self, curve_T: Floats, num_series: int, rng: np.random.Generator) -> Floats:
        """[B, T] accuracies around `curve_T`, each series with a noise that may be the true one."""
        factor_B = self.freedom / rng.chisquare(self.freedom, num_series)
        if math.isfinite(self.variance):
            scale_B1 = np.sqrt(self.variance * factor_B)[:, None]
            normal: Floats = curve_T + scale_B1 * rng.standard_normal((num_series, len(curve_T)))
            return normal
        effective_BT = np.maximum(self.trials_T / (self.dispersion * factor_B)[:, None], 1.0)
        # Stochastic rounding: 1.5 answers are 1 or 2, so that the variance is right on average.
        whole_BT = np.floor(effective_BT + rng.random(effective_BT.shape)).astype(np.int64)
        drawn: Floats = rng.binomial(whole_BT, np.clip(curve_T, 0.0, 1.0)) / whole_BT
        return drawn


def dispersion_of_differences(series: AccuracySeries) -> float:
    """Noise of one evaluation over binomial, from second differences; the sharpest are trimmed."""
    rate_T, trials_T = series.rate_T, series.trials_T
    if len(series) < 3:
        return 1.0
    mean = (rate_T[:-2] + rate_T[1:-1] + rate_T[2:]) / 3
    trials = 3 / (1 / trials_T[:-2] + 1 / trials_T[1:-1] + 1 / trials_T[2:])
    mean = np.clip(mean, 0.5 / trials, 1 - 0.5 / trials)
    expected = mean * (1 - mean) * (1 / trials_T[:-2] + 4 / trials_T[1:-1] + 1 / trials_T[2:])
    return _trimmed_mean(_bends(rate_T) ** 2 / expected)


def dispersion_of_problems(series: AccuracySeries) -> float:
    """Sampling noise of an evaluation over binomial, from how often single problems flip.

    Problems differ in difficulty and are the same every time, so the answers vary less than
    independent draws at the mean accuracy would. 1 without the matrix.
    """
    if series.solved_TP is None:
        return 1.0
    flips = np.diff(series.solved_TP, axis=0) ** 2 / 2
    valid = np.isfinite(flips)
    rate_T = series.rate_T
    spread = float(np.mean(rate_T * (1 - rate_T)))
    if not valid.any() or spread <= 0:
        return 1.0
    return float(np.clip(series.samples * flips[valid].mean() / spread, MIN_DISPERSION, 1.0))


def _bends(rate_T: Floats) -> Floats:
    """[T-2] y(t-1) - 2 y(t) + y(t+1): 0 on any straight line."""
    bend: Floats = rate_T[:-2] - 2 * rate_T[1:-1] + rate_T[2:]
    return bend


def _trimmed_mean(square: Floats) -> float:
    """Mean of squared standard normals times their variance, without the largest 15 %.

    Three at least, of eight or more: an abrupt fall bends the series in two places, an outlier in
    three.
    """
    num = len(square)
    fewest = 3 if num >= 8 else num // 3
    kept = max(min(math.ceil(TRIM * num), num - fewest), 1)
    return float(np.sort(square)[:kept].mean() / trimmed_mean(kept / num))


@lru_cache(maxsize=256)
def trimmed_mean(share: float) -> float:
    """Mean of the lowest `share` of chi-square(1) draws."""
    # Chi-square(k) is 2 Gamma(k / 2); scipy.special, since scipy.stats takes a second to import.
    quantile = 2.0 * float(gammaincinv(1 / 2, share))
    return float(gammainc(3 / 2, quantile / 2)) / share
