"""Worked examples: every role sees one, in the form that its reader reads."""

from __future__ import annotations

import pytest

from gradlab.workflows import Chat
from trainers.prompts.chat import ChatPrompts
from trainers.prompts.one_shot import EXAMPLES, OneShot
from trainers.tasks.problem import Problem

PLAIN = ChatPrompts()
SHOWN = OneShot(PLAIN)
PROBLEMS = {
    "math": Problem("p", "math", "What is 20 + 5?", "25"),
    "code": Problem("p", "code", "Print twice the number.", ""),
}


def all_chats(prompts: ChatPrompts | OneShot, problem: Problem) -> dict[str, Chat]:
    said = ["first", "feedback"]
    return {
        "generate": prompts.generate(problem),
        "aggregate": prompts.aggregate(problem, said),
        "evaluate": prompts.evaluate(problem, said[:1]),
        "refine": prompts.refine(problem, said),
        "orchestrate": prompts.orchestrate(problem, 3),
        "work": prompts.work(problem, "guess"),
        "synthesize": prompts.synthesize(problem, said),
    }


@pytest.mark.parametrize("kind", ["math", "code"])
def test_the_example_comes_first_and_the_prompt_is_unchanged(kind: str) -> None:
    problem = PROBLEMS[kind]
    for name, chat in all_chats(SHOWN, problem).items():
        plain = all_chats(PLAIN, problem)[name]
        assert chat[-len(plain) :] == plain
        assert [message.speaker for message in chat[:2]] == ["user", "assistant"]
        speakers = [message.speaker for message in chat]
        assert speakers == ["user", "assistant"] * (len(chat) // 2) + ["user"]
        assert EXAMPLES[kind].problem.question in chat[0].text  # type: ignore[index] # a Kind


@pytest.mark.parametrize("kind", ["math", "code"])
def test_every_example_is_read_as_it_should_be(kind: str) -> None:
    problem = PROBLEMS[kind]
    replies = {name: chat[1].text for name, chat in all_chats(SHOWN, problem).items()}
    for name in ("generate", "refine", "work", "synthesize"):
        assert SHOWN.reader(problem)(replies[name]).parse_ok
    choice = SHOWN.read_choice(replies["aggregate"], 2)
    assert (choice.value, choice.parse_ok) == (1, True)
    verdict = SHOWN.read_verdict(replies["evaluate"])
    assert (verdict.value, verdict.parse_ok) == (False, True)
    plan = SHOWN.read_strategies(replies["orchestrate"], 3)
    assert (len(plan.value), plan.parse_ok) == (1, True)
