"""Equality of mathematical answers: a table judged by hand, for both rules."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.grading.maths import MAX_CHARACTERS, same_math
from trainers.grading.numbers import same_number
from trainers.grading.paper import same_in_paper

pytest.importorskip("math_verify")

PAIRS = [  # answer, reference, whether they are equal
    # numbers and fractions
    ("42", "42", True), ("042", "42", True), ("42.0", "42", True), ("42.", "42", True),
    ("-42", "42", False), ("43", "42", False), ("−7", "-7", True), ("+7", "7", True),
    ("1/2", r"\frac{1}{2}", True), ("0.5", r"\frac12", True), (r"\dfrac{1}{2}", "0.5", True),
    (r"\frac{6}{8}", r"\frac{3}{4}", True), (r"\frac{3}{4}", r"\frac{4}{3}", False),
    ("7 3/4", r"\frac{31}{4}", True), (r"7\frac{3}{4}", r"\frac{31}{4}", True),
    (r"-\frac{1}{2}", r"\frac{-1}{2}", True), (r"\frac{1}{-2}", r"-\frac{1}{2}", True),
    ("0.333", r"\frac{1}{3}", False), ("0.3333333", r"\frac{1}{3}", True),
    ("0.0", "10^{-7}", False), ("0.0000001", "10^{-7}", True), ("0.0000002", "10^{-7}", False),
    ("1200", "1,200", True), (r"1{,}200", "1200", True), (r"12\,000", "12000", True),
    ("12 000", "12000", True), ("1,20", "120", False), ("5.000", "5000", False),
    ("10^{3}", "1000", True), (r"5 \times 10^3", "5000", True), (r"2^{10}", "1024", True),
    # units, money, percent, degrees
    (r"\$18", "18", True), ("$18$", "18", True), ("18 dollars", "18", True),
    (r"18\text{ dollars}", r"\$18", True), (r"12\text{ cm}^2", "12", True), ("12cm", "12", True),
    (r"50\%", "50", True), (r"50\%", "0.5", True), (r"5\%", "0.5", False),
    (r"90^\circ", "90", True), (r"90^{\circ}", "90", True), (r"\frac{\pi}{2}", "90", False),
    # expressions
    ("x+1", "1+x", True), ("x+1", "x-1", False), ("(x+1)^2", "x^2+2x+1", True),
    (r"\sqrt{8}", r"2\sqrt{2}", True), (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}", True),
    (r"\sqrt{3}", "3", False), (r"3\pi", r"\pi\cdot 3", True), (r"3\pi", "3", False),
    (r"\log_2 8", "3", True), ("5!", "120", True), ("3+4i", "4i+3", True), ("y=2x+3", "2x+3", True),
    ("x=5", "5", True), ("5", "x=5", True), ("y=5", "x=5", False), ("x^3", "x^2", False),
    (r"\left(\frac{1}{2}\right)", "0.5", True), (r"a^2-b^2", "(a-b)(a+b)", True),
    # sets, pairs, intervals, matrices, signs
    ("1,2", "2,1", True), (r"\{1,2\}", r"\{2,1\}", True), (r"\{1,2\}", r"\{1,3\}", False),
    ("1,2,3", "1,2", False), ("(1,2)", "(1,2)", True), ("(1, 2)", "(1,2)", True),
    ("(1,2)", "(2,1)", False), ("(1,2)", "[1,2]", False), ("(1,2)", "1,2", False),
    ("[0,1)", r"\left[0,1\right)", True), (r"(-\infty,2)", "x<2", True), ("x<2", "x>2", False),
    (r"\pm 3", "3,-3", True), (r"\pm 3", "3", False), ("3", r"\pm 3", False),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", True),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}", False),
    (r"(-\infty,0)\cup(1,\infty)", r"(1,\infty)\cup(-\infty,0)", True),
    # words and letters
    (r"\text{Evelyn}", "Evelyn", True), (r"\text{Even}", "Odd", False),
    ("(B)", r"\text{(B)}", True), (r"\textbf{A}", "A", True), ("B", "A", False),
    # what must not pass for an answer
    ("17 or 18", "18", False), ("17, 18", "18", False), ("less than 72", "72", False),
    ("about 5", "5", False), ("not 5", "5", False), ("3=5", "5", False), ("5=5", "5", True),
    (r"1} \boxed{2", "2", False), (r"\boxed{1} \boxed{2}", "2", False), ("{{5", "5", False),
    (r"\text{the answer is one of } 1,2,3", "2", False), ("1 2 3", "2", False), ("", "5", False),
    ("?", "5", False), (r"\frac{1}{0}", "5", False), ("0/0", "0", False), ("nan", "5", False),
    (r"garbage \frac{1}{2}", r"\frac{1}{2}", False), ("x", "5", False), ("5x", "5", False),
    ("5 5", "5", False), ("5-5+5", "5", True), ("5;6", "5", False),
    ("5 \\text{ or } 6", "5", False),
    ("any number", "5", False), ("\u0665", "5", False), ("5\u200b", "5", False),
    (r"\infty", "5", False),
    # spaces, degrees, units, empty sets
    ("90°", "90", True), ("90°", r"90^\circ", True), (r"10\mathrm{~cm}", "10", True),
    (r"10~\text{cm}", "10", True), ("~10", "10", False), ("5~6", "5", False),
    (r"\emptyset", r"\varnothing", True), (r"\{\}", r"\varnothing", True),
    (r"\emptyset", "0", False), (r"\text{7 apples}", "7", True),
    (r"\text{7 apples}", r"7\text{ apples}", True), (r"\text{7 or 8}", "7", False),
    ("5 more apples", "5", True), ("5 more than x", "5", False),
    (r"\text{more than } 5", "5", False), ("1 200", "1200", True), (r"1\,200", "1200", True),
    (r"1200\text{ cm}^2", "1200", True), (r"\mathbf{1200}", "1200", True),
    (r"\frac12", "0.5", True), ("5 pi", "5", False), ("5 k", "5", False), ("5 M", "5", False),
    ("5 plus x", "5", False), ("reciprocal of 5", "5", False),
    (r"-2\frac{1}{2}", r"-\frac{5}{2}", True), (r"-2\frac{1}{2}", "-1.5", False),
    # six significant digits
    ("0.333333", r"\frac13", True), ("0.33333", r"\frac13", False),
    ("16.6667", r"\frac{50}{3}", True), ("16.667", r"\frac{50}{3}", False),
    ("3.14159", r"\pi", True), ("3.1416", r"\pi", False), ("314.159", r"100\pi", True),
    ("3141592.65", r"1000000\pi", True), ("3140000.5", r"1000000\pi", False),
    ("0.000314159", r"\frac{\pi}{10000}", True), ("0.00031415", r"\frac{\pi}{10000}", False),
    ("1.41421", r"\sqrt{2}", True), ("12.34561", "12.34562", False),
    ("1000.004", "1000", False), ("1234570", "1234567.89", False),
    (r"33.3333\%", r"\frac13", True), ("(16.6667,0.333333)", r"(\frac{50}{3},\frac13)", True),
    ("0.333333, 16.6667", r"\frac{50}{3},\frac13", True),
    ("(0.333333,16.6667)", r"(\frac{50}{3},\frac13)", False),
    # words, and letters in a row
    ("CBA", "ABC", False), ("DAY", "YAD", False), ("listen", "silent", False),
    ("east", r"\text{seat}", False), ("east", "East", True), ("NO", r"\text{no}", True),
    ("on", "no", False), ("TRUE", r"\text{True}", True), ("aB", "Ab", False), ("AB", "ab", False),
    (r"C \cdot B \cdot A", "ABC", False), (r"A \cdot B", "AB", True), ("x=ABC", "ABC", True),
    ("xy", "yx", True), ("xyz", "zyx", True), ("abc", "cab", True), ("p-q", "q-p", False),
    (r"\textbf{\text{A}}", "A", True), ("no real solution", r"\text{no real solution}", True),
    # lists of them keep their order
    ("B, A, C", "A, B, C", False), ("A,B,C", r"\text{A, B, and C}", True),
    (r"\{B,A\}", "A,B", False), (r"\{A,B\}", "A,B", True), ("B,A", r"\{A,B\}", True),
    ("(A,B)", "(A,B)", True), ("(B,A)", "(A,B)", False), ("(A,B)", "A,B", False),
    ("A-C-B", "A-B-C", False), (r"A \to C \to B", r"A \to B \to C", False),
    ("Bob, Alice", "Alice, Bob", False), ("b, a", "a, b", False), ("2x, y", "y, 2x", True),
    ("xy, x", "x, xy", True), ("3,2", "2,3", True),
    # how often an element stands there; brackets and signs that mean something
    ("2,2", "2", False), ("2", "2,2", False), ("2,2", "2,2", True), ("2,2,-1", "2,-1,2", True),
    ("2,-1,-1", "2,2,-1", False), (r"\{2,2\}", r"\{2\}", True), ("1,1,2", "1,2", False),
    ("[5]", "5", False), ("[5]", "[5]", True), ("(5)", "5", True), ("--5", "5", False),
    ("-(-5)", "5", True),
    # letters at the end that are no unit
    ("2ab", "2", False), ("2ab", "2ba", True), ("2c", "2", False), ("2", "3t", False),
    ("3", "3t", False), (r"\frac12bc", r"\frac{1}{2}", False), ("5cm", "5", True),
    ("5 yrs", "5", True), ("5 dogs", "5", True), (r"\sqrt{2}a", r"a\sqrt{2}", True),
]  # fmt: skip

NUMBERS = [  # answer, reference, whether the rule 'number' finds them equal
    (r"1\,200", "1200", True), ("1 200", "1200", True), ("12 000 000", "12000000", True),
    ("1200 500", "1200", False), (r"1200 \text{ cm}^2", "1200", True), ("5 m^2", "5", True),
    ("5 cm²", "5", True), (r"12\text{ m}^{3}", "12", True), ("5x^2", "5", False),
    (r"5\mathrm{x}^2", "5", False), (r"\mathbf{1200}", "1200", True), (r"\frac12", "0.5", True),
    (r"-\frac12", "-0.5", True), (r"\frac{1}2", "0.5", True), ("5 more apples", "5", True),
    (r"5\text{ more apples}", "5", True), ("5 more", "5", True), ("more than 5", "5", False),
    ("5 more than x", "5", False), ("5 or more", "5", False), (r"5~\text{apples}", "5", True),
    ("~5", "5", False), ("+5", "5", True), ("+-5", "5", False), ("5 pi", "5", False),
    ("5pi", "5", False), ("5 e", "5", False), ("5 k", "5", False), ("5 M", "5", False),
    (r"5\text{ k}", "5", False), ("5 bn", "5", False), ("5mil", "5", False), ("5 lakh", "5", False),
    ("5 gross", "5", False), ("5 grand", "5", False), ("5 plus x", "5", False),
    ("x plus 5", "5", False), ("5 times x", "5", False), ("x times 5", "5", False),
    ("5 times as many", "5", True), ("5 divided by x", "5", False), ("reciprocal of 5", "5", False),
    ("opposite of 5", "5", False), ("arcsin 5", "5", False), ("tanh 5", "5", False),
    ("floor 5", "5", False), ("exponent 5", "5", False), (r"5\% of x", "5", False),
    ("5 wrong", "5", False), ("none; 5", "5", False), ("isn't 5", "5", False), ("5-", "5", False),
    ("5 to", "5", False), ("|-5|", "-5", False), ("|5|", "5", True), ("5 a day", "5", True),
    ("5 a.m.", "5", True), ("5 K", "5", True), ("5 L", "5", True), ("5 sec", "5", True),
    ("2ab", "2", False), ("2 xy", "2", False), ("3xyz", "3", False), ("2AB", "2", False),
    ("5PM", "5", True), ("5 USD", "5", True), ("5th", "5", True), ("5 dogs", "5", True),
    ("5 t", "5", True), ("a total of 5", "5", True), (r"5\degree", "5", True),
    ("5°", "5", True), ("USD 5", "5", True), ("5 years older", "5", True),
]  # fmt: skip

PAPER_DIFFERS = {
    ("+7", "7"), (r"\frac{6}{8}", r"\frac{3}{4}"),
    ("0.3333333", r"\frac{1}{3}"), ("0.0000001", "10^{-7}"), ("10^{3}", "1000"),
    (r"5 \times 10^3", "5000"), (r"2^{10}", "1024"), (r"50\%", "0.5"), (r"\log_2 8", "3"),
    ("5!", "120"), ("y=2x+3", "2x+3"), ("x=5", "5"), ("5", "x=5"), ("1,2", "2,1"),
    (r"\{1,2\}", r"\{2,1\}"), (r"(-\infty,2)", "x<2"), (r"\pm 3", "3,-3"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    (r"(-\infty,0)\cup(1,\infty)", r"(1,\infty)\cup(-\infty,0)"), ("5=5", "5"), ("5-5+5", "5"),
    (r"\emptyset", r"\varnothing"), (r"\{\}", r"\varnothing"), (r"\text{7 apples}", "7"),
    ("5 more apples", "5"), (r"\mathbf{1200}", "1200"), (r"-2\frac{1}{2}", r"-\frac{5}{2}"),
    ("0.333333", r"\frac13"), ("16.6667", r"\frac{50}{3}"), ("3.14159", r"\pi"),
    ("314.159", r"100\pi"), ("3141592.65", r"1000000\pi"), ("0.000314159", r"\frac{\pi}{10000}"),
    ("1.41421", r"\sqrt{2}"), (r"33.3333\%", r"\frac13"),
    ("(16.6667,0.333333)", r"(\frac{50}{3},\frac13)"),
    ("0.333333, 16.6667", r"\frac{50}{3},\frac13"), (r"A \cdot B", "AB"), ("x=ABC", "ABC"),
    ("xy", "yx"), ("xyz", "zyx"), ("abc", "cab"), (r"\textbf{\text{A}}", "A"),
    ("A,B,C", r"\text{A, B, and C}"), (r"\{A,B\}", "A,B"), ("B,A", r"\{A,B\}"), ("2x, y", "y, 2x"),
    ("xy, x", "x, xy"), ("3,2", "2,3"), ("2,2,-1", "2,-1,2"), (r"\{2,2\}", r"\{2\}"), ("(5)", "5"),
    ("-(-5)", "5"),
    ("2ab", "2ba"), ("5 yrs", "5"), ("5 dogs", "5"), (r"\sqrt{2}a", r"a\sqrt{2}"),
}  # fmt: skip
"""Right by mathematics, wrong by the paper's strict rule."""

PAPER_ACCEPTS = {("aB", "Ab"), ("AB", "ab"), (r"-2\frac{1}{2}", "-1.5")}
"""Wrong by mathematics, right by the paper's rule: it ignores case, and adds 1/2 to -2."""


@pytest.mark.parametrize(("answer", "reference", "is_equal"), PAIRS)
def test_answers_are_judged_as_by_hand(answer: str, reference: str, is_equal: bool) -> None:
    verdict = same_math(answer, reference)
    assert verdict.is_correct == is_equal, verdict.reason
    assert verdict.is_graded
    assert verdict.reason


@pytest.mark.parametrize(("answer", "reference", "is_equal"), NUMBERS)
def test_numbers_are_judged_as_by_hand(answer: str, reference: str, is_equal: bool) -> None:
    assert same_number(answer, reference) == is_equal


@pytest.mark.parametrize(
    ("answer", "reference", "is_equal"),
    [
        ("13_5", "13_7", False), ("13_{5}", "13_5", True), ("13_5", "13", True),
        (r"5\text{ apples and }3\text{ pears}", "5", False), (r"2\text{ and }3", "2,3", True),
        (r"5 \mod 7", "5", False), (r"5\pmod{7}", r"5 \pmod 7", True), (r"5\ldots", "5", False),
        ("5 million", "5", False), (r"5\text{ million}", "5", False), ("–5", "-5", True),
        ("–5", "5", False), ("minus 5", "5", False), ("5k", "5", False),
    ],
)  # fmt: skip
def test_what_math_verify_would_leave_out_makes_a_difference(
    answer: str, reference: str, is_equal: bool
) -> None:
    verdict = same_math(answer, reference)
    assert verdict.is_correct == is_equal, verdict.reason


@pytest.mark.parametrize(("answer", "reference", "is_equal"), PAIRS)
def test_the_papers_rule_differs_where_it_is_strict(
    answer: str, reference: str, is_equal: bool
) -> None:
    verdict = same_in_paper(answer, reference)
    differs = (answer, reference) in PAPER_DIFFERS
    accepts = (answer, reference) in PAPER_ACCEPTS
    assert verdict.is_correct == ((is_equal and not differs) or accepts), verdict.reason


def test_the_agreement_that_the_document_states() -> None:
    """docs/problems.md: 154 of 214 pairs, of the others 57 too strict and 3 too lenient."""
    assert len(PAIRS) == 214
    assert len({(answer, reference) for answer, reference, _ in PAIRS}) == 214
    assert (len(PAPER_DIFFERS), len(PAPER_ACCEPTS)) == (57, 3)
    equal = {(answer, reference) for answer, reference, is_equal in PAIRS if is_equal}
    assert equal >= PAPER_DIFFERS
    assert not equal & PAPER_ACCEPTS


@pytest.mark.parametrize(
    "hostile",
    [
        "10**10**10", "10^{10^{10}}", "9^9^9", "2^{10000000}", "(1+x)^{100000}", "5!!!!!",
        "10000000!", "(10^{9})!!", "{" * 400, "{" * 400 + "}" * 400, "(" * 300 + ")" * 300,
        "9" * 401, "-" * 400 + "1", "x" * (MAX_CHARACTERS + 1), "\u202e5\x00", "\\frac{" * 100,
    ],
)  # fmt: skip
def test_hostile_answers_are_refused_without_working_them_out(hostile: str) -> None:
    for rule in (same_math, same_in_paper):
        verdict = rule(hostile, "5")
        assert not verdict.is_correct
        assert verdict.is_graded


def test_a_large_reference_is_matched_by_its_text() -> None:
    assert same_math("2^{10000000}", "2^{10000000}").is_correct
    assert same_math("x" * (MAX_CHARACTERS + 1), "x" * (MAX_CHARACTERS + 1)).is_correct


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="0123456789+-*/^x{}()[],.\\ frac=sqrt%$", max_size=12))
def test_the_papers_rule_never_raises(text: str) -> None:
    same_in_paper(text, "42")
    same_in_paper("42", text)
