"""Read numbers as logs print them: plain, as numpy and torch wrap them, quoted, not finite."""

from __future__ import annotations

import re
from typing import Any

NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|nan|inf(?:inity)?)"
WRAPPED = rf"[A-Za-z_][\w.]*\(\s*\[?\s*({NUMBER})\s*\]?\s*(?:,[^()]*(?:\([^()]*\)[^()]*)*)?\)"
"""np.float64(0.5), tensor(0.5, device='cuda:0'): the bracket has to close, or the line was cut."""
PRINTED = re.compile(rf"^\s*(?:{WRAPPED}|({NUMBER}))(?![\w.])", re.IGNORECASE)
WITH_COMMA = re.compile(r"^\s*[-+]?\d+,\d+(?:[eE][-+]?\d+)?\s*$")
FRACTION = re.compile(r"^\s*(\d+)\s*/\s*(\d+)\s*$")


def number_at(text: str) -> str | None:
    """The digits of a number that `text` begins with; None if it begins with something else."""
    found = PRINTED.match(text)
    return (found[1] or found[2]) if found else None


def number(value: Any, has_decimal_comma: bool = False) -> float | None:
    """A number, also one that JSON or CSV can only spell ('NaN'); None for anything else."""
    if isinstance(value, bool | int | float):
        return float(value)
    if not isinstance(value, str):
        return None
    text = value.strip().strip("'\"")
    if has_decimal_comma and WITH_COMMA.match(text):
        text = text.replace(",", ".")
    try:
        return float(text)
    except ValueError:
        found = PRINTED.match(text)
        is_wrapped = found is not None and found[1] is not None and found.end() == len(text)
        return float(found[1]) if found and is_wrapped else None


def fraction(value: Any) -> tuple[int, int] | None:
    """'12/60' as step 12 of 60."""
    found = FRACTION.match(value) if isinstance(value, str) else None
    return (int(found[1]), int(found[2])) if found else None
