"""Draw the true accuracy of runs over time: how they climb, how they wander, how they fall.

Nothing here is shared with `analysis`: no formula of a climb, a wander or a fall is one that a
detector fits. Shapes are those of published curves: hyperbolas, Gompertz curves, staircases.

Legend: T evaluations. Times are shares of the run, levels shares of answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]
Rng = np.random.Generator

Profile = Literal["linear", "exponential", "convex", "staircase"]
PROFILES: tuple[Profile, ...] = ("linear", "exponential", "convex", "staircase")


def saturating(x_T: Float64Array, rng: Rng) -> Float64Array:
    """Fast at first, then slower without an end: a hyperbola (not an exponential)."""
    half, power = rng.uniform(0.05, 0.4), rng.uniform(0.8, 1.4)
    return np.asarray(x_T**power / (x_T**power + half**power), dtype=np.float64)


def s_shaped(x_T: Float64Array, rng: Rng) -> Float64Array:
    """Slow, fast, slow: a Gompertz curve, steeper before its middle than after it."""
    middle, speed = rng.uniform(0.2, 0.6), rng.uniform(6.0, 14.0)
    return _gompertz(x_T, middle, speed)


def late_bloomer(x_T: Float64Array, rng: Rng) -> Float64Array:
    """Nothing for half of the time, then most of the gain."""
    middle, power = rng.uniform(0.5, 0.75), rng.uniform(5.0, 12.0)
    return np.asarray(x_T**power / (x_T**power + middle**power), dtype=np.float64)


def plateaus(x_T: Float64Array, rng: Rng) -> Float64Array:
    """Two to four rises with flat stretches between them."""
    number = int(rng.integers(2, 5))
    start_N = np.sort(rng.uniform(0.02, 0.85, number))
    width_N = rng.uniform(0.03, 0.1, number)
    height_N = rng.dirichlet(np.full(number, 3.0))
    part_TN = np.clip((x_T[:, None] - start_N) / width_N, 0.0, 1.0)
    return np.asarray((part_TN**2 * (3.0 - 2.0 * part_TN)) @ height_N, dtype=np.float64)


def power_law(x_T: Float64Array, rng: Rng) -> Float64Array:
    offset, power = rng.uniform(0.0, 0.03), rng.uniform(0.15, 0.6)
    top, bottom = (1.0 + offset) ** power, offset**power
    return np.asarray(((x_T + offset) ** power - bottom) / (top - bottom), dtype=np.float64)


def slow_linear(x_T: Float64Array, rng: Rng) -> Float64Array:
    return 0.5 * x_T


def double_s(x_T: Float64Array, rng: Rng) -> Float64Array:
    """Two S after each other: a second skill is learned when the first is there."""
    first = rng.uniform(0.3, 0.7)
    early, late = rng.uniform(0.08, 0.25), rng.uniform(0.5, 0.75)
    return first * _gompertz(x_T, early, rng.uniform(20.0, 30.0)) + (1.0 - first) * _gompertz(
        x_T, late, rng.uniform(14.0, 25.0)
    )


def nothing(x_T: Float64Array, rng: Rng) -> Float64Array:
    """No learning at all."""
    return np.zeros_like(x_T)


def quick_jump(x_T: Float64Array, rng: Rng) -> Float64Array:
    """Most of the gain within the first one to three evaluations (the format), then a creep."""
    jump, evaluations = rng.uniform(0.6, 0.85), rng.uniform(0.8, 2.5)
    spacing = float(x_T[1] - x_T[0])
    risen_T = np.clip(x_T / (evaluations * spacing), 0.0, 1.0)
    creep_T = np.log1p(9.0 * x_T) / np.log(10.0)
    risen_T = np.sin(0.5 * np.pi * risen_T)
    return np.asarray(jump * risen_T + (1.0 - jump) * creep_T, dtype=np.float64)


CLIMBS: dict[str, Callable[[Float64Array, Rng], Float64Array]] = {
    "saturating": saturating,
    "s-shaped": s_shaped,
    "late bloomer": late_bloomer,
    "plateaus": plateaus,
    "power law": power_law,
    "slow linear": slow_linear,
    "double S": double_s,
    "no learning": nothing,
    "quick jump": quick_jump,
}
"""Name -> share of the gain that is reached at each time; about 1 at time 1."""


def _gompertz(x_T: Float64Array, middle: float, speed: float) -> Float64Array:
    raw_T = np.exp(-np.exp(-speed * (x_T - middle)))
    start = float(np.exp(-np.exp(speed * middle)))
    return np.asarray((raw_T - start) / (1.0 - start), dtype=np.float64)


def wander(num: int, sd: float, rng: Rng) -> Float64Array:
    """[T] a small wander of standard deviation `sd`, by one of three processes."""
    if sd == 0.0 or num < 3:
        return np.zeros(num)
    drawn_T = (_walled_walk, _slow_waves, _regimes)[int(rng.integers(3))](num, rng)
    drawn_T = drawn_T - drawn_T.mean()
    return np.asarray(sd * drawn_T / max(float(drawn_T.std()), 1e-9), dtype=np.float64)


def _walled_walk(num: int, rng: Rng) -> Float64Array:
    """A random walk in a bowl: free in the middle, pushed back from far out (a cubic force)."""
    step = rng.uniform(0.4, 0.9)
    value_T = np.zeros(num)
    for t in range(1, num):
        before = value_T[t - 1]
        value_T[t] = np.clip(before + step * rng.normal() - 0.08 * before**3, -4.0, 4.0)
    return value_T


def _slow_waves(num: int, rng: Rng) -> Float64Array:
    """Two or three waves of random phase that are no multiples of each other."""
    time_T = np.arange(num) / num
    value_T = np.zeros(num)
    for _ in range(int(rng.integers(2, 4))):
        turns, phase = rng.uniform(1.5, max(2.0, num / 6.0)), rng.uniform(0.0, 2.0 * np.pi)
        value_T += rng.uniform(0.4, 1.0) * np.sin(2.0 * np.pi * turns * time_T + phase)
    return value_T


def _regimes(num: int, rng: Rng) -> Float64Array:
    """Small levels that hold for a while, with a little movement within them."""
    value_T = 0.25 * rng.normal(size=num)
    level = rng.uniform(-1.0, 1.0)
    for t in range(num):
        if rng.uniform() < 5.0 / num:
            level = rng.uniform(-1.0, 1.0)
        value_T[t] += level
    return value_T


@dataclass(frozen=True)
class Fall:
    """A share of a level that is lost, from `start` to `start + width`."""

    start: float
    """Share of the run at which the true accuracy begins to go down."""
    width: float
    """Share of the run; next to 0: at once."""
    profile: Profile = "linear"
    edges_N: Float64Array | None = None
    """Where the steps of a staircase are, as shares of the width."""

    def done(self, x_T: Float64Array) -> Float64Array:
        """[T] share of the fall that is over: 0 until `start`, 1 from `start + width` on."""
        u_T = np.clip((x_T - self.start) / max(self.width, 1e-9), 0.0, 1.0)
        match self.profile:
            case "linear":
                return u_T
            case "exponential":
                return np.asarray(np.expm1(-3.5 * u_T) / np.expm1(-3.5), dtype=np.float64)
            case "convex":
                return u_T**1.8
            case "staircase":
                assert self.edges_N is not None
                return np.asarray((u_T[:, None] > self.edges_N).mean(1), dtype=np.float64)


def draw_fall(start: float, width: float, rng: Rng, profile: Profile | None = None) -> Fall:
    """A fall of a random profile, unless one is given."""
    profile = profile or PROFILES[int(rng.integers(len(PROFILES)))]
    if profile != "staircase":
        return Fall(start, width, profile)
    number = int(rng.integers(2, 5))
    # The first step is at once: that is where the fall begins.
    edges_N = np.r_[0.0, np.sort(rng.uniform(0.15, 0.9, number - 1))]
    return Fall(start, width, profile, edges_N)


def held(level_T: Float64Array, evaluations: int = 3) -> float:
    """The highest level under which the path did not go for so many evaluations in a row."""
    if level_T.size < evaluations:
        return float(level_T.min())
    window_TK = np.lib.stride_tricks.sliding_window_view(level_T, evaluations)
    return float(window_TK.min(1).max())
