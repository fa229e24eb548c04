"""Sums and short programs, made here."""

from __future__ import annotations

import random

from trainers.tasks.problem import Problem
from trainers.tasks.programs import list_programs


def arithmetic(digits: int) -> list[Problem]:
    """Sums of two numbers with `digits` digits each; every pair up to two digits, else 20,000."""
    if not 1 <= digits <= 6:
        raise ValueError(f"task 'arithmetic': difficulty is {digits}; expected 1 to 6 digits")
    low, high = 10 ** (digits - 1), 10**digits - 1
    if digits <= 2:
        pairs = [(a, b) for a in range(low, high + 1) for b in range(low, high + 1)]
    else:
        draw = random.Random(digits)
        pairs = list(
            dict.fromkeys((draw.randint(low, high), draw.randint(low, high)) for _ in range(20_000))
        )
    return [Problem(f"sum-{a}-{b}", "math", f"{a}+{b}", str(a + b)) for a, b in pairs]


def programs() -> list[Problem]:
    """Expressions in x to find from three examples, see `trainers.tasks.programs`."""
    return [Problem(p.id, "expression", p.question, p.expression) for p in list_programs()]
