"""States: what is wrong from the first step, planted, and nothing in runs without it."""

from pathlib import Path

import numpy as np
import pytest
from stores import store_of

from analysis.detectors.frozen import StillRule
from analysis.detectors.levels import LENGTH_COLLAPSE
from analysis.detectors.measurement import gap_limit, stale_rollouts
from analysis.detectors.states import CutRule, NoSpreadRule, NotFiniteRule
from analysis.synthetic.runs import synthetic_run
from analysis.synthetic.scenarios import SCENARIOS
from gradlab.store.run import open_run

NAN = float("nan")


def rewards(steps: int = 120, fall: int | None = None, seed: int = 0) -> np.ndarray:
    reward_T = 0.5 + 0.005 * np.random.default_rng(seed).standard_normal(steps)
    if fall is not None:
        reward_T[fall - 1 :] = 0.0
    return reward_T


def test_nan_that_was_logged_is_told_with_what_happened_to_the_reward(tmp_path: Path) -> None:
    """The contract with the importer: metric -> first, last, count, logged."""
    bad = {"first": 60, "last": 120, "count": 61, "logged": 120}
    run = store_of(
        tmp_path,
        roles={"agent": {}},
        run={"reward_mean": rewards(fall=60)},
        config={"not_finite": dict.fromkeys(("grad_norm", "kl", "loss", "entropy"), bad)},
    )
    [found] = NotFiniteRule()(run)
    assert found.summary == (
        "grad_norm, kl, loss and entropy are not finite from step 60 on; mean reward 0.50 -> 0.00 "
        "between steps 59 and 60."
    )
    assert found.onset is not None
    assert found.onset.step == 60


def test_a_reward_that_kept_its_level_is_not_said_to_have_changed(tmp_path: Path) -> None:
    bad = {"first": 60, "last": 120, "count": 61, "logged": 120}
    run = store_of(
        tmp_path,
        roles={"agent": {}},
        run={"reward_mean": rewards()},
        config={"not_finite": {"kl": bad, "entropy": {**bad, "first": 70, "count": 51}}},
    )
    [found] = NotFiniteRule()(run)
    assert found.summary == "kl is not finite from step 60 on."
    assert found.evidence[0] == "entropy from step 70 on"


@pytest.mark.parametrize(
    ("metric", "entry"),
    [
        # a column that was never filled
        ("loss", {"first": 1, "last": 120, "count": 120, "logged": 120}),
        # here and there, of a metric that has no value in some steps
        ("critic/advantage", {"first": 20, "last": 90, "count": 12, "logged": 120}),
        # after the part of the run that is looked at
        ("loss", {"first": 200, "last": 220, "count": 21, "logged": 220}),
    ],
)
def test_absent_values_are_no_finding(tmp_path: Path, metric: str, entry: dict[str, int]) -> None:
    run = store_of(
        tmp_path,
        roles={"agent": {}},
        run={"reward_mean": rewards()},
        config={"not_finite": {metric: entry}},
    )
    assert NotFiniteRule()(run) == []


def test_one_lost_update_is_told_as_one(tmp_path: Path) -> None:
    loss_T = np.linspace(0.1, 0.2, 60)
    loss_T[40] = np.inf
    run = store_of(
        tmp_path,
        roles={"agent": {"turns": [8] * 60, "optimizer_steps": [1] * 60}},
        updates={"loss": loss_T, "grad_norm": np.ones(60), "rows": np.full(60, 8)},
        mode="exact",
    )
    [found] = NotFiniteRule()(run)
    assert found.summary == "loss is not finite at step 41."


def test_our_own_record_tells_not_finite_from_not_measured(tmp_path: Path) -> None:
    """Entropy is NaN where the role was not trained (steps 11 to 20), KL from step 41 on."""
    trained = np.ones(60)
    trained[10:20] = 0
    entropy_T = np.where(trained > 0, 0.5, NAN)
    kl_T = np.where(np.arange(60) >= 40, NAN, 0.01)
    run = store_of(
        tmp_path,
        roles={
            "agent": {
                "turns": [8] * 60,
                "optimizer_steps": trained,
                "entropy": entropy_T,
                "kl": kl_T,
            }
        },
        updates={"loss": np.ones(60), "rows": np.full(60, 8)},
        mode="exact",
    )
    [found] = NotFiniteRule()(run)
    assert found.summary == "kl is not finite from step 41 on."
    assert not NotFiniteRule()(open_run(tmp_path, until=40))


def test_all_cut_is_told_without_a_rise(tmp_path: Path) -> None:
    always = {"truncated": np.ones(75), "reward_mean": np.zeros(75)}
    run = store_of(tmp_path / "a", roles={"agent": {**always, "zero_variance_groups": np.ones(75)}})
    [found] = CutRule()(run)
    assert found.summary == (
        "100 % of the responses reach the token limit in every step; no reward, no signal: raise "
        "the limit."
    )
    # A reward is earned here: nothing false is said about it.
    some = {"truncated": np.r_[0.93, np.full(74, 0.98)], "reward_mean": rewards(75)}
    run = store_of(tmp_path / "b", roles={"writer": some, "judge": {}})
    [found] = CutRule()(run)
    assert found.summary == (
        "93 % or more of the responses of writer reach the token limit in every step: raise the "
        "limit."
    )


@pytest.mark.parametrize(
    "share_T",
    [np.r_[np.full(30, 0.1), np.ones(70)], np.full(75, 0.7), np.full(75, NAN), np.ones(3)],
    ids=["it became so", "seven in ten", "unknown", "three steps"],
)
def test_less_than_all_cut_is_no_such_state(tmp_path: Path, share_T: np.ndarray) -> None:
    run = store_of(tmp_path, roles={"agent": {"truncated": share_T}})
    assert CutRule()(run) == []


def test_groups_without_spread_are_told_as_right_or_wrong(tmp_path: Path) -> None:
    flat = {
        "zero_variance_groups": np.full(40, 0.98),
        "all_right_groups": np.full(40, 0.01),
        "all_wrong_groups": np.full(40, 0.97),
    }
    [found] = NoSpreadRule()(store_of(tmp_path / "a", roles={"agent": flat}))
    assert "98 % of the groups" in found.summary
    assert "(1 % all right, 97 % all wrong)" in found.summary
    flat["zero_variance_groups"] = np.linspace(0.5, 1, 40)  # learned until nothing was left
    assert NoSpreadRule()(store_of(tmp_path / "b", roles={"agent": flat})) == []


def gradient_run(path: Path, norm_T: np.ndarray, flat_T: np.ndarray, rate: float = 1e-6):  # type: ignore[no-untyped-def]
    steps = len(norm_T)
    return store_of(
        path,
        roles={"agent": {"zero_variance_groups": flat_T, "reward_std": np.full(steps, 0.4)}},
        updates={"grad_norm": norm_T, "learning_rate": np.full(steps, rate)},
    )


def test_zero_gradients_of_groups_that_differ_are_told(tmp_path: Path) -> None:
    [found] = StillRule()(gradient_run(tmp_path, np.zeros(75), np.full(75, 0.2)))
    assert found.kind == "no gradient"
    assert found.summary.startswith(
        "No gradient in 75 of 75 steps although groups have reward spread: the trained parameters"
    )


@pytest.mark.parametrize(
    ("norm_T", "flat_T", "rate"),
    [
        (np.zeros(75), np.ones(75), 1e-6),
        (np.full(75, 1e-9), np.full(75, 0.2), 1e-6),
        (np.where(np.arange(75) % 2, 0.0, 0.3), np.full(75, 0.2), 1e-6),
        (np.zeros(75), np.full(75, 0.2), 0.0),
    ],
    ids=["no spread", "tiny", "every second", "no rate"],
)
def test_other_zeros_are_not_blamed_on_the_parameters(
    tmp_path: Path, norm_T: np.ndarray, flat_T: np.ndarray, rate: float
) -> None:
    assert StillRule()(gradient_run(tmp_path, norm_T, flat_T, rate)) == []


def test_zero_gradients_are_one_finding_also_where_the_step_was_measured(tmp_path: Path) -> None:
    """Our own record has the step as well, which is empty, too: said once, with its reason."""
    run = store_of(
        tmp_path,
        roles={"agent": {"zero_variance_groups": np.full(20, 0.2)}},
        updates={
            "grad_norm": np.zeros(20),
            "update_norm": np.zeros(20),
            "weight_norm": np.ones(20),
            "learning_rate": np.full(20, 1e-3),
        },
        mode="exact",
    )
    assert [found.kind for found in StillRule()(run)] == ["no gradient"]


@pytest.mark.parametrize(
    ("dtype", "gap", "is_stale"),
    [
        ("float32", 3e-6, False),  # what rounding leaves in real runs
        ("float32", 5e-4, True),
        ("float32", 0.04, True),
        ("bfloat16", 0.02, False),
        ("bfloat16", 0.08, True),
        (None, 0.04, False),  # nobody says how precise the run is
    ],
)
def test_the_gap_that_rounding_explains_depends_on_the_precision(
    tmp_path: Path, dtype: str | None, gap: float, is_stale: bool
) -> None:
    gap_T = gap * np.exp(0.1 * np.random.default_rng(0).standard_normal(60))
    run = store_of(
        tmp_path,
        roles={"agent": {"logprob_gap": gap_T}},
        config={} if dtype is None else {"dtype": dtype},
    )
    assert bool(stale_rollouts(run)) is is_stale
    assert gap_limit(run) == (1e-4 if dtype == "float32" else 0.05)


def lengths(kind: str) -> np.ndarray:
    rng = np.random.default_rng(3)
    step_T = np.arange(120)
    level_T = {
        "collapse": np.where(step_T < 70, 800.0, 800 * 80.0 ** -np.clip((step_T - 70) / 8, 0, 1)),
        "halved from the first step on": 800 * 0.5 ** (step_T / 119),
        "a third, saturating": 800 * (0.35 + 0.65 * np.exp(-step_T / 30)),
        "level": np.full(120, 800.0),
    }[kind]
    return np.asarray(level_T * np.exp(0.06 * rng.standard_normal(120)))


def test_a_length_collapse_is_dated(tmp_path: Path) -> None:
    run = store_of(tmp_path, roles={"agent": {"length_mean": lengths("collapse")}})
    [found] = LENGTH_COLLAPSE(run)
    assert found.onset is not None
    assert found.onset.lower <= 71 <= found.onset.upper + 1
    assert "tokens" in found.summary


@pytest.mark.parametrize("kind", ["halved from the first step on", "a third, saturating", "level"])
def test_shorter_answers_are_no_collapse(tmp_path: Path, kind: str) -> None:
    run = store_of(tmp_path, roles={"agent": {"length_mean": lengths(kind)}})
    assert LENGTH_COLLAPSE(run) == []


@pytest.mark.parametrize("name", ["healthy", "capture, then a cliff", "dip and recovery"])
def test_runs_that_train_have_no_dead_state(tmp_path: Path, name: str) -> None:
    path = synthetic_run(tmp_path, **SCENARIOS[name].settings(120, seed=2), row_statistics=False)
    run = open_run(path)
    for rule in (NotFiniteRule(), CutRule(), NoSpreadRule(), StillRule(), LENGTH_COLLAPSE):
        assert rule(run) == []
