"""The second world of the bench is what it says it is, by sums worked out otherwise."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import beta, betabinom, lognorm, norm

from gradlab.store.run import open_run

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

from second_world import replace_section
from world_curves import Problems, draw_series, success_rates
from world_families import FALLS, FAMILIES, HEALTHY
from world_judging import Case, is_named
from world_paths import CLIMBS, PROFILES, Fall, draw_fall, held, wander
from world_runs import SCENARIOS, RunTruth, Scenario, write_run
from world_signals import CAUSES, GROUP, Design, healthy_role, measure, outcomes
from world_tables import SECTIONS

RECORDED = {
    "learning rate": "learning_rate",
    "rollout gap": "logprob_gap",
    "length": "length_mean",
    "entropy": "entropy",
    "KL": "kl",
    "truncation": "truncated",
    "share": "norm",
    "norm": "norm",
}
"""Cause -> the signal that it is planted in."""


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def design(**changed: object) -> Design:
    settings: dict[str, object] = {
        "steps": 400,
        "schedule": "constant",
        "peak_rate": 1e-5,
        "warmup": 0,
        "dtype": "bfloat16",
        "prompts_T": np.full(400, 32.0),
        "norm_noise": 0.2,
        "memory": 0.0,
        "window": 5,
        "trend": 0.0,
        "transient": 1.0,
    }
    return Design(**{**settings, **changed})  # type: ignore[arg-type]


# --- accuracy series ---------------------------------------------------------------------------


def test_success_rates_are_the_beta_moved_on_the_normal_scale() -> None:
    level_T, total = np.array([0.4, 0.6]), 1.3
    rate_TP = success_rates(level_T, 40_000, Problems(total, 0.0, 0.0), rng(0))
    # The same by integration over the beta distribution, at the quantiles of a fine grid.
    quantile_U = beta.ppf((np.arange(20_000) + 0.5) / 20_000, 0.4 * total, 0.6 * total)
    score_U = norm.ppf(np.clip(quantile_U, 1e-4, 1.0 - 1e-4))
    shift = brentq(lambda s: norm.cdf(score_U + s).mean() - 0.6, 0.0, 5.0)
    np.testing.assert_allclose(rate_TP.mean(1), level_T, atol=1e-6)
    assert (rate_TP[0] ** 2).mean() == pytest.approx((quantile_U**2).mean(), rel=0.02)
    assert (rate_TP[1] ** 2).mean() == pytest.approx(
        (norm.cdf(score_U + shift) ** 2).mean(), rel=0.02
    )


@pytest.mark.parametrize("total", [0.6, 1.5])
def test_noise_is_less_than_binomial_by_what_the_beta_says(total: float) -> None:
    """E p(1 - p) of a beta is m(1 - m) k / (k + 1), k = a + b."""
    stray_N = []
    for seed in range(300):
        drawn = draw_series(
            "climb: no learning",
            rng(seed),
            answers=200,
            num_evaluations=12,
            problems=Problems(total, 0.0, 0.0),
        )
        level = drawn.truth.level_T[0]
        stray = (drawn.correct_T[0] - 200 * level) / np.sqrt(200 * level * (1.0 - level))
        stray_N.append(stray)
    assert np.mean(stray_N) == pytest.approx(0.0, abs=0.15)
    assert np.var(stray_N) == pytest.approx(total / (total + 1.0), rel=0.25)


def test_the_noise_told_is_the_noise_there_is() -> None:
    """Also with jitter, several samples per problem and problems that drift apart."""
    stray = np.concatenate(
        [
            (drawn.correct_T / drawn.trials_T - drawn.truth.level_T) / drawn.truth.noise_T
            for seed in range(60)
            for drawn in [
                draw_series(
                    "climb: saturating",
                    rng(seed),
                    answers=400,
                    num_evaluations=30,
                    samples=4,
                    problems=Problems(1.0, 0.4, 0.01),
                )
            ]
        ]
    )
    assert stray.mean() == pytest.approx(0.0, abs=0.1)
    assert stray.var() == pytest.approx(1.0, rel=0.12)


@pytest.mark.parametrize("family", HEALTHY)
@pytest.mark.parametrize("length", [12, 30])
def test_healthy_families_lose_less_than_a_fall(family: str, length: int) -> None:
    for seed in range(12):
        truth = draw_series(family, rng(seed), answers=60, num_evaluations=length).truth
        limit = 0.045 if family == "2 to 3 points lost" else 0.03
        # Not by the truth's own account: the best mean of three against the mean of the last three.
        three_K = np.convolve(truth.level_T, np.ones(3) / 3, "valid")
        assert held(truth.level_T) - truth.level_T[-1] < limit
        assert three_K[-1] > three_K[:-1].max() - 0.05 or family == "dip and recovery"
        assert not truth.fell
        assert truth.progress == ""


@pytest.mark.parametrize("family", FALLS)
@pytest.mark.parametrize("length", [12, 31, 100])
def test_falls_are_as_large_as_asked_for(family: str, length: int) -> None:
    for points in (10.0, 20.0, 30.0):
        truth = draw_series(
            family, rng(int(points)), answers=60, num_evaluations=length, points=points
        ).truth
        assert 100 * truth.drop == pytest.approx(points, abs=3.5)
        assert truth.drop_least <= truth.drop + 1e-12
        assert truth.drop <= truth.drop_most + 1e-12
        assert truth.fell
        # Best level before the onset (or at the base), end level after it: by eye of the path.
        before_T = truth.level_T[: int(truth.onset_evaluation) + 1]
        assert before_T.max() - truth.level_T[-1] > points / 100 - 0.03


@pytest.mark.parametrize("low", [2, 4, 8])
def test_runs_that_are_cut_end_low_and_still_falling(low: int) -> None:
    for seed in range(20):
        truth = draw_series(
            f"cut after {low}", rng(seed), answers=60, num_evaluations=31, points=20.0
        ).truth
        best = held(truth.level_T)
        assert truth.in_progress
        assert truth.progress == "still falling"
        assert low - 0.5 <= truth.width_evaluations <= low + 0.01
        # The wander of up to a point is all that can lift one of them above the level before.
        assert (truth.level_T[-low:] < best + 0.03).all()
        assert truth.level_T[-1] < truth.level_T[-2] < best - 0.01
        assert truth.level_T[-1] == truth.level_T[truth.level_T.argmax() :].min()


def test_early_collapses_fall_from_the_base_and_settled_falls_are_flat_at_the_end() -> None:
    early = draw_series("early collapse", rng(3), answers=60, num_evaluations=40, points=20.0)
    assert early.truth.onset_evaluation < 2.5
    assert early.truth.level_T[0] > early.truth.level_T[8:].max() + 0.1
    abrupt = draw_series("abrupt", rng(3), answers=60, num_evaluations=40, points=20.0).truth
    at = int(abrupt.onset_evaluation)
    assert abrupt.level_T[at] - abrupt.level_T[at + 2] > 0.15
    assert np.ptp(abrupt.level_T[at + 2 :]) < 0.05


def test_a_dip_goes_deep_and_comes_back() -> None:
    for seed in range(20):
        level_T = draw_series(
            "dip and recovery", rng(seed), answers=60, num_evaluations=31
        ).truth.level_T
        lowest = int(level_T[3:].argmin()) + 3
        assert level_T[:lowest].max() - level_T[lowest] > 0.02
        assert level_T[-3:].min() > level_T[lowest:].min() + 0.02 or lowest == 3


def test_an_outlier_is_in_the_last_answers_and_not_in_the_truth() -> None:
    stray = [
        (drawn.correct_T[-1] / drawn.trials_T[-1] - drawn.truth.level_T[-1])
        / drawn.truth.noise_T[-1]
        for seed in range(60)
        for drawn in [
            draw_series("last evaluation an outlier", rng(seed), answers=400, num_evaluations=12)
        ]
    ]
    # Shifts are uniform between 2.0 and 3.2 standard deviations.
    assert np.mean(stray) == pytest.approx(-2.6, abs=0.4)


def test_the_same_seed_draws_the_same_series_and_another_seed_another() -> None:
    one, two, other = (
        draw_series("two falls", rng(seed), answers=100, num_evaluations=20) for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(one.solved_TP, two.solved_TP)
    assert not np.array_equal(one.correct_T, other.correct_T)
    np.testing.assert_array_equal(one.solved_TP.sum(1), one.correct_T)
    first, second = Case("abrupt", 60, 20, 10.0, 0, 0), Case("abrupt", 60, 20, 10.0, 1, 0)
    assert first.rng().integers(1 << 60) == first.rng().integers(1 << 60)
    assert first.rng().integers(1 << 60) != second.rng().integers(1 << 60)


def test_series_that_cannot_be_drawn_are_refused() -> None:
    with pytest.raises(ValueError, match="family is 'cliffs'"):
        draw_series("cliffs", rng(0), answers=60, num_evaluations=20)
    with pytest.raises(ValueError, match="61 answers cannot be 2 to each"):
        draw_series("abrupt", rng(0), answers=61, num_evaluations=20, samples=2)


@pytest.mark.parametrize("name", CLIMBS)
def test_climbs_begin_at_the_base_and_hardly_ever_go_down(name: str) -> None:
    for seed in range(20):
        share_T = CLIMBS[name](np.linspace(0.0, 1.0, 41), rng(seed))
        assert share_T[0] == pytest.approx(0.0, abs=1e-9)
        assert (np.diff(share_T) >= -1e-12).all()
        assert share_T[-1] <= 1.0 + 1e-9
        assert share_T[-1] > (0.0 if name == "no learning" else 0.45) - 1e-12


def test_a_wander_has_the_standard_deviation_asked_for() -> None:
    for seed in range(20):
        assert wander(50, 0.02, rng(seed)).std() == pytest.approx(0.02)
    assert not wander(50, 0.0, rng(0)).any()


@pytest.mark.parametrize("profile", PROFILES)
def test_a_fall_is_0_before_its_start_and_1_after_its_width(profile: str) -> None:
    time_T = np.linspace(0.0, 1.0, 201)
    done_T = draw_fall(0.3, 0.4, rng(1), profile).done(time_T)  # type: ignore[arg-type]
    assert not done_T[time_T < 0.3 - 1e-9].any()
    np.testing.assert_allclose(done_T[time_T > 0.7 + 1e-9], 1.0)
    assert (np.diff(done_T) >= 0).all()
    # By hand: half way, 0.5 ** 1.8 = 0.287 of a convex fall is over.
    assert Fall(0.0, 1.0, "convex").done(np.array([0.5]))[0] == pytest.approx(0.287, abs=0.001)


# --- signals -----------------------------------------------------------------------------------


def test_groups_without_spread_are_as_many_as_the_beta_binomial_says() -> None:
    """All of 8 right, or all wrong, at an accuracy of 0.3; the mixture of a + b in 1.2 to 2.5."""
    drawn = rng(0)
    flat, right = [], []
    for _ in range(40):
        won = outcomes(np.full(400, 0.3), design(), drawn)
        flat.append(won["zero_variance_groups"].mean())
        right.append(won["all_right_groups"].mean())
    total_K = np.linspace(1.2, 2.5, 200)
    all_right = betabinom.pmf(GROUP, GROUP, 0.3 * total_K, 0.7 * total_K).mean()
    all_wrong = betabinom.pmf(0, GROUP, 0.3 * total_K, 0.7 * total_K).mean()
    assert np.mean(flat) == pytest.approx(all_right + all_wrong, rel=0.06)
    assert np.mean(right) == pytest.approx(all_right, rel=0.1)


def test_lengths_end_at_the_limit_and_the_rest_is_counted_as_cut() -> None:
    set_up = design(prompts_T=np.full(400, 4000.0))
    role = healthy_role(set_up, 500.0, 1, np.zeros(400), rng(0))
    role.limit_T = np.full(400, 600.0)
    measure(role, outcomes(np.full(400, 0.5), set_up, rng(1)), rng(2))
    for t in (0, 200, 399):
        scale = role.length_T[t] * np.exp(-0.5 * role.spread**2)
        written = lognorm(role.spread, scale=scale)
        told = {name: role.measured[name][t] for name in ("length_mean", "truncated")}
        expected = written.expect(lambda tokens: min(tokens, 600.0), ub=1e5)
        assert told["length_mean"] == pytest.approx(expected, rel=0.002)
        assert told["truncated"] == pytest.approx(written.sf(600.0), abs=0.015)


def test_a_larger_batch_averages_norms_and_noise() -> None:
    prompts_T = np.repeat([16.0, 64.0], 200)
    role = healthy_role(design(prompts_T=prompts_T), 500.0, 1, np.zeros(400), rng(0))
    # Four times the prompts, half the norm.
    ratio = np.median(role.norm_T[200:]) / np.median(role.norm_T[:200])
    assert ratio == pytest.approx(0.5, rel=0.15)


# --- whole runs --------------------------------------------------------------------------------


def written(tmp_path: Path, scenario: Scenario, seed: int) -> tuple[RunTruth, object]:
    path = tmp_path / f"{seed}.zarr"
    return write_run(path, scenario, rng(seed)), open_run(path)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_runs_are_read_back_with_the_accuracy_of_their_truth(
    tmp_path: Path, scenario: Scenario
) -> None:
    truth, run = written(tmp_path, scenario, 1)
    accuracy = run.evaluations().accuracy()  # type: ignore[attr-defined]
    stray_E = (accuracy.value_T - truth.accuracy.level_T) / truth.accuracy.noise_T
    assert np.abs(stray_E).max() < 5.0
    assert np.mean(stray_E**2) == pytest.approx(1.0, abs=0.8)
    assert truth.accuracy.fell == scenario.falls
    assert np.isfinite(truth.cause_step) == bool(scenario.cause)
    if scenario.cause:
        lead = truth.accuracy.onset - truth.cause_step
        assert 2.4 * truth.eval_every < lead < 5.1 * truth.eval_every + 10


def test_the_same_seed_writes_the_same_run(tmp_path: Path) -> None:
    runs = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        runs.append(written(tmp_path / name, SCENARIOS[4], 7)[1])
    one, two = runs
    for role in one.roles:  # type: ignore[attr-defined]
        for name in ("kl", "entropy", "truncated"):
            a, b = (run.ledger(name, role).value_T for run in (one, two))  # type: ignore[attr-defined]
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("cause", CAUSES)
def test_a_cause_moves_its_signal_before_the_fall_and_no_other_role(
    tmp_path: Path, cause: str
) -> None:
    scenario = next(one for one in SCENARIOS if one.cause == cause)
    for seed in (11, 12):
        truth, run = written(tmp_path, scenario, seed)
        start, onset = int(truth.cause_step), truth.accuracy.onset
        for role in run.roles:  # type: ignore[attr-defined]
            signal = recorded(run, cause, role)
            near_T = np.abs(signal.step_T - start) <= onset - start
            before = np.mean(signal.value_T[near_T & (signal.step_T <= start)])
            after = np.mean(signal.value_T[near_T & (signal.step_T > start + 4)])
            factor = (after + 1e-3) / (before + 1e-3) if cause == "truncation" else after / before
            is_meant = role in truth.subjects if cause != "share" else role == truth.subject
            if is_meant:
                assert max(factor, 1.0 / factor) > 1.5, (role, factor)
            else:
                limit = 3.2 if cause == "truncation" else 1.5
                assert max(factor, 1.0 / factor) < limit, (role, factor)


def recorded(run: Any, cause: str, role: str) -> Any:
    """The signal that a cause moves: of the role, a rate of its policy."""
    if RECORDED[cause] == "norm":
        return run.norm(role)
    if cause == "learning rate":
        return run.update_metric("learning_rate", run.policy_of(role).name)
    return run.ledger(RECORDED[cause], role)


def test_gradients_have_the_norms_told_of_them(tmp_path: Path) -> None:
    _, run = written(tmp_path, SCENARIOS[0], 4)
    for policy in run.policies:  # type: ignore[attr-defined]
        gram_UAA = run.gram(policy.name).gram_UBAA.sum(1)  # type: ignore[attr-defined]
        told_U = run.update_metric("grad_norm", policy.name).value_T  # type: ignore[attr-defined]
        np.testing.assert_allclose(np.sqrt(gram_UAA.sum((1, 2))), told_U, rtol=1e-4)
        assert (np.linalg.eigvalsh(gram_UAA) > -1e-6 * told_U[:, None] ** 2).all()
        # The optimizer's step is the gradient times a scalar here: so are its parts.
        step_UAA = run.update_gram(policy.name)  # type: ignore[attr-defined]
        length_U = run.update_metric("update_norm", policy.name).value_T  # type: ignore[attr-defined]
        np.testing.assert_allclose(np.sqrt(step_UAA.sum((1, 2))), length_U, rtol=1e-4)


def test_a_resumed_log_has_a_gap_and_an_hour_in_it(tmp_path: Path) -> None:
    scenario = next(one for one in SCENARIOS if one.oddity == "resumed")
    _, run = written(tmp_path, scenario, 2)
    gap_T = np.diff(run.steps)  # type: ignore[attr-defined]
    assert (gap_T > 1).sum() == 1
    assert 4 <= gap_T.max() <= 9


# --- scoring -----------------------------------------------------------------------------------


def test_a_suspect_is_right_under_the_cause_s_names_and_in_its_subject_only() -> None:
    assert is_named("entropy", ("worker",), "entropy collapse", "worker")
    assert not is_named("entropy", ("worker",), "entropy collapse", "synthesizer")
    assert not is_named("entropy", ("worker",), "length blow-up", "worker")
    assert is_named("learning rate", ("shared", "worker"), "learning_rate", "shared")
    assert not is_named("", (), "entropy collapse", "worker")


def test_a_table_replaces_its_old_self_and_leaves_the_others(tmp_path: Path) -> None:
    path = tmp_path / "out.md"
    falls, runs = SECTIONS[0][1], SECTIONS[-1][1]
    replace_section(path, runs, f"## {runs}\n\nold\n")
    replace_section(path, falls, f"## {falls}\n\nfirst\n")
    replace_section(path, runs, f"## {runs}\n\nnew\n")
    text = path.read_text()
    assert text.index(f"## {falls}") < text.index(f"## {runs}")
    assert "first" in text
    assert "new" in text
    assert "old" not in text


def test_every_family_is_either_healthy_fallen_or_open() -> None:
    assert not set(HEALTHY) & set(FALLS)
    assert {*HEALTHY, *FALLS, "swings"} == set(FAMILIES)
