"""Decide whether accuracy ended below the best level that it held: by how much, since when, how.

The fact comes before its explanation. Whether the end is lower than the best level is a question of
sampling noise and of having picked the best level afterwards, and of nothing else:

1. the noise of one evaluation, from second differences and from real evaluations (`noise`);
2. p = the chance that a run whose true accuracy only ever rises, in whatever shape (the null is the
   best isotonic curve), ends as far below an earlier stretch as this one (`scan`);
3. onset, end and size from a ramp (`ramp`): isotonic rise, line down, flat end, where a fall that
   is still going on has no flat end; the size is corrected for having picked the best level;
4. a gate on that size: smaller losses are called small losses.

Cliff, fall and decay are names for widths, as shares of the run; the paper's authors call falls of
17 to 45 % of a run cliffs, and published no formula. How else accuracy moves in the run (`swings`,
wander) qualifies a fall and never hides it.

Legend: T evaluations, B bootstrap series.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from analysis.accuracy import AccuracySeries, Outcome, outcome_of
from analysis.findings import Onset, percent, points
from analysis.isotonic import fit_prefixes
from analysis.noise import Noise
from analysis.ramp import (
    Progress,
    Ramp,
    both_falls,
    fit_ramp,
    onset_interval,
    onset_weights,
    plateau_within,
    progress,
)
from analysis.scan import FEW, largest_loss
from analysis.swings import Swing, find_swings
from gradlab.store import Run

Floats = NDArray[np.float64]
Shape = Literal[
    "none",
    "small loss",
    "cliff",
    "fall",
    "decay",
    "swings",
    "last evaluation low",
    "never learned",
    "too few evaluations",
]
"""'none': no loss beyond noise. 'swings': the end is the low of one more swing."""
FALLS = ("cliff", "fall", "decay")
MOVED = (*FALLS, "swings")
"""Shapes with a beginning that other signals can be compared with."""
Kind = Literal["", "early collapse", "two falls"]

POWER = 0.84
"""Standard errors between a threshold and what passes it in 4 of 5 runs."""


@dataclass(frozen=True)
class Fall:
    """What the test measured; accuracies are shares, positions training steps."""

    shape: Shape
    num_evaluations: int
    p_value: float = math.nan
    """That the end is no lower than the best level held."""
    top: float = math.nan
    """Best level: the highest mean of `window` successive evaluations, before the fall if any."""
    top_step: int = -1
    """Middle of that stretch."""
    bottom: float = math.nan
    """Last level: the mean of the last `end_window` evaluations."""
    drop: float = math.nan
    """`top` - `bottom`."""
    drop_lower: float = math.nan
    drop_upper: float = math.nan
    """Approximate 95 % interval of the true loss, corrected for the choice of the best level."""
    window: int = 0
    end_window: int = 0
    """No more than there are on the new level; 1 in a fall that is still going on."""
    onset: Onset | None = None
    """Last evaluation before the fall; the interval reaches to the first one after it."""
    end_step: int = -1
    """First evaluation on the new level; the last one of the run where there is none yet."""
    progress: Progress = ""
    low: float = math.nan
    """Lowest level since the fall began, where some of it came back."""
    low_step: int = -1
    kind: Kind = ""
    second_step: int = -1
    """Last evaluation before the second of two falls."""
    swings: tuple[Swing, ...] = ()
    """Losses that came back, elsewhere in the run; positions are indices of evaluations."""
    swing_step_T: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """[T] steps of those indices."""
    onset_weight_T: Floats = field(default_factory=lambda: np.zeros(0))
    """[T] plausibility of each evaluation as the last before the fall; sums to 1."""
    onset_step_T: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """[T] steps of `onset_weight_T`."""
    dispersion: float = math.nan
    """Variance of one evaluation over binomial."""
    sigma: float = math.nan
    """Standard deviation of one evaluation around the true accuracy."""
    wander: float = math.nan
    """Standard deviation of the true accuracy around its trend, outside the fall."""
    detectable_drop: float = math.nan
    """Smallest loss called a fall in 4 of 5 runs like this one."""
    p_gain: float = math.nan
    """That accuracy never rose above its first level."""
    detectable_gain: float = math.nan
    run_steps: int = 0
    """From the first evaluation to the last."""
    base: float = math.nan
    """First evaluation."""
    first_step: int = -1
    last: float = math.nan
    """Last evaluation, alone."""
    last_step: int = -1
    outcome: Outcome = "held-out accuracy"
    is_assumed: bool = False
    """The noise is inferred: no number of answers is recorded."""
    low_value: float = 0.0
    """Of the outcome at rate 0."""
    high_value: float = 1.0

    @property
    def fell(self) -> bool:
        return self.shape in FALLS

    @property
    def is_scaled(self) -> bool:
        """Rewards outside 0..1: levels are shares of the range that they moved in."""
        return (self.low_value, self.high_value) != (0.0, 1.0)

    def value(self, rate: float) -> float:
        """A level in the outcome's own unit."""
        return self.low_value + rate * (self.high_value - self.low_value)

    def level(self, rate: float) -> str:
        """A level in words: '58 %', or '0.58' of a reward."""
        if self.outcome != "training reward":
            return percent(rate)
        return f"{self.value(rate):.2f}" if math.isfinite(rate) else "unknown"

    def loss(self, share: float) -> str:
        """A difference of levels in words: '12 points', or '0.12' of a reward."""
        if self.outcome != "training reward":
            return points(share)
        return f"{share * (self.high_value - self.low_value):.2f}"

    @property
    def width_steps(self) -> int:
        """Steps from the last good evaluation to the first on the new level, or to the last one."""
        return self.end_step - self.onset.step if self.onset else 0

    @property
    def width_share(self) -> float:
        """The same as a share of the run."""
        return self.width_steps / self.run_steps if self.run_steps else math.nan

    @property
    def width_interval(self) -> tuple[int, int]:
        """Widths of the plausible beginnings of the fall."""
        if self.onset is None:
            return 0, 0
        last_good = self.onset_step_T[
            self.onset_step_T < max(self.onset.upper, self.onset.step + 1)
        ]
        return self.end_step - int(last_good[-1]), self.end_step - self.onset.lower


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
        detectable = max((needed + POWER) * error, smallest + POWER * error)
        measured = {
            "num_evaluations": num_evaluations,
            "p_value": p_value,
            "window": window,
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
        return self.min_drop if (series.low, series.high) == (0.0, 1.0) else self.min_share

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
        num, sigma, window = len(series), measured["sigma"], measured["window"]
        fit = fit_ramp(series.correct_T[None, :], series.trials_T)
        ramp = Ramp.best(fit, series)
        weight_T = onset_weights(fit, num, sigma**2)
        plateau = plateau_within(series.rate_T, ramp, sigma**2, max(smallest, 3 * sigma))
        second = -1
        if plateau is not None:
            ramp, second, weight_T = both_falls(series, plateau, sigma**2)
        at = levels(series.rate_T, series.trials_T, ramp.onset, ramp.end, window)
        drop = at.top - at.bottom
        bias, spread = self._sampled(series, ramp, noise, drop, window, rng)
        elsewhere = swings_elsewhere(series.rate_T, noise, ramp, smallest)
        low, low_step = lowest(series, ramp.onset, sigma, at)
        width = (series.step_T[ramp.end] - series.step_T[ramp.onset]) / measured["run_steps"]
        shape: Shape = "cliff" if width <= self.cliff else "fall" if width <= self.fall else "decay"
        held = at.top - 1.64 * sigma * math.sqrt(1 + 1 / window)
        if drop - bias < smallest:
            shape = "small loss"
        elif num >= FEW and ramp.onset >= num - 3 and series.rate_T[-2] > held:
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
            drop_lower=drop - bias - 1.96 * spread,
            drop_upper=drop - bias + 1.96 * spread,
            end_window=at.end_window,
            onset=onset_interval(series, weight_T, ramp) if shape in MOVED else None,
            end_step=int(series.step_T[ramp.end]),
            progress="coming back" if low_step >= 0 else progress(fit, num, sigma**2),
            low=low,
            low_step=low_step,
            kind=kind,
            second_step=-1 if second < 0 else int(series.step_T[second]),
            swings=elsewhere,
            onset_weight_T=weight_T,
            onset_step_T=series.step_T,
            wander=wander_outside(series, noise, ramp),
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
        num, sigma, window = len(series), measured["sigma"], measured["window"]
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
        is_resolved = gain <= 2 * self.min_drop or (series.low, series.high) != (0.0, 1.0)
        if shape == "none" and p_gain > self.alpha and num >= FEW and is_resolved:
            shape = "never learned"
        return Fall(
            shape,
            top=at.top,
            top_step=int(series.step_T[at.middle]),
            bottom=at.bottom,
            drop=at.top - at.bottom,
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
        drop: float,
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


@dataclass(frozen=True)
class Levels:
    """Best and last level of a series; positions are indices."""

    top: float
    middle: int
    """Of the stretch with the best level."""
    bottom: float
    end_window: int


def window_of(num: int) -> int:
    """Evaluations averaged for a level: a tenth of the run, at least 3; fewer in short runs."""
    return max(3, math.ceil(0.1 * num)) if num >= FEW else max(1, num // 3)


def levels(value_T: Floats, weight_T: Floats, onset: int, end: int, window: int) -> Levels:
    """Highest mean of `window` points up to `onset`; mean of the last `window` from `end` on."""
    size = min(window, onset + 1)
    total = np.concatenate([[0.0], np.cumsum(value_T * weight_T)])
    weight = np.concatenate([[0.0], np.cumsum(weight_T)])
    stop = np.arange(size, onset + 2)
    mean = (total[stop] - total[stop - size]) / (weight[stop] - weight[stop - size])
    best = int(np.argmax(mean))
    last = min(window, len(value_T) - end)
    bottom = (total[-1] - total[-1 - last]) / (weight[-1] - weight[-1 - last])
    return Levels(float(mean[best]), best + size // 2, float(bottom), last)


def lowest(series: AccuracySeries, onset: int, sigma: float, at: Levels) -> tuple[float, int]:
    """Lowest level after `onset` and its step, if accuracy came back from it; else (NaN, -1)."""
    size = min(3, len(series) - onset - 1)
    if len(series) - onset - 1 < size + at.end_window:
        return math.nan, -1
    starts = np.arange(onset + 1, len(series) - at.end_window - size + 1)
    mean = np.array([series.rate(int(start), int(start) + size) for start in starts])
    low = int(np.argmin(mean))
    back = at.bottom - float(mean[low])
    error = sigma * math.sqrt(1 / size + 1 / at.end_window)
    if back < max(4 * error, 0.2 * (at.top - at.bottom)):
        return math.nan, -1
    return float(mean[low]), int(series.step_T[starts[low] + size // 2])


def swings_elsewhere(
    value_T: Floats, noise: Noise, ramp: Ramp, smallest: float
) -> tuple[Swing, ...]:
    """Losses that came back, before the fall and after it."""
    variance_T = noise.variance_T(value_T)
    before = find_swings(value_T[: ramp.onset + 1], variance_T[: ramp.onset + 1], smallest)
    after = find_swings(value_T[ramp.end :], variance_T[ramp.end :], smallest)
    moved = (
        replace(s, start=s.start + ramp.end, low=s.low + ramp.end, back=s.back + ramp.end)
        for s in after
    )
    return (*before, *moved)


TYPICAL_WANDER = 0.008
"""Standard deviation of the true accuracy around its trend, in healthy stretches of real runs."""
WANDER_FREEDOM = 5.0


def wander_outside(series: AccuracySeries, noise: Noise, ramp: Ramp | None) -> float:
    """How far the true accuracy strays from a rising trend where nothing fell.

    Residuals before the fall (around an isotonic curve) and after it (around their mean), without
    what sampling explains, drawn towards what real runs show.
    """
    onset = len(series) - 1 if ramp is None else ramp.onset
    rise = fit_prefixes(series.correct_T[None, : onset + 1], series.trials_T[: onset + 1]).fit_BT[0]
    residual = series.rate_T[: onset + 1] - rise
    freedom = len(residual) - len(np.unique(rise))
    square = float((residual**2).sum())
    if ramp is not None and len(series) - ramp.end >= 2:
        tail = series.rate_T[ramp.end :] - series.rate(ramp.end, len(series))
        square, freedom = square + float((tail**2).sum()), freedom + len(tail) - 1
    sampled = float(np.mean(noise.variance_T(series.rate_T)))
    if not series.is_assumed:
        sampled /= noise.dispersion  # binomial alone: what is beyond it may be wander
    beyond = max(square - freedom * sampled, 0.0)
    return math.sqrt((beyond + WANDER_FREEDOM * TYPICAL_WANDER**2) / (freedom + WANDER_FREEDOM))
