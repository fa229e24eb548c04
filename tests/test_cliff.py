"""The drop is found where it was planted, and nowhere in innocent runs."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.cliff.accuracy import AccuracySeries, mean_over_samples
from analysis.cliff.cliff import FallTest
from analysis.cliff.fall import FALLS, Fall
from analysis.cliff.fall_words import how_it_fell, small_loss, what_fell
from analysis.cliff.isotonic import fit_prefixes
from analysis.cliff.noise import (
    PRIOR_FREEDOM,
    TYPICAL,
    Noise,
    dispersion_of_differences,
    dispersion_of_problems,
    trimmed_mean,
)
from analysis.cliff.ramp import Ramp, fit_ramp
from analysis.cliff.scan import largest_loss
from analysis.synthetic.runs import Cliff, accuracy_curve, evaluation_matrix

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


def results_of(cliff: Cliff | None, **settings: int) -> list[Fall]:
    return [FallTest().measure(series_of(cliff, seed, **settings)) for seed in SEEDS]


def test_cliff_is_found_at_its_step_with_its_size() -> None:
    for result in results_of(Cliff(step=350, drop=0.2)):
        assert result.shape == "cliff"
        assert result.onset is not None
        assert result.onset.lower <= 340 <= result.onset.upper  # the last good evaluation
        assert abs(result.onset.step - 340) <= 20
        assert result.drop == pytest.approx(0.2, abs=0.07)
        assert result.p_value <= 0.01


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
    assert sum(shape in FALLS for shape in found) == 0
    assert found.count("none") >= len(SEEDS) - 1


def test_width_is_a_number_and_its_name_follows() -> None:
    for width, name in ((4, "cliff"), (14, "fall"), (26, "decay")):  # evaluations of 40
        line = tuple((1, level) for level in np.linspace(0.6, 0.3, width + 1)[1:])
        flat = 40 - 8 - width
        for seed in SEEDS:
            result = FallTest().measure(rates((8, 0.6), *line, (flat, 0.3), seed=seed))
            assert result.shape == name
            assert result.width_share == pytest.approx(width / 39, abs=0.12)
            low, high = result.width_interval
            assert low <= result.width_steps <= high


def test_low_last_evaluation_alone_is_no_fall() -> None:
    for result in results_of(Cliff(500, 0.5, "last"), problems=1000):
        assert result.shape == "last evaluation low"
        assert result.onset is None


def test_few_evaluations_are_judged_by_what_they_can_show() -> None:
    one = AccuracySeries(np.array([0]), np.array([35.0]), np.array([100.0]))
    assert FallTest().measure(one).shape == "too few evaluations"
    for evals in (2, 4, 7):
        healthy = [FallTest().measure(series_of(None, seed, evals=evals)) for seed in SEEDS]
        assert sum(result.fell for result in healthy) == 0
    correct = np.array([35, 52, 60, 58, 5], dtype=float)
    fell = FallTest().measure(AccuracySeries(np.arange(5) * 10, correct, np.full(5, 100.0)))
    assert fell.fell
    assert fell.onset is not None
    assert fell.onset.step == 30
    short = [FallTest().measure(series_of(Cliff(50, 0.4), seed, evals=10)).fell for seed in SEEDS]
    assert sum(short) >= 10


def test_fall_in_progress_and_settled_fall_are_told_apart() -> None:
    going = results_of(Cliff(300, 0.5, "slow decay", 250), problems=1000)
    assert sum(result.progress == "still falling" for result in going) >= 10
    settled = results_of(Cliff(300, 0.2), problems=500)
    assert {result.progress for result in settled} == {"settled"}


def rates(*levels: tuple[int, float], answers: int = 1000, seed: int = 0) -> AccuracySeries:
    """Evaluations every 10 steps: (how many, true accuracy), one after another."""
    truth_T = np.concatenate([np.full(num, level) for num, level in levels])
    correct_T = np.random.default_rng(seed).binomial(answers, truth_T).astype(float)
    step_T = 10 * np.arange(len(truth_T))
    return AccuracySeries(step_T, correct_T, np.full(len(truth_T), float(answers)))


def test_early_collapse_is_named() -> None:
    result = FallTest().measure(rates((2, 0.33), (20, 0.02)))
    assert result.shape == "cliff"
    assert result.kind == "early collapse"
    assert result.top == pytest.approx(0.33, abs=0.03)  # not an average with what follows
    assert result.window == 2
    assert "mean of 2 evaluations" in what_fell(result)
    later = FallTest().measure(rates((2, 0.33), (10, 0.6), (10, 0.02)))
    assert later.kind == ""


def counted(*correct: int) -> Fall:
    """Right answers of 100, every 10 steps."""
    rate = np.array(correct, dtype=float)
    return FallTest().measure(
        AccuracySeries(10 * np.arange(len(rate)), rate, np.full(len(rate), 100.0))
    )


def test_the_evaluation_before_the_last_decides_whether_the_last_is_alone() -> None:
    held = (57, 61, 59, 62, 58, 60, 61, 59, 60, 62, 58, 60)
    alone, joined = counted(*held, 61, 36), counted(*held, 54, 36)
    assert alone.shape == "last evaluation low"
    assert joined.shape == "cliff"
    assert joined.progress == "still falling"
    assert "evaluate again before acting" in how_it_fell(joined)
    # An outlier of 2.5 standard deviations after one of 1: no fall.
    assert not counted(*held, 57, 50).fell


def test_a_loss_whose_interval_reaches_down_to_three_points_is_called_small() -> None:
    loss = counted(*(60, 62, 58, 61, 59) * 3, *(52, 54, 50, 53, 51) * 2)
    assert loss.shape == "small loss"
    assert loss.drop >= 0.05
    assert loss.drop_lower < 0.03
    assert loss.drop_upper > 0.1
    assert "may be a small one" in small_loss(loss)
    sure = FallTest().measure(rates((15, 0.6), (10, 0.52), answers=3000))
    assert sure.fell


def test_a_gentle_beginning_is_within_the_onset_interval() -> None:
    """30 points lost as the square of time from step 100 on: at 180 only five of them."""
    gentle = [(1, 0.6 - 0.3 * (k / 20) ** 2) for k in range(1, 21)]
    covered = []
    for seed in SEEDS:
        result = FallTest().measure(rates((11, 0.6), *gentle, seed=seed))
        assert result.fell
        assert result.onset is not None
        covered.append(result.onset.lower <= 100 <= result.onset.upper)
    assert sum(covered) >= 10


def test_the_last_level_of_what_comes_back_is_not_an_average_over_the_way() -> None:
    """Thirty evaluations at the top, ten at 30 %, then 1.5 points up at each of twenty."""
    back = [(1, 0.3 + 0.015 * k) for k in range(1, 21)]
    result = FallTest().measure(rates((30, 0.8), (10, 0.3), *back, answers=2000))
    assert result.progress == "coming back"
    assert result.end_window <= 3  # a tenth of the run would be six
    assert result.bottom == pytest.approx(0.6, abs=0.025)
    assert result.drop_lower <= 0.2 <= result.drop_upper


def test_two_falls_are_counted() -> None:
    result = FallTest().measure(rates((5, 0.4), (8, 0.6), (8, 0.45), (8, 0.3)))
    assert result.kind == "two falls"
    assert result.onset is not None
    assert result.onset.step == 120
    assert result.second_step == 200
    assert FallTest().measure(rates((5, 0.4), (8, 0.6), (16, 0.3))).kind == ""


def test_fall_that_comes_back_in_part_says_so() -> None:
    result = FallTest().measure(rates((8, 0.6), (5, 0.2), (3, 0.3), (6, 0.42)))
    assert result.fell
    assert result.progress == "coming back"
    assert result.low == pytest.approx(0.2, abs=0.03)
    assert 80 <= result.low_step <= 120
    assert result.bottom == pytest.approx(0.42, abs=0.03)


def test_swings_qualify_a_fall() -> None:
    swinging = [(5, 0.4), (4, 0.7), (4, 0.45), (4, 0.72), (4, 0.44), (4, 0.7), (4, 0.45)]
    result = FallTest().measure(rates(*swinging))
    assert result.shape == "swings"
    assert len(result.swings) == 2
    assert result.swings[0].size == pytest.approx(0.25, abs=0.05)
    once = FallTest().measure(rates((5, 0.4), (8, 0.7), (8, 0.45)))
    assert once.fell
    assert once.swings == ()


def test_dip_that_recovered_is_mentioned() -> None:
    result = FallTest().measure(rates((5, 0.4), (8, 0.6), (4, 0.4), (8, 0.6)))
    assert result.shape == "none"
    assert len(result.swings) == 1
    assert 130 <= int(result.swing_step_T[result.swings[0].low]) <= 160


def test_run_that_never_learned_is_not_called_healthy() -> None:
    result = FallTest().measure(rates((25, 0.4)))
    assert result.shape == "never learned"
    assert result.detectable_gain < 0.06
    assert FallTest().measure(rates((5, 0.4), (5, 0.45), (15, 0.5))).shape == "none"


@pytest.mark.slow
@pytest.mark.parametrize(("evals", "problems"), [(13, 100), (51, 100), (51, 500)])
def test_detectable_drop_is_found_in_4_of_5_runs(evals: int, problems: int) -> None:
    """In runs that rise and then fall late, the size taken from healthy runs of the same design."""
    test, num = FallTest(), 100
    healthy = [series_of(None, seed, evals=evals, problems=problems) for seed in range(20)]
    size = float(np.median([test.measure(series).detectable_drop for series in healthy]))
    found = 0
    for seed in range(num):
        step = int(np.random.default_rng(seed).integers(evals // 2, 0.85 * evals)) * 10
        series = series_of(Cliff(step, size), seed, evals=evals, problems=problems)
        found += test.measure(series).fell
    assert found >= 70  # 80 expected, 3 standard errors of 4


def test_dispersion_by_hand() -> None:
    # Rates .5 .6 .5 .6 of 100: bends are .5 - 1.2 + .5 = -.2 and .2; the means of three are
    # .5333 and .5667, m (1 - m) = .24889 and .24556, times (1 + 4 + 1) / 100: .014933, .014733;
    # squares .04 over these: 2.6786 and 2.7149; the mean over c.
    series = AccuracySeries(np.arange(4), np.array([50.0, 60.0, 50.0, 60.0]), np.full(4, 100.0))
    # Two are too few to leave any out.
    assert dispersion_of_differences(series) == pytest.approx(2.69675, rel=1e-4)
    draws = np.sort(np.random.default_rng(0).chisquare(1, 200_000))
    for share in (0.7, 0.85):
        kept = draws[: int(share * 200_000)]
        assert kept.mean() == pytest.approx(trimmed_mean(share), abs=0.01)
    # Two second differences share two of three points: worth one; the prior is worth eight.
    mixed = (PRIOR_FREEDOM * TYPICAL + 2.69675) / (PRIOR_FREEDOM + 1)
    assert Noise.of(series).dispersion == pytest.approx(mixed, rel=1e-4)


def test_the_chance_of_a_loss_counts_draws_that_lose_as_much() -> None:
    """Against a slow twin that takes every draw by itself."""
    series, test = series_of(None, 3, evals=13), FallTest(num_bootstraps=200)
    noise, null_T = Noise(series.trials_T, 1.0, 1e6), np.full(13, 0.4)
    p_value, needed = test._chance(series, null_T, noise, np.random.default_rng(5))
    drawn_BT = noise.simulate(null_T, 200, np.random.default_rng(5))
    variance_T, weight_T = noise.variance_T(null_T), series.trials_T
    seen = largest_loss(series.rate_T[None], variance_T, weight_T)[0]
    loss_B = [largest_loss(one_T[None], variance_T, weight_T)[0] for one_T in drawn_BT]
    assert p_value == (1 + sum(loss >= seen for loss in loss_B)) / 201
    assert 0.1 < p_value < 0.9
    assert sum(loss > needed for loss in loss_B) == round(200 * test.alpha)


def test_one_abrupt_fall_in_a_short_run_is_no_noise() -> None:
    """Ten bends, of which the fall makes two: 0.2 (1, -1) of 0.005 expected."""
    rate_T = np.array([0.60, 0.62, 0.60, 0.62, 0.60, 0.62, 0.60, 0.62, 0.60, 0.62, 0.40, 0.40])
    series = AccuracySeries(np.arange(12), 100 * rate_T, np.full(12, 100.0))
    # The others are 0.04 apart: 0.0016 over 6 m (1 - m) / 100 with m = .6067 or .6133.
    expected = 0.0016 / (0.06 * np.mean([0.6067 * 0.3933, 0.6133 * 0.3867])) / trimmed_mean(0.7)
    assert dispersion_of_differences(series) == pytest.approx(expected, rel=0.02)


def test_climbs_and_falls_are_no_noise() -> None:
    straight = AccuracySeries(np.arange(9), np.linspace(100, 900, 9), np.full(9, 1000.0))
    assert dispersion_of_differences(straight) == pytest.approx(0.0, abs=1e-12)


def test_draws_have_the_variance_that_is_claimed() -> None:
    noise = Noise(np.full(400, 200.0), 0.6, 1e6)
    curve_T = np.full(400, 0.3)
    drawn = noise.simulate(curve_T, 400, np.random.default_rng(0))
    assert drawn.mean() == pytest.approx(0.3, abs=0.001)
    assert drawn.var() == pytest.approx(0.6 * 0.21 / 200, rel=0.02)
    assert noise.variance_T(curve_T)[0] == pytest.approx(0.6 * 0.21 / 200)
    # An estimate worth 10 differences: chi-square(10) / 10 has mean 1, its inverse 10 / 8.
    unsure = Noise(np.full(400, 200.0), 0.6, 10.0).simulate(curve_T, 4000, np.random.default_rng(0))
    assert unsure.var() == pytest.approx(0.6 * 0.21 / 200 * 10 / 8, rel=0.06)


def test_dispersion_of_problems_by_hand() -> None:
    # 4 problems, one of which flips at each evaluation: flips / 2 = 1/8, p (1 - p) = 1/4.
    solved = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]])
    series = AccuracySeries(
        np.arange(5), solved.sum(axis=1).astype(float), np.full(5, 4.0), solved.astype(float)
    )
    rate = solved.mean(axis=1)
    expected = (1 / 8) / np.mean(rate * (1 - rate))
    assert dispersion_of_problems(series) == pytest.approx(expected)


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
    result = FallTest().measure(series)
    assert result.shape in ("none", "never learned")
    assert np.isfinite(result.detectable_drop)


def test_collapse_to_zero_is_a_drop() -> None:
    correct = np.array([30, 35, 40, 45, 50, 52, 50, 0, 0, 0, 0, 0], dtype=float)
    result = FallTest().measure(AccuracySeries(np.arange(12) * 5, correct, np.full(12, 100.0)))
    assert result.shape == "cliff"
    assert result.onset is not None
    assert result.onset.step == 30
    assert result.end_step == 35


def test_dense_evaluations_are_pooled_and_judged_alike() -> None:
    step = np.arange(600)
    rate = np.where(step < 400, 0.6, 0.4)
    rng = np.random.default_rng(0)
    series = AccuracySeries(step, rng.binomial(50, rate).astype(float), np.full(600, 50.0))
    result = FallTest().measure(series)
    assert result.shape == "cliff"
    assert result.onset is not None
    assert abs(result.onset.step - 400) <= 15


def test_same_run_gives_the_same_answer() -> None:
    series = series_of(Cliff(300, 0.15), 5)
    first, second = FallTest().measure(series), FallTest().measure(series)
    assert (first.p_value, first.drop_lower) == (second.p_value, second.drop_lower)


@pytest.mark.slow
def test_size_and_power_over_many_runs() -> None:
    test, num = FallTest(), 200
    healthy = [test.measure(series_of(None, seed, problems=100)) for seed in range(num)]
    assert sum(result.fell for result in healthy) <= 0.05 * num
    fallen = [test.measure(series_of(Cliff(300, 0.2), seed, problems=100)) for seed in range(num)]
    assert sum(result.fell for result in fallen) >= 0.95 * num
    covered = [r.onset.lower <= 290 <= r.onset.upper for r in fallen if r.onset]
    assert np.mean(covered) >= 0.85


def test_a_collapse_is_early_within_a_share_of_the_run_and_without_a_gain() -> None:
    """0.15 of 100 steps: at 10 of them it is, at 20 not; nor where 0.1 had been gained."""
    step_E = np.arange(0, 101, 5)
    series = AccuracySeries(step_E, np.full(21, 40.0), np.full(21, 100.0))
    test = FallTest(early=0.15)
    for onset, top, is_early in ((2, 0.4, True), (4, 0.4, False), (2, 0.5, False), (1, 0.4, True)):
        ramp = Ramp(onset, 10, series.rate_T)
        assert test._is_early(series, ramp, top, 0.01, 0.03) == is_early
