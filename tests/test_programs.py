"""Task `programs`: what is shown determines the function; answers are judged by running them."""

from __future__ import annotations

import random

import pytest

from trainers.judge import Judge
from trainers.tasks.load import load_task
from trainers.tasks.problem import Problem
from trainers.tasks.programs import (
    INPUTS,
    functions,
    list_programs,
    near_miss,
    outputs,
    same_function,
    workings,
)
from trainers.tasks.sources.embedded import programs

PROBLEM = Problem("line-3-2-at-124", "expression", "1>5 2>8 4>14", "3*x+2")


def test_problems_are_these() -> None:
    problems = {problem.id: problem for problem in programs()}
    assert len(problems) == len(programs()) == 2221
    assert problems["line-3-2-at-124"] == PROBLEM
    assert problems["fall-2-10-at-013"].question == "0>10 1>8 3>4"
    assert problems["square--9-at-125"].answer == "x*x-9"
    assert problems["floor-3-at-125"].question == "1>3 2>3 5>5"


def test_what_is_shown_tells_a_function_from_all_others() -> None:
    """max(x,1) and max(x,2) differ at 0 and 1 alone: they are not asked about at 2, 3 and 5."""
    by_question = {program.question: program for program in list_programs()}
    assert len(by_question) == len(list_programs())
    for program in list_programs()[::7]:
        inputs = [x for x, _ in program.shown]
        shown = [eval(program.expression, {"x": x, "max": max, "min": min}) for x in inputs]
        assert list(program.shown) == list(zip(inputs, shown, strict=True))
        alike = [e for e in functions().values() if list(outputs(e, inputs)) == shown]
        assert alike == [program.expression]


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [
        ("3*x+2", True),
        ("2+x*3", True),
        ("x+x+x+2", True),
        ("3*x+3", False),
        ("max(3*x+2,2)", True),
        ("min(3*x+2,14)", False),  # right wherever it is shown: 5, 8, 14
        ("3*x+2+(x-1)*(x-2)*(x-4)", False),  # likewise
        ("[5,8,14]", False),
        ("__import__('os')", False),
        ("3*x+2//(x-7)", False),  # no value at 7
        ("", False),
    ],
)
def test_answers_are_judged_by_running_them_at_hidden_inputs(answer: str, is_right: bool) -> None:
    assert Judge()([(PROBLEM, answer)]) == [is_right]


def test_no_answer_solves_no_program() -> None:
    assert Judge()([(PROBLEM, None)]) == [False]


def test_every_reference_solves_its_own_problem() -> None:
    assert all(Judge()([(problem, problem.answer) for problem in programs()]))


def test_a_near_miss_is_an_expression_that_is_wrong() -> None:
    draw = random.Random(0)
    for expression in functions().values():
        wrong = near_miss(expression, draw)
        assert not same_function(wrong, expression)
        assert outputs(wrong, INPUTS)


@pytest.mark.parametrize(("strategy", "said"), [("t", "3 6="), ("o", "2="), ("d", "")])
def test_workings_lead_to_the_answer(strategy: str, said: str) -> None:
    """1>5 2>8 4>14: 8-5=3 and 14-8=6; 3*0+2=2."""
    assert workings(PROBLEM.question, PROBLEM.answer, strategy) == said


def test_an_expression_without_values_is_no_reference() -> None:
    with pytest.raises(ValueError, match="'1//x' has no value"):
        outputs("1//x", INPUTS)


def test_the_task_is_split_and_hashed_like_any_other() -> None:
    task = load_task("programs", heldout=300, seed=0)
    assert (len(task.train), len(task.heldout)) == (1921, 300)
    assert task.content_hash == load_task("programs", heldout=300, seed=0).content_hash
    assert task.content_hash != load_task("programs", heldout=300, seed=1).content_hash


def test_other_hidden_inputs_are_another_task(monkeypatch: pytest.MonkeyPatch) -> None:
    task = load_task("programs", heldout=300, seed=0)
    before = task.content_hash
    monkeypatch.setattr("trainers.tasks.programs.INPUTS", range(14))
    assert load_task("programs", heldout=300, seed=0) == task
    assert task.content_hash != before
