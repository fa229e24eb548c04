"""Run every detector on a run and correct for their number: what stands, and what stays open."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from analysis.cliff.accuracy import AccuracySeries
from analysis.cliff.cliff import FallTest
from analysis.cliff.fall import Fall
from analysis.cliff.fall_words import findings_of
from analysis.cliff.same_problems import ChangedSetRule
from analysis.cliff.where_lost import located
from analysis.detectors.amplification import AmplificationTest
from analysis.detectors.breakdown import BreakdownRule
from analysis.detectors.detached import DetachedRule
from analysis.detectors.exchanged import with_exchange
from analysis.detectors.forms import FormRule, WorkRule
from analysis.detectors.frozen import StillRule
from analysis.detectors.hacking import HackingRule
from analysis.detectors.levels import LEVEL_RULES, LevelRule
from analysis.detectors.measurement import stale_rollouts, unexplained
from analysis.detectors.multiplicity import correct
from analysis.detectors.role_capture import CaptureRule
from analysis.detectors.spikes import SpikeRule
from analysis.detectors.states import CutRule, NoSpreadRule, NotFiniteRule
from analysis.explain.order import OnsetOrder
from analysis.findings import Finding, NotJudged
from analysis.signals import learners
from gradlab.store.run import Run


@dataclass(frozen=True)
class Detectors:
    """The detectors of a diagnosis, with their thresholds."""

    cliff: FallTest = field(default_factory=FallTest)
    capture: CaptureRule = field(default_factory=CaptureRule)
    amplification: AmplificationTest = field(default_factory=AmplificationTest)
    breakdown: BreakdownRule = field(default_factory=BreakdownRule)
    levels: tuple[LevelRule, ...] = LEVEL_RULES
    spikes: SpikeRule = field(default_factory=SpikeRule)
    still: StillRule = field(default_factory=StillRule)
    not_finite: NotFiniteRule = field(default_factory=NotFiniteRule)
    cut: CutRule = field(default_factory=CutRule)
    no_spread: NoSpreadRule = field(default_factory=NoSpreadRule)
    changed_set: ChangedSetRule = field(default_factory=ChangedSetRule)
    hacking: HackingRule = field(default_factory=HackingRule)
    detached: DetachedRule = field(default_factory=DetachedRule)
    forms: FormRule = field(default_factory=FormRule)
    work: WorkRule = field(default_factory=WorkRule)
    order: OnsetOrder = field(default_factory=OnsetOrder)


@dataclass(frozen=True)
class Detected:
    """What all detectors say."""

    drops: list[Finding]
    findings: tuple[Finding, ...]
    """The measurement itself first, then the drop, then the rest; `drops` included."""
    not_judged: tuple[NotJudged, ...]

    def of_kind(self, kind: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.kind == kind]


def detect(run: Run, series: AccuracySeries, drop: Fall, detectors: Detectors) -> Detected:
    """Everything but the order of events."""
    capture, unjudged_capture = detectors.capture.judge(run)
    capture = [with_exchange(run, finding) for finding in capture]
    amplification, unjudged_amplification = detectors.amplification.judge(run)
    tested: dict[str, int] = {
        "capture": num_sharing(run),
        "amplification": sum(len(run.agents(role)) > 1 for role in run.roles),
        "role breakdown": detectors.breakdown.num_tested(run),
        "reward hacking": detectors.hacking.num_tested(run),
        "form change": detectors.forms.num_tested(run),
        "work moved": detectors.work.num_tested(run),
        **{rule.kind: rule.num_tested(run) for rule in detectors.levels},
    }
    spikes, harmless_spikes = detectors.spikes.judge(run, drop)
    found = [*detectors.breakdown(run), *capture, *amplification, *spikes]
    for rule in detectors.levels:
        found += rule(run)
    found += [*detectors.hacking(run, drop), *detectors.forms(run), *detectors.work(run)]
    found += detectors.detached(run)
    stand, fallen = correct(found, tested)
    around = detectors.changed_set.around(series, drop.changed_after)
    # Whether accuracies can be compared comes before what they say: no part of the family.
    stand += [around] if drop.shape == "changed set" and around else detectors.changed_set(run)
    drops = [
        replace(finding, evidence=(*located(run, series, drop), *finding.evidence))
        for finding in findings_of(drop)
    ]
    first = [
        *detectors.not_finite(run),
        *unexplained(run),
        *stale_rollouts(run),
        *detectors.still(run),
        *states(run, detectors),
    ]
    return Detected(
        drops,
        (*first, *drops, *stand),
        (*unjudged_capture, *unjudged_amplification, *fallen, *harmless_spikes),
    )


def states(run: Run, detectors: Detectors) -> list[Finding]:
    """What is wrong from the first step on; what is all cut has no reward spread either."""
    cut = detectors.cut(run)
    told = {finding.subject for finding in cut}
    return [*cut, *(found for found in detectors.no_spread(run) if found.subject not in told)]


def num_sharing(run: Run) -> int:
    """Roles that share a policy with another one that learns."""
    policies = [run.policy_of(role).name for role in learners(run)]
    return sum(policies.count(name) > 1 for name in policies)
