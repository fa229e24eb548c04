"""Play an episode of each workflow: yield a wave of asks, receive the replies, return the answer.

A workflow is a generator function. The driver (`trainers.rollout`) advances many episodes in lock
step and batches each wave; a test drives one with plain strings.

    voting                generators in parallel on the same prompt, an aggregator selects
    evaluator_optimizer   a generator, then rounds of evaluator verdict and refinement
    orchestrator_workers  an orchestrator splits into strategies, workers solve, a synthesizer ends
    solo                  one generator: the single-agent control
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Literal, cast

from gradlab.records import Agent
from trainers.grading.reading import Reading
from trainers.prompts.chat import Chat, Prompts
from trainers.tasks.problem import Problem

WorkflowName = Literal["voting", "evaluator_optimizer", "orchestrator_workers", "solo"]


@dataclass(frozen=True)
class Ask:
    """One LLM call to make: who is asked what, how the reply is read, and whether it is right."""

    agent: Agent
    chat: Chat
    read: Callable[[str], Reading[Any]]
    judge: Callable[[Any], bool] | None = None
    """Own correctness of a choice or verdict. Answers are judged by the driver, all of a wave at
    once; a plan is neither right nor wrong."""
    round: int = 0
    """How often this agent was asked before in the episode."""
    offered_correct: bool | None = None
    """For a role that is given solutions: whether at least one of them is correct."""
    kind: Literal["answer", "choice", "verdict", "plan"] = "answer"


@dataclass(frozen=True)
class Reply:
    """The response to an ask, as read."""

    text: str
    value: Any
    is_correct: bool | None = None
    """Of an answer: whether it solves the problem."""


Wave = list[Ask]
Play = Generator[Wave, list[Reply], str | None]
"""An episode being played; returns the final answer (None if nothing could be read)."""


@dataclass(frozen=True)
class Sizes:
    """How large each workflow is."""

    votes: int = 3
    rounds: int = 3
    workers: int = 3

    def __post_init__(self) -> None:
        for name in ("votes", "rounds", "workers"):
            if not 1 <= getattr(self, name) <= 9:
                raise ValueError(f"--{name} is {getattr(self, name)}; expected 1 to 9")


def voting(problem: Problem, prompts: Prompts, sizes: Sizes) -> Play:
    candidates = yield [
        Ask(Agent("generator", i), prompts.generate(problem), prompts.reader(problem))
        for i in range(sizes.votes)
    ]
    is_right = [bool(candidate.is_correct) for candidate in candidates]
    [choice] = yield [
        Ask(
            Agent("aggregator"),
            prompts.aggregate(problem, [candidate.text for candidate in candidates]),
            lambda text: prompts.read_choice(text, len(candidates)),
            lambda index: is_right[index],
            offered_correct=any(is_right),
            kind="choice",
        )
    ]
    return cast("str | None", candidates[choice.value].value)


def evaluator_optimizer(problem: Problem, prompts: Prompts, sizes: Sizes) -> Play:
    chat, said = prompts.generate(problem), list[str]()
    for turn in range(sizes.rounds):
        [solution] = yield [Ask(Agent("generator"), chat, prompts.reader(problem), round=turn)]
        is_right = bool(solution.is_correct)
        said.append(solution.text)
        [verdict] = yield [
            Ask(
                Agent("evaluator"),
                prompts.evaluate(problem, tuple(said)),
                prompts.read_verdict,
                lambda accepted, is_right=is_right: accepted == is_right,  # type: ignore[misc]
                round=turn,
                offered_correct=is_right,
                kind="verdict",
            )
        ]
        if verdict.value:
            break
        said.append(verdict.text)
        chat = prompts.refine(problem, tuple(said))
    return cast("str | None", solution.value)


def orchestrator_workers(problem: Problem, prompts: Prompts, sizes: Sizes) -> Play:
    [plan] = yield [
        Ask(
            Agent("orchestrator"),
            prompts.orchestrate(problem, sizes.workers),
            lambda text: prompts.read_strategies(text, sizes.workers),
            kind="plan",
        )
    ]
    solutions = yield [
        Ask(Agent("worker", i), prompts.work(problem, strategy), prompts.reader(problem))
        for i, strategy in enumerate(plan.value)
    ]
    [final] = yield [
        Ask(
            Agent("synthesizer"),
            prompts.synthesize(problem, [solution.text for solution in solutions]),
            prompts.reader(problem),
            offered_correct=any(solution.is_correct for solution in solutions),
        )
    ]
    return cast("str | None", final.value)


def solo(problem: Problem, prompts: Prompts, sizes: Sizes) -> Play:
    [answer] = yield [Ask(Agent("generator"), prompts.generate(problem), prompts.reader(problem))]
    return cast("str | None", answer.value)


@dataclass(frozen=True)
class Workflow:
    """A workflow of a given size, with the agents that can take part in it."""

    name: WorkflowName
    sizes: Sizes

    def play(self, problem: Problem, prompts: Prompts) -> Play:
        plays = {
            "voting": voting,
            "evaluator_optimizer": evaluator_optimizer,
            "orchestrator_workers": orchestrator_workers,
            "solo": solo,
        }
        return plays[self.name](problem, prompts, self.sizes)

    @property
    def agents(self) -> tuple[Agent, ...]:
        sizes = self.sizes
        players: dict[WorkflowName, list[tuple[str, int]]] = {
            "voting": [("generator", sizes.votes), ("aggregator", 1)],
            "evaluator_optimizer": [("generator", 1), ("evaluator", 1)],
            "orchestrator_workers": [
                ("orchestrator", 1),
                ("worker", sizes.workers),
                ("synthesizer", 1),
            ],
            "solo": [("generator", 1)],
        }
        return tuple(Agent(role, i) for role, number in players[self.name] for i in range(number))

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(agent.role for agent in self.agents))
