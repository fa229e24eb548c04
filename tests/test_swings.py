"""Swings are counted where they were planted, and noise makes none."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.cliff.swings import find_swings


def test_swing_by_hand() -> None:
    # Up to .7 at 4, down to .5 at 6, back to .68 at 8: lost .2, regained .18.
    value = np.array([0.4, 0.5, 0.6, 0.65, 0.7, 0.6, 0.5, 0.6, 0.68, 0.67])
    (swing,) = find_swings(value, np.full(10, 1e-6), 0.05)
    assert (swing.start, swing.low, swing.back) == (4, 6, 8)
    assert swing.size == pytest.approx(0.2)
    assert swing.regained == pytest.approx(0.18)


def test_loss_that_does_not_come_back_is_no_swing() -> None:
    value = np.array([0.4, 0.6, 0.7, 0.7, 0.4, 0.4, 0.45, 0.45])
    assert find_swings(value, np.full(8, 1e-6), 0.05) == ()


@pytest.mark.parametrize("points", [10, 50, 100])
def test_noise_makes_few_swings(points: int) -> None:
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(200):
        value = 0.5 + 0.02 * rng.standard_normal(points)
        found += bool(find_swings(value, np.full(points, 0.0004), 0.01))
    assert found <= 20


def test_long_shallow_swings_show_in_averages() -> None:
    rng = np.random.default_rng(1)
    truth = np.repeat([0.5, 0.4, 0.5, 0.4, 0.5], 10)
    value = truth + 0.02 * rng.standard_normal(50)
    swings = find_swings(value, np.full(50, 0.0004), 0.05)
    assert len(swings) == 2
