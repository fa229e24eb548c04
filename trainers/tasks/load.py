"""Load a task by name: its source, its split, its rules checked."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gradlab.own_parts import is_own
from trainers.tasks.problem import MathRule, Pool, Problem, Task, Wanted, problem_ids
from trainers.tasks.problem_list import read_problem_list
from trainers.tasks.sources.catalogue import GENERATED, find_source

PAPER_SEED = 42


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
    """Load a task by name; the sources are in `trainers.tasks.sources`.

    `data` is the file (or folder, or cached hub id) of a task that needs one; `difficulty` is the
    number of digits of `arithmetic`; `options` configure a generator. `math_rule`
    overrides how mathematics is judged. `split`: 'seed' sets `heldout` problems aside by a shuffle
    with `seed`; 'paper' is arXiv 2605.24202's, of which the first `heldout` are evaluated; else the
    problems.jsonl.gz of a run, whose split is taken over. A question that is held out never trains.

    Raises ValueError for an unknown task, a missing or malformed file (with the line number), or a
    task too small for the held-out set.
    """
    wanted = Wanted(name, heldout, seed, data, difficulty, parse_options(options or {}))
    if wanted.options and not name.startswith("rg:") and not is_own(name):
        raise ValueError(
            f"--task-options are for rg:… tasks and your own; expected none for task '{name}'"
        )
    source = find_source(name)
    if data is not None and (name in GENERATED or name.startswith("rg:") or is_own(name)):
        raise ValueError(
            f"--data {data} is given, and the problems of task '{name}' are generated; expected a "
            "task that reads files, such as --task file, or no --data"
        )
    pool = source(wanted)
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
        pool.judge,
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
    if rule == "auto" or problem.kind != "math" or problem.rule in ("reasoning", "own"):
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
