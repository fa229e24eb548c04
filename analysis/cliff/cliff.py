"""Decide whether accuracy ended below the best level that it held: by how much, since when, how.

The fact comes before its explanation. Whether the end is lower than the best level is a question of
sampling noise and of having picked the best level afterwards, and of nothing else:

1. the noise of one evaluation, from second differences and from real evaluations (`noise`);
2. p = the chance that a run whose true accuracy only ever rises, in whatever shape (the null is the
   best isotonic curve), ends as far below an earlier stretch as this one (`scan`);
3. onset, end and size from a ramp (`ramp`): isotonic rise, line down, flat end, where a fall that
   is still going on has no flat end; the size is corrected for having picked the best level;
4. a gate on that size and its interval: what may be small is called a small loss.

Cliff, fall and decay are names for widths, as shares of the run; the paper's authors call falls of
17 to 45 % of a run cliffs, and published no formula. How else accuracy moves in the run (`swings`,
wander) qualifies a fall and never hides it.

Legend: T evaluations, B bootstrap series.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analysis.cliff.accuracy import AccuracySeries, outcome_of
from analysis.cliff.course import (
    is_last_alone,
    levels,
    lowest,
    still_rising,
    swings_elsewhere,
    wander_outside,
    window_of,
)
from analysis.cliff.fall import Fall, Kind, Shape
from analysis.cliff.isotonic import fit_prefixes
from analysis.cliff.noise import Noise
from analysis.cliff.ramp import (
    Ramp,
    both_falls,
    fit_ramp,
    likely_onset,
    onset_interval,
    onset_weights,
    plateau_within,
    progress,
)
from analysis.cliff.scan import FEW, largest_loss
from analysis.cliff.swings import find_swings
from analysis.findings import DROPS
from gradlab.arrays import Floats
from gradlab.store.run import Run

POWER = 0.84
"""Standard errors between a threshold and what passes it in 4 of 5 runs."""

CERTAIN = 1.96
"""Standard errors from an estimate to the ends of its 95 % interval."""


@dataclass(frozen=True)
class FallTest:
    """Thresholds of the test; measured operating characteristics in bench/results/detectors.md.

    Example:
        >>> FallTest().measure_run(run).shape
        'cliff'
    """

    alpha: float = 0.025
    """Largest p-value of a fall: one run in forty that only rises at most is said to have fallen;
    what else accuracy does by itself, wandering, may take the other half of one in twenty."""
    small_alpha: float = 0.05
    """The same of a small loss, which accuses nobody."""
    min_drop: float = 0.05
    """Smallest loss called a fall, as a share: 5 points is what seeds differ by in practice."""
    min_share: float = 0.25
    """The same for rewards outside 0..1, which have no scale: of the range that they moved in."""
    sure_share: float = 0.6
    """Of the smallest loss: an interval that reaches further down than this does not tell a fall
    from a small loss."""
    cliff: float = 0.25
    """Widest cliff, as a share of the run: the sharpest published falls take 17 %."""
    fall: float = 0.5
    """Widest fall; what takes longer is a decay."""
    early: float = 0.15
    """Share of the run before which a fall without any gain is an early collapse."""
    num_bootstraps: int = 499
    """Series under "it only ever rises": p-values down to 0.002, +-0.01 at 0.05."""
    num_interval_bootstraps: int = 199
    """Series for the loss's interval: its ends are good to a tenth of its width."""
    max_points: int = 120
    """Neighbouring evaluations are added up beyond that: the scan is quadratic."""
    seed: int = 0
    """Of all draws, so that a diagnosis can be repeated."""

    def measure_run(self, run: Run) -> Fall:
        return self.measure(outcome_of(run))

    def measure(self, series: AccuracySeries) -> Fall:
        """Run the test on one series (reads top to bottom like the module's list)."""
        num_evaluations = len(series)
        if num_evaluations < 2:
            base = float(series.rate_T[0]) if num_evaluations else math.nan
            return Fall(
                "too few evaluations", num_evaluations, base=base, top=base, bottom=base,
                outcome=series.outcome, is_assumed=series.is_assumed,
            )  # fmt: skip
        rng = np.random.default_rng(self.seed)
        series = series.pooled(self.max_points)
        noise = Noise.of(series)
        window = window_of(len(series))
        sigma = math.sqrt(float(np.mean(noise.variance_T(series.rate_T))))
        error = sigma * math.sqrt(2.0 / window)
        isotonic_T = fit_prefixes(series.correct_T[None, :], series.trials_T).fit_BT[0]
        p_value, needed = self._chance(series, isotonic_T, noise, rng)
        smallest = self._smallest(series)
        sure = self.sure_share * smallest + (CERTAIN + POWER) * error
        detectable = max((needed + POWER) * error, smallest + POWER * error, sure)
        measured = {
            "num_evaluations": num_evaluations,
            "p_value": p_value,
            "dispersion": math.nan if series.is_assumed else noise.dispersion,
            "sigma": sigma,
            "detectable_drop": detectable,
            "run_steps": int(series.step_T[-1] - series.step_T[0]),
            "swing_step_T": series.step_T,
            "base": float(series.rate_T[0]),
            "first_step": int(series.step_T[0]),
            "last": float(series.rate_T[-1]),
            "last_step": int(series.step_T[-1]),
            "outcome": series.outcome,
            "is_assumed": series.is_assumed,
            "low_value": series.low,
            "high_value": series.high,
        }
        if p_value <= self.small_alpha:
            return self._loss(series, noise, measured, smallest, rng)
        return self._no_loss(series, noise, measured, smallest, needed, rng)

    def _smallest(self, series: AccuracySeries) -> float:
        """Smallest loss called a fall, in the series' unit."""
        return self.min_share if series.is_scaled else self.min_drop

    def _chance(
        self, series: AccuracySeries, null_T: Floats, noise: Noise, rng: np.random.Generator
    ) -> tuple[float, float]:
        """p of the largest loss if the truth is `null_T`, and the loss that has p = alpha."""
        variance_T, weight_T = noise.variance_T(null_T), series.trials_T
        seen = largest_loss(series.rate_T[None, :], variance_T, weight_T)[0]
        null_BT = noise.simulate(null_T, self.num_bootstraps, rng)
        null_B = largest_loss(null_BT, variance_T, weight_T)
        exceed = int(np.count_nonzero(null_B >= seen - 1e-12))
        needed = float(np.quantile(null_B, 1 - self.alpha))
        return (1 + exceed) / (1 + self.num_bootstraps), needed

    def _loss(
        self,
        series: AccuracySeries,
        noise: Noise,
        measured: dict[str, Any],
        smallest: float,
        rng: np.random.Generator,
    ) -> Fall:
        """A loss beyond noise: its beginning, its size, its width, and what it is called."""
        num, sigma, window = len(series), measured["sigma"], window_of(len(series))
        fit = fit_ramp(series.correct_T[None, :], series.trials_T)
        ramp = Ramp.best(fit, series)
        wander = wander_outside(series, noise, ramp)
        spread2 = sigma**2 + wander**2
        weight_T = onset_weights(series.correct_T, series.trials_T, spread2)
        plateau = plateau_within(series.rate_T, ramp, sigma**2, max(smallest, 3 * sigma))
        second = -1
        if plateau is not None:
            ramp, second, weight_T = both_falls(series, plateau, spread2)
        at = levels(series.rate_T, series.trials_T, ramp.onset, ramp.end, window)
        bias, spread = self._sampled(series, ramp, noise, window, rng)
        elsewhere = swings_elsewhere(series.rate_T, noise, ramp, smallest)
        low, low_step = lowest(series, ramp.onset, sigma, at)
        if low_step >= 0:
            averaged = at.end_window
            at = still_rising(series, low_step, sigma, at)
            spread = math.hypot(spread, sigma * math.sqrt(1 / at.end_window - 1 / averaged))
        drop = at.top - at.bottom
        began = likely_onset(weight_T, ramp)
        width = (series.step_T[ramp.end] - series.step_T[began]) / measured["run_steps"]
        shape: Shape = "cliff" if width <= self.cliff else "fall" if width <= self.fall else "decay"
        lower = drop - bias - CERTAIN * spread
        if drop - bias < smallest or lower < self.sure_share * smallest:
            shape = "small loss"
        elif ramp.onset >= num - 3 and is_last_alone(series, sigma, window):
            shape = "last evaluation low"
        elif measured["p_value"] > self.alpha:
            shape = "none"
        elif sum(swing.size >= 0.75 * drop for swing in elsewhere) >= 2:
            shape = "swings"
        kind: Kind = "" if plateau is None else "two falls"
        if self._is_early(series, ramp, at.top, sigma, smallest):
            kind = "early collapse"
        return Fall(
            shape,
            top=at.top,
            top_step=int(series.step_T[at.middle]),
            bottom=at.bottom,
            drop=drop,
            # Never without the loss that is printed beside it.
            drop_lower=min(lower, drop),
            drop_upper=max(drop - bias + CERTAIN * spread, drop),
            window=at.window,
            end_window=at.end_window,
            onset=onset_interval(series, weight_T, began) if shape in DROPS else None,
            end_step=int(series.step_T[ramp.end]),
            progress="coming back" if low_step >= 0 else progress(fit, series, ramp, sigma**2),
            low=low,
            low_step=low_step,
            kind=kind,
            second_step=-1 if second < 0 else int(series.step_T[second]),
            swings=elsewhere,
            onset_weight_T=weight_T,
            onset_step_T=series.step_T,
            wander=wander,
            **measured,
        )

    def _no_loss(
        self,
        series: AccuracySeries,
        noise: Noise,
        measured: dict[str, Any],
        smallest: float,
        needed: float,
        rng: np.random.Generator,
    ) -> Fall:
        """No loss beyond noise: what else can be said."""
        num, sigma, window = len(series), measured["sigma"], window_of(len(series))
        at = levels(series.rate_T, series.trials_T, num - 1, num - window, window)
        shape: Shape = "none"
        lost = float(at.top - series.rate_T[-1])
        if num >= FEW and lost >= max(smallest, (needed + 1) * sigma * math.sqrt(1 + 1 / window)):
            shape = "last evaluation low"
        backwards = replace(
            series,
            correct_T=series.correct_T[::-1],
            trials_T=series.trials_T[::-1],
        )
        flat_T = np.full(num, series.rate(0, num))
        p_gain, needed_gain = self._chance(backwards, flat_T, noise, rng)
        gain = (needed_gain + POWER) * sigma * math.sqrt(2.0 / window)
        is_resolved = gain <= 2 * self.min_drop or series.is_scaled
        if shape == "none" and p_gain > self.alpha and num >= FEW and is_resolved:
            shape = "never learned"
        return Fall(
            shape,
            top=at.top,
            top_step=int(series.step_T[at.middle]),
            bottom=at.bottom,
            drop=at.top - at.bottom,
            window=at.window,
            end_window=at.end_window,
            swings=find_swings(series.rate_T, noise.variance_T(series.rate_T), smallest),
            wander=wander_outside(series, noise, None),
            p_gain=p_gain,
            detectable_gain=gain,
            **measured,
        )

    def _is_early(
        self, series: AccuracySeries, ramp: Ramp, top: float, sigma: float, smallest: float
    ) -> bool:
        """Did accuracy fall within the first evaluations, before it had gained anything?"""
        first, last = series.step_T[0], series.step_T[-1]
        is_early = series.step_T[ramp.onset] - first <= self.early * (last - first)
        gained = top - float(series.rate_T[0])
        return (bool(is_early) or ramp.onset <= 1) and gained < max(smallest, 2 * sigma)

    def _sampled(
        self,
        series: AccuracySeries,
        ramp: Ramp,
        noise: Noise,
        window: int,
        rng: np.random.Generator,
    ) -> tuple[float, float]:
        """By how much the loss is overstated, since its best level was picked, and its error.

        From series drawn around the fitted ramp and measured in the same way, onset and end
        included. Approximate: a rise that would have gone on is no part of the loss.
        """
        again_BT = noise.simulate(ramp.curve_T, self.num_interval_bootstraps, rng)
        fit = fit_ramp(np.clip(again_BT, 0.0, 1.0) * series.trials_T, series.trials_T)
        best_B = np.argmin(fit.drop_sse_BC, axis=1)
        drop_B = np.empty(len(again_BT))
        for b, pair in enumerate(best_B):
            at = levels(
                again_BT[b], series.trials_T, int(fit.onset_C[pair]), int(fit.end_C[pair]), window
            )
            drop_B[b] = at.top - at.bottom
        truth = levels(ramp.curve_T, series.trials_T, ramp.onset, ramp.end, window)
        return float(np.mean(drop_B)) - (truth.top - truth.bottom), float(np.std(drop_B))
