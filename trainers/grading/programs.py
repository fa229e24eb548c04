"""Decide whether programs pass their tests, without letting them see what is expected.

What a program is told are its inputs; what it sends back is compared here, outside its jail.
"""

from __future__ import annotations

import ast
import builtins
import json
import socket
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from itertools import takewhile
from types import TracebackType
from typing import Any, Literal

from trainers.grading.code_tests import AssertTest, CheckProgram, FunctionTest, StdinTest, Test
from trainers.sandbox import job, values
from trainers.sandbox.levels import Protection, find_protection
from trainers.sandbox.limits import Limits
from trainers.sandbox.pool import Pool, Reply

Reason = Literal[
    "passed",
    "wrong_answer",
    "runtime_error",
    "time_limit",
    "memory_limit",
    "output_limit",
    "infrastructure",
]

_FIRST_CALLS = 2
"""Calls in a program's first job; each next job takes four times as many: most wrong programs fail
early, and a job costs as much as a hundred calls."""


@dataclass(frozen=True)
class Verdict:
    """How a program did on its tests."""

    passed: bool
    reason: Reason
    """'infrastructure': the sandbox failed twice, nothing is known about the program."""
    failed_test: int | None
    """Index of the first test that failed; later ones were not run."""
    cpu_seconds: float
    """Over all jobs, each with about a millisecond of its own."""
    detail: str
    """What was expected and got, or the end of the error; for people."""


@dataclass
class _Program:
    """A program on its way through its tests."""

    code: str
    tests: Sequence[Test]
    next: int = 0
    """The first test that has not been passed."""
    num_calls: int = _FIRST_CALLS
    """Calls in the next job."""
    cpu_seconds: float = 0.0
    retried: int = -1
    """The last test that was tried again because the sandbox failed."""
    waiting_for: int = 0
    """Jobs that have not replied."""
    program: Reply = field(default_factory=Reply)
    tester: Reply = field(default_factory=Reply)


class CodeGrader:
    """Grade programs in parallel, each up to its first failing test.

    Example:
        with CodeGrader(workers=2) as grader:
            (verdict,) = grader.grade([("print(int(input()) * 2)", [StdinTest("21", "42")])])
            assert verdict.passed
    """

    def __init__(
        self,
        *,
        workers: int = 2,
        limits: Limits | None = None,
        packages: tuple[str, ...] = (),
        level: int | None = None,
        allow_unprotected: bool = False,
    ) -> None:
        """Find the best protection, or check `level`, and start the workers.

        `packages` (e.g. numpy) are loaded once and can be imported by programs. Raises
        SandboxError where no protection is possible and `allow_unprotected` is not given.
        """
        if workers < 1:
            raise ValueError(f"workers is {workers}; expected 1 or more")
        self.limits = limits or Limits()
        self.protection: Protection = find_protection(
            self.limits, packages, level=level, allow_unprotected=allow_unprotected
        )
        self._workers = workers
        self._pool: Pool[tuple[int, bool]] = Pool(
            workers, self.protection.level, self.limits, packages
        )

    def __enter__(self) -> CodeGrader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every process of the sandbox."""
        self._pool.close()

    def grade(self, programs: Sequence[tuple[str, Sequence[Test]]]) -> list[Verdict]:
        """Verdicts in the order of `programs`, which are (code, tests)."""
        for index, (_, tests) in enumerate(programs):
            if not tests:
                raise ValueError(f"program {index} has no tests; expected at least one")
        running = [_Program(code, tests) for code, tests in programs]
        verdicts: dict[int, Verdict] = {}
        ready = deque(range(len(running)))
        active: set[int] = set()
        try:
            while ready or active:
                while ready and len(active) < self._workers:
                    index = ready.popleft()
                    active.add(index)
                    self._start(index, running[index])
                for (index, is_tester), reply in self._pool.wait():
                    program = running[index]
                    if is_tester:
                        program.tester = reply
                    else:
                        program.program = reply
                    program.waiting_for -= 1
                    if program.waiting_for:
                        continue
                    active.remove(index)
                    verdict = self._judge(program)
                    if verdict is None:
                        ready.appendleft(index)
                    else:
                        verdicts[index] = verdict
        except BaseException:
            self._pool.abandon()
            raise
        return [verdicts[index] for index in range(len(running))]

    def _start(self, index: int, program: _Program) -> None:
        """Submit the next job of a program, or the two of a check."""
        test = program.tests[program.next]
        one = self.limits.cpu_seconds
        program.waiting_for = 1
        if isinstance(test, StdinTest):
            request: dict[str, Any] = {"mode": "script", "code": program.code, "stdin": test.input}
            self._pool.submit((index, False), request, one)
        elif isinstance(test, FunctionTest):
            calls = _next_calls(program, test.fn_name)
            request = {
                "mode": "calls",
                "code": program.code,
                "function": test.fn_name,
                "calls": [call.arguments for call in calls],
                "step_cpu_seconds": one,
            }
            self._pool.submit((index, False), request, one * len(calls))
        else:
            program.waiting_for = 2
            setup = test.setup if isinstance(test, AssertTest) else test.prelude
            request = {"mode": "serve", "setup": setup, "code": program.code}
            check = {"mode": "check", "setup": setup, **_test_program(test)}
            ours, theirs = socket.socketpair()
            with ours, theirs:
                self._pool.submit((index, False), request, one, channel=ours.fileno())
                self._pool.submit(
                    (index, True), check, one, channel=theirs.fileno(), is_tester=True
                )

    def _judge(self, program: _Program) -> Verdict | None:
        """Note what the last job showed; the verdict if that was the last one of the program."""
        test = program.tests[program.next]
        failure = program.program.failure or program.tester.failure
        if failure:
            if program.retried == program.next:
                return _verdict(program, "infrastructure", failure)
            program.retried = program.next
            program.tester = Reply()
            return None
        program.cpu_seconds += program.program.cpu_seconds
        num_passed = 1
        if isinstance(test, StdinTest):
            reason, detail = _judge_script(program.program, test)
        elif isinstance(test, FunctionTest):
            calls = _next_calls(program, test.fn_name)
            num_passed, reason, detail = _judge_calls(program.program, calls)
            program.num_calls *= 4
        else:
            reason, detail = _judge_check(program.program, program.tester)
        program.tester = Reply()
        if reason == "passed" or isinstance(test, FunctionTest):
            program.next += num_passed
        if reason != "passed":
            return _verdict(program, reason, detail)
        if program.next == len(program.tests):
            return _verdict(program, "passed", "")
        if program.cpu_seconds > self.limits.program_cpu_seconds:
            most = self.limits.program_cpu_seconds
            return _verdict(program, "time_limit", f"more than {most:g} s over all tests")
        return None


def _verdict(program: _Program, reason: Reason, detail: str) -> Verdict:
    passed = reason == "passed"
    failed = None if passed else program.next
    return Verdict(passed, reason, failed, program.cpu_seconds, detail)


def _next_calls(program: _Program, function: str) -> list[FunctionTest]:
    """The calls of the job at hand: the next ones in a row of the same function."""
    return [
        test
        for test in takewhile(
            lambda test: isinstance(test, FunctionTest) and test.fn_name == function,
            program.tests[program.next : program.next + program.num_calls],
        )
        if isinstance(test, FunctionTest)
    ]


def _judge_script(reply: Reply, test: StdinTest) -> tuple[Reason, str]:
    ended = _judge_end(reply)
    if ended:
        return ended
    if same_output(reply.stdout, test.output):
        return "passed", ""
    return "wrong_answer", _difference(reply.stdout, test.output)


def _judge_calls(reply: Reply, calls: Sequence[FunctionTest]) -> tuple[int, Reason, str]:
    """How many calls passed, and what happened at the next, if any."""
    lines = reply.results.split("\n")[:-1]  # what follows the last line end is not complete
    num_passed = 0
    for line, call in zip(lines, calls, strict=False):
        if not _same_value(line, call):
            return num_passed, "wrong_answer", _difference(line, call.expected)
        num_passed += 1
    ended = _judge_end(reply)
    if ended and num_passed < len(calls):
        return num_passed, *ended
    if num_passed < len(calls) or len(lines) > len(calls):
        least = min(num_passed, len(calls) - 1)
        return least, "wrong_answer", f"{len(lines)} results for {len(calls)} calls"
    return num_passed, "passed", ""


def _same_value(line: str, call: FunctionTest) -> bool:
    expected = json.loads(call.expected)
    if values.matches(line, expected):
        return True
    unwrapped = call.is_wrapped and isinstance(expected, list) and len(expected) == 1
    return unwrapped and values.matches(line, expected[0])


def _test_program(test: AssertTest | CheckProgram) -> dict[str, Any]:
    """The code that a tester runs, and the names in it that stand for functions of the program."""
    if isinstance(test, CheckProgram):
        code = f"{test.code}\ncheck({test.entry_point})\n"
        return {"code": code, "functions": [test.entry_point]}
    return {"code": test.code, "functions": called_functions(test.code, test.setup)}


def called_functions(code: str, setup: str = "") -> list[str]:
    """The functions that `code` calls and nothing in it defines: those of the program.

    A builtin counts only where nothing else is called: in `set(f(x)) == {1}` a program that
    defines `set` must not decide what is equal; in `sum(10, 15) == 6` its `sum` is meant.
    """
    nodes = [*ast.walk(ast.parse(setup)), *ast.walk(ast.parse(code))]
    called = [
        node.func.id
        for node in nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    defined = {node.id for node in nodes if isinstance(node, ast.Name) and _is_bound(node)}
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            defined |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.arg):
            defined.add(node.arg)
    free = [name for name in dict.fromkeys(called) if name not in defined]
    return [name for name in free if not hasattr(builtins, name)] or free


def _is_bound(node: ast.Name) -> bool:
    return isinstance(node.ctx, ast.Store)


def _judge_check(program: Reply, tester: Reply) -> tuple[Reason, str]:
    if tester.results == f"{job.PASSED}\n" and tester.exit_code == job.DONE:
        return "passed", ""
    ended = _judge_end(program)
    if ended:  # the tester has then failed for want of an answer
        return ended
    if tester.killed:
        return "time_limit", f"the test was stopped ({tester.killed})"
    detail = _last_line(tester.stderr)
    raised = job.CallFailedError.__name__ in detail
    return "runtime_error" if raised else "wrong_answer", detail


def _judge_end(reply: Reply) -> tuple[Reason, str] | None:
    """Why a job did not come to its end; None if it did."""
    if reply.killed in ("cpu", "wall"):
        return "time_limit", f"killed after {reply.cpu_seconds:.2f} s of CPU time ({reply.killed})"
    if reply.killed:
        return "output_limit", "more output than Limits.output_bytes"
    detail = _last_line(reply.stderr)
    if detail.startswith("MemoryError"):
        return "memory_limit", detail
    if reply.exit_code < 0:
        return "runtime_error", f"ended by signal {-reply.exit_code}; {detail}"
    if reply.exit_code:
        return "runtime_error", detail or f"exit code {reply.exit_code}"
    return None


def same_output(output: str, expected: str) -> bool:
    """LiveCodeBench's comparison: stripped lines, equal as texts or as rows of decimal numbers."""
    lines, wanted = output.strip().split("\n"), expected.strip().split("\n")
    if len(lines) != len(wanted):
        return False
    return all(map(_same_line, lines, wanted))


def _same_line(line: str, expected: str) -> bool:
    line, expected = line.strip(), expected.strip()
    if line == expected:
        return True
    tokens, wanted = line.split(), expected.split()
    if len(tokens) != len(wanted):
        return False
    try:
        return [*map(Decimal, tokens)] == [*map(Decimal, wanted)]
    except (InvalidOperation, ValueError):  # no numbers, or one that signals when compared
        return False


def _difference(got: str, expected: str) -> str:
    return f"expected {_short(expected)}, got {_short(got)}"


def _short(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= 80 else text[:77] + "…")


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:300] if lines else ""
