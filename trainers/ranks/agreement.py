"""Refuse ranks that would train different things: other options, other code, other data or weights.

Their gradients would be added up all the same, and no record would say so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import gradlab
from trainers.config import TrainConfig
from trainers.episodes import Turn
from trainers.models.language import LanguageModel
from trainers.ranks.peers import Peers, fingerprint
from trainers.rundir.directory import versions
from trainers.rundir.own_parts import own_parts
from trainers.tasks.problem import Task

PACKAGES = ("gradlab", "trainers")


def check_same_code(peers: Peers) -> None:
    """Raise ValueError for ranks that run another version of gradlab, or of what it stands on."""
    if peers.size > 1:
        _compare(peers, code(), "runs other code than rank 0", "Install the same on every machine")


def check_same_config(peers: Peers, config: TrainConfig) -> None:
    """Raise ValueError for ranks whose options, or files of one's own, differ."""
    if peers.size == 1:
        return
    options = {f"--{name.replace('_', '-')}": value for name, value in config.to_json().items()}
    parts = {f"file of --{option}": part["sha256"] for option, part in own_parts(config).items()}
    _compare(peers, options | parts, "was started otherwise than rank 0", "Give all the same")


def check_same_start(peers: Peers, task: Task, languages: Mapping[str, LanguageModel]) -> None:
    """Raise ValueError for ranks that have other problems or weights."""
    if peers.size == 1:
        return
    mine: dict[str, Any] = {"problems (SHA-256)": task.content_hash}
    for name, language in languages.items():
        mine[f"weights of {name} and its adapters"] = fingerprint([*language.model.parameters()])
    _compare(peers, mine, "begins otherwise than rank 0", "Put the same files on every machine")


def check_same_credit(peers: Peers, turns: Sequence[Turn], config: TrainConfig) -> None:
    """Raise ValueError for ranks that compare the same rewards to other advantages."""
    if peers.size == 1:
        return
    by_rank = peers.gathered([turn.advantage for turn in turns])
    for rank, advantages in enumerate(by_rank):
        if not np.allclose(advantages, by_rank[0], rtol=1e-9, atol=1e-12):
            raise ValueError(
                f"--advantage {config.advantage} gave rank {rank} other advantages than rank 0 for "
                "the same rewards; expected a function of its arguments alone: what it draws or "
                "remembers differs between processes"
            )


def code() -> dict[str, str]:
    """File of the packages, or library -> its SHA-256, or version."""
    root = Path(gradlab.__file__).parent.parent
    found = {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        for package in PACKAGES
        for path in sorted((root / package).rglob("*.py"))
    }
    libraries = {
        name: version for name, version in versions().items() if name not in ("machine", "commit")
    }
    return found | libraries


def _compare(peers: Peers, mine: Mapping[str, Any], what: str, advice: str) -> None:
    first, *others = peers.gathered(dict(mine))
    for rank, theirs in enumerate(others, 1):
        differing = [key for key in {**first, **theirs} if first.get(key) != theirs.get(key)]
        if differing:
            key = differing[0]
            more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
            raise ValueError(
                f"rank {rank} {what}: {key} is {theirs.get(key, 'absent')} there and "
                f"{first.get(key, 'absent')} on rank 0{more}. {advice}"
            )
