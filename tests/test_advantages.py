"""Group-relative advantages against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import SmallConfig, make_row, make_turn
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gradlab.ledger import inflation
from gradlab.records import Agent
from trainers.advantages import EPSILON, find_estimator
from trainers.credit import group_key, with_advantages
from trainers.episodes import Group


def group_advantages(
    reward_K: NDArray[np.float64], *, normalize_std: bool, singleton: str
) -> NDArray[np.float64]:
    """Of one group, by the default estimator."""
    estimate = find_estimator("grpo", singleton=singleton, normalize_std=normalize_std)
    return estimate(reward_K, np.zeros(len(reward_K), dtype=np.int64))


def test_grpo_divides_by_the_unbiased_standard_deviation() -> None:
    """Rewards 1 0 0 0: mean 1/4; sum of squares 9/16 + 3/16 = 3/4; std = sqrt(3/4 / 3) = 1/2.

    Advantages (3/4) / (1/2) = 3/2 and (-1/4) / (1/2) = -1/2, up to the 1e-6 in the denominator.
    """
    advantage_K = group_advantages(np.array([1.0, 0, 0, 0]), normalize_std=True, singleton="zero")
    np.testing.assert_allclose(advantage_K, [1.5, -0.5, -0.5, -0.5], rtol=3e-6)
    assert advantage_K[0] == 0.75 / (0.5 + EPSILON)


def test_two_opposite_rewards() -> None:
    """Rewards 1 0: mean 1/2, std = sqrt((1/4 + 1/4) / 1) = 0.70711, advantages +-0.70711."""
    advantage_K = group_advantages(np.array([1.0, 0]), normalize_std=True, singleton="zero")
    np.testing.assert_allclose(advantage_K, [math.sqrt(0.5), -math.sqrt(0.5)], rtol=3e-6)


def test_without_std_only_the_mean_is_subtracted() -> None:
    advantage_K = group_advantages(np.array([1.0, 0, 0, 0]), normalize_std=False, singleton="zero")
    np.testing.assert_array_equal(advantage_K, [0.75, -0.25, -0.25, -0.25])


@pytest.mark.parametrize("normalize_std", [True, False])
@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_equal_rewards_teach_nothing(normalize_std: bool, reward: float) -> None:
    advantage_K = group_advantages(
        np.full(5, reward), normalize_std=normalize_std, singleton="reward"
    )
    np.testing.assert_array_equal(advantage_K, np.zeros(5))


def test_a_group_of_one_gets_zero_or_its_raw_reward() -> None:
    one = np.array([1.0])
    assert group_advantages(one, normalize_std=True, singleton="zero").tolist() == [0.0]
    assert group_advantages(one, normalize_std=True, singleton="reward").tolist() == [1.0]


def test_groups_by_number_are_dr_mas_agents(small_config: SmallConfig) -> None:
    """arXiv 2602.08847: A = (R - mu_k) / (sigma_k + 1e-6) over agent k's samples of a prompt.

    Its turns are pooled, sigma has ddof = 1. Solver, two rounds in an episode: 1, 0, 0: mu 1/3,
    sigma = sqrt((4/9 + 2/9) / 2) = sqrt(1/3). Verifier: 1, 0: mu 1/2, sigma sqrt(1/2).
    """
    played = [("generator", 0, 1.0), ("generator", 0, 0.0), ("generator", 1, 0.0)]
    played += [("aggregator", 0, 1.0), ("aggregator", 0, 0.0)]
    rows = [
        make_row(make_turn(Agent(role), round=number), sample=i, reward=reward)
        for i, (role, number, reward) in enumerate(played)
    ]
    config = small_config(group_by="role_number", singleton="reward")
    credited = with_advantages(rows, config)
    solver = np.array([2 / 3, -1 / 3, -1 / 3]) / (math.sqrt(1 / 3) + 1e-6)
    verifier = np.array([0.5, -0.5]) / (math.sqrt(0.5) + 1e-6)
    np.testing.assert_allclose([r.advantage for r in credited], [*solver, *verifier], rtol=1e-12)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=12), st.booleans())
def test_advantages_of_a_group_sum_to_zero(rewards: list[float], normalize_std: bool) -> None:
    advantage_K = group_advantages(np.array(rewards), normalize_std=normalize_std, singleton="zero")
    assert abs(advantage_K.sum()) < 1e-9
    assert (np.argsort(advantage_K, kind="stable") == np.argsort(rewards, kind="stable")).all()


def test_group_keys() -> None:
    row = make_row(make_turn(Agent("worker", 2), round=1), problem="p7")
    assert group_key(row, "role") == ("p7", "worker", 0, 0)
    assert group_key(row, "role_number") == ("p7", "worker", 2, 0)
    assert group_key(row, "role_turn") == ("p7", "worker", 2, 1)


@pytest.mark.parametrize(
    ("group_by", "generator_groups"), [("role", 1), ("role_number", 3), ("role_turn", 3)]
)
def test_the_key_decides_how_many_groups_voting_has(
    small_config: SmallConfig, group_by: str, generator_groups: int
) -> None:
    """One problem, 4 samples, 3 generators: 12 rows in one group (code voting) or in 3 of 4."""
    rows = [
        make_row(make_turn(Agent("generator", i)), sample=k, reward=float(k == 0))
        for k in range(4)
        for i in range(3)
    ]
    credited = with_advantages(rows, small_config(group_by=group_by))
    assert {turn.group for turn in credited} == {Group(12 // generator_groups)}
    if group_by == "role":
        # 3 ones among 12: mean 1/4, sum of squares 3*9/16 + 9*1/16 = 9/4, std sqrt(9/44) = 0.45227
        assert credited[0].advantage == pytest.approx(0.75 / math.sqrt(9 / 44), rel=1e-5)
    if group_by == "role_number":
        assert credited[0].advantage == pytest.approx(1.5, rel=1e-5)


def test_rounds_are_compared_with_their_own_kind(small_config: SmallConfig) -> None:
    """Round 0 has rewards 0 1, round 1 has 1 1: pooled they differ, by round the second is flat."""
    rows = [
        make_row(make_turn(round=turn), sample=k, reward=float(turn or k))
        for k in range(2)
        for turn in range(2)
    ]
    credited = with_advantages(rows, small_config(group_by="role_turn"))
    flat = Group(2, zero_variance=True, all_wrong=True)  # no episode of them was solved
    assert [turn.group for turn in credited] == [Group(2), flat] * 2
    credited = with_advantages(rows, small_config(group_by="role"))
    assert {turn.group for turn in credited} == {Group(4)}


def test_groups_without_spread_are_all_right_all_wrong_or_neither(
    small_config: SmallConfig,
) -> None:
    """Problem d pays 0.5 whatever the outcome: equal rewards, and neither right nor wrong."""
    outcomes = {"a": (True, True), "b": (False, False), "c": (True, False), "d": (True, False)}
    rows = [
        make_row(problem=p, sample=k, outcome=solved, reward=0.5 if p == "d" else float(solved))
        for p, both in outcomes.items()
        for k, solved in enumerate(both)
    ]
    rows.append(make_row(problem="alone", outcome=True, reward=1.0))
    credited = with_advantages(rows, small_config())
    assert {turn.problem: turn.group for turn in credited} == {
        "a": Group(2, zero_variance=True, all_right=True),
        "b": Group(2, zero_variance=True, all_wrong=True),
        "c": Group(2),
        "d": Group(2, zero_variance=True),
        "alone": Group(1),
    }


def test_singletons_and_zero_variance_are_counted_apart(small_config: SmallConfig) -> None:
    rows = [
        make_row(problem="alone", reward=1.0),
        make_row(problem="flat", sample=0, reward=1.0),
        make_row(problem="flat", sample=1, reward=1.0),
        make_row(problem="mixed", sample=0, reward=1.0),
        make_row(problem="mixed", sample=1, reward=0.0),
        make_row(make_turn(Agent("aggregator")), problem="mixed", reward=0.0),
    ]
    credited = with_advantages(rows, small_config())
    flat = Group(2, zero_variance=True, all_wrong=True)
    assert [turn.group for turn in credited] == [
        Group(1), flat, flat, Group(2), Group(2), Group(1),
    ]  # fmt: skip
    assert [row.advantage for row in credited[:3]] == [0, 0, 0]
    faithful = with_advantages(rows, small_config(singleton="reward"))
    assert faithful[0].advantage == 1.0


def test_rows_keep_their_order_and_everything_else(small_config: SmallConfig) -> None:
    rows = [make_row(sample=k, reward=float(k % 2), outcome=bool(k % 2)) for k in range(6)]
    credited = with_advantages(rows, small_config())
    assert [row.sample for row in credited] == [0, 1, 2, 3, 4, 5]
    assert [row.reward for row in credited] == [row.reward for row in rows]
    assert all(
        new.response_ids is old.response_ids for new, old in zip(credited, rows, strict=True)
    )
    assert [row.advantage for row in rows] == [0] * 6  # the given rows are not touched


def test_inflation_is_dr_mas_kappa() -> None:
    """All rewards 1 1 0 0: mean 1/2, variance 1/4. The role's are 1 1: mean 1, variance 0.

    kappa = [0 + (1 - 1/2)^2] / (1/4) = 1. For the role with rewards 1 0: [1/4 + 0] / (1/4) = 1.
    For a role with 1 1 among 1 1 1 0: mean 3/4, variance 3/16, kappa = (1/16) / (3/16) = 1/3.
    """
    half = np.array([1.0, 1, 0, 0])
    assert inflation(half, half[[0, 1]]) == pytest.approx(1)
    assert inflation(half, half[[0, 2]]) == pytest.approx(1)
    most = np.array([1.0, 1, 1, 0])
    assert inflation(most, most[:2]) == pytest.approx(1 / 3)


def test_inflation_is_not_a_number_when_undefined() -> None:
    assert math.isnan(inflation(np.ones(3), np.ones(2)))
    assert math.isnan(inflation(np.array([0.0, 1.0]), np.zeros(0)))
