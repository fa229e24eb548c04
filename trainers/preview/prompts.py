"""Print what each role of a workflow is asked, exactly as a model sees it.

The workflow is played on a sample problem with canned replies, so that what is printed is what a
run would ask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gradlab.records import Agent
from gradlab.workflows import Ask, Reply, Workflow
from trainers.config import TrainConfig
from trainers.models.language import check_styles, is_compact, load_tokenizer, prompts_for, render
from trainers.prompts.chat import Prompts
from trainers.prompts.compact import STRATEGIES
from trainers.tasks.problem import Kind, Problem

SAMPLES: dict[Kind, Problem] = {
    "math": Problem("sample", "math", "A train covers 150 km in 2 hours. How fast is it?", "75"),
    "code": Problem(
        "sample",
        "code",
        "Read an integer n from standard input and print the sum of its decimal digits.\n\n"
        "Example input:\n1024\n\nExample output:\n7",
        "",
    ),
    "expression": Problem("line-3-2-at-124", "expression", "1>5 2>8 4>14", "3*x+2"),
}
COMPACT_SAMPLES: dict[Kind, Problem] = {
    "math": Problem("sum-47-38", "math", "47+38", "85"),
    "code": SAMPLES["expression"],
    "expression": SAMPLES["expression"],
}
"""The embedded models write expressions where others write programs."""

_PROGRAM = "```python\nprint(sum(map(int, input())))\n```"
REPLIES: dict[Kind, Mapping[str, str]] = {
    "math": {
        "answer": r"150 km in 2 hours are 150/2 = 75 km in one. \boxed{75}",
        "choice": r"\boxed{1}",
        "verdict": r"The unit is missing. \boxed{Incorrect}",
        "remark": "The unit is missing.",
    },
    "code": {
        "answer": f"I add the digits of the line.\n{_PROGRAM}",
        "choice": r"\boxed{1}",
        "verdict": r"A sign is not handled. \boxed{Incorrect}",
        "remark": "A sign is not handled.",
    },
    "expression": {
        "answer": r"\boxed{3*x+2}",
        "choice": r"\boxed{1}",
        "verdict": r"1>5 is wrong. \boxed{Incorrect}",
        "remark": "1>5 is wrong.",
    },
}
_COMPACT = {"choice": "[1]", "verdict": "[n]", "remark": "[n]"}
COMPACT_REPLIES: dict[Kind, Mapping[str, str]] = {
    "math": {"answer": "[85]", **_COMPACT},
    "expression": {"answer": "[3*x+2]", **_COMPACT},
}
"""What is replied to each kind of ask but plans, see `replies_of`."""


@dataclass(frozen=True)
class Asked:
    """One ask of a workflow, as text."""

    agent: str
    round: int
    text: str
    num_tokens: int


def show_prompts(config: TrainConfig, kind: Kind) -> None:
    """Print every ask of the configuration's workflow to the model of who is asked."""
    loaded = {name: load_tokenizer(name) for name in config.models}
    check_styles(loaded)
    workflow = config.build_workflow()
    tokenizers = {agent: loaded[config.model_of(agent)] for agent in workflow.agents}
    prompts = prompts_for(loaded[config.models[0]], config)
    for asked in prompts_of(tokenizers, prompts, workflow, kind):
        print(f"=== {asked.agent}, round {asked.round + 1}: {asked.num_tokens} tokens")
        print(asked.text)
        print()


def prompts_of(
    tokenizers: Mapping[Agent, Any], prompts: Prompts, workflow: Workflow, kind: Kind
) -> Iterator[Asked]:
    """Play the workflow on a sample problem; parallel agents with the same prompt are one.

    Tokenizers are those of the agents' models, all asked in the same style.
    """
    tokenizer = next(iter(tokenizers.values()))
    samples = COMPACT_SAMPLES if is_compact(tokenizer) else SAMPLES
    problem = samples[kind]
    replies = replies_of(tokenizer, problem.kind, workers_of(workflow))
    for wave in played(workflow, prompts, problem, replies):
        asked: dict[tuple[str, int], list[Ask]] = {}
        for ask in wave:
            tokenizer = tokenizers[ask.agent]
            text = render(tokenizer, ask.messages)
            num_tokens = len(tokenizer.encode(text, add_special_tokens=False))
            asked.setdefault((text, num_tokens), []).append(ask)
        for (text, num_tokens), asks in asked.items():
            who = ", ".join(str(ask.agent) for ask in asks)
            yield Asked(who, asks[0].round, text, num_tokens)


def played(
    workflow: Workflow, prompts: Prompts, problem: Problem, replies: Mapping[str, str]
) -> Iterator[list[Ask]]:
    """The waves of an episode in which every ask gets the reply of its kind: as long as it can be,
    since the verdict is no."""
    play = workflow.play(problem, prompts)
    wave = next(play)
    while True:
        yield wave
        said = [Reply(replies[a.kind], a.reading(replies[a.kind]).value, False) for a in wave]
        try:
            wave = play.send(said)
        except StopIteration:
            return


def workers_of(workflow: Workflow) -> int:
    """For how many workers a canned plan has work."""
    return int(workflow.options.get("workers", 3))


def replies_of(tokenizer: Any, kind: Kind, workers: int) -> dict[str, str]:
    """What is replied to each kind of ask about a problem; a plan has work for all workers."""
    if is_compact(tokenizer):
        plan = f"[{STRATEGIES[:workers]}]"
        return {**COMPACT_REPLIES.get(kind, COMPACT_REPLIES["math"]), "plan": plan}
    numbers = range(1, workers + 1)
    plan = "\n".join(f"STRATEGY {number}: (strategy {number})" for number in numbers)
    return {**REPLIES[kind], "plan": plan}
