"""Turn a task name into training and held-out problems with stable ids and a content hash."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trainers.grading.code_tests import Test, as_json
from trainers.tasks.programs import list_programs, tests

Kind = Literal["math", "code", "expression"]
"""How an answer is read and judged: a number, a program, or an expression in x."""

Rule = Literal["number", "math", "paper-math", "reasoning", "code"]
"""What makes an answer right: an equal number, an equal expression, the paper's strict equality,
the full mark of the generator's own scorer, or passing every test."""

MathRule = Literal["auto", "number", "math", "paper-math"]

PAPER_SEED = 42


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

    @property
    def content_hash(self) -> str:
        """SHA-256 over all that a verdict depends on, problem by problem; kept in the run."""
        digest = hashlib.sha256()
        for problem in (*self.train, *self.heldout):
            digest.update(json.dumps(problem.content()).encode())
        return digest.hexdigest()


def load_task(
    name: str,
    *,
    heldout: int,
    seed: int,
    data: Path | None = None,
    difficulty: int = 2,
    options: Mapping[str, str] | None = None,
    math_rule: MathRule = "auto",
    split: str = "seed",
) -> Task:
    """Load a task by name; the sources are in `trainers.sources`.

    `data` is the file (or folder, or cached hub id) of a task that needs one; `difficulty` is the
    number of digits of `arithmetic`; `options` configure a generator. `math_rule`
    overrides how mathematics is judged. `split`: 'seed' sets `heldout` problems aside by a shuffle
    with `seed`; 'paper' is arXiv 2605.24202's, of which the first `heldout` are evaluated; else the
    problems.jsonl.gz of a run, whose split is taken over. A question that is held out never trains.

    Raises ValueError for an unknown task, a missing or malformed file (with the line number), or a
    task too small for the held-out set.
    """
    from trainers.tasks.sources.catalogue import (
        find_source,  # sources make the records defined here
    )

    wanted = Wanted(name, heldout, seed, data, difficulty, parse_options(options or {}))
    if wanted.options and not name.startswith("rg:"):
        raise ValueError(f"--task-options are for rg:… tasks; expected none for task '{name}'")
    pool = find_source(name)(wanted)
    check_ids(name, (*pool.problems, *(pool.heldout or ())))
    check_questions(name, (*pool.problems, *(pool.heldout or ())))
    train, held = split_pool(name, pool, heldout, seed, split)
    seen = {problem.question for problem in held}
    train = [problem for problem in train if problem.question not in seen]
    if len(held) < heldout or not train:
        raise ValueError(
            f"task '{name}' has {len(train) + len(held)} different problems; expected more than "
            f"the {heldout} held out by --eval-problems: lower it, or give more problems"
        )
    task = Task(
        name,
        tuple(judged_by(problem, math_rule) for problem in train),
        tuple(judged_by(problem, math_rule) for problem in held),
        tuple((file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in pool.files),
        pool.files,
    )
    check_rules(task)
    return task


def split_pool(
    name: str, pool: Pool, heldout: int, seed: int, split: str
) -> tuple[list[Problem], list[Problem]]:
    """Training and held-out problems."""
    problems = pool.problems
    if pool.heldout is not None:
        if split != "seed":
            raise ValueError(f"task '{name}' is generated, by --seed; expected --split seed")
        return [*problems], [*pool.heldout]
    if split == "paper":
        if pool.paper_heldout is None:
            raise ValueError(f"--split paper: the paper does not use task '{name}'")
        # Dataset.train_test_split and .shuffle of the package datasets: numpy's permutation.
        order = np.random.default_rng(PAPER_SEED).permutation(len(problems))
        held = order[: pool.paper_heldout][:heldout]
        return [problems[i] for i in order[pool.paper_heldout :]], [problems[i] for i in held]
    if split != "seed":
        return split_as(name, problems, heldout, Path(split))
    if heldout >= len(problems):
        raise ValueError(
            f"task '{name}' has {len(problems)} problems; expected more than the {heldout} held "
            "out by --eval-problems: lower it, or give more problems"
        )
    shuffled = random.Random(seed).sample(problems, len(problems))
    return shuffled[heldout:], shuffled[:heldout]


def split_as(
    name: str, problems: Sequence[Problem], heldout: int, path: Path
) -> tuple[list[Problem], list[Problem]]:
    """The split that a run's problems.jsonl.gz lists, in its order."""
    by_id = {problem.id: problem for problem in problems}
    parts: dict[str, list[Problem]] = {"train": [], "heldout": []}
    for identity, part in read_problem_list(path):
        if identity not in by_id:
            raise ValueError(
                f"--split {path}: it lists problem '{identity}', which task '{name}' does not "
                "have; expected the list of a run on the same task and data"
            )
        parts[part].append(by_id[identity])
    return parts["train"], parts["heldout"][:heldout]


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


def parse_options(options: Mapping[str, str]) -> dict[str, Any]:
    """{'min_digits': 2} from {'min_digits': '2'}; what is not JSON is a text."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


def check_ids(name: str, problems: Sequence[Problem]) -> None:
    """Raise ValueError if two problems have the same id."""
    for identity, count in Counter(problem_ids(problems)).items():
        if count > 1:
            raise ValueError(
                f"task '{name}': {count} problems have the id '{identity}'; make them unique"
            )


def check_questions(name: str, problems: Sequence[Problem]) -> None:
    r"""Raise ValueError for what no tokenizer reads: JSON may hold half a character, '\ud83d'."""
    for problem in problems:
        try:
            problem.question.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"task '{name}': the question of problem '{problem.id}' is no Unicode text "
                f"({error.reason} at character {error.start}); correct or remove it"
            ) from error


def judged_by(problem: Problem, rule: MathRule) -> Problem:
    """The problem under another rule, if it is mathematics with an answer to compare."""
    if rule == "auto" or problem.kind != "math" or problem.rule == "reasoning":
        return problem
    return replace(problem, rule=rule)


def check_rules(task: Task) -> None:
    """Raise ValueError if a rule needs a package that is not installed."""
    needed = {"math": "math_verify", "paper-math": "sympy", "reasoning": "reasoning_gym"}
    for rule in {problem.rule for problem in (*task.train, *task.heldout)} & set(needed):
        if importlib.util.find_spec(needed[rule]) is None:
            extra = "reasoning" if rule == "reasoning" else "tasks"
            raise ValueError(
                f"task '{task.name}': rule '{rule}' needs {needed[rule]}, which is not installed; "
                f"pip install 'gradlab[{extra}]', or choose another --math-rule"
            )


def arithmetic(digits: int) -> list[Problem]:
    """Sums of two numbers with `digits` digits each; every pair up to two digits, else 20,000."""
    if not 1 <= digits <= 6:
        raise ValueError(f"task 'arithmetic': difficulty is {digits}; expected 1 to 6 digits")
    low, high = 10 ** (digits - 1), 10**digits - 1
    if digits <= 2:
        pairs = [(a, b) for a in range(low, high + 1) for b in range(low, high + 1)]
    else:
        draw = random.Random(digits)
        pairs = list(
            dict.fromkeys((draw.randint(low, high), draw.randint(low, high)) for _ in range(20_000))
        )
    return [Problem(f"sum-{a}-{b}", "math", f"{a}+{b}", str(a + b)) for a, b in pairs]


def programs() -> list[Problem]:
    """Expressions in x to find from three examples, see `trainers.tasks.programs`."""
    return [Problem(p.id, "expression", p.question, p.expression) for p in list_programs()]


def problem_ids(problems: Sequence[Problem]) -> tuple[str, ...]:
    return tuple(problem.id for problem in problems)
