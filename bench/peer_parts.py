"""The workflow and the reward with which our trainer does what its peers do: see trainer_vs_peers.

Four agents are asked the same; the reward is one that no model can learn, so that lengths stay.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from gradlab.records import Agent
from gradlab.workflows import Ask, workflow

NUM_AGENTS = 4


@workflow(roles={"solver": NUM_AGENTS})
def solvers(problem: Any) -> Generator[Any, Any, Any]:
    prompt = f"s{problem.question}"
    answers = yield [Ask(Agent("solver", number), prompt) for number in range(NUM_AGENTS)]
    return answers[0].value


def parity(ids: Sequence[int]) -> float:
    """1 or 0, by the response's tokens."""
    return float(sum(ids) % 2)


def by_parity(episode: Any, turn: Any) -> float:
    return parity(turn.response_ids)
