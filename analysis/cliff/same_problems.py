"""Tell from the answers to single problems whether two stretches of a run were asked the same.

Problems differ in difficulty, so those that were solved before are solved again, in a fall as well:
means per problem before and after correlate. On another set of problems, or in another order, they
do not, though each side agrees with itself.

Legend: T evaluations, P problems.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from analysis.cliff.accuracy import AccuracySeries
from analysis.detectors.shape import Context, Detector, Judged, Kind
from analysis.findings import Finding, Onset
from gradlab.arrays import Floats
from gradlab.store.run import Run


@dataclass(frozen=True)
class Agreement:
    """How alike two stretches of evaluations answered single problems."""

    correlation: float
    """Of the mean correctness per problem before and after."""
    expected: float
    """The least that one set of problems would give, by how well each side agrees with itself."""
    p_value: float
    """Of a correlation this low, if the problems were the same."""
    p_chance: float
    """Of a correlation this high, if the problems had nothing to do with each other."""
    num_problems: int


CHANGED_SET = Kind(
    "changed evaluation set",
    "answers by problem of at least 30 problems, at four evaluations or more",
    (("one set", "accuracies on different problems cannot be compared"),),
    is_own_test=True,  # whether accuracies can be compared comes before what they say
)


@dataclass(frozen=True)
class ChangedSetRule(Detector):
    """Thresholds of the rule."""

    kinds: tuple[Kind, ...] = (CHANGED_SET,)
    min_problems: int = 30
    min_reliability: float = 0.2
    """Of the mean correctness per problem on either side; below, nobody could agree with it."""
    min_kept: float = 0.6
    """Correlation of true difficulties that training, and falling, leaves at the very least: it was
    above 0.5 in every real fall that was looked at."""
    min_rate: float = 0.1
    """Accuracy of every evaluation: one answer to all problems is right here and there, too."""
    alpha: float = 0.05
    """Largest p-value, corrected for the places looked at."""
    chance: float = 0.01
    """Smallest p-value of the correlation itself: below, they agree better than by chance."""
    window: int = 6
    """Evaluations on either side that are compared: over more of them, training changes much."""
    near: int = 2
    """Evaluations around a drop's onset where the set may have changed."""

    def judge(self, context: Context) -> Judged:
        """At most one finding: where a drop seemed to begin, else a change anywhere in the run."""
        if context.fall.shape == "changed set":
            around = self.around(context.series, context.fall.changed_after)
            if around:
                return Judged((around,))
        series = AccuracySeries.of(context.run)
        return Judged(tuple(self._best(series, range(1, len(series)))))

    def num_tested(self, run: Run) -> int:
        """One, where answers are kept by problem."""
        return int(len(run.meta.problems) >= self.min_problems)

    def around(self, series: AccuracySeries, onset: int) -> Finding | None:
        """The same of a drop alone: did the set change where it began?"""
        places = range(onset + 1 - self.near, onset + 2 + self.near)
        found = self._best(series, [at for at in places if 1 <= at < len(series)])
        return found[0] if found else None

    def agreement(self, before_TP: Floats, after_TP: Floats) -> Agreement | None:
        """None: too few problems, or answers that say too little about them."""
        if min(np.nanmean(side, axis=1).min() for side in (before_TP, after_TP)) < self.min_rate:
            return None
        known = np.isfinite(before_TP).any(axis=0) & np.isfinite(after_TP).any(axis=0)
        if known.sum() < self.min_problems:
            return None
        sides = [side_TP[:, known] for side_TP in (before_TP, after_TP)]
        trust = [reliability(side_TP) for side_TP in sides]
        if not min(trust) >= self.min_reliability:  # NaN: a single evaluation tells none
            return None
        means = [np.nanmean(side_TP, axis=0) for side_TP in sides]
        correlation = float(np.corrcoef(*means)[0, 1])
        expected = self.min_kept * math.sqrt(trust[0] * trust[1])
        num = int(known.sum())
        away = math.atanh(np.clip(correlation, -0.999, 0.999)) - math.atanh(expected)
        return Agreement(
            correlation,
            expected,
            float(ndtr(away * math.sqrt(num - 3))),
            # Over all permutations a correlation has mean 0 and variance 1 / (P - 1), exactly.
            float(ndtr(-correlation * math.sqrt(num - 1))),
            num,
        )

    def _best(self, series: AccuracySeries, places: range | list[int]) -> list[Finding]:
        solved_TP = series.solved_TP
        if solved_TP is None or not len(places):
            return []
        found: list[tuple[float, int, Agreement]] = []
        for at in places:
            sides = solved_TP[max(at - self.window, 0) : at], solved_TP[at : at + self.window]
            if min(map(len, sides)) < 2:
                continue
            agreement = self.agreement(*sides)
            if agreement is not None and agreement.p_chance > self.chance:
                found.append((agreement.p_value, at, agreement))
        if not found:
            return []
        p_value, at, agreement = min(found, key=lambda one: one[0])
        p_value = min(1.0, p_value * len(places))
        return [self._finding(series, at, agreement, p_value)] if p_value <= self.alpha else []

    def _finding(
        self, series: AccuracySeries, at: int, agreement: Agreement, p_value: float
    ) -> Finding:
        last, first = int(series.step_T[at - 1]), int(series.step_T[at])
        half = 1.96 / math.sqrt(agreement.num_problems - 3)
        middle = math.atanh(agreement.correlation)
        return Finding(
            "changed evaluation set",
            "run",
            f"The answers before and after step {last} agree no better than chance: the evaluation "
            f"set (or its order) changed between steps {last} and {first}; accuracies before and "
            f"after are not comparable.",
            agreement.correlation,
            "correlation over problems",
            "high",
            Onset(last, last, first),
            p_value,
            (
                f"correlation of correctness per problem {agreement.correlation:.2f} over "
                f"{agreement.num_problems} problems; by how well each side agrees with itself, one "
                f"set would give {agreement.expected:.2f} at the very least",
                "answers that no longer depend on the problem look the same: read some of them",
            ),
            math.tanh(middle - half),
            math.tanh(middle + half),
        )


def changed_set(series: AccuracySeries, onset_index: int) -> Finding | None:
    """Did the evaluation set change where a drop began? None: no, or the answers cannot tell.

    `onset_index`: the last evaluation before the drop. Needs two evaluations on either side.
    """
    return ChangedSetRule().around(series, onset_index)


def reliability(solved_TP: Floats) -> float:
    """Share of the variance of means per problem that is the problems' own; NaN of one evaluation.

    1 - (variance within problems / evaluations) / variance of the means, evaluations centred: a
    rise of all of them is no disagreement.
    """
    num = np.isfinite(solved_TP).sum(axis=0)
    if len(solved_TP) < 2 or num.min() < 2:
        return math.nan
    centred_TP = solved_TP - np.nanmean(solved_TP, axis=1)[:, None]
    mean_P = np.nanmean(centred_TP, axis=0)
    within_P = np.nansum((centred_TP - mean_P) ** 2, axis=0) / (num - 1)
    total = float(mean_P.var(ddof=1))
    return 1 - float((within_P / num).mean()) / total if total > 0 else math.nan
