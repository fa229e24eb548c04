"""Take answers apart into elements, and compare words and lists of them as text, in their order."""

from __future__ import annotations

import re
from dataclasses import dataclass

from trainers.grading.numbers import is_product


@dataclass(frozen=True)
class Elements:
    """The elements of an answer, and what stands around them."""

    brackets: str
    r"""'()', '[)', '\{\}' and the like; '' for none."""
    items: tuple[str, ...]


_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|normal)?|math(?:rm|bf|it|sf)|mbox|operatorname)\s*\{([^{}]*)\}"
)
_ASSIGNED = re.compile(r"[A-Za-z]\s*=(?!.*=)")
_SEPARATOR = re.compile(r"\s*(?:[,;]\s*and\b|[,;]|\band\b|\\(?:to|rightarrow)\b|→|-+>)\s*")


def same_words(given: str, wanted: str) -> bool | None:
    """Whether they are the same word or list; None where the reference is mathematics."""
    theirs, mine = _words(wanted), _words(given)
    if theirs is None:
        return None
    if mine and len(mine.items) == len(theirs.items) == 1:
        left, right = mine.items[0], theirs.items[0]
        if "[]" not in (mine.brackets, theirs.brackets) and left == right:
            return True
        if is_product(right) and not _TEXT.search(wanted):
            return sorted(left) == sorted(right)
    if len(theirs.items) == 1 and len(theirs.items[0]) == 1:
        return None  # one letter: math-verify compares it
    if not _TEXT.search(wanted) and any(is_product(item) for item in theirs.items):
        return None
    mine = mine or _words(_ASSIGNED.sub("", given, count=1))
    if mine is None:
        return None if theirs.brackets else False
    keys, wanted_keys = [*map(_word_key, mine.items)], [*map(_word_key, theirs.items)]
    if theirs.brackets == r"\{\}":
        return sorted(keys) == sorted(wanted_keys) and mine.brackets in ("", r"\{\}")
    is_alike = len(keys) == 1 or mine.brackets in (theirs.brackets, r"\{\}")
    return keys == wanted_keys and is_alike


def _words(text: str) -> Elements | None:
    """The elements of a text that consists of letters and separators; None if it does not."""
    plain = text
    for _ in range(2):  # \textbf{\text{A}}
        plain = _TEXT.sub(r" \1 ", plain)
    plain = re.sub(r"\\(?:[,;: ]|q?quad\b|cdot\b|times\b)|[*$]", " ", plain)
    found = elements(plain.strip(), _SEPARATOR)
    items = [
        re.sub(r"\s+", "", item.strip().removeprefix("(").removesuffix(")")) for item in found.items
    ]
    if len(items) == 1 and re.fullmatch(r"(?:[A-Z]-){2,}[A-Z]", items[0]):
        items = items[0].split("-")
    if not all(re.fullmatch(r"[A-Za-z]+", item) for item in items):
        return None
    return Elements(
        "" if found.brackets == "()" and len(items) == 1 else found.brackets, tuple(items)
    )


def _word_key(word: str) -> str:
    """'YES' and 'Yes' are 'yes'; 'ABC' and 'abc' differ, as quantities do."""
    lower = word.lower()
    return word if len(word) == 1 or is_product(lower) else lower


_COMMA = re.compile(r",(?!(?<=\d,)\d{3}(?!\d))")
"""A comma that does not set thousands apart."""


def elements(text: str, separator: re.Pattern[str] = _COMMA) -> Elements:
    """The parts of a text between separators outside of brackets."""
    text = re.sub(r"\\left(?![A-Za-z])|\\right(?![A-Za-z])", "", text).strip()
    brackets = ""
    if text.startswith("\\{") and text.endswith("\\}"):
        brackets, text = r"\{\}", text[2:-2]
    elif text[:1] in ("(", "[") and text[-1:] in (")", "]") and _is_one_group(text):
        brackets, text = text[0] + text[-1], text[1:-1]
    depth = 0
    starts, ends = [0], []
    depths = []
    for character in text:
        depth -= character in ")]}"
        depths.append(depth)
        depth += character in "([{"
    for found in separator.finditer(text):
        if found.end() > found.start() and depths[found.start()] == 0:
            ends.append(found.start())
            starts.append(found.end())
    return Elements(
        brackets,
        tuple(text[i:j].strip() for i, j in zip(starts, [*ends, len(text)], strict=True)),
    )


def _is_one_group(text: str) -> bool:
    """Whether the first bracket is closed by the last character."""
    depth = 0
    for position, character in enumerate(text):
        depth += (character in "([") - (character in ")]")
        if depth == 0:
            return position == len(text) - 1
    return False
