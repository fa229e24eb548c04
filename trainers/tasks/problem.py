"""What a problem, a pool and a task are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trainers.grading.code_tests import Test, as_json
from trainers.tasks.programs import tests

Kind = Literal["math", "code", "expression"]
"""How an answer is read and judged: a number, a program, or an expression in x."""

Rule = Literal["number", "math", "paper-math", "reasoning", "code", "own"]
"""What makes an answer right: an equal number, an equal expression, the paper's strict equality,
the full mark of the generator's own scorer, passing every test, or what the task's
own judge says."""

OwnJudge = Callable[["Problem", str], float]
"""Of a task of one's own: true, false, or a grade from 0 to 1, of any text."""

MathRule = Literal["auto", "number", "math", "paper-math"]


@dataclass(frozen=True)
class Problem:
    """One item of a task."""

    id: str
    kind: Kind
    question: str
    answer: str
    """The reference answer, e.g. '91' or '1,200'; for code a solution, or nothing."""
    rule: Rule = "number"
    tests: tuple[Test, ...] = ()
    """What a program must pass, under rule 'code'."""
    entry: str = ""
    """What a generator's scorer needs besides the answer, under rule 'reasoning'; JSON."""

    def content(self) -> list[Any]:
        """Everything a verdict depends on, as JSON values."""
        row: list[Any] = [self.id, self.question, self.answer]
        if self.kind == "expression":
            row += [f"{x}>{y}" for x, y in tests(self.answer)]
        if (self.rule, self.tests, self.entry) != ("number", (), ""):
            row.append([self.rule, [as_json(test) for test in self.tests], self.entry])
        return row

    @property
    def content_hash(self) -> str:
        """SHA-256 of the content."""
        return hashlib.sha256(json.dumps(self.content()).encode()).hexdigest()


@dataclass(frozen=True)
class Wanted:
    """What a source is asked for."""

    task: str
    heldout: int
    seed: int
    data: Path | None = None
    difficulty: int = 2
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pool:
    """What a source has."""

    problems: tuple[Problem, ...]
    """To be split, unless `heldout` is given: then they train."""
    heldout: tuple[Problem, ...] | None = None
    files: tuple[Path, ...] = ()
    """Where they were read."""
    judge: OwnJudge | None = None
    """Of problems of rule 'own'."""
    paper_heldout: int | None = None
    """Problems that arXiv 2605.24202 holds out of this task; None: it does not use the task."""


@dataclass(frozen=True)
class Task:
    """The problems of a run; training and held-out sets are disjoint."""

    name: str
    train: tuple[Problem, ...]
    heldout: tuple[Problem, ...]
    files: tuple[tuple[str, str], ...] = ()
    """(name, SHA-256) of every file they were read from."""
    paths: tuple[Path, ...] = ()
    """Where these files are."""
    judge: OwnJudge | None = None
    """Of problems of rule 'own'."""

    @property
    def content_hash(self) -> str:
        """SHA-256 over all that a verdict depends on, problem by problem; kept in the run."""
        digest = hashlib.sha256()
        for problem in (*self.train, *self.heldout):
            digest.update(json.dumps(problem.content()).encode())
        return digest.hexdigest()


def problem_ids(problems: Sequence[Problem]) -> tuple[str, ...]:
    return tuple(problem.id for problem in problems)
