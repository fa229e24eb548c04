"""Tell right answers from wrong ones: many at once, and none twice.

A workflow's answers are judged wave by wave, so that a rule that takes time (running code) has all
of a wave at hand.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trainers.config import TrainConfig
from trainers.grading.numbers import same_number
from trainers.grading.pool import GradingPool
from trainers.grading.programs import CodeGrader
from trainers.sandbox.limits import MIB, Limits
from trainers.tasks.problem import Problem
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


def judge_of(config: TrainConfig, problems: Iterable[Problem]) -> Judge:
    """A judge that has what these problems need; starts a sandbox if some are solved by programs.

    Raises SandboxError where this machine cannot protect itself and `config.unsafe_code` is off.
    """
    if all(problem.rule != "code" for problem in problems):
        return Judge()
    return Judge(
        CodeGrader(
            workers=config.code_workers,
            limits=Limits(
                cpu_seconds=config.code_seconds, memory_bytes=config.code_memory_mb * MIB
            ),
            packages=config.code_packages,
            allow_unprotected=config.unsafe_code,
        )
    )


class Judge:
    """Remembers every verdict of a step: parallel agents often give the same answer."""

    def __init__(self, code: CodeGrader | None = None) -> None:
        """`code`: what runs programs; needed for problems of rule 'code'."""
        self.code = code
        self._verdicts: dict[tuple[str, str], bool] = {}
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
        new = {
            (problem.id, answer): problem
            for problem, answer in asked
            if answer is not None and (problem.id, answer) not in self._verdicts
        }
        slow = {key: p for key, p in new.items() if p.rule in ("math", "paper-math", "reasoning")}
        requests = [grading_request(problem, answer) for (_, answer), problem in slow.items()]
        for key, reply in zip(slow, self._pool(requests), strict=True):
            self._verdicts[key] = reply["is_correct"]
            self.ungraded += not reply.get("is_graded", True)
        programs = {key: problem for key, problem in new.items() if problem.rule == "code"}
        self._run(programs)
        for key in new.keys() - slow.keys() - programs.keys():
            try:
                self._verdicts[key] = is_right(new[key], key[1])
            except Exception:  # what a model wrote must not end the run of who judges it
                self._verdicts[key] = False
                self.ungraded += 1
        return [
            answer is not None and self._verdicts[problem.id, answer] for problem, answer in asked
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
            self._verdicts[key] = verdict.passed
            self.ungraded += verdict.reason == "infrastructure"

    def forget(self) -> None:
        """Drop what is remembered; called at the end of a step."""
        self._verdicts.clear()
        self.ungraded = 0
