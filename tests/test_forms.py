"""The form of a response by hand-worked texts, and what an evaluation keeps of it."""

import math

import pytest
from conftest import make_turn

from gradlab.records import Agent
from trainers.episodes import Episode, Turn
from trainers.evaluate import evaluation_record
from trainers.tasks.problem import Problem
from trainers.watch.forms import (
    echoed,
    form_shares,
    has_code,
    hedges,
    is_stamp,
    is_terse,
    jaccard,
    sibling_indices,
    word_grams,
)

EVALUATOR = Agent("evaluator")


@pytest.mark.parametrize(
    ("text", "is_code"),
    [
        ("```python\na = 1\nb = 2\nprint(a + b)\n```", True),
        ("so:\n  ```\n  a = 1\n\n  b = 2\n  c\n", True),  # never closed; the blank line is no line
        ("```python\na = 1\nb = 2\n```", False),  # two lines
        ("```a``` and ```b``` and ```c```", False),  # quoted in a line
        ("```\nx\n```\nthen\n```\ny\n```", False),  # two fences of one line
        ("def f():\n    a\n    b\n    c", False),  # not fenced
        ("", False),
    ],
)
def test_code_is_a_fence_around_three_lines_or_more(text: str, is_code: bool) -> None:
    assert has_code(text) is is_code


def verdict(text: str, tokens: int = 5, parse_ok: bool = True) -> Turn:
    return make_turn(
        EVALUATOR,
        kind="verdict",
        response=text,
        response_ids=(7,) * tokens,
        parse_ok=parse_ok,
        own_correct=True,
        offered_correct=True,
    )


def test_a_stamp_is_readable_short_and_holds_no_code() -> None:
    assert is_stamp(verdict(r"\boxed{Correct}"))
    assert is_stamp(verdict(r"\boxed{Correct}", tokens=200))
    assert not is_stamp(verdict(r"\boxed{Correct}", tokens=201))
    assert not is_stamp(verdict("```\nx\n``` \\boxed{Correct}"))
    assert not is_stamp(verdict("fine", parse_ok=False))


def test_terse_is_understood_in_thirty_tokens() -> None:
    assert is_terse(make_turn(response_ids=(7,) * 30))
    assert not is_terse(make_turn(response_ids=(7,) * 31))
    assert not is_terse(make_turn(response_ids=(7,) * 3, parse_ok=False))


@pytest.mark.parametrize(
    ("text", "is_hedged"),
    [
        ("I think it is 4.", True),
        ("It SEEMS right", True),
        ("I am not entirely sure about step 2.", True),
        ("That might be 7; let me double-check.", True),
        ("The answer is 4.", False),
        ("This number is certain, and the maybes are none.", False),
        ("The mighty may win: 4", False),
    ],
)
def test_phrases_of_doubt(text: str, is_hedged: bool) -> None:
    assert hedges(text) is is_hedged


def test_grams_and_their_overlap_by_hand() -> None:
    # 'the sum is', 'sum is 4' against 'sum is 4', 'is 4 now': one of three shared
    one, other = word_grams("The sum is 4"), word_grams("sum is 4 now")
    assert one == {("the", "sum", "is"), ("sum", "is", "4")}
    assert jaccard(one, other) == pytest.approx(1 / 3)
    assert jaccard(one, one) == 1
    assert word_grams("[4]") == {("[4]",)}
    assert jaccard(word_grams("[4]"), word_grams("[5]")) == 0
    assert math.isnan(jaccard(word_grams(""), word_grams(" ")))


def test_an_echo_repeats_its_prompt() -> None:
    prompt = "strategy: add the two numbers and halve the sum"
    # 'add the two', 'the two numbers' stand in the prompt, 'two numbers first' does not
    turn = make_turn(prompt=prompt, response="Add the two numbers first")
    assert echoed(turn) == pytest.approx(2 / 3)
    assert math.isnan(echoed(make_turn(prompt=prompt, response="the sum")))


def test_siblings_are_asked_at_once() -> None:
    said = {(0, 0): "a b c d", (1, 0): "a b c d", (2, 0): "x y z", (0, 1): "a b c d"}
    turns = [
        make_turn(Agent("worker", number), round=round, response=text)
        for (number, round), text in said.items()
    ]
    assert sorted(sibling_indices(turns)) == [0, 0, 1]  # the second round has no sibling
    assert sibling_indices(turns[:1]) == []


def test_forms_are_counted_where_a_turn_can_have_them() -> None:
    turns = [verdict(r"\boxed{Correct}"), make_turn(response="```\na\nb\nc\n```", kind="answer")]
    shares = form_shares(turns)
    assert shares["code_form"] == [0, 1]
    assert shares["stamp_form"] == [1]  # an answer is no verdict
    assert shares["terse"] == [1, 1]


def test_an_evaluation_keeps_forms_by_role() -> None:
    problem = Problem("p", "arithmetic", "1 + 1?", "2")

    def episode(sample: int, texts: tuple[str, str], choice_tokens: int) -> Episode:
        turns = tuple(
            make_turn(Agent("generator", n), response=text, own_correct=True)
            for n, text in enumerate(texts)
        )
        choice = make_turn(
            Agent("aggregator"),
            kind="choice",
            response="perhaps the first",
            response_ids=(7,) * choice_tokens,
            own_correct=True,
            offered_correct=True,
        )
        return Episode(problem, sample, (*turns, choice), "2", True)

    episodes = [episode(0, ("a b c", "a b c"), 3), episode(1, ("a b c", "d e f"), 300)]
    record = evaluation_record(episodes, [problem], ("generator", "aggregator"), 2, 5)
    generator, aggregator = record.roles["generator"], record.roles["aggregator"]
    assert generator.sibling_jaccard == 0.5  # 1 in the first episode, 0 in the second
    assert math.isnan(aggregator.sibling_jaccard)
    assert aggregator.terse == 0.5
    assert (aggregator.hedging, generator.hedging) == (1, 0)
    assert math.isnan(aggregator.stamp_form)
