"""Find rewards that rise while what they stand for falls: reward hacking, or a penalty that pays.

Both halves are tested, and the larger p-value counts: that the one fell, as any outcome is
(`analysis.cliff.cliff`); that the other rose over the same steps, as a difference of two levels
with noise that remembers. A training accuracy at its ceiling beside a held-out one that
keeps its level is a gap, and no such thing.

Legend: T points of a series.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from analysis.cliff.accuracy import AccuracySeries, series_of
from analysis.cliff.cliff import FallTest
from analysis.cliff.fall import Fall
from analysis.detectors.shape import Context, Detector, Judged, Kind
from analysis.findings import HELD_OUT, Finding, Onset, percent
from gradlab.arrays import Floats
from gradlab.records import RunLedger, Signal, names
from gradlab.store.run import Run

PENALIZED = "penalized_reward"
"""Of `RunLedger`: the mean reward with the KL penalty inside."""


@dataclass(frozen=True)
class Outcome:
    """A series that is meant to rise, at the steps where it is known."""

    title: str
    step_T: NDArray[np.int64]
    value_T: Floats
    is_share: bool

    def series(self) -> AccuracySeries:
        """For the test of falls: averages of neighbours, since one step is a noisy batch."""
        signal = Signal(self.title, "1", "run", self.step_T, self.value_T)
        return series_of(signal, "training accuracy" if self.is_share else "training reward")

    def told(self, level: float) -> str:
        return percent(level) if self.is_share else f"{level:.3g}"


@dataclass(frozen=True)
class Pair:
    """What rises, and what it is to be held against."""

    up: Outcome
    down: Outcome
    meaning: str
    """What it says if the first rises while the second falls."""


@dataclass(frozen=True)
class Divergence:
    """One rose while the other fell."""

    p_value: float
    start: int
    """Step: the last on the old level."""
    upper: int
    """The next one with a value."""
    up_before: float
    up_after: float
    down_before: float
    down_after: float
    down_error: float
    """Standard error of the fall."""
    num_rises: int
    """That were held against the fall; the p-value is corrected for them."""


HACKING = Kind(
    "reward hacking",
    "held-out accuracy beside training accuracy or reward, or a reward beside its KL penalty",
    (
        ("read rewarded", "what is rewarded and what is measured have come apart"),
        ("anchor", "what only the grader likes lies far from the reference"),
        ("lower rate", "fewer steps find less to exploit"),
    ),
    beside_fall="What is rewarded and what is measured came apart as it fell (see the finding): "
    "look at the reward first.",
)


@dataclass(frozen=True)
class HackingRule(Detector):
    """Thresholds of the rule."""

    kinds: tuple[Kind, ...] = (HACKING,)
    min_points: float = 0.1
    """Of a share that rises, and of one that falls."""
    min_part: float = 0.1
    """The same of a reward, relative to its largest size in the run."""
    alpha: float = 0.05
    """Largest p-value, before the correction for everything tested in the run."""
    min_evaluations: int = 8
    min_steps: int = 30
    correlation: float = 0.5
    """Of a value with the next, beyond what is seen: levels are averages of few values, which show
    too little of their memory."""
    fall: FallTest = field(default_factory=FallTest)

    def judge(self, context: Context) -> Judged:
        """At most one finding: the clearest pair, held-out accuracy first."""
        pairs = self.pairs(context.run)
        num_rises = sum(pair.down.title == HELD_OUT for pair in pairs)
        found = [
            (pair, d)
            for pair in pairs
            if (d := self.measure(pair, context.fall, num_rises)) is not None
        ]
        if not found:
            return Judged()
        held_out = [one for one in found if one[0].down.title == HELD_OUT]
        pair, divergence = min(held_out or found, key=lambda one: one[1].p_value)
        others = [one[0] for one in found if one[0] is not pair]
        return Judged((self._finding(pair, divergence, others),))

    def num_tested(self, run: Run) -> int:
        """Those beside held-out accuracy are corrected here: they are asked of a fall alone."""
        return sum(pair.down.title != HELD_OUT for pair in self.pairs(run))

    def pairs(self, run: Run) -> list[Pair]:
        """What the run holds of rewards and of what they stand for."""
        ups = [
            found
            for name, title in (
                ("accuracy", "training accuracy"),
                ("reward_mean", "mean training reward"),
                (PENALIZED, "mean reward with the KL penalty inside"),
            )
            if (found := self._of_run(run, name, title))
        ]
        by_title = {up.title: up for up in ups}
        score, training = by_title.get("mean training reward"), by_title.get("training accuracy")
        if training and score and np.allclose(training.value_T, score.value_T, equal_nan=True):
            ups.remove(score)  # the reward is the accuracy
        held_out = self._held_out(run)
        pairs = []
        if held_out:
            pairs = [Pair(up, held_out, _HACKED) for up in ups]
        for up in ups:
            if up.title.endswith("inside") and (task := score or training):
                title = "task score" if task is score else task.title
                pairs.append(Pair(up, replace(task, title=title), _PENALTY))
            elif up is score and training:
                pairs.append(Pair(up, training, _HACKED))
        return pairs

    def measure(
        self, pair: Pair, fall: Fall | None = None, num_rises: int = 1
    ) -> Divergence | None:
        """None: the one did not fall, or the other did not rise with it.

        `fall`: of held-out accuracy; any other outcome is measured here. `num_rises`: that are held
        against held-out accuracy, of which the clearest is told (Bonferroni).
        """
        down = pair.down
        num_rises = num_rises if down.title == HELD_OUT else 1
        if down.title != HELD_OUT or fall is None:
            fall = self.fall.measure(down.series())
        elif fall.outcome != HELD_OUT:
            return None
        lost = fall.value(fall.top) - fall.value(fall.bottom)
        if fall.onset is None or lost < self._smallest(down):
            return None
        rise = self._rise(pair.up, fall.onset.lower, fall.end_step)
        if rise is None or rise[1] - rise[0] < self._smallest(pair.up):
            return None
        p_rise = min(rise[2] * num_rises, 1.0)
        if p_rise > self.alpha:
            return None
        scale = fall.high_value - fall.low_value
        return Divergence(
            max(fall.p_value, p_rise),
            fall.onset.lower,
            fall.onset.upper,
            rise[0],
            rise[1],
            fall.value(fall.top),
            fall.value(fall.bottom),
            scale * (fall.drop_upper - fall.drop_lower) / 3.92,
            num_rises,
        )

    def _rise(self, up: Outcome, start: int, end: int) -> tuple[float, float, float] | None:
        """Levels before `start` and from `end` on, and the p-value of their difference."""
        width = max(5, len(up.value_T) // 10)
        before = up.value_T[up.step_T <= start][-width:]
        after = up.value_T[up.step_T >= end]
        if len(after) < 5:  # the fall goes on to the end
            after = up.value_T[up.step_T > start][-width:]
        after = after[-width:]
        if min(len(before), len(after)) < 3:
            return None
        centred = np.concatenate([before - before.mean(), after - after.mean()])
        power = float((centred**2).sum())
        lag = float((centred[1:] * centred[:-1]).sum())
        seen = lag / power if power > 0 else 0.0
        rho = min(max(seen, 0.0) + self.correlation * (1 - max(seen, 0.0)), 0.95)
        variance = power / max(len(centred) - 2, 1) * (1 + rho) / (1 - rho)
        error = math.sqrt(variance * (1 / len(before) + 1 / len(after)))
        size = float(after.mean() - before.mean())
        degrees = max((len(centred) - 2) * (1 - rho) / (1 + rho), 2.0)
        p_value = float(stdtr(degrees, -size / error)) if error > 0 else float(size <= 0)
        return float(before.mean()), float(after.mean()), p_value

    def _smallest(self, outcome: Outcome) -> float:
        if outcome.is_share:
            return self.min_points
        return self.min_part * float(np.quantile(np.abs(outcome.value_T), 0.95))

    def _of_run(self, run: Run, name: str, title: str) -> Outcome | None:
        if name not in names(RunLedger):
            return None
        signal = run.run_metric(name)
        value_T = np.asarray(signal.value_T, dtype=np.float64)
        known = np.isfinite(value_T)
        if known.sum() < self.min_steps:
            return None
        return Outcome(title, signal.step_T[known], value_T[known], name == "accuracy")

    def _held_out(self, run: Run) -> Outcome | None:
        evaluations = run.evaluations()
        accuracy = evaluations.accuracy()
        rate_T = np.asarray(accuracy.value_T, dtype=np.float64)
        known = np.isfinite(rate_T)
        if known.sum() < self.min_evaluations:
            return None
        return Outcome(HELD_OUT, accuracy.step_T[known], rate_T[known], True)

    def _finding(self, pair: Pair, found: Divergence, others: list[Pair]) -> Finding:
        up, down = pair.up, pair.down
        fall = found.down_before - found.down_after
        chosen = (
            f" (the clearest of {found.num_rises} rises that were asked, and corrected for them)"
            if found.num_rises > 1
            else ""
        )
        evidence = [
            f"p = {found.p_value:.2g}, the larger of two: that {down.title} fell "
            f"and that {up.title} rose over the same steps{chosen}",
            *(f"{other.up.title} rose, too, while {other.down.title} fell" for other in others),
        ]
        return Finding(
            "reward hacking",
            "run",
            f"From step {found.start} on {up.title} rose from {up.told(found.up_before)} to "
            f"{up.told(found.up_after)} while {down.title} fell from "
            f"{down.told(found.down_before)} to {down.told(found.down_after)}: {pair.meaning}.",
            fall,
            "fall of " + down.title,
            "high" if found.p_value <= 0.01 else "moderate",
            Onset(found.start, found.start, found.upper),
            # Asked only of runs that fell, which is a test of its own: no part of the family.
            None if down.title == HELD_OUT else found.p_value,
            tuple(evidence),
            fall - 1.96 * found.down_error,
            fall + 1.96 * found.down_error,
        )


_HACKED = (
    "what is rewarded is no longer what is measured (a reward or grader that can be exploited; "
    "training problems learned by heart look the same)"
)
_PENALTY = "the penalty pays for it, not the task"
