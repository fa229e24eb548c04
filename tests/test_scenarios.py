"""Scenarios make what they name."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.detectors.table import KINDS
from analysis.synthetic.planted import Cliff
from analysis.synthetic.scenarios import SCENARIOS, fall


def test_settings_depend_on_the_seed_alone() -> None:
    for scenario in SCENARIOS.values():
        assert scenario.settings(300, seed=3) == scenario.settings(300, seed=3)


@pytest.mark.parametrize("steps", [100, 200, 500])
def test_causes_begin_before_the_fall_and_within_reach(steps: int) -> None:
    for seed in range(20):
        at = fall(steps, np.random.default_rng(seed))
        assert steps // 2 <= at < 0.85 * steps
        settings = SCENARIOS["capture, then a cliff"].settings(steps, seed=seed)
        lead = settings["cliff"].step - settings["capture"].step
        assert 0.05 * steps <= lead <= 100


def test_truths_and_plants_agree() -> None:
    for name, scenario in SCENARIOS.items():
        cliff = scenario.settings(200).get("cliff")
        if scenario.truth == "cliff":
            assert isinstance(cliff, Cliff), name
            assert cliff.kind == "cliff"
        if cliff is None:
            assert scenario.truth == "healthy"
        if scenario.causes:
            assert scenario.truth == "cliff"
    kinds = {
        cause.split(" by ")[0].split(" of ")[0] for s in SCENARIOS.values() for cause in s.causes
    }
    assert kinds - {"shared learning rate up"} <= set(KINDS)
