"""Tell right answers from wrong ones: many at once, and none twice.

A workflow's answers are judged wave by wave, so that a rule that takes time (running code) has all
of a wave at hand.
"""

from __future__ import annotations

import json
import numbers
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gradlab.own_parts import PartError, failed_at, file_of, in_words, where_of
from trainers.config import TrainConfig
from trainers.grading.numbers import same_number
from trainers.grading.pool import GradingPool
from trainers.grading.programs import CodeGrader
from trainers.sandbox.limits import MIB, Limits
from trainers.tasks.problem import OwnJudge, Problem
from trainers.tasks.programs import same_function


def is_right(problem: Problem, answer: str) -> bool:
    """Whether an answer solves a problem of any kind."""
    if problem.kind == "expression":
        return same_function(answer, problem.answer)
    return same_number(answer, problem.answer)


def grading_request(problem: Problem, answer: str) -> dict[str, Any]:
    """What a grading process is asked about an answer."""
    if problem.rule == "reasoning":
        return {"rule": "reasoning", "answer": answer, **json.loads(problem.entry)}
    return {"rule": problem.rule, "answer": answer, "reference": problem.answer}


def own_grade(judge: OwnJudge, problem: Problem, answer: str) -> float:
    """What a task's own judge says of an answer: true, false, or a grade from 0 to 1.

    Raises PartError, with file and line, for anything else, and where it raises.
    """
    try:
        given = judge(problem, answer)
    except Exception as error:  # whatever a judge of one's own raises
        raise PartError(
            f"{failed_at(error, file_of(judge))}: the task's judge raised {in_words(error)} on the "
            f"answer {answer[:80]!r} to problem '{problem.id}'; expected true, false or a number "
            "from 0 to 1 for any text"
        ) from error
    is_grade = isinstance(given, numbers.Real) and 0 <= float(given) <= 1
    if not is_grade:
        raise PartError(
            f"{where_of(judge)}: the task's judge gave {given!r} for the answer {answer[:80]!r} to "
            f"problem '{problem.id}'; expected true, false or a number from 0 to 1"
        )
    return given if isinstance(given, bool) else float(given)


def judge_of(
    config: TrainConfig, problems: Iterable[Problem], own: OwnJudge | None = None
) -> Judge:
    """A judge that has what these problems need; starts a sandbox if some are solved by programs.

    `own`: the task's own judge, of problems of rule 'own'.

    Raises SandboxError where this machine cannot protect itself and `config.unsafe_code` is off.
    """
    if all(problem.rule != "code" for problem in problems):
        return Judge(own=own)
    return Judge(
        CodeGrader(
            workers=config.code_workers,
            limits=Limits(
                cpu_seconds=config.code_seconds, memory_bytes=config.code_memory_mb * MIB
            ),
            packages=config.code_packages,
            allow_unprotected=config.unsafe_code,
        ),
        own,
    )


class Judge:
    """Remembers every verdict of a step: parallel agents often give the same answer."""

    def __init__(self, code: CodeGrader | None = None, own: OwnJudge | None = None) -> None:
        """`code`: what runs programs; needed for problems of rule 'code'. `own`: of rule 'own'."""
        self.code = code
        self._own = own
        self._grades: dict[tuple[str, str], float] = {}
        self.ungraded = 0
        """Different answers of the step that could not be judged in time: they count as wrong."""
        self._pool = GradingPool()
        weakref.finalize(self, self._pool.close)
        if code is not None:
            weakref.finalize(self, code.close)

    def close(self) -> None:
        """End the processes that judge."""
        self._pool.close()
        if self.code is not None:
            self.code.close()

    def __call__(self, asked: Sequence[tuple[Problem, str | None]]) -> list[bool]:
        """Whether each answer solves its problem; None (nothing could be read) never does."""
        return [grade >= 1 for grade in self.grades(asked)]

    def grades(self, asked: Sequence[tuple[Problem, str | None]]) -> list[float]:
        """True, false, or a number from 0 to 1 where the task has a judge that gives grades."""
        new = {
            (problem.id, answer): problem
            for problem, answer in asked
            if answer is not None and (problem.id, answer) not in self._grades
        }
        slow = {key: p for key, p in new.items() if p.rule in ("math", "paper-math", "reasoning")}
        requests = [grading_request(problem, answer) for (_, answer), problem in slow.items()]
        for key, reply in zip(slow, self._pool(requests), strict=True):
            self._grades[key] = reply["is_correct"]
            self.ungraded += not reply.get("is_graded", True)
        programs = {key: problem for key, problem in new.items() if problem.rule == "code"}
        self._run(programs)
        mine = {key: problem for key, problem in new.items() if problem.rule == "own"}
        for key, problem in mine.items():
            assert self._own is not None, "problems of rule 'own' come with their judge"
            self._grades[key] = own_grade(self._own, problem, key[1])
        for key in new.keys() - slow.keys() - programs.keys() - mine.keys():
            try:
                self._grades[key] = is_right(new[key], key[1])
            except Exception:  # what a model wrote must not end the run of who judges it
                self._grades[key] = False
                self.ungraded += 1
        return [
            False if answer is None else self._grades[problem.id, answer]
            for problem, answer in asked
        ]

    def _run(self, programs: Mapping[tuple[str, str], Problem]) -> None:
        """Run programs on their tests; one that the sandbox failed counts as wrong, and is counted.

        Raises ValueError if there is nothing to run them in.
        """
        if not programs:
            return
        if self.code is None:
            raise ValueError(
                f"problem {next(iter(programs.values())).id} is solved by a program, and there is "
                "no sandbox; make the judge with judge_of(config, problems)"
            )
        asked = [(answer, problem.tests) for (_, answer), problem in programs.items()]
        for key, verdict in zip(programs, self.code.grade(asked), strict=True):
            self._grades[key] = verdict.passed
            self.ungraded += verdict.reason == "infrastructure"

    def forget(self) -> None:
        """Drop what is remembered; called at the end of a step."""
        self._grades.clear()
        self.ungraded = 0
