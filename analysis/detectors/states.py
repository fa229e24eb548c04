"""Find what is wrong as a state, not as a change: not finite, all cut, nothing to learn from.

Rules for changes need a level before. These need none: a run can be dead from its first step. All
are counts of what was recorded, without noise, and have no p-value.

Legend: T steps, U updates of a policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.detectors.shape import Context, Detector, Judged, Kind
from analysis.findings import Finding, Onset, percent
from analysis.signals import aligned
from gradlab.arrays import Floats
from gradlab.baselines import CENTRED
from gradlab.records import Signal
from gradlab.store.run import Run

UPDATE_METRICS = ("grad_norm", "loss", "update_norm")
LEDGER_METRICS = ("kl", "entropy", "ratio_std", "reward_mean")
VITAL = ("grad_norm", "grad_norm_total", "loss", "actor/pg_loss", "actor/grad_norm")
"""Of these a single value that is not finite is news, since an update was lost or made with it."""
NOT_FINITE = "not_finite"
"""Key of an imported run's configuration: metric -> first, last, count and logged."""


@dataclass(frozen=True)
class Unfit:
    """One metric with values that are not finite."""

    name: str
    first: int
    """Step."""
    last: int
    count: int
    num_after: int
    """Values that were recorded from `first` on."""


UNFIT = Kind(
    "not finite",
    "loss, norms and ledger values of every step, NaN included",
    (("lower rate", "numbers overflow after long steps"), ("clip", "as those do")),
    beside_fall="Values stopped being finite then (see the finding): no update after that means "
    "anything.",
)


@dataclass(frozen=True)
class NotFiniteRule(Detector):
    """Values that were finite, and are so no longer."""

    kinds: tuple[Kind, ...] = (UNFIT,)
    min_before: int = 3
    """Finite values before the first that is not: without them, it was never measured."""
    min_share: float = 0.9
    """Of the values from the first one on: then it is a state. Less is told of loss and norm
    alone."""
    min_effect: float = 5.0
    """Change of the outcome in its own noise that is told beside it."""
    near: int = 20
    """Steps around it in which the outcome may have changed."""

    def judge(self, context: Context) -> Judged:
        """At most one finding per run."""
        run = context.run
        if not len(run.steps):
            return Judged()
        found = [*self._imported(run), *self._recorded(run)]
        lasting = [one for one in found if one.count >= self.min_share * one.num_after]
        if lasting:
            return Judged((self._lasting(run, lasting),))
        passing = [one for one in found if one.name.split(" of ")[0] in VITAL]
        return Judged((self._passing(passing),) if passing else ())

    def _lasting(self, run: Run, found: list[Unfit]) -> Finding:
        first = min(one.first for one in found)
        with_it = [one.name for one in found if one.first == first]
        later = sorted((one for one in found if one.first > first), key=lambda one: one.first)
        is_in = "is" if len(with_it) == 1 else "are"
        beside = self._outcome(run, first)
        evidence = [f"{one.name} from step {one.first} on" for one in later]
        evidence.append(
            f"{max(one.count for one in found)} values from step {first} to "
            f"{max(one.last for one in found)}: an overflow, a division by zero or a logarithm of "
            f"zero in the step before; updates that are not finite destroy the parameters"
        )
        return Finding(
            "not finite",
            "run",
            f"{_listed(with_it)} {is_in} not finite from step {first} on{beside}.",
            float(max(one.count for one in found)),
            "values",
            "high",
            Onset(first, first, first),
            evidence=tuple(evidence),
        )

    def _passing(self, found: list[Unfit]) -> Finding:
        first, last = min(one.first for one in found), max(one.last for one in found)
        count = max(one.count for one in found)
        total = max(one.num_after for one in found)
        when = f"at step {first}" if first == last else f"in {count} of {total} updates from step "
        when += "" if first == last else f"{first} on, last at {last}"
        names = [one.name for one in found]
        return Finding(
            "not finite",
            "run",
            f"{_listed(names)} {'is' if len(names) == 1 else 'are'} not finite {when}.",
            float(count),
            "values",
            "high",
            Onset(first, first, first),
            evidence=("finite again afterwards: was the update skipped, or made with it?",),
        )

    def _imported(self, run: Run) -> list[Unfit]:
        """What the importer found in the log: NaN that was logged is no absence."""
        logged: Mapping[str, Any] = run.meta.config.get(NOT_FINITE) or {}
        found = []
        for name, entry in logged.items():
            first, last = int(entry["first"]), int(entry["last"])
            count, total = int(entry["count"]), int(entry["logged"])
            if first > run.steps[-1] or total - count < self.min_before:
                continue  # after what is looked at; or a column that was never filled
            share_after = float((run.steps >= first).mean())
            num_after = max(count, round(share_after * total))
            found.append(Unfit(name, first, min(last, int(run.steps[-1])), count, num_after))
        return found

    def _recorded(self, run: Run) -> list[Unfit]:
        """The same of our own record, where a NaN counts only if something else was measured."""
        found = []
        several = len(run.policies) > 1
        for policy in run.policies:
            if policy.mode == "imported":
                continue
            rows = np.asarray(run.update_metric("rows", policy.name).value_T)
            for name in UPDATE_METRICS:
                signal = run.update_metric(name, policy.name)
                of = f" of policy '{policy.name}'" if several else ""
                found += self._series(name + of, signal, ~(rows == 0))
        for role in run.roles:
            if any(policy.mode == "imported" for policy in run.policies_of(role)):
                continue
            spoke = np.asarray(run.ledger("turns", role).value_T) > 0
            learned = spoke & (np.asarray(run.ledger("optimizer_steps", role).value_T) > 0)
            for name in LEDGER_METRICS:
                of = f" of {role}" if len(run.roles) > 1 else ""
                is_there = spoke if name == "reward_mean" else learned
                found += self._series(name + of, run.ledger(name, role), is_there)
        return found

    def _series(self, name: str, signal: Signal, is_there: NDArray[np.bool_]) -> list[Unfit]:
        value = np.asarray(signal.value_T, dtype=np.float64)[is_there]
        step = signal.step_T[is_there]
        bad = np.flatnonzero(~np.isfinite(value))
        if not len(bad) or bad[0] < self.min_before:
            return []
        first, last = int(step[bad[0]]), int(step[bad[-1]])
        return [Unfit(name, first, last, len(bad), len(value) - int(bad[0]))]

    def _outcome(self, run: Run, step: int) -> str:
        """What happened to the mean reward around this step, in words; '' if nothing did."""
        value_T = aligned(run.steps, run.run_metric("reward_mean"))
        known = np.flatnonzero(np.isfinite(value_T) & (abs(run.steps - step) <= self.near))
        value, at = value_T[known], run.steps[known]
        if len(value) < 8:
            return ""
        splits = range(3, len(value) - 1)
        spread = [value[:s].var() * s + value[s:].var() * (len(value) - s) for s in splits]
        split = splits[int(np.argmin(spread))]
        before, after = float(np.median(value[:split])), float(np.median(value[split:]))
        noise = float(np.median(np.abs(np.diff(value[:split])))) / 0.954  # of differences, to sd
        if abs(after - before) <= max(self.min_effect * noise, 0.01 * abs(before)):
            return ""
        return (
            f"; mean reward {before:.2f} -> {after:.2f} between steps {at[split - 1]} and "
            f"{at[split]}"
        )


ALL_CUT = Kind(
    "all cut",
    "the share of responses that reach the token limit",
    (
        ("raise limit", "a response that is cut can hardly be right"),
        ("mask cut", "else a cut response is trained away from, as if it were wrong"),
    ),
)


@dataclass(frozen=True)
class CutRule(Detector):
    """Roles whose responses reach the token limit, nearly all of them, from the first step on."""

    kinds: tuple[Kind, ...] = (ALL_CUT,)
    min_share: float = 0.9
    """Of the responses, in the median step and in the median of the first steps."""
    min_steps: int = 5
    """Fewer show a bad start, not a state."""

    def judge(self, context: Context) -> Judged:
        """One finding per role."""
        run, findings = context.run, []
        for role in run.roles:
            share_T = aligned(run.steps, run.ledger("truncated", role))
            known = np.isfinite(share_T)
            share = share_T[known]
            if len(share) < self.min_steps or np.median(share) < self.min_share:
                continue
            if np.median(share[: max(self.min_steps, len(share) // 10)]) < self.min_share:
                continue  # it became so: a change, which has a date
            smallest, usual = float(share.min()), float(np.median(share))
            of = f" of {role}" if len(run.roles) > 1 else ""
            told = f"{percent(usual)} of the responses{of} reach the token limit in the median step"
            if smallest >= self.min_share:
                more = "" if smallest == usual else " or more"
                told = (
                    f"{percent(smallest)}{more} of the responses{of} reach the token limit in "
                    "every step"
                )
            findings.append(
                Finding(
                    "all cut",
                    role,
                    f"{told}{self._signal(run, role)}: raise the limit.",
                    usual,
                    "share of responses",
                    "high",
                    evidence=(
                        f"{len(share)} steps, least {percent(smallest)}, from the first one on",
                        "what is cut has no answer yet, or no end: it can hardly earn a reward",
                    ),
                    lower=smallest,
                    upper=float(share.max()),
                )
            )
        return Judged(tuple(findings))

    def _signal(self, run: Run, role: str) -> str:
        """What that means for the reward, as far as it is recorded and true."""
        reward = _known(aligned(run.steps, run.ledger("reward_mean", role)))
        flat = _known(aligned(run.steps, run.ledger("zero_variance_groups", role)))
        words = []
        if len(reward) and np.ptp(reward) == 0:
            words.append("no reward" if reward[0] == 0 else f"the same reward ({reward[0]:.3g})")
        if len(flat) and np.median(flat) >= 0.99:
            words.append("no signal")
        return "; " + ", ".join(words) if words else ""


NO_SPREAD = Kind(
    "no spread",
    "the share of groups without reward spread",
    (
        ("other problems", "groups that are all right or all wrong have no gradient"),
        ("more samples", "a larger group is all alike less often"),
    ),
    told_by=("all cut",),  # what is all cut has no reward spread either
)


@dataclass(frozen=True)
class NoSpreadRule(Detector):
    """Roles whose groups have no reward spread from the first step on: nothing to learn from."""

    kinds: tuple[Kind, ...] = (NO_SPREAD,)
    min_share: float = 0.95
    """Of the groups, in the median step and in the median of the first steps."""
    min_steps: int = 5

    def judge(self, context: Context) -> Judged:
        """One finding per role."""
        run, findings = context.run, []
        if run.meta.config.get("advantage", "grpo") not in CENTRED:
            return Judged()  # equal rewards are something to learn from
        for role in run.roles:
            if role in run.meta.frozen:
                continue  # nothing is to be learned
            share = _known(aligned(run.steps, run.ledger("zero_variance_groups", role)))
            if len(share) < self.min_steps or np.median(share) < self.min_share:
                continue
            if np.median(share[: max(self.min_steps, len(share) // 10)]) < self.min_share:
                continue
            usual = float(np.median(share))
            findings.append(
                Finding(
                    "no spread",
                    role,
                    f"In the median step {percent(usual)} of the groups of {role} have equal "
                    f"rewards, from the first step on: there is next to nothing to learn "
                    f"from{self._why(run, role)}.",
                    usual,
                    "share of groups",
                    "high",
                    evidence=(
                        f"{len(share)} steps; equal rewards give advantages of zero, and those no "
                        f"gradient",
                    ),
                    lower=float(share.min()),
                    upper=float(share.max()),
                )
            )
        return Judged(tuple(findings))

    def _why(self, run: Run, role: str) -> str:
        right, wrong = (
            _known(aligned(run.steps, run.ledger(f"all_{kind}_groups", role)))
            for kind in ("right", "wrong")
        )
        if not len(right) or not len(wrong):
            return ""
        shares = float(np.median(right)), float(np.median(wrong))
        return f" ({percent(shares[0])} all right, {percent(shares[1])} all wrong)"


def _known(value_T: Floats) -> Floats:
    known: Floats = value_T[np.isfinite(value_T)]
    return known


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
