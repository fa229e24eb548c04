"""Word each role's prompt in a few characters, for the embedded character-level models.

Every response ends in one bracket, e.g. `[91]`, `[3*x+2]`, `[2]`, `[y]` or `[to]`. Workers show how
they got there. Of a sum, strategy t adds the tens first (`80+11=[91]`), o the ones first
(`11+80=[91]`). Of a program, t writes the steps from output to output first (`3 6=[3*x+2]`), o the
offset, its value at 0 (`2=[3*x+2]`). d is direct.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gradlab.workflows import Chat, Reading
from trainers.prompts.chat import ask
from trainers.tasks.problem import Problem

STRATEGIES = "tod"


def _bracket(text: str) -> str | None:
    """Content of the only bracket; None if there is none, or several."""
    found = re.findall(r"\[([^\[\]]*)\]", text)
    return found[0] if len(found) == 1 else None


@dataclass(frozen=True)
class CompactPrompts:
    """Prompts of the `tiny` models."""

    def generate(self, problem: Problem) -> Chat:
        return ask(f"g{problem.question}")

    def aggregate(self, problem: Problem, candidates: Sequence[str]) -> Chat:
        return ask(f"a{problem.question} " + " ".join(candidates))

    def evaluate(self, problem: Problem, said: Sequence[str]) -> Chat:
        return ask(f"e{problem.question} {said[-1]}")

    def refine(self, problem: Problem, said: Sequence[str]) -> Chat:
        return ask(f"r{problem.question} {said[-2]} {said[-1]}")

    def orchestrate(self, problem: Problem, most: int) -> Chat:
        return ask(f"o{problem.question} {most}")

    def work(self, problem: Problem, strategy: str) -> Chat:
        return ask(f"w{problem.question} {strategy}")

    def synthesize(self, problem: Problem, solutions: Sequence[str]) -> Chat:
        return ask(f"s{problem.question} " + " ".join(solutions))

    def reader(self, problem: Problem) -> Callable[[str], Reading[str | None]]:
        return self.read_answer

    @staticmethod
    def read_answer(text: str) -> Reading[str | None]:
        inside = _bracket(text)
        return Reading(inside, inside is not None)

    def read_choice(self, text: str, num_candidates: int) -> Reading[int]:
        inside = _bracket(text) or ""
        chosen = int(inside) if inside.isdecimal() and len(inside) < 3 else 0
        ok = 1 <= chosen <= num_candidates
        return Reading(chosen - 1 if ok else 0, ok)

    def read_verdict(self, text: str) -> Reading[bool]:
        inside = _bracket(text)
        return Reading(inside == "y", inside in {"y", "n"})

    def read_strategies(self, text: str, most: int) -> Reading[tuple[str, ...]]:
        inside = _bracket(text) or ""
        ok = bool(inside) and len(inside) <= most and set(inside) <= set(STRATEGIES)
        return Reading(tuple(inside) if ok else ("d",), ok)
