"""Declare a workflow: who plays, what is asked, and what comes back.

A workflow is a generator function. It yields a wave of asks, receives their replies, and returns
the final answer. The driver plays many episodes in lock step and batches each wave over them; a
tool is a function that the workflow calls between two waves.

Example:
    >>> @workflow(roles={"solver": 1, "critic": 1})
    ... def checked(problem, *, rounds=2):
    ...     chat = problem.question
    ...     for _ in range(rounds):
    ...         [solution] = yield [Ask(Agent("solver"), chat)]
    ...         [remark] = yield [Ask(Agent("critic"), solution.text, kind="remark")]
    ...         chat = f"{problem.question} {remark.text}"
    ...     return solution.value
    >>> checked.agents
    (Agent(role='solver', number=0), Agent(role='critic', number=0))
"""

from __future__ import annotations

import contextlib
import inspect
import json
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import GeneratorType
from typing import Any, Generic, Literal, TypeVar

from gradlab.own_parts import PartError, failed_at, file_of, in_words, num_required, where_of
from gradlab.records import Agent

Value = TypeVar("Value")
Option = bool | int | float | str
Options = Mapping[str, Option]


@dataclass(frozen=True)
class Message:
    """One message of a chat."""

    speaker: Literal["system", "user", "assistant"]
    text: str


Chat = tuple[Message, ...]


@dataclass(frozen=True)
class Reading(Generic[Value]):
    """What was understood of a response."""

    value: Value
    parse_ok: bool
    """False when the format was not followed and `value` is a fallback."""


AskKind = Literal["answer", "choice", "verdict", "plan", "remark"]


@dataclass(frozen=True)
class Ask:
    """One LLM call to make: who is asked what, how the reply is read, and whether it is right."""

    agent: Agent
    chat: str | Chat
    """A text is the one message of a user."""
    read: Callable[[str], Any] | None = None
    """Reads a response: a value, None where there is none in it, or a `Reading`. Without it an
    answer is read in the form that the model was taught, anything else as its text."""
    judge: Callable[[Any], bool] | None = None
    """Own correctness of a choice or verdict. Answers are judged by the driver, all of a wave at
    once; a plan or a remark is neither right nor wrong."""
    offered_correct: bool | None = None
    """For a role that is given solutions: whether at least one of them is correct."""
    kind: AskKind = "answer"
    round: int = 0
    """How often this agent was asked before in the episode; the workflow counts it itself."""

    @property
    def messages(self) -> Chat:
        """The chat as messages."""
        if isinstance(self.chat, str):
            return (Message("user", self.chat),)
        return self.chat

    def is_right(self, value: Any) -> bool | None:
        """Own correctness of what was read; None where it cannot be right or wrong by itself."""
        if self.judge is None:
            return None
        try:
            return bool(self.judge(value))
        except Exception as error:  # whatever a judge of one's own raises
            at = failed_at(error, file_of(self.judge))
            raise PartError(
                f"{at}: the judge of {self.agent} raised {in_words(error)} on {_short(value)}; "
                "expected true or false of whatever its reader gives, None included"
            ) from error

    def reading(self, text: str) -> Reading[Any]:
        """What is understood of a response.

        Raises PartError where the reader fails, or an answer is no text.
        """
        if self.read is None:
            return Reading(text, True)
        try:
            found = self.read(text)
        except Exception as error:  # whatever a reader of one's own raises
            at = failed_at(error, file_of(self.read))
            raise PartError(
                f"{at}: the reader of {self.agent} raised {in_words(error)} on {_short(text)}; "
                "expected what it reads in any response, or None where there is nothing"
            ) from error
        reading = found if isinstance(found, Reading) else Reading(found, found is not None)
        if self.kind == "answer" and not isinstance(reading.value, str | None):
            raise PartError(
                f"{where_of(self.read)}: the reader of {self.agent} gave {_short(reading.value)}; "
                "expected a text or None for kind 'answer', since it is compared with the reference"
            )
        return reading


@dataclass(frozen=True)
class Reply:
    """The response to an ask, as read."""

    text: str
    value: Any
    is_correct: bool | None = None
    """Of an answer: whether it solves the problem."""


Wave = list[Ask]
Play = Generator[Wave, list[Reply], str | None]
"""An episode being played; returns the final answer (None if nothing could be read)."""


MAX_WAVES = 1000
"""Of an episode: what asks more often does not end."""


@dataclass(frozen=True)
class Workflow:
    """A workflow with its options, and the agents that can take part in it."""

    function: Callable[..., Play]
    """Takes the problem, and the model's own prompts if it has a second parameter."""
    players: Mapping[str, int | str]
    """Role -> number of agents, or the option that says how many."""
    options: Options = field(default_factory=dict)
    """Values of the function's keyword arguments."""

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def agents(self) -> tuple[Agent, ...]:
        found = []
        for role, number in self.players.items():
            count = self.options[number] if isinstance(number, str) else number
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise PartError(
                    f"{where_of(self.function)}: workflow {self.name} has {count!r} agents of role "
                    f"'{role}'; expected a whole number, 1 or more"
                )
            found += [Agent(role, i) for i in range(count)]
        return tuple(found)

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(self.players)

    def with_options(self, given: Options) -> Workflow:
        """The workflow with other values of its keyword arguments.

        Raises PartError for one that it does not have, or of another type.
        """
        for name, value in given.items():
            if name not in self.options:
                have = ", ".join(f"{key}={default}" for key, default in self.options.items())
                raise PartError(
                    f"workflow {self.name} has no option '{name}'; expected one of {have}"
                    if have
                    else f"workflow {self.name} has no options; got {name}={value}"
                )
            default = self.options[name]
            is_whole = type(value) is int and type(default) is float
            if type(value) is not type(default) and not is_whole:
                raise PartError(
                    f"option {name} of workflow {self.name} is {value!r}; expected "
                    f"{_TYPES[type(default)]}, as in {name}={default}"
                )
        changed = replace(self, options={**self.options, **given})
        assert changed.agents, "their numbers are checked"
        return changed

    def play(self, problem: Any, prompts: Any) -> Play:
        """Play an episode, every wave checked; `prompts` are those that the model was taught.

        Raises PartError, with file and line, for a wave or an answer that cannot be used, and where
        the function or a reader raises.
        """
        parameters = (problem, prompts)[: num_required(self.function)]
        episode = self.function(*parameters, **self.options)
        asked, agents, at = Counter[Agent](), self.agents, where_of(self.function)
        replies: list[Reply] | None = None
        for _ in range(MAX_WAVES):
            try:
                wave = next(episode) if replies is None else episode.send(replies)
            except StopIteration as stop:
                return self._answer(stop.value, is_silent=replies is None)
            except Exception as error:  # whatever a workflow of one's own raises
                at = failed_at(error, file_of(self.function))
                raise PartError(
                    f"{at}: workflow {self.name} raised {in_words(error)} on problem "
                    f"'{problem.id}'; expected that it takes any reply, also one whose value is "
                    "None: nothing could be read"
                ) from error
            at = f"{where_of(self.function).rpartition(':')[0]}:{_line(episode)}"
            checked = []
            for ask in self._wave(wave, agents, at):
                reader = ask.read
                if reader is None and ask.kind == "answer":
                    reader = prompts.reader(problem)
                checked.append(replace(ask, read=reader, round=asked[ask.agent]))
                asked[ask.agent] += 1
            replies = yield checked
        raise PartError(
            f"{at}: workflow {self.name} asks without end: {MAX_WAVES} waves in one episode; "
            "expected a bound on its rounds"
        )

    def _wave(self, wave: Any, agents: Sequence[Agent], at: str) -> Wave:
        """What was yielded, if it is a wave of this workflow's agents."""
        is_wave = isinstance(wave, list | tuple) and all(isinstance(ask, Ask) for ask in wave)
        if not is_wave or not wave:
            raise PartError(
                f"{at}: workflow {self.name} yielded {_short(wave)}; expected a list of asks, at "
                "least one, as in: [reply] = yield [Ask(Agent('solver'), prompt)]"
            )
        for ask in wave:
            if ask.agent not in agents:
                have = ", ".join(map(str, agents))
                raise PartError(
                    f"{at}: workflow {self.name} asks {ask.agent}; expected one of its agents, "
                    f"{have}: declare it in @workflow(roles={{…}})"
                )
            messages = ask.messages
            if not (
                isinstance(messages, tuple)
                and messages
                and all(isinstance(message, Message) for message in messages)
                and all(isinstance(message.text, str) for message in messages)
            ):
                raise PartError(
                    f"{at}: workflow {self.name} asks {ask.agent} {_short(ask.chat)}; expected a "
                    "text, or a tuple of Message(speaker, text)"
                )
        return list(wave)

    def _answer(self, answer: Any, *, is_silent: bool) -> str | None:
        if is_silent:
            raise PartError(
                f"{where_of(self.function)}: workflow {self.name} ended without asking anybody; "
                "expected at least one wave: yield [Ask(…)]"
            )
        if not isinstance(answer, str | None):
            raise PartError(
                f"{where_of(self.function)}: workflow {self.name} returned {_short(answer)}, a "
                f"{type(answer).__name__}; expected the final answer as text, or None where none "
                "could be read"
            )
        return answer


_TYPES: dict[type[Any], str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
}


def workflow(*, roles: Mapping[str, int | str]) -> Callable[[Callable[..., Play]], Workflow]:
    """Declare a generator function as a workflow of these roles.

    `roles`: role -> number of its agents, or the name of the keyword argument that says how many.
    The function takes the problem, the model's own prompts if it has a second parameter without
    default, and options with defaults. Raises PartError for a function that is not so.

    Example:
        >>> @workflow(roles={"voter": "votes"})
        ... def ask_all(problem, *, votes=3):
        ...     replies = yield [Ask(Agent("voter", i), problem.question) for i in range(votes)]
        ...     return replies[0].value
        >>> len(ask_all.with_options({"votes": 5}).agents)
        5
    """

    def declare(function: Callable[..., Play]) -> Workflow:
        where = where_of(function)
        if not inspect.isgeneratorfunction(function):
            raise PartError(
                f"{where}: {function.__name__} yields nothing; expected a generator function that "
                "yields waves of asks: replies = yield [Ask(…)]"
            )
        if not 1 <= num_required(function) <= 2:
            raise PartError(
                f"{where}: {function.__name__}{inspect.signature(function)}; expected the problem, "
                "maybe the prompts, and options with defaults"
            )
        options = {
            name: parameter.default
            for name, parameter in inspect.signature(function).parameters.items()
            if parameter.default is not parameter.empty
        }
        for name, default in options.items():
            if type(default) not in _TYPES:
                raise PartError(
                    f"{where}: option {name} of {function.__name__} is {default!r} by default; "
                    "expected a number, a text, true or false"
                )
        _check_players(function, roles, options)
        return Workflow(function, dict(roles), options)

    return declare


def _check_players(
    function: Callable[..., Any], roles: Mapping[str, int | str], options: Options
) -> None:
    where = f"{where_of(function)}: workflow {function.__name__}"
    if not roles:
        raise PartError(f"{where} has no roles; expected as in @workflow(roles={{'solver': 1}})")
    for role, number in roles.items():
        if not isinstance(role, str) or not role.replace("_", "").replace("-", "").isalnum():
            raise PartError(f"{where}: role {role!r} must be letters, digits, _ or -")
        if role == "total":
            raise PartError(f"{where}: a role is named 'total', which means all agents; rename it")
        if isinstance(number, str) and number not in options:
            have = ", ".join(options) or "none"
            raise PartError(
                f"{where}: role '{role}' has as many agents as option '{number}' says; its "
                f"options are {have}"
            )


def parse_options(given: Mapping[str, str], defaults: Options) -> dict[str, Any]:
    """{'rounds': 4} from {'rounds': '4'}; a text where the default is one, or it is no JSON."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        found[name] = value
        if not isinstance(defaults.get(name), str):
            with contextlib.suppress(json.JSONDecodeError):
                found[name] = json.loads(value)
    return found


def _line(episode: Play) -> int:
    """Where a generator stands."""
    assert isinstance(episode, GeneratorType)
    assert episode.gi_frame is not None, "it has just yielded"
    return episode.gi_frame.f_lineno


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
