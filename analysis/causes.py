"""Order the signals of a run against its drop: which moved first, and which others they explain.

The words are fixed: precedes, coincides, follows, no evidence. One run cannot show a cause; with
the real cause unrecorded, any such rule blames a mediator two times in three. So the answer is a
set of candidates, always with 'an unrecorded cause' in it.

Legend: T steps, N signals, B bootstrap draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from analysis.bend import Bend, bins, bridged, find_bends
from analysis.fall import Fall
from analysis.findings import Onset, Order, SignalVerdict
from analysis.graph import undominated
from analysis.signals import Measured
from analysis.wander import MAX_POINTS, find_change

Floats = NDArray[np.float64]

UNRECORDED = "an unrecorded cause"


@dataclass(frozen=True)
class OnsetOrder:
    """Thresholds of the rule; at these, 0-4 % of unrelated signals are said to precede."""

    min_effect: float = 2.5
    """Change in residual standard deviations, times the root of their correlation time: a random
    walk changes by many standard deviations without anything having happened."""
    min_gain: float = 2.0
    """Squared error of a straight line over that of the ramp."""
    min_probability: float = 0.9
    """Of one onset being before the other."""
    max_lead: int = 100
    """Steps; an earlier change is too far away to be named."""
    min_before: int = 4
    """Points on the old level; a change at the very beginning is a start-up, not an event."""
    still_moving: float = 0.25
    """A setting that was never at rest, such as a warm-up, must have moved by this share of its
    smallest change within this share of `max_lead` before the drop; else it had settled."""
    max_bins: int = 100
    """Points that a change is dated on: the search is quadratic."""
    num_draws: int = 200
    """Bootstrap draws of an onset: a probability of 0.9 is known to +-0.02."""
    alpha: float = 0.05
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
        rng = np.random.default_rng(self.seed)
        start, stop = self._span(step_T, drop)
        stride = max(1, math.ceil((stop - start) / self.max_bins))
        bin_step = bins(step_T[start:stop].astype(np.float64), stride)
        drop_draws = self._drop_draws(drop, rng)
        verdicts: list[tuple[Measured, SignalVerdict]] = []
        judged: list[tuple[Measured, Floats]] = []
        for signal in signals:
            series = bins(signal.kind.on_scale(signal.value_T[start:stop]), stride)
            if signal.is_present and np.isfinite(series).mean() >= 0.5:
                judged.append((signal, bridged(series)))
        if not judged or len(bin_step) < 8:
            return []
        # A slow first pass over everything, then the onset's uncertainty only where it matters.
        bends = find_bends(np.stack([series for _, series in judged]), rng)
        near = 0  # a setting that changes all along is compared with itself a while before
        if drop.onset:
            near = int(np.searchsorted(bin_step, drop.onset.lower - 0.8 * self.max_lead))
        for n, (signal, series) in enumerate(judged):
            if signal.kind.is_set:
                bends[n] = _scheduled(series, near, self.num_draws)
        moved = [n for n, bend in enumerate(bends) if self._has_moved(judged[n][0], bend)]
        for n in moved:
            if not judged[n][0].kind.is_set:
                bends[n] = find_bends(judged[n][1][None, :], rng, num_draws=self.num_draws)[0]
        for n, (signal, series) in enumerate(judged):
            verdicts.append(
                (
                    signal,
                    self._verdict(signal, series, bends[n], n in moved, bin_step, drop_draws, rng),
                )
            )
            if n in moved:
                p_value = self._p_value(signal, series, bends[n]) * len(judged)
                verdicts[-1] = (signal, self._tested(verdicts[-1][1], min(p_value, 1.0)))
            if signal.kind.is_set and self._had_settled(signal, series, bends[n], bin_step, drop):
                note = "settled long before the drop: a start-up, not an event"
                verdicts[-1] = (signal, replace(verdicts[-1][1], is_candidate=False, note=note))
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

    def _drop_draws(self, drop: Fall, rng: np.random.Generator) -> Floats:
        """[B] plausible beginnings of the fall: an evaluation by its weight, then uniformly
        between it and the next one; empty without a drop."""
        if drop.onset is None:
            return np.zeros(0)
        step_T = drop.onset_step_T.astype(np.float64)
        pick = rng.choice(len(step_T), self.num_draws, p=drop.onset_weight_T)
        after = np.minimum(pick + 1, len(step_T) - 1)
        drawn: Floats = step_T[pick] + rng.random(self.num_draws) * (step_T[after] - step_T[pick])
        return drawn

    def _has_moved(self, signal: Measured, bend: Bend) -> bool:
        if abs(bend.after - bend.before) < signal.kind.min_change:
            return False
        return signal.kind.is_set or (
            abs(bend.effect) >= self.min_effect * math.sqrt(bend.memory)
            and bend.gain >= self.min_gain
            and bend.onset >= self.min_before - 1
        )

    def _p_value(self, signal: Measured, series: Floats, bend: Bend) -> float:
        """Of the change against wander around a level; 0 for a setting."""
        if signal.kind.is_set:
            return 0.0
        coarse = bins(series, math.ceil(len(series) / MAX_POINTS))
        sign = 1 if bend.after > bend.before else -1
        return find_change(coarse, np.random.default_rng(self.seed), sign=sign).p_value

    def _tested(self, verdict: SignalVerdict, p_value: float) -> SignalVerdict:
        """No candidate if wander may have moved it."""
        verdict = replace(verdict, p_value=p_value)
        if verdict.is_candidate and p_value > self.alpha:
            note = f"precedes, but may be chance (p = {p_value:.2g}, corrected)"
            verdict = replace(verdict, is_candidate=False, note=note)
        return verdict

    def _had_settled(
        self, signal: Measured, series: Floats, bend: Bend, bin_step: Floats, drop: Fall
    ) -> bool:
        """Was the setting moving from the start (no rest before its change), and at rest near the
        drop?"""
        if drop.onset is None:
            return False
        onset, rest = int(bend.onset), self.min_before
        at_rest = series[max(onset - rest + 1, 0) : onset + 1]
        small = 0.05 * abs(bend.after - bend.before)
        if len(at_rest) == rest and np.ptp(at_rest) <= small:
            return False
        start = drop.onset.lower - self.still_moving * self.max_lead
        near = series[(bin_step >= start) & (bin_step <= drop.onset.upper)]
        return len(near) == 0 or bool(np.ptp(near) < self.still_moving * signal.kind.min_change)

    def _verdict(
        self,
        signal: Measured,
        series: Floats,
        bend: Bend,
        has_moved: bool,
        bin_step: Floats,
        drop_draws: Floats,
        rng: np.random.Generator,
    ) -> SignalVerdict:
        order: Order = "no evidence"
        onset: Onset | None = None
        lead = lower = upper = math.nan
        if not has_moved:
            note = "did not change" if abs(bend.effect) < self.min_effect else "no clear change"
        else:
            index_B = bend.onset_B
            point = np.arange(len(bin_step))
            fine_B = np.interp(index_B + rng.random(len(index_B)), point, bin_step)
            middle = float(np.interp(bend.onset + 0.5, point, bin_step))
            first, last = np.quantile(fine_B, [0.05, 0.95])
            onset = Onset(round(middle), round(min(first, middle)), round(max(last, middle)))
            note = "changed"
            if len(drop_draws):
                lead_B = drop_draws - fine_B
                lower, lead, upper = (float(q) for q in np.quantile(lead_B, [0.05, 0.5, 0.95]))
                chance = float(np.mean(lead_B > 0))
                if lead > self.max_lead:
                    note = f"changed {lead:.0f} steps before: too early to be named"
                elif chance > self.min_probability:
                    order, note = "precedes", f"in {100 * chance:.0f} % of the draws"
                elif chance < 1 - self.min_probability:
                    order, note = "follows", f"in {100 * (1 - chance):.0f} % of the draws"
                else:
                    order, note = "coincides", "order not resolved"
        before, after = _levels(signal, bend)
        is_suspect = not signal.kind.is_outcome and not (signal.kind.is_set and after < before)
        is_candidate = order == "precedes" and is_suspect
        return SignalVerdict(
            signal.key,
            signal.title,
            signal.subject,
            signal.unit,
            order,
            before,
            after,
            bend.effect,
            onset,
            lead,
            lower,
            upper,
            is_candidate,
            signal.kind.is_outcome,
            note,
        )


def _scheduled(series: Floats, first: int, num_draws: int) -> Bend:
    """The change of a setting from point `first` to its furthest value, dated exactly."""
    distance = np.abs(series - series[first])
    distance[:first] = 0.0
    end = int(np.argmax(distance))
    onset = first
    if distance[end] > 0:
        onset = max(int(np.argmax(distance > 0.05 * distance[end])) - 1, first)
    return Bend(
        float(onset),
        float(end),
        float(series[first]),
        float(series[end]),
        1.0,
        1.0,
        math.inf,
        np.full(num_draws, float(onset)),
    )


def _levels(signal: Measured, bend: Bend) -> tuple[float, float]:
    """Levels before and after in the signal's own unit, within what was ever recorded."""
    levels = np.array([bend.before, bend.after])
    if signal.kind.scale == "log":
        levels = np.exp(levels)
    elif signal.kind.scale == "logit":
        levels = expit(levels)
    before, after = np.clip(levels, np.nanmin(signal.value_T), np.nanmax(signal.value_T))
    return float(before), float(after)


def _ranked(verdicts: list[SignalVerdict]) -> list[SignalVerdict]:
    order = {"precedes": 0, "coincides": 1, "follows": 2, "no evidence": 3}
    return sorted(
        verdicts,
        key=lambda v: (
            not v.is_candidate,
            order[v.order],
            v.onset is None,
            v.is_outcome,
            -abs(v.effect),
        ),
    )
