"""Write and read which problems a run trained on and held out: RUN/problems.jsonl.gz."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Literal

from trainers.tasks.problem import Task


def write_problem_list(path: Path, task: Task) -> None:
    """Write id, split and content hash of every problem, one JSON object per line."""
    lines = [
        json.dumps({"id": problem.id, "split": part, "sha256": problem.content_hash[:16]})
        for part, problems in (("train", task.train), ("heldout", task.heldout))
        for problem in problems
    ]
    path.write_bytes(gzip.compress("\n".join([*lines, ""]).encode(), mtime=0))


_PARTS: dict[str, Literal["train", "heldout"]] = {"train": "train", "heldout": "heldout"}


def read_problem_list(path: Path) -> list[tuple[str, Literal["train", "heldout"]]]:
    """(id, split) of every problem that `write_problem_list` wrote."""
    try:
        lines = gzip.decompress(path.read_bytes()).decode().splitlines()
        rows = [json.loads(line) for line in lines]
        return [(row["id"], _PARTS[row["split"]]) for row in rows]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"--split {path}: cannot be read ({error}); expected 'seed', 'paper', or the "
            "problems.jsonl.gz of a run"
        ) from error
