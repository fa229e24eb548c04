"""The micro-language: where it has a value it is Python's, and nothing else gets through."""

from __future__ import annotations

import sys
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.tasks.expressions import MAX_CHARACTERS, agrees, values

INPUTS = range(-3, 13)

numbers = st.integers(0, 30).map(str)  # six factors stay within the limit
expressions = st.recursive(
    st.one_of(numbers, st.just("x")),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "//", "%"]), inner).map("".join),
        inner.map(lambda text: f"({text})"),
        inner.map(lambda text: f"-({text})"),
        st.tuples(st.sampled_from(["min", "max"]), inner, inner).map(
            lambda parts: f"{parts[0]}({parts[1]},{parts[2]})"
        ),
    ),
    max_leaves=6,
)


def by_python(text: str, x: int) -> int | None:
    """The slow twin: Python itself, for texts that this test made up."""
    try:
        value = eval(text, {"__builtins__": {}, "min": min, "max": max}, {"x": x})
    except ZeroDivisionError:
        return None
    return int(value)


@given(expressions)
def test_values_are_pythons(text: str) -> None:
    if len(text) > MAX_CHARACTERS:
        assert values(text, [1]) is None
        return
    for x in INPUTS:
        found, expected = values(text, [x]), by_python(text, x)
        assert found == (None if expected is None else [expected])


@pytest.mark.parametrize(
    ("text", "at_three"),
    [
        ("2*x+1", 7),
        (" 2 * x + 1 ", 7),
        ("-x", -3),
        ("20-x", 17),
        ("x*x-4", 5),
        ("7//x", 2),
        ("-7//x", -3),  # rounds down, as in Python
        ("-7%x", 2),
        ("max(x,5)", 5),
        ("min(x,5,1)", 1),
        ("((x))", 3),
        ("x--1", 4),
        ("2+3*x", 11),
    ],
)
def test_what_an_expression_means(text: str, at_three: int) -> None:
    assert values(text, [3]) == [at_three]


HOSTILE = [
    "__import__('os').system('true')",
    "().__class__",
    "x.real",
    "x[0]",
    "open('f')",
    "exec('1')",
    "lambda:1",
    "x if x else x",
    "[x]",
    "(x,1)",
    "x,1",
    "{x}",
    "'a'*9",
    "f'{x}'",
    "x:=1",
    "x=1",
    "x;x",
    "x\n+1",
    "x\x00",
    "yield",
    "True",
    "None",
    "y",
    "max",
    "max(x)",  # iterates over x in Python
    "max()",
    "max(*x,1)",
    "max(x,1,key=x)",
    "max(x,max)",
    "x(1)",
    "1(x)",
    "max(x,1)(1)",
    "x**x",
    "9**9**9",
    "9**99999",
    "x/2",
    "1.5",
    "1e5",
    "0x10",
    "1_000",
    "007",
    "1j",
    "x<1",
    "x==1",
    "~x",
    "not x",
    "x@x",
    "x<<9",
    "x|1",
    "+x",
    "1max(x,2)",
    "2x",
    "x x",
    "x+",
    "*x",
    "",
    " ",
    "()",
    "#x",
    "x#",
    "١+x",  # a digit of another alphabet
    "ｘ",  # Python reads it as x
    "x−1",
    "1000000001",
    "999999*999999",
    "999999*9999",  # over the limit
    "x//0",
    "x%0",
    "x//(x-3)",
    "(" * 40 + "x" + ")" * 40,
    "-" * 60 + "x" * 9,
    "x+" * 5000 + "x",
    "(" * 100_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_nothing_else_is_an_expression(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert values(text, [3]) is None


@given(st.text(alphabet="0123x+-*/%(), maxiny.[]_'", max_size=80))
def test_any_text_gives_small_numbers_or_nothing(text: str) -> None:
    before = sys.getrecursionlimit()
    found = values(text, INPUTS)
    assert found is None or all(type(value) is int and abs(value) <= 10**9 for value in found)
    assert sys.getrecursionlimit() == before


def test_an_expression_without_a_value_at_one_input_has_none() -> None:
    assert values("6//x", [1, 2]) == [6, 3]
    assert values("6//x", [1, 0]) is None


def test_agreement_is_with_every_example() -> None:
    assert agrees("2*x+1", [(1, 3), (2, 5)])
    assert not agrees("2*x+1", [(1, 3), (2, 6)])
    assert not agrees("x/2", [(2, 1)])
