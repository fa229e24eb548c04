"""Show every role one worked example first: small models keep to a format that they have seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gradlab.workflows import Chat, Message, Reading
from trainers.prompts.chat import ChatPrompts
from trainers.tasks.problem import Kind, Problem


@dataclass(frozen=True)
class Example:
    """A problem that a child can solve, and what each role says to it."""

    problem: Problem
    solution: str
    wrong: str
    """A solution that fails."""
    strategy: str
    choice: str = r"The second one is right. \boxed{2}"
    verdict: str = r"The result is wrong. \boxed{Incorrect}"

    @property
    def plan(self) -> str:
        return f"STRATEGY 1: {self.strategy}"


EXAMPLES: dict[Kind, Example] = {
    "math": Example(
        Problem("example", "math", "What is 3 + 4?", "7"),
        r"3 + 4 = 7. \boxed{7}",
        r"3 + 4 = 12. \boxed{12}",
        "Count up from the larger number.",
    ),
    "code": Example(
        Problem("example", "code", "Read a number and print it plus one.", ""),
        "```python\nprint(int(input()) + 1)\n```",
        "```python\nprint(int(input()))\n```",
        "Read one line, convert it, add one and print.",
    ),
}


@dataclass(frozen=True)
class OneShot:
    """`ChatPrompts` with a worked exchange before every prompt; for kinds that have an example."""

    prompts: ChatPrompts

    def generate(self, problem: Problem) -> Chat:
        return self._after(problem, lambda e: self.prompts.generate(e.problem), _solution) + (
            self.prompts.generate(problem)
        )

    def aggregate(self, problem: Problem, candidates: Sequence[str]) -> Chat:
        def shown(example: Example) -> Chat:
            return self.prompts.aggregate(example.problem, [example.wrong, example.solution])

        return self._after(problem, shown, lambda e: e.choice) + (
            self.prompts.aggregate(problem, candidates)
        )

    def evaluate(self, problem: Problem, said: Sequence[str]) -> Chat:
        def shown(example: Example) -> Chat:
            return self.prompts.evaluate(example.problem, [example.wrong])

        return self._after(problem, shown, lambda e: e.verdict) + (
            self.prompts.evaluate(problem, said)
        )

    def refine(self, problem: Problem, said: Sequence[str]) -> Chat:
        # Its chat begins with the generator's: the format has been seen in it.
        return self._after(problem, lambda e: self.prompts.generate(e.problem), _solution) + (
            self.prompts.refine(problem, said)
        )

    def orchestrate(self, problem: Problem, most: int) -> Chat:
        return self._after(
            problem, lambda e: self.prompts.orchestrate(e.problem, most), lambda e: e.plan
        ) + (self.prompts.orchestrate(problem, most))

    def work(self, problem: Problem, strategy: str) -> Chat:
        def shown(example: Example) -> Chat:
            return self.prompts.work(example.problem, example.strategy)

        return self._after(problem, shown, _solution) + self.prompts.work(problem, strategy)

    def synthesize(self, problem: Problem, solutions: Sequence[str]) -> Chat:
        def shown(example: Example) -> Chat:
            return self.prompts.synthesize(example.problem, [example.wrong, example.solution])

        return self._after(problem, shown, _solution) + self.prompts.synthesize(problem, solutions)

    def reader(self, problem: Problem) -> Callable[[str], Reading[str | None]]:
        return self.prompts.reader(problem)

    def read_choice(self, text: str, num_candidates: int) -> Reading[int]:
        return self.prompts.read_choice(text, num_candidates)

    def read_verdict(self, text: str) -> Reading[bool]:
        return self.prompts.read_verdict(text)

    def read_strategies(self, text: str, most: int) -> Reading[tuple[str, ...]]:
        return self.prompts.read_strategies(text, most)

    def _after(
        self, problem: Problem, ask: Callable[[Example], Chat], reply: Callable[[Example], str]
    ) -> Chat:
        """The worked exchange."""
        example = EXAMPLES.get(problem.kind)
        if example is None:
            return ()
        return (*ask(example), Message("assistant", reply(example)))


def _solution(example: Example) -> str:
    return example.solution
