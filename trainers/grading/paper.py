r"""Grade mathematics as arXiv 2605.24202's code does: normalized text, else sympy on strict terms.

Strict: an integer is only matched by an integer, and `\frac{6}{8}` is not `\frac{3}{4}`. Units,
percent and dollar signs are dropped. Written from the rules, not copied.

Its slips are kept, since a comparison with its numbers needs them: letters lose their case, and
`-2\frac{1}{2}` is -2+1/2 = -1.5, as in the code that it shares with rLLM.
"""

from __future__ import annotations

import re
from typing import Any

from trainers.grading.maths import MAX_CHARACTERS, Verdict

_DROPPED = (
    r"\left", r"\right", r"\!", r"\,", r"\;", r"\:", r"\ ", r"\$", "$", r"\%", "%", r"^{\circ}",
    r"^\circ", r"\circ", "°", "dollars", "dollar", "degrees", "degree", "percent",
)  # fmt: skip
_UNITS = re.compile(
    r"(?<=[\d}])\s*(?:cm|mm|km|m|inches|inch|feet|foot|ft|yards?|miles?|meters?|metres?|centimeters?|"
    r"hours?|minutes?|seconds?|days?|weeks?|months?|years?|cents?|units?|points?|pounds?|grams?|kg)"
    r"\s*(?:\^\{?\d\}?)?$"
)
_MACROS = {
    r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cdot": "*", r"\times": "*", r"\div": "/",
    r"\pi": "pi", r"\infty": "oo", "∞": "oo", "π": "pi", "√": r"\sqrt", "−": "-",
}  # fmt: skip
MAX_LETTERS = 2
"""Expressions with more of them are not worked out; those of names such as 'pi' count."""
_NAMES = {"sqrt", "pi", "oo", "sin", "cos", "tan", "log", "ln", "exp", "abs"}


def same_in_paper(answer: str, reference: str) -> Verdict:
    """Whether the paper's code would call `answer` right."""
    given, wanted = normalize(answer), normalize(reference)
    if not given:
        return Verdict(False, "empty answer")
    if given == wanted:
        return Verdict(True, "same normalized text")
    if len(given) > MAX_CHARACTERS:
        return Verdict(False, f"{len(given)} characters; at most {MAX_CHARACTERS} are read")
    left, right = elements(given), elements(wanted)
    if len(left) != len(right) or (
        len(right) > 1 and (given[0], given[-1]) != (wanted[0], wanted[-1])
    ):
        return Verdict(False, "different brackets or number of elements")
    for mine, theirs in zip(left, right, strict=True):
        if not (verdict := _same_element(mine, theirs)).is_correct:
            return verdict
    return Verdict(True, "equal expressions")


def normalize(text: str) -> str:
    """Text without units, spaces and decoration, e.g. '1,200 cm' is '1200'."""
    text = text.strip().removesuffix(".").strip()
    text = re.sub(r"(?<=\d)~(?=\\)|(?<=\{)~", " ", text)
    text = re.sub(r"\\(?:text|mathrm|textbf)\{([^{}]*)\}", r" \1 ", text)
    for macro, plain in _MACROS.items():
        text = text.replace(macro, plain)
    for word in _DROPPED:
        text = text.replace(word, "")
    text = _UNITS.sub("", text.strip())
    text = re.sub(r"(?<=\d)[,](?=\d{3}(?!\d))", "", text.replace("{,}", ","))
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"(?<=\d)\s*\\frac\{(\d+)\}\{(\d+)\}", r" \1/\2", text)  # mixed numbers
    text = re.sub(r"(\d+)\s+(\d+/\d+)", r"\1+\2", text)
    text = re.sub(r"\\frac\{(-?\d+)\}\{(-?\d+)\}", r"\1/\2", text)
    text = re.sub(r"\\sqrt\s*(\d)", r"\\sqrt{\1}", text)
    text = re.sub(r"\s+", "", text)
    if re.fullmatch(r"-?\d*\.\d+|-?\d+\.", text) and float(text).is_integer():
        text = str(int(float(text)))
    return text.lower()


def elements(text: str) -> list[str]:
    """The elements of a tuple or interval; the text itself if it is none."""
    if len(text) > 2 and text[0] in "([" and text[-1] in ")]" and "," in text:
        inner = text[1:-1]
        if not re.search(r"[()\[\]]", inner):
            return inner.split(",")
    return [text]


def _same_element(given: str, wanted: str) -> Verdict:
    if given == wanted:
        return Verdict(True, "same normalized text")
    if _is_fraction(given) and _is_fraction(wanted):
        return Verdict(False, "fractions written differently: they are not simplified")
    if _is_integer(given) != _is_integer(wanted):
        return Verdict(False, "an integer is only matched by an integer")
    if _is_integer(given):
        return Verdict(int(given) == int(wanted), "integers compared")
    if len(set(re.findall(r"[a-z]", re.sub("sqrt|frac", "", given + wanted)))) > MAX_LETTERS:
        return Verdict(False, f"more than {MAX_LETTERS} different letters: only the text counts")
    left, right = _expression(given), _expression(wanted)
    if left is None or right is None:
        return Verdict(False, "not an expression that is worked out")
    import sympy

    is_equal = bool(sympy.simplify(left - right) == 0)
    return Verdict(is_equal, "equal expressions" if is_equal else "different expressions")


def _is_fraction(text: str) -> bool:
    return bool(re.fullmatch(r"-?\d+/\d+", text))


def _is_integer(text: str) -> bool:
    return bool(re.fullmatch(r"-?\d{1,400}", text, re.ASCII))


def _expression(text: str) -> Any:
    """The expression as sympy sees it, or None. Only known names and single letters get there:
    sympy evaluates its input as Python."""
    from sympy.parsing.sympy_parser import (
        implicit_multiplication,
        parse_expr,
        standard_transformations,
    )

    text = re.sub(r"\\(sin|cos|tan|log|ln|exp)\b", r"\1", text)
    for _ in range(text.count("\\")):  # from the inside out
        text = re.sub(r"\\sqrt\{([^{}]*)\}", r"sqrt(\1)", text)
        text = re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"((\1)/(\2))", text)
    if not re.fullmatch(r"[\da-z+\-*/^().]+", text, re.ASCII):
        return None
    words = set(re.findall(r"[a-z]{2,}", text)) - _NAMES
    # Exponents of more than a digit, and towers of them, are not worked out.
    if words or re.search(r"\^(?![a-z\d])|\^\d{2}|\^\d\^|\*\*|\.[a-z(]", text):
        return None
    try:
        found = parse_expr(
            text.replace("^", "**"),
            transformations=(*standard_transformations, implicit_multiplication),
        )
    except Exception:  # whatever Python makes of it: parse_expr documents no error of its own
        return None
    return found if hasattr(found, "free_symbols") else None
