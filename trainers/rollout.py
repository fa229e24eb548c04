"""Play many episodes at once: everything that is asked at once goes to the sampler in one call."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from gradlab.records import Agent
from gradlab.workflows import Ask, Play, Reply, Workflow
from trainers.episodes import Episode, Turn
from trainers.judge import Judge
from trainers.models.sampler import Sample, Sampler, Speaker
from trainers.tasks.problem import Problem

Prompt = tuple[int, ...]


@dataclass
class _Seat:
    """An episode that is being played."""

    problem: Problem
    sample: int
    play: Play
    wave: list[Ask]
    """Who is asked next; nobody when the episode is over."""
    turns: list[Turn] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    """To the wave."""
    answer: str | None = None
    failure: str | None = None


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
    seats = []
    for problem in problems:
        for number in range(samples):
            play = workflow.play(problem, sampler.prompts)
            seats.append(_Seat(problem, number, play, next(play)))
    wave = 0
    while any(seat.wave for seat in seats):
        _play_wave(sampler, speakers, seats, (*key, wave), judge, draws)
        wave += 1
    episodes = []
    grades = judge.grades([(seat.problem, seat.answer) for seat in seats])
    for seat, grade in zip(seats, grades, strict=True):
        outcome = False if seat.failure is not None else grade
        turns = tuple(replace(turn, outcome=outcome) for turn in seat.turns)
        episodes.append(
            Episode(seat.problem, seat.sample, turns, seat.answer, outcome, seat.failure)
        )
    return episodes


def _play_wave(
    sampler: Sampler,
    speakers: Mapping[Agent, Speaker],
    seats: Sequence[_Seat],
    key: tuple[int, ...],
    judge: Judge,
    draws: str,
) -> None:
    """Ask everybody whose turn it is, and hand the replies to the workflows for their next wave."""
    asked: list[tuple[_Seat, Ask, Prompt]] = []
    for seat in seats:
        prompts = [sampler.encode(speakers[ask.agent], ask.messages) for ask in seat.wave]
        longest = max(map(len, prompts), default=0)
        if longest > sampler.max_prompt_tokens:
            seat.failure = f"prompt of {longest} tokens, limit {sampler.max_prompt_tokens}"
            seat.wave = []
        else:
            asked += [(seat, ask, prompt) for ask, prompt in zip(seat.wave, prompts, strict=True)]

    rows = [
        (number_of(seat.problem.id), seat.sample, slot)
        for seat in seats
        for slot in range(len(seat.wave))
    ]
    wanted = [(speakers[ask.agent], prompt) for _, ask, prompt in asked]
    said = _speak(sampler, wanted, key, rows if draws == "problem" else None)
    texts = [
        sampler.decode(speakers[ask.agent], sample.ids)
        for (_, ask, _), sample in zip(asked, said, strict=True)
    ]
    readings = [ask.reading(text) for (_, ask, _), text in zip(asked, texts, strict=True)]
    of_answers = iter(
        judge(
            [
                (seat.problem, reading.value)
                for (seat, ask, _), reading in zip(asked, readings, strict=True)
                if ask.kind == "answer"
            ]
        )
    )
    # Samples of a problem have one prompt.
    shown = functools.cache(functools.partial(sampler.decode, keep_special=True))
    for (seat, ask, prompt), sample, text, reading in zip(
        asked, said, texts, readings, strict=True
    ):
        is_right = next(of_answers) if ask.kind == "answer" else None
        seat.replies.append(Reply(text, reading.value, is_right))
        speaker = speakers[ask.agent]
        seat.turns.append(
            Turn(
                agent=ask.agent,
                problem=seat.problem.id,
                sample=seat.sample,
                round=ask.round,
                kind=ask.kind,
                prompt=shown(speaker, prompt),
                prompt_ids=prompt,
                response=text,
                response_ids=sample.ids,
                logprobs=sample.logprobs,
                temperature=speaker.temperature,
                parse_ok=reading.parse_ok,
                truncated=sample.truncated,
                own_correct=is_right if ask.judge is None else ask.is_right(reading.value),
                offered_correct=ask.offered_correct,
            )
        )
    for seat in seats:
        if seat.wave:
            replies, seat.replies = seat.replies, []
            try:
                seat.wave = seat.play.send(replies)
            except StopIteration as stop:
                seat.answer, seat.wave = stop.value, []


def _speak(
    sampler: Sampler,
    asked: Sequence[tuple[Speaker, Prompt]],
    key: tuple[int, ...],
    rows: Sequence[tuple[int, ...]] | None,
) -> list[Sample]:
    """A response to each prompt; all speakers are asked in one call. `rows`: keys of their own."""
    places: dict[Speaker, list[int]] = {}
    for i, (speaker, _) in enumerate(asked):
        places.setdefault(speaker, []).append(i)
    if not places:
        return []
    wave = {speaker: [asked[i][1] for i in mine] for speaker, mine in places.items()}
    keys = (
        None
        if rows is None
        else {speaker: [rows[i] for i in mine] for speaker, mine in places.items()}
    )
    said: dict[int, Sample] = {}
    for speaker, samples in sampler.ask(wave, key, keys).items():
        said.update(zip(places[speaker], samples, strict=True))
    return [said[i] for i in range(len(asked))]


def number_of(name: str) -> int:
    """A number of 64 bits for a name, the same in every process."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
