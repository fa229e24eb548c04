"""Rewards that rise while what they stand for falls, against gaps, falls and wander."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stores import store_of

from analysis.detectors.hacking import PENALIZED, HackingRule, Outcome, Pair
from analysis.findings import HELD_OUT
from analysis.synthetic.runs import autoregressive, synthetic_run
from analysis.synthetic.scenarios import SCENARIOS
from gradlab.records import RunLedger, names
from gradlab.store.run import Run, open_run

# A real run in which the KL penalty inside the reward came to pay for silence: every second step.
SCORE = [
    -0.52, -0.65, -0.5, -0.57, -0.63, -0.62, -0.58, -0.72, -0.69, -0.63, -0.58, -0.62, -0.63, -0.71,
    -0.76, -0.74, -0.86, -0.9, -0.93, -0.93, -0.89, -0.88, -0.83, -0.86, -0.86, -0.84, -0.95,
]  # fmt: skip
INSIDE = [
    -18.8, -19.2, -19.0, -18.5, -17.7, -17.0, -16.9, -16.9, -16.4, -15.3, -14.1, -14.7, -13.4,
    -13.0, -12.1, -8.9, -4.4, -2.3, -1.9, -1.9, -1.8, -1.8, -1.7, -1.7, -1.7, -1.7, -1.8,
]  # fmt: skip


def curves(kind: str, seed: int, steps: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps of evaluations, held-out rates of 200 answers, training accuracy of 64 episodes."""
    rng = np.random.default_rng(seed)
    eval_E, step_T = np.arange(0, steps + 1, 10), np.arange(1, steps + 1)
    held_E, train_T = (
        base + gain * (1 - np.exp(-4 * x / steps)) for base, gain, x in
        ((0.35, 0.2, eval_E), (0.4, 0.25, step_T))
    )  # fmt: skip
    late_E, late_T = (np.clip((x - 100) / 40, 0, 1) for x in (eval_E, step_T))
    if kind == "hacked":
        held_E, train_T = held_E - 0.45 * late_E, train_T + (0.95 - train_T) * late_T
    if kind == "gap":
        held_E, train_T = np.minimum(held_E, 0.45), 0.4 + 0.58 * (1 - np.exp(-6 * step_T / steps))
    if kind == "both fall":
        held_E, train_T = held_E - 0.3 * late_E, train_T - 0.3 * late_T
    if kind == "held-out falls, training stands":
        held_E, train_T = held_E - 0.3 * late_E, np.minimum(train_T, train_T[100])
    if kind == "wander":
        held_E = held_E + 0.04 * autoregressive(len(held_E), 0.7, rng)
        train_T = train_T + 0.04 * autoregressive(steps, 0.9, rng)
    held_E = rng.binomial(200, np.clip(held_E, 0.02, 0.98)) / 200
    return eval_E, held_E, rng.binomial(64, np.clip(train_T, 0.02, 0.98)) / 64


def run_of(path: Path, kind: str, seed: int, **more: np.ndarray) -> Run:
    eval_E, held_E, train_T = curves(kind, seed)
    rates = dict(zip(eval_E.tolist(), held_E.tolist(), strict=True))
    return store_of(
        path, roles={"agent": {}}, run={"accuracy": train_T, **more}, rates=rates, answers=200
    )


@pytest.mark.parametrize("seed", range(4))
def test_training_up_and_held_out_down_is_told(tmp_path: Path, seed: int) -> None:
    [found] = HackingRule()(run_of(tmp_path, "hacked", seed))
    assert found.onset is not None
    assert found.onset.lower <= found.onset.step <= found.onset.upper
    assert 80 <= found.onset.step <= 120
    assert found.summary.startswith(f"From step {found.onset.step} on training accuracy rose from ")
    assert "while held-out accuracy fell from" in found.summary
    assert found.lower is not None
    assert found.upper is not None
    assert found.lower <= found.strength <= found.upper
    assert 0.35 < found.strength < 0.55


@pytest.mark.parametrize(
    "kind", ["healthy", "gap", "both fall", "held-out falls, training stands", "wander"]
)
@pytest.mark.parametrize("seed", range(4))
def test_what_only_looks_like_it_is_not(tmp_path: Path, kind: str, seed: int) -> None:
    assert HackingRule()(run_of(tmp_path, kind, seed)) == []


def test_a_reward_that_is_the_accuracy_is_tested_once(tmp_path: Path) -> None:
    train_T = curves("healthy", 0)[2]
    assert HackingRule().num_tested(run_of(tmp_path / "a", "healthy", 0, reward_mean=train_T)) == 0
    # A reward of its own: against held-out accuracy, in falls alone, and against that in training.
    other = run_of(tmp_path / "b", "healthy", 0, reward_mean=2 * train_T)
    assert HackingRule().num_tested(other) == 1
    assert len(HackingRule().pairs(other)) == 3


def test_the_clearest_of_two_rises_pays_for_both(tmp_path: Path) -> None:
    """Of a fall that is certain, the p-value is the rise's: twice that of the rise alone."""
    alone = run_of(tmp_path / "alone", "hacked", 0)
    run = run_of(tmp_path / "two", "hacked", 0, reward_mean=np.zeros(len(curves("hacked", 0)[2])))
    rule = HackingRule(alpha=1.0)
    fall = rule.fall.measure(rule.pairs(alone)[0].down.series())
    certain = replace(fall, p_value=0.0, outcome=HELD_OUT)
    (pair, second) = rule.pairs(run)[:2]
    assert second.up.title == "mean training reward", "asked, and without a rise"
    one, two = (rule.measure(pair, certain, num) for num in (1, 2))
    assert one is not None
    assert two is not None
    assert two.p_value == pytest.approx(2 * one.p_value)
    found = next(iter(HackingRule()(run)))
    assert "the clearest of 2 rises" in found.evidence[0]
    assert "clearest" not in next(iter(HackingRule()(alone))).evidence[0]


def test_a_reward_of_length_against_the_training_accuracy(tmp_path: Path) -> None:
    """No evaluations: the reward rises, the share of solved episodes falls."""
    rng = np.random.default_rng(0)
    late_T = np.clip((np.arange(150) - 60) / 30, 0, 1)
    accuracy_T = rng.binomial(64, 0.6 - 0.35 * late_T) / 64
    reward_T = 1.2 + 1.5 * late_T + 0.05 * rng.standard_normal(150)
    run = store_of(
        tmp_path, roles={"agent": {}}, run={"accuracy": accuracy_T, "reward_mean": reward_T}
    )
    [found] = HackingRule()(run)
    # Planted: from 1.2 to 2.7.
    assert "mean training reward rose from 1.2 to 2.69 while training acc" in found.summary
    assert HackingRule()(open_run(tmp_path, until=55)) == []


def test_a_penalty_that_pays_for_silence() -> None:
    step_T = np.arange(1, 2 * len(SCORE), 2)
    pair = Pair(
        Outcome("mean reward with the KL penalty inside", step_T, np.array(INSIDE), False),
        Outcome("task score", step_T, np.array(SCORE), False),
        "",
    )
    found = HackingRule().measure(pair)
    assert found is not None
    assert 15 <= found.start <= 33
    assert found.up_after == pytest.approx(-1.72, abs=0.1)
    # The best level: the mean of the first three.
    assert found.down_before == pytest.approx((-0.52 - 0.65 - 0.5) / 3, abs=0.001)
    assert found.down_after == pytest.approx(-0.88, abs=0.05)
    # The other way round nothing fell.
    assert HackingRule().measure(Pair(pair.down, pair.up, "")) is None


@pytest.mark.skipif(PENALIZED not in names(RunLedger), reason="not recorded by this version")
def test_the_penalized_reward_is_held_against_the_score(tmp_path: Path) -> None:
    every = np.repeat(np.arange(len(SCORE)), 2)
    # Twice the steps, each with the noise of a batch of its own.
    rng = np.random.default_rng(0)
    inside_T = np.array(INSIDE)[every] + rng.standard_normal(len(every))
    score_T = np.array(SCORE)[every] + 0.03 * rng.standard_normal(len(every))
    run = store_of(tmp_path, roles={"agent": {}}, run={PENALIZED: inside_T, "reward_mean": score_T})
    [found] = HackingRule()(run)
    assert "while task score fell" in found.summary
    assert "the penalty pays for it" in found.summary


def test_the_difference_of_levels_by_hand() -> None:
    """Levels of five values each, 0.4 to 0.6; deviations -1 1 0 1 -1 (in 0.05) on either side.

    Their lag-1 sum is -1 + 0 + 0 - 1 (left), + (-1)(-1) (across), - 1 + 0 + 0 - 1: -3 of power 8:
    no memory is seen, 0.5 is taken. Variance 8 * 0.0025 / 8 * (1.5 / 0.5) = 0.0075, error of the
    difference sqrt(0.0075 * 2 / 5) = 0.0548, degrees of freedom 8 / 3: t = 3.65.
    """
    wiggle = 0.05 * np.array([-1, 1, 0, 1, -1])
    up = Outcome("up", np.arange(10), np.r_[0.4 + wiggle, 0.6 + wiggle], True)
    rise = HackingRule()._rise(up, 4, 5)
    assert rise is not None
    assert rise[:2] == pytest.approx((0.4, 0.6))
    from scipy.stats import t

    assert rise[2] == pytest.approx(t.sf(0.2 / math.sqrt(0.0075 * 2 / 5), 8 / 3))


@pytest.mark.parametrize("name", ["healthy", "harm without capture", "slow decay"])
def test_falls_of_everything_are_no_hacking(tmp_path: Path, name: str) -> None:
    path = synthetic_run(tmp_path, **SCENARIOS[name].settings(200, seed=3), row_statistics=False)
    assert HackingRule()(open_run(path)) == []
