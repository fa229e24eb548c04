"""Play episodes with canned replies: how many turns there are, and whether one's own parts hold.

What a model would say is replaced by replies that are understood, that are refused, and that make
no sense: whatever fails on these would fail in a run, hours later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from gradlab.workflows import Ask, Reply, Workflow
from trainers.episodes import Episode, Turn
from trainers.prompts.chat import Prompts
from trainers.tasks.problem import Problem

NONSENSE = "?"
"""What nobody can read."""
ACCEPTED = {"verdict": (r"\boxed{Correct}", "[y]")}
"""A verdict that ends what goes on until a solution is accepted: of chat and embedded models."""


def canned_episodes(
    workflow: Workflow, prompts: Prompts, problem: Problem, replies: Mapping[str, str]
) -> Iterator[Episode]:
    """An episode for each way in which replies can go; its turns have text and no tokens.

    Raises PartError where the workflow or one of its readers fails.
    """
    accepting = {**replies, "verdict": ACCEPTED["verdict"][replies["verdict"].startswith("[")]}
    senseless = dict.fromkeys(replies, NONSENSE)
    for sample, (said, is_right) in enumerate(
        [(replies, False), (replies, True), (accepting, True), (senseless, False)]
    ):
        yield canned_episode(workflow, prompts, problem, said, is_right, sample)


def canned_episode(
    workflow: Workflow,
    prompts: Prompts,
    problem: Problem,
    replies: Mapping[str, str],
    is_right: bool,
    sample: int = 0,
) -> Episode:
    """An episode in which all replies are those of their kind, and all answers right or wrong."""
    play, turns = workflow.play(problem, prompts), list[Turn]()
    answer: str | None = None
    try:
        wave = next(play)
        while True:
            said = [_said(ask, replies[ask.kind], is_right) for ask in wave]
            turns += [
                _turn(problem, sample, ask, reply) for ask, reply in zip(wave, said, strict=True)
            ]
            wave = play.send(said)
    except StopIteration as stop:
        answer = stop.value
    outcome = is_right and answer is not None
    return Episode(
        problem, sample, tuple(replace(turn, outcome=outcome) for turn in turns), answer, outcome
    )


def _said(ask: Ask, text: str, is_right: bool) -> Reply:
    value: Any = ask.reading(text).value
    return Reply(text, value, (is_right and value is not None) if ask.kind == "answer" else None)


def _turn(problem: Problem, sample: int, ask: Ask, reply: Reply) -> Turn:
    return Turn(
        agent=ask.agent,
        problem=problem.id,
        sample=sample,
        round=ask.round,
        kind=ask.kind,
        prompt=ask.messages[-1].text,
        prompt_ids=(0,),
        response=reply.text,
        response_ids=(0,),
        logprobs=(0.0,),
        parse_ok=ask.reading(reply.text).parse_ok,
        truncated=False,
        own_correct=reply.is_correct if ask.judge is None else ask.is_right(reply.value),
        offered_correct=ask.offered_correct,
    )


def most_turns(
    workflow: Workflow, prompts: Prompts, problem: Problem, replies: Mapping[str, str]
) -> dict[str, int]:
    """Most turns of each role in the canned episodes."""
    counts = [
        Counter(turn.agent.role for turn in episode.turns)
        for episode in canned_episodes(workflow, prompts, problem, replies)
    ]
    return {role: max(count[role] for count in counts) for role in workflow.roles}
