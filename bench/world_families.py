"""Draw the true path of one run of a named family: a climb, a wander, and how it fell if it did.

Every family takes (generator, evaluations, size of its fall, climb) and gives a path.

Legend: T evaluations. Times are shares of the run, levels and sizes shares of answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from world_paths import CLIMBS, Fall, Float64Array, Profile, Rng, draw_fall, held, wander

SMALL = 0.03
"""Paths of healthy families lose less than this."""


@dataclass(frozen=True)
class TruePath:
    """A true path before anybody measures it; `start` and `width` in shares of the run."""

    level_T: Float64Array
    start: float = np.nan
    width: float = np.nan
    progress: str = ""
    outlier: float = 0.0
    """By how many standard deviations of the noise the last evaluation comes out too low."""
    second_start: float = np.nan
    """Where the second of two falls begins."""
    start_level: float = np.nan
    """Best level where it was held for too short to be seen in `level_T`: early collapses."""


Family = Callable[[Rng, int, float, str | None], TruePath]


def _climb(rng: Rng, time_T: Float64Array, climb: str | None, least: float = 0.0) -> Float64Array:
    """[T] an ordinary climb; its top is `least` or more. Times beyond 1 stay at 1."""
    name = climb or list(CLIMBS)[int(rng.integers(len(CLIMBS)))]
    gain = rng.uniform(0.06, 0.22)
    base = max(rng.uniform(0.25, 0.55), least - gain)
    share_T = CLIMBS[name](np.minimum(time_T, 1.0), rng)
    # What does not rise has its base for a top.
    base += max(0.0, least - (base + gain * float(share_T.max())))
    return base + gain * share_T


def _healthy(
    rng: Rng, num: int, climb: str | None, sds: tuple[float, float] = (0.0, 0.009)
) -> Float64Array:
    """[T] a climb that wanders, but ends less than three points under what it held."""
    for _ in range(200):
        path_T = _climb(rng, np.linspace(0.0, 1.0, num), climb)
        path_T = path_T + wander(num, rng.uniform(*sds), rng)
        if held(path_T) - min(path_T[-1], path_T[-3:].mean()) < SMALL:
            return path_T
    raise AssertionError("no healthy path in 200 tries")


def _climbing(name: str) -> Family:
    return lambda rng, num, size, climb: TruePath(_healthy(rng, num, name))


def _wandering(rng: Rng, num: int, size: float, climb: str | None) -> TruePath:
    return TruePath(_healthy(rng, num, climb, (0.01, 0.02)))


def _swinging(rng: Rng, num: int, size: float, climb: str | None) -> TruePath:
    """Swings of 3 to 5 points: where such a run ends is luck, and `fell` says which."""
    path_T = _climb(rng, np.linspace(0.0, 1.0, num), climb)
    return TruePath(np.clip(path_T + wander(num, rng.uniform(0.03, 0.05), rng), 0.02, 0.98))


def _dipping(rng: Rng, num: int, size: float, climb: str | None) -> TruePath:
    """A dip of two to eight evaluations that is over well before the end."""
    path_T = _healthy(rng, num, climb)
    down, bottom, up = rng.uniform(0.5, 2.0), rng.uniform(0.5, 3.0), rng.uniform(0.5, 3.0)
    latest = num - 1 - max(3.0, 0.15 * num) - (down + bottom + up)
    start = rng.uniform(min(3.0, latest), latest)
    corner_K = np.cumsum([start, down, bottom, up])
    depth = rng.uniform(0.08, 0.18)
    lost_T = depth * np.interp(np.arange(num), corner_K, [0.0, 1.0, 1.0, 0.0])
    return TruePath(np.maximum(path_T - lost_T, 0.02))


def _outlying(rng: Rng, num: int, size: float, climb: str | None) -> TruePath:
    return TruePath(_healthy(rng, num, climb), outlier=rng.uniform(2.0, 3.2))


def _losing_little(rng: Rng, num: int, size: float, climb: str | None) -> TruePath:
    """Two to three points are lost: a loss, and no fall."""
    width = rng.uniform(0.02, 0.4)
    return _fallen(rng, num, rng.uniform(0.02, 0.03), climb, width, sds=(0.0, 0.003))


def _fallen(
    rng: Rng,
    num: int,
    size: float,
    climb: str | None,
    width: float,
    sds: tuple[float, float] = (0.0, 0.009),
) -> TruePath:
    """A climb, then a fall of `size` to a level at which the run stays."""
    settled = max(3.0 / (num - 1), 0.12)
    latest = 1.0 - settled - width
    start = rng.uniform(min(max(0.25, 4.0 / (num - 1)), latest), latest)
    fall = draw_fall(start, width, rng)
    return _with_fall(rng, num, size, climb, fall, "settled", sds)


def _with_fall(
    rng: Rng,
    num: int,
    size: float,
    climb: str | None,
    fall: Fall,
    progress: str,
    sds: tuple[float, float] = (0.0, 0.009),
) -> TruePath:
    """The path at the last evaluation is `size` under the best level held before the fall."""
    time_T = np.linspace(0.0, 1.0, num)
    # Some runs fall from a plateau, some while they still climb; they climb no further then.
    reached_T = np.minimum(time_T / fall.start, 1.0) * rng.uniform(0.8, 1.4)
    path_T = _less(_climb(rng, reached_T, climb, size + 0.06), fall.done(time_T), size)
    path_T = path_T + wander(num, rng.uniform(*sds), rng)
    return TruePath(np.clip(path_T, 0.01, 0.99), fall.start, fall.width, progress)


def _less(path_T: Float64Array, done_T: Float64Array, size: float) -> Float64Array:
    """[T] the path with so much of `done_T` taken off that it ends `size` under what it held."""
    lost = size
    for _ in range(20):  # what was held changes a little with what is lost
        moved_T = path_T - lost * done_T
        lost += (size - (held(moved_T) - float(moved_T[-1]))) / float(done_T[-1])
    return np.asarray(path_T - lost * done_T, dtype=np.float64)


def _falling(share: float) -> Family:
    return lambda rng, num, size, climb: _fallen(rng, num, size, climb, share)


def _abrupt(rng: Rng, num: int, size: float, climb: str | None) -> TruePath:
    """Between two evaluations."""
    path = _fallen(rng, num, size, climb, 0.2 / (num - 1))
    return replace(path, width=1.0 / (num - 1))


def _cut(low: int) -> Family:
    """The run is stopped while it falls, after so many low evaluations."""

    def path(rng: Rng, num: int, size: float, climb: str | None) -> TruePath:
        start = (num - 1 - low + rng.uniform(0.0, 0.4)) / (num - 1)
        profiles: tuple[Profile, ...] = ("linear", "convex")
        profile = profiles[int(rng.integers(2))]
        fall = Fall(start, (1.0 - start) / rng.uniform(0.5, 0.95), profile)
        return _with_fall(rng, num, size, climb, fall, "still falling")

    return path


def _early(rng: Rng, num: int, size: float, climb: str | None) -> TruePath:
    """Falls before anything was gained, and stays low."""
    start = rng.uniform(0.6, 2.2) / (num - 1)
    fall = draw_fall(start, rng.uniform(0.5, 4.0) / (num - 1), rng)
    base = max(rng.uniform(0.35, 0.6), size + 0.04)
    path_T = base - size * fall.done(np.linspace(0.0, 1.0, num))
    path_T = path_T + wander(num, rng.uniform(0.0, 0.008), rng)
    return TruePath(path_T, start, fall.width, "settled", start_level=base)


def _twice(rng: Rng, num: int, size: float, climb: str | None) -> TruePath:
    """Part of it, a stretch at a level, then the rest."""
    first = rng.uniform(0.3, 0.5)
    start, later = rng.uniform(0.3, 0.4), rng.uniform(0.6, 0.72)
    widths = rng.uniform(0.2 / (num - 1), 0.06, 2)
    falls = draw_fall(start, widths[0], rng), draw_fall(later, widths[1], rng)
    time_T = np.linspace(0.0, 1.0, num)
    path_T = _climb(rng, np.minimum(time_T / start, 1.0), climb, size + 0.06)
    done_T = first * falls[0].done(time_T) + (1.0 - first) * falls[1].done(time_T)
    path_T = _less(path_T, done_T, size) + wander(num, rng.uniform(0.0, 0.009), rng)
    width = later + widths[1] - start
    return TruePath(np.maximum(path_T, 0.01), start, width, "settled", second_start=later)


def _coming_back(rng: Rng, num: int, size: float, climb: str | None) -> TruePath:
    """Falls by more than `size`, and has regained part of it when the run ends."""
    regained = rng.uniform(0.3, 0.5)
    width, back = rng.uniform(0.05, 0.2), rng.uniform(0.2, 0.3)
    start = rng.uniform(0.28, 0.9 - width - back)
    deep = min(size / (1.0 - regained), 0.4)
    path = _with_fall(rng, num, deep, climb, draw_fall(start, width, rng), "coming back")
    back_T = np.clip((np.linspace(0.0, 1.0, num) - (1.0 - back)) / back, 0.0, 1.0)
    return replace(path, level_T=path.level_T + (deep - size) * back_T)


def _decaying(rng: Rng, num: int, size: float, climb: str | None) -> TruePath:
    """From an early top down until the end."""
    start = rng.uniform(max(0.15, 3.0 / (num - 1)), 0.4)
    profiles: tuple[Profile, ...] = ("linear", "convex")
    fall = Fall(start, 1.0 - start, profiles[int(rng.integers(2))])
    return _with_fall(rng, num, size, climb, fall, "still falling")


HEALTHY: dict[str, Family] = {
    **{f"climb: {name}": _climbing(name) for name in CLIMBS},
    "wander of 1 to 2 points": _wandering,
    "dip and recovery": _dipping,
    "last evaluation an outlier": _outlying,
    "2 to 3 points lost": _losing_little,
}
"""Runs that end less than five points under their best."""
FALLS: dict[str, Family] = {
    "abrupt": _abrupt,
    "over 5 %": _falling(0.05),
    "over 20 %": _falling(0.2),
    "over 45 %": _falling(0.45),
    "cut after 2": _cut(2),
    "cut after 4": _cut(4),
    "cut after 8": _cut(8),
    "early collapse": _early,
    "two falls": _twice,
    "partial recovery": _coming_back,
    "slow decay": _decaying,
}
"""Runs that end `points` under a level that they had held."""
OPEN: dict[str, Family] = {"swings": _swinging}
"""Runs of which only the truth says where they end."""
FAMILIES = {**HEALTHY, **FALLS, **OPEN}
