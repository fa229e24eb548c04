"""Reward and group-relative advantage of every turn.

`own_correct`, `outcome` and `reward` stay three separate numbers; `is_solved` is a fourth
truth, that accuracy is made of. A group holds the rewards that are compared with each other. Its
key is a declared option:

    role         (problem, role)            the paper's code voting: one group of N * K
    role_number  (problem, role, number)    the paper's maths voting: N groups of K
    role_turn    (problem, role, number, round)  AT-GRPO: one agent's turn of one round
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gradlab.own_parts import is_own
from gradlab.records import Agent
from trainers.advantages import find_estimator
from trainers.config import TrainConfig
from trainers.episodes import Episode, Group, Turn, trained_turns
from trainers.rewards import load_reward, paid

GroupKey = tuple[str, str, int, int]


def credit(episodes: Sequence[Episode], config: TrainConfig) -> list[Episode]:
    """The episodes with reward, group and advantage in every turn that is to be trained.

    Turns of episodes that were given up stay without.
    """
    return compared(with_rewards(episodes, config), config)


def compared(episodes: Sequence[Episode], config: TrainConfig) -> list[Episode]:
    """Rewarded episodes, all of a step, with group and advantage in the turns that are trained."""
    return replaced(episodes, with_advantages(trained_turns(episodes), config))


def with_rewards(episodes: Sequence[Episode], config: TrainConfig) -> list[Episode]:
    """The episodes with a reward in every turn that is to be trained."""
    if is_own(config.reward):
        reward = load_reward(config.reward)
        turns = [
            turn for episode in episodes if not episode.failure for turn in paid(episode, reward)
        ]
    else:
        turns = rewarded(trained_turns(episodes), config)
    return replaced(episodes, turns)


def replaced(episodes: Sequence[Episode], turns: Sequence[Turn]) -> list[Episode]:
    """The episodes with these turns in place of those that are trained, in their order."""
    new = iter(turns)
    return [
        replace(episode, turns=tuple(next(new) for _ in episode.turns))
        if episode.failure is None
        else episode
        for episode in episodes
    ]


def rewarded(turns: Sequence[Turn], config: TrainConfig) -> list[Turn]:
    """The turns with their rewards."""
    return [replace(turn, reward=turn_reward(turn, config)) for turn in turns]


def turn_reward(turn: Turn, config: TrainConfig) -> float:
    """Reward of one turn.

    outcome  1 if the episode was solved, for every turn (the paper's broadcast); its grade where
             the task's own judge gives grades
    own      1 if the turn is right by itself; the outcome where that is undefined
    mix      mix * outcome + (1 - mix) * own
    rubric   the paper's Voting-V2 rubric, see `rubric_reward`
    """
    own = turn.outcome if turn.own_correct is None else turn.own_correct
    match config.reward:
        case "outcome":
            return float(turn.outcome)
        case "own":
            return float(own)
        case "mix":
            return config.mix * float(turn.outcome) + (1 - config.mix) * float(own)
        case "rubric":
            return rubric_reward(turn)
    raise AssertionError("the configuration was checked")


def rubric_reward(turn: Turn) -> float:
    """Voting V2 of arXiv 2605.24202's code, carried over to roles it does not name.

    A solver earns 0.5 for a right answer, 0.5 for a solved episode, and loses 1 for a wrong answer
    that could be read. A role that is given solutions earns +1 if it is right and -1 if not, but 0
    when none it was given was correct. A planner earns the outcome.
    """
    if turn.own_correct is None:
        return float(turn.outcome)
    if turn.kind == "verdict":
        return 1.0 if turn.own_correct else -1.0
    if turn.offered_correct is not None:
        return 0.0 if not turn.offered_correct else (1.0 if turn.own_correct else -1.0)
    is_confidently_wrong = not turn.own_correct and turn.parse_ok
    return 0.5 * turn.own_correct + 0.5 * turn.outcome - 1.0 * is_confidently_wrong


def group_key(turn: Turn, group_by: str) -> GroupKey:
    """(problem, role, number, round) of the group of `turn`; 0 for what the group ignores."""
    number = 0 if group_by == "role" else turn.agent.number
    return (turn.problem, turn.agent.role, number, turn.round if group_by == "role_turn" else 0)


def with_advantages(turns: Sequence[Turn], config: TrainConfig) -> list[Turn]:
    """The turns, in their order, with their groups and advantages."""
    members: dict[GroupKey, list[int]] = defaultdict(list)
    for index, turn in enumerate(turns):
        members[group_key(turn, config.group_by)].append(index)
    group_n = np.zeros(len(turns), dtype=np.int64)
    for number, indices in enumerate(members.values()):
        group_n[indices] = number
    reward_n = np.array([turn.reward for turn in turns], dtype=np.float64)
    advantage_n = advantages(turns, reward_n, group_n, config)
    credited = list(turns)
    for indices in members.values():
        group = group_of([turns[i].is_solved for i in indices], reward_n[indices])
        for i in indices:
            credited[i] = replace(turns[i], advantage=float(advantage_n[i]), group=group)
    return credited


def advantages(
    turns: Sequence[Turn],
    reward_n: NDArray[np.float64],
    group_n: NDArray[np.int64],
    config: TrainConfig,
) -> NDArray[np.float64]:
    """[n] the advantages, batch by batch: a batch is what a policy trains on in a step.

    Where the agents of a role have policies of their own and are one group, what these policies
    train on together: a group stays whole. What frozen roles said is not trained: 0.
    """
    batches = batch_by_agent(config)
    estimate = find_estimator(
        config.advantage, singleton=config.singleton, normalize_std=config.normalize_std
    )
    advantage_n = np.zeros(len(turns))
    of_n = np.array([batches.get(turn.agent, "") for turn in turns], dtype=object)
    for batch in dict.fromkeys(batches.values()):
        mine = np.flatnonzero(of_n == batch)
        if len(mine):
            advantage_n[mine] = estimate(reward_n[mine], group_n[mine])
    return advantage_n


def batch_by_agent(config: TrainConfig) -> dict[Agent, str]:
    """Name of the batch of every agent that is trained."""
    policies = config.policy_by_agent()
    if config.group_by != "role":
        return policies
    together: list[set[str]] = []  # policies that some group needs in one batch
    for role in {agent.role for agent in policies}:
        mine = {policy for agent, policy in policies.items() if agent.role == role}
        touching = [batch for batch in together if batch & mine]
        together = [batch for batch in together if not batch & mine]
        together.append(mine.union(*touching))
    names = {policy: " ".join(sorted(batch)) for batch in together for policy in batch}
    return {agent: names[policy] for agent, policy in policies.items()}


def group_of(outcomes: Sequence[bool], reward_K: NDArray[np.float64]) -> Group:
    """What a group of these outcomes and rewards is like."""
    is_flat = len(reward_K) > 1 and bool(np.ptp(reward_K) == 0)
    return Group(len(reward_K), is_flat, is_flat and all(outcomes), is_flat and not any(outcomes))
