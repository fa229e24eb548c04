"""Nothing of a graded program is left for the next one; its limits are its own."""

from __future__ import annotations

import secrets

import pytest

from trainers.grading.code_tests import AssertTest, FunctionTest, StdinTest, Test
from trainers.grading.programs import CodeGrader
from trainers.sandbox.limits import Limits

SCAN = """
import ctypes, gc, os, re
libc = ctypes.CDLL(None)
libc.sbrk.restype = ctypes.c_void_p
libc.write.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
read_end, write_end = os.pipe()
def page(address):  # what is not mapped gives an error, no signal
    found = libc.write(write_end, address, 4096) == 4096
    return os.read(read_end, 4096) if found else b"\\0"
def scan():
    own = ("NEED" + "LE-" + "f" * 32).encode()
    top = libc.sbrk(0)
    bases = {id(o) >> 24 for o in (own, *gc.get_objects())} | {(top >> 24) - i for i in range(3)}
    for base in sorted(bases):
        memory = b"".join(page(a) for a in range(base << 24, (base + 1) << 24, 4096))
        yield from re.findall(rb"NEED" + rb"LE-[0-9a-f]{32}", memory)
tokens = sorted({token.decode() for token in scan()})
"""
FRAMES = """
import sys
seen, frame = [], sys._getframe()
while frame:
    seen.append(repr(frame.f_locals) + repr({k: repr(v) for k, v in frame.f_globals.items()}))
    frame = frame.f_back
tokens = [text for text in seen if "NEED" + "LE-" in text]
"""
KINDS = ("standard output", "calls", "a test")


def holding(kind: str, token: str) -> tuple[str, Test]:
    """A program that holds the token and passes, and its test."""
    if kind == "standard output":
        return f"print({token!r}, input())", StdinTest(token, f"{token} {token}")
    if kind == "calls":
        test = FunctionTest("f", f'["{token}"]', f'"{token}{token}"')
        return f"def f(x): return {token!r} + x", test
    return f"def f(): return {token!r}", AssertTest(f"assert f() == {token!r}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_program_finds_nothing_of_the_one_before(kind: str) -> None:
    token = f"NEEDLE-{secrets.token_hex(16)}"
    program, test = holding(kind, token)
    with CodeGrader(workers=1) as grader:
        (before,) = grader.grade([(program, [test])])
        assert before.passed, before
        for look in (SCAN, FRAMES):
            (after,) = grader.grade([(f"{look}\nprint(tokens)", [StdinTest("", "unknown")])])
            assert after.reason == "wrong_answer", after
            assert token not in after.detail
            if look is SCAN:  # it does see its own memory
                assert "f" * 32 in after.detail


def test_a_test_that_waits_for_its_program_is_not_taken_for_idle() -> None:
    """The program computes 0.4 s in 1.4 s of real time; its test does nothing meanwhile."""
    program = (
        "import time\ndef f(x):\n for _ in range(14):\n  end = time.process_time() + 0.03\n"
        "  while time.process_time() < end: pass\n  time.sleep(0.07)\n return x\n"
    )
    with CodeGrader(workers=1, limits=Limits(cpu_seconds=1.0, wall_seconds=1.0)) as grader:
        (verdict,) = grader.grade([(program, [AssertTest("assert f(1) == 1")])])
    assert verdict.passed, verdict


def test_lines_on_the_channel_of_results_buy_no_time() -> None:
    program = (
        "import os, time\nwhile time.process_time() < 1.5:\n try: os.write(3, b'\\n')\n"
        " except OSError: pass\nprint(42)"
    )
    with CodeGrader(workers=1, limits=Limits(cpu_seconds=0.5)) as grader:
        (verdict,) = grader.grade([(program, [StdinTest("", "42")])])
    assert verdict.reason == "time_limit", verdict
