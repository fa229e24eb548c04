"""Find rewards that stop following what they are paid for, from one step to the next.

As long as a reward is what it was, a role's mean reward follows from its own accuracy, that of its
episodes, and its parse failures; how, is learned from the steps before. A sign that is flipped, a
length that is paid, another grader: the reward leaves that relation at once, while the answers are
still the old ones. Rewards that are no such function of them are not judged.

Legend: T steps, K predictors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from analysis.detectors.shape import Context, Detector, Judged, Kind
from analysis.findings import Finding, Onset
from analysis.signals import aligned, learners
from gradlab.arrays import Floats
from gradlab.store.run import Run

PAID_FOR = ("own_accuracy", "outcome_accuracy", "parse_failures")


@dataclass(frozen=True)
class Detached:
    """Where a reward left its relation."""

    at: int
    """Index of the first step that is out of it."""
    seen: float
    """Mean reward of the steps from there on."""
    expected: float
    """What the relation of before gives for them."""
    error: float
    """Standard error of the difference."""
    spread: float
    """Of the reward around the relation, before."""


DETACHED = Kind(
    "detached reward",
    "mean reward of each role, and its own or its episodes' accuracy, in every step",
    (
        ("read rewarded", "what the role is paid changed from one step to the next"),
        ("begin again", "no option changes what is paid: it is in the code of the reward"),
    ),
    signals=("reward_mean", "reward_std", "zero_variance_groups"),
    dated_by=(),
    has_option=False,
)


@dataclass(frozen=True)
class DetachedRule(Detector):
    """Thresholds of the rule."""

    kinds: tuple[Kind, ...] = (DETACHED,)
    min_before: int = 12
    """Steps that a relation is learned from."""
    max_before: int = 40
    after: int = 5
    """Steps that have to be out of it."""
    at_once: float = 0.7
    """Share of the difference that the first three of them show: training moves rewards slowly."""
    min_part: float = 0.15
    """Smallest difference, relative to the largest reward of the run before."""
    min_errors: float = 8.0
    """The same in standard errors."""
    max_spread: float = 0.5
    """Largest spread around the relation, over that of the reward itself: more is no relation."""

    def judge(self, context: Context) -> Judged:
        """One finding per role whose reward left its relation."""
        run, findings = context.run, []
        for role in learners(run):
            reward_T = aligned(run.steps, run.ledger("reward_mean", role))
            paid_KT = np.stack([aligned(run.steps, run.ledger(name, role)) for name in PAID_FOR])
            found = self.measure(reward_T, paid_KT)
            if found is not None:
                findings.append(self._finding(run, role, found))
        return Judged(tuple(findings))

    def measure(self, reward_T: Floats, paid_KT: Floats) -> Detached | None:
        """The first step at which the reward leaves its relation; None if it never does."""
        if len(reward_T) < self.min_before + self.after:
            return None
        kept_K = [k for k in paid_KT if np.isfinite(k).all() and np.ptp(k) > 0]
        if not kept_K or not np.isfinite(reward_T).all():
            return None
        design_T = np.stack([np.ones(len(reward_T)), *kept_K], axis=1)
        for at in range(self.min_before, len(reward_T) - self.after + 1):
            found = self._at(reward_T, design_T, at)
            if found is not None:
                return found
        return None

    def _at(self, reward_T: Floats, design_T: Floats, at: int) -> Detached | None:
        before = slice(max(at - self.max_before, 0), at)
        weights, *_ = np.linalg.lstsq(design_T[before], reward_T[before], rcond=1e-6)
        left_T = reward_T - design_T @ weights
        freedom = max(at - before.start - design_T.shape[1], 1)
        spread = math.sqrt(float((left_T[before] ** 2).sum()) / freedom)
        varied = float(np.std(reward_T[before]))
        if varied < 1e-6 or spread > self.max_spread * varied:
            return None  # a reward that is always the same follows nothing
        after_T = left_T[at : at + self.after]
        size = float(after_T.mean())
        error = max(spread * math.sqrt(1 / self.after + 1 / freedom), 1e-3 * abs(size))
        smallest = self.min_part * float(np.abs(reward_T[:at]).max())
        first = float(after_T[:3].mean()) * np.sign(size)
        if (
            abs(size) < max(smallest, self.min_errors * error)
            or first < self.at_once * abs(size)
            or float(after_T[0]) * np.sign(size) < 0.5 * self.at_once * abs(size)
        ):
            return None
        seen = float(reward_T[at : at + self.after].mean())
        return Detached(at, seen, seen - size, error, spread)

    def _finding(self, run: Run, role: str, found: Detached) -> Finding:
        step, last = int(run.steps[found.at]), int(run.steps[found.at - 1])
        size = found.seen - found.expected
        return Finding(
            "detached reward",
            role,
            f"From step {step} on the reward of {role} no longer follows its answers: "
            f"{found.seen:.2f} on average, where {found.expected:.2f} would be expected of them.",
            size,
            "reward",
            "high",
            Onset(step, last, step),
            evidence=(
                "expected from its own and its episodes' accuracy and its parse failures, which "
                f"gave its reward to within {found.spread:.2g} before; the reward changed, not "
                "the answers",
            ),
            lower=size - 1.96 * found.error,
            upper=size + 1.96 * found.error,
        )
