"""Find runs in which nothing was learned, and say what gain they would have shown.

Legend: T evaluations, or steps where there are none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.accuracy import AccuracySeries
from analysis.bend import bins
from analysis.findings import Finding, percent
from analysis.noise import dispersion_of_differences, dispersion_of_problems
from analysis.wander import MAX_POINTS, tail_probability
from gradlab.store import Run

Floats = NDArray[np.float64]

Z_POWER = 0.84
"""Normal quantile of 80 %."""


@dataclass(frozen=True)
class Standstill:
    """How a series that may not have moved began and ended."""

    is_still: bool
    start: float
    """Level of the first quarter."""
    end: float
    """Level of the last quarter."""
    lower: float
    """95 % interval of end - start."""
    upper: float
    detectable: float
    """Smallest gain, held for half of the run, that 4 of 5 such runs would have shown."""
    detectable_at_once: float
    """The same if it is there from the second value on."""
    p_value: float
    """Of the clearest change of level anywhere, up or down, if there is only noise."""


@dataclass(frozen=True)
class StandstillRule:
    """Thresholds of the rule."""

    alpha: float = 0.1
    """A change this clear is too much for 'nothing'."""
    max_detectable: float = 0.1
    """Gain, as a share, that must have been seen had it been there; of a reward, relative to its
    largest size, or to its spread over turns if that is more."""
    min_evaluations: int = 8
    min_steps: int = 50
    num_draws: int = 1999
    seed: int = 0
    """Of the draws, so that a diagnosis can be repeated."""

    def __call__(self, run: Run) -> list[Finding]:
        """At most one finding, of the run."""
        found = nothing_learned(run, self)
        return [found] if found else []

    def measure(self, value_T: Floats, variance_T: Floats) -> Standstill:
        """Judge one series; `variance_T`: of each value's independent noise.

        The largest standardized difference of the means before and after any point is compared with
        that of noise alone. Wander only adds to it: then 'nothing' is not said, though it may be
        true.
        """
        rng = np.random.default_rng(self.seed)
        weight_T = 1 / variance_T
        ratio = _largest_split(value_T[None, :], weight_T)[0]
        drawn_BT = np.sqrt(variance_T) * rng.standard_normal((self.num_draws, len(value_T)))
        null_B = _largest_split(drawn_BT, weight_T)
        p_value = tail_probability(float(ratio), null_B)
        quarter = max(len(value_T) // 4, 1)
        levels = [_mean(value_T[part], weight_T[part]) for part in _ends(quarter)]
        errors = [1 / weight_T[part].sum() for part in _ends(quarter)]
        error = math.sqrt(sum(errors))
        half = len(value_T) // 2
        power = float(np.quantile(null_B, 1 - self.alpha)) + Z_POWER
        of_half, of_first = (
            math.sqrt(1 / weight_T[:at].sum() + 1 / weight_T[at:].sum()) for at in (half, 1)
        )
        size = levels[1] - levels[0]
        return Standstill(
            p_value > self.alpha,
            levels[0],
            levels[1],
            size - 1.96 * error,
            size + 1.96 * error,
            power * of_half,
            power * of_first,
            p_value,
        )


@dataclass(frozen=True)
class _Outcome:
    """What a run is judged by, where its values are known."""

    title: str
    value_T: Floats
    variance_T: Floats
    scale: float
    """Gains are relative to it: 1 of a share."""
    steps: int
    count: str

    def told(self, value: float) -> str:
        return percent(value) if self.scale == 1 else f"{value:.3g}"

    def gain(self, value: float) -> str:
        return f"{100 * value:.1f} points" if self.scale == 1 else f"{value:.2g}"


def nothing_learned(run: Run, rule: StandstillRule | None = None) -> Finding | None:
    """Held-out accuracy, or training accuracy or reward without it, kept its level all along.

    None: it moved, or the run is too short, or too noisy for a gain of 10 points to be seen.
    """
    rule = rule or StandstillRule()
    outcome = _outcome(run, rule)
    if outcome is None:
        return None
    found = rule.measure(outcome.value_T, outcome.variance_T)
    if not found.is_still or found.detectable > rule.max_detectable * outcome.scale:
        return None
    title = outcome.title
    return Finding(
        "nothing learned",
        "run",
        f"No gain is seen in {outcome.steps} steps: {title} {outcome.told(found.start)} in the "
        f"first quarter, {outcome.told(found.end)} in the last; a gain of "
        f"{outcome.gain(found.detectable)} or more that held for half of the run would have been "
        f"seen.",
        found.end - found.start,
        f"change of {title}",
        "high",
        evidence=(
            f"{outcome.count}; the clearest change of level anywhere has p = {found.p_value:.2g} "
            f"against noise alone",
            f"'would have been seen': in 4 of 5 such runs; 95 % interval of the last less the "
            f"first quarter: {outcome.gain(found.lower)} to {outcome.gain(found.upper)}",
            f"what is learned before the second value shows only from "
            f"{outcome.gain(found.detectable_at_once)} on",
        ),
        lower=found.lower,
        upper=found.upper,
    )


def _outcome(run: Run, rule: StandstillRule) -> _Outcome | None:
    """Held-out answers; else rates; else training accuracy; else training reward."""
    num_steps = int(run.steps[-1]) if len(run.steps) else 0
    series = AccuracySeries.of(run)
    if len(series) >= rule.min_evaluations:
        if num_steps < rule.min_steps:
            return None
        return _Outcome(
            "held-out accuracy",
            series.rate_T,
            _sampling_variance(series),
            1.0,
            num_steps,
            f"{len(series)} evaluations of {int(np.median(series.trials_T))} answers",
        )
    rates = run.evaluations().accuracy()
    rate_T = _finite(np.asarray(rates.value_T, dtype=np.float64))
    if len(rate_T) >= rule.min_evaluations and num_steps >= rule.min_steps:
        count = f"{len(rate_T)} evaluations, their noise taken from successive differences"
        return _assumed("held-out accuracy", rate_T, 1.0, num_steps, count)
    for name, title in (("accuracy", "training accuracy"), ("reward_mean", "mean training reward")):
        value_T = _finite(np.asarray(run.run_metric(name).value_T, dtype=np.float64))
        if len(value_T) < rule.min_steps:
            continue
        spread = [
            float(np.nanmedian(std_T))
            for role in run.roles
            if np.isfinite(std_T := np.asarray(run.ledger("reward_std", role).value_T)).any()
        ]
        scale = 1.0 if name == "accuracy" else max(float(np.abs(value_T).max()), *spread, 1e-12)
        count = f"{len(value_T)} training steps, no evaluations"
        return _assumed(title, value_T, scale, num_steps, count)
    return None


def _assumed(title: str, value_T: Floats, scale: float, steps: int, count: str) -> _Outcome:
    """With the noise that successive differences show; never none, which rounding may leave."""
    binned = bins(value_T, math.ceil(len(value_T) / MAX_POINTS))
    variance = float(np.mean(np.diff(binned) ** 2)) / 2
    variance = max(variance, (1e-3 * scale) ** 2)
    return _Outcome(title, binned, np.full(len(binned), variance), scale, steps, count)


def _sampling_variance(series: AccuracySeries) -> Floats:
    """Of answers to the same problems, or what evaluations in a row show if that is more."""
    trials_T = series.trials_T
    rate = (series.correct_T.sum() + 0.5) / (trials_T.sum() + 1)
    excess = max(dispersion_of_differences(series), dispersion_of_problems(series))
    variance: Floats = excess * rate * (1 - rate) / trials_T
    return variance


def _largest_split(value_BT: Floats, weight_T: Floats) -> Floats:
    """[B] largest |mean after - mean before| over its error, at any point."""
    total = weight_T.sum()
    before_T = np.cumsum(weight_T)[:-1]
    sum_BT = np.cumsum(value_BT * weight_T, axis=1)
    first_BT = sum_BT[:, :-1] / before_T
    last_BT = (sum_BT[:, -1:] - sum_BT[:, :-1]) / (total - before_T)
    error_T = np.sqrt(1 / before_T + 1 / (total - before_T))
    largest: Floats = np.max(np.abs(last_BT - first_BT) / error_T, axis=1)
    return largest


def _ends(quarter: int) -> tuple[slice, slice]:
    return slice(0, quarter), slice(-quarter, None)


def _mean(value_T: Floats, weight_T: Floats) -> float:
    return float((value_T * weight_T).sum() / weight_T.sum())


def _finite(value_T: Floats) -> Floats:
    known: Floats = value_T[np.isfinite(value_T)]
    return known
