"""Pooling of updates and steps against numbers worked out by hand."""

from __future__ import annotations

import numpy as np

from gradlab.readout.pooling import last_update, mean_of_defined, trailing_mean


def test_means_over_updates_and_windows_skip_what_is_not_defined() -> None:
    step_U = np.array([1, 1, 3, 4])
    value_U = np.array([2.0, np.nan, np.nan, 5.0])
    step_T, value_T = mean_of_defined(step_U, value_U)
    assert step_T.tolist() == [1, 3, 4]
    np.testing.assert_array_equal(value_T, [2, np.nan, 5])
    np.testing.assert_array_equal(trailing_mean(value_T, 2), [2, 2, 5])
    np.testing.assert_array_equal(trailing_mean(value_T, 3), [2, 2, 3.5])
    assert last_update(step_U, value_U)[1][2] == 5


def test_a_window_forgets_a_huge_value_that_has_left_it() -> None:
    found = trailing_mean(np.array([1e30, 1.0, 3.0]), 2)
    assert found[2] == 2
