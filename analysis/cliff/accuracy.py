"""Read a run's outcome as a series: held-out evaluations, or what training itself recorded.

Without evaluations a run is judged by the accuracy of its training episodes, else by their reward,
and every sentence says so: training problems change, and training optimizes what it is paid for.

Legend: T evaluations, P problems, S samples per problem.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gradlab.arrays import Floats
from gradlab.records import Signal
from gradlab.store.run import Run

Outcome = Literal["held-out accuracy", "training accuracy", "training reward"]
"""What a run is judged by, in the order of preference."""
TRAINING: tuple[tuple[str, Outcome], ...] = (
    ("accuracy", "training accuracy"),
    ("reward_mean", "training reward"),
)
"""Fields of `RunLedger` that stand in for evaluations."""
MIN_EVALUATIONS = 2
"""Fewer held-out evaluations than this say less than the record of training."""
MIN_STEPS = 8
"""Fewer steps of training are no series."""
MAX_TRAINING_POINTS = 60
"""Steps of training are averaged in neighbours until no more remain: one step is a noisy batch."""


@dataclass(frozen=True)
class AccuracySeries:
    """Evaluations with at least one graded answer, in order."""

    step_T: NDArray[np.int64]
    correct_T: Floats
    """Answers that were right."""
    trials_T: Floats
    """Graded answers."""
    solved_TP: Floats | None = None
    """[T, P] share of a problem's samples solved, NaN missing; None: not recorded."""
    samples: int = 1
    """Samples per problem."""
    outcome: Outcome = "held-out accuracy"
    is_assumed: bool = False
    """Only rates are known: their noise is taken from how much successive ones differ, and
    `trials_T` is 1."""
    low: float = 0.0
    """The outcome's value at rate 0; other than 0 for rewards outside 0..1."""
    high: float = 1.0
    """The same at rate 1."""

    @classmethod
    def of(cls, run: Run) -> AccuracySeries:
        evaluations = run.evaluations()
        trials = np.asarray(evaluations.num_samples_E(), dtype=np.float64)
        kept = trials > 0
        correct_EPS = np.asarray(evaluations.correct_EPS, dtype=np.float64)[kept]
        samples = correct_EPS.shape[2] if correct_EPS.ndim == 3 else 1
        return cls(
            np.asarray(evaluations.step_E, dtype=np.int64)[kept],
            np.asarray(evaluations.num_correct_E(), dtype=np.float64)[kept],
            trials[kept],
            mean_over_samples(correct_EPS) if correct_EPS.size else None,
            samples,
        )

    @property
    def rate_T(self) -> Floats:
        return self.correct_T / self.trials_T

    def rate(self, start: int, stop: int) -> float:
        """Accuracy over evaluations start..stop-1; NaN when there are none."""
        if stop <= start:
            return math.nan
        return float(self.correct_T[start:stop].sum() / self.trials_T[start:stop].sum())

    def __len__(self) -> int:
        return len(self.step_T)

    def pooled(self, max_points: int) -> AccuracySeries:
        """Neighbouring evaluations added up, so that at most `max_points` remain.

        Nothing is lost for a cliff that lasts; the scan over turning points is quadratic.
        """
        size = math.ceil(len(self) / max_points)
        if size <= 1:
            return self
        starts = np.arange(0, len(self), size)
        correct, trials = (np.add.reduceat(v, starts) for v in (self.correct_T, self.trials_T))
        if self.is_assumed:  # an average of rates is one rate
            correct, trials = correct / trials, np.ones(len(starts))
        return replace(
            self, step_T=self.step_T[starts], correct_T=correct, trials_T=trials, solved_TP=None
        )

    @property
    def is_scaled(self) -> bool:
        """Rewards outside 0..1: rates are shares of the range that they moved in."""
        return (self.low, self.high) != (0.0, 1.0)


def rates_alone(run: Run) -> Signal:
    """Evaluations with a rate and no number of answers: nothing says how noisy they are."""
    evaluations = run.evaluations()
    accuracy = evaluations.accuracy()
    rate_T = np.asarray(accuracy.value_T, dtype=np.float64)
    alone = np.isfinite(rate_T) & (evaluations.num_samples_E() == 0)
    return Signal(accuracy.name, "1", "run", accuracy.step_T[alone], rate_T[alone])


def outcome_of(run: Run) -> AccuracySeries:
    """The best outcome that the run recorded: counted answers, rates, training accuracy, reward."""
    counted, rates = AccuracySeries.of(run), rates_alone(run)
    held_out = counted if len(counted) >= len(rates.step_T) else _assumed(rates)
    if len(held_out) >= MIN_EVALUATIONS:
        return held_out
    for name, outcome in TRAINING:
        signal = run.run_metric(name)
        value_T = np.asarray(signal.value_T, dtype=np.float64)
        known = np.isfinite(value_T)
        if known.sum() >= MIN_STEPS:
            kept = Signal(name, signal.unit, "run", signal.step_T[known], value_T[known])
            return series_of(kept, outcome)
    return held_out


def series_of(signal: Signal, outcome: Outcome) -> AccuracySeries:
    """A record of training as an outcome."""
    return _assumed(signal, outcome).pooled(MAX_TRAINING_POINTS)


def _assumed(rates: Signal, outcome: Outcome = "held-out accuracy") -> AccuracySeries:
    """Values of unknown noise as a series; rewards outside 0..1 are scaled to their own range."""
    value_T = np.asarray(rates.value_T, dtype=np.float64)
    low, high = 0.0, 1.0
    if len(value_T) and not (value_T.min() >= 0.0 and value_T.max() <= 1.0):
        low, high = float(value_T.min()), float(value_T.max())
        if low == high:  # it never moved: half of a range of its own
            low, high = low - 0.5, high + 0.5
    rate_T = (value_T - low) / (high - low)
    step_T = np.asarray(rates.step_T, dtype=np.int64)
    return AccuracySeries(
        step_T, rate_T, np.ones(len(rate_T)), outcome=outcome, is_assumed=True, low=low, high=high
    )


def mean_over_samples(correct_EPS: Floats) -> Floats:
    """[E, P] mean over the samples that were graded; NaN where none was."""
    graded = np.isfinite(correct_EPS)
    count = graded.sum(axis=2)
    total = np.where(graded, correct_EPS, 0.0).sum(axis=2)
    mean: Floats = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return mean


def wilson(correct_E: Floats, num_E: Floats, z: float = 1.96) -> tuple[Floats, Floats]:
    """Wilson's score interval of correct / num, never outside 0..1; NaN without answers."""
    num = np.where(num_E > 0, num_E, np.nan)
    rate = correct_E / num
    middle = (rate + z**2 / (2 * num)) / (1 + z**2 / num)
    half = z * np.sqrt(rate * (1 - rate) / num + z**2 / (4 * num**2)) / (1 + z**2 / num)
    return middle - half, middle + half
