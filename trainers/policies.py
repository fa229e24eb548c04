"""Give every policy its parameters, optimizer, learning-rate schedule with warm-up, and probe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Parameter

from gradlab.probe.probe import Probe, attach
from gradlab.records import Agent, PolicyMeta
from trainers.config import TrainConfig
from trainers.interventions import CoherenceDamping, damping_of
from trainers.models.language import LanguageModel


class TrainingError(RuntimeError):
    """Training cannot go on, and going on silently would be worse."""


class LearningRate:
    """The learning rate of one optimizer: whatever changes it, changes it here.

    A base rate times the warm-up's factor at the present tick.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, base: float, factor: Callable[[int], float]
    ) -> None:
        self._optimizer = optimizer
        self._factor = factor
        self.base = base
        """After warm-up."""
        self.ticks = 0
        self._set()

    @property
    def now(self) -> float:
        """Of the next update."""
        return self.base * self._factor(self.ticks)

    def tick(self) -> None:
        """Go on with the warm-up."""
        self.ticks += 1
        self._set()

    def scale(self, factor: float) -> None:
        """Multiply the rate, from the next update on and for good."""
        self.base *= factor
        self._set()

    def state_dict(self) -> dict[str, Any]:
        return {"base": self.base, "ticks": self.ticks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.base, self.ticks = rate_state(state)
        self._set()

    def _set(self) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self.now


def rate_state(state: Mapping[str, Any]) -> tuple[float, int]:
    """Base rate and ticks in a checkpoint's state, also of one that torch's schedule wrote."""
    if "base_lrs" in state:
        return float(state["base_lrs"][0]), int(state["last_epoch"])
    return float(state["base"]), int(state["ticks"])


@dataclass(frozen=True)
class Policy:
    """Weights that learn, and the agents that speak with them."""

    name: str
    language: LanguageModel
    """The base model with, among others, its adapter."""
    agents: tuple[Agent, ...]
    parameters: tuple[Parameter, ...]
    optimizer: torch.optim.AdamW
    rate: LearningRate
    probe: Probe | None
    damping: CoherenceDamping | None = None

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(agent.role for agent in self.agents))

    @property
    def learning_rate(self) -> float:
        return self.rate.now

    def meta(self) -> PolicyMeta:
        if self.probe:
            return self.probe.meta
        num_parameters = sum(parameter.numel() for parameter in self.parameters)
        return PolicyMeta(self.name, self.agents, ("unmeasured",), num_parameters)


def build_policies(
    languages: Mapping[str, LanguageModel],
    config: TrainConfig,
) -> dict[str, Policy]:
    """One policy per name in the routing, in order of first appearance; none of frozen roles.

    `languages`: by name of the base model.

    Raises ValueError for a policy without trainable parameters.
    """
    routing = config.policy_by_agent()
    return {
        name: _build_policy(
            name,
            tuple(agent for agent in routing if routing[agent] == name),
            languages[config.model_of_policy(name)],
            config,
        )
        for name in config.policies
    }


def _build_policy(
    name: str,
    agents: tuple[Agent, ...],
    language: LanguageModel,
    config: TrainConfig,
) -> Policy:
    # One optimizer per adapter: an optimizer over all of them would let momentum and weight decay
    # move the adapters that are not being trained.
    language.activate(name)
    named = adapter_parameters(language.model, name)
    if not named:
        raise ValueError(f"policy '{name}' has no trainable parameters; --lora-rank fits no layer")
    base = config.learning_rate_of(name)
    optimizer = torch.optim.AdamW(
        named.values(), lr=base, weight_decay=config.weight_decay_of(name)
    )
    probe = None
    if config.probe != "off":
        probe = attach(
            language.model,
            optimizer,
            agents=agents,
            policy=name,
            projection_seed=config.seed,
            sketch_buckets=config.sketch_buckets,
            effective=config.effective,
            mode=config.probe,
            losses="sum",
        )
    return Policy(
        name,
        language,
        agents,
        tuple(named.values()),
        optimizer,
        LearningRate(optimizer, base, warmup(config)),
        probe,
        damping_of(tuple(named.values()), config, tuple(dict.fromkeys(a.role for a in agents))),
    )


def adapter_parameters(model: Any, policy: str) -> Mapping[str, Parameter]:
    """The parameters of one adapter by full name; exact match of its key, no substring."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if policy in name.split(".")[-2:-1] and ".lora_" in name
    }


def not_finite(language: LanguageModel, policy: str) -> list[str]:
    """Names of the policy's parameters that hold a NaN or an infinity."""
    return [
        name
        for name, parameter in adapter_parameters(language.model, policy).items()
        if not bool(parameter.isfinite().all())
    ]


def warmup(config: TrainConfig) -> Callable[[int], float]:
    """Linear warm-up, then constant. With `scheduler_tick='policy'` the first rate is 0, as in the
    paper's code."""
    offset = 0 if config.scheduler_tick == "policy" else 1

    def factor(tick: int) -> float:
        return min(1.0, (tick + offset) / max(1, config.warmup_steps))

    return factor if config.warmup_steps else lambda _: 1.0
