"""The largest loss of a series equals a slow search over all its stretches."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from analysis.cliff.scan import FEW, largest_loss, stretches


def slowly(value_T: np.ndarray, variance_T: np.ndarray, weight_T: np.ndarray) -> float:
    points, best = len(value_T), 0.0
    for length, starts, stops in stretches(points):
        ends = [np.where(np.arange(points) >= points - length, weight_T, 0.0)]
        if length == 2 and points >= FEW:  # of a fall that has just begun, a third before the last
            ends.append(np.r_[np.zeros(points - 2), weight_T[-2] / 3, weight_T[-1]])
        for (start, stop), end_T in product(zip(starts, stops, strict=True), ends):
            early_T = np.zeros(points)
            early_T[start:stop] = weight_T[start:stop]
            weight_PT = np.array([early_T / early_T.sum(), end_T / end_T.sum()])
            before, after = weight_PT @ value_T
            best = max(best, (before - after) / np.sqrt((weight_PT**2 @ variance_T).sum()))
    return best


@pytest.mark.parametrize("points", [2, 3, 5, 8, 21])
def test_scan_equals_the_slow_search(points: int) -> None:
    rng = np.random.default_rng(points)
    value_BT = rng.random((4, points))
    variance_T, weight_T = rng.uniform(0.5, 2, points) / 100, rng.integers(20, 60, points) * 1.0
    expected = [slowly(value_T, variance_T, weight_T) for value_T in value_BT]
    np.testing.assert_allclose(largest_loss(value_BT, variance_T, weight_T), expected)


def test_loss_by_hand() -> None:
    # .5 .5 .5 .5 .5 .5 .1 .1, sd .1 each: the best stretch is the first four (half of eight is the
    # longest), the end the last two: .4 / (.1 sqrt(1/4 + 1/2)).
    value = np.array([[0.5] * 6 + [0.1] * 2])
    z = largest_loss(value, np.full(8, 0.01), np.ones(8))[0]
    assert z == pytest.approx(0.4 / (0.1 * np.sqrt(1 / 4 + 1 / 2)))


def test_inner_stretches_and_ends_have_two_points_unless_there_are_few() -> None:
    for length, starts, stops in stretches(20):
        assert length >= 2
        assert ((stops - starts >= 2) | (starts == 0)).all()
        assert (stops <= 20 - length).all()
        assert starts[stops - starts == 1].tolist() == [0], "the base model is a level of its own"
    assert {length for length, _, _ in stretches(5)} == {1}
