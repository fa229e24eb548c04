"""Read from a dataset's columns whose row it is and which problem it is about."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from datasets import Dataset

from gradlab.records import Agent


class Columns:
    """Where a row of the dataset says whose it is."""

    def __init__(self, role: str, number: str | None, problem: str | None) -> None:
        self.role, self.number, self.problem = role, number, problem

    @property
    def given(self) -> dict[str, str]:
        """The columns that there have to be, by the argument of `watch` that names them."""
        named = {
            "role_column": self.role,
            "number_column": self.number,
            "problem_column": self.problem,
        }
        return {what: column for what, column in named.items() if column is not None}

    def agent(self, row: Mapping[str, Any]) -> Agent:
        """The agent of a row; a ValueError that shows the row's columns if it names none."""
        for column in (self.role, self.number):
            if column is not None and row.get(column) is None:
                raise ValueError(
                    f"watch: a row has no value in the column '{column}'; "
                    f"it has {sorted(key for key in row if row[key] is not None)}"
                )
        return Agent(str(row[self.role]), 0 if self.number is None else int(row[self.number]))

    def agents_of(self, dataset: Any) -> tuple[Agent, ...]:
        """All agents of a dataset: roles in the order of appearance, numbers ascending."""
        if not isinstance(dataset, Dataset) or self.role not in dataset.column_names:
            raise ValueError(
                f"watch: a dataset of type {type(dataset).__name__} does not say before training "
                "which agents there are; pass agents=[Agent('generator'), …]"
            )
        named = [name for name in (self.role, self.number) if name is not None]
        found = dict.fromkeys(self.agent(row) for row in dataset.select_columns(named))
        roles = [*dict.fromkeys(agent.role for agent in found)]
        return tuple(sorted(found, key=lambda agent: (roles.index(agent.role), agent.number)))

    def prompt(self, row: Mapping[str, Any]) -> int:
        """An id that rows with the same problem (or the same prompt) share, on every rank."""
        what = row[self.problem] if self.problem is not None else row.get("prompt")
        text = json.dumps(what, sort_keys=True, default=str).encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big")

    def key(self, row: Mapping[str, Any]) -> str:
        """Identifies a row of the evaluation dataset: its prompt, problem and agent."""
        what = [row.get("prompt"), *(row.get(column) for column in self.given.values())]
        return hashlib.blake2b(json.dumps(what, default=str).encode(), digest_size=8).hexdigest()
