"""Every advantage estimator against numbers worked out by hand, and estimators of one's own."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from conftest import SmallConfig, make_row, make_turn

from gradlab.baselines import BASELINES
from gradlab.own_parts import PartError
from gradlab.records import Agent
from trainers.advantages import estimators, find_estimator
from trainers.credit import batch_by_agent, with_advantages

REWARD_N = np.array([1.0, 0, 0, 0, 1, 0.5])
GROUP_N = np.array([0, 0, 1, 0, 1, 0])
"""Group 0 has rewards 1 0 0 .5 (mean 3/8), group 1 has 0 1 (mean 1/2)."""
STD_0 = math.sqrt((25 / 64 + 9 / 64 + 9 / 64 + 1 / 64) / 3)
"""Deviations 5/8 -3/8 -3/8 1/8; over 3, since the mean was estimated."""
ALL = math.sqrt((1 + 1 + 0.25) / 6 - (2.5 / 6) ** 2)
"""Standard deviation of all six: mean of squares 2.25 / 6 minus the squared mean 2.5 / 6."""

BY_HAND = {
    "grpo": [
        0.625 / (STD_0 + 1e-6), -0.375 / (STD_0 + 1e-6), -0.5 / (math.sqrt(0.5) + 1e-6),
        -0.375 / (STD_0 + 1e-6), 0.5 / (math.sqrt(0.5) + 1e-6), 0.125 / (STD_0 + 1e-6),
    ],
    "dr-grpo": [0.625, -0.375, -0.5, -0.375, 0.5, 0.125],
    # Of the first: 1 - (0 + 0 + .5) / 3; of the second: 0 - (1 + 0 + .5) / 3; of the pair: +-1.
    "rloo": [1 - 0.5 / 3, -0.5, -1, -0.5, 1, 0.5 - 1 / 3],
    "reinforce": [1, 0, 0, 0, 1, 0.5],
    "reinforce++": [(r - 2.5 / 6) / (ALL + 1e-6) for r in (1, 0, 0, 0, 1, 0.5)],
    # Centred by group they are dr-grpo's, whose mean is 0 and whose mean square is
    # (25 + 9 + 9 + 1) / 64 / 6 + (.25 + .25) / 6 = .1979.
    "reinforce++-baseline": [
        a / (math.sqrt((44 / 64 + 0.5) / 6) + 1e-6)
        for a in (0.625, -0.375, -0.5, -0.375, 0.5, 0.125)
    ],
    "lite-ppo": [a / (ALL + 1e-6) for a in (0.625, -0.375, -0.5, -0.375, 0.5, 0.125)],
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_an_estimator_gives_what_its_equation_gives(name: str) -> None:
    advantage_n = find_estimator(name, singleton="zero")(REWARD_N, GROUP_N)
    np.testing.assert_allclose(advantage_n, BY_HAND[name], rtol=1e-12, atol=1e-12)


def test_every_estimator_of_the_table_is_worked_out_here() -> None:
    assert set(estimators("zero")) == set(BY_HAND) == set(BASELINES)


@pytest.mark.parametrize("name", BY_HAND)
def test_what_an_estimator_is_said_to_compare_with_is_what_it_does(name: str) -> None:
    estimate = estimators("zero")[name]
    flat_n = np.array([1.0, 1, 0, 1, 0, 1])
    groups_without_spread = estimate(flat_n, GROUP_N)  # each group is all 1 or all 0
    assert (groups_without_spread == 0).all() == BASELINES[name].is_of_group
    raised_n = REWARD_N + np.array([0.0, 0, 7, 0, 0, 0])  # one of the second group
    first_B2 = np.stack([estimate(n, GROUP_N)[GROUP_N == 0] for n in (REWARD_N, raised_n)])
    is_same = np.allclose(*first_B2)
    # Without a baseline a reward is compared with nothing, and stays what it is, too.
    assert is_same == (BASELINES[name].is_group_alone or name == "reinforce")


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("singleton", ["zero", "reward"])
def test_equal_rewards_and_groups_of_one_give_finite_numbers(name: str, singleton: str) -> None:
    estimate = estimators(singleton)[name]
    assert np.isfinite(estimate(np.ones(4), np.zeros(4, dtype=np.int64))).all()
    alone = estimate(np.array([1.0]), np.array([0]))
    if name in ("grpo", "dr-grpo", "rloo"):
        assert alone.tolist() == [float(singleton == "reward")]


def test_grpo_without_std_is_dr_grpo_bit_for_bit() -> None:
    plain = find_estimator("grpo", singleton="zero", normalize_std=False)(REWARD_N, GROUP_N)
    np.testing.assert_array_equal(
        plain, find_estimator("dr-grpo", singleton="zero")(REWARD_N, GROUP_N)
    )


def test_a_batch_is_what_one_policy_trains_on(small_config: SmallConfig) -> None:
    """Isolated, the aggregator's rewards do not move the generators'; shared, they do."""
    rows = [
        make_row(make_turn(Agent(role)), sample=k, reward=reward)
        for role, rewards in {"generator": (1.0, 0.0), "aggregator": (5.0, 3.0)}.items()
        for k, reward in enumerate(rewards)
    ]
    alone = with_advantages(rows, small_config(advantage="reinforce++"))
    np.testing.assert_allclose([t.advantage for t in alone], [1, -1, 1, -1], rtol=1e-5)
    # 1 0 5 3: mean 9/4, mean square 35/4, std sqrt(35/4 - 81/16) = sqrt(59)/4
    together = with_advantages(rows, small_config(advantage="reinforce++", routing="shared"))
    by_hand = [(r - 9 / 4) / (math.sqrt(59) / 4 + 1e-6) for r in (1, 0, 5, 3)]
    np.testing.assert_allclose([t.advantage for t in together], by_hand, rtol=1e-12)


def own(tmp_path: Path, body: str) -> str:
    path = tmp_path / "mine.py"
    path.write_text(body)
    return f"{path}:mine"


def test_one_of_ones_own_sees_a_group_or_the_batch(tmp_path: Path) -> None:
    of_group = own(tmp_path, "def mine(reward_K):\n    return reward_K - reward_K.max()\n")
    advantage_n = find_estimator(of_group, singleton="zero")(REWARD_N, GROUP_N)
    assert advantage_n.tolist() == [0, -1, -1, -1, 0, -0.5]
    whole = own(tmp_path, "def mine(reward_n, group_n):\n    return reward_n - 10 * group_n\n")
    advantage_n = find_estimator(whole, singleton="zero")(REWARD_N, GROUP_N)
    assert advantage_n.tolist() == [1, 0, -10, 0, -9, 0.5]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("def mine(r):\n    return r / 0\n", r"mine\.py:1: .* gave shape \(\d,\), \d not finite"),
        ("def mine(r):\n    raise KeyError('x')\n", r"mine\.py:2: .* raised KeyError"),
        ("def mine(r, g):\n    return r[:2]\n", r"mine\.py:1: .* gave shape \(2,\) for 6 rewards"),
        ("def mine(r, g, x):\n    return r\n", "mine.py:1 is a function; expected a function of"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_broken_one_is_named(tmp_path: Path, body: str, said: str) -> None:
    with pytest.raises(PartError, match=said):
        find_estimator(own(tmp_path, body), singleton="zero")(REWARD_N, GROUP_N)


def test_unknown_and_contradictory_ones_are_refused(small_config: SmallConfig) -> None:
    with pytest.raises(ValueError, match="--advantage gae is unknown; expected one of grpo, dr-g"):
        small_config(advantage="gae")
    with pytest.raises(ValueError, match="--advantage rloo has none to leave out"):
        small_config(advantage="rloo", normalize_std=False)


def test_a_function_of_a_group_that_gives_one_number_is_refused(tmp_path: Path) -> None:
    """numpy would deal the one number to the whole group."""
    (tmp_path / "flat.py").write_text("def flat(reward_K):\n    return reward_K.mean()\n")
    estimate = find_estimator(f"{tmp_path / 'flat.py'}:flat", singleton="zero")
    with pytest.raises(PartError, match=r"flat\.py.*gave shape \(\) for 2 rewards"):
        estimate(np.array([0.0, 1, 1, 0]), np.array([0, 0, 1, 1]))


def test_policies_that_a_group_joins_are_one_batch(small_config: SmallConfig) -> None:
    """worker[0] trains with the roles of 'lead', in one group with the workers of 'solver'."""
    options = {
        "workflow": "orchestrator_workers",
        "routing": "orchestrator=lead,worker=solver,worker[0]=lead,synthesizer=lead",
    }
    whole = batch_by_agent(small_config(**options, group_by="role"))
    assert set(whole.values()) == {"lead solver"}
    apart = batch_by_agent(small_config(**options, group_by="role_number"))
    assert set(apart.values()) == {"lead", "solver"}


def test_roles_that_share_no_policy_are_batches_of_their_own(small_config: SmallConfig) -> None:
    """Three workers with a policy each are one group; the two other roles train alone."""
    found = batch_by_agent(
        small_config(workflow="orchestrator_workers", routing="agents", group_by="role")
    )
    assert {(agent.role, batch) for agent, batch in found.items()} == {
        ("orchestrator", "orchestrator"),
        ("worker", "worker-0 worker-1 worker-2"),
        ("synthesizer", "synthesizer"),
    }


def test_singleton_reward_is_refused_where_nobody_asks_for_it() -> None:
    for name in ("reinforce", "reinforce++", "reinforce++-baseline"):
        with pytest.raises(ValueError, match="does not ask what a group of one gets"):
            find_estimator(name, singleton="reward")
