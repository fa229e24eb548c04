"""Make the programs of task `programs`: find the expression in x behind three examples.

A problem shows a function at three inputs, `1>5 2>8 4>14`; `3*x+2` solves it, as does any other
expression that gives the same outputs there and at the hidden inputs.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from trainers.tasks.expressions import agrees, values

INPUTS = range(13)
"""Where an answer is run: at the three inputs that are shown, and at ten that are hidden."""
SHOWN = ((0, 1, 2), (0, 1, 3), (0, 1, 4), (0, 2, 3), (1, 2, 4), (1, 2, 5))
"""The inputs of which a problem shows three."""


@dataclass(frozen=True)
class Program:
    """A function to find, shown at three inputs."""

    id: str
    expression: str
    """The reference solution."""
    shown: tuple[tuple[int, int], ...]
    """(input, output) pairs."""

    @property
    def question(self) -> str:
        return " ".join(f"{x}>{y}" for x, y in self.shown)


def list_programs() -> list[Program]:
    """Every function, at every triple of inputs that tells it from all others."""
    found: list[Program] = []
    for inputs in SHOWN:
        digits = "".join(map(str, inputs))
        by_outputs: dict[tuple[int, ...], list[tuple[str, str]]] = {}
        for name, expression in functions().items():
            by_outputs.setdefault(outputs(expression, inputs), []).append((name, expression))
        for shown, alike in by_outputs.items():
            if len(alike) == 1:
                [(name, expression)] = alike
                pairs = tuple(zip(inputs, shown, strict=True))
                found.append(Program(f"{name}-at-{digits}", expression, pairs))
    return found


def functions() -> dict[str, str]:
    """Name -> expression: rising and falling lines, squares, and values with a floor or ceiling."""
    found = {}
    for a in range(1, 10):
        for b in range(-9, 21):
            times = "x" if a == 1 else f"{a}*x"
            found[f"line-{a}-{b}"] = times + (f"{b:+d}" if b else "")
    for a in range(1, 4):
        for b in range(10, 31):
            found[f"fall-{a}-{b}"] = f"{b}-x" if a == 1 else f"{b}-{a}*x"
    for c in range(-9, 21):
        found[f"square-{c}"] = "x*x" + (f"{c:+d}" if c else "")
    for c in range(1, 7):
        found[f"floor-{c}"] = f"max(x,{c})"
        found[f"ceiling-{c}"] = f"min(x,{c})"
    return found


def outputs(expression: str, inputs: Sequence[int]) -> tuple[int, ...]:
    """The values of an expression of ours."""
    found = values(expression, inputs)
    if found is None:
        raise ValueError(f"'{expression}' has no value at some of {list(inputs)}")
    return tuple(found)


def tests(reference: str) -> list[tuple[int, int]]:
    """What an answer is run on: (input, output) pairs, those that are shown among them."""
    return list(zip(INPUTS, outputs(reference, INPUTS), strict=True))


def same_function(answer: str, reference: str) -> bool:
    """Whether running the answer gives the reference's output at every input."""
    return agrees(answer, tests(reference))


def near_miss(expression: str, draw: random.Random) -> str:
    """A wrong expression beside a right one: one of its numbers is changed, or one is added."""
    numbers = list(re.finditer(r"\d+", expression))
    while True:
        if numbers and draw.random() < 0.9:
            number = draw.choice(numbers)
            changed = max(0, int(number[0]) + draw.choice([-10, -2, -1, 1, 2, 10]))
            wrong = f"{expression[: number.start()]}{changed}{expression[number.end() :]}"
        else:
            wrong = f"{expression}{draw.choice('+-')}{draw.randint(1, 9)}"
        if not same_function(wrong, expression):
            return wrong


def workings(question: str, expression: str, strategy: str) -> str:
    """What a worker writes before its answer: t the steps between outputs, o the offset f(0)."""
    shown = [int(pair.partition(">")[2]) for pair in question.split()]
    return {
        "t": f"{shown[1] - shown[0]} {shown[2] - shown[1]}=",
        "o": f"{outputs(expression, [0])[0]}=",
        "d": "",
    }[strategy]
