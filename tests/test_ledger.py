"""The step record against numbers worked out by hand."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from conftest import make_row, make_turn
from numpy.typing import NDArray

from gradlab.ledger import RoleTally, Turns, joined, role_ledger
from gradlab.records import SIGNATURE_BUCKETS, Agent
from gradlab.signature import FIBONACCI_HASH
from trainers.episodes import Episode, Group, Turn
from trainers.tasks.problem import Problem
from trainers.watch.ledger import step_record, turn_table

GENERATOR, AGGREGATOR = Agent("generator"), Agent("aggregator")


def generator_rows() -> list[Turn]:
    """Two episodes of problem a (rewards 1 0) and one of b (reward 1); responses of 2, 4, 6."""
    turns = [
        make_turn(GENERATOR, prompt_ids=(5,) * 3, response_ids=(7,) * 2, logprobs=(-1.0,) * 2,
                  own_correct=True),
        make_turn(GENERATOR, prompt_ids=(5,) * 3, response_ids=(7,) * 4, logprobs=(-0.5,) * 4,
                  own_correct=False, parse_ok=False),
        make_turn(GENERATOR, prompt_ids=(5,) * 4, response_ids=(8,) * 6, logprobs=(-0.25,) * 6,
                  own_correct=True, truncated=True),
    ]  # fmt: skip
    return [
        make_row(turns[0], problem="a", sample=0, outcome=True, reward=1.0, advantage=0.7),
        make_row(turns[1], problem="a", sample=1, outcome=False, reward=0.0, advantage=-0.7),
        make_row(turns[2], problem="b", sample=0, outcome=True, reward=1.0, advantage=0.0),
    ]


def tables(*turns: list[Turn]) -> list[Turns]:
    return [turn_table(some, [GENERATOR, AGGREGATOR]) for some in turns]


def test_a_roles_ledger_by_hand() -> None:
    rows = generator_rows()
    other = make_row(make_turn(AGGREGATOR), problem="a", reward=0.0)
    # The two on problem a are of two groups of four: one flat and solved, one flat and not. The one
    # on b is alone: 1/4 + 1/4 + 1 groups.
    groups = [Group(4, True, True, False), Group(4, True, False, True), Group(1)]
    rows = [replace(row, group=group) for row, group in zip(rows, groups, strict=True)]
    sums = RoleTally(
        tokens=12, entropy=6.0, ratio=13.2, ratio_squared=15.0, clipped=3, weight=2.0, updates=3,
        kl=0.01, logprob_gap=1e-6,
    )  # fmt: skip
    mine, everybody = tables(rows, [*rows, other])
    ledger = role_ledger(mine, everybody, sums, 8.0)
    assert ledger.episodes == 3
    assert ledger.turns == 3
    assert (ledger.prompt_tokens, ledger.response_tokens) == (10, 12)
    assert ledger.optimizer_steps == 3
    assert ledger.loss_weight == 0.25  # 2 of the policy's 8
    assert ledger.reward_mean == pytest.approx(2 / 3)
    assert ledger.reward_std == pytest.approx(math.sqrt(2) / 3)
    assert ledger.own_accuracy == pytest.approx(2 / 3)
    assert ledger.outcome_accuracy == pytest.approx(2 / 3)
    assert ledger.advantage_std == pytest.approx(math.sqrt(2 * 0.49 / 3))
    assert ledger.zero_variance_groups == pytest.approx(0.5 / 1.5)
    assert ledger.singleton_groups == pytest.approx(1 / 1.5)
    assert (ledger.all_right_groups, ledger.all_wrong_groups) == pytest.approx((1 / 6, 1 / 6))
    # all rewards 1 0 1 0: mean 1/2, variance 1/4; the role's: variance 2/9, mean 2/3
    assert ledger.inflation == pytest.approx((2 / 9 + 1 / 36) / (1 / 4))
    assert ledger.entropy == 0.5
    # log-probs sum to -2 - 2 - 1.5 = -5.5 over 12 tokens
    assert ledger.perplexity == pytest.approx(math.exp(5.5 / 12))
    assert ledger.clip_fraction == 0.25
    assert ledger.ratio_std == pytest.approx(0.2)  # E r^2 = 1.25, E r = 1.1: 1.25 - 1.21 = 0.04
    assert ledger.length_mean == 4
    assert ledger.length_p95 == pytest.approx(5.8)  # 95 % of the way 2, 4, 6: 4 + 0.9 * 2
    assert ledger.truncated == pytest.approx(1 / 3)
    assert ledger.parse_failures == pytest.approx(1 / 3)
    assert (ledger.kl, ledger.logprob_gap) == (0.01, 1e-6)


def test_a_role_that_did_not_speak_has_counts_of_zero_and_nothing_else() -> None:
    ledger = role_ledger(*tables([], generator_rows()), RoleTally(), 0.0)
    assert (ledger.turns, ledger.episodes, ledger.response_tokens) == (0, 0, 0)
    assert math.isnan(ledger.reward_mean)
    assert math.isnan(ledger.entropy)


def test_the_tally_of_a_role_with_two_policies_by_hand() -> None:
    """Sums add up; means are weighted by 30 and 10 tokens, of what is known."""
    one = RoleTally(tokens=30, entropy=6, clipped=1, updates=2, kl=0.4)
    two = RoleTally(tokens=10, entropy=1, clipped=2, updates=1, kl=0.8)
    two.logprob_gap = 0.25
    whole = joined([one, two])
    assert (whole.tokens, whole.entropy, whole.clipped, whole.updates) == (40, 7, 3, 3)
    assert whole.kl == pytest.approx(0.5)  # (30 * 0.4 + 10 * 0.8) / 40
    assert whole.logprob_gap == 0.25
    assert joined([one]) == one
    assert math.isnan(joined([]).kl)


def test_an_absurd_perplexity_stays_finite() -> None:
    row = make_row(make_turn(response_ids=(7,), logprobs=(-1e6,)))
    ledger = role_ledger(*tables([row], [row]), RoleTally(), 1.0)
    assert ledger.perplexity == pytest.approx(math.exp(50))


def signature(turns: list[Turn]) -> NDArray[np.float64]:
    """What the step record holds of these turns of the generator."""
    problem = Problem("a", "math", "1+1", "2")
    episodes = [Episode(problem, 0, tuple(turns), "2", True)]
    record = step_record(1, episodes, [GENERATOR], {"shared": {"generator": RoleTally()}}, {})
    return record.signatures["generator"]


def test_a_signature_is_the_share_of_tokens_per_bucket() -> None:
    share_K = signature(generator_rows())
    assert share_K.shape == (SIGNATURE_BUCKETS,)
    assert share_K.sum() == pytest.approx(1)
    # tokens 7 (6 times) and 8 (6 times), hashed by hand: top 7 bits of (id * constant) mod 2^32
    buckets = Counter((token * FIBONACCI_HASH % 2**32) >> 25 for token in [7] * 6 + [8] * 6)
    assert {int(k): share_K[k] for k in np.flatnonzero(share_K)} == {
        bucket: number / 12 for bucket, number in buckets.items()
    }


def test_neighbouring_tokens_fall_into_different_buckets() -> None:
    """128 consecutive ids (a vocabulary of characters) use at least 100 of 128 buckets."""
    rows = [make_row(make_turn(response_ids=tuple(range(128)), logprobs=(-1.0,) * 128))]
    assert np.count_nonzero(signature(rows)) >= 100


def test_large_token_ids_are_hashed_without_overflow() -> None:
    ids = (151_643, 151_935, 2**31 - 1)
    share_K = signature([make_row(make_turn(response_ids=ids, logprobs=(-1.0,) * 3))])
    expected = Counter((token * FIBONACCI_HASH % 2**32) >> 25 for token in ids)
    for bucket, number in expected.items():
        assert share_K[bucket] == pytest.approx(number / 3)


def test_the_step_record_covers_every_role_and_counts_failures() -> None:
    rows = generator_rows()
    a, b = (Problem(name, "math", "1+1", "2") for name in "ab")
    episodes = [
        Episode(a, 0, (rows[0],), "2", True),
        Episode(a, 1, (rows[1],), None, False),
        Episode(b, 0, (rows[2],), "2", True),
        Episode(b, 1, (), None, False, failure="prompt of 9 tokens, limit 8"),
    ]
    record = step_record(
        3,
        episodes,
        [GENERATOR, AGGREGATOR],
        {"shared": {"generator": RoleTally(weight=3.0), "aggregator": RoleTally(weight=0.0)}},
        {"rollout_seconds": 1.0, "train_seconds": 2.0, "step_seconds": 3.0},
    )
    assert record.step == 3
    assert record.run.accuracy == pytest.approx(2 / 4)  # the failed episode counts as wrong
    assert (record.run.episodes, record.run.failed_episodes) == (4, 1)
    assert record.run.tokens == 22
    assert set(record.roles) == {"generator", "aggregator"}
    assert record.roles["aggregator"].turns == 0
    assert record.roles["generator"].loss_weight == 1
    assert set(record.signatures) == {"generator"}
