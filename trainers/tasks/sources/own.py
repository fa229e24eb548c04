"""Read problems, and maybe their judge, from a function of one's own: `--task my_task.py:load`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

from gradlab.own_parts import Part, PartError, failed_at, file_of, in_words, load_part, where_of
from trainers.tasks.problem import Kind, Pool, Problem, Wanted

EXPECTED = "a function that returns problems, or (problems, judge)"
FIELDS = ("id", "question", "answer", "kind")


def load_own(wanted: Wanted) -> Pool:
    """What the function gives; --task-options are its keyword arguments.

    Raises PartError, with file and line, for what are no problems.
    """
    part = load_part("--task", wanted.task, inspect.isfunction, EXPECTED)
    where = where_of(part.value)
    known = inspect.signature(part.value).parameters
    unknown = [name for name in wanted.options if name not in known]
    if unknown:
        raise PartError(
            f"{where}: --task-options {unknown[0]}: {part.name} takes {', '.join(known) or 'none'}"
        )
    try:
        given = part.value(**wanted.options)
        problems, judge = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
        rows = list(problems)
    except Exception as error:  # whatever a function of one's own raises
        raise PartError(
            f"{failed_at(error, file_of(part.value))}: --task {part.name} raised "
            f"{in_words(error)}; expected {EXPECTED}"
        ) from error
    if judge is not None and not callable(judge):
        raise PartError(
            f"{where}: --task {part.name} gave {judge!r} as judge; expected a function of "
            "(problem, answer) that returns true, false or a number from 0 to 1"
        )
    if not rows:
        raise PartError(f"{where}: --task {part.name} gave no problems; expected {EXPECTED}")
    found = tuple(_problem(part, number, row) for number, row in enumerate(rows))
    if judge is not None:
        found = tuple(replace(problem, rule="own") for problem in found)
    return Pool(found, files=(part.file,), judge=judge)


def _problem(part: Part, number: int, row: Any) -> Problem:
    """A problem, or a mapping with its question, its answer, and maybe its id and kind."""
    if isinstance(row, Problem):
        return row
    where = f"{where_of(part.value)}: --task {part.name}: problem {number}"
    expected = 'expected {"question": "…", "answer": "…"}, and maybe "id" and "kind"'
    if not isinstance(row, Mapping) or not {"question", "answer"} <= set(row) <= set(FIELDS):
        raise PartError(f"{where} is {str(row)[:80]!r}; {expected}")
    fields = {"id": f"own-{number}", "kind": "math", **row}
    if fields["kind"] not in get_args(Kind):
        raise PartError(
            f"{where}: kind is {fields['kind']!r}; expected one of {', '.join(get_args(Kind))}"
        )
    for name in ("id", "question", "answer"):
        value = fields[name]
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise PartError(f"{where}: {name} is {value!r}; expected a text or a number")
    return Problem(
        str(fields["id"]), fields["kind"], str(fields["question"]), str(fields["answer"])
    )
