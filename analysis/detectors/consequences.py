"""Say what happened to the other roles of a policy after one of them took it over.

Legend: T steps, K signature buckets.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from analysis.series.bend import bins
from analysis.series.wander import MAX_POINTS, find_change
from analysis.signals import KIND, aligned, divergence, smoothed
from gradlab.arrays import Floats
from gradlab.store.run import Run

CONSEQUENCES = ("own_accuracy", "reward_mean", "parse_failures", "truncated", "length_mean")
"""Signals of a starved role in which a takeover shows; not its KL, which grows in any training."""


def consequences(run: Run, role: str, roles: list[str], step: int, alpha: float) -> list[str]:
    """Sentences on what happened to the starved roles after the onset."""
    sentences = []
    for other in roles:
        if other == role:
            continue
        for name in CONSEQUENCES:
            value_T = aligned(run.steps, run.ledger(name, other))
            sentence = changed(name, other, value_T, run.steps < step)
            if sentence:
                sentences.append(sentence)
        drifted = _drifted(run, role, other, step, alpha)
        if drifted:
            sentences.append(drifted)
    return sentences


def _drifted(run: Run, role: str, other: str, step: int, alpha: float) -> str | None:
    """A sentence if the other role's output came lastingly closer to the role's, beyond wander."""
    window = max(5, len(run.steps) // 50)
    distance_T = divergence(
        smoothed(run.signature(role), window), smoothed(run.signature(other), window)
    )
    known = np.isfinite(distance_T)
    early, late = known & (run.steps < step), known & (run.steps >= step)
    if min(early.sum(), late.sum()) < 10:
        return None
    first = float(np.median(distance_T[early]))
    last = float(np.median(distance_T[late][-max(10, int(late.sum()) // 2) :]))
    if last > 0.8 * first:
        return None
    series = bins(distance_T[known], math.ceil(known.sum() / MAX_POINTS))
    change = find_change(series, np.random.default_rng(0), sign=-1)
    if change.p_value > alpha:
        return None
    return (
        f"{other}'s output drifts towards {role}'s: Jensen-Shannon divergence "
        f"{first:.3f} to {last:.3f} nats (p = {change.p_value:.2g})"
    )


def changed(name: str, role: str, value_T: Floats, before: NDArray[np.bool_]) -> str | None:
    """A sentence if the level after is worse by a worthwhile and certain amount, and would not have
    been so had the trend from before gone on.
    """
    kind = KIND[name]
    known = np.isfinite(value_T)
    time_T = np.arange(len(value_T), dtype=np.float64)
    first, last = value_T[known & before], value_T[known & ~before]
    if min(len(first), len(last)) < 10:
        return None
    last = last[len(last) // 2 :]  # a takeover needs time to show
    early, late = kind.on_scale(first), kind.on_scale(last)
    sign = -1.0 if kind.is_outcome else 1.0
    change = sign * float(np.median(late) - np.median(early))
    spread = math.sqrt(float(np.var(early)) / len(early) + float(np.var(late)) / len(late))
    # 3 instead of 2: neighbouring steps are not independent.
    if change < max(kind.min_change, 3 * 2 * spread):
        return None
    expected, error = continued(
        time_T[known & before], early, float(time_T[known & ~before][-len(last) :].mean())
    )
    beyond = sign * (float(np.median(late)) - expected)
    if beyond < max(kind.min_change, 3 * error):
        return None
    return f"{role}'s {kind.title} went from {np.median(first):.3g} to {np.median(last):.3g}"


def continued(time_T: Floats, value_T: Floats, at: float) -> tuple[float, float]:
    """The straight line through a series, continued to time `at`, and its standard error there."""
    centred_T = time_T - time_T.mean()
    square = float((centred_T**2).sum())
    slope = float((centred_T * value_T).sum()) / square
    residual_T = value_T - value_T.mean() - slope * centred_T
    distance = at - float(time_T.mean())
    variance = float(np.var(residual_T)) * (1 / len(value_T) + distance**2 / square)
    return float(value_T.mean()) + slope * distance, math.sqrt(variance)
