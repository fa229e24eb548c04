"""Read the path of a setting, such as a learning rate, as the schedule that somebody wrote.

A setting has no noise but rounding, and is logged every step or every tenth. So its path is cut
into the longest pieces that one formula explains: constant, linear, exponential, half a cosine, or
any other smooth way up or down. A smooth decay has no date inside; a jump has.

Legend: T logged steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gradlab.arrays import Floats

Shape = Literal["constant", "linear", "exponential", "cosine", "smooth"]

TOLERANCE = 0.01
"""Share of a piece's highest value by which a formula may miss: logs round to 2 digits or more."""
MAX_PIECES = 6
"""More are told by their ends alone."""
CLOSE = 25
"""Steps between two rises that are one."""


@dataclass(frozen=True)
class Piece:
    """A stretch of the path that one formula explains."""

    shape: Shape
    first: int
    """Step."""
    last: int
    start: float
    end: float

    @property
    def is_rising(self) -> bool:
        return self.end > self.start


@dataclass(frozen=True)
class Rise:
    """A stretch on which a setting went beyond its earlier highest level."""

    step: int
    """Last logged step on the old level: where a rise between two logged steps began is open."""
    upper: int
    """First logged step above it."""
    end: int
    """Step at which it is complete."""
    before: float
    after: float
    is_warm_up: bool
    """It begins with the first logged step."""


@dataclass(frozen=True)
class Schedule:
    """The path of a setting."""

    step_T: NDArray[np.int64]
    value_T: Floats
    pieces: tuple[Piece, ...]
    jump_steps: tuple[int, ...]
    """First logged steps after a jump, in the order of the pieces they begin."""

    @classmethod
    def of(
        cls, step_T: NDArray[np.int64], value_T: Floats, tolerance: float = TOLERANCE
    ) -> Schedule:
        """Of the logged values; NaN where nothing was logged."""
        known = np.isfinite(value_T)
        known[:-1] &= np.diff(step_T) > 0  # several updates of a step: the last one's
        step_T, value_T = step_T[known], np.asarray(value_T[known], dtype=np.float64)
        pieces: list[Piece] = []
        jumps = []
        first = 0
        while first < len(value_T):
            shape, stop = _longest(step_T[first:], value_T[first:], tolerance)
            last = first + stop - 1
            if pieces and _is_jump(value_T, first, tolerance):
                jumps.append(int(step_T[first]))
            ends = float(value_T[first]), float(value_T[last])
            pieces.append(Piece(shape, int(step_T[first]), int(step_T[last]), *ends))
            first = last + 1
        return cls(step_T, value_T, tuple(_joined(pieces, jumps)), tuple(jumps))

    @property
    def is_constant(self) -> bool:
        return all(piece.shape == "constant" for piece in self.pieces) and not self.jump_steps

    def at(self, step: float) -> float:
        """The value in force at a step, NaN before the first one."""
        row = int(np.searchsorted(self.step_T, step, side="right")) - 1
        return float(self.value_T[row]) if row >= 0 else math.nan

    def rises(self, factor: float, tolerance: float = TOLERANCE) -> tuple[Rise, ...]:
        """Where it went beyond its earlier highest level, by `factor` in all."""
        found: list[Rise] = []
        highest, row = -math.inf, 0
        while row < len(self.value_T):
            value = float(self.value_T[row])
            if row and value > highest * (1 + tolerance) + 1e-300:
                stop = row
                while stop + 1 < len(self.value_T) and self.value_T[stop + 1] > self.value_T[
                    stop
                ] * (1 + 1e-9):
                    stop += 1
                rise = Rise(
                    int(self.step_T[row - 1]),
                    int(self.step_T[row]),
                    int(self.step_T[stop]),
                    highest,
                    float(self.value_T[stop]),
                    row <= 1,
                )
                if found and rise.step - found[-1].end <= CLOSE:
                    before = found.pop()
                    rise = Rise(
                        before.step,
                        before.upper,
                        rise.end,
                        before.before,
                        rise.after,
                        before.is_warm_up,
                    )
                found.append(rise)
                row = stop
            highest = max(highest, float(self.value_T[row]))
            row += 1
        return tuple(rise for rise in found if rise.after >= factor * max(rise.before, 0.0))

    def falls(self, factor: float) -> tuple[tuple[int, float, float], ...]:
        """Jumps down by `factor` or more: first step after it, value before, value after."""
        found = []
        for step in self.jump_steps:
            row = int(np.searchsorted(self.step_T, step))
            before, after = float(self.value_T[row - 1]), float(self.value_T[row])
            if after * factor <= before:
                found.append((step, before, after))
        return tuple(found)

    def told(self) -> str:
        """The schedule in a few words."""
        if not self.pieces:
            return ""
        if len(self.pieces) > MAX_PIECES or len(self.jump_steps) > 2:
            return _told_by_ends(self)
        parts = []
        for number, piece in enumerate(self.pieces):
            before = self.pieces[number - 1] if number else None
            after = self.pieces[number + 1] if number + 1 < len(self.pieces) else None
            if after is not None and after.first in self.jump_steps:
                after = Piece(piece.shape, piece.last, piece.last, piece.end, piece.end)
            if before is not None and piece.first in self.jump_steps:
                moved = f"{_number(before.end)} to {_number(piece.start)}"
                parts.append(f"jumps from {moved} at step {piece.first}")
                before = None
            parts += _told_piece(piece, before, after, is_first=number == 0)
        return ", ".join(parts)


def _told_by_ends(schedule: Schedule) -> str:
    first, last = schedule.pieces[0], schedule.pieces[-1]
    highest = float(schedule.value_T.max())
    num = len(schedule.jump_steps)
    words = f"goes from {_number(first.start)} to {_number(last.end)} in {num} jumps"
    if not num:
        words = f"varies between {_number(float(schedule.value_T.min()))} and {_number(highest)}"
    elif (np.diff(schedule.value_T) <= 1e-9 * highest).all():
        words = f"lowered {num} times, {_number(first.start)} to {_number(last.end)}"
    return words


def _told_piece(
    piece: Piece, before: Piece | None, after: Piece | None, *, is_first: bool
) -> list[str]:
    """`before` is None after a jump; before one, `after` is where this piece ended."""
    if piece.shape == "constant":
        if is_first:
            until = "" if after is None else f" to step {piece.last}"
            return [f"constant at {_number(piece.start)}{until}"]
        if after is None:
            return ["constant since"]
        return [] if before is None else [f"constant to step {piece.last}"]
    if is_first and piece.is_rising and after is not None:
        # Logged every few steps, the top lies between two of them.
        last, top = (
            (after.first, after.start) if after.start > piece.end else (piece.last, piece.end)
        )
        return [f"warm-up over {last} steps to {_number(top)}"]
    how = {
        ("linear", False): "decays linearly",
        ("linear", True): "rises linearly",
        ("exponential", False): "decays exponentially",
        ("exponential", True): "rises exponentially",
        ("cosine", False): "cosine decay",
        ("smooth", False): "decays smoothly",
        ("smooth", True): "rises smoothly",
    }[piece.shape, piece.is_rising]
    return [f"{how} from step {piece.first}, {_number(piece.start)} to {_number(piece.end)}"]


def _number(value: float) -> str:
    return f"{value:.3g}"


def _longest(step_T: NDArray[np.int64], value_T: Floats, tolerance: float) -> tuple[Shape, int]:
    """The shape that explains most of the points from the first on, and how many: a plainer one
    unless another goes clearly further."""
    rounding = _rounding(value_T)
    fits: dict[Shape, Callable[[Floats, Floats, float], bool]] = {
        "constant": _is_constant,
        "linear": _is_linear,
        "exponential": _is_exponential,
        "cosine": _is_cosine,
        "smooth": _is_smooth,
    }
    best: tuple[Shape, int] = ("constant", 1)
    for shape, fit in fits.items():
        reach = _reach(step_T.astype(np.float64), value_T, fit, tolerance, rounding)
        margin = {"constant": 1.0, "smooth": 1.5}.get(shape, 1.15)
        if reach > max(margin * best[1], best[1] + 1):
            best = shape, reach
    return best


def _reach(
    step_T: Floats,
    value_T: Floats,
    fit: Callable[[Floats, Floats, float], bool],
    tolerance: float,
    rounding: float,
) -> int:
    """How many points from the first on a formula explains: doubled, then halved in between."""

    def holds(num: int) -> bool:
        highest = float(np.abs(value_T[:num]).max())
        return fit(step_T[:num], value_T[:num], max(tolerance * highest, rounding))

    good, step = 1, 1
    while good < len(value_T):
        trial = min(good + step, len(value_T))
        if holds(trial):
            good, step = trial, 2 * step
        elif step == 1:
            break
        else:
            step = max(step // 4, 1) if step > 2 else 1
    return good


def _rounding(value_T: Floats) -> float:
    """Half a unit of the last decimal, where the path takes many values of few decimals."""
    distinct = np.unique(value_T)
    if len(distinct) < 8:
        return 0.0
    for decimals in range(1, 12):
        if np.allclose(distinct, np.round(distinct, decimals), rtol=0, atol=1e-15):
            unit = 10.0**-decimals
            return 0.6 * unit if unit > 0.005 * float(np.abs(distinct).max()) else 0.0
    return 0.0


def _is_constant(_: Floats, value_T: Floats, tolerance: float) -> bool:
    return float(np.ptp(value_T)) <= min(tolerance, 0.01 * float(np.abs(value_T).max()))


def _is_linear(step_T: Floats, value_T: Floats, tolerance: float) -> bool:
    return _misses(np.stack([np.ones_like(step_T), step_T - step_T[0]], axis=1), value_T, tolerance)


def _is_exponential(step_T: Floats, value_T: Floats, tolerance: float) -> bool:
    if len(step_T) < 3 or (value_T <= 0).any():
        return len(step_T) < 3
    line = np.polynomial.polynomial.polyfit(step_T - step_T[0], np.log(value_T), 1)
    curve_T = np.exp(line[0] + line[1] * (step_T - step_T[0]))
    # On the log as well: an exponential that ends near zero is no line that does.
    close = np.abs(np.log(value_T) - np.log(curve_T)).max() <= 0.05
    return bool(close and np.abs(value_T - curve_T).max() <= tolerance)


def _is_cosine(step_T: Floats, value_T: Floats, tolerance: float) -> bool:
    """Half a period from its highest value on, whole or cut."""
    if len(step_T) < 5:
        return bool((np.diff(value_T) <= tolerance).all())
    length, gap = step_T[-1] - step_T[0], step_T[1] - step_T[0]
    for early in (0.0, 0.5 * gap, gap):
        for period in (length + early) * np.geomspace(1.0, 4.0, 30):
            wave_T = np.cos(np.pi * (step_T - step_T[0] + early) / period)
            basis = np.stack([np.ones_like(wave_T), wave_T], axis=1)
            if value_T[0] > value_T[-1] and _misses(basis, value_T, tolerance):
                return True
    return False


def _is_smooth(step_T: Floats, value_T: Floats, tolerance: float) -> bool:
    """One way, and nowhere much steeper than usual: no jump and no plateau."""
    if len(step_T) < 3:
        return True
    slope_T = np.diff(value_T) / np.diff(step_T)
    slope_T = slope_T if value_T[-1] > value_T[0] else -slope_T
    usual = float(np.median(slope_T))
    return bool((slope_T > 0).all() and slope_T.max() <= 6 * usual) or bool(
        np.abs(value_T - value_T[0]).max() <= tolerance and (slope_T >= 0).all()
    )


def _misses(basis: Floats, value_T: Floats, tolerance: float) -> bool:
    """Does the least-squares fit stay within the tolerance everywhere?"""
    found = np.linalg.lstsq(basis, value_T, rcond=None)[0]
    return bool(np.abs(value_T - basis @ found).max() <= tolerance)


def _is_jump(value_T: Floats, first: int, tolerance: float) -> bool:
    """Is the step to point `first` far larger than the ones beside it?"""
    move = abs(float(value_T[first] - value_T[first - 1]))
    beside = [
        abs(float(value_T[row] - value_T[row - 1]))
        for row in (first - 1, first + 1)
        if 0 < row < len(value_T)
    ]
    scale = max(abs(float(value_T[first])), abs(float(value_T[first - 1])))
    return move > 3 * tolerance * scale and move > 3 * max(beside, default=0.0)


def _joined(pieces: list[Piece], jumps: list[int]) -> list[Piece]:
    """A single point between two pieces belongs to its neighbour (a kink between logged steps), and
    two ways down in a row, of which one has no formula, are one smooth way."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined and piece.first not in jumps else None
        if last is not None and piece.first == piece.last:
            joined[-1] = Piece(last.shape, last.first, piece.last, last.start, piece.end)
        elif (
            last is not None
            and "smooth" in (last.shape, piece.shape)
            and "constant" not in (last.shape, piece.shape)
            and last.is_rising == piece.is_rising
        ):
            joined[-1] = Piece("smooth", last.first, piece.last, last.start, piece.end)
        else:
            joined.append(piece)
    return joined
