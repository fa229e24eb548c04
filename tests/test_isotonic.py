"""Isotonic fits against scipy, brute force and numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import isotonic_regression

from analysis.cliff.isotonic import fit_prefixes


def test_fit_equals_scipy_for_every_prefix() -> None:
    rng = np.random.default_rng(0)
    trials_T = rng.integers(5, 40, 23).astype(float)
    correct_BT = rng.binomial(trials_T.astype(int), 0.4, (6, 23)).astype(float)
    fits = fit_prefixes(correct_BT, trials_T)
    for series, correct_T in enumerate(correct_BT):
        rate_T = correct_T / trials_T
        np.testing.assert_allclose(
            fits.fit_BT[series], isotonic_regression(rate_T, weights=trials_T).x, atol=1e-12
        )
        for stop in range(1, 24):
            fit_T = isotonic_regression(rate_T[:stop], weights=trials_T[:stop]).x
            sse = np.sum(trials_T[:stop] * (rate_T[:stop] - fit_T) ** 2)
            assert fits.sse_BT[series, stop - 1] == pytest.approx(sse, abs=1e-9)
            assert fits.top_BT[series, stop - 1] == pytest.approx(fit_T[-1])


def test_pooling_by_hand() -> None:
    # 1/10, 5/10, 2/10, 8/10: 5 and 2 violate and pool to 7/20; 8/10 stays above.
    fit = fit_prefixes(np.array([[1.0, 5.0, 2.0, 8.0]]), np.full(4, 10.0))
    np.testing.assert_allclose(fit.fit_BT[0], [0.1, 0.35, 0.35, 0.8])
    # Squared errors: 10 (0.15^2 + 0.15^2) = 0.45.
    assert fit.sse_BT[0, -1] == pytest.approx(0.45)


def test_constant_series_fit_exactly() -> None:
    fits = fit_prefixes(np.array([[0.0] * 5, [9.0] * 5]), np.full(5, 9.0))
    np.testing.assert_allclose(fits.fit_BT, [[0.0] * 5, [1.0] * 5])
