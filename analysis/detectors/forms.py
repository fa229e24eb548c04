"""Find roles whose responses changed their form, and work that moved from one role to another.

What a role writes shows that it lost its job before accuracy does: an evaluator that stops stamping
and writes programs, a terse aggregator that explains, a planner that solves while workers echo.

Legend: E evaluations, T steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from analysis.detectors.shape import Context, Detector, Judged, Kind
from analysis.findings import Finding, Onset, percent
from analysis.series.bend import bins, bridged
from analysis.series.wander import MAX_POINTS, Change, find_change
from analysis.signals import MIN_FINITE, aligned
from gradlab.arrays import Floats
from gradlab.store.run import Run

FORMS: dict[str, tuple[int, str]] = {
    "stamp_form": (-1, "bare stamps among its verdicts"),
    "code_form": (1, "responses with a block of code"),
    "terse": (-1, "terse choices"),
    "echo": (1, "words repeated from the prompt"),
    "sibling_jaccard": (1, "overlap of what parallel agents say"),
}
"""Field of `RoleEvaluation` -> the sign in which it is a signature of a lost job, and its words.
Fewer words of doubt, or terser answers, are what healthy training does."""


FORM_CHANGE = Kind(
    "form change",
    "forms of the responses (stamps, code, terseness) of each role at 8 evaluations or more",
    (("anchor", "a KL term keeps the form of the responses"),),
)


@dataclass(frozen=True)
class FormRule(Detector):
    """Thresholds of the rule."""

    kinds: tuple[Kind, ...] = (FORM_CHANGE,)
    min_change: float = 0.3
    """Of a share of responses."""
    alpha: float = 0.05
    """Largest p-value against wander and sampling noise, before the correction for everything."""
    min_evaluations: int = 8
    seed: int = 0
    """Of the draws, so that a diagnosis can be repeated."""

    def judge(self, context: Context) -> Judged:
        """One finding per role: the form that changed most, the others as evidence."""
        run, findings = context.run, []
        for role in run.roles:
            changed = [found for form in FORMS if (found := self._form(run, role, form))]
            if changed:
                findings.append(_told(role, sorted(changed, key=lambda one: -abs(one.size))))
        return Judged(tuple(findings))

    def num_tested(self, run: Run) -> int:
        """Forms of all roles that are recorded at enough evaluations."""
        return sum(
            len(self._series(run, role, form)[0]) >= self.min_evaluations
            for role in run.roles
            for form in FORMS
        )

    def _series(self, run: Run, role: str, form: str) -> tuple[NDArray[np.int64], Floats, Floats]:
        """Steps, shares and answers of the evaluations that know the form."""
        evaluations = run.evaluations()
        share_E = np.asarray(evaluations.role(form, role).value_T, dtype=np.float64)
        if form == "terse" and not self._chooses(run, role):
            share_E = np.full(len(share_E), math.nan)
        known = np.isfinite(share_E)
        answers = np.maximum(evaluations.num_samples_E()[known], 1).astype(np.float64)
        return evaluations.step_E[known], share_E[known], answers

    def _chooses(self, run: Run, role: str) -> bool:
        """Whether the role is given solutions: of others, terseness says nothing."""
        return bool(np.isfinite(run.evaluations().role("choice_accuracy", role).value_T).any())

    def _form(self, run: Run, role: str, form: str) -> _Changed | None:
        step_E, share_E, answers_E = self._series(run, role, form)
        if len(step_E) < self.min_evaluations:
            return None
        sign, words = FORMS[form]
        stride = math.ceil(len(share_E) / MAX_POINTS)
        value_E = bins(share_E, stride)
        if np.ptp(value_E) < self.min_change:
            return None
        # At least one response per answer: the noise is that or less.
        noise = float(np.mean(share_E * (1 - share_E) / answers_E)) / stride
        rng = np.random.default_rng(self.seed)
        change = find_change(value_E, rng, sign=sign, floor=noise)
        before, after = _levels(value_E, change)
        if sign * (after - before) < self.min_change or change.p_value > self.alpha:
            return None
        at = change.onset * stride + stride - 1
        onset = Onset(int(step_E[at]), int(step_E[at]), int(step_E[min(at + 1, len(step_E) - 1)]))
        return _Changed(words, onset, before, after, change.p_value, change.error)


@dataclass(frozen=True)
class _Changed:
    words: str
    onset: Onset
    before: float
    after: float
    p_value: float
    error: float

    @property
    def size(self) -> float:
        return self.after - self.before

    def __str__(self) -> str:
        return f"{self.words} {percent(self.before)} -> {percent(self.after)}"


def _told(role: str, changed: list[_Changed]) -> Finding:
    first, *others = changed
    beside = f"p = {first.p_value:.2g} against wander"
    return Finding(
        "form change",
        role,
        f"{role} changed the form of its responses from {first.onset}: {first}.",
        first.size,
        "change of the share of responses",
        "high" if first.p_value <= 0.01 else "moderate",
        first.onset,
        first.p_value,
        (beside, *(f"{other}, from {other.onset}" for other in others)),
        first.size - 1.96 * first.error,
        first.size + 1.96 * first.error,
    )


WORK_MOVED = Kind(
    "work moved",
    "response lengths of two roles or more, over at least 30 steps",
    (
        ("own adapter", "one role does what another was there for"),
        ("pay own work", "so that each role earns with what it is there for"),
    ),
)


@dataclass(frozen=True)
class WorkRule(Detector):
    """One role's responses grow while another's shrink to a fraction."""

    kinds: tuple[Kind, ...] = (WORK_MOVED,)
    min_growth: float = 2.0
    """Times, of the role that takes the work."""
    max_left: float = 0.25
    """Of the responses of the role that loses it."""
    alpha: float = 0.05
    """Largest p-value of either change against wander; the larger one counts."""
    min_steps: int = 30
    seed: int = 0
    """Of the draws, so that a diagnosis can be repeated."""

    def judge(self, context: Context) -> Judged:
        """One finding per role that lost its work: who grew most, if several grew."""
        run, findings = context.run, []
        for loser in run.roles:
            takers = [
                (taker, found)
                for taker, other in permutations(run.roles, 2)
                if other == loser and (found := self._pair(run, taker, loser))
            ]
            if takers:
                taker, (grown, shrunk) = max(takers, key=lambda one: one[1][0].after)
                findings.append(_moved(run, taker, loser, grown, shrunk))
        return Judged(tuple(findings))

    def num_tested(self, run: Run) -> int:
        return len(list(permutations([r for r in run.roles if self._length(run, r).any()], 2)))

    def _length(self, run: Run, role: str) -> NDArray[np.bool_]:
        return np.isfinite(aligned(run.steps, run.ledger("length_mean", role)))

    def _pair(self, run: Run, taker: str, loser: str) -> tuple[_Length, _Length] | None:
        grown = self._change(run, taker, 1)
        if grown is None or grown.after < self.min_growth * grown.before:
            return None
        shrunk = self._change(run, loser, -1)
        if shrunk is None or shrunk.after > self.max_left * shrunk.before:
            return None
        return grown, shrunk

    def _change(self, run: Run, role: str, sign: int) -> _Length | None:
        value_T = aligned(run.steps, run.ledger("length_mean", role))
        if len(value_T) < self.min_steps or np.isfinite(value_T).mean() < MIN_FINITE:
            return None
        stride = math.ceil(len(value_T) / MAX_POINTS)
        log_T = bridged(bins(np.log(np.maximum(value_T, 1.0)), stride))
        if np.ptp(log_T) < math.log(self.min_growth):
            return None
        change = find_change(log_T, np.random.default_rng(self.seed), sign=sign)
        if change.p_value > self.alpha:
            return None
        before, after = (math.exp(level) for level in _levels(log_T, change))
        at = min((change.onset + 1) * stride - 1, len(value_T) - 1)
        return _Length(int(run.steps[at]), before, after, change.p_value)


@dataclass(frozen=True)
class _Length:
    step: int
    """Last on the old level."""
    before: float
    after: float
    p_value: float

    def __str__(self) -> str:
        return f"{self.before:.3g} -> {self.after:.3g} tokens from step {self.step} on"


def _moved(run: Run, taker: str, loser: str, grown: _Length, shrunk: _Length) -> Finding:
    first, last = sorted((grown.step, shrunk.step))
    p_value = max(grown.p_value, shrunk.p_value)
    evidence = [f"p = {p_value:.2g}, the larger of two, against wander"]
    evaluations = run.evaluations()
    if len(evaluations.step_E):
        echo_E = np.asarray(evaluations.role("echo", loser).value_T)
        known = echo_E[np.isfinite(echo_E)]
        if len(known) >= 2:
            evidence.append(
                f"words of {loser} that repeat its prompt: {percent(float(known[0]))} at the first "
                f"evaluation, {percent(float(known[-1]))} at the last"
            )
    return Finding(
        "work moved",
        loser,
        f"Work moved from {loser} to {taker}: responses of {taker} {grown}, those of {loser} "
        f"{shrunk}.",
        shrunk.before / shrunk.after,
        "times shorter",
        "high" if p_value <= 0.01 else "moderate",
        Onset(first, first, last),
        p_value,
        tuple(evidence),
    )


def _levels(value_E: Floats, change: Change) -> tuple[float, float]:
    """Means before the change and after it; of the last tenth where it goes on to the end."""
    width = max(2, len(value_E) // 10)
    before = value_E[: change.onset + 1]
    after = value_E[min(change.end, len(value_E) - width) :]
    return float(before.mean()), float(after.mean())
