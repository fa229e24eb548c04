"""Say which learning rate a run was set to when it went wrong: the number that an option halves.

Legend: U updates of a policy.
"""

from __future__ import annotations

import math

import numpy as np

from analysis.series.schedule import Schedule
from gradlab.store.run import Run

WARM_UP = 0.25
"""Share of the planned steps that a warm-up may take; a longer rise is a ramp, and half of what it
will reach may be more than what the run fell at."""


def learning_rate(run: Run, when: int | None) -> float:
    """In force after step `when` (None: at the end), the highest of the policies; NaN if unknown.

    Within a warm-up it is the rate that this leads to: options set that one, and half of what a
    run happened to be at in its first steps would never learn. The highest of the whole run would
    not do: with a schedule, or a rise after the fall, half of it may be more than what the run
    fell at.
    """
    rates = []
    for policy in run.policies:
        signal = run.update_metric("learning_rate", policy.name)
        path = Schedule.of(signal.step_T, np.asarray(signal.value_T, dtype=np.float64))
        used_U = path.value_T > 0
        if when is not None:
            used_U &= path.step_T <= when
        if used_U.any():
            last = int(np.flatnonzero(used_U)[-1])
            rates.append(_peak(run, path, last) or float(path.value_T[last]))
    return max(rates, default=math.nan)


def _peak(run: Run, path: Schedule, row: int) -> float:
    """What the warm-up that `row` lies in leads to; 0: it lies in none."""
    not_up_U = np.diff(path.value_T) <= 1e-9 * path.value_T[1:]
    end = int(np.argmax(not_up_U)) if not_up_U.any() else len(path.value_T) - 1
    if row >= end and not_up_U.any():
        return 0.0
    length, peak = float(path.step_T[end]), float(path.value_T[end])
    if not not_up_U.any():  # the run stopped in its warm-up
        length = _number(run, "warmup_steps")
        peak = max(peak, _number(run, "learning_rate"))
    planned = max(_number(run, "steps"), float(run.steps[-1]) if len(run.steps) else 0.0)
    return peak if 0 < length <= WARM_UP * planned else 0.0


def _number(run: Run, name: str) -> float:
    value = run.meta.config.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    return float(value) if math.isfinite(value) else 0.0
