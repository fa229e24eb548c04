"""Play many episodes at once: one batched generation per wave and policy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from trainers.episodes import Episode, Turn
from trainers.learn import TrainingError
from trainers.models import LanguageModel
from trainers.policies import not_finite
from trainers.problems import Problem
from trainers.sampling import Sample, sample
from trainers.workflows import Ask, Play, Reply, Workflow


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


def rng(device: torch.device, *key: int) -> torch.Generator:
    """A generator that depends on `key` alone, so that a resumed run draws the same numbers."""
    state = np.random.SeedSequence([part & 0xFFFFFFFF for part in key]).generate_state(2)
    return torch.Generator(device).manual_seed(int(state[0]) << 31 ^ int(state[1]))


def rollout(
    language: LanguageModel,
    workflow: Workflow,
    policy_by_role: Mapping[str, str],
    problems: Sequence[Problem],
    samples: int,
    key: tuple[int, ...],
) -> list[Episode]:
    """Play `samples` episodes of every problem. `key` seeds the sampling.

    An episode whose next prompt exceeds the limit is given up, with the reason in `failure`.
    Raises TrainingError naming the policy whose output is not finite.
    """
    seats = [
        _seat(workflow.play(problem, language.prompts), problem, number)
        for problem in problems
        for number in range(samples)
    ]
    wave = 0
    while any(not seat.is_over for seat in seats):
        _play_wave(language, policy_by_role, seats, (*key, wave))
        wave += 1
    return [
        Episode(
            seat.problem,
            seat.sample,
            tuple(seat.turns),
            seat.answer,
            seat.failure is None and seat.problem.is_correct(seat.answer),
            seat.failure,
        )
        for seat in seats
    ]


def _seat(play: Play, problem: Problem, number: int) -> _Seat:
    return _Seat(problem, number, play, next(play), [])


def _play_wave(
    language: LanguageModel,
    policy_by_role: Mapping[str, str],
    seats: Sequence[_Seat],
    key: tuple[int, ...],
) -> None:
    by_policy: dict[str, list[tuple[int, int, tuple[int, ...]]]] = defaultdict(list)
    for number, seat in enumerate(seats):
        if seat.is_over:
            continue
        prompts = [language.encode(ask.chat) for ask in seat.wave]
        longest = max(map(len, prompts))
        if longest > language.max_prompt_tokens:
            seat.failure = f"prompt of {longest} tokens, limit {language.max_prompt_tokens}"
            seat.is_over = True
            continue
        for slot, (ask, prompt) in enumerate(zip(seat.wave, prompts, strict=True)):
            by_policy[policy_by_role[ask.agent.role]].append((number, slot, prompt))

    said: dict[tuple[int, int], tuple[tuple[int, ...], Sample]] = {}
    # In the order of policy names, so that the numbers drawn do not depend on who speaks first.
    for index, policy in enumerate(sorted(by_policy)):
        asked = by_policy[policy]
        with language.speaking(policy) as model:
            try:
                responses = sample(
                    model,
                    [prompt for _, _, prompt in asked],
                    language.sampling,
                    rng(language.device, *key, index),
                )
            except FloatingPointError as error:
                bad = not_finite(language, policy)
                cause = (
                    f"{len(bad)} of its parameters are not finite ({bad[0]})"
                    if bad
                    else "its parameters are finite: the forward pass overflowed"
                )
                raise TrainingError(
                    f"sampling from policy '{policy}': {error}; {cause}. Start a new run with a "
                    "lower --learning-rate: resuming would repeat this step exactly."
                ) from error
        for (number, slot, prompt), response in zip(asked, responses, strict=True):
            said[number, slot] = (prompt, response)

    for number, seat in enumerate(seats):
        if not seat.is_over:
            _advance(language, seat, [said[number, slot] for slot in range(len(seat.wave))])


def _advance(
    language: LanguageModel, seat: _Seat, said: Sequence[tuple[tuple[int, ...], Sample]]
) -> None:
    """Hand one wave's responses to the workflow and take its next wave."""
    replies = []
    for ask, (prompt, response) in zip(seat.wave, said, strict=True):
        text = language.decode(response.ids)
        reading = ask.read(text)
        replies.append(Reply(text, reading.value))
        seat.turns.append(
            Turn(
                agent=ask.agent,
                round=ask.round,
                kind=ask.kind,
                prompt=language.decode(prompt, keep_special=True),
                prompt_ids=prompt,
                response=text,
                response_ids=response.ids,
                logprobs=response.logprobs,
                parse_ok=reading.parse_ok,
                truncated=response.truncated,
                own_correct=None if ask.judge is None else ask.judge(reading.value),
                offered_correct=ask.offered_correct,
            )
        )
    try:
        seat.wave = seat.play.send(replies)
    except StopIteration as stop:
        seat.answer, seat.is_over = stop.value, True
