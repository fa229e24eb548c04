"""Say which form a response has: code, a bare stamp, terse, hedging, an echo of its prompt.

These are the signatures by which a role that lost its job shows it in what it writes: an evaluator
that stops stamping and writes programs, a terse aggregator that starts to explain, a worker that
repeats its plan, siblings that all say the same.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations

from trainers.episodes import Turn

STAMP_TOKENS = 200
"""A verdict that is longer argues."""
TERSE_TOKENS = 30
MIN_CODE_LINES = 3
"""Fewer fenced lines are a quotation."""

_FENCED = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_DOUBT = re.compile(
    r"\b(?:maybe|perhaps|possibly|presumably|not (?:entirely |completely |quite )?(?:sure|certain)|"
    r"unsure|uncertain|unclear|i (?:think|guess|believe|suspect)|it (?:seems|appears|looks like)|"
    r"(?:might|may|could) be|let me (?:double-?check|re-?check|reconsider)|hard to (?:say|tell))\b",
    re.IGNORECASE,
)

Grams = frozenset[tuple[str, ...]]


def has_code(text: str) -> bool:
    """Whether a code fence, closed or not, holds 3 lines or more that are not blank."""
    return any(
        sum(bool(line.strip()) for line in block.split("\n")) >= MIN_CODE_LINES
        for block in _FENCED.findall(text)
    )


def is_stamp(turn: Turn) -> bool:
    """A verdict and little else: readable, at most 200 tokens, no code fence."""
    return turn.parse_ok and len(turn.response_ids) <= STAMP_TOKENS and "```" not in turn.response


def is_terse(turn: Turn) -> bool:
    """Understood, in at most 30 tokens."""
    return turn.parse_ok and len(turn.response_ids) <= TERSE_TOKENS


def hedges(text: str) -> bool:
    """Whether it holds a phrase of doubt (in English)."""
    return _DOUBT.search(text) is not None


def word_grams(text: str, size: int = 3) -> Grams:
    """Every `size` words in a row, in lower case; of fewer words, all of them as one."""
    words = text.lower().split()
    if len(words) < size:
        return frozenset([tuple(words)] if words else [])
    return frozenset(tuple(words[i : i + size]) for i in range(len(words) - size + 1))


def jaccard(one: Grams, other: Grams) -> float:
    """Shared over all; NaN of two empty sets."""
    return len(one & other) / len(one | other) if one or other else float("nan")


def echoed(turn: Turn) -> float:
    """Share of the response's 3-grams that its prompt holds; NaN of fewer than 3 words.

    Shorter responses are no echo, however often their words occur.
    """
    if len(turn.response.split()) < 3:
        return float("nan")
    said = word_grams(turn.response)
    return len(said & word_grams(turn.prompt)) / len(said)


def sibling_indices(turns: Iterable[Turn]) -> list[float]:
    """Jaccard index of every pair of agents of one role that were asked in the same round.

    `turns` are those of one role in one episode; an agent is compared with no turn of its own.
    """
    by_round: dict[int, list[Turn]] = defaultdict(list)
    for turn in turns:
        by_round[turn.round].append(turn)
    found = []
    for asked in by_round.values():
        grams = [word_grams(turn.response) for turn in asked]
        found += [jaccard(one, other) for one, other in combinations(grams, 2)]
    return [index for index in found if index == index]


def form_shares(turns: Sequence[Turn]) -> dict[str, list[float]]:
    """Each form of a role's turns, one value per turn that can have it; of fields of
    `RoleEvaluation`."""
    verdicts = [turn for turn in turns if turn.kind == "verdict"]
    echoes = [echoed(turn) for turn in turns]
    return {
        "code_form": [float(has_code(turn.response)) for turn in turns],
        "stamp_form": [float(is_stamp(turn)) for turn in verdicts],
        "terse": [float(is_terse(turn)) for turn in turns],
        "hedging": [float(hedges(turn.response)) for turn in turns],
        "echo": [share for share in echoes if share == share],
    }
