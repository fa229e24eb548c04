"""Keep and read what every agent said, as compressed JSON lines."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trainers.episodes import Episode


def save_episodes(path: Path, episodes: Sequence[Episode]) -> None:
    """Write one JSON object per episode, gzip-compressed; turns without credit have null there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    try:
        with gzip.open(temporary, "wt", compresslevel=1, encoding="utf-8") as file:
            for episode in episodes:
                file.write(json.dumps(_episode_json(episode), ensure_ascii=False) + "\n")
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _episode_json(episode: Episode) -> dict[str, Any]:
    turns = []
    for turn in episode.turns:
        has_credit = not math.isnan(turn.reward)
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
                "reward": turn.reward if has_credit else None,
                "advantage": turn.advantage if has_credit else None,
                **({"components": dict(turn.components)} if turn.components else {}),
            }
        )
    return {
        "problem": episode.problem.id,
        "question": episode.problem.question,
        "reference": episode.problem.answer,
        "sample": episode.sample,
        "answer": episode.answer,
        "outcome": episode.is_solved,
        **({} if isinstance(episode.outcome, bool) else {"grade": episode.outcome}),
        "failure": episode.failure,
        "turns": turns,
    }


def read_episodes(path: Path) -> Iterator[dict[str, Any]]:
    """Read what `save_episodes` wrote."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
