"""Find signals of a role that left their level for the worse, lastingly and beyond their wander.

One rule, five detectors: entropy collapse, length blow-up, KL drift, advantage starvation and a gap
between sampler and trainer that opens. (Formats that break are `analysis.detectors.breakdown`'s.)

Legend: T steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from analysis.detectors.measurement import gap_limit, is_precise
from analysis.detectors.shape import Context, Detector, Judged, Kind
from analysis.findings import Confidence, Finding, Onset
from analysis.series.bend import bins, bridged, find_bends
from analysis.series.trend import movement
from analysis.series.wander import MAX_POINTS, find_change
from analysis.signals import KIND, MIN_FINITE, aligned
from gradlab.store.run import Run


@dataclass(frozen=True)
class LevelRule(Detector):
    """When a change of one signal is a finding: size, place and p-value are all needed."""

    signal: str = ""
    """Field of `RoleLedger`."""
    sign: int = 1
    """1: a rise is bad; -1: a fall."""
    min_change: float = math.inf
    """On the scale of the signal (`analysis.signals`): log 2 is a factor of 2, 0.2 is 20 points."""
    limit: float = math.inf
    """Level, in the signal's unit, that has to be reached."""
    reason: str = ""
    """Why this size and this level."""
    trend_change: float = 0.0
    """The same for a smooth way from the start on: training that works passes the limits of an
    event on it. 0: this signal has no such way, and every change counts."""
    trend_limit: float = 0.0
    trend_reason: str = ""
    is_outcome: bool = False
    """Follows from rewards: no finding where accuracy fell in the same steps."""
    alpha: float = 0.05
    """Largest p-value against wander, before the correction for everything tested in the run."""
    event_alpha: float = 0.005
    """Largest p-value of an event against every smooth way (`analysis.series.trend`)."""
    min_steps: int = 30
    """Below, wander and a change cannot be told apart."""
    num_draws: int = 299
    """Simulated series: the p-value is continued beyond them by an exponential tail."""
    seed: int = 0
    """Of the draws, so that a diagnosis can be repeated."""

    @property
    def kind(self) -> str:
        """Of the finding, by name."""
        return self.kinds[0].name

    def judge(self, context: Context) -> Judged:
        """One finding per role whose signal left its level."""
        run, rule = context.run, self
        if self.signal == "logprob_gap" and is_precise(run):
            reason = "rounding in float32 explains 1e-5 nats per token: the sampler no longer has "
            rule = replace(self, limit=gap_limit(run), reason=f"{reason}the trained weights")
        return Judged(tuple(f for role in run.roles if (f := rule._role(run, role))))

    def num_tested(self, run: Run) -> int:
        """Roles with enough of the signal."""
        return sum(
            bool(np.isfinite(aligned(run.steps, run.ledger(self.signal, role))).any())
            for role in run.roles
        )

    def measure(self, value_T: np.ndarray) -> LevelChange | None:
        """Judge one series; None: it kept its level, went a healthy way, or is too short."""
        if len(value_T) < self.min_steps or np.isfinite(value_T).mean() < MIN_FINITE:
            return None
        kind = KIND[self.signal]
        stride = math.ceil(len(value_T) / MAX_POINTS)
        series = bridged(bins(kind.on_scale(value_T), stride))
        rng = np.random.default_rng(self.seed)
        bend = find_bends(series[None, :], rng)[0]
        if not self._reached(
            series, bend.before, bend.after, bend.end, self.min_change, self.limit
        ):
            return None
        change = find_change(series, rng, sign=self.sign, num_draws=self.num_draws)
        if change.p_value > self.alpha:
            return None
        did = movement(series, min_change=0.5 * self.min_change, alpha=self.event_alpha)
        is_trend = did.change != "event" or self.sign * did.size < 0.5 * self.min_change
        if is_trend and self.trend_change:
            ends = did.first, did.last
            if not self._reached(
                series, *ends, len(series) - 1, self.trend_change, self.trend_limit
            ):
                return None
        if not is_trend:
            bend = find_bends((series - did.smooth_T)[None, :], rng)[0]
        before = bend.before + (0.0 if is_trend else float(did.smooth_T[int(bend.onset)]))
        after = bend.after + (0.0 if is_trend else float(did.smooth_T[int(bend.end)]))
        if bend.end >= len(series) - 1:
            after = float(series[-1])
        taken = 0.0 if is_trend else did.smooth_T
        drawn = find_bends((series - taken)[None, :], rng, num_draws=200)[0].onset_B
        first, last = np.quantile(drawn, [0.05, 0.95])
        # A point is the mean of `stride` steps, and the first one that moved may have begun before.
        onset, low, high = (
            min(max(round((at + 1) * stride) - 1, 0), len(value_T) - 1)
            for at in (bend.onset, min(first, bend.onset) - (stride > 1), max(last, bend.onset) + 1)
        )
        return LevelChange(
            change.p_value,
            onset,
            low,
            high,
            before,
            after,
            after - before - 1.96 * change.error,
            after - before + 1.96 * change.error,
            is_trend,
        )

    def _reached(
        self,
        series: np.ndarray,
        before: float,
        after: float,
        end: float,
        change: float,
        limit: float,
    ) -> bool:
        """Is the level far enough away, and is it still there when the run ends?"""
        level = after if end < len(series) - 1 else float(series[-1])
        still = float(np.median(series[-max(3, len(series) // 10) :]))
        reached = min(self.sign * level, self.sign * still)
        on_scale = float(KIND[self.signal].on_scale(np.array([limit]))[0])
        return reached - self.sign * before >= change and reached >= self.sign * on_scale

    def _role(self, run: Run, role: str) -> Finding | None:
        value_T = aligned(run.steps, run.ledger(self.signal, role))
        change = self.measure(value_T)
        if change is None or (self.is_outcome and _fell_with_it(run, role, change)):
            return None
        kind = KIND[self.signal]
        at = Onset(*(int(run.steps[index]) for index in (change.onset, change.lower, change.upper)))
        unit = run.ledger(self.signal, role).unit
        unit = "" if unit == "1" else f" {unit}"
        before, after = change.before, change.after
        sizes = [change.size, change.size_lower, change.size_upper]
        if kind.scale == "log":
            before, after = math.exp(before), math.exp(after)
            sizes = [math.exp(size) for size in sizes]
        confidence: Confidence = "high" if change.p_value <= 0.01 else "moderate"
        reason, how = self.reason, ""
        if change.is_trend:
            how = " steadily,"
            if self.trend_change:  # how fast is healthy is a matter of degree
                confidence, reason = "low", self.trend_reason
        return Finding(
            self.kind,
            role,
            f"{self.kind} of {role} from {at}:{how} {kind.title} {before:.3g} to "
            f"{after:.3g}{unit}.",
            sizes[0],
            "times" if kind.scale == "log" else "change",
            confidence,
            at,
            change.p_value,
            (f"p = {change.p_value:.2g} against wander; {reason}",),
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
    is_trend: bool = False
    """Smooth from the start on: the onset is that of the best ramp through it."""

    @property
    def size(self) -> float:
        return self.after - self.before


def _fell_with_it(run: Run, role: str, change: LevelChange) -> bool:
    """Did the role's accuracy in training, or its reward, fall in the steps in which this rose?"""
    for name in ("own_accuracy", "reward_mean"):
        value_T = aligned(run.steps, run.ledger(name, role))
        before = value_T[: max(change.lower, 1)][-SIDE:]
        after = value_T[change.upper + 1 :][: 2 * SIDE]
        before, after = before[np.isfinite(before)], after[np.isfinite(after)]
        if min(len(before), len(after)) < 3:
            continue
        noise = math.sqrt(float(np.var(before)) / len(before) + float(np.var(after)) / len(after))
        return float(before.mean() - after.mean()) > max(KIND[name].min_change, 3 * noise)
    return False


SIDE = 20
"""Steps before a change, and half of those after it, in which accuracy is compared."""

ENTROPY_COLLAPSE = LevelRule(
    (
        Kind(
            "entropy collapse",
            "token entropy of each role, over at least 30 steps",
            (("entropy", "samples that hardly differ carry no advantage"),),
            signals=("entropy", "zero_variance_groups", "reward_std"),
            replay="entropy",
        ),
    ),
    "entropy",
    -1,
    math.log(2),
    0.3,
    "below 0.3 nats per token, samples of a group hardly differ and carry little to learn from",
    math.log(10),
    0.03,
    "it falls in any training, but not to a tenth, and to 0.03 nats: nothing is sampled any more",
)
LENGTH_BLOW_UP = LevelRule(
    (
        Kind(
            "length blow-up",
            "response lengths of each role, over at least 30 steps",
            (("anchor", "longer text costs steps and runs into the token limit"),),
            signals=("length_mean", "truncated"),
            replay="anchor",
        ),
    ),
    "length_mean",
    1,
    math.log(1.5),
    1.0,
    "half as long again: the token limit and the time per step are next",
    math.log(2.5),
    1.0,
    "answers grow while training works; two and a half times is more than usual: look at the limit",
)
KL_DRIFT = LevelRule(
    (
        Kind(
            "KL drift",
            "KL to the reference of each role, over at least 30 steps",
            (("anchor", "it has left the reference"),),
            signals=("kl", "drift", "entropy"),
            replay="anchor",
        ),
    ),
    "kl",
    1,
    math.log(3),
    0.1,
    "a tenth of a nat per token is ten times what short runs drift, and e times less likely text "
    "every ten tokens",
    math.log(10),
    1.0,
    "KL grows in any training, but a nat per token is another model",
)
ADVANTAGE_STARVATION = LevelRule(
    (
        # No suspect: groups without spread follow from rewards, by arithmetic.
        Kind(
            "advantage starvation",
            "the share of groups without reward spread, over at least 30 steps",
            (("more samples", "groups whose rewards are all equal have no gradient"),),
        ),
    ),
    "zero_variance_groups",
    1,
    0.2,
    0.6,
    "groups whose rewards are all equal have no gradient: fewer than 4 in 10 teach",
    0.4,
    0.8,
    "they become more as accuracy nears 0 or 1, but above 80 % there is nothing left to learn from",
    is_outcome=True,
)
ROLLOUT_GAP = LevelRule(
    (
        Kind(
            "rollout gap",
            "log-probs of sampler and trainer, over at least 30 steps",
            (("check sync", "rollouts no longer come from the weights that are trained"),),
            signals=("logprob_gap", "ratio_std", "clip_fraction"),
        ),
    ),
    "logprob_gap",
    1,
    math.log(3),
    0.05,
    "rounding in bfloat16 explains 0.02 nats per token: the sampler no longer has the trained "
    "weights",
)
LENGTH_COLLAPSE = LevelRule(
    (
        Kind(
            "length collapse",
            "response lengths of each role, over at least 30 steps",
            (
                ("read rewarded", "something pays for silence"),
                ("anchor", "a KL term holds the length of the answers of the reference"),
                ("lower rate", "lengths collapse under long steps"),
            ),
        ),
    ),
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
