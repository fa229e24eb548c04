"""Read levels, swings and wander off a series, before a fall and after it.

Legend: T points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from analysis.cliff.accuracy import AccuracySeries
from analysis.cliff.isotonic import fit_prefixes
from analysis.cliff.noise import Noise
from analysis.cliff.ramp import Ramp
from analysis.cliff.scan import FEW
from analysis.cliff.swings import Swing, find_swings
from gradlab.arrays import Floats

TYPICAL_WANDER = 0.008
"""Standard deviation of the true accuracy around its trend, in healthy stretches of real runs."""
WANDER_FREEDOM = 5.0
BEFORE = 0.25
"""Standard errors that the evaluation before the last has to be low by for two to be low..."""
SHARE_BEFORE = 0.06
"""...and as a share of what the last is low by: falls in progress have a sixth or more by then."""
TOGETHER = 8.5
"""What it and twice the last have to add up to, which tells a fall best from an outlier of 2 to 3:
those reach it in one of 20."""


@dataclass(frozen=True)
class Levels:
    """Best and last level of a series; positions are indices."""

    top: float
    middle: int
    """Of the stretch with the best level."""
    window: int
    """Points in it: no more than there are before the fall."""
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
    return Levels(float(mean[best]), best + size // 2, size, float(bottom), last)


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


def still_rising(series: AccuracySeries, low_step: int, sigma: float, at: Levels) -> Levels:
    """The last level of accuracy that comes back: the mean of fewer evaluations, which lags less.

    Of k evaluations on a line of slope s the mean lags by s (k - 1) / 2 and has an error of
    sigma / sqrt(k): the k with the least of both together.
    """
    start = int(np.searchsorted(series.step_T, low_step))
    rate_T = series.rate_T[start:]
    place_T = np.arange(len(rate_T)) - (len(rate_T) - 1) / 2
    slope = max(float(place_T @ rate_T) / max(float(place_T @ place_T), 1e-12), 0.0)
    size = np.arange(1, at.end_window + 1)
    best = int(size[np.argmin((slope * (size - 1) / 2) ** 2 + sigma**2 / size)])
    num = len(series)
    return replace(at, bottom=series.rate(num - best, num), end_window=best)


def is_last_alone(series: AccuracySeries, sigma: float, window: int) -> bool:
    """Is the last evaluation the only low one, as far as can be told?

    A fall in progress has lost a part of it one evaluation earlier; an outlier has not. Which of
    the two it is, is the question here; whether there is any loss, is that of the scan.
    """
    num = len(series)
    if num < FEW:
        return False  # one evaluation has to do
    size = min(window, num - 2)
    error = sigma * math.sqrt(1 + 1 / size)
    held = series.rate(num - 2 - size, num - 2)
    before, last = ((held - series.rate_T[[-2, -1]]) / error).tolist()
    return bool(before < max(BEFORE, SHARE_BEFORE * last) or before + 2 * last < TOGETHER)


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
