"""Read a user's own problems (`--task file --data FILE`); docs/problems.md has the schema."""

from __future__ import annotations

from dataclasses import replace

from trainers.grading.code_tests import FunctionTest, Test
from trainers.tasks.problem import Problem
from trainers.tasks.sources.code import read_tests
from trainers.tasks.sources.files import Place, Row
from trainers.tasks.sources.maths import unboxed

FILE = Place("file", ("problems*.jsonl*",), "your problems, see docs/problems.md")
EXPECTED = (
    'expected {"question": "…", "answer": "…"} or {"question": "…", "tests": [{"input", "output"}, '
    '…] or {"fn_name", "inputs", "outputs"}}, and maybe "id"'
)


def read_problem(row: Row) -> Problem:
    question = row.text(["question"], EXPECTED)
    identity = row.fields.get("id", f"file-{row.number}")
    if isinstance(identity, bool) or not isinstance(identity, str | int) or identity == "":
        raise ValueError(f"{row.where}: id is {identity!r}; expected a text or an integer")
    answer = row.fields.get("answer", "")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise ValueError(f"{row.where}: answer is {answer!r}; {EXPECTED}")
    if "tests" in row.fields:
        return Problem(str(identity), "code", question, str(answer), "code", _tests(row))
    reference = unboxed(str(answer))
    if reference == "":
        raise ValueError(f"{row.where}: got fields {sorted(row.fields)}; {EXPECTED}")
    if "\\boxed" in reference:
        raise ValueError(
            f"{row.where}: the answer has text around its box: {reference[:80]!r}; expected the "
            "final answer alone, since nothing else is compared with it"
        )
    return Problem(str(identity), "math", question, reference, "math")


def _tests(row: Row) -> tuple[Test, ...]:
    """Values are meant as they stand: unlike in APPS, `[3]` is a list."""
    tests = read_tests(row.fields["tests"], row, EXPECTED)
    return tuple(
        replace(test, is_wrapped=False) if isinstance(test, FunctionTest) else test
        for test in tests
    )
