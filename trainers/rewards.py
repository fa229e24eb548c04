"""Pay the turns of an episode by a function of one's own: a number, or named components."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gradlab.own_parts import Part, PartError, failed_at, file_of, in_words, load_part, where_of
from trainers.episodes import Episode, Turn

EXPECTED = "a function of (episode, turn) that returns a number, or {name: number}"


def load_reward(name: str) -> Part:
    """The function that `--reward FILE.py:NAME` names."""
    return load_part("--reward", name, is_reward, EXPECTED)


def is_reward(value: Any) -> bool:
    """Whether it is a function that can be given an episode and a turn."""
    if not inspect.isfunction(value):
        return False
    parameters = inspect.signature(value).parameters.values()
    return sum(parameter.default is parameter.empty for parameter in parameters) == 2


def paid(episode: Episode, reward: Part) -> list[Turn]:
    """The episode's turns with their rewards; a named one is the sum of its components.

    Raises PartError, with file and line, for what is not a finite number.
    """
    turns = []
    for turn in episode.turns:
        try:
            given = reward.value(episode, turn)
        except Exception as error:  # whatever a function of one's own raises
            raise PartError(
                f"{failed_at(error, file_of(reward.value))}: --reward {reward.name} raised "
                f"{in_words(error)} for {_which(episode, turn)}; expected a number"
            ) from error
        components = _checked(given, reward, _which(episode, turn))
        total = sum(value for _, value in components)
        turns.append(
            replace(turn, reward=total, components=components if isinstance(given, Mapping) else ())
        )
    return turns


def _checked(given: Any, reward: Part, who: str) -> tuple[tuple[str, float], ...]:
    named = given if isinstance(given, Mapping) else {"reward": given}
    where = f"{where_of(reward.value)}: --reward {reward.name} gave"
    if not named or not all(isinstance(name, str) and name for name in named):
        raise PartError(f"{where} {given!r} for {who}; expected a number, or {{name: number}}")
    for name, value in named.items():
        part = f"{name} = {value!r}" if isinstance(given, Mapping) else repr(value)
        if not isinstance(value, numbers.Real):
            raise PartError(
                f"{where} {part}, a {type(value).__name__}, for {who}; expected a number, or "
                "{name: number}"
            )
        try:
            is_finite = math.isfinite(float(value))
        except OverflowError:
            is_finite = False
        if not is_finite:
            raise PartError(f"{where} {part} for {who}; expected a finite number")
    components = tuple((name, float(value)) for name, value in named.items())
    if not math.isfinite(sum(value for _, value in components)):
        raise PartError(f"{where} {given!r} for {who}; expected a finite sum")
    return components


def check_components(episodes: Iterable[Episode], known: Sequence[str], name: str) -> None:
    """Raise PartError for a component that the canned episodes did not have: the store was made
    without it."""
    for episode in episodes:
        for turn in episode.turns:
            new = [component for component, _ in turn.components if component not in known]
            if new:
                raise PartError(
                    f"{where_of(load_reward(name).value)}: --reward {name} gave component "
                    f"'{new[0]}' for {_which(episode, turn)}; expected {', '.join(known) or 'none'}"
                    ", as on canned replies: give every name for every turn, 0 where it is nothing"
                )


def _which(episode: Episode, turn: Turn) -> str:
    return f"{turn.agent}, round {turn.round + 1}, on problem '{episode.problem.id}'"
