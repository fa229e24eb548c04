"""Run every detector on a run and correct for their number: what stands, and what stays open."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from analysis.cliff.cliff import FallTest
from analysis.detectors.multiplicity import correct
from analysis.detectors.shape import Context, Detector
from analysis.detectors.table import DETECTORS, KINDS
from analysis.explain.order import OnsetOrder
from analysis.findings import Finding, NotJudged

Rule = TypeVar("Rule", bound=Detector)


@dataclass(frozen=True)
class Detectors:
    """What a diagnosis asks, with its thresholds: did it fall, what is there, in which order."""

    cliff: FallTest = field(default_factory=FallTest)
    rules: tuple[Detector, ...] = DETECTORS
    order: OnsetOrder = field(default_factory=OnsetOrder)

    def rule(self, kind: type[Rule]) -> Rule:
        """The detector of this class."""
        return next(rule for rule in self.rules if isinstance(rule, kind))


@dataclass(frozen=True)
class Detected:
    """What all detectors say."""

    findings: tuple[Finding, ...]
    """In the order of `analysis.detectors.table`: the measurement, then the drop, then the rest."""
    not_judged: tuple[NotJudged, ...]

    def of_kind(self, kind: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.kind == kind]


def detect(context: Context, rules: tuple[Detector, ...] = DETECTORS) -> Detected:
    """Everything but the order of events."""
    judged = [rule.judge(context) for rule in rules]
    for rule, one in zip(rules, judged, strict=True):
        declared = {kind.name for kind in rule.kinds}
        assert declared >= {found.kind for found in one.findings}, f"{rule}: declare the kind"
    found = _told_once([finding for one in judged for finding in one.findings])
    tested = {
        rule.kinds[0].name: num
        for rule in rules
        if not rule.kinds[0].is_own_test and (num := rule.num_tested(context.run))
    }
    stand, fallen = correct(found, tested)
    open_questions = [question for one in judged for question in one.not_judged]
    observed = [seen for one in judged for seen in one.observed]
    return Detected(tuple(stand), (*open_questions, *fallen, *observed))


def _told_once(findings: list[Finding]) -> list[Finding]:
    """Without those that another finding of the same subject says already."""
    told = {(finding.kind, finding.subject) for finding in findings}
    return [
        finding
        for finding in findings
        if not any((other, finding.subject) in told for other in _told_by(finding))
    ]


def _told_by(finding: Finding) -> tuple[str, ...]:
    return KINDS[finding.kind].told_by if finding.kind in KINDS else ()
