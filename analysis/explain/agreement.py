"""Let signals and findings agree on dates: what a finding dates is no change without a date."""

from __future__ import annotations

from dataclasses import replace

from analysis.detectors.table import KINDS
from analysis.explain.signal_words import DATED, told_from
from analysis.findings import Finding, SignalVerdict


def agreed(
    verdicts: tuple[SignalVerdict, ...], findings: tuple[Finding, ...]
) -> tuple[SignalVerdict, ...]:
    """The verdicts, with trends told from the moment at which a finding of theirs begins."""
    return tuple(_agreed(verdict, findings) for verdict in verdicts)


def _agreed(verdict: SignalVerdict, findings: tuple[Finding, ...]) -> SignalVerdict:
    if verdict.change != "trend" or verdict.onset is not None:
        return verdict
    for finding in findings:
        heads = KINDS[finding.kind].heads if finding.kind in KINDS else ()
        is_own = verdict.kind in heads and verdict.is_of(finding.subject)
        if is_own and finding.onset is not None:
            told = told_from(verdict.before, verdict.after, verdict.unit, finding.onset)
            return replace(verdict, told=told, note=DATED)
    return verdict
