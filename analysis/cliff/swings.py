"""Find swings of a series: losses that it regained, told from sampling noise.

Legend: T points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gradlab.arrays import Floats

BEYOND = 5.5
"""Standard errors from a peak to a trough that noise alone does not give: the range of 50 to 100
independent points is 4.5 to 5 of them on average, and reaches this in one series of 10 to 20."""
REGAINED = 0.5
"""Share of a loss that has to come back for a swing."""
LENGTHS = (1, 2, 3)
"""Points averaged: long shallow swings show in averages, short deep ones in single points."""


@dataclass(frozen=True)
class Swing:
    """A loss and its recovery; positions are indices of points."""

    start: int
    """Last high point."""
    low: int
    back: int
    """Highest point afterwards, before the next loss."""
    size: float
    """Lost, in the unit of the series."""
    regained: float


def find_swings(value_T: Floats, variance_T: Floats, smallest: float) -> tuple[Swing, ...]:
    """Every loss of at least `smallest`, beyond noise, of which at least a half came back."""
    sigma = math.sqrt(float(np.mean(variance_T)))
    found: tuple[Swing, ...] = ()
    for length in LENGTHS:
        if len(value_T) < 2 * length + 1:
            break
        mean_T = np.convolve(value_T, np.ones(length) / length, "valid")
        threshold = max(smallest, BEYOND * sigma / math.sqrt(length))
        swings = _of(_pivots(mean_T, threshold), mean_T, length)
        if len(swings) > len(found):
            found = swings
    return found


def _of(pivots: list[int], mean_T: Floats, length: int) -> tuple[Swing, ...]:
    """The swings among turning points: high, low, high."""
    swings = []
    for high, low, back in zip(pivots, pivots[1:], pivots[2:], strict=False):
        lost = float(mean_T[high] - mean_T[low])
        regained = float(mean_T[back] - mean_T[low])
        if lost > 0 and regained >= REGAINED * lost:
            # The last point of the high window, a middle one of the low, the first one back.
            swings.append(Swing(high + length - 1, low + length // 2, back, lost, regained))
    return tuple(swings)


def _pivots(mean_T: Floats, threshold: float) -> list[int]:
    """Turning points: from each, the series moved the other way by `threshold` or more."""
    pivots: list[int] = []
    low = high = 0
    direction = 0
    for t in range(1, len(mean_T)):
        low = t if mean_T[t] < mean_T[low] else low
        high = t if mean_T[t] > mean_T[high] else high
        if direction >= 0 and mean_T[high] - mean_T[t] >= threshold:
            pivots.append(high)
            direction, low, high = -1, t, t
        elif direction <= 0 and mean_T[t] - mean_T[low] >= threshold:
            pivots.append(low)
            direction, low, high = 1, t, t
    if direction:
        pivots.append(low if direction < 0 else high)
    return pivots
