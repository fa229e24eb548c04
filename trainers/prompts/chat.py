"""Make each role's chat out of a problem and what was said, with the reader of its response.

A prompt set is what a workflow speaks through: `ChatPrompts` for instruction-tuned models,
`trainers.prompts.compact.CompactPrompts` for the embedded character-level models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from gradlab.workflows import Chat, Message, Reading
from trainers.grading.reading import (
    boxed_answer,
    boxed_choice,
    boxed_verdict,
    fenced_code,
    numbered_strategies,
)
from trainers.prompts.wording import WORDING
from trainers.tasks.problem import Problem


class Prompts(Protocol):
    """How the roles are asked and understood.

    `said` is what generator and evaluator replied so far, in turn: its last text is the solution to
    evaluate, its last two are the solution to refine and the feedback on it.
    """

    def generate(self, problem: Problem) -> Chat: ...
    def aggregate(self, problem: Problem, candidates: Sequence[str]) -> Chat: ...
    def evaluate(self, problem: Problem, said: Sequence[str]) -> Chat: ...
    def refine(self, problem: Problem, said: Sequence[str]) -> Chat: ...
    def orchestrate(self, problem: Problem, most: int) -> Chat: ...
    def work(self, problem: Problem, strategy: str) -> Chat: ...
    def synthesize(self, problem: Problem, solutions: Sequence[str]) -> Chat: ...

    def reader(self, problem: Problem) -> Callable[[str], Reading[str | None]]:
        """What reads an answer to this kind of problem out of a response."""

    def read_choice(self, text: str, num_candidates: int) -> Reading[int]: ...
    def read_verdict(self, text: str) -> Reading[bool]: ...
    def read_strategies(self, text: str, most: int) -> Reading[tuple[str, ...]]: ...


def ask(text: str) -> Chat:
    """A chat of one user message."""
    return (Message("user", text),)


def numbered(title: str, texts: Sequence[str]) -> str:
    return "\n\n".join(f"--- {title} {i} ---\n{text}" for i, text in enumerate(texts, start=1))


@dataclass(frozen=True)
class ChatPrompts:
    """Prompts for instruction-tuned models; the words are those of `trainers.prompts.wording`.

    Every prompt stands on its own and chats alternate between user and assistant. With
    `history='shared'` the evaluator and the refiner see the paper's first version instead: one
    history for both, whose instructions were not kept, so that assistant turns follow each other.
    """

    history: Literal["own", "shared"] = "own"

    def generate(self, problem: Problem) -> Chat:
        words = WORDING[problem.kind]
        return ask(f"{words.generate} {words.answer}\n\n{_problem(problem)}")

    def aggregate(self, problem: Problem, candidates: Sequence[str]) -> Chat:
        words = WORDING[problem.kind]
        return ask(
            f"{words.aggregate}\n\n{_problem(problem)}\n\n{numbered(words.solution, candidates)}"
        )

    def evaluate(self, problem: Problem, said: Sequence[str]) -> Chat:
        words = WORDING[problem.kind]
        if self.history == "shared":
            above = f"The {words.solution.lower()} to check is the one above."
            return (*self._history(problem, said), Message("user", f"{words.evaluate} {above}"))
        return ask(f"{words.evaluate}\n\n{_problem(problem)}\n\n{words.solution}:\n{said[-1]}")

    def refine(self, problem: Problem, said: Sequence[str]) -> Chat:
        words = WORDING[problem.kind]
        if self.history == "shared":
            return (*self._history(problem, said), Message("user", words.again))
        solution, feedback = said[-2:]
        fix = f"{words.reviewed}\n{feedback}\n\n{words.refine} {words.answer}"
        return (*self.generate(problem), Message("assistant", solution), Message("user", fix))

    def _history(self, problem: Problem, said: Sequence[str]) -> Chat:
        """Everything said, as the paper's code keeps it: replies without their instructions."""
        return (*self.generate(problem), *(Message("assistant", text) for text in said))

    def orchestrate(self, problem: Problem, most: int) -> Chat:
        words = WORDING[problem.kind]
        return ask(
            f"Propose at most {most} genuinely different {words.plans} for this problem. Describe "
            f"each in one or two sentences and do not {words.not_yet}. Write each as\n"
            f"STRATEGY n: description\n\n{_problem(problem)}"
        )

    def work(self, problem: Problem, strategy: str) -> Chat:
        words = WORDING[problem.kind]
        return ask(f"{words.work} {words.answer}\n\n{_problem(problem)}\n\nStrategy:\n{strategy}")

    def synthesize(self, problem: Problem, solutions: Sequence[str]) -> Chat:
        words = WORDING[problem.kind]
        return ask(
            f"{words.synthesize} {words.answer}\n\n{_problem(problem)}\n\n"
            f"{numbered(words.solution, solutions)}"
        )

    def reader(self, problem: Problem) -> Callable[[str], Reading[str | None]]:
        return fenced_code if problem.kind == "code" else boxed_answer

    def read_choice(self, text: str, num_candidates: int) -> Reading[int]:
        return boxed_choice(text, num_candidates)

    def read_verdict(self, text: str) -> Reading[bool]:
        return boxed_verdict(text)

    def read_strategies(self, text: str, most: int) -> Reading[tuple[str, ...]]:
        return numbered_strategies(text, most)


def _problem(problem: Problem) -> str:
    return f"Problem:\n{problem.question}"
