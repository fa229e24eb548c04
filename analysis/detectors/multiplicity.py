"""Correct the p-values of a diagnosis for everything that it tested in the run.

The drop in accuracy is one test, at its own 5 %, and so is whether the evaluation set changed,
since it decides whether accuracies mean anything, and whether a gradient spiked before a fall,
which is not asked of runs that did not fall (`Kind.is_own_test`). All other tests of a run are one
family: Holm's procedure with weights keeps the chance of any false finding among them at 5 % as
well. Weights say beforehand what the run was recorded for (`Kind.family_share`): half of the 5 %
goes to capture, a fifth to amplification, the rest to everything else, each divided by the number
of roles tested.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from analysis.detectors.table import KINDS
from analysis.findings import Finding, NotJudged

SHARES = {name: kind.family_share for name, kind in KINDS.items() if kind.family_share}
OTHERS = 0.3
"""Shares of the 5 %; what a family does not test goes to the others."""
ALPHA = 0.05


def correct(
    findings: list[Finding], tested: Mapping[str, int], alpha: float = ALPHA
) -> tuple[list[Finding], list[NotJudged]]:
    """Findings that stand, with `p_family`, and those that do not, as open questions.

    `tested` counts the hypotheses of every kind of finding, those without a finding included.
    Findings without a p-value pass.
    """
    weight = weights(tested)
    ranked = sorted(
        (f for f in findings if f.p_value is not None and f.kind in weight),
        key=lambda f: float(f.p_value or 0) / weight[f.kind],
    )
    left = 1.0
    largest = 0.0
    adjusted: dict[int, float] = {}
    for finding in ranked:
        largest = max(largest, min(1.0, float(finding.p_value or 0) / weight[finding.kind] * left))
        left -= weight[finding.kind]
        adjusted[id(finding)] = largest
    kept, dropped = [], []
    for finding in findings:
        p_family = adjusted.get(id(finding))
        if p_family is None or p_family <= alpha:
            kept.append(replace(finding, p_family=p_family))
        else:
            why = (
                f"p = {finding.p_value:.2g}, but {sum(tested.values())} things were tested in this "
                f"run, which makes it {p_family:.2g}"
            )
            dropped.append(NotJudged(f"{finding.kind} of {finding.subject}", why, "train longer"))
    return kept, dropped


def weights(tested: Mapping[str, int]) -> dict[str, float]:
    """The share of alpha of one hypothesis of each kind; over all hypotheses they sum to 1."""
    others = {kind: num for kind, num in tested.items() if kind not in SHARES and num}
    named = {kind: share for kind, share in SHARES.items() if tested.get(kind)}
    if others:
        named["others"] = OTHERS
    total = sum(named.values())
    result = {
        kind: share / total / tested[kind] for kind, share in named.items() if kind != "others"
    }
    if others:
        each = named["others"] / total / sum(others.values())
        result |= dict.fromkeys(others, each)
    return result
