"""Reward and group-relative advantage of every turn.

`own_correct`, `outcome` and `reward` stay three separate numbers. A group holds the rewards that
are compared with each other. Its key is a declared option:

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

from trainers.config import TrainConfig
from trainers.episodes import Episode, Group, Turn, trained_turns

EPSILON = 1e-6
"""Added to the standard deviation, as in verl."""

GroupKey = tuple[str, str, int, int]


def credit(episodes: Sequence[Episode], config: TrainConfig) -> list[Episode]:
    """The episodes with reward, group and advantage in every turn that is to be trained.

    Turns of episodes that were given up stay without.
    """
    credited = iter(with_advantages(rewarded(trained_turns(episodes), config), config))
    return [
        replace(episode, turns=tuple(next(credited) for _ in episode.turns))
        if episode.failure is None
        else episode
        for episode in episodes
    ]


def rewarded(turns: Sequence[Turn], config: TrainConfig) -> list[Turn]:
    """The turns with their rewards."""
    return [replace(turn, reward=turn_reward(turn, config)) for turn in turns]


def turn_reward(turn: Turn, config: TrainConfig) -> float:
    """Reward of one turn.

    outcome  1 if the episode was solved, for every turn (the paper's broadcast)
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


def group_advantages(
    reward_K: NDArray[np.float64], *, normalize_std: bool, singleton: str
) -> NDArray[np.float64]:
    """[K] advantages of one group: (r - mean) / (std + 1e-6), std with ddof=1 (DeepSeekMath).

    Without `normalize_std` the mean is subtracted only (Dr. GRPO). A group of one gets 0, or its
    raw reward with `singleton='reward'`.
    """
    if len(reward_K) == 1:
        return reward_K.copy() if singleton == "reward" else np.zeros(1)
    centred: NDArray[np.float64] = reward_K - reward_K.mean()
    return centred / (reward_K.std(ddof=1) + EPSILON) if normalize_std else centred


def with_advantages(turns: Sequence[Turn], config: TrainConfig) -> list[Turn]:
    """The turns, in their order, with their groups and advantages."""
    members: dict[GroupKey, list[int]] = defaultdict(list)
    for index, turn in enumerate(turns):
        members[group_key(turn, config.group_by)].append(index)
    credited = list(turns)
    for indices in members.values():
        reward_K = np.array([turns[i].reward for i in indices])
        advantage_K = group_advantages(
            reward_K, normalize_std=config.normalize_std, singleton=config.singleton
        )
        group = group_of([turns[i].outcome for i in indices], reward_K)
        for index, advantage in zip(indices, advantage_K, strict=True):
            credited[index] = replace(turns[index], advantage=float(advantage), group=group)
    return credited


def group_of(outcomes: Sequence[bool], reward_K: NDArray[np.float64]) -> Group:
    """What a group of these outcomes and rewards is like."""
    is_flat = len(reward_K) > 1 and bool(np.ptp(reward_K) == 0)
    return Group(len(reward_K), is_flat, is_flat and all(outcomes), is_flat and not any(outcomes))
