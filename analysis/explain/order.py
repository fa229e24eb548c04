"""Order the signals of a run against its drop: which moved first, and which others they explain.

The words are fixed: precedes, coincides, follows, no evidence. A signal precedes if its event
began before the fall by more than both onsets are known to; what begins with the fall, or after it,
explains nothing. One run cannot show a cause; with the real cause unrecorded, any such rule blames
a mediator two times in three. So the answer is a set of candidates, always with 'an unrecorded
cause' in it.

Legend: T steps, N signals, B bootstrap draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from analysis.cliff.fall import Fall
from analysis.explain.beginning import beginnings
from analysis.explain.graph import undominated
from analysis.explain.settings import BATCH_TOLERANCE, Timing, setting_verdict, verdict_of
from analysis.explain.signal_words import TrendShape, told_event, told_trend
from analysis.findings import HELD_OUT, ChangeKind, Onset, Order, SignalVerdict
from analysis.series.bend import bins, bridged, find_bends
from analysis.series.schedule import Schedule
from analysis.series.trend import movement
from analysis.signals import BY_BATCH, Measured, unscaled
from gradlab.arrays import Floats

UNRECORDED = "an unrecorded cause"
FALLS = ("reward_mean", "own_accuracy")
"""Outcomes of training that fall with accuracy, and are recorded at every step: the first that is
there."""


@dataclass(frozen=True)
class OnsetOrder:
    """Thresholds of the rule; at these, 0-4 % of unrelated signals are said to precede."""

    min_effect: float = 2.5
    """Change in residual standard deviations, times the root of their correlation time: a random
    walk changes by many standard deviations without anything having happened."""
    event_alpha: float = 0.005
    """Largest p-value of an event beyond every smooth way: those are a few percent off the truth,
    and at 0.05 a tenth of steep S-shapes pass."""
    min_probability: float = 0.9
    """That the fall began after a signal that is said to precede it. All signals are held against
    one beginning of the fall, which is too early for any only if it is for the earliest of those
    that began with it: nothing is corrected here. Each signal's own date is, see `settings`."""
    max_lead: int = 100
    """Steps; an earlier change is too far away to be named."""
    min_before: int = 2
    """Points on the old level; a change at the very first is a start-up, not an event."""
    still_moving: float = 0.25
    """A warm-up must have risen by this share of its smallest change within this share of
    `max_lead` before the drop; else it had settled."""
    max_bins: int = 100
    """Points that a change is dated on: the search is quadratic."""
    num_draws: int = 200
    """Bootstrap draws of an onset: a probability of 0.9 is known to +-0.02."""
    num_beginnings: int = 1000
    """Draws of the fall's beginning."""
    alpha: float = 0.025
    """Of a candidate's change against wander, corrected (Bonferroni) for the signals judged."""
    min_steps: int = 20
    """Below, there is no order to speak of."""
    seed: int = 0
    """Of the draws, so that a diagnosis can be repeated."""

    def __call__(
        self, signals: list[Measured], step_T: NDArray[np.int64], drop: Fall
    ) -> list[SignalVerdict]:
        """Every signal with its order to the drop: candidates first, then by order and effect."""
        if len(step_T) < self.min_steps:
            return []
        present = [signal for signal in signals if signal.is_present]
        span = self._span(step_T, drop)
        seen = [(s, self._seen(s, step_T, span)) for s in present if not s.kind.is_set]
        moves = [(signal, move) for signal, move in seen if move is not None]
        timing = self._timing(drop, moves, step_T[slice(*span)], _rewards(present, span))
        batches = [s for s in present if s.kind.name == "episodes"]
        jumps = _jump_steps(batches, step_T)
        verdicts = []
        for signal, move in moves:
            verdict = self._verdict(signal, move, timing)
            verdict = replace(verdict, p_value=min(verdict.p_value * len(moves), 1.0))
            verdicts.append((signal, self._tested(_with_batch(verdict, jumps, move.pace))))
        verdicts += [(s, setting_verdict(s, step_T, timing)) for s in present if s.kind.is_set]
        return _ranked(undominated(verdicts))

    def _span(self, step_T: NDArray[np.int64], drop: Fall) -> tuple[int, int]:
        """Rows looked at: the whole run, or twice `max_lead` around the fall of a long one."""
        if drop.onset is None:
            return 0, len(step_T)
        first = np.searchsorted(step_T, drop.onset.lower - 2 * self.max_lead)
        last = np.searchsorted(step_T, max(drop.end_step, drop.onset.upper) + self.max_lead)
        start, stop = int(first), int(last)
        if stop - start < self.min_steps:
            return 0, len(step_T)
        return start, stop

    def _seen(
        self, signal: Measured, step_T: NDArray[np.int64], span: tuple[int, int]
    ) -> _Move | None:
        """What a signal did near the drop; if that is no event, in the whole run."""
        near = self._move(signal, step_T, *span)
        if span == (0, len(step_T)) or (near is not None and near.kind == "event"):
            return near
        return self._move(signal, step_T, 0, len(step_T)) or near

    def _move(
        self, signal: Measured, step_T: NDArray[np.int64], start: int, stop: int
    ) -> _Move | None:
        """None: too few values."""
        stride = max(1, math.ceil((stop - start) / self.max_bins))
        bin_step = bins(step_T[start:stop].astype(np.float64), stride)
        series = bins(signal.kind.on_scale(signal.value_T[start:stop]), stride)
        known = np.flatnonzero(np.isfinite(series))
        if len(bin_step) < 8 or len(known) < max(8, len(series) // 2):
            return None
        first, last = int(known[0]), int(known[-1]) + 1
        series, bin_step = bridged(series[first:last]), bin_step[first:last]
        pace = float(np.median(np.diff(bin_step)))
        did = movement(
            series,
            min_change=signal.kind.min_change,
            min_effect=self.min_effect,
            alpha=self.event_alpha,
            seed=self.seed,
        )
        if did.change != "event":
            size = abs(did.size) / max(float(np.std(np.diff(series))) / math.sqrt(2), 1e-12)
            shape: TrendShape = "settled" if did.settles else "late" if did.is_late else ""
            return _Move(
                did.change, did.first, did.last, did.p_value, math.copysign(size, did.size), pace,
                shape=shape,
            )  # fmt: skip
        rng = np.random.default_rng(self.seed)
        bend = find_bends((series - did.smooth_T)[None, :], rng, num_draws=self.num_draws)[0]
        if bend.onset < self.min_before - 1 or (bend.after - bend.before) * did.size < 0:
            return _Move("trend", series[0], float(series[-1]), did.p_value, bend.effect, pace,
                         shape="start")  # fmt: skip
        point = np.arange(len(bin_step))
        fine_B = np.interp(bend.onset_B + rng.random(self.num_draws), point, bin_step)
        middle = float(np.interp(bend.onset + 0.5, point, bin_step))
        low, high = np.quantile(fine_B, [0.05, 0.95])
        blur = pace / 2 if stride > 1 else 0.0  # within a point nothing is dated
        low, high = min(low, middle) - blur, max(high, middle) + blur
        onset = Onset(round(middle), max(round(low), int(step_T[start])), round(high))
        before = bend.before + float(did.smooth_T[int(bend.onset)])
        after = bend.after + float(did.smooth_T[int(bend.end)])
        return _Move("event", before, after, did.p_value, bend.effect, pace, onset, fine_B)

    def _timing(
        self,
        drop: Fall,
        moves: list[tuple[Measured, _Move]],
        step_T: NDArray[np.int64],
        reward_T: Floats,
    ) -> Timing:
        """When the fall began: in the evaluations, and in training if that fell with them.

        Training is looked at in every step. What began after it fell began after the fall, although
        the next evaluation was still to come.
        """
        rng = np.random.default_rng(self.seed)
        if drop.outcome != HELD_OUT:  # training is what was dated already
            reward_T = np.zeros(0)
        drawn_B = beginnings(drop, step_T, reward_T, self.num_beginnings, rng)
        # What began after the fall cannot be taken for its cause, and is not asked.
        middle = float(np.median(drawn_B)) if len(drawn_B) else math.inf
        asked = sum(
            move.onset is not None and move.onset.step < middle and not s.kind.is_outcome
            for s, move in moves
        )
        return Timing(
            drop, drawn_B, self.max_lead, self.min_probability, self.still_moving, max(asked, 1)
        )

    def _tested(self, verdict: SignalVerdict) -> SignalVerdict:
        """No candidate if wander may have moved it."""
        if verdict.is_candidate and verdict.p_value > self.alpha:
            note = f"precedes, but may be chance (p = {verdict.p_value:.2g}, corrected)"
            verdict = replace(verdict, is_candidate=False, note=note)
        return verdict

    def _verdict(self, signal: Measured, move: _Move, timing: Timing) -> SignalVerdict:
        order: Order = "no evidence"
        leads = (math.nan, math.nan, math.nan)
        before, after = (unscaled(signal, level) for level in (move.before, move.after))
        told, note = "", "did not change"
        if move.onset is not None:
            told, note = told_event(before, after, signal.unit, move.onset), "changed"
            order, leads, note = timing.order(move.onset_B)
        elif move.kind == "trend":
            told = told_trend(before, after, signal.unit, move.shape)
            note = "a steady change without a date"
        elif math.isfinite(move.p_value):
            note = "no clear change"
        is_suspect = not signal.kind.is_outcome and (
            signal.kind.suspect == "both" or (signal.kind.suspect == "up" and after > before)
        )
        return verdict_of(
            signal,
            order,
            (before, after),
            leads,
            effect=move.effect,
            onset=move.onset,
            is_suspect=is_suspect,
            note=note,
            p_value=move.p_value,
            change=move.kind,
            told=told,
        )


@dataclass(frozen=True)
class _Move:
    """What a signal did, on its scale."""

    kind: ChangeKind
    before: float
    after: float
    p_value: float
    effect: float
    pace: float
    """Steps between the points looked at."""
    onset: Onset | None = None
    onset_B: Floats = field(default_factory=lambda: np.zeros(0))
    shape: TrendShape = ""


def _rewards(signals: list[Measured], span: tuple[int, int]) -> Floats:
    """[T] rewards of training in these rows, the mean of the roles; empty: none are recorded."""
    for name in FALLS:
        value_RT = np.array([s.value_T[slice(*span)] for s in signals if s.kind.name == name])
        if len(value_RT):
            known_T = np.isfinite(value_RT).all(axis=0)
            reward_T: Floats = np.where(known_T, value_RT.mean(axis=0), math.nan)
            return reward_T
    return np.zeros(0)


def _jump_steps(batches: list[Measured], step_T: NDArray[np.int64]) -> list[int]:
    """Where the size of the batch changed."""
    steps: list[int] = []
    for signal in batches:
        steps += Schedule.of(step_T, signal.value_T, BATCH_TOLERANCE).jump_steps
    return steps


def _with_batch(verdict: SignalVerdict, jumps: list[int], pace: float) -> SignalVerdict:
    """A change that follows from another batch size is no event of its own."""
    at = verdict.onset
    follows = (
        at is not None
        and verdict.kind in BY_BATCH
        and any(at.lower - pace <= step <= at.upper + pace for step in jumps)
    )
    if not follows:
        return verdict
    note = "moved with the size of the batch, which it depends on"
    return replace(
        verdict, order="no evidence", onset=None, is_candidate=False, change="schedule", note=note,
        told=f"{verdict.told}, with the size of the batch", lead=math.nan, lead_lower=math.nan,
        lead_upper=math.nan,
    )  # fmt: skip


def _ranked(verdicts: list[SignalVerdict]) -> list[SignalVerdict]:
    order = {"precedes": 0, "coincides": 1, "follows": 2, "no evidence": 3}
    change = {"event": 0, "schedule": 1, "trend": 2, "none": 3}
    return sorted(
        verdicts,
        key=lambda v: (
            not v.is_candidate,
            order[v.order],
            v.onset is None,
            change[v.change],
            v.is_outcome,
            -abs(v.effect),
        ),
    )
