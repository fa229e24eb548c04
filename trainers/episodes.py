"""Keep what every agent said in an episode, in memory and as compressed JSON lines."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradlab.records import Agent
from trainers.tasks.problem import Problem


@dataclass(frozen=True)
class Turn:
    """One response of one agent. T response tokens, the end token included unless truncated."""

    agent: Agent
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


@dataclass(frozen=True)
class Episode:
    """One run of a workflow on one problem."""

    problem: Problem
    sample: int
    turns: tuple[Turn, ...]
    answer: str | None
    outcome: bool
    """Whether the answer is correct."""
    failure: str | None = None
    """Why the episode was given up; its turns are then neither rewarded nor trained."""


@dataclass(frozen=True)
class Row:
    """One turn with its credit: what the trainer learns from."""

    turn: Turn
    problem: str
    """Problem id."""
    sample: int
    outcome: bool
    reward: float
    advantage: float = 0.0
    """In units of the group's reward standard deviation (or reward units without std)."""


def save_episodes(path: Path, episodes: Sequence[Episode], rows: Sequence[Row] = ()) -> None:
    """Write one JSON object per episode, gzip-compressed; `rows` add rewards and advantages."""
    credit = {(row.problem, row.sample, id(row.turn)): row for row in rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    try:
        with gzip.open(temporary, "wt", compresslevel=1, encoding="utf-8") as file:
            for episode in episodes:
                file.write(json.dumps(_episode_json(episode, credit), ensure_ascii=False) + "\n")
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _episode_json(episode: Episode, credit: dict[tuple[str, int, int], Row]) -> dict[str, Any]:
    turns = []
    for turn in episode.turns:
        row = credit.get((episode.problem.id, episode.sample, id(turn)))
        turns.append(
            {
                "role": turn.agent.role,
                "number": turn.agent.number,
                "round": turn.round,
                "prompt": turn.prompt,
                "response": turn.response,
                "tokens": len(turn.response_ids),
                "parse_ok": turn.parse_ok,
                "truncated": turn.truncated,
                "own_correct": turn.own_correct,
                "reward": row.reward if row else None,
                "advantage": row.advantage if row else None,
            }
        )
    return {
        "problem": episode.problem.id,
        "question": episode.problem.question,
        "reference": episode.problem.answer,
        "sample": episode.sample,
        "answer": episode.answer,
        "outcome": episode.outcome,
        "failure": episode.failure,
        "turns": turns,
    }


def read_episodes(path: Path) -> Iterator[dict[str, Any]]:
    """Read what `save_episodes` wrote."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
