"""A change that wander explains is not found; one that it does not is found in its place."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.series.wander import GRID, find_change, tail_probability
from analysis.synthetic.runs import autoregressive


def p_values(change: float, correlation: float, num: int = 40) -> list[float]:
    """p of a rise by `change` standard deviations at point 30 of 50."""
    found = []
    for seed in range(num):
        rng = np.random.default_rng(seed)
        value_T = autoregressive(50, correlation, rng) + change * (np.arange(50) >= 30)
        found.append(find_change(value_T, rng, sign=1, num_draws=99).p_value)
    return found


@pytest.mark.parametrize("correlation", [0.0, 0.7])
def test_wander_alone_is_no_change(correlation: float) -> None:
    small = sum(p <= 0.05 for p in p_values(0.0, correlation))
    assert small <= 6  # 2 expected of 40; more than 6 has probability 0.004


def test_step_is_found_at_its_point_with_its_size() -> None:
    rng = np.random.default_rng(3)
    value_T = 0.3 * rng.standard_normal(50) - 2.0 * (np.arange(50) >= 30)
    change = find_change(value_T, rng, sign=-1)
    assert change.p_value < 0.01
    assert abs(change.onset - 29) <= 1
    assert change.size == pytest.approx(-2.0, abs=0.3)
    assert 0.05 < change.error < 0.2  # 0.3 sqrt(1/30 + 1/20) = 0.087
    assert find_change(value_T, rng, sign=1).p_value > 0.1  # the wrong direction


def test_power_falls_with_wander_of_the_same_variance() -> None:
    white, slow = (np.mean([p <= 0.05 for p in p_values(2.0, rho)]) for rho in (0.0, 0.8))
    assert white >= 0.65  # 0.775 measured; 0.55 with memory 0.8
    assert slow < white - 0.1


def test_tail_is_counted_in_the_middle_and_exponential_beyond() -> None:
    null_B = np.random.default_rng(0).exponential(2.0, 100_000)
    assert tail_probability(2.0, null_B) == pytest.approx(np.exp(-1), abs=0.03)
    assert tail_probability(14.0, null_B) == pytest.approx(np.exp(-7), rel=0.4)
    assert tail_probability(1000.0, null_B) == 1e-4
    assert tail_probability(1.0, np.zeros(99)) == 0.01


def test_grid_begins_with_white_noise() -> None:
    assert GRID[0] == (0.0, 0.0)
    assert all(0 < share <= 1 and 0 < rho < 1 for share, rho in GRID[1:])
