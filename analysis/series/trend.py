"""Tell an event from a trend: a level whose rate of change differs from before, or a smooth way.

Entropy falls, answers grow and KL rises in any training that works, most from the first step on. So
an event has to be more than any smooth way (`analysis.series.wander.smooth_means`) plus noise that
remembers; what is smooth is a trend, which has a size and a direction and no date.

Legend: T points, C ramps, M smooth ways.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from analysis.findings import ChangeKind
from analysis.series.bend import bins, memory_of
from analysis.series.wander import MAX_POINTS, find_change, smooth_means, unit_ramps
from gradlab.arrays import Floats

MISFIT = 0.03
"""Share of a trend's size by which every formula misses it: no event is made of that."""
SMOOTH_SHARE = 0.6
"""Of a series' variance that a smooth way explains, to be called a trend: a random walk of a few
tens of points reaches half."""


@dataclass(frozen=True)
class Movement:
    """How a series went, on its scale."""

    change: ChangeKind
    p_value: float
    """Of the event beyond every smooth way; NaN where none was seen to be tested."""
    smooth_T: Floats
    """What to take off before an event is dated; 0 where a level is all that it adds to."""
    first: float
    """Fitted level at the first point: of the trend, or before the event."""
    last: float
    settles: bool = False
    """A trend whose second half adds less than a tenth."""
    is_late: bool = False
    """A trend whose first half adds less than a tenth."""

    @property
    def size(self) -> float:
        return self.last - self.first


@dataclass(frozen=True)
class Ways:
    """Whatever does not depend on the values."""

    onset_C: NDArray[np.int64]
    ramp_CT: Floats
    basis_M: tuple[Floats, ...]
    """[T, 1 to 3] orthonormal."""
    left_M: tuple[Floats, ...]
    """[C, T] unit ramps, orthogonal to the basis."""


@lru_cache(maxsize=2)
def _ways(points: int) -> Ways:
    onset_C, ramp_CT = unit_ramps(points)
    bases, lefts = [], []
    for mean in smooth_means(points):
        basis = np.linalg.qr(mean)[0]
        left_CT = ramp_CT - (ramp_CT @ basis) @ basis.T
        scale_C = np.sqrt((left_CT**2).sum(axis=1))
        bases.append(basis)
        lefts.append(left_CT / np.maximum(scale_C, 1e-9)[:, None])
    return Ways(onset_C, ramp_CT, tuple(bases), tuple(lefts))


def movement(
    value_T: Floats,
    *,
    min_change: float,
    min_effect: float = 2.5,
    alpha: float = 0.05,
    num_draws: int = 99,
    seed: int = 0,
) -> Movement:
    """What a series did; changes below `min_change` are none."""
    num = len(value_T)
    ways = _ways(num)
    floor = (0.02 * min_change) ** 2  # an exact way has no noise to compare with
    centred_T = value_T - value_T.mean()
    flat = float((centred_T**2).sum())
    smooth_sse, ramp_cost, smooth_best, ramp_best = math.inf, math.inf, 0, (0, 0)
    for m, basis in enumerate(ways.basis_M):
        left_T = value_T - basis @ (basis.T @ value_T)
        sse = float((left_T**2).sum())
        if sse < smooth_sse:
            smooth_sse, smooth_best = sse, m
        score_C = ways.left_M[m] @ left_T
        pair = int(np.argmax(score_C**2))
        with_ramp = max(sse - float(score_C[pair] ** 2), num * floor)
        cost = num * math.log(with_ramp) + 2 * math.log(num) * (basis.shape[1] - 1)
        if cost < ramp_cost:
            ramp_cost, ramp_best = cost, (m, pair)
    basis = ways.basis_M[smooth_best]
    way_T = basis @ (basis.T @ value_T)
    floor = max(floor, (MISFIT * float(np.ptp(way_T))) ** 2)
    noise = math.sqrt(max(smooth_sse / max(num - 2, 1), floor))
    size = float(way_T[-1] - way_T[0])
    is_trend = (
        abs(size) >= min_change
        and smooth_sse <= (1 - SMOOTH_SHARE) * flat
        and abs(size) >= min_effect * noise
    )
    event = _event(value_T, ways, *ramp_best, min_change, min_effect, floor)
    if event is not None:
        coarse = bins(value_T, math.ceil(num / MAX_POINTS))
        change = find_change(
            coarse,
            np.random.default_rng(seed),
            sign=1 if event.size > 0 else -1,
            smooth=True,
            floor=floor,
            num_draws=num_draws,
        )
        if change.p_value <= alpha:
            return Movement(
                "event", change.p_value, event.smooth_T, event.before, event.before + event.size
            )
    p_value = math.nan if event is None else change.p_value
    early = abs(float(way_T[num // 2] - way_T[0])) / max(abs(size), 1e-300)
    kind: ChangeKind = "trend" if is_trend else "none"
    ends = float(way_T[0]), float(way_T[-1])
    return Movement(kind, p_value, np.zeros(num), *ends, early > 0.9, early < 0.1)


@dataclass(frozen=True)
class _Event:
    smooth_T: Floats
    before: float
    size: float


def _event(
    value_T: Floats,
    ways: Ways,
    way: int,
    pair: int,
    min_change: float,
    min_effect: float,
    floor: float,
) -> _Event | None:
    """The best ramp beside the best smooth way, if it is large enough to be asked for chance."""
    basis, ramp_T = ways.basis_M[way], ways.ramp_CT[pair]
    design = np.concatenate([basis, ramp_T[:, None]], axis=1)
    found = np.linalg.lstsq(design, value_T, rcond=None)[0]
    residual_T = value_T - design @ found
    noise = math.sqrt(
        max(float((residual_T**2).sum()) / max(len(value_T) - len(found) - 2, 1), floor)
    )
    size = float(found[-1])
    if abs(size) < max(min_change, min_effect * noise * math.sqrt(memory_of(residual_T))):
        return None
    smooth_T = basis @ found[:-1]
    before = float(smooth_T[ways.onset_C[pair]])
    if way == 0:
        smooth_T = np.zeros(len(value_T))
    return _Event(smooth_T - smooth_T[ways.onset_C[pair]], before, size)
