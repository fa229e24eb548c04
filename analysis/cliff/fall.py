"""Hold what was measured of a run's end: its levels, and the loss between them.

Legend: T evaluations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from analysis.cliff.accuracy import Outcome
from analysis.cliff.ramp import Progress
from analysis.cliff.swings import Swing
from analysis.findings import Onset, level, points
from gradlab.arrays import Floats

Shape = Literal[
    "none",
    "small loss",
    "cliff",
    "fall",
    "decay",
    "swings",
    "last evaluation low",
    "never learned",
    "changed set",
    "too few evaluations",
]
"""'none': no loss beyond noise. 'swings': the end is the low of one more swing. 'changed set':
other problems were evaluated from some moment on, so nothing can be compared."""
FALLS = ("cliff", "fall", "decay")
Kind = Literal["", "early collapse", "two falls"]


@dataclass(frozen=True)
class Fall:
    """What the test measured; accuracies are shares, positions training steps."""

    shape: Shape
    num_evaluations: int
    p_value: float = math.nan
    """That the end is no lower than the best level held."""
    top: float = math.nan
    """Best level: the highest mean of `window` successive evaluations, before the fall if any."""
    top_step: int = -1
    """Middle of that stretch."""
    bottom: float = math.nan
    """Last level: the mean of the last `end_window` evaluations."""
    drop: float = math.nan
    """`top` - `bottom`."""
    drop_lower: float = math.nan
    drop_upper: float = math.nan
    """Approximate 95 % interval of the true loss, corrected for the choice of the best level."""
    window: int = 0
    """Evaluations in the best level: no more than there are before the fall."""
    end_window: int = 0
    """No more than there are on the new level; 1 in a fall that is still going on."""
    onset: Onset | None = None
    """Last evaluation before the fall; the interval reaches to the first one after it."""
    end_step: int = -1
    """First evaluation on the new level; the last one of the run where there is none yet."""
    progress: Progress = ""
    low: float = math.nan
    """Lowest level since the fall began, where some of it came back."""
    low_step: int = -1
    kind: Kind = ""
    changed_after: int = -1
    """Index of the last evaluation on another set of problems; -1: they are the same throughout."""
    second_step: int = -1
    """Last evaluation before the second of two falls."""
    swings: tuple[Swing, ...] = ()
    """Losses that came back, elsewhere in the run; positions are indices of evaluations."""
    swing_step_T: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """[T] steps of those indices."""
    onset_weight_T: Floats = field(default_factory=lambda: np.zeros(0))
    """[T] plausibility of each evaluation as the last before the fall; sums to 1."""
    onset_step_T: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """[T] steps of `onset_weight_T`."""
    dispersion: float = math.nan
    """Variance of one evaluation over binomial."""
    sigma: float = math.nan
    """Standard deviation of one evaluation around the true accuracy."""
    wander: float = math.nan
    """Standard deviation of the true accuracy around its trend, outside the fall."""
    detectable_drop: float = math.nan
    """Smallest loss called a fall in 4 of 5 runs like this one."""
    p_gain: float = math.nan
    """That accuracy never rose above its first level."""
    detectable_gain: float = math.nan
    run_steps: int = 0
    """From the first evaluation to the last."""
    base: float = math.nan
    """First evaluation."""
    first_step: int = -1
    last: float = math.nan
    """Last evaluation, alone."""
    last_step: int = -1
    outcome: Outcome = "held-out accuracy"
    is_assumed: bool = False
    """The noise is inferred: no number of answers is recorded."""
    low_value: float = 0.0
    """Of the outcome at rate 0."""
    high_value: float = 1.0

    @property
    def fell(self) -> bool:
        return self.shape in FALLS

    @property
    def is_scaled(self) -> bool:
        """Rewards outside 0..1: levels are shares of the range that they moved in."""
        return (self.low_value, self.high_value) != (0.0, 1.0)

    def value(self, rate: float) -> float:
        """A level in the outcome's own unit."""
        return self.low_value + rate * (self.high_value - self.low_value)

    def level(self, rate: float) -> str:
        """A level in words: '58 %', or '0.58' of a reward."""
        return level(self.value(rate), self.outcome)

    def loss(self, share: float) -> str:
        """A difference of levels in words: '12 points', or '0.12' of a reward."""
        if self.outcome != "training reward":
            return points(share)
        return f"{share * (self.high_value - self.low_value):.2g}"

    @property
    def width_steps(self) -> int:
        """Steps from the last good evaluation to the first on the new level, or to the last one."""
        return self.end_step - self.onset.step if self.onset else 0

    def beginnings(self, num: int, rng: np.random.Generator) -> Floats:
        """[num] plausible true beginnings of the fall; empty without a dated one.

        An evaluation by its weight, then uniformly between it and the next one.
        """
        if self.onset is None:
            return np.zeros(0)
        step_T = self.onset_step_T.astype(np.float64)
        pick = rng.choice(len(step_T), num, p=self.onset_weight_T)
        after = np.minimum(pick + 1, len(step_T) - 1)
        drawn: Floats = step_T[pick] + rng.random(num) * (step_T[after] - step_T[pick])
        return drawn

    @property
    def width_share(self) -> float:
        """The same as a share of the run."""
        return self.width_steps / self.run_steps if self.run_steps else math.nan

    @property
    def width_interval(self) -> tuple[int, int]:
        """Widths of the plausible beginnings of the fall."""
        if self.onset is None:
            return 0, 0
        last_good = self.onset_step_T[
            self.onset_step_T < max(self.onset.upper, self.onset.step + 1)
        ]
        return self.end_step - int(last_good[-1]), self.end_step - self.onset.lower
