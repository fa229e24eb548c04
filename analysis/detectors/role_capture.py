"""Decide whether one role took over a policy that several roles share, and since when.

Capture (our definition): the role's share of the step mass is far above its share of the loss
weight, for long, and it was not so from the start. A share that is large from the beginning is an
asymmetry of the roles (supervisors often have 5-8 times the gradient norm), reported as dominance.

Everything happens in log-odds, D = logit(share) - logit(weight): a factor of 3 means the same at
every number of roles (0.75 of two, 0.60 of three, 0.50 of four with equal weights).

Legend: T steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from analysis.detectors.consequences import consequences
from analysis.detectors.exchanged import with_exchange
from analysis.detectors.shape import Context, Detector, Judged, Kind
from analysis.findings import Confidence, Finding, NotJudged, Onset, percent
from analysis.series.bend import bins, bridged, find_bends
from analysis.series.stretches import binned, correlation_time, hysteresis, lasting, running_median
from analysis.series.wander import MAX_POINTS, find_change
from analysis.signals import aligned, routed
from gradlab.arrays import Floats
from gradlab.store.run import Run


@dataclass(frozen=True)
class Takeover:
    """What the rule measured for one role."""

    window: int
    """Steps of the running median, and shortest episode."""
    memory: float
    """Correlation time tau of the log-odds, steps."""
    excess_T: Floats
    """Running median of D."""
    base: float
    """Median D of the beginning."""
    dominant_T: NDArray[np.bool_]
    captured_T: NDArray[np.bool_]
    onset: int | None
    """Index of the step where the takeover begins; None without capture."""
    onset_lower: int = 0
    onset_upper: int = 0
    p_value: float = math.nan
    """Of a rise of D as large against wander alone; NaN without capture."""

    def interval(self, held_T: NDArray[np.bool_]) -> tuple[float, float]:
        """Approximate 95 % interval of the odds ratio: the median's, thinned by the memory."""
        held = self.excess_T[held_T]
        # 1.25 / sqrt(n) sd is the error of a median of n independent normal values.
        error = 1.25 * float(np.std(held)) * math.sqrt(self.memory * self.window / len(held))
        middle = float(np.median(held))
        return math.exp(middle - 1.96 * error), math.exp(middle + 1.96 * error)


CAPTURE = Kind(
    "capture",
    "gradient norms by role in a policy that roles share, over at least 40 steps",
    (
        ("cap share", "takes away the capture and as little else as possible"),
        ("anchor", "its gradient owns the shared weights; a KL term on this role alone slows it"),
        ("own adapter", "without a shared policy nothing can be captured"),
    ),
    signals=("share", "pull", "update", "grad_norm", "conflict", "update_norm", "drift"),
    dated_by=("share", "pull", "update"),
    link="by",
    is_of_policy=True,
    replay="cap share",
    family_share=0.5,
    term=(
        r"\bcaptur",
        "One role's gradient takes over a policy that several share, more than its share of the "
        "loss.",
    ),
)
DOMINANCE = Kind(
    "dominance",
    "the same as for capture",
    describes=True,
    raises_alarm=False,
    term=(
        r"\bdominan|\bdominates",
        "One role has most of a shared policy's gradient from the start.",
    ),
)


@dataclass(frozen=True)
class CaptureRule(Detector):
    """Thresholds; measured operating characteristics in bench/results/detectors.md."""

    kinds: tuple[Kind, ...] = (CAPTURE, DOMINANCE)
    enter: float = 3.0
    """Odds of the share over odds of the weight that begin dominance."""
    leave: float = 1.5
    """Odds that end it: well below, so that an episode does not flicker."""
    shift_enter: float = 2.5
    """Rise of those odds over the run's beginning that makes dominance a capture."""
    shift_leave: float = 1.6
    """Rise that ends it."""
    min_share: float = 0.5
    """Share of the step mass: a role that takes over has the majority."""
    min_window: int = 15
    """Steps of the running median, and of the shortest episode: a burst of 10 is none."""
    min_steps: int = 40
    """Below, there is no beginning to compare with: 20 steps of it, and two windows."""
    alpha: float = 0.05
    """Largest p-value of the rise: shares that wander slowly cross any threshold for a while."""
    num_draws: int = 299
    """Simulated series: the p-value is continued beyond them by an exponential tail."""
    seed: int = 0
    """Of the draws, so that a diagnosis can be repeated."""

    def num_tested(self, run: Run) -> int:
        """Roles that share a policy with another one that learns."""
        policies = list(routed(run).values())
        return sum(policies.count(name) > 1 for name in policies)

    def thresholds(self) -> dict[str, float]:
        return {"capture: odds ratio": self.enter, "capture: rise of the odds": self.shift_enter}

    def judge(self, context: Context) -> Judged:
        """One finding per role that captured, or dominates, a shared policy."""
        run = context.run
        shared = [
            (policy.name, roles)
            for policy in run.policies
            if len(roles := [r for r, name in routed(run).items() if name == policy.name]) > 1
        ]
        unjudged = _apart(run)
        if not shared:
            return Judged(not_judged=tuple(unjudged))
        if len(run.steps) < self.min_steps:
            why = f"{len(run.steps)} steps recorded; the rule needs {self.min_steps}"
            short = NotJudged("role capture", why, "train longer")
            return Judged(not_judged=(*unjudged, short))
        findings: list[Finding] = []
        open_questions = unjudged
        shares, updates = run.step_mass("share"), run.step_mass("update")
        pulls = run.step_mass("pull")
        for policy, roles in shared:
            for role in roles:
                share_T = aligned(run.steps, shares[role])
                weight_T = aligned(run.steps, run.ledger("loss_weight", role))
                if not np.isfinite(weight_T).any():
                    weight_T = np.full(len(share_T), 1.0 / len(roles))
                    open_questions.append(
                        NotJudged(
                            f"the loss weight of {role}",
                            "not recorded, so equal weights were taken as capture's null",
                            "record RoleLedger.loss_weight",
                        )
                    )
                known = np.isfinite(share_T) & np.isfinite(weight_T)
                if known.sum() < self.min_steps:
                    why = f"{int(known.sum())} steps with its share; {self.min_steps} are needed"
                    open_questions.append(
                        NotJudged(f"capture by {role}", why, "tag the role's rows")
                    )
                    continue
                takeover = self.measure(share_T[known], weight_T[known])
                masses = _Masses(
                    run.steps[known],
                    share_T[known],
                    aligned(run.steps, updates[role])[known],
                    aligned(run.steps, pulls[role])[known],
                )
                if takeover.p_value > self.alpha:
                    why = (
                        "its share crossed the thresholds, but shares wander about as much by "
                        f"themselves (p = {takeover.p_value:.2f})"
                    )
                    open_questions.append(NotJudged(f"capture by {role}", why, "train longer"))
                    continue
                finding = self._finding(run, policy, role, roles, takeover, masses)
                if finding:
                    findings.append(with_exchange(run, finding))
        return Judged(tuple(findings), tuple(open_questions))

    def measure(self, share_T: Floats, weight_T: Floats) -> Takeover:
        """Apply the rule to one role's share and loss weight, both without gaps."""
        num_steps = len(share_T)
        odds_T = logit(np.clip(share_T, 0.005, 0.995)) - logit(np.clip(weight_T, 0.005, 0.995))
        memory = correlation_time(odds_T)
        longest = max(self.min_window, num_steps // 8)
        window = int(np.clip(math.ceil(5 * memory), self.min_window, longest))
        excess_T = running_median(odds_T, window)
        base = float(np.median(odds_T[: max(20, num_steps // 5)]))
        dominant_T = hysteresis(excess_T, math.log(self.enter), math.log(self.leave))
        dominant_T &= running_median(share_T, window) >= self.min_share
        shifted_T = hysteresis(
            excess_T - base, math.log(self.shift_enter), math.log(self.shift_leave)
        )
        captured_T = lasting(dominant_T & shifted_T, window)
        dominant_T = lasting(dominant_T, window)
        if not captured_T.any():
            return Takeover(window, memory, excess_T, base, dominant_T, captured_T, None)
        onset, lower, upper = self._onset(odds_T, int(np.argmax(captured_T)), window)
        series = bins(odds_T, math.ceil(num_steps / MAX_POINTS))
        change = find_change(
            series, np.random.default_rng(self.seed), sign=1, num_draws=self.num_draws
        )
        return Takeover(
            window,
            memory,
            excess_T,
            base,
            dominant_T,
            captured_T,
            onset,
            lower,
            upper,
            change.p_value,
        )

    def _onset(self, odds_T: Floats, entry: int, window: int) -> tuple[int, int, int]:
        """Where D began to rise: the running median enters late, so a ramp is fitted up to it."""
        stop = min(entry + 2 * window, len(odds_T))
        stride = max(1, math.ceil(stop / 100))
        series = binned(odds_T[:stop], stride)
        bend = find_bends(
            series[None, :], np.random.default_rng(self.seed), num_draws=200, block=8
        )[0]
        if bend.after <= bend.before:
            return entry, max(entry - window, 0), entry
        first, last = np.quantile(bend.onset_B, [0.05, 0.95])
        onset = min(round(bend.onset * stride), entry)
        upper = max(min(math.ceil((last + 1) * stride), entry), onset)
        return onset, min(round(first * stride), onset), upper

    def _finding(
        self,
        run: Run,
        policy: str,
        role: str,
        roles: list[str],
        takeover: Takeover,
        masses: _Masses,
    ) -> Finding | None:
        if not takeover.dominant_T.any():
            return None
        if takeover.onset is None:
            return _dominance(policy, role, takeover, masses)
        onset, held = takeover.onset, takeover.captured_T
        before = np.arange(len(held)) < max(onset, 1)
        factor = math.exp(float(np.median(takeover.excess_T[held])))
        share = float(np.median(masses.share_T[held]))
        evidence = [
            f"share of step mass {percent(float(np.median(masses.share_T[before])))} before, "
            f"{percent(share)} while captured: {factor:.1f} times the odds of its loss weight, "
            f"for {int(held.sum())} steps (p = {takeover.p_value:.2g} against wander)",
            *masses.beside(before, held),
        ]
        worse = consequences(run, role, roles, int(masses.step_T[onset]), self.alpha)
        evidence += worse or ["no harm to the other roles was seen: a takeover, not yet a failure"]
        confidence: Confidence = "high" if worse and takeover.p_value <= 0.01 else "moderate"
        if masses.update_disagrees(held):
            confidence = "low"
            evidence.append("its share of the optimizer step disagrees: Adam evened it out")
        others = ", ".join(r for r in roles if r != role)
        at = Onset(
            int(masses.step_T[onset]),
            int(masses.step_T[takeover.onset_lower]),
            int(masses.step_T[takeover.onset_upper]),
        )
        summary = (
            f"{role} captured policy '{policy}' from {at}: it holds {percent(share)} of the step "
            f"mass, {others} {'is' if len(roles) == 2 else 'are'} starved."
        )
        lower, upper = takeover.interval(held)
        return Finding(
            "capture",
            role,
            summary,
            factor,
            "odds ratio",
            confidence,
            at,
            takeover.p_value,
            tuple(evidence),
            lower,
            upper,
        )


@dataclass(frozen=True)
class _Masses:
    """The three measures of one role's weight in its policy, on the steps where it is known."""

    step_T: NDArray[np.int64]
    share_T: Floats
    update_T: Floats
    pull_T: Floats

    def beside(self, before: NDArray[np.bool_], held: NDArray[np.bool_]) -> list[str]:
        """Sentences on pull and update share."""
        sentences = []
        for name, value_T in (
            ("pull", self.pull_T),
            ("share of the optimizer step", self.update_T),
        ):
            if np.isfinite(value_T[held]).any() and np.isfinite(value_T[before]).any():
                first, last = np.nanmedian(value_T[before]), np.nanmedian(value_T[held])
                sentence = f"{name} {percent(float(first))} before, {percent(float(last))}"
                if not np.array_equal(before, held):
                    series = bridged(bins(value_T, math.ceil(len(value_T) / MAX_POINTS)))
                    change = find_change(series, np.random.default_rng(0), sign=1)
                    sentence += f" (p = {change.p_value:.2g})"
                sentences.append(sentence)
            else:
                sentences.append(f"{name} was not recorded")
        return sentences

    def update_disagrees(self, held: NDArray[np.bool_]) -> bool:
        known = held & np.isfinite(self.update_T)
        return bool(known.any() and np.median(self.update_T[known]) < 0.5)


def _dominance(policy: str, role: str, takeover: Takeover, masses: _Masses) -> Finding:
    held = takeover.dominant_T
    factor = math.exp(float(np.median(takeover.excess_T[held])))
    share = percent(float(np.median(masses.share_T[held])))
    return Finding(
        "dominance",
        role,
        f"{role} dominates policy '{policy}' ({share} of the step mass) without having taken it "
        "over: an asymmetry of the roles, not a failure by itself.",
        factor,
        "odds ratio",
        "low" if masses.update_disagrees(held) else "moderate",
        evidence=(
            f"{factor:.1f} times the odds of its loss weight in {int(held.sum())} of "
            f"{len(held)} steps; at the beginning {math.exp(takeover.base):.1f} times",
            *masses.beside(held, held),
        ),
        lower=takeover.interval(held)[0],
        upper=takeover.interval(held)[1],
    )


def _apart(run: Run) -> list[NotJudged]:
    """Roles that share a policy with others, but with some of their agents only."""
    whole, open_questions = routed(run), []
    for policy in run.policies:
        roles = dict.fromkeys(agent.role for agent in policy.agents)
        apart = [role for role in roles if role not in whole]
        if len(roles) > 1 and apart:
            open_questions.append(
                NotJudged(
                    f"capture in policy '{policy.name}'",
                    f"other agents of {', '.join(apart)} train other policies, so that its reward "
                    "and loss weight are of more than one policy",
                    "give all agents of a role one policy (--routing)",
                )
            )
    return open_questions
