"""Play many episodes at once: one batched generation per wave and speaker."""

from __future__ import annotations

import hashlib
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
    draws: str = "batch",
) -> list[Episode]:
    """Play `samples` episodes of every problem. `key` seeds the sampling.

    `draws`: 'problem' where every response draws from numbers of its own, by the problem, the
    episode and the place in it; else all that is asked at once draws from one stream.

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
        _play_wave(sampler, speakers, seats, (*key, wave), judge, draws)
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
    draws: str,
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

    said = _speak(sampler, by_speaker, key, seats if draws == "problem" else None)
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
    sampler: Sampler,
    by_speaker: Mapping[Speaker, Sequence[_Asked]],
    key: tuple[int, ...],
    seats: Sequence[_Seat] | None,
) -> dict[tuple[int, int], tuple[tuple[int, ...], Sample]]:
    """Prompt and response by (seat, slot), one batch per speaker.

    `seats`: of the episodes, where each draws by numbers of its own.
    """
    said: dict[tuple[int, int], tuple[tuple[int, ...], Sample]] = {}
    # In the order of their names, so that the numbers drawn do not depend on who speaks first.
    for index, speaker in enumerate(sorted(by_speaker)):
        asked = by_speaker[speaker]
        prompts = [prompt for _, _, prompt in asked]
        if seats is None:
            responses = sampler.ask(speaker, prompts, (*key, index))
        else:
            rows = [
                (number_of(seats[number].problem.id), seats[number].sample, slot)
                for number, slot, _ in asked
            ]
            responses = sampler.ask(speaker, prompts, key, rows)
        for (number, slot, prompt), response in zip(asked, responses, strict=True):
            said[number, slot] = (prompt, response)
    return said


def number_of(name: str) -> int:
    """A number of 64 bits for a name, the same in every process."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


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
