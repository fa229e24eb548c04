"""Fit a fall to an accuracy series: isotonic rise, straight line down, flat end.

A fall that is still going on has no flat end: its line runs into the last point.

Legend: T evaluations, B series, C pairs (onset, end of the fall).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from analysis.cliff.accuracy import AccuracySeries
from analysis.cliff.bends import onset_logs
from analysis.cliff.isotonic import fit_prefixes
from analysis.findings import Onset
from gradlab.arrays import Floats

Progress = Literal["still falling", "settled", "coming back", ""]
"""What a fall was doing when the run stopped; '' where the evaluations do not tell."""
SETTLED = 3
"""Points on the new level before it may be called one."""


@dataclass(frozen=True)
class RampFit:
    """Squared errors of all ramps: isotonic rise to `onset`, line to `end`, flat from there."""

    onset_C: NDArray[np.int64]
    end_C: NDArray[np.int64]
    sse_BC: Floats
    drop_sse_BC: Floats
    """Infinite where the line goes up."""


def fit_ramp(correct_BT: Floats, trials_T: Floats) -> RampFit:
    """Errors are weighted by trials / mean trials, so they are in squared shares."""
    num_points = len(trials_T)
    weight_T = trials_T / trials_T.mean()
    rate_BT = correct_BT / trials_T
    prefix = fit_prefixes(rate_BT * weight_T, weight_T)
    onset_C, end_C = np.triu_indices(num_points, k=1)

    def total(values: Floats) -> Floats:
        """Cumulative sums with a leading zero along the last axis."""
        zero = np.zeros((*values.shape[:-1], 1))
        return np.concatenate([zero, np.cumsum(values, axis=-1)], axis=-1)

    position_T = np.arange(num_points, dtype=np.float64)
    weight, weight1, weight2 = (total(weight_T * position_T**power) for power in (0, 1, 2))
    value = total(rate_BT * weight_T)
    value1 = total(rate_BT * weight_T * position_T)
    square = total(rate_BT**2 * weight_T)

    # Points strictly between onset and end lie on the line A + (D - A) u, u = (t - a)/(b - a).
    inside, until = onset_C + 1, end_C
    start_C, length_C = position_T[onset_C], position_T[end_C] - position_T[onset_C]
    w_C = weight[until] - weight[inside]
    w1_C = weight1[until] - weight1[inside]
    w2_C = weight2[until] - weight2[inside]
    u_C = (w1_C - start_C * w_C) / length_C
    uu_C = (w2_C - 2 * start_C * w1_C + start_C**2 * w_C) / length_C**2
    y_BC = value[:, until] - value[:, inside]
    yu_BC = (value1[:, until] - value1[:, inside] - start_C * y_BC) / length_C
    yy_BC = square[:, until] - square[:, inside]
    tail_weight = weight[-1] - weight[:-1]
    tail_BT = (value[:, -1:] - value[:, :-1]) / tail_weight
    tail_sse_BT = square[:, -1:] - square[:, :-1] - tail_BT**2 * tail_weight
    top_BC, step_BC = prefix.top_BT[:, onset_C], tail_BT[:, end_C]
    step_BC = step_BC - top_BC
    line_BC = (
        yy_BC
        - 2 * top_BC * y_BC
        - 2 * step_BC * yu_BC
        + top_BC**2 * w_C
        + 2 * top_BC * step_BC * u_C
        + step_BC**2 * uu_C
    )
    sse_BC = prefix.sse_BT[:, onset_C] + line_BC + tail_sse_BT[:, end_C]
    sse_BC = np.maximum(sse_BC, 0.0)
    drop_BC = np.where(step_BC < 0, sse_BC, np.inf)
    # A series that only rises has no falling line: keep the last pair so that argmin is defined.
    nowhere = ~np.isfinite(drop_BC).any(axis=1)
    drop_BC[nowhere] = sse_BC[nowhere]
    return RampFit(onset_C, end_C, sse_BC, drop_BC)


@dataclass(frozen=True)
class Ramp:
    """The best ramp of one series."""

    onset: int
    end: int
    curve_T: Floats

    @classmethod
    def best(cls, fit: RampFit, series: AccuracySeries) -> Ramp:
        pair = int(np.argmin(fit.drop_sse_BC[0]))
        onset, end = int(fit.onset_C[pair]), int(fit.end_C[pair])
        rise = fit_prefixes(series.correct_T[None, : onset + 1], series.trials_T[: onset + 1])
        rise_T = rise.fit_BT[0]
        bottom = series.rate(end, len(series))
        share = np.arange(1, end - onset) / (end - onset)
        line_T = rise_T[-1] + (bottom - rise_T[-1]) * share
        curve_T = np.concatenate([rise_T, line_T, np.full(len(series) - end, bottom)])
        return cls(onset, end, curve_T)


def progress(fit: RampFit, series: AccuracySeries, ramp: Ramp, variance: float) -> Progress:
    """Does a fall that reaches the last point explain the series better than one that ended?

    By two noise variances of a point, either way; a fall that ended at most `SETTLED` - 1 points
    ago is left open, unless its last part says more (`_late`).
    """
    last = len(series) - 1
    error_C = fit.drop_sse_BC[0]
    ongoing = error_C[fit.end_C == last]
    settled = error_C[fit.end_C <= last + 1 - SETTLED]
    if not len(settled) or not np.isfinite(settled).any():
        return ""
    difference = float(settled.min() - ongoing.min()) / max(variance, 1e-12)
    best_end = int(fit.end_C[np.argmin(error_C)])
    if difference > 2 and best_end == last:
        return "still falling"
    if difference < -2 and best_end <= last + 1 - SETTLED:
        return "settled" if _late(series, ramp, variance) <= 6 else ""
    return "still falling" if _late(series, ramp, variance) > 2 else ""


def _late(series: AccuracySeries, ramp: Ramp, variance: float) -> float:
    """How much better than a level the last third of all that followed the onset is explained by
    the pace of a fall that takes it all, in noise variances: slow decays stray from their line."""
    after = len(series) - 1 - ramp.onset
    half = after // 6
    if half < 2:
        return 0.0
    num = len(series)
    seen = series.rate(num - 2 * half, num - half) - series.rate(num - half, num)
    paced = float(ramp.curve_T[ramp.onset] - ramp.curve_T[-1]) * half / after
    return (seen**2 - (seen - paced) ** 2) / (2 * variance / half)


SOFTER = 1.25
"""Times the variance: how far rises and falls stray from the shapes that are fitted to them."""

LIKELY = 0.25
"""Of the plausibility of the likeliest beginning, from which on that of the line is told."""


def onset_weights(correct_T: Floats, trials_T: Floats, variance: float) -> Floats:
    """[T] plausibility of each evaluation as the last before the fall, whatever its shape.

    An event at the true beginning is said to lead it in 5 % of falls, where 5 % are asked for.
    """
    log_T = onset_logs(correct_T, trials_T, SOFTER * max(variance, 1e-12))
    if not np.isfinite(log_T).any():  # nothing goes down
        log_T = np.zeros(len(trials_T))
    weight_T = np.exp(log_T - log_T.max())
    normalized: Floats = weight_T / weight_T.sum()
    return normalized


def likely_onset(weight_T: Floats, ramp: Ramp) -> int:
    """Where the line down begins, unless the beginnings of other shapes are far more plausible: a
    line through a fall that begins gently starts late. Then the middle of them."""
    if weight_T[ramp.onset] >= LIKELY * weight_T.max():
        return ramp.onset
    middle = int(np.searchsorted(np.cumsum(weight_T), 0.5 * weight_T.sum()))
    return min(middle, ramp.end - 1)


def onset_interval(series: AccuracySeries, weight_T: Floats, began: int) -> Onset:
    """Beginnings at least a tenth as plausible as the likeliest, around the one that is told.

    It covers 90 to 95 % of falls of the second world (nominal 90).
    """
    plausible = np.nonzero(weight_T >= 0.1 * weight_T.max())[0]
    last = min(int(plausible[-1]) + 1, len(series) - 1)
    return Onset(
        int(series.step_T[began]),
        int(series.step_T[min(int(plausible[0]), began)]),
        int(series.step_T[max(last, min(began + 1, len(series) - 1))]),
    )


def plateau_within(
    value_T: Floats, ramp: Ramp, variance: float, smallest: float
) -> tuple[int, int] | None:
    """Points [start, stop) of a plateau that splits the ramp into two falls; None without one.

    Both parts must lose `smallest`, and the plateau explain twelve noise variances more than one
    straight line: three levels and two moments are fitted to noise, too.
    """
    first, last = ramp.onset, ramp.end
    shortest = max(3, math.ceil(0.08 * len(value_T)))
    if last - first < shortest + 2:
        return None
    top, bottom = float(ramp.curve_T[first]), float(ramp.curve_T[-1])
    inside = np.arange(first + 1, last)
    line = float(((value_T[inside] - ramp.curve_T[inside]) ** 2).sum())
    best, found = line - 12 * variance, None
    for start in range(first + 1, last - shortest + 1):
        for stop in range(start + shortest, last + 1):
            level = float(value_T[start:stop].mean())
            if min(top - level, level - bottom) < smallest:
                continue
            down = np.interp(inside, [first, start, stop - 1, last], [top, level, level, bottom])
            error = float(((value_T[inside] - down) ** 2).sum())
            if error < best:
                best, found = error, (start, stop)
    return found


def both_falls(
    series: AccuracySeries, plateau: tuple[int, int], variance: float
) -> tuple[Ramp, int, Floats]:
    """From the beginning of the first fall to the end of the second, each fitted for itself; where
    the second begins; and the plausibility [T] of the first one's beginning."""
    start, stop = plateau
    parts = []
    for piece in (slice(0, stop), slice(start, None)):
        part = replace(
            series,
            step_T=series.step_T[piece],
            correct_T=series.correct_T[piece],
            trials_T=series.trials_T[piece],
            solved_TP=None,
        )
        fit = fit_ramp(part.correct_T[None, :], part.trials_T)
        parts.append(Ramp.best(fit, part))
    first, second = parts
    curve_T = np.concatenate([first.curve_T, second.curve_T[stop - start :]])
    weight_T = np.zeros(len(series))
    weight_T[:stop] = onset_weights(series.correct_T[:stop], series.trials_T[:stop], variance)
    return Ramp(first.onset, start + second.end, curve_T), start + second.onset, weight_T
