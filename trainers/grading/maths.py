r"""Decide whether two mathematical answers are equal: `\frac{1}{2}` and 0.5, `(x+1)^2` expanded.

Equality is math-verify's; around it stand checks of what it would let pass. Nothing here bounds
the time: hostile answers go through `trainers.grading.pool`.
"""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass
from typing import Any

from trainers.grading.answer_lists import Elements, elements, same_words
from trainers.grading.numbers import final_number, hedge, is_factor, tidy

MAX_CHARACTERS = 1000
"""Longer answers are refused unread, unless they are the reference itself."""

MAX_DEPTH = 12
_LARGE = re.compile(r"\^\{?\d{5,}|\d\^\{?\d+\^|\d{5,}\}?\)?!|!!|\*\*\d+\*\*")
"""Powers and factorials that take forever, refused at once unless the reference has such, too. The
rest is left to the time limit."""
_DROPPED = re.compile(r"\\(?:[bp]?mod|[lc]?dots)(?![A-Za-z])|…")
_BASE = re.compile(r"\d\s*_\s*\{?(\d+)")
_SECOND = re.compile(r"\d[^\d]*\\text\{[^{}]*\w[^{}]*\}[^{}\d^_]*\d")
"""What math-verify leaves out: a modulus, dots, a base, a second quantity ('5 ft and 3 in')."""
_PLAIN = re.compile(
    r"(?:\\?\$)? ?[-+]?[0-9.,]+(?:/[0-9]+)? ?(?:\\?%|\\text\{[A-Za-z ]{2,}\}|[A-Za-z ]{2,})?",
    re.ASCII,
)
"""A number with its currency, percent sign or unit; '5x' is none."""
_LAST_LETTERS = re.compile(r"(?<=[\d})])\s*(?!i$)[a-z]{1,4}$")
"""In braces, math-verify does not take the last ones of '2ab' or '3c' for a unit."""
_IN_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}")


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and why."""

    is_correct: bool
    reason: str
    is_graded: bool = True
    """False when no verdict was reached (out of time or memory): counted, and taken as wrong."""


def same_math(answer: str, reference: str) -> Verdict:
    """Whether `answer` is mathematically equal to `reference`; both may be LaTeX.

    One answer is asked for: '17 or 18' is not 18, and neither is 'less than 18'. An equation counts
    by its right side, but not if it is false ('3=5' is not 5). Order does not matter in sets, and
    in lists of numbers; (1,2) and [1,2] differ, and so do [5] and 5. Words, and lists of them or of
    single letters, are compared as text, in their order: 'ABC' is not 'CBA' (see `is_product`).
    Decimals agree with exact values to six significant digits (see `_decimals`).
    """
    given, wanted = clean(answer), clean(reference)
    if not given:
        return Verdict(False, "empty answer")
    if given == wanted:
        return Verdict(True, "same text")
    if len(given) > MAX_CHARACTERS:
        return Verdict(False, f"{len(given)} characters; at most {MAX_CHARACTERS} are read")
    if (large := _LARGE.search(given)) and not _LARGE.search(wanted):
        return Verdict(False, f"'{large[0]}' is too large to work out")
    if _depth(given) > max(MAX_DEPTH, _depth(wanted)):
        return Verdict(False, f"nested more than {MAX_DEPTH} deep")
    if (doubt := hedge(given)) and not hedge(wanted):
        return Verdict(False, f"hedged by '{doubt}'")
    if dropped := left_out(given, wanted):
        return Verdict(False, f"'{dropped}' would be left out of the comparison")
    if _PLAIN.fullmatch(given) and _PLAIN.fullmatch(wanted):
        left, right = final_number(given), final_number(wanted)
        if left is not None and left == right:
            return Verdict(True, "same number")
        if "%" not in given + wanted and left and right and left.denominator == right.denominator:
            return Verdict(False, "different numbers")
    if (same := same_words(given, wanted)) is not None:
        return Verdict(same, "words, compared as text")
    if re.match(r"[-+]\s*[-+]", given) and not re.match(r"[-+]\s*[-+]", wanted):
        return Verdict(False, "two signs in a row")
    return _same_expression(given, wanted)


def left_out(given: str, wanted: str) -> str | None:
    """What math-verify would leave out of an answer although it makes a difference."""
    if (found := _DROPPED.search(given)) and not _DROPPED.search(wanted):
        return found[0]
    bases = _BASE.findall(given), _BASE.findall(wanted)
    if all(bases) and bases[0] != bases[1]:
        return f"base {bases[0][0]}"
    if final_number(wanted) is not None and (found := _SECOND.search(given)):
        return found[0]
    return None


def clean(text: str) -> str:
    """Take off what surrounds an answer: dollar signs, a full stop, spaces, typographic minus."""
    text = tidy(text)
    text = text.removesuffix(".").strip()
    if len(text) > 1 and text[0] == text[-1] == "$":
        text = text.strip("$").strip()
    text = re.sub(r"^\\\((.*)\\\)$|^\\\[(.*)\\\]$", lambda m: m[1] or m[2] or "", text, flags=re.S)
    if (inner := _IN_TEXT.fullmatch(text)) and _PLAIN.fullmatch(inner[1].strip()):
        text = inner[1].strip()  # \text{7 apples}
    text = re.sub(r"\^?(?:°|\\degree(?![A-Za-z]))", r"^\\circ", text)
    text = re.sub(r"\\varnothing(?![A-Za-z])|∅|^\\\{\s*\\\}$", r"\\emptyset", text)
    text = re.sub(r"(?<![\w}])(\d+) +(\d+)/(\d+)(?!\d)", r"(\1+\\frac{\2}{\3})", text)  # 7 3/4
    return text.strip()


def _same_expression(given: str, wanted: str) -> Verdict:
    expected, found = parse(wanted), parse(given)
    if not expected:
        return Verdict(False, "the reference cannot be read as mathematics; only its text counts")
    if not found:
        return Verdict(False, "the answer cannot be read as mathematics")
    if false := _false_equation(found[0]):
        return Verdict(False, f"the equation {false} is false")
    if _mixes_set_and_list(expected[0], found[0]):
        return Verdict(False, "one has brackets, the other is a set without order")
    mine, theirs = elements(given), elements(wanted)
    is_single = len(mine.items) == len(theirs.items) == 1
    if is_single and (mine.brackets == "[]") != (theirs.brackets == "[]"):
        return Verdict(False, "only one of them is in square brackets")
    is_list = theirs.brackets == "" and mine.brackets in ("", r"\{\}")
    if is_list and (_repeats(mine) or _repeats(theirs)):
        return Verdict(_matched(mine, theirs), "lists with an element that repeats, compared")
    is_equal = _is_equal(expected, found)
    is_alike = len(mine.items) == len(theirs.items) > 1 and mine.brackets == theirs.brackets
    if not is_equal and is_alike and "." in given + wanted:
        is_equal = _matched(mine, theirs)  # each decimal to its own digits
    return Verdict(is_equal, "equal expressions" if is_equal else "different expressions")


def _is_equal(expected: list[Any], found: list[Any]) -> bool:
    from math_verify import verify

    digits = _decimals(expected[0], found[0])
    return bool(verify(expected, found, float_rounding=digits, timeout_seconds=None))


def _repeats(part: Elements) -> bool:
    """Whether an element stands there twice: '2,2' are two roots, not one."""
    if len(part.items) < 2:
        return False
    values = [str(found[0]) for item in part.items if (found := parse(item))]
    return len(set(values)) < len(values)


def _matched(mine: Elements, theirs: Elements) -> bool:
    """Whether each element equals one of the other list's; in order, if there are brackets."""
    if len(mine.items) != len(theirs.items):
        return False
    left = [parse(item) for item in theirs.items]
    for item in mine.items:
        candidates = left[:1] if mine.brackets not in ("", r"\{\}") else left
        found = parse(item)
        equal = next((e for e in candidates if e and found and _is_equal(e, found)), None)
        if equal is None:
            return False
        left.remove(equal)
    return True


def parse(text: str) -> list[Any]:
    """What math-verify makes of the content of one box: an expression, or its text; [] if nothing.

    Without a signal-based timeout, which fails outside the main thread.
    """
    from math_verify import LatexExtractionConfig
    from math_verify import parse as parse_with_math_verify

    if not is_balanced(text) or "\\boxed" in text:
        return []  # it would choose a part of the text
    text = _LAST_LETTERS.sub(lambda m: f"{{{m[0]}}}" if is_factor(m[0]) else m[0], text)
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    found: list[Any] = parse_with_math_verify(
        f"\\boxed{{{text}}}",
        extraction_config=[
            LatexExtractionConfig(try_extract_without_anchor=False, boxed_match_priority=0)
        ],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,
    )
    return found


def is_balanced(text: str) -> bool:
    """Whether every brace is closed, and none before it was opened."""
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    return depth == 0


def _false_equation(expression: Any) -> str | None:
    """An equation of numbers whose sides differ: '3=5' ends in 5 and must not pass for it."""
    import sympy
    from latex2sympy2_extended.logic import And

    parts = expression._unsorted_args if isinstance(expression, And) else [expression]
    for part in parts:
        if isinstance(part, sympy.Eq) and not part.free_symbols:
            difference = (part.lhs - part.rhs).doit()
            if not difference.equals(0):
                return f"{part.lhs} = {part.rhs}"
    return None


def _depth(text: str) -> int:
    """How deep its brackets are nested."""
    depth = deepest = 0
    for bracket in re.findall(r"[({\[)}\]]", text):
        depth += 1 if bracket in "({[" else -1
        deepest = max(deepest, depth)
    return deepest


def _mixes_set_and_list(left: Any, right: Any) -> bool:
    """math-verify takes the pair (1,2) for the list 1,2 in any order."""
    import sympy

    brackets, sets = (sympy.Tuple, sympy.Interval), sympy.FiniteSet
    return any(
        isinstance(a, brackets) and isinstance(b, sets) for a, b in ((left, right), (right, left))
    )


def _decimals(expected: Any, found: Any) -> int:
    """Decimals to compare decimals with: six significant digits of the reference. At least six
    decimals where both have finitely many: 12.34561 is not 12.34562."""
    import sympy

    if not (isinstance(expected, sympy.Expr) and expected.is_number and expected.is_finite):
        return 6
    size = abs(complex(expected.evalf(6)))
    if size == 0:
        return 6
    digits = min(5 - math.floor(math.log10(size)), 300)
    return max(6, digits) if _ends(expected) and _ends(found) else digits


def _ends(value: Any) -> bool:
    """Whether a decimal writes the number out."""
    import sympy

    if isinstance(value, sympy.Float):
        return True
    if not isinstance(value, sympy.Rational):
        return False
    rest = int(value.q)
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1
