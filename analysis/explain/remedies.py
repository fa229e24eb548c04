"""Say what to change in a run, the change against the first suspect first, ready to be pasted.

A kind of finding (`analysis.detectors.shape.Kind.advice`) or of signal names actions;
`analysis.explain.commands` turns them into options of `gradlab train`,
`analysis.explain.vocabulary` into the words of the trainer whose log was imported. The first remedy
of a fall begins again before it with something changed: the same run again would fall again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.detectors.exchanged import is_exchange
from analysis.detectors.falls import LONG_STEPS
from analysis.detectors.table import KINDS
from analysis.explain.commands import (
    checkpoint_before,
    command,
    flags,
    options_for,
    run_directory,
    shown_at,
)
from analysis.explain.rate_set import learning_rate
from analysis.explain.vocabulary import GRADLAB, PLAIN, Action, phrase, trainer_of
from analysis.findings import DROPS, Cause, Finding, Remedy, SignalVerdict
from analysis.signals import aligned
from gradlab.store.run import Run

TITLES: dict[Action, str] = {
    "lower rate": "Halve the learning rate",
    "anchor": "Anchor {role} to the reference policy",
    "raise limit": "Raise the token limit of {whose} responses",
    "mask cut": "Leave responses that are cut out of the loss",
    "more samples": "Sample more answers per problem",
    "clip": "Clip harder",
    "entropy": "Keep {whose} entropy up",
    "fewer updates": "Make one update per step",
    "cap share": "Cap {whose} share of the step mass",
    "own adapter": "Give each role its own adapter",
    "pay own work": "Pay {role} for its own work",
    "fewer agents": "Use fewer parallel agents",
    "evaluate more": "Evaluate on more problems, and more often",
    "check sync": "Check the adapter sync between sampler and trainer",
    "check updates": "Find out why nothing moves before training on",
    "repair": "Repair the measurement first",
    "read rewarded": "Look at what the reward pays for",
    "other problems": "Train on problems that are solved sometimes",
    "audit": "Rule out that the tags of two roles were exchanged",
    "one set": "Evaluate the checkpoints of both sides on one set of problems",
    "begin again": "Once the reward is repaired, begin again before it changed",
}
NOT_OPTIONS: frozenset[Action] = frozenset(
    {"check sync", "check updates", "repair", "read rewarded", "other problems", "one set", "audit"}
)
"""Something to look at, in plain words: no option changes it."""
OF_ROLES: frozenset[Action] = frozenset(
    {"cap share", "own adapter", "pay own work", "fewer agents"}
)
"""Without meaning where there is one role."""

BY_SIGNAL: dict[str, tuple[Action, str]] = {
    "learning_rate": ("lower rate", "it rose before the drop"),
    "logprob_gap": ("check sync", "rollouts no longer come from the weights that are trained"),
    "grad_norm": ("clip", "{whose} gradient norm rose before the drop"),
    "update_norm": ("lower rate", "the optimizer's steps grew before the drop"),
    "kl": ("anchor", "it left the reference before the drop"),
    "drift": ("anchor", "its output changed before the drop"),
    "entropy": ("entropy", "it fell before the drop"),
    "ratio_std": ("fewer updates", "importance ratios spread before the drop"),
    "length_mean": ("anchor", "its length grew before the drop"),
    "truncated": ("raise limit", "responses were cut before the drop"),
    "parse_failures": ("anchor", "its responses stopped parsing before the drop"),
    "zero_variance_groups": (
        "more samples",
        "groups without reward spread rose before the drop",
    ),
}
"""For a signal that rose before the drop, or fell if it is one of `BAD_WHEN_LOWER`."""

BAD_WHEN_LOWER = frozenset({"entropy"})
FOLLOWS_FROM_FAILING: frozenset[Action] = frozenset({"more samples", "check sync"})
"""No first remedy of a fall: groups without spread are what a fall looks like, and more answers per
problem made such a run fall sooner; what has no option cannot be pasted."""


@dataclass(frozen=True)
class Wanted:
    """One thing to do, and for whom."""

    action: Action
    reason: str
    subject: str
    """Role, policy, or 'run'."""
    step: int | None = None
    """Where to look, if the finding has a date."""


def remedies(
    run: Run,
    findings: Sequence[Finding],
    signals: Sequence[SignalVerdict],
    causes: Sequence[Cause] = (),
) -> tuple[Remedy, ...]:
    """What to change, the first suspect first; each option once."""
    fell = next((f for f in findings if f.kind in DROPS and f.onset), None)
    failed = fell or next((f for f in findings if f.kind == "role breakdown"), None)
    wanted = [
        Wanted("audit", "then nothing was captured, and every share is the other role's", f.subject)
        for f in findings
        if is_exchange(f)
    ]
    if fell:
        wanted += _by_cause(causes, signals)
        wanted.append(Wanted("lower rate", LONG_STEPS, "run"))
        # Nothing else may come first: what cannot be pasted, or repeats the fall.
        wanted.sort(key=lambda w: w.action in FOLLOWS_FROM_FAILING)
    suspects = [(cause.kind, cause.subject) for cause in causes]
    ranks = {id(f): (_rank((f.kind, f.subject), suspects), _describes(f)) for f in findings}
    for finding in sorted(findings, key=lambda f: ranks[id(f)]):
        # More steps for a parallel role are the usual set-up while nothing fails.
        if failed or finding.kind != "path amplification":
            wanted += _by_finding(run, finding)
    wanted += _by_signal(signals)
    advisor = _Advisor(run, fell or failed or _earliest(findings), causes)
    chosen: dict[str, Remedy] = {}
    for one in wanted:
        remedy = advisor.remedy(one)
        if remedy:
            chosen.setdefault(remedy.option, remedy)
    return tuple(chosen.values())


class _Advisor:
    """Puts what is wanted into words for one run."""

    def __init__(self, run: Run, failure: Finding | None, causes: Sequence[Cause]) -> None:
        self._run = run
        onset = failure.onset if failure else None
        self._rate = learning_rate(run, onset.step if onset else None)
        self._folder = run_directory(run)
        self._onset = onset
        self._start = 0
        if self._folder and onset:
            first = min([onset.lower, *(c.onset.lower for c in causes[:1])])
            self._start = checkpoint_before(self._folder, first, onset.lower)

    def remedy(self, one: Wanted) -> Remedy | None:
        """None for what the run has no option or no words for, or what is without meaning in it."""
        run = self._run
        roles = roles_of(run, one.subject)
        if one.action in OF_ROLES and len(run.roles) == 1:
            return None
        is_named = len(run.roles) > 1 and len(roles) == 1
        role = roles[0] if is_named else "the policy"
        words = {"role": role, "whose": f"{role}'s" if is_named else "the"}
        option = self._option(one, roles, role)
        if not option:
            return None
        title = TITLES[one.action].format(**words)
        return Remedy(title, one.reason.format(**words) + self._place(option), option)

    def _option(self, one: Wanted, roles: tuple[str, ...], role: str) -> str:
        run, action = self._run, one.action
        if trainer_of(run) != GRADLAB:
            return phrase(run, action, role, self._rate)
        if action == "read rewarded" and self._folder and one.step is not None:
            return shown_at(self._folder, one.step) or PLAIN[action]
        if action in NOT_OPTIONS:
            return PLAIN[action]
        options = options_for(run, action, roles, self._rate)
        if not options and (action != "begin again" or not self._start):
            return ""
        return command(run, self._folder, self._start, options) if self._folder else flags(options)

    def _place(self, option: str) -> str:
        """Where the command begins, in words; '' for what is no command."""
        if not option.startswith("gradlab train --from") or self._onset is None:
            return ""
        if self._start:
            return (
                f"; begins at the checkpoint of step {self._start}, the newest from before step "
                f"{self._onset.step}"
            )
        return f"; trains anew: there is no checkpoint from before step {self._onset.step}"


def _by_cause(causes: Sequence[Cause], signals: Sequence[SignalVerdict]) -> Iterator[Wanted]:
    """What takes away each suspect that no replay has cleared, the first one's first."""
    for cause in causes:
        if cause.words == "contradicted by replay":
            continue
        verdicts = [v for v in signals if v.kind == cause.kind and v.subject == cause.subject]
        if cause.kind in ("share", "pull", "update"):
            yield Wanted("cap share", "its share of the step grew before the drop", cause.subject)
        elif cause.kind == "learning_rate" and cause.place != "before":
            throughout = cause.place == "throughout"
            why = (
                "it was too large from the first step on" if throughout else "it rose with the drop"
            )
            yield Wanted("lower rate", why, cause.subject)
        elif cause.kind in BY_SIGNAL and all(map(is_worse, verdicts)):
            yield Wanted(*BY_SIGNAL[cause.kind], cause.subject)
        elif cause.kind in KINDS:
            kind = KINDS[cause.kind]
            number = 1 if kind.has_option else 2  # to look does not take it away: begin again, too
            for action, reason in kind.advice[:number]:
                yield Wanted(action, reason, cause.subject, cause.onset.step)


def _by_finding(run: Run, finding: Finding) -> Iterator[Wanted]:
    if finding.kind not in KINDS:
        return
    kind = KINDS[finding.kind]
    is_of_cut = bool(kind.advice_if_cut) and is_cut(run, finding.subject)
    for action, reason in kind.advice_if_cut if is_of_cut else kind.advice:
        yield Wanted(action, reason, finding.subject, finding.onset.step if finding.onset else None)


def _describes(finding: Finding) -> bool:
    return finding.kind in KINDS and KINDS[finding.kind].describes


def _by_signal(signals: Sequence[SignalVerdict]) -> Iterator[Wanted]:
    for verdict in signals:
        if verdict.is_candidate and verdict.kind in BY_SIGNAL and is_worse(verdict):
            yield Wanted(*BY_SIGNAL[verdict.kind], verdict.subject)


def is_worse(verdict: SignalVerdict) -> bool:
    """Whether a signal changed in the direction that the remedy undoes."""
    return (verdict.after < verdict.before) == (verdict.kind in BAD_WHEN_LOWER)


def is_cut(run: Run, role: str) -> bool:
    """Whether a role's responses end in the token limit, more than in a broken format."""
    if role not in run.roles or not len(run.steps):
        return False
    last = slice(-max(5, len(run.steps) // 10), None)
    cut, broken = (
        aligned(run.steps, run.ledger(name, role))[last] for name in ("truncated", "parse_failures")
    )
    if not np.isfinite(cut).any():
        return False
    others = float(np.nanmedian(broken)) if np.isfinite(broken).any() else 0.0
    return float(np.nanmedian(cut)) >= max(0.5, others)


def roles_of(run: Run, subject: str) -> tuple[str, ...]:
    """The roles that a finding or signal is about: itself, those of a policy, or all."""
    named = tuple(part.strip() for part in subject.split(","))
    if all(name in run.roles for name in named):
        return named
    together = [
        tuple(dict.fromkeys(agent.role for agent in policy.agents))
        for policy in run.policies
        if policy.name == subject
    ]
    return together[0] if together else tuple(run.roles)


def _earliest(findings: Sequence[Finding]) -> Finding | None:
    dated = [finding for finding in findings if finding.onset]
    return min(dated, key=lambda f: f.onset.step if f.onset else 0, default=None)


def _rank(one: tuple[str, str], suspects: list[tuple[str, str]]) -> int:
    return suspects.index(one) if one in suspects else len(suspects)
