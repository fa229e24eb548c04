"""Play many episodes at once: everything that is asked at once goes to the sampler in one call."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gradlab.records import Agent
from gradlab.workflows import Ask, Play, Reading, Reply, Workflow
from trainers.episodes import Episode, Turn
from trainers.judge import Judge
from trainers.models.sampler import Sample, Sampler, Speaker
from trainers.tasks.problem import Problem

_Asked = tuple[int, int, tuple[int, ...]]
"""Number of the seat, slot in its wave, prompt."""


@dataclass
class _Seat:
    """An episode that is being played."""

    problem: Problem
    sample: int
    play: Play
    wave: list[Ask]
    turns: list[Turn]
    answer: str | None = None
    failure: str | None = None
    is_over: bool = False


def rollout(
    sampler: Sampler,
    workflow: Workflow,
    speakers: Mapping[Agent, Speaker],
    problems: Sequence[Problem],
    samples: int,
    key: tuple[int, ...],
    judge: Judge,
) -> list[Episode]:
    """Play `samples` episodes of every problem. `key` seeds the sampling.

    An episode whose next prompt exceeds the limit is given up, with the reason in `failure`.
    Raises TrainingError naming the speaker whose output is not finite.
    """
    seats = [
        _seat(workflow.play(problem, sampler.prompts), problem, number)
        for problem in problems
        for number in range(samples)
    ]
    wave = 0
    while any(not seat.is_over for seat in seats):
        _play_wave(sampler, speakers, seats, (*key, wave), judge)
        wave += 1
    grades = judge.grades([(seat.problem, seat.answer) for seat in seats])
    return [_episode(seat, grade) for seat, grade in zip(seats, grades, strict=True)]


def _seat(play: Play, problem: Problem, number: int) -> _Seat:
    return _Seat(problem, number, play, next(play), [])


def _episode(seat: _Seat, grade: float) -> Episode:
    outcome = False if seat.failure is not None else grade
    turns = tuple(replace(turn, outcome=outcome) for turn in seat.turns)
    return Episode(seat.problem, seat.sample, turns, seat.answer, outcome, seat.failure)


def _play_wave(
    sampler: Sampler,
    speakers: Mapping[Agent, Speaker],
    seats: Sequence[_Seat],
    key: tuple[int, ...],
    judge: Judge,
) -> None:
    by_speaker: dict[Speaker, list[_Asked]] = defaultdict(list)
    for number, seat in enumerate(seats):
        if seat.is_over:
            continue
        prompts = [sampler.encode(speakers[ask.agent], ask.messages) for ask in seat.wave]
        longest = max(map(len, prompts))
        if longest > sampler.max_prompt_tokens:
            seat.failure = f"prompt of {longest} tokens, limit {sampler.max_prompt_tokens}"
            seat.is_over = True
            continue
        for slot, (ask, prompt) in enumerate(zip(seat.wave, prompts, strict=True)):
            by_speaker[speakers[ask.agent]].append((number, slot, prompt))

    said = _speak(sampler, by_speaker, key)
    playing = [(number, seat) for number, seat in enumerate(seats) if not seat.is_over]
    heard = [
        [
            _hear(sampler, speakers[ask.agent], ask, *said[number, slot])
            for slot, ask in enumerate(seat.wave)
        ]
        for number, seat in playing
    ]
    of_answers = iter(
        judge(
            [
                (seat.problem, one.reading.value)
                for (_, seat), all_said in zip(playing, heard, strict=True)
                for one in all_said
                if one.ask.kind == "answer"
            ]
        )
    )
    for (_, seat), all_said in zip(playing, heard, strict=True):
        _advance(
            seat,
            all_said,
            [next(of_answers) if one.ask.kind == "answer" else None for one in all_said],
        )


def _speak(
    sampler: Sampler, by_speaker: Mapping[Speaker, Sequence[_Asked]], key: tuple[int, ...]
) -> dict[tuple[int, int], tuple[tuple[int, ...], Sample]]:
    """Prompt and response by (seat, slot)."""
    wave = {speaker: [prompt for *_, prompt in asked] for speaker, asked in by_speaker.items()}
    responses = sampler.ask(wave, key) if wave else {}
    return {
        (number, slot): (prompt, response)
        for speaker, asked in by_speaker.items()
        for (number, slot, prompt), response in zip(asked, responses[speaker], strict=True)
    }


@dataclass(frozen=True)
class _Heard:
    """One response of a wave, and what was read in it."""

    ask: Ask
    temperature: float
    prompt_ids: tuple[int, ...]
    prompt: str
    response: Sample
    text: str
    reading: Reading[Any]


def _hear(
    sampler: Sampler, speaker: Speaker, ask: Ask, prompt_ids: tuple[int, ...], response: Sample
) -> _Heard:
    text = sampler.decode(speaker, response.ids)
    prompt = sampler.decode(speaker, prompt_ids, keep_special=True)
    return _Heard(ask, speaker.temperature, prompt_ids, prompt, response, text, ask.reading(text))


def _advance(
    seat: _Seat,
    heard: Sequence[_Heard],
    is_correct: Sequence[bool | None],
) -> None:
    """Hand one wave's responses to the workflow and take its next wave."""
    replies = []
    for one, is_right in zip(heard, is_correct, strict=True):
        ask, response = one.ask, one.response
        replies.append(Reply(one.text, one.reading.value, is_right))
        own = is_right if ask.judge is None else ask.is_right(one.reading.value)
        seat.turns.append(
            Turn(
                agent=ask.agent,
                problem=seat.problem.id,
                sample=seat.sample,
                round=ask.round,
                kind=ask.kind,
                prompt=one.prompt,
                prompt_ids=one.prompt_ids,
                response=one.text,
                response_ids=response.ids,
                logprobs=response.logprobs,
                temperature=one.temperature,
                parse_ok=one.reading.parse_ok,
                truncated=response.truncated,
                own_correct=own,
                offered_correct=ask.offered_correct,
            )
        )
    try:
        seat.wave = seat.play.send(replies)
    except StopIteration as stop:
        seat.answer, seat.is_over = stop.value, True
