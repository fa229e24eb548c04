"""Ramps found where they were planted."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.series.bend import bins, bridged, find_bends


def test_exact_ramp_is_found_exactly() -> None:
    point = np.arange(40)
    series = 2.0 + 3.0 * np.clip((point - 17) / (23 - 17), 0, 1)
    bend = find_bends(series[None, :], np.random.default_rng(0))[0]
    assert (bend.onset, bend.end) == (17, 23)
    assert bend.before == pytest.approx(2.0)
    assert bend.after == pytest.approx(5.0)


def test_best_ramp_equals_least_squares_over_all_pairs() -> None:
    rng = np.random.default_rng(3)
    series = rng.standard_normal(15)
    best = np.inf
    for onset in range(15):
        for end in range(onset + 1, 15):
            ramp = np.clip((np.arange(15) - onset) / (end - onset), 0, 1)
            design = np.stack([np.ones(15), ramp], axis=1)
            best = min(best, float(np.linalg.lstsq(design, series)[1][0]))
    bend = find_bends(series[None, :], rng)[0]
    assert bend.noise**2 * (15 - 4) == pytest.approx(best)


def test_bootstrap_of_the_onset_surrounds_the_truth() -> None:
    hits = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        series = np.where(np.arange(80) > 50, 4.0, 0.0) + rng.standard_normal(80)
        bend = find_bends(series[None, :], rng, num_draws=100)[0]
        low, high = np.quantile(bend.onset_B, [0.05, 0.95])
        hits += low <= 50 <= high
    assert hits >= 16


def test_bins_average_what_is_finite_and_gaps_are_bridged() -> None:
    values = np.array([1.0, 3.0, np.nan, 5.0, np.nan, np.nan, 8.0])
    np.testing.assert_allclose(bins(values, 2), [2.0, 5.0, np.nan, 8.0])
    np.testing.assert_allclose(bridged(bins(values, 2)), [2.0, 5.0, 6.5, 8.0])


def test_too_few_points_are_refused() -> None:
    with pytest.raises(ValueError, match="needs 4 or more"):
        find_bends(np.zeros((1, 3)), np.random.default_rng(0))


def test_memory_of_residuals_tells_noise_from_a_random_walk() -> None:
    rng = np.random.default_rng(0)
    noise, walk = rng.standard_normal(200), np.cumsum(rng.standard_normal(200))
    bends = find_bends(np.stack([noise, walk]), rng)
    assert bends[0].memory < 1.5
    assert bends[1].memory > 5
