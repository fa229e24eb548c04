"""Decide whether two final answers are the same number."""

from __future__ import annotations

import re
from fractions import Fraction

_NUMBER = re.compile(
    r"""
    (?P<sign>-)?\s*
    (?:\\?[$€£])?\s*
    (?P<whole>\d{1,3}(?:,\d{3})+|\d+)?   # 1,200 or 1200
    (?P<decimals>\.\d+)?
    (?:\s*/\s*(?P<denominator>\d+))?
    """,
    re.VERBOSE | re.ASCII,
)
_FRACTION = re.compile(r"(-?)\\[dt]?frac\s*(?:\{(\d+)\}|(\d))\s*(?:\{(\d+)\}|(\d))", re.ASCII)
_OPERATION = re.compile(
    r"[\^_+√±×÷·¹²³⁰-ⁿ]|\\(?!text|math(?:rm|bf|it|sf)\b|boldsymbol\b|left|right|quad|\W|$)"
)
"""Makes what stands around a number more than a unit: 'x+1', '5\\pi', '\\sqrt{3}', 'x^2'."""
_FUNCTION = re.compile(
    r"\b(?:sqrt|root|log|ln|exp|(?:a|arc)?(?:sin|cos|tan|csc|cot)h?|abs|factorial|mod)\b",
    re.IGNORECASE,
)
_BEFORE = re.compile(
    r"(?<![A-Za-z])-|[A-Za-z]\s*\($|(?<![A-Za-z])[a-z]$|"
    r"\b(?:times|more|power|exponent|floor|ceil(?:ing)?|(?:arc)?sech?)[\s({]*$"
)
"""A minus that is not the number's own, a function, a variable: '-(5)', 'f(5)', 'x5', 'floor 5'."""
_AFTER = re.compile(
    r"\s*[)}]*\s*(?:!|[-*/:]\s*(?:[A-Za-z]\b|[({\\]|$)|"
    r"(?:\\?%)?\s*of\s+[A-Za-z]\b|(?:to|times\s+[A-Za-z])\s*$)|"
    r"[)}]*(?:\s*\\(?:text|mathrm)\{)?(?:"
    r"(?:\s*[xyzi]|\s+(?:[bcejknpqruvwMB]|a(?!\s+[A-Za-z]{2}))|[abcejknp-rt-wKMB])"
    r"(?![A-Za-z]|\.\s?[a-z])|"
    r"\s*(?:pi|tau|phi|tens|score|gross|grand|lakhs?|crores?|mil|mn|bn)\b)"
)
"""A factorial, an operation, a variable, a scale: '5 !', '5/x', '5i', '5k', '5 pi'; 5m has a
unit."""
_RUN = re.compile(r"[)}]*(?:\s*([a-z]{2,4})|([A-Z]{2,4}))[\s)}]*$")
_UNITS = {
    "am", "aud", "bps", "cad", "cal", "cc", "cl", "cm", "cny", "ct", "cts", "db", "dl", "dm",
    "eur", "ev", "ft", "gal", "gb", "gbp", "ghz", "gw", "hkd", "hl", "hp", "hr", "hrs", "hz",
    "in", "inr", "jpy", "kb", "kcal", "kev", "kg", "khz", "kj", "km", "kmh", "kpa", "kph", "kv",
    "kw", "kwh", "lb", "lbs", "mb", "mev", "mg", "mhz", "mi", "min", "mins", "mj", "ml", "mm",
    "mph", "ms", "mth", "mths", "mv", "mw", "nd", "nm", "ns", "oz", "pa", "pcs", "pg", "pgs",
    "pkg", "pkgs", "pm", "ppl", "psi", "pt", "pts", "qt", "rd", "rmb", "rpm", "rs", "sec",
    "secs", "sq", "sqft", "sqm", "st", "tb", "tbsp", "th", "tsp", "usd", "wk", "wks", "yd",
    "yr", "yrs",
}  # fmt: skip
"""What a short run of letters after a number may be; other runs are variables: '2ab', '3xyz'."""
_UNIT_POWER = re.compile(
    r"(\d\s*(?:\\[,;: ])?\s*(?:\\(?:text|mathrm)\{\s*(?:[^{}\d]*[A-Za-z]{2}[^{}\d]*|m\s*)\}|"
    r"(?:[kcdm]?m|in|ft|yd|mi|inches|feet|units?|met(?:er|re)s?)(?![A-Za-z])))"
    r"\s*(?:\^\s*\{?[23]\}?|[²³])"
)
"""A unit of area or volume: '12\\text{ cm}^2', '5 m^2'."""
_TIE = re.compile(r"(?<=[\d}])\s*~\s*(?=[A-Za-z\\])|(?<=\{)~(?=[A-Za-z])")
"""LaTeX's space that does not break, before a unit; elsewhere '~' says 'about'."""
_GROUPS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?: |\\[,;: ]|~)\d{3})+(?!\d)", re.ASCII)
"""Thousands set apart by spaces: '12 000'."""
_HEDGE = re.compile(
    r"\b(?:not|no|none|neither|nor|never|wrong|incorrect|less|fewer|greater|least|most|about|around|"
    r"more|roughly|approx\w*|nearly|almost|over|under|above|below|between|or|maybe|than|plus|minus|"
    r"negative|divided|multiplied|reciprocal|inverse|opposite|"
    r"hundreds?|thousands?|(?:m|b|tr)illions?|dozens?|half|twice|double|triple|squared|cubed)\b|"
    r"n['’]t\b|[<>≤≥≈~≠]",
    re.IGNORECASE,
)
"""Says that the number is not the answer, or not all of it: 'less than 72', 'minus 5'."""
_MORE = re.compile(r"(?<=\d)(\s*(?:\\text\{)?\s*)more\b(?!\s+(?:than|or|to)\b)")
"""No hedge: '5 more apples'."""
DASHES = str.maketrans("−–‒－﹣", "-----")
"""Minus signs in print."""
MAX_DIGITS = 400
"""Longer digit strings are not answers; refusing them bounds the time spent on hostile input."""


def tidy(text: str) -> str:
    """Text without what only concerns print: '12\\,000' is '12000', '5~\\text{cm}' has a space."""
    text = text.translate(DASHES).replace("\\!", "").replace("{,}", ",").strip()
    text = _GROUPS.sub(lambda found: re.sub(r"\D", "", found[0]), text)
    return _TIE.sub(" ", text)


def hedge(text: str) -> str | None:
    """What says that a number in `text` is not the answer, or not all of it; None if nothing."""
    found = _HEDGE.search(_MORE.sub(r"\1", text))
    return found[0] if found else None


def is_product(letters: str) -> bool:
    """Whether letters in a row multiply, so that 'xy' is 'yx'; else they are a word.

    They do in lower case if there are two (but not with o, as in 'no'), or three or four without a
    vowel, or three or more neighbours in the alphabet ('abc').
    """
    if len(letters) < 2 or not letters.islower():
        return False
    if len(letters) == 2:
        return "o" not in letters
    codes = sorted({ord(letter) for letter in letters})
    has_vowel = bool(set(letters) & set("aeiou"))
    return (len(letters) <= 4 and not has_vowel) or codes[-1] - codes[0] == len(codes) - 1


def is_factor(after: str) -> bool:
    """Whether what follows a number changes it: a variable, an operation, a scale; a unit does
    not."""
    if _AFTER.match(after):
        return True
    found = _RUN.match(after)
    if not found:
        return False
    letters = (found[1] or found[2]).lower()
    return letters not in _UNITS and (is_product(letters) or found[2] is not None)


def final_number(text: str) -> Fraction | None:
    """The number that `text` consists of, exactly: '$1,200.50' and '-3/4' are understood.

    A unit or word around it ('18 dollars') is stripped if exactly one number is left; otherwise,
    and when it is part of a formula ('\\sqrt{3}') or hedged ('less than 72'), None: a guess would
    reward a gamble.
    """
    if len(text) > MAX_DIGITS:
        return None
    cleaned = tidy(text).rstrip(".")
    if fraction := _FRACTION.fullmatch(cleaned):
        sign, above, digit_above, below, digit_below = fraction.groups()
        cleaned = f"{sign}{above or digit_above}/{below or digit_below}"
    cleaned = re.sub(r"\^\{?\\circ\}?|\\degree\b", "", cleaned)
    cleaned = re.sub(r"^\+\s*(?=[\d.])", "", _UNIT_POWER.sub(r"\1", cleaned))
    cleaned = _MORE.sub(r"\1", cleaned)
    found = [m for m in _NUMBER.finditer(cleaned) if m["whole"] or m["decimals"]]
    if len(found) != 1:
        return None
    number = found[0]
    before, after = cleaned[: number.start()].replace("\\left", ""), cleaned[number.end() :]
    around = f"{before} {after}"
    if any(sign.search(around) for sign in (_OPERATION, _HEDGE, _FUNCTION)):
        return None
    if _BEFORE.search(before) or is_factor(after) or (number["sign"] and "|" in before):
        return None
    value = Fraction((number["whole"] or "0").replace(",", "") + (number["decimals"] or ""))
    if number["denominator"]:
        if int(number["denominator"]) == 0:
            return None
        value /= int(number["denominator"])
    return -value if number["sign"] else value


def same_number(answer: str, reference: str) -> bool:
    """Whether both texts are the same number; texts that are no number are equal if identical."""
    left, right = final_number(answer), final_number(reference)
    if left is None or right is None:
        return answer.strip() == reference.strip()
    return left == right
