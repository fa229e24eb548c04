"""Name runs whose truth is known: failures to be found, and innocent ones that look like failures.

Example:
    >>> scenario = SCENARIOS["dip and recovery"]
    >>> synthetic_run("out/dip", **scenario.settings(500, seed=1)).name
    'run.zarr'
    >>> scenario.truth
    'healthy'
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from analysis.synthetic.planted import Capture, Cliff, Shift, Spike

Truth = Literal["healthy", "cliff", "slow decay", "cannot tell"]
Settings = dict[str, Any]


@dataclass(frozen=True)
class Scenario:
    """One kind of run."""

    truth: Truth
    """What may be said about its accuracy; 'cannot tell' is never wrong."""
    causes: tuple[str, ...]
    """What was planted before the drop, in the words of `Cause.name`; several cannot be told
    apart by one run."""
    plant: Callable[[int, np.random.Generator], Settings]

    def settings(self, steps: int = 500, *, seed: int = 0) -> Settings:
        """Arguments of `synthetic_run`: the moment is drawn from the seed."""
        rng = np.random.default_rng([seed, 1])
        return {"steps": steps, "seed": seed, **self.plant(steps, rng)}


def fall(steps: int, rng: np.random.Generator) -> int:
    """When a cliff begins: in the second half of the run."""
    return int(rng.integers(steps // 2, round(0.85 * steps)))


def _before(fall: int, steps: int, rng: np.random.Generator) -> int:
    """When its cause begins: 6 to 14 % of the run earlier."""
    return fall - int(rng.integers(round(0.06 * steps), round(0.14 * steps)))


def _caused(*plants: str) -> Callable[[int, np.random.Generator], Settings]:
    def plant(steps: int, rng: np.random.Generator) -> Settings:
        at = fall(steps, rng)
        began = _before(at, steps, rng)
        settings: Settings = {"cliff": Cliff(at, 0.25)}
        shifts = []
        for name in plants:
            if name == "capture":
                settings["capture"] = Capture("generator", began, 8.0)
            elif name == "spike":
                settings["spikes"] = (Spike("generator", began, 30.0, 2),)
            else:
                shifts.append(SHIFTS[name](began))
        return settings | {"shifts": tuple(shifts)}

    return plant


SHIFTS: dict[str, Callable[[int], Shift]] = {
    "kl": lambda step: Shift("kl", "generator", step, 8.0),
    "entropy": lambda step: Shift("entropy", "aggregator", step, 0.3),
    "length": lambda step: Shift("length_mean", "aggregator", step, 2.5),
    "format": lambda step: Shift("parse_failures", "aggregator", step, 25.0),
    "starvation": lambda step: Shift("zero_variance_groups", "generator", step, 2.6),
    "gap": lambda step: Shift("logprob_gap", "generator", step, 25.0),
    "rate": lambda step: Shift("learning_rate", "generator", step, 4.0),
}

SCENARIOS: dict[str, Scenario] = {
    "healthy": Scenario("healthy", (), lambda steps, rng: {}),
    "healthy, accuracy wanders": Scenario("healthy", (), lambda steps, rng: {"wander": 0.3}),
    "healthy, shares wander": Scenario(
        "healthy", (), lambda steps, rng: {"noise": 0.7, "memory": 0.8}
    ),
    "dip and recovery": Scenario(
        "healthy",
        (),
        lambda steps, rng: {
            "cliff": Cliff(int(rng.integers(steps // 3, steps // 2)), 0.15, "dip", steps // 10)
        },
    ),
    "last evaluation low": Scenario(
        "cannot tell", (), lambda steps, rng: {"cliff": Cliff(steps, 0.2, "last")}
    ),
    "slow decay": Scenario(
        "slow decay",
        (),
        lambda steps, rng: {
            "cliff": Cliff(int(0.3 * steps), 0.3, "slow decay", int(0.6 * steps)),
            "problems": 300,
        },
    ),
    "capture without harm": Scenario(
        "healthy", (), lambda steps, rng: {"capture": Capture("generator", steps // 2, 8.0)}
    ),
    "harm without capture": Scenario("cliff", (), _caused()),
    "more steps for parallel agents": Scenario(
        "healthy", (), lambda steps, rng: {"routing": "isolated", "updates_by": "samples"}
    ),
    "capture, then a cliff": Scenario("cliff", ("capture by generator",), _caused("capture")),
    "gradient spike, then a cliff": Scenario(
        "cliff", ("gradient spike of generator",), _caused("spike")
    ),
    "KL drift, then a cliff": Scenario("cliff", ("KL drift of generator",), _caused("kl")),
    "entropy collapse, then a cliff": Scenario(
        "cliff", ("entropy collapse of aggregator",), _caused("entropy")
    ),
    "length blow-up, then a cliff": Scenario(
        "cliff", ("length blow-up of aggregator",), _caused("length")
    ),
    "broken format, then a cliff": Scenario(
        "cliff", ("role breakdown of aggregator",), _caused("format")
    ),
    # Groups without spread follow from rewards: told as a finding, and no suspect.
    "advantage starvation, then a cliff": Scenario("cliff", (), _caused("starvation")),
    "rollout gap, then a cliff": Scenario("cliff", ("rollout gap of generator",), _caused("gap")),
    "learning rate up, then a cliff": Scenario(
        "cliff", ("shared learning rate up",), _caused("rate")
    ),
    "capture and entropy collapse at once": Scenario(
        "cliff",
        ("capture by generator", "entropy collapse of aggregator"),
        _caused("capture", "entropy"),
    ),
    "KL drift and broken format at once": Scenario(
        "cliff",
        ("KL drift of generator", "role breakdown of aggregator"),
        _caused("kl", "format"),
    ),
}
