"""Find roles that stopped doing their job, whether or not accuracy shows it.

A workflow can hide a broken role: when the aggregator's choices no longer parse, the fallback votes
for it and accuracy stays. Two signals say so without a model of the workflow: responses that do not
parse, and responses cut by the token limit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.detectors.shape import Context, Detector, Judged, Kind
from analysis.findings import Finding, Onset, percent
from analysis.series.bend import bins, bridged, find_bends
from analysis.series.wander import MAX_POINTS, find_change
from analysis.signals import KIND, MIN_FINITE, aligned
from gradlab.store.run import Run

SIGNALS = {
    "parse_failures": "{share} of its responses do not parse",
    "truncated": "{share} of its responses are cut by the token limit",
}
BESIDE = ("length_mean", "entropy", "kl", "own_accuracy")

CERTAIN = 1e-4
"""The smallest p-value that is told."""

BREAKDOWN = Kind(
    "role breakdown",
    "parse failures and cut responses of each role, over at least 20 steps",
    (
        ("anchor", "a KL term keeps the format that was lost"),
        (
            "pay own work",
            "under a broadcast outcome a fallback earns the reward that its format no longer does",
        ),
        ("lower rate", "formats break under long steps"),
    ),
    (
        ("raise limit", "a response that is cut earns nothing, however right it was so far"),
        ("mask cut", "else a cut response is trained away from, as if it were wrong"),
        ("anchor", "a KL term holds the length back that grew into the limit"),
        ("lower rate", "lengths run away under long steps"),
    ),
    signals=("parse_failures", "truncated", "length_mean", "drift"),
    dated_by=("parse_failures", "truncated"),
    replay="anchor",
)


@dataclass(frozen=True)
class BreakdownRule(Detector):
    """Thresholds of the rule."""

    kinds: tuple[Kind, ...] = (BREAKDOWN,)
    min_share: float = 0.5
    """Of responses that fail, at the end of the change."""
    min_rise: float = 0.3
    """Rise of that share: a role that failed from the start did not break down in this run."""
    min_effect: float = 2.5
    """Rise in residual standard deviations."""
    alpha: float = 0.05
    """Largest p-value of the rise against wander."""
    whole: float = 0.9
    """Of responses that fail at the end: a role that has stopped doing its job. However slowly it
    came to that, wander around the old level does not."""
    min_steps: int = 20
    """Below, there is no level before and after."""
    max_bins: int = 100
    """Points that a change is dated on: the search is quadratic."""
    seed: int = 0
    """Of the draws, so that a diagnosis can be repeated."""

    def judge(self, context: Context) -> Judged:
        """One finding per broken role, with the signal that broke first."""
        run = context.run
        if len(run.steps) < self.min_steps:
            return Judged()
        findings = []
        for role in run.roles:
            broken = [found for name in SIGNALS if (found := self._signal(run, role, name))]
            if broken:
                findings.append(min(broken, key=_began))
        return Judged(tuple(sorted(findings, key=_began)))

    def num_tested(self, run: Run) -> int:
        """Both signals of every role: either one makes a finding."""
        return len(SIGNALS) * len(run.roles)

    def measure(self, share_T: NDArray[np.float64]) -> Breakdown | None:
        """Where the share of failing responses rose for good; None where it did not."""
        stride = max(1, math.ceil(len(share_T) / self.max_bins))
        series = bins(share_T, stride)
        if np.isfinite(series).mean() < MIN_FINITE:
            return None
        rng = np.random.default_rng(self.seed)
        bend = find_bends(bridged(series)[None, :], rng, num_draws=200)[0]
        still = float(np.nanmedian(share_T[-max(5, len(share_T) // 10) :]))
        if (
            bend.after - bend.before < self.min_rise
            or min(bend.after, still) < self.min_share
            or bend.effect < self.min_effect
        ):
            return None
        coarse = bridged(bins(share_T, math.ceil(len(share_T) / MAX_POINTS)))
        p_value = find_change(coarse, np.random.default_rng(self.seed), sign=1).p_value
        if still >= self.whole and self._is_apart(share_T):
            p_value = min(p_value, CERTAIN)
        if p_value > self.alpha:
            return None
        low, high = np.quantile(bend.onset_B, [0.05, 0.95])
        at_B = bins(np.arange(len(share_T), dtype=np.float64), stride)
        onset, lower, upper = (
            float(np.interp(index, np.arange(len(at_B)), at_B))
            for index in (bend.onset, min(low, bend.onset), max(high, bend.onset) + 1)
        )
        return Breakdown(p_value, onset, lower, upper, bend.before, bend.after, bend.effect)

    def _is_apart(self, share_T: NDArray[np.float64]) -> bool:
        """Did every one of the last steps fail more than any in the first third?"""
        last = share_T[-max(5, len(share_T) // 10) :]
        return bool(np.nanmin(last) > np.nanmax(share_T[: len(share_T) // 3]))

    def _signal(self, run: Run, role: str, name: str) -> Finding | None:
        found = self.measure(aligned(run.steps, run.ledger(name, role)))
        if found is None:
            return None
        at, lower, upper = (
            round(float(np.interp(index, np.arange(len(run.steps)), run.steps)))
            for index in (found.onset, found.lower, found.upper)
        )
        what = SIGNALS[name].format(share=percent(found.after))
        return Finding(
            "role breakdown",
            role,
            f"{role} broke down from step {at} ({lower} to {upper}): {what}, "
            f"{percent(max(found.before, 0.0))} before.",
            found.after - found.before,
            "rise of the share of responses",
            "high" if found.effect > 2 * self.min_effect else "moderate",
            Onset(at, lower, upper),
            found.p_value,
            tuple(_beside(run, role, at)),
        )


@dataclass(frozen=True)
class Breakdown:
    """A lasting rise of the share of failing responses; positions are indices of steps."""

    p_value: float
    onset: float
    lower: float
    upper: float
    before: float
    after: float
    effect: float
    """Rise in residual standard deviations."""


def _began(finding: Finding) -> int:
    return finding.onset.step if finding.onset else 0


def _beside(run: Run, role: str, step: int) -> list[str]:
    """What else of the role is different at the end, where it is different by much."""
    sentences = []
    before = run.steps <= step
    last = run.steps > run.steps[-1] - max(5, len(run.steps) // 10)
    for name in BESIDE:
        kind = KIND[name]
        value_T = aligned(run.steps, run.ledger(name, role))
        early, late = value_T[before & np.isfinite(value_T)], value_T[last & np.isfinite(value_T)]
        if not len(early) or not len(late):
            continue
        first, final = float(np.median(early)), float(np.median(late))
        ends = kind.on_scale(np.array([first, final]))
        if abs(ends[1] - ends[0]) >= kind.min_change:
            unit = run.ledger(name, role).unit
            unit = "" if unit == "1" else f" {unit}"
            sentences.append(f"{kind.title} went from {first:.3g} to {final:.3g}{unit}")
    return sentences
