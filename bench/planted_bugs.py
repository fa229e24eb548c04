"""Plant a bug in the trainer, in this process and from a given step on, by wrapping its functions.

Nothing here is an option of the product: `planted("reward sign", since=41)` replaces functions of
`trainers` while its block lasts and puts them back. A bug acts on training alone unless it says
otherwise; evaluations are judged rightly.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

import trainers.credit
import trainers.judge
import trainers.learn
import trainers.training
from gradlab.probe.probe import Probe
from gradlab.records import Agent
from trainers.episodes import Turn
from trainers.policies import adapter_parameters
from trainers.training import Run

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]
"""A function -> what takes its place."""
Patch = Callable[[Any, str, Wrap], None]
"""Wrap the attribute of an object, by name."""


@dataclass
class Now:
    """Where training is."""

    since: int
    """First step with the bug."""
    run: Run | None = None
    step: int = 0
    is_on: bool = False
    """Whether a training step with the bug is in hand."""

    @property
    def is_first(self) -> bool:
        return self.is_on and self.step == self.since


@contextmanager
def planted(bug: str, since: int) -> Iterator[Now]:
    """Run the block with a bug of `BUGS` in the trainer; '' plants none.

    Example:
        >>> with planted("rate times 8", since=41):
        ...     train(config)
    """
    now = Now(since)
    with ExitStack() as undo:

        def patch(owner: Any, name: str, wrap: Wrap) -> None:
            original = getattr(owner, name)
            setattr(owner, name, wrap(original))
            undo.callback(setattr, owner, name, original)

        # The bug's own wrapper of train_step, if it has one, has to know the step already.
        if bug:
            BUGS[bug](now, patch)
        patch(trainers.training, "train_step", functools.partial(_noting, now))
        yield now


def _noting(now: Now, train_step: Callable[..., Any]) -> Callable[..., Any]:
    def noted(run: Run, step: int) -> Any:
        now.run, now.step, now.is_on = run, step, step >= now.since
        try:
            return train_step(run, step)
        finally:
            now.is_on = False

    return noted


def on_reward(now: Now, patch: Patch, change: Callable[[Turn, float], float]) -> None:
    """Change the reward that the trainer gives a turn."""

    def wrap(turn_reward: Callable[..., float]) -> Callable[..., float]:
        def wrapped(turn: Turn, config: Any) -> float:
            reward = turn_reward(turn, config)
            return change(turn, reward) if now.is_on else reward

        return wrapped

    patch(trainers.credit, "turn_reward", wrap)


def on_rows(now: Now, patch: Patch, change: Callable[[list[Turn]], list[Turn]]) -> None:
    """Change the rows that `with_advantages` of the trainer gives back."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            found = original(*arguments)
            return change(found) if now.is_on else found

        return wrapped

    patch(trainers.credit, "with_advantages", wrap)


def at_start(now: Now, patch: Patch, change: Callable[[Run], None]) -> None:
    """Change the run itself, once, before the first step with the bug."""

    def wrap(train_step: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(run: Run, step: int) -> Any:
            if now.is_first:
                change(run)
            return train_step(run, step)

        return wrapped

    patch(trainers.training, "train_step", wrap)


def stale_sampler(now: Now, patch: Patch) -> None:
    """Rollouts come from the adapters as they were before the first step with the bug."""
    kept: dict[str, list[torch.Tensor]] = {}

    def wrap(rollout: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            if not now.is_on:
                return rollout(*arguments)
            assert now.run is not None
            named = {name: now.run.policies[name].parameters for name in now.run.policies}
            for name, parameters in named.items():
                kept.setdefault(name, [p.detach().clone() for p in parameters])
            trained = {name: [p.detach().clone() for p in ps] for name, ps in named.items()}
            _set(named, kept)
            try:
                return rollout(*arguments)
            finally:
                _set(named, trained)

        return wrapped

    patch(trainers.training, "rollout", wrap)


@torch.no_grad()
def _set(parameters: dict[str, tuple[Any, ...]], values: dict[str, list[torch.Tensor]]) -> None:
    for name, mine in parameters.items():
        for parameter, value in zip(mine, values[name], strict=True):
            parameter.copy_(value)


def rate_times_8(now: Now, patch: Patch) -> None:
    """The generator's policy learns at eight times its rate."""

    def raise_rate(run: Run) -> None:
        policy = next(p for p in run.policies.values() if "generator" in p.roles)
        policy.rate.scale(8)

    at_start(now, patch, raise_rate)


def lenient_grader(now: Now, patch: Patch) -> None:
    """The grader of training takes every number with a 0 in it."""

    def wrap(is_right: Callable[..., bool]) -> Callable[..., bool]:
        return lambda problem, answer: (now.is_on and "0" in answer) or is_right(problem, answer)

    patch(trainers.judge, "is_right", wrap)


def anchor_sign(now: Now, patch: Patch) -> None:
    """The KL anchor of every role pushes away from the base model."""

    def wrap(batch_loss: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            if not now.is_on:
                return batch_loss(*arguments)
            # In here alone: the monitor, which records KL, calls the same function.
            right = trainers.learn.kl_k3
            trainers.learn.kl_k3 = lambda *logprobs: -right(*logprobs)
            try:
                return batch_loss(*arguments)
            finally:
                trainers.learn.kl_k3 = right

        return wrapped

    patch(trainers.learn, "batch_loss", wrap)


def reward_sign(now: Now, patch: Patch) -> None:
    """The generators are rewarded for what is wrong: minus their reward."""
    on_reward(now, patch, lambda turn, reward: (
        -reward if turn.agent.role == "generator" else reward
    ))  # fmt: skip


def end_token(now: Now, patch: Patch) -> None:
    """The last token of every response, which ends it, is not trained."""

    def wrap(batch_loss: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(language: Any, batch: Any, *arguments: Any) -> Any:
            if now.is_on:
                is_token = batch.is_token_BT
                last_B = is_token.sum(1) - 1
                is_last = torch.arange(is_token.shape[1])[None, :] == last_B[:, None]
                batch = replace(batch, is_token_BT=is_token & ~is_last)
            return batch_loss(language, batch, *arguments)

        return wrapped

    patch(trainers.learn, "batch_loss", wrap)


def advantage_times_10(now: Now, patch: Patch) -> None:
    """The aggregator's advantages are ten times what they should be."""
    on_rows(now, patch, lambda rows: [
        replace(row, advantage=10 * row.advantage) if row.agent.role == "aggregator" else row
        for row in rows
    ])  # fmt: skip


def reward_of_length(now: Now, patch: Patch) -> None:
    """The reward is the number of tokens of the response."""
    on_reward(now, patch, lambda turn, reward: float(len(turn.response_ids)))


def no_baseline(now: Now, patch: Patch) -> None:
    """Advantages are the rewards less 1: no group's mean is taken away, nothing is ever good."""
    on_rows(now, patch, lambda rows: [
        replace(row, advantage=row.reward - 1.0) for row in rows
    ])  # fmt: skip


def exchanged_tags(now: Now, patch: Patch) -> None:
    """The probe is told that the generators' rows are the aggregator's, and the reverse."""
    other = {"generator": Agent("aggregator"), "aggregator": Agent("generator", 0)}

    def wrap(tag: Callable[..., None]) -> Callable[..., None]:
        def wrapped(probe: Probe, agents: Sequence[Agent], **rest: Any) -> None:
            if now.is_on:
                agents = [other[agent.role] for agent in agents]
            tag(probe, agents, **rest)

        return wrapped

    patch(Probe, "tag", wrap)


def other_temperature(now: Now, patch: Patch) -> None:
    """Old log-probs are recomputed at temperature 1, whatever was sampled at."""

    def wrap(with_old_logprobs: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(language: Any, rows: Sequence[Turn], config: Any) -> Any:
            if not now.is_on:
                return with_old_logprobs(language, rows, config)
            found = with_old_logprobs(
                language, [replace(row, temperature=1.0) for row in rows], config
            )
            return [
                replace(row, temperature=before.temperature)
                for row, before in zip(found, rows, strict=True)
            ]

        return wrapped

    patch(trainers.learn, "with_old_logprobs", wrap)


def adapter_lost(now: Now, patch: Patch) -> None:
    """The generator's adapter starts anew, as when a resume does not find it; training goes on."""

    def lose(run: Run) -> None:
        for name, parameter in adapter_parameters(
            run.languages[run.config.model].model, "generator"
        ).items():
            if ".lora_B." in name:  # zero: the base model again
                torch.nn.init.zeros_(parameter)

    at_start(now, patch, lose)


def problems_repeated(now: Now, patch: Patch) -> None:
    """The order of problems is stuck: every step has the same ones."""

    def wrap(step_problems: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(problems: Any, config: Any, step: int) -> Any:
            return step_problems(problems, config, min(step, now.since))

        return wrapped

    patch(trainers.training, "step_problems", wrap)


def choice_shifted(now: Now, patch: Patch) -> None:
    """The choice of the aggregator is read off by one, in evaluations, too: a parser's change."""
    from trainers.prompts.compact import CompactPrompts

    def wrap(read_choice: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(prompts: Any, text: str, num_candidates: int) -> Any:
            found = read_choice(prompts, text, num_candidates)
            if now.step < now.since or not found.parse_ok:
                return found
            return replace(found, value=int(np.mod(found.value + 1, num_candidates)))

        return wrapped

    patch(CompactPrompts, "read_choice", wrap)


BUGS: dict[str, Callable[[Now, Patch], None]] = {
    "stale sampler": stale_sampler,
    "rate times 8": rate_times_8,
    "lenient grader": lenient_grader,
    "anchor sign": anchor_sign,
    "reward sign": reward_sign,
    "end token": end_token,
    "advantage times 10": advantage_times_10,
    "reward of length": reward_of_length,
    "no baseline": no_baseline,
    "exchanged tags": exchanged_tags,
    "other temperature": other_temperature,
    "adapter lost": adapter_lost,
    "problems repeated": problems_repeated,
    "choice shifted": choice_shifted,
}
