"""The beginning of a fall, dated by evaluations and by training, and what is held against it."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.cliff.fall import Fall
from analysis.explain.beginning import TRUST, beginnings
from analysis.explain.settings import Timing, setting_verdict
from analysis.findings import Onset
from analysis.signals import KIND, Measured

STEP_T = np.arange(1, 201)
EVERY = np.arange(0, 210, 10)


def fall_of(weight_T: np.ndarray, lower: int, upper: int) -> Fall:
    weight_T = np.asarray(weight_T, dtype=np.float64)
    return Fall(
        "cliff", len(EVERY), onset=Onset((lower + upper) // 2, lower, upper), end_step=upper + 10,
        onset_weight_T=weight_T / weight_T.sum(), onset_step_T=EVERY,
    )  # fmt: skip


def drawn(drop: Fall, reward_T: np.ndarray) -> np.ndarray:
    return beginnings(drop, STEP_T, reward_T, 4000, np.random.default_rng(0))


OPEN = fall_of((EVERY >= 80) & (EVERY < 160), 80, 160)
"""It began anywhere between steps 80 and 160, as far as evaluations say."""


def test_training_dates_what_evaluations_leave_open() -> None:
    rng = np.random.default_rng(1)
    reward_T = np.where(STEP_T > 120, 0.3, 0.7) + 0.05 * rng.standard_normal(200)
    fall_B = drawn(OPEN, reward_T)
    near = np.abs(fall_B - 120) <= 4
    # Half of the draws are of the evaluations alone, of which 8 of 80 steps are as near.
    assert near.mean() == pytest.approx(TRUST + (1 - TRUST) * 0.1, abs=0.03)
    assert fall_B.min() >= 80
    assert fall_B.max() <= 160


def test_a_beginning_that_both_leave_open_is_as_likely_as_both_say() -> None:
    """Training fell between its points at 100 and 140, and says no more: nothing was logged."""
    reward_T = np.where(STEP_T > 120, 0.3, 0.7) + 0.01 * (-1.0) ** STEP_T
    reward_T[(STEP_T > 100) & (STEP_T < 140)] = np.nan
    fall_B = drawn(fall_of(np.where(EVERY < 120, 3.0, 1.0) * (OPEN.onset_weight_T > 0), 80, 160),
                   reward_T)  # fmt: skip
    agreed_B = fall_B[(fall_B > 102) & (fall_B < 138)]
    # Three to one on either side of step 120, of 20 steps each.
    assert np.mean(agreed_B < 120) == pytest.approx(0.75, abs=0.06)


def test_training_that_fell_for_itself_dates_nothing() -> None:
    rng = np.random.default_rng(1)
    elsewhere_T = np.where(STEP_T > 30, 0.3, 0.7) + 0.02 * rng.standard_normal(200)
    held_B = OPEN.beginnings(4000, np.random.default_rng(0))
    # Nor does what never moves, or was never recorded.
    for reward_T in (elsewhere_T, np.full(200, 0.5), np.full(200, np.nan), np.zeros(0)):
        np.testing.assert_array_equal(drawn(OPEN, reward_T), held_B)


def timing(fall_B: np.ndarray, drop: Fall = OPEN, num_dated: int = 1) -> Timing:
    return Timing(drop, fall_B, 100, 0.9, 0.25, num_dated)


def test_many_signals_that_began_with_the_fall_are_held_against_one_beginning() -> None:
    """Twelve begin with it or up to 20 steps later: any is said to precede in 10 % at most."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(400):
        truth = rng.uniform(110, 130)
        fall_B = rng.normal(rng.normal(truth, 10), 10, 500)  # an honest posterior
        judge = timing(fall_B, num_dated=12)
        began = truth + np.append(0.0, rng.uniform(0, 20, 11))
        dated = [rng.normal(rng.normal(at, 1), 1, 200) for at in began]
        wrong += any(judge.order(onset_B)[0] == "precedes" for onset_B in dated)
    assert wrong / 400 <= 0.1 + 2 * np.sqrt(0.1 * 0.9 / 400)
    # Bonferroni over twelve would ask a lead of 2.4 deviations; 1.3 and its own dates are enough.
    fall_B = rng.normal(120, 10, 4000)
    assert timing(fall_B, num_dated=12).order(rng.normal(103, 0.5, 200))[0] == "precedes"
    assert timing(fall_B, num_dated=12).order(rng.normal(110, 0.5, 200))[0] == "coincides"


def test_the_end_of_a_warm_up_is_no_suspect_of_a_fall_after_it() -> None:
    value_T = 1e-3 * np.minimum(STEP_T / 60, 1)
    rate = Measured(KIND["learning_rate"], "p", "p", "1", value_T)
    rng = np.random.default_rng(0)
    drop = fall_of((EVERY >= 50) & (EVERY < 90), 50, 90)
    after = setting_verdict(rate, STEP_T, timing(rng.uniform(55, 90, 1000), drop))
    assert not after.is_candidate
    assert after.order == "no evidence"
    assert "settled before the drop" in after.note
    while_rising = setting_verdict(rate, STEP_T, timing(rng.uniform(40, 65, 1000), drop))
    assert while_rising.is_candidate
    assert while_rising.note == "rising from the first step until the fall"
