"""Give every role one colour, everywhere: Okabe-Ito, told apart with any colour vision."""

from __future__ import annotations

import zlib

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


def role_color(role: str) -> str:
    """The role's colour; a role we do not know gets the same fallback in every run."""
    known = ROLE_COLORS.get(role)
    return known or FALLBACK_COLORS[zlib.crc32(role.encode()) % len(FALLBACK_COLORS)]
