"""Equality of final answers, on numbers written in every usual way and on hostile text."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.grading.numbers import MAX_DIGITS, final_number, same_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("72", Fraction(72)),
        ("-72", Fraction(-72)),
        ("−72", Fraction(-72)),  # a typographic minus
        ("1,200", Fraction(1200)),
        ("1{,}200", Fraction(1200)),
        ("$1,200.50", Fraction(2401, 2)),
        (r"\$18", Fraction(18)),
        ("18 dollars", Fraction(18)),
        ("18.", Fraction(18)),
        (".5", Fraction(1, 2)),
        ("0.10", Fraction(1, 10)),
        ("3/4", Fraction(3, 4)),
        ("-3/4", Fraction(-3, 4)),
        (r"\frac{3}{4}", Fraction(3, 4)),
        (r"-\dfrac{6}{8}", Fraction(-3, 4)),
        ("007", Fraction(7)),
        (r"90^\circ", Fraction(90)),
        (r"x = 5", Fraction(5)),
        (r"60 miles/hour", Fraction(60)),
        (r"18 \text{ dollars}", Fraction(18)),
        ("**72**", Fraction(72)),
        (r"50\%", Fraction(50)),
        ("–72", Fraction(-72)),  # an en dash
        (r"\left(72\right)", Fraction(72)),
        (r"-\$18", Fraction(-18)),
        ("5 km/h", Fraction(5)),
        ("5m", Fraction(5)),
        ("5-year plan", Fraction(5)),
    ],
)
def test_a_number_is_understood_exactly(text: str, number: Fraction) -> None:
    assert final_number(text) == number


@pytest.mark.parametrize(
    "text", ["", "   ", "none", "3 or 4", "3/0", "1,2", "9" * (MAX_DIGITS + 1), r"\frac{1}{0}"]
)
def test_what_is_not_one_number_is_none(text: str) -> None:
    assert final_number(text) is None


def test_equal_numbers_are_equal_however_they_are_written() -> None:
    assert same_number("1,200", "1200.00")
    assert same_number("0.75", r"\frac{3}{4}")
    assert same_number(" 18 dollars ", "$18")


def test_close_numbers_are_not_equal() -> None:
    assert not same_number("0.333", "1/3")
    assert not same_number("1200", "1201")
    assert not same_number("-5", "5")


@pytest.mark.parametrize("formula", [r"\sqrt{3}", "x+3", r"3\pi", "x^3", "3!", r"\log 3", "a_3"])
def test_a_number_inside_a_formula_does_not_pass_for_the_number(formula: str) -> None:
    assert not same_number(formula, "3")


@pytest.mark.parametrize(
    "other",
    [
        "-(3)", r"-\text{3}", "-{3}", "minus 3", "negative 3", "3/x", "3-x", "sqrt(3)", "√3",
        "log 3", "ln3", "f(3)", "x3", "3x", "3i", "3k", "3 million", "half of 3", "twice 3",
        "3 squared", "3²", "3 !", "(3)!", "±3", "|-3|", "3 dozen", "\u0663",
    ],
)  # fmt: skip
def test_a_number_with_another_value_does_not_pass_for_the_number(other: str) -> None:
    assert not same_number(other, "3")


def test_two_guesses_do_not_score_even_if_one_is_right() -> None:
    assert not same_number("17 or 18", "18")


def test_texts_that_are_no_numbers_are_equal_only_if_identical() -> None:
    assert same_number(" x+1 ", "x+1")
    assert not same_number("x + 1", "x+1")
    assert not same_number("", "0")


@given(st.text(max_size=60))
def test_no_text_raises(text: str) -> None:
    same_number(text, "42")


@given(st.integers(-(10**12), 10**12))
def test_thousands_separators_do_not_matter(number: int) -> None:
    assert final_number(f"{number:,}") == number == final_number(str(number))
