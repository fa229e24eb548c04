"""Verdicts on programs, what workers are told, and that nothing is left or hangs."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sandbox_driver import sessions_of

from trainers.grading.code_tests import AssertTest, CheckProgram, FunctionTest, StdinTest, Test
from trainers.grading.programs import CodeGrader, Verdict, called_functions, same_output
from trainers.sandbox import values
from trainers.sandbox.limits import Limits
from trainers.sandbox.pool import Pool

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")

DOUBLE = [StdinTest("21\n", "42\n"), StdinTest("1", "2.0"), StdinTest("0", "0")]
SQUARES = [FunctionTest("f", json.dumps([i]), json.dumps([i, i * i])) for i in range(40)]
NEXT = CheckProgram(
    "def check(candidate):\n"
    "    for i in range(30):\n        assert abs(candidate(i) - add(i)) < 1e-6, i\n",
    "f",
    "def add(x):\n    return x + 1\n",
)


@pytest.fixture(scope="module")
def grader() -> Iterator[CodeGrader]:
    with CodeGrader(workers=2, limits=Limits(cpu_seconds=0.5, wall_seconds=2.0)) as grader:
        yield grader


def grade(grader: CodeGrader, code: str, tests: Sequence[Test]) -> Verdict:
    (verdict,) = grader.grade([(code, tests)])
    return verdict


@pytest.mark.parametrize(
    ("code", "tests", "reason", "failed_test"),
    [
        ("print(2 * int(input()))", DOUBLE, "passed", None),
        ("n = int(input())\nprint(42 if n == 21 else n)", DOUBLE, "wrong_answer", 1),
        ("print(2 * int(input()))\nraise SystemExit", DOUBLE, "passed", None),
        ("print(2 * int(input()))\n1 / 0", DOUBLE, "runtime_error", 0),
        ("this is no program", DOUBLE, "runtime_error", 0),
        ("\0", DOUBLE, "runtime_error", 0),
        ("\ud800", DOUBLE, "runtime_error", 0),
        ("", DOUBLE, "wrong_answer", 0),
        ("while True: pass", DOUBLE, "time_limit", 0),
        ("import time\ntime.sleep(99)", DOUBLE, "time_limit", 0),
        ("x = [0] * 10**9", DOUBLE, "memory_limit", 0),
        ("while True: print('x' * 10**6)", DOUBLE, "output_limit", 0),
        ("import ctypes\nctypes.string_at(0)", DOUBLE, "runtime_error", 0),
        ("import os\nos._exit(0)", DOUBLE, "wrong_answer", 0),
        ("def f(x): return x, x * x", SQUARES, "passed", None),
        ("class Solution:\n    def f(self, x): return [x, x**2]", SQUARES, "passed", None),
        ("def f(x): return [x, x * x if x < 30 else 0]", SQUARES, "wrong_answer", 30),
        ("def f(x): return [x, 21 // (x - 7) and x * x]", SQUARES[5:], "runtime_error", 2),
        ("def f(x):\n    while x == 9: pass\n    return [x, x * x]", SQUARES, "time_limit", 9),
        ("def g(x): return x", SQUARES, "runtime_error", 0),
        ("import os\ndef f(x): os._exit(0)", SQUARES, "wrong_answer", 0),
        ("def f(x): return x + 1", [NEXT], "passed", None),
        ("def f(x): return x + (x < 20)", [NEXT], "wrong_answer", 0),
        ("def f(x): return 1 / 0", [NEXT], "runtime_error", 0),
        ("1 / 0", [NEXT], "runtime_error", 0),
        ("def f(x):\n    while True: pass", [NEXT], "time_limit", 0),
        ("def f(x): return x + 1", [*SQUARES[:1], NEXT], "wrong_answer", 0),
    ],
)
def test_verdicts(
    grader: CodeGrader, code: str, tests: Sequence[Test], reason: str, failed_test: int | None
) -> None:
    verdict = grade(grader, code, tests)
    assert (verdict.reason, verdict.failed_test) == (reason, failed_test), verdict.detail
    assert verdict.passed == (reason == "passed")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('[{"a": 1, "b": 2}]', {"a": 1, "b": 2}),
        ('[{"int": "ff"}]', {"int": "ff"}),
        ('[{"tuple": [1]}]', {"tuple": [1]}),
        ("[[{}, null, 1.5, true]]", [{}, None, 1.5, True]),
    ],
)
def test_arguments_are_plain_json(grader: CodeGrader, arguments: str, expected: object) -> None:
    tests = [FunctionTest("f", arguments, json.dumps(expected))]
    verdict = grade(grader, "def f(x): return x", tests)
    assert verdict.passed, verdict.detail


PICKLED = """
from __future__ import annotations
import pickle
from dataclasses import dataclass, field
from typing import ClassVar, Optional
@dataclass
class Node:
    value: int
    next: Optional[Node] = None
    made: ClassVar[int] = 0
def f(x): return pickle.loads(pickle.dumps(Node(x, Node(x * x)))).next.value
"""


@pytest.mark.parametrize(
    "test", [FunctionTest("f", "[3]", "9"), AssertTest("assert f(3) == 9"), StdinTest("", "9")]
)
def test_classes_of_a_program_are_found_in_its_module(grader: CodeGrader, test: Test) -> None:
    code = f"{PICKLED}\nif __name__ == '__main__': print(f(3))"
    verdict = grade(grader, code, [test])
    assert verdict.passed, verdict.detail


def test_verdicts_come_in_the_order_of_the_programs(grader: CodeGrader) -> None:
    programs = [(f"print({n % 3})", [StdinTest("", "1")] * 2) for n in range(12)]
    assert [v.passed for v in grader.grade(programs)] == [n % 3 == 1 for n in range(12)]


def test_a_program_without_tests_is_refused(grader: CodeGrader) -> None:
    with pytest.raises(ValueError, match="program 1 has no tests"):
        grader.grade([("print(1)", DOUBLE), ("print(1)", [])])


def test_the_same_program_gets_the_same_output(grader: CodeGrader) -> None:
    """Order of a set and unseeded random numbers: on every worker, and in another grader."""
    code = "import random\nprint(list({'a', 'b', 'c', 'd', 'e'}), random.random())"
    with CodeGrader(workers=1) as other:
        details = {grade(g, code, [StdinTest("", "?")]).detail for g in (grader, grader, other)}
    assert len(details) == 1


# Tests that have code of their own.


@pytest.mark.parametrize(
    ("code", "test", "reason"),
    [
        ("def f(x): return set(x)", AssertTest("assert f([1, 2, 2]) == {1, 2}"), "passed"),
        ("def f(x): return {1: (2, 3)}", AssertTest("assert f(0) == {1: (2, 3)}"), "passed"),
        ("def f(x): return [2, 3]", AssertTest("assert f(0) == (2, 3)"), "wrong_answer"),
        ("def sum(a, b): return a * b", AssertTest("assert sum(3, 4) == 12"), "passed"),
        ("def set(x): return 0\ndef f(): return 5", AssertTest("assert set(f()) == set([1])"),
         "wrong_answer"),
        ("import math\ndef f(): return 0.1 + 0.2",
         AssertTest("assert math.isclose(f(), 0.3)", "import math"), "passed"),
        ("class P:\n    def __init__(s, x): s.x = x\ndef f(ps): return max(p.x for p in ps)",
         AssertTest("assert f([P(1), P(7)]) == 7"), "passed"),
        ("class Yes:\n    def __eq__(s, o): return True\ndef f(): return Yes()",
         AssertTest("assert f() == 5"), "wrong_answer"),
        ("class Yes(int):\n    def __eq__(s, o): return True\ndef f(): return Yes()",
         AssertTest("assert f() == 5"), "wrong_answer"),
        ("def f(n): return n + k", AssertTest("assert f(1) == 4", "k = 3"), "passed"),
    ],
)  # fmt: skip
def test_asserts(grader: CodeGrader, code: str, test: AssertTest, reason: str) -> None:
    verdict = grade(grader, code, [test])
    assert verdict.reason == reason, verdict.detail


@pytest.mark.parametrize(
    ("code", "asserts"),
    [
        ("def f(x): return range(x)", "assert list(f(3)) == [0, 1, 2] and f(3) == range(3)"),
        ("def f(x): return map(str, range(x))", "assert list(f(2)) == ['0', '1']"),
        ("def f(x): yield from range(x)", "assert list(f(5000)) == list(range(5000))"),
        ("def f(x):\n    while True: yield x",
         "g = f(7)\nassert next(g) == 7 and [next(g) for _ in range(50)] == [7] * 50"),
        ("def f(x): return zip([x], {x})", "assert dict(f(3)) == {3: 3}"),
        ("def f(x): return iter([])", "assert list(f(3)) == [] and next(f(3), 1) == 1"),
        ("from collections import deque\ndef f(x): return deque([x], 5)",
         "from collections import deque\nassert f(3) == deque([3]) and f(3).maxlen == 5"),
        ("def f(x): return {x: 4}.keys()", "assert f(3) == {3} and 3 in f(3)"),
        ("def f(x): return {x: 4}.values()", "assert list(f(3)) == [4]"),
        ("def f(x): return {x: 4}.items()", "assert sorted(f(3)) == [(3, 4)]"),
        ("class L:\n    def __iter__(s): return iter((1, 2))\ndef f(x): return L()",
         "a = f(3)\nassert list(a) == list(a) == [1, 2]"),
        ("from fractions import Fraction\ndef f(x): return Fraction(x, 6)", "assert f(3) == 0.5"),
        ("from decimal import Decimal\ndef f(x): return [Decimal(x) / 4]", "assert f(3) == [0.75]"),
        ("from datetime import *\ndef f(x): return date(2020, 1, x), timedelta(x), time(x)",
         "import datetime as d\n"
         "assert f(3) == (d.date(2020, 1, 3), d.timedelta(3), d.time(3))"),
        ("from datetime import *\ndef f(x): return datetime(2020, 1, x, tzinfo=timezone.utc)",
         "import datetime as d\nassert f(3) == d.datetime(2020, 1, 3, 0, tzinfo=d.timezone.utc)"),
        ("def f(x): return [a for a in x]", "assert f(range(3)) == [0, 1, 2]"),
        ("def f(x): return [a for a in (1, 'b') if isinstance(a, x)]",
         "assert f(int) == [1] and f(str) == ['b']"),
        ("def g(): return iter([1, 2])\ndef f(x): return sum(x)", "assert f(g()) == 3"),
    ],
)  # fmt: skip
def test_what_a_test_can_iterate_over_or_compare(
    grader: CodeGrader, code: str, asserts: str
) -> None:
    verdict = grade(grader, code, [AssertTest(asserts)])
    assert verdict.passed, verdict.detail


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def f():\n    while True: yield 1", "time_limit"),
        ("def f():\n    while True: pass\n    yield 1", "time_limit"),
        ("def f():\n    yield 1\n    1 / 0", "runtime_error"),
        ("def f():\n    yield 1\n    raise SystemExit", "runtime_error"),
        ("class F(__import__('fractions').Fraction):\n    def __eq__(s, o): return True\n"
         "def f(): return [F(1, 2)]", "wrong_answer"),
    ],
)  # fmt: skip
def test_an_iterator_that_does_not_end_well_ends_in_a_limit(
    grader: CodeGrader, code: str, reason: str
) -> None:
    verdict = grade(grader, code, [AssertTest("assert list(f()) == [1, 2]")])
    assert verdict.reason == reason, verdict.detail


@pytest.mark.parametrize(
    "value",
    [
        {"iterator": 0},
        {"iterable": 0},
        {"deque": [1]},
        {"Decimal": [[]]},
        {"range": "abc"},
        {"type": "eval"},
    ],
)
def test_a_forged_iterator_is_no_pass(grader: CodeGrader, value: object) -> None:
    line = json.dumps({"value": json.dumps(value)}).encode() + b"\n"
    code = f"import os\nos.write(3, {line!r} * 999)\ndef f(): return [1, 2]"
    assert not grade(grader, code, [AssertTest("assert list(f()) == [1, 2, 3]")]).passed


@pytest.mark.parametrize(
    "code",
    [
        "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'passed\\n' * 9)\n"
        "    except OSError: pass",
        'import os\nos.write(3, b\'{"value": "1"}\\n\' * 1000)',
        "import builtins\nbuiltins.abs = lambda x: 0\ndef f(x): return 7",
        "import sys\nfor m in list(sys.modules.values()):\n"
        "    if hasattr(m, 'PASSED'): m._check = lambda *a: None\ndef f(x): return 7",
        "import os\ndef f(x): os._exit(0)",
        "def f(x): return float('nan')",
        "def f(x): return [1] * 10**6",
    ],
)
def test_a_check_cannot_be_forged(grader: CodeGrader, code: str) -> None:
    assert not grade(grader, code, [NEXT]).passed


def test_functions_of_the_program_are_those_that_a_test_calls_and_does_not_define() -> None:
    code = "import math\ndef near(a, b): return abs(a - b) < 1\nassert near(area(2), math.sqrt(4))"
    assert called_functions(code) == ["area"]
    assert called_functions("assert [g(x) for x in map(str, [1])] == sorted(h)") == ["g"]
    assert called_functions("assert sorted([2, 1]) == [1, 2]") == ["sorted"]


# What is expected stays here.


def test_expected_values_are_not_sent_to_workers_that_run_programs(
    monkeypatch: pytest.MonkeyPatch, grader: CodeGrader
) -> None:
    sent: list[str] = []
    submit = Pool.submit

    def spy(
        pool: Pool[Any], key: object, request: dict[str, Any], cpu_seconds: float, **settings: Any
    ) -> None:
        if not settings.get("is_tester"):
            sent.append(json.dumps(request))
        submit(pool, key, request, cpu_seconds, **settings)

    monkeypatch.setattr(Pool, "submit", spy)
    tests: list[Test] = [
        StdinTest("in-1", "out-secret"),
        FunctionTest("f", '["in-2"]', '"out-secret"'),
        CheckProgram("def check(c):\n    assert c('in-3') == 'out-secret'", "f"),
        AssertTest("assert f('in-4') == 'out-secret'"),
    ]
    grader.grade([("def f(x): return x", [test]) for test in tests])
    assert len(sent) == 4
    assert "in-1" in sent[0]
    assert "in-2" in sent[1]
    assert not [message for message in sent if "secret" in message]


def test_a_worker_never_runs_both_tests_and_programs() -> None:
    """Jobs can read in their memory what their zygote was once told."""
    find = (
        "import gc\ndef f(x): return [s for s in map(str, gc.get_objects()) if 'mark' + 'er-' in s]"
    )
    secret = CheckProgram("def check(c):\n    assert c(0) == 'marker-7'", "f")
    with CodeGrader(workers=1) as grader:
        verdicts = grader.grade([("def f(x): return 1", [secret]), (find, [secret])] * 2)
        kinds = [worker.is_tester for worker in grader._pool._workers]
    assert sorted(kinds) == [False, True]
    assert not any(verdict.passed for verdict in verdicts)


# Failures of the sandbox itself.


def test_a_zygote_that_died_is_replaced_and_the_program_judged() -> None:
    with CodeGrader(workers=1) as grader:
        os.kill(grader._pool._workers[0].process.pid, signal.SIGKILL)
        assert grade(grader, "print(2 * int(input()))", DOUBLE).passed
        assert grade(grader, "def f(x): return x + 1", [NEXT]).passed


def test_a_zygote_that_hangs_is_replaced_and_the_program_judged() -> None:
    with CodeGrader(workers=1, limits=Limits(wall_seconds=1.0)) as grader:
        grader._pool.grace_seconds = 0.0
        os.kill(grader._pool._workers[0].process.pid, signal.SIGSTOP)
        assert grade(grader, "print(2 * int(input()))", DOUBLE).passed


def test_a_sandbox_that_fails_twice_is_not_the_programs_fault() -> None:
    with CodeGrader(workers=2) as grader:
        # Not a limit: the jail cannot be entered.
        grader._pool.limits = replace(grader.limits, stack_bytes=None)  # type: ignore[arg-type]
        verdict = grade(grader, "print(2 * int(input()))", DOUBLE)
        assert (verdict.passed, verdict.reason) == (False, "infrastructure")
        assert "jail" in verdict.detail
        grader._pool.limits = grader.limits
        assert grade(grader, "print(2 * int(input()))", DOUBLE).passed


def test_a_program_cannot_pose_as_a_failure_of_the_sandbox(grader: CodeGrader) -> None:
    code = "import os\nos.write(2, b'jail: OSError')\nos._exit(1)"
    assert grade(grader, code, DOUBLE).reason == "runtime_error"


# Nothing stays behind.

TRAINER = """
import sys
from trainers.grading.programs import CodeGrader
from trainers.grading.code_tests import CheckProgram, StdinTest
from trainers.sandbox.limits import Limits
with CodeGrader(workers=2, limits=Limits(wall_seconds=600)) as grader:
    print(*[worker.process.pid for worker in grader._pool._workers], flush=True)
    grader.grade([("import time\\ntime.sleep(600)", [StdinTest("", "")])] * 2)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_when_the_trainer_is_ended(number: signal.Signals) -> None:
    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAINER],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert trainer.stdout is not None
    zygotes = [int(pid) for pid in trainer.stdout.readline().split()]
    watched = {pid: os.pidfd_open(pid) for pid in zygotes}
    while len(sessions_of(zygotes)) < 4:  # both jobs are running
        assert trainer.poll() is None
    jobs = {pid: os.pidfd_open(pid) for pid in sessions_of(zygotes) if pid not in zygotes}
    trainer.send_signal(number)
    trainer.wait()
    trainer.stdout.close()
    for fd in (*watched.values(), *jobs.values()):
        assert select.select([fd], [], [], 30)[0], "a process outlived the trainer"
        os.close(fd)


def test_nothing_is_left_after_close() -> None:
    mounts = Path("/proc/self/mountinfo").read_text()
    with CodeGrader(workers=2) as grader:
        grader.grade([("print(1)", [StdinTest("", "1")]), ("def f(x): return x", [NEXT])])
        zygotes = [worker.process.pid for worker in grader._pool._workers]
        assert len(sessions_of(zygotes)) == 3
    assert sessions_of(zygotes) == []
    assert Path("/proc/self/mountinfo").read_text() == mounts


def test_an_interrupted_grader_can_be_used_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with CodeGrader(workers=2) as grader:
        with monkeypatch.context() as patched:
            patched.setattr(grader._pool, "wait", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                grader.grade([("import time\ntime.sleep(600)", DOUBLE)] * 2)
        assert grade(grader, "print(2 * int(input()))", DOUBLE).passed


# Comparison, against LiveCodeBench's own steps written out.


def twin(prediction: str, expected: str) -> bool:
    predicted = [line.strip() for line in prediction.strip().split("\n")]
    wanted = [line.strip() for line in expected.strip().split("\n")]
    if len(predicted) != len(wanted):
        return False
    for left, right in zip(predicted, wanted, strict=True):
        if left == right:
            continue
        try:
            lefts = [Decimal(word) for word in left.split()]
            rights = [Decimal(word) for word in right.split()]
        except ArithmeticError:  # InvalidOperation, which the original lets escape
            return False
        if lefts != rights:
            return False
    return True


WORDS = st.sampled_from(
    ["1", "1.0", "1e0", "01", "x", " ", "\n", "2", "-0", "0", "NaN", "Infinity"]
)


@given(st.lists(WORDS).map(" ".join), st.lists(WORDS).map(" ".join))
def test_outputs_are_compared_as_livecodebench_does(output: str, expected: str) -> None:
    assert same_output(output, expected) == twin(output, expected)


@pytest.mark.parametrize(
    ("output", "expected", "is_same"),
    [
        ("1 2\n3\n\n", "1.0 2.00\n3", True),
        ("a b", "a  b", False),
        ("", "", True),
        ("1\n2", "1 2", False),
        ("0.30000000000000004", "0.3", False),
        ("sNaN", "1", False),
        ("1e999999999", "1", False),
    ],
)
def test_outputs(output: str, expected: str, is_same: bool) -> None:
    assert same_output(output, expected) is is_same


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON)
def test_a_value_matches_itself(value: object) -> None:
    assert values.matches(values.dump(value), value)
    assert values.load(values.dump(value)) == value


@given(JSON, JSON)
def test_two_values_match_only_if_they_are_equal(left: object, right: object) -> None:
    assert values.matches(values.dump(left), right) == (left == right)


@given(
    st.text()
    | st.sampled_from(
        [
            "[" * 10**5,
            '{"dict": 5}',
            '{"int": "x"}',
            "1e999",
            "9" * 9999,
            '{"dict": [[[], 1]]}',
            '{"set": [1]}',
            "{}",
            '{"a":1,"b":2}',
        ]
    )
)
def test_no_text_upsets_the_comparison(text: str) -> None:
    for expected in (0, "x", [1], {"a": 1}, None):
        assert values.matches(text, expected) in (True, False)


@pytest.mark.parametrize(
    ("value", "expected", "is_same"),
    [
        ((1, (2, 3)), [1, [2, 3]], True),
        ({1: "a"}, {"1": "a"}, True),
        ({"a": 1, "b": 2}, {"a": 1}, False),
        ({1, 2}, [1, 2], False),
        (10**4000, 10**4000, True),
        (1, True, True),
        ("1", 1, False),
    ],
)
def test_values_are_compared_as_json_and_python_do(
    value: object, expected: object, is_same: bool
) -> None:
    assert values.matches(values.dump(value), expected) is is_same


def test_wrapped_values_match_only_where_the_test_says_so(grader: CodeGrader) -> None:
    code = "def f(): return 5"
    assert grade(grader, code, [FunctionTest("f", "[]", "[5]", is_wrapped=True)]).passed
    assert not grade(grader, code, [FunctionTest("f", "[]", "[5]")]).passed
