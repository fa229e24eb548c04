"""What an agent said, first bare and then with its credit (Turn), and an episode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gradlab.records import Agent
from trainers.tasks.problem import Problem


@dataclass(frozen=True)
class Group:
    """The turns whose rewards are compared with each other."""

    size: int
    zero_variance: bool = False
    """Several equal rewards: their advantage is 0, they stay in the denominator."""
    all_right: bool = False
    """And every turn's episode was solved."""
    all_wrong: bool = False
    """And no turn's episode was solved."""


@dataclass(frozen=True)
class Turn:
    """One response of one agent. T response tokens, the end token included unless truncated.

    Credit comes when its episode is over, weight and old log-probs when its update is planned.
    """

    agent: Agent
    problem: str
    """Problem id."""
    sample: int
    round: int
    kind: str
    """What was asked for: answer, choice, verdict or plan."""
    prompt: str
    prompt_ids: tuple[int, ...]
    response: str
    response_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """[T] log-probability of each response token when it was sampled, in nats."""
    parse_ok: bool
    truncated: bool
    own_correct: bool | None
    """Right by itself; None where the role cannot be."""
    offered_correct: bool | None
    """Whether a correct solution was among those the role was given; None if it was given none."""
    temperature: float = 1.0
    """That its response was drawn at, and that its log-probabilities are of."""
    outcome: float = False
    """Of its episode."""
    reward: float = math.nan
    """NaN: no reward yet, or its episode was given up."""
    components: tuple[tuple[str, float], ...] = ()
    """Name and value of what the reward is the sum of, where it has names."""
    advantage: float = 0.0
    """In units of the group's reward standard deviation (or reward units without std)."""
    group: Group = Group(1)
    weight: float = 0.0
    """Of each of its tokens in the loss of its update."""
    old_logprobs: NDArray[np.float32] | None = field(default=None, compare=False)
    """[T] denominator of the ratio; None: `logprobs`."""
    reference_logprobs: NDArray[np.float32] | None = field(default=None, compare=False)
    """[T] under the base model, of the turns on which sampler, trainer and base are compared."""

    @property
    def is_solved(self) -> bool:
        """Whether its episode was solved."""
        return self.outcome >= 1

    @property
    def tokens(self) -> int:
        """Prompt and response tokens."""
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True)
class Episode:
    """One run of a workflow on one problem."""

    problem: Problem
    sample: int
    turns: tuple[Turn, ...]
    answer: str | None
    outcome: float
    """Whether the answer is correct; from 0 to 1 where the task's own judge gives grades."""
    failure: str | None = None
    """Why the episode was given up; its turns are then neither rewarded nor trained."""

    @property
    def is_solved(self) -> bool:
        """Whether the answer is right: what accuracy counts, whatever was paid for it."""
        return self.outcome >= 1


def trained_turns(episodes: Sequence[Episode]) -> list[Turn]:
    """The turns of all episodes that were not given up, in episode and turn order."""
    return [turn for episode in episodes if episode.failure is None for turn in episode.turns]
