"""The drop is found where it was planted, and nowhere in innocent runs."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.accuracy import (
    TRIMMED_MEAN,
    AccuracySeries,
    dispersion_of_differences,
    dispersion_of_problems,
    mean_over_samples,
)
from analysis.cliff import CliffResult, CliffTest
from analysis.isotonic import fit_prefixes
from analysis.ramp import fit_ramp
from analysis.synthetic import Cliff, accuracy_curve, evaluation_matrix

SEEDS = range(12)


def series_of(
    cliff: Cliff | None,
    seed: int,
    *,
    evals: int = 51,
    problems: int = 200,
    samples: int = 1,
    wander: float = 0.0,
) -> AccuracySeries:
    rng = np.random.default_rng(seed)
    step_E = np.arange(evals) * 10
    rate_E = accuracy_curve(step_E, int(step_E[-1]), cliff)
    matrix = evaluation_matrix(rate_E, problems, samples, rng, wander=wander).astype(float)
    num = np.full(evals, float(problems * samples))
    return AccuracySeries(step_E, matrix.sum(axis=(1, 2)), num, mean_over_samples(matrix), samples)


def results_of(cliff: Cliff | None, **settings: int) -> list[CliffResult]:
    return [CliffTest().measure(series_of(cliff, seed, **settings)) for seed in SEEDS]


def test_cliff_is_found_at_its_step_with_its_size() -> None:
    for result in results_of(Cliff(step=350, drop=0.2)):
        assert result.shape == "cliff"
        assert result.onset is not None
        assert result.onset.lower <= 340 <= result.onset.upper  # the last good evaluation
        assert abs(result.onset.step - 340) <= 20
        assert result.drop == pytest.approx(0.2, abs=0.07)
        assert result.p_value <= 0.01


def test_interval_of_the_drop_uses_the_larger_of_both_noises() -> None:
    # 3.92 standard errors of a window of 6 against the 21 evaluations from step 300 on.
    ratios = []
    for result in results_of(Cliff(step=300, drop=0.2), problems=500):
        binomial = 0.5 * (result.top * (1 - result.top) + result.bottom * (1 - result.bottom)) / 500
        error = np.sqrt(result.dispersion * binomial * (1 / 6 + 1 / 21))
        ratios.append((result.drop_upper - result.drop_lower) / (3.92 * error))
    assert min(ratios) > 0.9


def test_intervals_of_the_drop_cover_it() -> None:
    results = results_of(Cliff(step=300, drop=0.2))
    assert sum(r.drop_lower <= 0.2 <= r.drop_upper for r in results) >= 10


@pytest.mark.parametrize(
    "innocent",
    [None, Cliff(250, 0.15, "dip", 50), Cliff(0, 0.0)],
    ids=["healthy", "dip that recovers", "no drop"],
)
def test_nothing_is_found_in_innocent_runs(innocent: Cliff | None) -> None:
    found = [result.shape for result in results_of(innocent)]
    assert found.count("cliff") + found.count("slow decay") == 0
    assert found.count("none") >= len(SEEDS) - 1


def test_slow_decay_is_told_from_a_cliff() -> None:
    shapes = [r.shape for r in results_of(Cliff(150, 0.3, "slow decay", 300), problems=500)]
    assert shapes.count("slow decay") >= len(SEEDS) - 1


def test_drop_in_the_last_evaluation_alone_is_not_called_a_cliff() -> None:
    for result in results_of(Cliff(500, 0.5, "last"), problems=1000):
        assert result.shape in ("none", "unresolved drop")
        assert result.shape == "none" or result.only_last


def test_short_run_is_refused_and_the_shortest_is_judged() -> None:
    assert CliffTest().measure(series_of(None, 0, evals=7)).shape == "too few evaluations"
    short = [CliffTest().measure(series_of(Cliff(50, 0.4), seed, evals=10)).shape for seed in SEEDS]
    assert short.count("cliff") >= 8
    healthy = [CliffTest().measure(series_of(None, seed, evals=8)).shape for seed in SEEDS]
    assert set(healthy) == {"none"}


def test_detectable_drop_follows_the_formula() -> None:
    result = CliffTest().measure(series_of(None, 3, problems=100))
    # s = sqrt(2 phi p (1 - p) / (n w)) with p about 0.57, n = 100, w = 6, about 0.025: 4.6 s.
    sigma = np.sqrt(2 * 0.57 * 0.43 / (100 * 6) * result.dispersion)
    assert result.detectable_drop == pytest.approx(4.6 * sigma, rel=0.15)
    # With 4000 answers s is 0.004, and the gate of 5 points is what limits: 0.05 + 2.4 s.
    result = CliffTest().measure(series_of(None, 3, problems=4000))
    sigma = np.sqrt(2 * 0.57 * 0.43 / (4000 * 6) * result.dispersion)
    assert result.detectable_drop == pytest.approx(0.05 + 2.4 * sigma, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(("evals", "problems"), [(13, 100), (51, 100), (51, 500)])
def test_detectable_drop_is_found_in_4_of_5_runs(evals: int, problems: int) -> None:
    """In runs that rise and then fall late, the size taken from healthy runs of the same design."""
    test, num = CliffTest(), 100
    healthy = [series_of(None, seed, evals=evals, problems=problems) for seed in range(20)]
    size = float(np.median([test.measure(series).detectable_drop for series in healthy]))
    found = 0
    for seed in range(num):
        step = int(np.random.default_rng(seed).integers(evals // 2, 0.85 * evals)) * 10
        series = series_of(Cliff(step, size), seed, evals=evals, problems=problems)
        found += test.measure(series).shape != "none"
    assert found >= 70  # 80 expected, 3 standard errors of 4


def test_dispersion_by_hand() -> None:
    # Rates .5 .6 .5 .6 of 100: m = .55, every q = .01 / (.2475 * .02) = 2.0202; over c.
    series = AccuracySeries(np.arange(4), np.array([50.0, 60.0, 50.0, 60.0]), np.full(4, 100.0))
    assert dispersion_of_differences(series) == pytest.approx(2.0202 / TRIMMED_MEAN, rel=1e-4)
    assert 0.4 < TRIMMED_MEAN < 0.6
    draws = np.sort(np.random.default_rng(0).chisquare(1, 200_000))
    assert draws[: int(0.85 * 200_000)].mean() == pytest.approx(TRIMMED_MEAN, abs=0.01)


def test_dispersion_of_problems_by_hand() -> None:
    # 4 problems, one of which flips at each evaluation: flips / 2 = 1/8, p (1 - p) = 1/4.
    solved = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]])
    series = AccuracySeries(
        np.arange(5), solved.sum(axis=1).astype(float), np.full(5, 4.0), solved.astype(float)
    )
    rate = solved.mean(axis=1)
    expected = (1 / 8) / np.mean(rate * (1 - rate))
    assert dispersion_of_problems(series) == pytest.approx(expected)


def test_known_problems_make_the_test_sharper() -> None:
    plain, known = [], []
    for seed in range(16):
        series = series_of(Cliff(300, 0.1), seed, problems=60, evals=41)
        known.append(CliffTest().measure(series).shape != "none")
        bare = AccuracySeries(series.step_T, series.correct_T, series.trials_T)
        plain.append(CliffTest().measure(bare).shape != "none")
    assert sum(known) > sum(plain)


def test_ramp_errors_equal_explicit_curves() -> None:
    rng = np.random.default_rng(1)
    trials_T = rng.integers(20, 60, 12).astype(float)
    correct_T = rng.binomial(trials_T.astype(int), 0.5).astype(float)
    weight_T = trials_T / trials_T.mean()
    rate_T = correct_T / trials_T
    fit = fit_ramp(correct_T[None, :], trials_T)
    for onset, end, sse in zip(fit.onset_C, fit.end_C, fit.sse_BC[0], strict=True):
        rise = fit_prefixes(correct_T[None, : onset + 1], trials_T[: onset + 1]).fit_BT[0]
        bottom = correct_T[end:].sum() / trials_T[end:].sum()
        share = np.arange(1, end - onset) / (end - onset)
        line = rise[-1] + (bottom - rise[-1]) * share
        curve = np.concatenate([rise, line, np.full(12 - end, bottom)])
        assert sse == pytest.approx(np.sum(weight_T * (rate_T - curve) ** 2), abs=1e-10)


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_constant_accuracy_is_no_drop(level: float) -> None:
    series = AccuracySeries(np.arange(20), np.full(20, 50 * level), np.full(20, 50.0))
    result = CliffTest().measure(series)
    assert result.shape == "none"
    assert np.isfinite(result.detectable_drop)


def test_collapse_to_zero_is_a_drop() -> None:
    correct = np.array([30, 35, 40, 45, 50, 52, 50, 0, 0, 0, 0, 0], dtype=float)
    result = CliffTest().measure(AccuracySeries(np.arange(12) * 5, correct, np.full(12, 100.0)))
    assert result.shape == "cliff"
    assert result.onset is not None
    assert result.onset.step == 30
    assert result.end_step == 35


def test_dense_evaluations_are_pooled_and_judged_alike() -> None:
    step = np.arange(600)
    rate = np.where(step < 400, 0.6, 0.4)
    rng = np.random.default_rng(0)
    series = AccuracySeries(step, rng.binomial(50, rate).astype(float), np.full(600, 50.0))
    result = CliffTest().measure(series)
    assert result.shape == "cliff"
    assert result.onset is not None
    assert abs(result.onset.step - 400) <= 15


def test_same_run_gives_the_same_answer() -> None:
    series = series_of(Cliff(300, 0.15), 5)
    first, second = CliffTest().measure(series), CliffTest().measure(series)
    assert (first.p_value, first.drop_lower) == (second.p_value, second.drop_lower)


@pytest.mark.slow
def test_size_and_power_over_many_runs() -> None:
    test, num = CliffTest(), 200
    healthy = [test.measure(series_of(None, seed, problems=100)).shape for seed in range(num)]
    assert healthy.count("none") >= 0.97 * num
    fallen = [test.measure(series_of(Cliff(300, 0.2), seed, problems=100)) for seed in range(num)]
    assert sum(result.shape == "cliff" for result in fallen) >= 0.95 * num
    covered = [r.onset.lower <= 290 <= r.onset.upper for r in fallen if r.onset]
    assert np.mean(covered) >= 0.85
