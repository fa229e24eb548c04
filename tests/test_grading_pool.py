"""Processes that grade: killed when they take too long, used again, never the caller's trouble."""

from __future__ import annotations

import signal
import threading

import pytest

from trainers.grading.pool import GradingPool, OutOfTime, Worker
from trainers.grading.worker import decode, encode, is_harmless

pytest.importorskip("math_verify")

ENDLESS = r"\prod_{i=1}^{10^8} i"
"""Math-verify multiplies it out."""


def request(answer: str, reference: str = "5", rule: str = "math") -> dict[str, str]:
    return {"rule": rule, "answer": answer, "reference": reference}


def test_replies_come_in_order_and_an_endless_answer_costs_only_itself() -> None:
    asked = [request("5.0"), request(ENDLESS), request("6"), request(r"\frac{10}{2}")]
    with GradingPool(processes=2, cpu_seconds=1) as pool:
        replies = pool(asked)
        assert [reply["is_correct"] for reply in replies] == [True, False, False, True]
        assert [reply.get("is_graded", True) for reply in replies] == [True, False, True, True]
        assert replies[1]["reason"] == "out of time"
        assert pool(asked[:1])[0]["is_correct"], "the process that was killed is replaced"
        assert pool([]) == []


def test_a_process_that_does_not_answer_in_time_is_ended() -> None:
    worker = Worker()
    worker.is_new = False  # the first answer has time for imports
    with pytest.raises(OutOfTime):
        worker.ask({"cpu_seconds": 1, **request("5")}, wall_seconds=0.0)
    assert worker.process.poll() is not None


def test_it_works_off_the_main_thread_and_leaves_our_alarm_alone() -> None:
    def ours(number: int, frame: object) -> None:
        raise AssertionError("nobody may set it off")

    before = signal.signal(signal.SIGALRM, ours)
    replies: list[object] = []
    try:
        with GradingPool(processes=1) as pool:
            thread = threading.Thread(target=lambda: replies.extend(pool([request(r"\sqrt{25}")])))
            thread.start()
            thread.join()
        assert signal.getsignal(signal.SIGALRM) is ours
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert replies == [{"is_correct": True, "reason": "equal expressions"}]


def test_an_interrupted_question_does_not_answer_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    with GradingPool(processes=1) as pool:
        assert pool([request("5")])[0]["is_correct"]
        read = Worker._line

        def interrupted(worker: Worker, seconds: float) -> bytes:
            raise KeyboardInterrupt

        monkeypatch.setattr(Worker, "_line", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool([request("5")])
        monkeypatch.setattr(Worker, "_line", read)
        assert not pool([request("6")])[0]["is_correct"]
        assert pool([request("5")])[0]["is_correct"]


def test_closing_ends_every_process_and_the_pool_can_be_used_again() -> None:
    pool = GradingPool(processes=1)
    assert pool([request("5")])[0]["is_correct"]
    worker = pool._idle.get()
    assert worker is not None
    pool._idle.put(worker)
    pool.close()
    assert worker.process.poll() is not None
    assert pool([request("5")])[0]["is_correct"]
    pool.close()


def test_what_python_would_run_is_told_from_what_it_would_calculate() -> None:
    for text in ("3*(4+5)", "sqrt(4)/2", "x**2 + 3*x*y", "[['Q', '_'], ['_', 'Q']]", "[1, 2]"):
        assert is_harmless(text), text
    for text in (
        "__import__('os')", "exec('1')", "open('f')", "().__class__", "(1).real", "a.b",
        "exec(chr(49))", "ｅｖａｌ(ｃｈｒ(49))", "ｅ(1)", "[*[1]]", "1 if 1 else 2",
        "lambda: 1", "print(1)", "[x for x in y]", "x := 3", "eval('1')",
    ):  # fmt: skip
        assert not is_harmless(text), text


def test_entries_keep_their_tuples() -> None:
    entry = {"a": ((1, 2), (3, 4)), "b": {1: None}, "c": [1.5, "x"]}
    assert decode(encode(entry)) == entry
    assert decode(encode({"a": object})) == {"a": "<class 'object'>"}
