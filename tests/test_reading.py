"""What is read out of a response, and that every fallback is reported as one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.grading.reading import (
    boxed_answer,
    boxed_choice,
    boxed_verdict,
    fenced_code,
    last_boxed,
    numbered_strategies,
)
from trainers.prompts.chat import ChatPrompts
from trainers.prompts.compact import CompactPrompts
from trainers.tasks.problem import Problem

PROBLEM = Problem("sum-1-1", "math", "1+1", "2")


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{72}", "72"),
        (r"\boxed{1} no, \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{}", ""),
        (r"\boxed{never closed", None),
        (r"\boxed{1} and \boxed{never closed", None),
        ("72", None),
        ("boxed{72}", None),
    ],
)
def test_the_last_balanced_box_is_read(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


def test_a_box_inside_the_reasoning_block_does_not_count() -> None:
    assert boxed_answer(r"<think>\boxed{1}</think> so 2").value is None
    assert not boxed_answer(r"<think>\boxed{1}</think> so 2").parse_ok
    reading = boxed_answer(r"<think>\boxed{1}</think> \boxed{2}")
    assert (reading.value, reading.parse_ok) == ("2", True)


@pytest.mark.parametrize(
    ("text", "index", "parse_ok"),
    [
        (r"\boxed{2}", 1, True),
        (r"\boxed{ 3 }", 2, True),
        (r"\boxed{1}, not \boxed{2}", 0, True),  # the first box counts
        ("I pick 2.", 1, False),  # the period ends the sentence
        ("Solution 3 is best", 2, False),
        (r"\boxed{7} so 2", 1, False),  # out of range falls through to a digit in range
        (r"\boxed{0}", 0, False),
        (r"\boxed{two}", 0, False),
        ("12", 0, False),  # no standalone digit
        ("3.5", 0, False),
        ("", 0, False),
        ("9", 0, False),
    ],
)
def test_a_choice_falls_back_to_a_digit_and_then_to_the_first(
    text: str, index: int, parse_ok: bool
) -> None:
    reading = boxed_choice(text, 3)
    assert (reading.value, reading.parse_ok) == (index, parse_ok)


@pytest.mark.parametrize(
    ("text", "accepted", "parse_ok"),
    [
        (r"\boxed{Correct}", True, True),
        (r"\boxed{INCORRECT}", False, True),
        (r"\boxed{incorrect} … \boxed{Correct}", False, True),  # the first box counts
        (r"\boxed{\text{Correct}}", True, True),
        ("Correct", False, False),
        (r"\boxed{yes}", False, False),
        ("", False, False),
    ],
)
def test_an_unreadable_verdict_does_not_accept(text: str, accepted: bool, parse_ok: bool) -> None:
    reading = boxed_verdict(text)
    assert (reading.value, reading.parse_ok) == (accepted, parse_ok)


@pytest.mark.parametrize(
    ("text", "strategies", "parse_ok"),
    [
        ("STRATEGY 1: add tens\nSTRATEGY 2: count on", ("add tens", "count on"), True),
        ("Strategy 2: second\nstrategy 1: first\nwith more", ("first\nwith more", "second"), True),
        (
            "STRATEGY 1: a\nSTRATEGY 2: b\nSTRATEGY 3: c\nSTRATEGY 4: d",
            ("a", "b", "c"),
            True,
        ),
        ("STRATEGY 1:   \n", ("STRATEGY 1:",), False),  # a line over 10 characters
        ("1. add tens\n2) count on", ("add tens", "count on"), False),
        ("add the tens first\nshort\ncount on from there", None, False),
        ("tens", ("tens",), False),
        ("", ("solve it step by step",), False),
    ],
)
def test_strategies_fall_back_from_blocks_to_lists_to_lines_to_everything(
    text: str, strategies: tuple[str, ...] | None, parse_ok: bool
) -> None:
    reading = numbered_strategies(text, 3)
    expected = strategies or ("add the tens first", "count on from there")
    assert (reading.value, reading.parse_ok) == (expected, parse_ok)


def test_absurd_strategy_numbers_are_sorted_without_trouble() -> None:
    text = f"STRATEGY {'9' * 5000}: last\nSTRATEGY 1: first"
    assert numbered_strategies(text, 3).value == ("first", "last")


@given(st.text(max_size=80), st.integers(1, 9))
def test_any_text_gives_values_that_a_workflow_can_go_on_with(text: str, most: int) -> None:
    for prompts in (ChatPrompts(), CompactPrompts()):
        assert 0 <= prompts.read_choice(text, most).value < most
        assert 1 <= len(prompts.read_strategies(text, most).value) <= most
        assert all(prompts.read_strategies(text, most).value)
        assert isinstance(prompts.read_verdict(text).value, bool)
        answer = prompts.reader(PROBLEM)(text)
        assert (answer.value is not None) == answer.parse_ok


@given(st.text(alphabet="[]ynto123d \\boxed{}", max_size=40))
def test_whatever_parses_has_the_declared_format(text: str) -> None:
    """parse_ok only when the text holds the one bracket, or the box, that was asked for."""
    compact, chat = CompactPrompts(), ChatPrompts()
    if compact.read_choice(text, 3).parse_ok:
        assert text.count("[") == text.count("]") or text.count("[") >= 1
        assert any(f"[{i}]" in text for i in (1, 2, 3))
    if compact.read_verdict(text).parse_ok:
        assert "[y]" in text or "[n]" in text
    if chat.read_choice(text, 3).parse_ok:
        assert "\\boxed{" in text


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("[91]", "91"),
        ("80+11=[91]", "91"),
        ("[91][92]", None),  # two brackets: which one is meant would be a gamble
        ("91", None),
        ("[91", None),
        ("[]", ""),
    ],
)
def test_compact_answers_need_one_bracket(text: str, answer: str | None) -> None:
    reading = CompactPrompts.read_answer(text)
    assert (reading.value, reading.parse_ok) == (answer, answer is not None)


@pytest.mark.parametrize(
    ("text", "index", "parse_ok"),
    [("[2]", 1, True), ("[0]", 0, False), ("[4]", 0, False), ("2", 0, False), ("[²]", 0, False)],
)
def test_compact_choices_fall_back_to_the_first(text: str, index: int, parse_ok: bool) -> None:
    reading = CompactPrompts().read_choice(text, 3)
    assert (reading.value, reading.parse_ok) == (index, parse_ok)


@pytest.mark.parametrize(
    ("text", "accepted", "parse_ok"),
    [("[y]", True, True), ("[n]", False, True), ("[x]", False, False), ("y", False, False)],
)
def test_compact_verdicts(text: str, accepted: bool, parse_ok: bool) -> None:
    reading = CompactPrompts().read_verdict(text)
    assert (reading.value, reading.parse_ok) == (accepted, parse_ok)


@pytest.mark.parametrize(
    ("text", "strategies", "parse_ok"),
    [
        ("[to]", ("t", "o"), True),
        ("[ddd]", ("d", "d", "d"), True),
        ("[todt]", ("d",), False),  # more than three
        ("[tx]", ("d",), False),
        ("[]", ("d",), False),
        ("to", ("d",), False),
    ],
)
def test_compact_strategies_fall_back_to_direct(
    text: str, strategies: tuple[str, ...], parse_ok: bool
) -> None:
    reading = CompactPrompts().read_strategies(text, 3)
    assert (reading.value, reading.parse_ok) == (strategies, parse_ok)


@pytest.mark.parametrize(
    ("text", "code", "parse_ok"),
    [
        ("So:\n```python\nprint(1)\n```\nDone.", "print(1)", True),
        ("```python\nprint(1)\n```\nno,\n```python\nprint(2)\n```", "print(2)", True),
        ("```Python3\nprint(1)\n```", "print(1)", True),
        ("``` py title=a.py\nprint(1)\n```", "print(1)", True),
        ("```python\r\nprint(1)\r\n```\r\n", "print(1)\r", True),
        ("1. so\n   ```python\n   if x:\n       y\n   ```", "if x:\n    y", True),
        ("```python\n```", "", True),
        # the output that is shown after the program is not the answer
        ("```python\nprint(1)\n```\nprints\n```\n1\n```", "print(1)", True),
        ("```python\nprint(1)\n```\n```text\n1\n```", "print(1)", True),
        # fallbacks
        ("```\nprint(1)\n```", "print(1)", False),
        ("```cpp\nint x;\n```", "int x;", False),
        ("```python\nprint(1)", "print(1)", False),
        ("```python\nprint(1)\n```\nbetter:\n```python\nprint(2", "print(2", False),
        ("```python\nprint(1)\n```python\nprint(2)\n```", "print(2)", True),
        ("```python", "", False),
        ("print(1)", None, False),
        ("`print(1)`", None, False),
        ("```print(1)```", None, False),
        ("", None, False),
    ],
)
def test_the_last_python_block_is_read(text: str, code: str | None, parse_ok: bool) -> None:
    reading = fenced_code(text)
    assert (reading.value, reading.parse_ok) == (code, parse_ok)


def test_a_block_inside_the_reasoning_does_not_count() -> None:
    assert fenced_code("<think>\n```python\nprint(1)\n```\n</think>\nIt prints 1.").value is None
    text = "<think>\n```python\nprint(1)\n</think>\n```python\nprint(2)\n```"
    assert (fenced_code(text).value, fenced_code(text).parse_ok) == ("print(2)", True)


def test_a_program_is_read_as_it_was_written() -> None:
    """Blank lines with spaces, form feeds and backticks may be part of a string."""
    code = 's = """\n   \n\x0c `a` ``b``\n\u2028"""\nprint(s)'
    assert fenced_code(f"```python\n{code}\n```").value == code


@given(st.text(alphabet="`python \nx=1", max_size=60))
def test_any_text_gives_a_program_or_none(text: str) -> None:
    reading = fenced_code(text)
    assert all(line in text for line in (reading.value or "").split("\n"))
    assert not reading.parse_ok or "```" in text
