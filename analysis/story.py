"""Rank what may explain a drop: what moved before it, in which role, how surely, and what objects.

Suspects are findings with an onset and signals that precede the drop and that no earlier one
explains. A finding stands for the signals that it is made of. Words grow with the evidence:
'consistent with' (an onset near the drop, order or chance not settled), 'preceded by' (earlier in
90 % of the draws, and beyond wander), 'confirmed by replay' (the run repeated with that one thing
changed did not fall). Two suspects that precede are not separated by any statistic of this run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from analysis.fall import Fall
from analysis.findings import Cause, Finding, SignalVerdict, Strength
from analysis.graph import ancestors
from analysis.replayed import Replayed
from analysis.signals import KIND

MADE_OF: dict[str, tuple[str, ...]] = {
    "capture": ("share", "pull", "update", "grad_norm", "conflict", "update_norm", "drift"),
    "role breakdown": ("parse_failures", "truncated", "length_mean", "drift"),
    "entropy collapse": ("entropy", "zero_variance_groups", "reward_std"),
    "length blow-up": ("length_mean", "truncated"),
    "KL drift": ("kl", "drift", "entropy"),
    "advantage starvation": ("zero_variance_groups", "reward_std"),
    "rollout gap": ("logprob_gap", "ratio_std", "clip_fraction"),
    "gradient spike": ("grad_norm", "update_norm", "share", "update", "pull"),
}
"""Kinds of signal that a finding stands for; `drift` of a starved role included."""


@dataclass(frozen=True)
class Storyteller:
    """Thresholds of the ranking."""

    alpha: float = 0.05
    """Largest p-value, corrected for the signals judged, of one that coincides with the drop."""
    max_lead: int = 100
    """Steps between an onset and the drop; further apart, anything precedes anything."""
    far: int = 50
    """Steps of lead that count against a suspect: whatever acts at once does not wait so long."""

    def __call__(
        self,
        drop: Fall,
        findings: tuple[Finding, ...],
        verdicts: tuple[SignalVerdict, ...],
        policy_of: dict[str, str],
        replays: tuple[Replayed, ...] = (),
    ) -> tuple[Cause, ...]:
        """Suspects, the strongest first; empty without a drop."""
        if drop.onset is None:
            return ()
        found = [cause for f in findings if (cause := self._of_finding(f, drop, verdicts))]
        signals = [v for v in verdicts if v.is_candidate and not _stands_for(v, found, policy_of)]
        causes = found + [self._of_signal(verdict) for verdict in signals]
        if not causes:
            causes = [self._of_signal(v) for v in self._coinciding(verdicts, policy_of)]
        causes = [_with_replays(cause, replays) for cause in causes]
        causes = [
            self._with_objections(c, findings, verdicts)
            for c in _merged(_unexplained(causes, policy_of))
        ]
        order = ("confirmed by replay", "preceded by", "consistent with", "contradicted by replay")
        return tuple(sorted(causes, key=lambda c: (order.index(c.words), c.p_value, -c.lead)))

    def _of_finding(
        self, finding: Finding, drop: Fall, verdicts: tuple[SignalVerdict, ...]
    ) -> Cause | None:
        if finding.kind not in MADE_OF or finding.onset is None or drop.onset is None:
            return None
        lead = drop.onset.step - finding.onset.step
        if finding.onset.lower > drop.onset.upper or lead > self.max_lead:
            return None
        own = [
            v for v in verdicts if v.kind in MADE_OF[finding.kind] and finding.subject in v.subject
        ]
        precedes = finding.onset.upper <= drop.onset.lower or any(
            v.order == "precedes" for v in own
        )
        p_value = finding.p_family if finding.p_family is not None else finding.p_value or 1.0
        words: Strength = "preceded by" if precedes else "consistent with"
        return Cause(
            f"{finding.kind} {'by' if finding.kind == 'capture' else 'of'} {finding.subject}",
            finding.kind,
            finding.subject,
            words,
            finding.onset,
            float(lead),
            p_value,
            (finding.summary,),
        )

    def _coinciding(
        self, verdicts: tuple[SignalVerdict, ...], policy_of: dict[str, str]
    ) -> list[SignalVerdict]:
        """Signals that may have moved first: their order to the drop is not resolved.

        Asked for only where nothing precedes: much moves with a drop.
        """
        near = [
            v
            for v in verdicts
            if v.order == "coincides"
            and v.lead > 0
            and v.p_value <= self.alpha
            and not v.is_outcome
            and not (v.key.startswith("learning_rate:") and v.after < v.before)
        ]

        def explains(one: SignalVerdict, other: SignalVerdict) -> bool:
            policies = {policy_of.get(v.subject, v.subject) for v in (one, other)}
            return len(policies) == 1 and one.kind in ancestors(other.kind)

        return [v for v in near if not any(explains(other, v) for other in near)]

    def _of_signal(self, verdict: SignalVerdict) -> Cause:
        assert verdict.onset is not None
        chance = f"p = {verdict.p_value:.2g} corrected for the signals judged"
        if KIND[verdict.kind].is_set:
            chance = "a setting, which does not move by chance"
        return Cause(
            f"{verdict.title} {'up' if verdict.after > verdict.before else 'down'}",
            verdict.kind,
            verdict.subject,
            "preceded by" if verdict.order == "precedes" else "consistent with",
            verdict.onset,
            verdict.lead,
            verdict.p_value,
            (
                f"{verdict.lead:.0f} steps before ({verdict.lead_lower:.0f} to "
                f"{verdict.lead_upper:.0f}), {abs(verdict.effect):.0f} residual standard "
                f"deviations; {chance}",
            ),
        )

    def _with_objections(
        self,
        cause: Cause,
        findings: tuple[Finding, ...],
        verdicts: tuple[SignalVerdict, ...],
    ) -> Cause:
        """What does not fit the story."""
        against = list(cause.against)
        if cause.lead > self.far:
            against.append(f"accuracy held for {cause.lead:.0f} steps after it")
        fell = [
            v.subject
            for v in verdicts
            if v.key.startswith("own_accuracy:")
            and v.order in ("precedes", "coincides")
            and v.after < v.before
        ]
        if fell and cause.subject not in fell and cause.kind != "capture":
            against.append(f"own accuracy fell in {', '.join(fell)}, not in {cause.subject}")
        for finding in findings:
            if cause.kind == finding.kind == "capture" and finding.subject == cause.subject:
                against += [s for s in finding.evidence if "no harm" in s or "disagrees" in s]
        if cause.words == "consistent with":
            against.append("whether it came before the drop is not resolved")
        return replace(cause, against=tuple(against))


def separation(causes: tuple[Cause, ...], *, can_replay: bool = True) -> str:
    """One sentence on how far the evidence goes, and the run that would take it further.

    `can_replay`: whether the run has a checkpoint to repeat it from.
    """
    confirmed = [cause.name for cause in causes if cause.words == "confirmed by replay"]
    refuted = [cause.name for cause in causes if cause.words == "contradicted by replay"]
    first = [cause for cause in causes if cause.words in ("preceded by", "consistent with")]
    if confirmed:
        return f"Confirmed by replay: {', '.join(confirmed)}."
    if refuted and not first:
        return f"Refuted by replay: {', '.join(refuted)}; nothing else moved before the drop."
    if not first:
        return "Nothing that was recorded moved before the drop: an unrecorded cause, or chance."
    before = f"from before step {min(cause.onset.lower for cause in first)}"
    name = first[0].name
    how = " (gradlab diagnose RUN --confirm)" if can_replay else ""
    if len(first) == 1:
        return (
            f"The drop is {first[0].words} {name} ({first[0].lead:.0f} steps before) and nothing "
            f"else that was recorded. To confirm: repeat {before} with that alone taken away"
            f"{how}."
        )
    more = f" (nor from {len(first) - 2} more)" if len(first) > 2 else ""
    return (
        f"Cannot separate {name} from {first[1].name}{more}: both moved before or with the drop. "
        f"The run that would: repeat {before} with {name} alone taken away{how}."
    )


def _stands_for(verdict: SignalVerdict, found: list[Cause], policy_of: dict[str, str]) -> bool:
    """Is the signal part of a finding, or explained by one that is no later?"""
    kind = verdict.kind
    subjects = [subject.strip() for subject in verdict.subject.split(",")]
    policies = {policy_of.get(subject, subject) for subject in subjects}
    for cause in found:
        same_policy = policy_of.get(cause.subject, cause.subject) in policies
        reach = same_policy if cause.kind == "capture" else cause.subject in subjects
        parts = MADE_OF[cause.kind]
        if reach and kind in parts:
            return True
        is_later = verdict.onset is not None and cause.onset.lower <= verdict.onset.upper
        if same_policy and is_later and ancestors(kind) & set(parts[:3]):
            return True
    return False


def _unexplained(causes: list[Cause], policy_of: dict[str, str]) -> list[Cause]:
    """Without what another suspect of the role, or a setting of its policy, explains by the graph.

    Across roles nothing is explained away: whether one role's failure is another's is the question.
    """
    kept = []
    for cause in causes:
        head = MADE_OF.get(cause.kind, (cause.kind,))[0]
        explained = any(
            other is not cause
            and (
                other.subject == cause.subject
                or (other.kind == "learning_rate" and other.subject == policy_of.get(cause.subject))
            )
            and MADE_OF.get(other.kind, (other.kind,))[0] in ancestors(head)
            and other.onset.lower <= cause.onset.upper
            for other in causes
        )
        if not explained:
            kept.append(cause)
    return kept


def _merged(causes: list[Cause]) -> list[Cause]:
    """The same event in several roles or policies, such as a learning rate, is one suspect."""
    merged: list[Cause] = []
    for cause in causes:
        same = [
            other
            for other in merged
            if other.kind == cause.kind
            and other.words == cause.words
            and other.onset.lower <= cause.onset.upper
            and cause.onset.lower <= other.onset.upper
        ]
        if same:
            index = merged.index(same[0])
            name = same[0].name.removesuffix(" too)")
            name = (
                f"{name}, {cause.subject}" if name != same[0].name else f"{name} ({cause.subject}"
            )
            evidence = tuple(dict.fromkeys((*same[0].evidence, *cause.evidence)))
            merged[index] = replace(same[0], name=f"{name} too)", evidence=evidence)
        else:
            merged.append(cause)
    return merged


def _with_replays(cause: Cause, replays: tuple[Replayed, ...]) -> Cause:
    """Words and evidence after the replays of this suspect, in whatever order they were made."""
    own = [
        replay
        for replay in replays
        if replay.kind in (cause.kind, cause.name) and replay.subject in ("", cause.subject)
    ]
    refuting = [replay for replay in own if not replay.confirms and not replay.is_open]
    words: Strength = cause.words
    against: tuple[str, ...] = ()
    if any(replay.confirms for replay in own):
        words = "confirmed by replay"
        against = tuple(
            f"refuted with {replay.change.removeprefix('--with ')}: replays disagree"
            for replay in refuting
        )
    elif refuting:
        words = "contradicted by replay"
    evidence = (*cause.evidence, *(replay.sentence for replay in own))
    return replace(cause, words=words, evidence=evidence, against=(*cause.against, *against))
