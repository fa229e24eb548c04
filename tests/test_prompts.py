"""Every prompt rendered: it holds what the role needs, alternates, and has no template left in."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import pytest

from gradlab.workflows import Chat
from trainers.prompts.chat import ChatPrompts, Prompts, numbered
from trainers.prompts.compact import CompactPrompts
from trainers.tasks.problem import Problem

PROBLEM = Problem("p1", "math", "What is 80+11?", "91")
SUM = Problem("sum-80-11", "math", "80+11", "91")
PROBLEMS = {
    "math": PROBLEM,
    "code": Problem("c1", "code", "Print 7*13. Read nothing.", ""),
    "expression": Problem("e1", "expression", "1>5 2>8 4>14", "3*x+2"),
}
kinds = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)


def all_chats(prompts: Prompts, problem: Problem) -> dict[str, Chat]:
    return {
        "generate": prompts.generate(problem),
        "aggregate": prompts.aggregate(problem, ["first", "second"]),
        "evaluate": prompts.evaluate(problem, ["my solution"]),
        "refine": prompts.refine(problem, ["my solution", "the feedback"]),
        "orchestrate": prompts.orchestrate(problem, 3),
        "work": prompts.work(problem, "add the tens first"),
        "synthesize": prompts.synthesize(problem, ["first", "second"]),
    }


def text_of(chat: Chat) -> str:
    return "\n".join(message.text for message in chat)


def is_alternating(chat: Chat) -> bool:
    return all(a.speaker != b.speaker for a, b in pairwise(chat))


@kinds
@pytest.mark.parametrize("history", ["own", "shared"])
def test_every_chat_starts_and_ends_with_the_user(
    history: Literal["own", "shared"], problem: Problem
) -> None:
    for prompts in (ChatPrompts(history), CompactPrompts()):
        for name, chat in all_chats(prompts, problem).items():
            assert (chat[0].speaker, chat[-1].speaker) == ("user", "user"), name


@kinds
def test_chats_alternate(problem: Problem) -> None:
    for prompts in (ChatPrompts(), CompactPrompts()):
        for name, chat in all_chats(prompts, problem).items():
            assert is_alternating(chat), name


@kinds
def test_the_shared_history_is_malformed_only_where_the_paper_has_it(problem: Problem) -> None:
    """The refiner's chat has two assistant turns in a row: the solution and the verdict on it."""
    chats = all_chats(ChatPrompts("shared"), problem)
    assert [name for name, chat in chats.items() if not is_alternating(chat)] == ["refine"]
    assert [message.speaker for message in chats["refine"]] == [
        "user", "assistant", "assistant", "user",
    ]  # fmt: skip
    assert "the one above" in chats["evaluate"][-1].text
    own = all_chats(ChatPrompts("own"), problem)
    assert {name for name in own if own[name] != chats[name]} == {"evaluate", "refine"}


@kinds
@pytest.mark.parametrize("history", ["own", "shared"])
def test_no_template_syntax_is_left_in_a_prompt(
    history: Literal["own", "shared"], problem: Problem
) -> None:
    """The paper's maths refiner saw a literal `\\boxed{{}}`: its template was never formatted."""
    for name, chat in all_chats(ChatPrompts(history), problem).items():
        text = text_of(chat)
        is_quirk = (history, name, problem.kind) == ("shared", "refine", "math")
        assert ("{{" in text) == is_quirk, name
        assert ("}}" in text) == is_quirk, name
        assert "{problem" not in text, name
        assert "None" not in text, name


@kinds
@pytest.mark.parametrize("history", ["own", "shared"])
def test_a_prompt_holds_everything_the_role_is_asked_about(
    history: Literal["own", "shared"], problem: Problem
) -> None:
    chats = {name: text_of(chat) for name, chat in all_chats(ChatPrompts(history), problem).items()}
    assert all(problem.question in text for text in chats.values())
    assert not any(problem.answer and problem.answer in text for text in chats.values())
    title = "Program" if problem.kind == "code" else "Solution"
    assert f"--- {title} 1 ---\nfirst" in chats["aggregate"]
    assert f"--- {title} 2 ---\nsecond" in chats["synthesize"]
    assert "my solution" in chats["evaluate"]
    assert "my solution" in chats["refine"]
    assert "the feedback" in chats["refine"]
    assert "at most 3" in chats["orchestrate"]
    assert "add the tens first" in chats["work"]


@kinds
def test_the_prompt_asks_for_the_format_that_the_reader_reads(problem: Problem) -> None:
    prompts = ChatPrompts()
    form = "block that begins with ```python" if problem.kind == "code" else r"\boxed{}"
    for name in ("generate", "work", "synthesize", "refine"):
        assert form in all_chats(prompts, problem)[name][-1].text, name
    assert prompts.read_choice(prompts.aggregate(problem, ["a"])[-1].text, 2).parse_ok
    verdicts = prompts.evaluate(problem, ["a"])[-1].text
    assert r"\boxed{Correct}" in verdicts
    assert r"\boxed{Incorrect}" in verdicts
    assert "STRATEGY n:" in prompts.orchestrate(problem, 3)[-1].text


def test_each_kind_of_problem_has_its_reader() -> None:
    text = "```python\nprint(91)\n``` \\boxed{91}"
    program = "```python\nprint(91)\n```\n"
    prompts = ChatPrompts()
    assert prompts.reader(PROBLEMS["math"])(text).value == "91"
    assert prompts.reader(PROBLEMS["expression"])(text).value == "91"
    assert prompts.reader(PROBLEMS["code"])(program).value == "print(91)"
    assert prompts.reader(PROBLEMS["code"])("\\boxed{91}").value is None


@kinds
def test_instructions_do_not_look_like_answers(problem: Problem) -> None:
    """A model that repeats what it was told has not answered."""
    prompts = ChatPrompts()
    for name in ("generate", "work", "synthesize", "refine"):
        for line in all_chats(prompts, problem)[name][-1].text.split("\n"):
            assert not prompts.reader(problem)(line).value, (name, line)


def test_candidates_are_numbered_from_one() -> None:
    assert numbered("Solution", ["a", "b"]) == "--- Solution 1 ---\na\n\n--- Solution 2 ---\nb"


def test_compact_prompts_are_these_characters() -> None:
    rendered = {name: text_of(chat) for name, chat in all_chats(CompactPrompts(), SUM).items()}
    assert rendered == {
        "generate": "g80+11",
        "aggregate": "a80+11 first second",
        "evaluate": "e80+11 my solution",
        "refine": "r80+11 my solution the feedback",
        "orchestrate": "o80+11 3",
        "work": "w80+11 add the tens first",
        "synthesize": "s80+11 first second",
    }


def test_compact_prompts_of_a_program_are_these_characters() -> None:
    program = PROBLEMS["expression"]
    rendered = {name: text_of(chat) for name, chat in all_chats(CompactPrompts(), program).items()}
    assert rendered["generate"] == "g1>5 2>8 4>14"
    assert rendered["aggregate"] == "a1>5 2>8 4>14 first second"
    assert rendered["work"] == "w1>5 2>8 4>14 add the tens first"
    assert CompactPrompts().reader(program)("3 6=[3*x+2]").value == "3*x+2"


def test_text_with_braces_and_markup_goes_through_unchanged() -> None:
    hostile = "{problem} {{0}} %s \\boxed{1} [bold]"
    assert hostile in text_of(ChatPrompts().evaluate(PROBLEM, [hostile]))
    assert hostile in text_of(ChatPrompts().aggregate(PROBLEM, [hostile]))
    assert hostile in text_of(CompactPrompts().refine(PROBLEM, [hostile, hostile]))


@kinds
@pytest.mark.parametrize("prompts", [ChatPrompts(), CompactPrompts()])
def test_no_two_roles_get_the_same_prompt(prompts: Prompts, problem: Problem) -> None:
    rendered = [text_of(chat) for chat in all_chats(prompts, problem).values()]
    assert len(set(rendered)) == len(rendered)
