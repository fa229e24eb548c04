"""Read an answer, a choice, a verdict or strategies out of a response, saying whether it parsed.

The rules and fallbacks are those of arXiv 2605.24202's code (see docs/workflows.md). A fallback is
used so that an episode can go on, but never silently: `Reading.parse_ok` is False, and the ledger
counts it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from gradlab.workflows import Reading


def last_boxed(text: str) -> str | None:
    r"""Content of the last balanced `\boxed{…}`, or None."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    begin = start + len("\\boxed{")
    depth = 1
    for position in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[begin:position]
    return None


def boxed_answer(text: str) -> Reading[str | None]:
    r"""The last `\boxed{…}` after any reasoning block; None if there is none."""
    answer = last_boxed(text.rpartition("</think>")[2])
    return Reading(answer, answer is not None)


_FENCE = re.compile(r"(?P<indent>[ \t]*)```[ \t]*(?P<language>[^`\n]*)")
_PYTHON = {"python", "python3", "py"}


@dataclass
class _Block:
    """A fenced block that is being read."""

    indent: str
    is_python: bool
    lines: list[str] = field(default_factory=list)
    is_closed: bool = False


def fenced_code(text: str) -> Reading[str | None]:
    """The last block fenced as ```python after any reasoning block; None if nothing is fenced.

    Fallbacks: a last such block that is not closed, or the last block that is fenced as something
    else.
    """
    blocks: list[_Block] = []
    is_inside = False
    for line in text.rpartition("</think>")[2].split("\n"):
        fence = _FENCE.fullmatch(line)
        if fence is None:
            if is_inside:
                blocks[-1].lines.append(line.removeprefix(blocks[-1].indent))
        elif is_inside and not fence["language"].strip():
            blocks[-1].is_closed, is_inside = True, False
        else:  # also inside a block, when it names a language: the one before was never closed
            language = fence["language"].lower().split()
            blocks.append(_Block(fence["indent"], bool(language) and language[0] in _PYTHON))
            is_inside = True
    if not blocks:
        return Reading(None, False)
    last = ([block for block in blocks if block.is_python] or blocks)[-1]
    return Reading("\n".join(last.lines), last.is_python and last.is_closed)


def boxed_choice(text: str, num_candidates: int) -> Reading[int]:
    r"""0-based index: first `\boxed{integer}`, else first standalone digit, else candidate 0."""
    boxed = re.search(r"\\boxed\{\s*(\d+)\s*\}", text)
    if boxed and 1 <= int(boxed[1]) <= num_candidates:
        return Reading(int(boxed[1]) - 1, True)
    for digit in re.finditer(r"(?<![\w.])([1-9])(?![\w.]*\d)", text):
        if int(digit[1]) <= num_candidates:
            return Reading(int(digit[1]) - 1, False)
    return Reading(0, False)


def boxed_verdict(text: str) -> Reading[bool]:
    r"""First `\boxed{Correct|Incorrect}`, any case; unreadable counts as 'not accepted'."""
    verdict = re.search(r"\\boxed\{\s*(?:\\text\{)?\s*(correct|incorrect)", text, re.IGNORECASE)
    if verdict is None:
        return Reading(False, False)
    return Reading(verdict[1].lower() == "correct", True)


def numbered_strategies(text: str, most: int) -> Reading[tuple[str, ...]]:
    """`STRATEGY n:` blocks, else a numbered list, else lines over 10 characters, else all of it."""
    blocks = re.findall(
        r"STRATEGY\s*(\d+)\s*:\s*(.*?)(?=STRATEGY\s*\d+\s*:|\Z)", text, re.DOTALL | re.IGNORECASE
    )
    found = [body.strip() for _, body in sorted(blocks, key=lambda block: int(block[0][:9]))]
    found = [body for body in found if body]
    if found:
        return Reading(tuple(found[:most]), True)
    numbered = re.findall(r"^\s*\d+[.)]\s*(.+)$", text, re.MULTILINE)
    lines = numbered or [line.strip() for line in text.splitlines() if len(line.strip()) > 10]
    return Reading(tuple(lines[:most]) or (text.strip() or "solve it step by step",), False)
