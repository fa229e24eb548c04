"""Rewards of turns, by rule, and that they never overwrite what they were made from."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from conftest import SmallConfig, make_turn

from gradlab.records import Agent
from trainers.credit import credit, rubric_reward, turn_reward
from trainers.episodes import Episode, Turn, trained_turns
from trainers.tasks.problem import Problem

PROBLEM = Problem("p", "math", "80+11", "91")


def episode_of(*turns: Turn, outcome: bool, failure: str | None = None) -> Episode:
    turns = tuple(replace(turn, outcome=outcome, sample=2) for turn in turns)
    return Episode(PROBLEM, 2, turns, "91" if outcome else None, outcome, failure)


RIGHT, WRONG = make_turn(own_correct=True), make_turn(own_correct=False)
PLAN = make_turn(Agent("orchestrator"), kind="plan")


@pytest.mark.parametrize("turn", [RIGHT, WRONG, PLAN])
@pytest.mark.parametrize("outcome", [True, False])
def test_the_outcome_is_broadcast_to_every_turn(
    small_config: SmallConfig, turn: Turn, outcome: bool
) -> None:
    assert turn_reward(replace(turn, outcome=outcome), small_config(reward="outcome")) == outcome


def test_own_correctness_falls_back_to_the_outcome_where_there_is_none(
    small_config: SmallConfig,
) -> None:
    config = small_config(reward="own")
    assert turn_reward(RIGHT, config) == 1
    assert turn_reward(replace(WRONG, outcome=True), config) == 0
    assert turn_reward(replace(PLAN, outcome=True), config) == 1
    assert turn_reward(PLAN, config) == 0


@pytest.mark.parametrize(
    ("turn", "outcome", "reward"),
    [
        (RIGHT, True, 1.0),
        (RIGHT, False, 0.75),  # 0.25 * 0 + 0.75 * 1
        (WRONG, True, 0.25),  # 0.25 * 1 + 0.75 * 0
        (WRONG, False, 0.0),
        (PLAN, True, 1.0),
    ],
)
def test_the_mix_weighs_the_outcome(
    small_config: SmallConfig, turn: Turn, outcome: bool, reward: float
) -> None:
    assert (
        turn_reward(replace(turn, outcome=outcome), small_config(reward="mix", mix=0.25)) == reward
    )


def choice(own: bool, offered: bool) -> Turn:
    return make_turn(Agent("aggregator"), kind="choice", own_correct=own, offered_correct=offered)


def verdict(own: bool, offered: bool) -> Turn:
    return make_turn(Agent("evaluator"), kind="verdict", own_correct=own, offered_correct=offered)


@pytest.mark.parametrize(
    ("turn", "outcome", "reward"),
    [
        (RIGHT, True, 1.0),  # 0.5 for the answer, 0.5 for the episode
        (RIGHT, False, 0.5),
        (WRONG, True, -0.5),  # 0.5 for the episode, minus 1 for a readable wrong answer
        (WRONG, False, -1.0),
        (make_turn(own_correct=False, parse_ok=False), True, 0.5),  # unreadable: no penalty
        (make_turn(own_correct=False, parse_ok=False), False, 0.0),
        (choice(own=True, offered=True), True, 1.0),
        (choice(own=False, offered=True), False, -1.0),
        (choice(own=False, offered=False), False, 0.0),  # nothing correct to choose
        (verdict(own=True, offered=False), False, 1.0),  # rightly refused
        (verdict(own=False, offered=False), False, -1.0),  # accepted a wrong solution
        (verdict(own=False, offered=True), True, -1.0),
        (PLAN, True, 1.0),
        (PLAN, False, 0.0),
    ],
)
def test_the_rubric(turn: Turn, outcome: bool, reward: float) -> None:
    assert rubric_reward(replace(turn, outcome=outcome)) == reward


def test_outcome_own_correctness_and_reward_are_kept_apart(small_config: SmallConfig) -> None:
    episode = episode_of(RIGHT, WRONG, PLAN, outcome=False)
    config = small_config(reward="mix", mix=0.5)
    turns = trained_turns([episode])
    rows = [replace(turn, reward=turn_reward(turn, config)) for turn in turns]
    assert [(row.own_correct, row.outcome, row.reward) for row in rows] == [
        (True, False, 0.5),
        (False, False, 0.0),
        (None, False, 0.0),
    ]
    assert [(row.problem, row.sample, row.advantage) for row in rows] == [("p", 2, 0.0)] * 3


def test_episodes_that_were_given_up_are_not_trained(small_config: SmallConfig) -> None:
    failed = episode_of(RIGHT, outcome=False, failure="prompt of 9 tokens, limit 8")
    episodes = credit([failed, episode_of(WRONG, outcome=True)], small_config())
    assert [math.isnan(e.turns[0].reward) for e in episodes] == [True, False]
    assert trained_turns(episodes) == [*episodes[1].turns]
