"""Rank what may explain a drop: what moved before it, in which role, how surely, and what objects.

A suspect leads. Suspects are findings and signals whose onset is earlier than the fall in 90 % of
the draws, beyond wander, and that no other suspect explains; a finding stands for the signals that
it is made of. Where nothing leads, a setting that was raised with the fall is told ('consistent
with'): nobody falls into a higher learning rate. So is a constant rate whose steps were too long
by their own measure. Everything else that moved before or with the fall is told beside them, and
explains nobody away. 'Confirmed by replay' (the run repeated with that one thing changed did not
fall) is the only word on a cause; two suspects that lead are not separated by any statistic of
this run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from analysis.cliff.fall import Fall
from analysis.detectors.spikes import SPIKE
from analysis.detectors.table import KINDS
from analysis.explain.constant_rate import TooLarge
from analysis.explain.graph import ancestors
from analysis.findings import Cause, Finding, SignalVerdict, Strength
from analysis.replays.results import Replayed
from analysis.signals import KIND


@dataclass(frozen=True)
class Storyteller:
    """Thresholds of the ranking."""

    max_lead: int = 100
    """Steps between an onset and the drop; further apart, anything precedes anything."""
    min_probability: float = 0.95
    """That a suspect's onset is before the fall's."""
    min_if_exact: float = 0.9
    """The same of one that is dated to the step, such as a spike: it is rare, and has to be no
    chance first."""
    far: int = 50
    """Steps of lead that count against a suspect: whatever acts at once does not wait so long."""

    def __call__(
        self,
        drop: Fall,
        findings: tuple[Finding, ...],
        verdicts: tuple[SignalVerdict, ...],
        policy_of: dict[str, str],
        replays: tuple[Replayed, ...] = (),
        constant: tuple[TooLarge, ...] = (),
    ) -> tuple[Cause, ...]:
        """Suspects, the strongest first; empty without a drop."""
        if drop.onset is None:
            return ()
        found = [cause for f in findings if (cause := self._of_finding(f, drop, verdicts))]
        signals = [v for v in verdicts if v.is_candidate and not _stands_for(v, found, policy_of)]
        causes = _lasting(found + [self._of_signal(verdict) for verdict in signals])
        if not causes:
            causes = [self._of_signal(v) for v in verdicts if _raised_with_the_fall(v)]
        if not causes:
            causes = [self._of_constant(one, drop) for one in constant]
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
        """None if it does not lead."""
        kind = KINDS.get(finding.kind)
        if kind is None or not kind.signals or finding.onset is None or drop.onset is None:
            return None
        lead = float(drop.onset.step - finding.onset.step)
        own = [v for v in verdicts if v.kind in kind.heads and v.is_of(finding.subject)]
        dated = [v for v in own if v.order != "no evidence"]
        if dated:
            leads = any(v.order == "precedes" for v in dated)
        else:  # a trend of the signal is no event, whatever a ramp through it says
            is_trend = any(v.change == "trend" for v in own)
            leads = not is_trend and self._chance(finding, drop) > self._needed(finding)
        if not leads or lead > self.max_lead or lead <= 0:
            return None
        p_value = finding.p_family if finding.p_family is not None else finding.p_value or 1.0
        return Cause(
            f"{kind.name} {kind.link} {finding.subject}",
            finding.kind,
            finding.subject,
            "preceded by",
            finding.onset,
            lead,
            p_value,
            (finding.summary,),
        )

    def _needed(self, finding: Finding) -> float:
        at = finding.onset
        is_exact = at is not None and at.lower == at.upper
        return self.min_if_exact if is_exact else self.min_probability

    def _chance(self, finding: Finding, drop: Fall) -> float:
        """That a finding began before the fall: a triangle over its interval against the fall's."""
        assert finding.onset is not None
        at = finding.onset
        rng = np.random.default_rng(0)
        fall_B = drop.beginnings(500, rng)
        if at.lower == at.upper:
            return float(np.mean(fall_B > at.step))
        return float(np.mean(fall_B > rng.triangular(at.lower, at.step, at.upper, 500)))

    def _of_constant(self, found: TooLarge, drop: Fall) -> Cause:
        assert drop.onset is not None
        return Cause(
            f"{found.policy} learning rate too large throughout",
            "learning_rate",
            found.policy,
            "consistent with",
            drop.onset,
            0.0,
            math.nan,
            found.evidence,
            () if drop.kind == "early collapse" else ("it was the same while accuracy held",),
            place="throughout",
        )

    def _of_signal(self, verdict: SignalVerdict) -> Cause:
        assert verdict.onset is not None
        chance = f"p = {verdict.p_value:.2g} corrected for the signals judged"
        if KIND[verdict.kind].is_set:
            chance = "a setting, which does not move by chance"
        way = "up" if verdict.after > verdict.before else "down"
        leads = verdict.order == "precedes"
        evidence = f"with the fall; {chance}"
        if leads:
            evidence = (
                f"{verdict.when} ({max(verdict.lead_lower, 0):.0f} to {verdict.lead_upper:.0f})"
            )
            if math.isfinite(verdict.effect):
                evidence += f", {abs(verdict.effect):.0f} residual standard deviations"
            evidence += f"; {chance}"
        return Cause(
            f"{verdict.title} {way}",
            verdict.kind,
            verdict.subject,
            "preceded by" if leads else "consistent with",
            verdict.onset,
            verdict.lead,
            verdict.p_value,
            (evidence, *((verdict.told,) if verdict.told else ())),
            place="before" if leads else "with",
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
        if fell and cause.subject not in fell and not _is_of_policy(cause):
            against.append(f"own accuracy fell in {', '.join(fell)}, not in {cause.subject}")
        for finding in findings:
            if cause.kind == finding.kind == "capture" and finding.subject == cause.subject:
                against += [s for s in finding.evidence if "no harm" in s or "disagrees" in s]
        if cause.place == "with":
            against.append("whether it came before the drop is not resolved")
        return replace(cause, against=tuple(against))


def _lasting(causes: list[Cause]) -> list[Cause]:
    """Without single updates where something else changed before the fall, and stayed changed.

    A spike was over when the fall began, and norms with heavy tails have one before every fortieth
    fall by chance.
    """
    kept = [cause for cause in causes if cause.kind != SPIKE.name]
    return kept or causes


def _raised_with_the_fall(verdict: SignalVerdict) -> bool:
    return (
        KIND[verdict.kind].is_set
        and KIND[verdict.kind].suspect != "never"
        and verdict.order == "coincides"
        and verdict.after > verdict.before
    )


def parts_of(cause: Cause) -> tuple[str, ...]:
    """Kinds of signal that a suspect is made of, its head first; a signal is made of itself."""
    return (cause.kind in KINDS and KINDS[cause.kind].signals) or (cause.kind,)


def _is_of_policy(cause: Cause) -> bool:
    return cause.kind in KINDS and KINDS[cause.kind].is_of_policy


def _stands_for(verdict: SignalVerdict, found: list[Cause], policy_of: dict[str, str]) -> bool:
    """Is the signal part of a finding, or explained by one that is no later?"""
    kind = verdict.kind
    subjects = [subject.strip() for subject in verdict.subject.split(",")]
    policies = {policy_of.get(subject, subject) for subject in subjects}
    for cause in found:
        same_policy = policy_of.get(cause.subject, cause.subject) in policies
        reach = same_policy if _is_of_policy(cause) else cause.subject in subjects
        parts = parts_of(cause)
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
        head = parts_of(cause)[0]
        explained = any(
            other is not cause
            and (
                other.subject == cause.subject
                or (other.kind == "learning_rate" and other.subject == policy_of.get(cause.subject))
            )
            and parts_of(other)[0] in ancestors(head)
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
