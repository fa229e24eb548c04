"""Every row is trained exactly once, problems stay whole, and budgets are kept."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise, product
from typing import Any, Literal

import numpy as np
import pytest
import torch
from conftest import SmallConfig, make_row, make_turn
from hypothesis import given
from hypothesis import strategies as st

from gradlab.ledger import RoleTally
from gradlab.records import Agent
from trainers.batches import micro_batches, num_updates, plan_updates
from trainers.config import TrainConfig
from trainers.episodes import Turn, trained_turns
from trainers.learn import accumulate
from trainers.rollout import rollout
from trainers.training import open_run_for_training, step_problems


def make_rows(lengths: list[int], num_problems: int) -> list[Turn]:
    return [
        make_row(
            make_turn(
                Agent("generator", i % 3),
                prompt_ids=tuple(range(length)),
                response_ids=(7,) * (1 + i % 4),
            ),
            problem=f"p{i % num_problems}",
            sample=i,
        )
        for i, length in enumerate(lengths)
    ]


rows_strategy = st.builds(
    make_rows, st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 9)
)


def ids_of(parts: list[list[Turn]]) -> list[int]:
    return sorted(row.sample for part in parts for row in part)


@given(
    rows_strategy,
    st.sampled_from(["samples", "fixed"]),
    st.sampled_from(["prompts", "length"]),
    st.integers(1, 70),
    st.integers(1, 5),
)
def test_every_row_is_in_exactly_one_update(
    rows: list[Turn], updates: str, minibatches: str, rows_per_update: int, fixed: int
) -> None:
    config = TrainConfig(
        updates=updates,  # type: ignore[arg-type]
        minibatches=minibatches,  # type: ignore[arg-type]
        rows_per_update=rows_per_update,
        fixed_updates=fixed,
    )
    planned = plan_updates(rows, config, (0, 1))
    assert ids_of(planned) == list(range(len(rows)))
    assert all(planned)


def split(rows: list[Turn], max_tokens: int, way: Literal["cut", "filled"] = "cut") -> Any:
    return micro_batches(rows, TrainConfig(micro_tokens=max_tokens, micro_batches=way))


@given(rows_strategy, st.integers(1, 300), st.sampled_from(["cut", "filled"]))
def test_every_row_is_in_exactly_one_micro_batch_within_the_budget(
    rows: list[Turn], max_tokens: int, way: Literal["cut", "filled"]
) -> None:
    batches = split(rows, max_tokens, way)
    assert ids_of(batches) == list(range(len(rows)))
    for batch in batches:
        # Prompts are padded to the longest prompt, responses to the longest response.
        prompt = max(len(row.prompt_ids) for row in batch)
        response = max(len(row.response_ids) for row in batch)
        assert len(batch) * (prompt + response) <= max_tokens or len(batch) == 1


def padded(batch: list[Turn]) -> int:
    longest = (
        max(map(len, side))
        for side in zip(*((r.prompt_ids, r.response_ids) for r in batch), strict=True)
    )
    return len(batch) * sum(longest)


@given(
    st.builds(make_rows, st.lists(st.integers(1, 40), min_size=1, max_size=8), st.just(3)),
    st.integers(1, 200),
    st.sampled_from([0.0, 0.125, 1.0]),
)
def test_no_other_cut_by_length_is_cheaper(rows: list[Turn], max_tokens: int, share: float) -> None:
    """Against all cuts of the same order, tried one by one: 128 of 8 rows."""
    price = share * max_tokens
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainers.batches.EXTRA_BATCH", share)
        found = sum(padded(batch) + price for batch in split(rows, max_tokens))
    ordered = sorted(rows, key=lambda row: (row.tokens, row.agent))
    costs = []
    for cuts in product([False, True], repeat=len(rows) - 1):
        places = [0, *(i for i, is_cut in enumerate(cuts, start=1) if is_cut), len(rows)]
        batches = [ordered[start:end] for start, end in pairwise(places)]
        if all(padded(batch) <= max_tokens or len(batch) == 1 for batch in batches):
            costs.append(sum(padded(batch) + price for batch in batches))
    assert found == min(costs)


def test_long_prompts_are_cut_off_from_short_ones() -> None:
    """48 generators of 10 + 6 tokens, 16 aggregators of 80 + 3: 64 x 86 = 5,504 tokens in one
    micro-batch, 48 x 16 + 16 x 83 = 2,096 in two, with a price of 256 each."""
    generators = [
        make_turn(prompt_ids=(5,) * 10, response_ids=(7,) * 6, sample=i) for i in range(48)
    ]
    aggregators = [
        make_turn(Agent("aggregator"), prompt_ids=(5,) * 80, response_ids=(7,) * 3, sample=i)
        for i in range(16)
    ]
    rows = [*generators, *aggregators]
    assert [len(batch) for batch in split(rows, 16384, "filled")] == [64]
    found = split(rows, 16384)
    assert [len(batch) for batch in found] == [48, 16]
    assert sum(map(padded, found)) == 2096


@given(rows_strategy, st.integers(1, 300))
def test_rows_of_an_agent_stand_together(rows: list[Turn], max_tokens: int) -> None:
    for batch in split(rows, max_tokens):
        agents = [row.agent for row in batch]
        assert agents == sorted(agents)


@given(rows_strategy, st.integers(1, 30), st.integers(0, 5))
def test_problems_stay_whole(rows: list[Turn], rows_per_update: int, seed: int) -> None:
    planned = plan_updates(rows, TrainConfig(rows_per_update=rows_per_update), (seed,))
    homes = Counter(problem for part in planned for problem in {row.problem for row in part})
    assert set(homes.values()) == {1}


def test_the_shuffle_depends_on_its_key_alone() -> None:
    rows = make_rows(list(range(1, 41)), 20)
    config = TrainConfig(rows_per_update=10)
    first, again, other = (plan_updates(rows, config, key) for key in ((0, 1), (0, 1), (0, 2)))
    assert first == again
    assert first != other


def test_a_batch_may_fill_its_budget_to_the_last_token() -> None:
    rows = make_rows([4] * 5, 2)[::4]  # 4 prompt tokens and 1 of response, each
    size = sum(len(row.prompt_ids) + len(row.response_ids) for row in rows)
    assert [len(batch) for batch in micro_batches(rows, TrainConfig(micro_tokens=size))] == [2]
    assert [len(batch) for batch in micro_batches(rows, TrainConfig(micro_tokens=size - 1))] == [
        1,
        1,
    ]


def voting_rows(problems: int, samples: int) -> dict[str, list[Turn]]:
    agents = [*(Agent("generator", i) for i in range(3)), Agent("aggregator")]
    rows = [
        make_row(make_turn(agent), problem=f"p{problem}", sample=sample)
        for problem in range(problems)
        for sample in range(samples)
        for agent in agents
    ]
    return {
        role: [row for row in rows if row.agent.role == role]
        for role in ("generator", "aggregator")
    }


def test_the_parallel_role_of_isolated_voting_gets_three_updates_to_one() -> None:
    """16 problems x 8 samples: 384 generator rows, 128 aggregator rows, 128 rows an update."""
    rows = voting_rows(16, 8)
    config = TrainConfig()
    assert len(plan_updates(rows["generator"], config, (0,))) == 3
    assert len(plan_updates(rows["aggregator"], config, (0,))) == 1
    assert num_updates(512, config) == 4  # shared: all 512 rows in one policy


def test_fixed_updates_take_the_confound_away() -> None:
    rows = voting_rows(16, 8)
    config = TrainConfig(updates="fixed", fixed_updates=2)
    assert [len(part) for part in plan_updates(rows["generator"], config, (0,))] == [192, 192]
    assert [len(part) for part in plan_updates(rows["aggregator"], config, (0,))] == [64, 64]


def test_by_length_updates_are_consecutive_slices_in_order_of_length() -> None:
    rows = make_rows([30, 10, 20, 40, 5, 25, 35, 15, 12, 33], 3)
    planned = plan_updates(rows, TrainConfig(minibatches="length", rows_per_update=4), (0,))
    assert [len(part) for part in planned] == [4, 4, 2]
    lengths = [row.tokens for part in planned for row in part]
    assert lengths == sorted(lengths)


def test_by_length_the_last_update_takes_what_is_left_over() -> None:
    """9 rows at 4: 4, 4 and 1. Three updates of ceil(9 / 3) = 3 rows are what fixed ones get."""
    rows = make_rows([9, 1, 8, 2, 7, 3, 6, 4, 5], 3)
    by_samples = TrainConfig(minibatches="length", rows_per_update=4)
    fixed = TrainConfig(minibatches="length", updates="fixed", fixed_updates=3)
    assert [len(part) for part in plan_updates(rows, by_samples, (0,))] == [4, 4, 1]
    assert [len(part) for part in plan_updates(rows, fixed, (0,))] == [3, 3, 3]


def test_fewer_problems_than_updates_give_fewer_updates_and_none_empty() -> None:
    rows = make_rows([5] * 30, 2)
    assert len(plan_updates(rows, TrainConfig(rows_per_update=3), (0,))) == 2


def test_no_rows_no_updates() -> None:
    assert plan_updates([], TrainConfig(), (0,)) == []
    assert split([], 10) == []


@pytest.mark.parametrize("rows_per_update", [1, 7, 128])
def test_the_number_of_updates_is_rounded_up(rows_per_update: int) -> None:
    config = TrainConfig(rows_per_update=rows_per_update)
    assert num_updates(100, config) == math.ceil(np.float64(100) / rows_per_update)


def test_a_cut_changes_gradients_and_grams_by_rounding_alone(
    small_config: SmallConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.batches.EXTRA_BATCH", 0.0)
    run = open_run_for_training(small_config(routing="shared"))
    policy, language = run.policies["shared"], run.languages[run.config.model]
    problems = step_problems(run.task.train, run.config, 1)
    played = rollout(run.sampler, run.workflow, run.speakers, problems, 4, (0,), run.judge)
    run.judge.close()
    draw = np.random.default_rng(0)  # of the advantages: a group's may all be 0
    rows = [replace(row, advantage=float(draw.normal())) for row in trained_turns(played)]
    order = {problem.id: i for i, problem in enumerate(problems)}
    language.activate("shared")
    found: dict[str, Any] = {}
    for way, number in (("filled", 1), ("cut", 2)):
        config = replace(run.config, micro_batches=way)  # type: ignore[arg-type]
        assert len(micro_batches(rows, config)) >= number
        tallies = {role: RoleTally() for role in policy.roles}
        accumulate(language, policy, rows, order, config, 1, tallies)
        assert policy.probe is not None
        gradient = torch.cat([p.grad.flatten() for p in policy.parameters if p.grad is not None])
        found[way] = (gradient.clone(), policy.probe.captured_gram().copy())
        policy.probe.discard()
        policy.optimizer.zero_grad(set_to_none=True)
    (gradient, gram), (other, other_gram) = found["filled"], found["cut"]
    assert float((gradient - other).norm() / gradient.norm()) < 1e-5
    np.testing.assert_allclose(other_gram, gram, rtol=1e-4, atol=1e-5 * gram.diagonal().max())
