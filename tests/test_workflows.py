"""Every workflow driven with plain strings: who is asked what, and what becomes of the replies."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from gradlab.records import Agent
from gradlab.workflows import Ask, Play, Reply, Wave
from trainers.config import TrainConfig
from trainers.judge import Judge
from trainers.prompts.compact import CompactPrompts
from trainers.tasks.problem import Problem
from trainers.workflows import find_workflow

PROBLEM = Problem("sum-80-11", "math", "80+11", "91")


def begin(name: str, **sizes: int) -> tuple[Play, Wave]:
    play = find_workflow(name).with_options(sizes).play(PROBLEM, CompactPrompts())
    return play, next(play)


def say(play: Play, wave: Wave, *texts: str) -> Wave | str | None:
    """Reply to a wave; the next wave, or the final answer."""
    replies = [
        Reply(text, ask.reading(text).value, own(ask, text))
        for ask, text in zip(wave, texts, strict=True)
    ]
    try:
        return play.send(replies)
    except StopIteration as stop:
        answer: str | None = stop.value
        return answer


def as_wave(result: Wave | str | None) -> Wave:
    assert isinstance(result, list), f"expected another wave, the episode ended with {result!r}"
    return result


def asked(wave: Sequence[Ask]) -> list[tuple[str, str]]:
    """(agent, last user message) of every ask."""
    return [(str(ask.agent), ask.messages[-1].text) for ask in wave]


def own(ask: Ask, text: str) -> bool | None:
    if ask.kind == "answer":
        return Judge()([(PROBLEM, ask.reading(text).value)])[0]
    return None if ask.judge is None else ask.judge(ask.reading(text).value)


def test_voting_asks_everybody_the_same_and_the_aggregator_selects() -> None:
    play, wave = begin("voting")
    assert asked(wave) == [(f"generator[{i}]", "g80+11") for i in range(3)]
    assert [own(ask, text) for ask, text in zip(wave, ("[90]", "[91]", "91"), strict=True)] == [
        False, True, False,
    ]  # fmt: skip
    wave = as_wave(say(play, wave, "[90]", "[91]", "91"))
    assert asked(wave) == [("aggregator[0]", "a80+11 [90] [91] 91")]
    assert wave[0].kind == "choice"
    assert wave[0].offered_correct is True
    assert own(wave[0], "[2]") is True
    assert own(wave[0], "[1]") is False
    assert say(play, wave, "[2]") == "91"


def test_voting_ends_with_the_chosen_candidate_and_not_with_the_aggregators_own_text() -> None:
    play, wave = begin("voting")
    wave = as_wave(say(play, wave, "[90]", "[91]", "[92]"))
    assert say(play, wave, "[91]") == "90"  # '91' is no candidate: the fallback is the first


def test_voting_without_a_correct_candidate_says_so() -> None:
    play, wave = begin("voting", votes=2)
    wave = as_wave(say(play, wave, "[90]", "nonsense"))
    assert wave[0].offered_correct is False
    assert own(wave[0], "[1]") is False
    assert say(play, wave, "[2]") is None  # an unreadable candidate can be chosen


def test_voting_with_one_vote_still_asks_the_aggregator() -> None:
    play, wave = begin("voting", votes=1)
    wave = as_wave(say(play, wave, "[91]"))
    assert asked(wave) == [("aggregator[0]", "a80+11 [91]")]
    assert say(play, wave, "[1]") == "91"


def test_evaluator_optimizer_stops_when_the_evaluator_accepts() -> None:
    play, wave = begin("evaluator_optimizer")
    assert asked(wave) == [("generator[0]", "g80+11")]
    wave = as_wave(say(play, wave, "[91]"))
    assert asked(wave) == [("evaluator[0]", "e80+11 [91]")]
    assert say(play, wave, "[y]") == "91"


def test_evaluator_optimizer_accepts_a_wrong_solution_if_told_so() -> None:
    play, wave = begin("evaluator_optimizer")
    wave = as_wave(say(play, wave, "[90]"))
    assert own(wave[0], "[y]") is False
    assert own(wave[0], "[n]") is True
    assert wave[0].offered_correct is False
    assert say(play, wave, "[y]") == "90"


def test_evaluator_optimizer_goes_on_for_at_most_its_rounds() -> None:
    """Three rounds: as many verdicts as solutions, and the last verdict changes nothing."""
    play, wave = begin("evaluator_optimizer", rounds=3)
    seen: list[tuple[str, int]] = []
    for solution in ("[90]", "[89]", "[88]"):
        seen.append((wave[0].agent.role, wave[0].round))
        wave = as_wave(say(play, wave, solution))
        seen.append((wave[0].agent.role, wave[0].round))
        result = say(play, wave, "[n]")
        wave = result if isinstance(result, list) else wave
    assert result == "88"
    assert seen == [(role, turn) for turn in range(3) for role in ("generator", "evaluator")]


def test_the_refiner_is_given_the_last_solution_and_the_feedback() -> None:
    play, wave = begin("evaluator_optimizer")
    wave = as_wave(say(play, wave, "[90]"))
    wave = as_wave(say(play, wave, "too low [n]"))
    assert asked(wave) == [("generator[0]", "r80+11 [90] too low [n]")]
    wave = as_wave(say(play, wave, "[91]"))
    assert wave[0].offered_correct is True
    assert own(wave[0], "[y]") is True


def test_an_unreadable_verdict_lets_the_loop_go_on() -> None:
    play, wave = begin("evaluator_optimizer", rounds=2)
    wave = as_wave(say(play, wave, "[91]"))
    wave = as_wave(say(play, wave, "looks fine"))
    assert wave[0].agent == Agent("generator")


def test_each_verdict_is_judged_by_the_solution_it_was_about() -> None:
    play, first = begin("evaluator_optimizer")
    verdict_on_wrong = as_wave(say(play, first, "[90]"))[0]
    refinement = as_wave(say(play, [verdict_on_wrong], "[n]"))
    verdict_on_right = as_wave(say(play, refinement, "[91]"))[0]
    assert own(verdict_on_wrong, "[n]") is True  # still about [90], after [91] has come
    assert own(verdict_on_right, "[n]") is False


def test_orchestrator_workers_gives_one_strategy_to_each_worker() -> None:
    play, wave = begin("orchestrator_workers")
    assert asked(wave) == [("orchestrator[0]", "o80+11 3")]
    assert wave[0].judge is None
    assert wave[0].kind == "plan"
    wave = as_wave(say(play, wave, "[tod]"))
    assert asked(wave) == [
        ("worker[0]", "w80+11 t"),
        ("worker[1]", "w80+11 o"),
        ("worker[2]", "w80+11 d"),
    ]
    wave = as_wave(say(play, wave, "80+11=[91]", "11+80=[90]", "[89]"))
    assert asked(wave) == [("synthesizer[0]", "s80+11 80+11=[91] 11+80=[90] [89]")]
    assert wave[0].offered_correct is True
    assert own(wave[0], "[91]") is True
    assert say(play, wave, "[77]") == "77"  # the synthesizer's own answer counts


def test_fewer_strategies_mean_fewer_workers() -> None:
    play, wave = begin("orchestrator_workers")
    wave = as_wave(say(play, wave, "[t]"))
    assert asked(wave) == [("worker[0]", "w80+11 t")]
    wave = as_wave(say(play, wave, "[90]"))
    assert wave[0].offered_correct is False


def test_an_unreadable_plan_falls_back_to_one_worker() -> None:
    play, wave = begin("orchestrator_workers")
    assert not wave[0].read("no idea").parse_ok
    assert asked(as_wave(say(play, wave, "no idea"))) == [("worker[0]", "w80+11 d")]


def test_more_strategies_than_workers_are_not_followed() -> None:
    play, wave = begin("orchestrator_workers", workers=2)
    assert len(as_wave(say(play, wave, "[tod]"))) == 1  # the compact reader refuses the plan
    play, wave = begin("orchestrator_workers", workers=2)
    assert len(as_wave(say(play, wave, "[to]"))) == 2


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (("[90]", "[91]", "[91]"), "91"),
        (("[90]", "[91]", "[92]"), "90"),  # as frequent: the first
        (("91", "nothing", "[92]"), "92"),  # two cannot be read
        (("", "", ""), None),
    ],
)
def test_the_majority_is_the_most_frequent_answer(
    said: tuple[str, ...], answer: str | None
) -> None:
    play, wave = begin("majority")
    assert asked(wave) == [(f"generator[{i}]", "g80+11") for i in range(3)]
    assert say(play, wave, *said) == answer


def test_solo_is_one_call() -> None:
    play, wave = begin("solo")
    assert asked(wave) == [("generator[0]", "g80+11")]
    assert say(play, wave, "[91]") == "91"


@pytest.mark.parametrize(
    ("name", "agents", "roles"),
    [
        ("voting", ["generator[0]", "generator[1]", "aggregator[0]"], ("generator", "aggregator")),
        ("evaluator_optimizer", ["generator[0]", "evaluator[0]"], ("generator", "evaluator")),
        (
            "orchestrator_workers",
            ["orchestrator[0]", "worker[0]", "worker[1]", "synthesizer[0]"],
            ("orchestrator", "worker", "synthesizer"),
        ),
        ("majority", ["generator[0]", "generator[1]"], ("generator",)),
        ("solo", ["generator[0]"], ("generator",)),
    ],
)
def test_the_agents_of_a_workflow_are_those_that_it_can_ask(
    name: str, agents: list[str], roles: tuple[str, ...]
) -> None:
    workflow = find_workflow(name)
    sizes = {size: 2 for size in ("votes", "workers") if size in workflow.options}
    workflow = workflow.with_options(sizes)
    assert [str(agent) for agent in workflow.agents] == agents
    assert workflow.roles == roles


@pytest.mark.parametrize(("size", "high"), [("votes", 16), ("rounds", 9), ("workers", 9)])
def test_sizes_have_bounds(size: str, high: int) -> None:
    for number in (0, high + 1):
        with pytest.raises(ValueError, match=f"--{size} is {number}; expected 1 to {high}"):
            TrainConfig(**{size: number})
