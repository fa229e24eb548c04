"""Give every turn its reward and its group-relative advantage.

`own_correct`, `outcome` and `reward` stay three separate numbers; `is_solved` is a fourth
truth, that accuracy is made of. A group holds the rewards that are compared with each other. Its
key is a declared option:

    role         (problem, role)            the paper's code voting: one group of N * K
    role_number  (problem, role, number)    the paper's maths voting: N groups of K
    role_turn    (problem, role, number, round)  AT-GRPO: one agent's turn of one round
"""

from __future__ import annotations

import math
import numbers
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradlab.own_parts import Part, PartError, failed_at, file_of, in_words, is_own, where_of
from gradlab.records import Agent
from trainers.advantages import find_estimator
from trainers.config import TrainConfig
from trainers.episodes import Episode, Group, Turn, trained_turns

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
        reward = config.own_reward()
        turns = [
            turn for episode in episodes if not episode.failure for turn in paid(episode, reward)
        ]
    else:
        turns = [
            replace(turn, reward=turn_reward(turn, config)) for turn in trained_turns(episodes)
        ]
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


def paid(episode: Episode, reward: Part) -> list[Turn]:
    """The episode's turns with their rewards; a named one is the sum of its components.

    Raises PartError, with file and line, for what is not a finite number.
    """
    turns = []
    for turn in episode.turns:
        try:
            given = reward.value(episode, turn)
        except Exception as error:  # whatever a function of one's own raises
            raise PartError(
                f"{failed_at(error, file_of(reward.value))}: --reward {reward.name} raised "
                f"{in_words(error)} for {_which(episode, turn)}; expected a number"
            ) from error
        components = _checked(given, reward, _which(episode, turn))
        total = sum(value for _, value in components)
        turns.append(
            replace(turn, reward=total, components=components if isinstance(given, Mapping) else ())
        )
    return turns


def _checked(given: Any, reward: Part, who: str) -> tuple[tuple[str, float], ...]:
    named = given if isinstance(given, Mapping) else {"reward": given}
    where = f"{where_of(reward.value)}: --reward {reward.name} gave"
    if not named or not all(isinstance(name, str) and name for name in named):
        raise PartError(f"{where} {given!r} for {who}; expected a number, or {{name: number}}")
    for name, value in named.items():
        part = f"{name} = {value!r}" if isinstance(given, Mapping) else repr(value)
        if not isinstance(value, numbers.Real):
            raise PartError(
                f"{where} {part}, a {type(value).__name__}, for {who}; expected a number, or "
                "{name: number}"
            )
        try:
            is_finite = math.isfinite(float(value))
        except OverflowError:
            is_finite = False
        if not is_finite:
            raise PartError(f"{where} {part} for {who}; expected a finite number")
    components = tuple((name, float(value)) for name, value in named.items())
    if not math.isfinite(sum(value for _, value in components)):
        raise PartError(f"{where} {given!r} for {who}; expected a finite sum")
    return components


def check_components(
    episodes: Iterable[Episode], known: Sequence[str], config: TrainConfig
) -> None:
    """Raise PartError for a component that the canned episodes did not have: the store was made
    without it."""
    for episode in episodes:
        for turn in episode.turns:
            new = [component for component, _ in turn.components if component not in known]
            if new:
                where = where_of(config.own_reward().value)
                raise PartError(
                    f"{where}: --reward {config.reward} gave component '{new[0]}' for "
                    f"{_which(episode, turn)}; expected {', '.join(known) or 'none'}"
                    ", as on canned replies: give every name for every turn, 0 where it is nothing"
                )


def _which(episode: Episode, turn: Turn) -> str:
    return f"{turn.agent}, round {turn.round + 1}, on problem '{episode.problem.id}'"


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
        is_flat = len(indices) > 1 and bool(np.ptp(reward_n[indices]) == 0)
        is_solved = [turns[i].is_solved for i in indices]
        group = Group(
            len(indices), is_flat, is_flat and all(is_solved), is_flat and not any(is_solved)
        )
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
