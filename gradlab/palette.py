"""Give every role one colour, everywhere: Okabe-Ito, told apart with any colour vision."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterable

BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, ORANGE, GREY, BLACK = "#56B4E9", "#E69F00", "#7A7A7A", "#222222"

ROLE_COLORS: dict[str, str] = {
    "generator": BLUE,
    "aggregator": VERMILLION,
    "evaluator": GREEN,
    "orchestrator": PURPLE,
    "worker": SKY,
    "synthesizer": ORANGE,
    "solver": GREY,
}

FALLBACK_COLORS = (BLUE, VERMILLION, GREEN, PURPLE, SKY, ORANGE, GREY)
MORE_COLORS = (
    "#332288",
    "#882255",
    "#999933",
    "#44AA99",
    "#661100",
    "#DDCC77",
    "#AA4499",
    "#117733",
)
"""Muted ones of Paul Tol, where those are taken."""


def role_color(role: str, among: Iterable[str]) -> str:
    """The role's colour among the roles that it is drawn with.

    A role that we do not know has the fallback of its name, in every run where no other has it.
    """
    return _colors(frozenset({role, *among}))[role]


@functools.lru_cache(maxsize=64)
def _colors(roles: frozenset[str]) -> dict[str, str]:
    found = {role: ROLE_COLORS[role] for role in roles if role in ROLE_COLORS}
    strangers = sorted(roles - found.keys())
    for role in strangers:
        color = _by_name(role)
        if color not in found.values():
            found[role] = color
    for role in strangers:
        if role not in found:
            start = FALLBACK_COLORS.index(_by_name(role))
            others = (*FALLBACK_COLORS[start:], *FALLBACK_COLORS[:start], *MORE_COLORS)
            free = (color for color in others if color not in found.values())
            found[role] = next(free, FALLBACK_COLORS[start])
    return found


def _by_name(role: str) -> str:
    return FALLBACK_COLORS[zlib.crc32(role.encode()) % len(FALLBACK_COLORS)]
