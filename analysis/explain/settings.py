"""Judge what somebody set, such as the learning rate, against the fall: by its schedule, exactly.

A setting is a suspect if it rose beyond its earlier highest level before the fall. A warm-up that
had settled is none, nor is a decay, nor a rate that was lowered; none of them has a date inside.

Legend: T steps, B bootstrap draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.cliff.fall import Fall
from analysis.findings import ChangeKind, Onset, Order, SignalVerdict
from analysis.series.schedule import TOLERANCE, Rise, Schedule
from analysis.signals import Measured
from gradlab.arrays import Floats

BATCH_TOLERANCE = 0.1
"""Share by which the size of a batch varies without having been changed: episodes that failed."""
DATED_LATE = 0.05
"""Chance that any of the signals began later than the latest date that is held against the fall."""
SUSPECTS = ("learning_rate",)
"""Settings that can fell a run by being raised."""


@dataclass(frozen=True)
class Timing:
    """When the fall began, and what counts as before it."""

    drop: Fall
    fall_B: Floats
    """Plausible beginnings; empty without a fall."""
    max_lead: int
    min_probability: float
    still_moving: float
    num_dated: int = 1
    """Signals whose order is asked: each has its share of `DATED_LATE`."""

    def order(self, onset_B: Floats) -> tuple[Order, tuple[float, float, float], str]:
        """The word for an onset, its lead with its 90 % interval, and why."""
        nowhere = (math.nan, math.nan, math.nan)
        if not len(self.fall_B):
            return "no evidence", nowhere, "changed"
        num = min(len(self.fall_B), len(onset_B))
        lead_B = self.fall_B[:num] - onset_B[:num]
        lower, lead, upper = (float(q) for q in np.quantile(lead_B, [0.05, 0.5, 0.95]))
        chance = self.chance(onset_B)
        leads = (lower, lead, upper)
        if lead > self.max_lead:
            return "no evidence", leads, f"changed {lead:.0f} steps before: too early to be named"
        if self._after_all_of(onset_B) >= self.min_probability and lead >= 1:
            return "precedes", leads, f"in {100 * chance:.0f} % of the draws"
        if chance < 1 - self.min_probability and lead <= -1:
            return "follows", leads, f"in {100 * (1 - chance):.0f} % of the draws"
        return "coincides", leads, "began with the fall: no order is resolved"

    def _after_all_of(self, onset_B: Floats) -> float:
        """That the fall began after the latest date of a signal that is plausible, corrected for
        the number of signals; a setting has but one date."""
        latest = float(np.quantile(onset_B, 1 - DATED_LATE / self.num_dated))
        return float(np.mean(self.fall_B > latest))

    def chance(self, onset_B: Floats) -> float:
        """That an onset is before the fall's: of all pairs of the draws, which are independent."""
        earlier_B = np.searchsorted(np.sort(onset_B), self.fall_B, side="left")
        return float(np.mean(earlier_B)) / len(onset_B)


def setting_verdict(signal: Measured, step_T: NDArray[np.int64], timing: Timing) -> SignalVerdict:
    """A setting, its schedule, and whether it led."""
    is_rate = signal.kind.name in SUSPECTS
    tolerance = TOLERANCE if is_rate else BATCH_TOLERANCE
    path = Schedule.of(step_T, signal.value_T, tolerance)
    before, after = float(path.value_T[0]), float(path.value_T[-1])
    factor = math.exp(signal.kind.min_change)
    order: Order = "no evidence"
    leads = (math.nan, math.nan, math.nan)
    onset: Onset | None = None
    is_rise, note = False, "constant" if path.is_constant else "a schedule, without an event"
    rise = _rise(path, factor, timing, tolerance)
    jumps = path.falls(factor)
    if rise is not None:
        onset, before, after, is_rise = _at(rise, timing), rise.before, rise.after, True
        onset_B = _between(onset, len(timing.fall_B))
        order, leads, note = timing.order(onset_B)
        if rise.is_warm_up:
            note = "rising from the first step until the fall"
    elif jumps:
        step, before, after = _nearest(jumps, timing)
        row = int(np.searchsorted(path.step_T, step))
        onset = Onset(step, int(path.step_T[row - 1]) if path.step_T[row] - path.step_T[row - 1] > 1
                      else step, step)  # fmt: skip
        order, leads, note = timing.order(np.full(len(timing.fall_B), float(step)))
        note = f"lowered; {note}"
    elif path.rises(factor, tolerance):
        note = "settled before the drop: a start-up, not an event"
    changed = not path.is_constant
    return verdict_of(
        signal,
        order,
        (before, after),
        leads,
        effect=(math.inf if after > before else -math.inf) if onset is not None else 0.0,
        onset=onset,
        is_suspect=is_rate and is_rise,
        note=note,
        p_value=0.0 if changed else math.nan,
        change="schedule" if changed else "none",
        told=path.told() if is_rate or changed else "",
    )


def verdict_of(
    signal: Measured,
    order: Order,
    levels: tuple[float, float],
    leads: tuple[float, float, float],
    *,
    effect: float,
    onset: Onset | None,
    is_suspect: bool,
    note: str,
    p_value: float,
    change: ChangeKind,
    told: str,
) -> SignalVerdict:
    """What is said of a signal; `leads`: the lead between the ends of its interval."""
    lower, lead, upper = leads
    return SignalVerdict(
        signal.key,
        signal.title,
        signal.subject,
        signal.unit,
        order,
        *levels,
        effect,
        onset,
        lead,
        lower,
        upper,
        order == "precedes" and is_suspect,
        signal.kind.is_outcome,
        note,
        p_value,
        change,
        told,
    )


def _rise(path: Schedule, factor: float, timing: Timing, tolerance: float) -> Rise | None:
    """The last rise beyond everything before it that may have to do with the fall."""
    drop = timing.drop
    found = path.rises(factor, tolerance)
    if drop.onset is None:
        later = [rise for rise in found if not rise.is_warm_up]
        return later[-1] if later else None
    near = [
        rise
        for rise in found
        if rise.step <= drop.onset.upper
        and (not rise.is_warm_up or _still_moves(path, rise, factor, timing))
    ]
    if near:
        return near[-1]
    after = [rise for rise in found if rise.step > drop.onset.upper]
    return after[0] if after else None


def _still_moves(path: Schedule, rise: Rise, factor: float, timing: Timing) -> bool:
    """Did the fall rather begin while a warm-up was going on? Its end is no event: the rate merely
    reached what it was set to."""
    assert timing.drop.onset is not None
    start = timing.drop.onset.lower - timing.still_moving * timing.max_lead
    start = max(start, float(path.step_T[0]))  # of a fall so early, the whole warm-up
    first, last = path.at(start), path.at(timing.drop.onset.upper)
    is_before = float(np.mean(timing.fall_B <= rise.end)) >= 0.5
    return is_before and last > first * factor**timing.still_moving


def _at(rise: Rise, timing: Timing) -> Onset:
    """Between two logged steps; of a rise all the way, the last that can be named."""
    lower, upper = rise.step, rise.upper
    if timing.drop.onset is not None:
        named = round(timing.drop.onset.lower - 0.8 * timing.max_lead)
        if lower < named < rise.end:
            lower = upper = named
    return Onset(upper, lower, upper)


def _between(onset: Onset, num: int) -> Floats:
    drawn: Floats = np.linspace(onset.lower, onset.upper, max(num, 1))[:num]
    return np.random.default_rng(0).permutation(drawn)


def _nearest(
    jumps: tuple[tuple[int, float, float], ...], timing: Timing
) -> tuple[int, float, float]:
    """The jump nearest to the fall; without one, the largest."""
    if timing.drop.onset is None:
        return max(jumps, key=lambda jump: jump[1] / max(jump[2], 1e-300))
    at = timing.drop.onset.step
    return min(jumps, key=lambda jump: abs(jump[0] - at))
