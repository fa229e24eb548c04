"""Play an episode of each built-in workflow; `gradlab.workflows` says what a workflow is.

voting                generators in parallel on the same prompt, an aggregator selects
evaluator_optimizer   a generator, then rounds of evaluator verdict and refinement
orchestrator_workers  an orchestrator splits into strategies, workers solve, a synthesizer ends
majority              generators in parallel, their most frequent answer
solo                  one generator: the single-agent control
"""

from __future__ import annotations

from collections import Counter
from typing import cast

from gradlab.own_parts import is_own, load_part
from gradlab.records import Agent
from gradlab.workflows import Ask, Play, Workflow, workflow
from trainers.prompts.chat import Prompts
from trainers.tasks.problem import Problem


@workflow(roles={"generator": "votes", "aggregator": 1})
def voting(problem: Problem, prompts: Prompts, *, votes: int = 3) -> Play:
    candidates = yield [
        Ask(Agent("generator", i), prompts.generate(problem), prompts.reader(problem))
        for i in range(votes)
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


@workflow(roles={"generator": 1, "evaluator": 1})
def evaluator_optimizer(problem: Problem, prompts: Prompts, *, rounds: int = 3) -> Play:
    chat, said = prompts.generate(problem), list[str]()
    for _ in range(rounds):
        [solution] = yield [Ask(Agent("generator"), chat, prompts.reader(problem))]
        is_right = bool(solution.is_correct)
        said.append(solution.text)
        [verdict] = yield [
            Ask(
                Agent("evaluator"),
                prompts.evaluate(problem, tuple(said)),
                prompts.read_verdict,
                lambda accepted, is_right=is_right: accepted == is_right,  # type: ignore[misc]
                offered_correct=is_right,
                kind="verdict",
            )
        ]
        if verdict.value:
            break
        said.append(verdict.text)
        chat = prompts.refine(problem, tuple(said))
    return cast("str | None", solution.value)


@workflow(roles={"orchestrator": 1, "worker": "workers", "synthesizer": 1})
def orchestrator_workers(problem: Problem, prompts: Prompts, *, workers: int = 3) -> Play:
    [plan] = yield [
        Ask(
            Agent("orchestrator"),
            prompts.orchestrate(problem, workers),
            lambda text: prompts.read_strategies(text, workers),
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


@workflow(roles={"generator": "votes"})
def majority(problem: Problem, prompts: Prompts, *, votes: int = 3) -> Play:
    """Who gave no answer has no vote; of answers that are as frequent, the first one said wins."""
    candidates = yield [
        Ask(Agent("generator", i), prompts.generate(problem), prompts.reader(problem))
        for i in range(votes)
    ]
    counts = Counter(candidate.value for candidate in candidates if candidate.value is not None)
    return max(counts, key=counts.__getitem__, default=None)


@workflow(roles={"generator": 1})
def solo(problem: Problem, prompts: Prompts) -> Play:
    [answer] = yield [Ask(Agent("generator"), prompts.generate(problem), prompts.reader(problem))]
    return cast("str | None", answer.value)


WORKFLOWS = {found.name: found for found in tuple(vars().values()) if isinstance(found, Workflow)}
"""The built-in workflows by name."""


def find_workflow(name: str) -> Workflow:
    """The workflow of a name: a built-in one, `FILE.py:NAME` or `package.module:NAME`.

    Raises ValueError for one that is not there, listing what is.
    """
    if is_own(name):
        found = load_part(
            "--workflow", name, lambda value: isinstance(value, Workflow),
            "a generator function with @gradlab.workflow(roles={…}) above it",
        ).value  # fmt: skip
        assert isinstance(found, Workflow)
        return found
    if name not in WORKFLOWS:
        raise ValueError(
            f"--workflow {name} is unknown; expected one of {', '.join(WORKFLOWS)}, or one of your "
            "own as FILE.py:NAME or package.module:NAME"
        )
    return WORKFLOWS[name]
