"""Find signals of a role that left their level for the worse, lastingly and beyond their wander.

One rule, five detectors: entropy collapse, length blow-up, KL drift, advantage starvation and a gap
between sampler and trainer that opens. (Formats that break are `analysis.breakdown`'s.)

Legend: T steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from analysis.bend import bins, bridged, find_bends
from analysis.findings import Finding, FindingKind, Onset
from analysis.measurement import gap_limit, is_precise
from analysis.signals import KIND, MIN_FINITE, aligned
from analysis.wander import MAX_POINTS, find_change
from gradlab.store import Run


@dataclass(frozen=True)
class LevelRule:
    """When a change of one signal is a finding: size, place and p-value are all needed."""

    kind: FindingKind
    signal: str
    """Field of `RoleLedger`."""
    sign: int
    """1: a rise is bad; -1: a fall."""
    min_change: float
    """On the scale of the signal (`analysis.signals`): log 2 is a factor of 2, 0.2 is 20 points."""
    limit: float
    """Level, in the signal's unit, that has to be reached."""
    reason: str
    """Why this size and this level."""
    alpha: float = 0.05
    """Largest p-value against wander, before the correction for everything tested in the run."""
    min_steps: int = 30
    """Below, wander and a change cannot be told apart."""
    num_draws: int = 299
    """Simulated series: the p-value is continued beyond them by an exponential tail."""
    seed: int = 0
    """Of the draws, so that a diagnosis can be repeated."""

    def __call__(self, run: Run) -> list[Finding]:
        """One finding per role whose signal left its level."""
        rule = self
        if self.signal == "logprob_gap" and is_precise(run):
            reason = "rounding in float32 explains 1e-5 nats per token: the sampler no longer has "
            rule = replace(self, limit=gap_limit(run), reason=f"{reason}the trained weights")
        return [found for role in run.roles if (found := rule._role(run, role))]

    def num_tested(self, run: Run) -> int:
        """Roles with enough of the signal."""
        return sum(
            bool(np.isfinite(aligned(run.steps, run.ledger(self.signal, role))).any())
            for role in run.roles
        )

    def measure(self, value_T: np.ndarray) -> LevelChange | None:
        """Judge one series; None: it kept its level, or is too short."""
        if len(value_T) < self.min_steps or np.isfinite(value_T).mean() < MIN_FINITE:
            return None
        kind = KIND[self.signal]
        stride = math.ceil(len(value_T) / MAX_POINTS)
        series = bridged(bins(kind.on_scale(value_T), stride))
        rng = np.random.default_rng(self.seed)
        bend = find_bends(series[None, :], rng)[0]
        level = bend.after if bend.end < len(series) - 1 else float(series[-1])
        still = float(np.median(series[-max(3, len(series) // 10) :]))  # at the end of the run
        reached = min(self.sign * level, self.sign * still)
        limit = float(kind.on_scale(np.array([self.limit]))[0])
        if reached - self.sign * bend.before < self.min_change or reached < self.sign * limit:
            return None
        change = find_change(series, rng, sign=self.sign, num_draws=self.num_draws)
        if change.p_value > self.alpha:
            return None
        drawn = find_bends(series[None, :], rng, num_draws=200)[0].onset_B
        first, last = np.quantile(drawn, [0.05, 0.95])
        # A point is the mean of `stride` steps, and the first one that moved may have begun before.
        onset, low, high = (
            min(round((at + 1) * stride) - 1, len(value_T) - 1)
            for at in (bend.onset, min(first, bend.onset) - (stride > 1), max(last, bend.onset) + 1)
        )
        return LevelChange(
            change.p_value,
            onset,
            low,
            high,
            bend.before,
            level,
            level - bend.before - 1.96 * change.error,
            level - bend.before + 1.96 * change.error,
        )

    def _role(self, run: Run, role: str) -> Finding | None:
        value_T = aligned(run.steps, run.ledger(self.signal, role))
        change = self.measure(value_T)
        if change is None:
            return None
        kind = KIND[self.signal]
        at = Onset(*(int(run.steps[index]) for index in (change.onset, change.lower, change.upper)))
        unit = run.ledger(self.signal, role).unit
        unit = "" if unit == "1" else f" {unit}"
        before, after = change.before, change.after
        if kind.scale == "log":
            before, after = math.exp(before), math.exp(after)
        sizes = [change.size, change.size_lower, change.size_upper]
        if kind.scale == "log":
            sizes = [math.exp(size) for size in sizes]
        return Finding(
            self.kind,
            role,
            f"{self.kind} of {role} from {at}: {kind.title} {before:.3g} to {after:.3g}{unit}.",
            sizes[0],
            "times" if kind.scale == "log" else "change",
            "high" if change.p_value <= 0.01 else "moderate",
            at,
            change.p_value,
            (f"p = {change.p_value:.2g} against wander; {self.reason}",),
            sizes[1],
            sizes[2],
        )


@dataclass(frozen=True)
class LevelChange:
    """A change of level; positions are indices of steps, sizes on the signal's scale."""

    p_value: float
    onset: int
    lower: int
    upper: int
    before: float
    after: float
    size_lower: float
    """Approximate 95 % interval of the change, given onset and end."""
    size_upper: float

    @property
    def size(self) -> float:
        return self.after - self.before


ENTROPY_COLLAPSE = LevelRule(
    "entropy collapse",
    "entropy",
    -1,
    math.log(2),
    0.3,
    "below 0.3 nats per token, samples of a group hardly differ and carry little to learn from",
)
LENGTH_BLOW_UP = LevelRule(
    "length blow-up",
    "length_mean",
    1,
    math.log(1.5),
    1.0,
    "half as long again: the token limit and the time per step are next",
)
KL_DRIFT = LevelRule(
    "KL drift",
    "kl",
    1,
    math.log(3),
    0.1,
    "a tenth of a nat per token is ten times what short runs drift, and e times less likely text "
    "every ten tokens",
)
ADVANTAGE_STARVATION = LevelRule(
    "advantage starvation",
    "zero_variance_groups",
    1,
    0.2,
    0.6,
    "groups whose rewards are all equal have no gradient: fewer than 4 in 10 teach",
)
ROLLOUT_GAP = LevelRule(
    "rollout gap",
    "logprob_gap",
    1,
    math.log(3),
    0.05,
    "rounding in bfloat16 explains 0.02 nats per token: the sampler no longer has the trained "
    "weights",
)
LENGTH_COLLAPSE = LevelRule(
    "length collapse",
    "length_mean",
    -1,
    math.log(4),
    math.inf,
    "a quarter of what it was: answers that became terse are half as long",
)
LEVEL_RULES = (
    ENTROPY_COLLAPSE,
    LENGTH_BLOW_UP,
    LENGTH_COLLAPSE,
    KL_DRIFT,
    ADVANTAGE_STARVATION,
    ROLLOUT_GAP,
)
