"""Hand the turns of a training step to the ledger: the step record that goes into the store."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from gradlab import ledger
from gradlab.ledger import TURN, RoleTally, Turns, mean
from gradlab.records import Agent, RunLedger, StepRecord
from gradlab.signature import token_counts
from trainers.episodes import Episode, Turn, trained_turns


def turn_table(turns: Sequence[Turn], agents: Sequence[Agent]) -> Turns:
    """[n] the turns as numbers."""
    place = {agent: i for i, agent in enumerate(agents)}
    episodes: dict[tuple[str, int], int] = {}
    table = np.full(len(turns), np.nan, dtype=TURN)
    for row, turn in zip(table, turns, strict=True):
        own = math.nan if turn.own_correct is None else turn.own_correct
        row["agent"] = place[turn.agent]
        row["episode"] = episodes.setdefault((turn.problem, turn.sample), len(episodes))
        row["reward"], row["advantage"] = turn.reward, turn.advantage
        row["own"], row["outcome"] = own, turn.is_solved
        row["group_size"], row["zero_variance"] = turn.group.size, turn.group.zero_variance
        row["all_right"], row["all_wrong"] = turn.group.all_right, turn.group.all_wrong
        row["truncated"], row["parse_failed"] = turn.truncated, not turn.parse_ok
        row["prompt_tokens"], row["tokens"] = len(turn.prompt_ids), len(turn.response_ids)
        row["logprob"] = sum(turn.logprobs)
    return table


def signature_counts(turns: Sequence[Turn]) -> NDArray[np.int64]:
    """[SIGNATURE_BUCKETS] response tokens of these turns per hash bucket."""
    return token_counts(np.array([t for turn in turns for t in turn.response_ids], dtype=np.int64))


def step_record(
    step: int,
    episodes: Sequence[Episode],
    agents: Sequence[Agent],
    tallies: Mapping[str, Mapping[str, RoleTally]],
    seconds: Mapping[str, float],
    ungraded: int = 0,
) -> StepRecord:
    """The record of one step. `tallies` are by policy, then role; `seconds` has the fields of
    RunLedger that end in '_seconds'."""
    turns = trained_turns(episodes)
    table = turn_table(turns, agents)
    run = RunLedger(
        accuracy=mean([episode.is_solved for episode in episodes]),
        reward_mean=mean(table["reward"]),
        episodes=len(episodes),
        failed_episodes=sum(episode.failure is not None for episode in episodes),
        tokens=sum(turn.tokens for turn in turns),
        **seconds,
        ungraded=ungraded,
    )
    counts = {
        role: signature_counts([turn for turn in turns if turn.agent.role == role])
        for role in dict.fromkeys(agent.role for agent in agents)
    }
    return ledger.step_record(
        step, time.time(), run, agents, table, tallies, counts, components_of(turns)
    )


def components_of(turns: Sequence[Turn]) -> dict[str, dict[str, float]]:
    """Mean of each named component of the reward over the turns of each role that have it."""
    found: dict[str, dict[str, list[float]]] = {}
    for turn in turns:
        for name, value in turn.components:
            found.setdefault(turn.agent.role, {}).setdefault(name, []).append(value)
    return {
        role: {name: mean(values) for name, values in named.items()}
        for role, named in found.items()
    }
