"""No gain, with the gain that would have been seen, and silence where something was learned."""

from pathlib import Path

import numpy as np
import pytest
from stores import store_of

from analysis.learning import StandstillRule, nothing_learned
from analysis.scenarios import SCENARIOS
from analysis.synthetic import synthetic_run
from gradlab.store import open_run


def answers(rate_E: np.ndarray, problems: int, seed: int) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {10 * e: rng.random(problems) < rate for e, rate in enumerate(rate_E)}


def test_accuracy_that_stood_still_is_told_with_its_resolution(tmp_path: Path) -> None:
    solved = answers(np.full(31, 0.35), 200, 1)
    run = store_of(tmp_path, roles={"a": {"turns": np.ones(300)}}, solved=solved)
    found = nothing_learned(run)
    assert found is not None
    rates = [np.mean(solved[10 * e]) for e in range(31)]
    first, last = np.mean(rates[:7]), np.mean(rates[-7:])
    assert found.summary.startswith(
        f"No gain is seen in 300 steps: held-out accuracy {100 * first:.0f} % in the first "
        f"quarter, {100 * last:.0f} % in the last; a gain of "
    )
    assert found.strength == pytest.approx(last - first)
    assert found.lower is not None
    assert found.upper is not None
    assert found.lower < 0 < found.upper
    assert StandstillRule()(run) == [found]


@pytest.mark.parametrize(
    "shape", ["saturating", "line", "at once", "late", "fell", "dip"], ids=lambda s: s
)
def test_what_moved_is_no_standstill(tmp_path: Path, shape: str) -> None:
    x = np.arange(31) / 30
    rate_E = {
        "saturating": 0.35 + 0.2 * (1 - np.exp(-5 * x)),
        "line": 0.35 + 0.2 * x,
        "at once": np.where(x > 0, 0.6, 0.35),
        "late": 0.35 + 0.2 / (1 + np.exp(-30 * (x - 0.8))),
        "fell": 0.5 - 0.3 * (x > 0.6),
        "dip": 0.5 - 0.4 * ((x > 0.4) & (x < 0.6)),
    }[shape]
    run = store_of(tmp_path, roles={"a": {"turns": np.ones(300)}}, solved=answers(rate_E, 200, 2))
    assert nothing_learned(run) is None


def test_a_run_that_is_short_or_noisy_says_nothing(tmp_path: Path) -> None:
    turns = {"a": {"turns": np.ones(300)}}
    few = store_of(tmp_path / "few", roles=turns, solved=answers(np.full(31, 0.35), 12, 1))
    assert nothing_learned(few) is None  # 12 problems cannot show 10 points
    short = store_of(tmp_path / "short", roles=turns, solved=answers(np.full(5, 0.35), 500, 1))
    assert nothing_learned(short) is None
    alone = store_of(tmp_path / "alone", roles={"a": {"turns": np.ones(30)}})
    assert nothing_learned(alone) is None


def test_training_outcomes_stand_in_for_evaluations_by_name(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    flat_T = rng.binomial(64, 0.4, 300) / 64
    run = store_of(tmp_path / "a", roles={"a": {}}, run={"accuracy": flat_T})
    found = nothing_learned(run)
    assert found is not None
    assert "training accuracy 4" in found.summary
    assert "no evaluations" in found.evidence[0]
    rising_T = 0.2 * np.arange(300) / 300 + 1.0 + 0.05 * rng.standard_normal(300)
    run = store_of(tmp_path / "b", roles={"a": {}}, run={"reward_mean": rising_T})
    assert nothing_learned(run) is None
    level_T = 3.0 + 0.1 * rng.standard_normal(300)
    run = store_of(tmp_path / "c", roles={"a": {}}, run={"reward_mean": level_T})
    found = nothing_learned(run)
    assert found is not None
    assert "mean training reward 2.99 in the first quarter, 3 in the last" in found.summary


def test_the_gain_that_would_have_been_seen_is_seen_in_four_of_five() -> None:
    """The promise of the sentence, on new draws with the gain in the second half."""
    rule, rng = StandstillRule(), np.random.default_rng(5)
    variance_T = np.full(20, 0.04**2)
    detectable = rule.measure(0.04 * rng.standard_normal(20), variance_T).detectable
    step_T = detectable * (np.arange(20) >= 10)
    seen = [
        not rule.measure(step_T + 0.04 * rng.standard_normal(20), variance_T).is_still
        for _ in range(150)
    ]
    assert 0.7 <= np.mean(seen) <= 0.95
    quiet = [
        not rule.measure(0.04 * rng.standard_normal(20), variance_T).is_still for _ in range(150)
    ]
    assert np.mean(quiet) <= 0.17  # nominal 10 %


def test_healthy_runs_learned_something(tmp_path: Path) -> None:
    path = synthetic_run(tmp_path, **SCENARIOS["healthy"].settings(200), row_statistics=False)
    assert nothing_learned(open_run(path)) is None
