"""Isotonic fits against scipy, brute force and numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import isotonic_regression
from scipy.special import xlogy

from analysis.isotonic import fit_prefixes, unimodal_ratio


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
            loglik = np.sum(
                xlogy(correct_T[:stop], fit_T)
                + xlogy(trials_T[:stop] - correct_T[:stop], 1 - fit_T)
            )
            assert fits.sse_BT[series, stop - 1] == pytest.approx(sse, abs=1e-9)
            assert fits.top_BT[series, stop - 1] == pytest.approx(fit_T[-1])
            assert fits.loglik_BT[series, stop - 1] == pytest.approx(loglik)


def test_pooling_by_hand() -> None:
    # 1/10, 5/10, 2/10, 8/10: 5 and 2 violate and pool to 7/20; 8/10 stays above.
    fit = fit_prefixes(np.array([[1.0, 5.0, 2.0, 8.0]]), np.full(4, 10.0))
    np.testing.assert_allclose(fit.fit_BT[0], [0.1, 0.35, 0.35, 0.8])
    # Squared errors: 10 (0.15^2 + 0.15^2) = 0.45.
    assert fit.sse_BT[0, -1] == pytest.approx(0.45)


def test_unimodal_ratio_is_zero_for_a_rise_and_the_best_mode_otherwise() -> None:
    trials_T = np.full(7, 20.0)
    series_BT = np.array([[2, 4, 5, 9, 12, 15, 18], [2, 9, 14, 15, 6, 5, 3]], dtype=float)
    ratio_B = unimodal_ratio(series_BT, trials_T)
    assert ratio_B[0] == pytest.approx(0.0, abs=1e-9)

    def loglik(correct: np.ndarray, fit: np.ndarray) -> float:
        return float(np.sum(xlogy(correct, fit) + xlogy(20 - correct, 1 - fit)))

    correct_T = series_BT[1]
    best = -np.inf
    for mode in range(1, 8):
        rise = isotonic_regression(correct_T[:mode] / 20).x
        fall = isotonic_regression(correct_T[mode:] / 20, increasing=False).x if mode < 7 else []
        best = max(best, loglik(correct_T, np.concatenate([rise, fall])))
    rise_only = loglik(correct_T, isotonic_regression(correct_T / 20).x)
    assert ratio_B[1] == pytest.approx(2 * (best - rise_only))


def test_all_wrong_and_all_right_series_are_finite() -> None:
    fits = fit_prefixes(np.array([[0.0] * 5, [9.0] * 5]), np.full(5, 9.0))
    assert np.isfinite(fits.loglik_BT).all()
    np.testing.assert_allclose(fits.fit_BT, [[0.0] * 5, [1.0] * 5])
