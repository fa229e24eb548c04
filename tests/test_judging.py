"""Answers of every kind judged together; programs run in the sandbox."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from trainers.config import TrainConfig
from trainers.grading.code_tests import FunctionTest, StdinTest, Test
from trainers.judge import Judge, judge_of
from trainers.rundir.directory import stored_config
from trainers.tasks.problem import Problem

SUM = Problem("sum", "math", "2+2", "4")
TESTS: tuple[Test, ...] = (StdinTest("3\n", "6\n"), StdinTest("5\n", "10\n"))
TWICE = Problem("twice", "code", "Print twice the number.", "", "code", TESTS)
SQUARE = Problem(
    "square", "code", "Write square(x).", "", "code", (FunctionTest("square", "[3]", "9"),)
)


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    made = judge_of(TrainConfig(), [SUM, TWICE, SQUARE])
    yield made
    made.close()


def test_programs_and_numbers_in_one_wave(judge: Judge) -> None:
    right, constant = "print(2 * int(input()))", "print(6)"
    asked = [
        (TWICE, right), (SUM, "4.0"), (TWICE, constant), (SQUARE, "def square(x): return x * x"),
        (TWICE, None), (SQUARE, "square = abs"), (TWICE, right),
        (SUM, "5"), (TWICE, "this is no program"),
    ]  # fmt: skip
    assert judge(asked) == [True, True, False, True, False, False, True, False, False]
    assert judge.ungraded == 0


def test_a_verdict_is_remembered_within_a_step_and_not_after_it(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge.forget()
    assert judge.code is not None
    graded: list[int] = []
    grade = judge.code.grade
    monkeypatch.setattr(judge.code, "grade", lambda p: graded.append(len(p)) or grade(p))
    asked = [(TWICE, "print(1)"), (TWICE, "print(1)")]
    assert judge(asked) == judge(asked) == [False, False]
    assert graded == [1]
    judge.forget()
    judge(asked)
    assert graded == [1, 1]


def test_a_sandbox_that_fails_is_counted_and_is_no_pass(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge.forget()
    assert judge.code is not None
    (verdict,) = judge.code.grade([("print(6)", TESTS[:1])])
    broken = type(verdict)(False, "infrastructure", 0, 0.0, "the worker died twice")
    monkeypatch.setattr(judge.code, "grade", lambda programs: [broken for _ in programs])
    assert judge([(TWICE, "print(2 * int(input()))")]) == [False]
    assert judge.ungraded == 1


def test_a_rule_that_fails_counts_as_wrong_and_is_counted(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge.forget()

    def fails(problem: Problem, answer: str) -> bool:
        raise RecursionError(answer)

    monkeypatch.setattr("trainers.judge.is_right", fails)
    assert judge([(SUM, "4"), (SUM, "4"), (SUM, "((((")]) == [False, False, False]
    assert judge.ungraded == 2


def test_without_programs_there_is_no_sandbox() -> None:
    judge = judge_of(TrainConfig(), [SUM])
    assert judge.code is None
    with pytest.raises(ValueError, match="problem twice is solved by a program, and there is no"):
        judge([(TWICE, "print(1)")])


def test_packages_and_memory_of_programs_are_those_of_the_run() -> None:
    uses_numpy = "import numpy\nprint(2 * numpy.int64(input()))"
    uses_memory = "x = bytearray(700 << 20)\nprint(2 * int(input()))"
    asked = [(TWICE, uses_numpy), (TWICE, uses_memory)]
    given = TrainConfig(code_packages=("numpy",), code_memory_mb=1500)
    for config, verdicts in ((TrainConfig(), [False, False]), (given, [True, True])):
        judge = judge_of(config, [TWICE])
        assert judge(asked) == verdicts
        judge.close()


@pytest.mark.parametrize("name", ["no_such_package", "numpy.linalg", "cmath", ""])
def test_packages_that_cannot_be_given_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"--code-packages names '{name}', which is no package"):
        TrainConfig(code_packages=("numpy", name))


def test_less_memory_than_an_interpreter_takes_is_refused() -> None:
    with pytest.raises(ValueError, match="--code-memory-mb is 63; expected 64 or more"):
        TrainConfig(code_memory_mb=63)


def test_a_run_is_resumed_with_its_own_packages_and_memory(tmp_path: Path) -> None:
    config = TrainConfig(out=tmp_path, code_packages=("numpy",), code_memory_mb=1024)
    about = json.loads(json.dumps({"config": config.to_json(), "versions": {}}))
    resumed = stored_config(about, TrainConfig(out=tmp_path, resume=True))
    assert (resumed.code_packages, resumed.code_memory_mb) == (("numpy",), 1024)
    assert resumed == replace(config, resume=True)
