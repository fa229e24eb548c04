"""Read what a replay changes: `kl-anchor:aggregator=0.05` and its like, as a configuration."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trainers.config import TrainConfig


@dataclass(frozen=True)
class Kind:
    """One thing that a replay can change."""

    form: str
    """How it is written; '=' means that it is about a role."""
    meaning: str
    apply: Callable[[TrainConfig, str, str], dict[str, Any]]
    """Fields of the configuration, given the original one, the role and the value."""


def _number(text: str, kind: type[int] | type[float] = float) -> Any:
    try:
        return kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise ValueError(f"expected {what}, got '{text}'") from None


def _by_role(name: str) -> Callable[[TrainConfig, str, str], dict[str, Any]]:
    return lambda config, role, value: {name: {**getattr(config, name), role: _number(value)}}


def _damping(config: TrainConfig, role: str, value: str) -> dict[str, Any]:
    strength, _, window = value.partition(",")
    fields: dict[str, Any] = {"coherence_damping": _number(strength)}
    return {**fields, "coherence_window": _number(window, int)} if window else fields


KINDS = {
    "kl-anchor": Kind(
        "kl-anchor:ROLE=0.05", "anchor a role to the base model", _by_role("kl_coefficient")
    ),
    "lr": Kind(
        "lr:0.5",
        "multiply the learning rate",
        lambda config, _, value: {
            "learning_rate": config.learning_rate * _number(value),
            "policy_learning_rate": {
                name: rate * _number(value) for name, rate in config.policy_learning_rate.items()
            },
        },
    ),
    "policy-lr": Kind(
        "policy-lr:POLICY=5e-4", "set a policy's learning rate", _by_role("policy_learning_rate")
    ),
    "temperature": Kind(
        "temperature:ROLE=0.7", "set a role's temperature", _by_role("role_temperature")
    ),
    "max-share": Kind(
        "max-share:ROLE=0.5", "cap a role's share of the gradient mass", _by_role("max_share")
    ),
    "equalize": Kind(
        "equalize", "give all roles of a policy the same mass", lambda *_: {"equalize": True}
    ),
    "role-clip": Kind("role-clip:ROLE=1", "clip a role's own gradient", _by_role("role_clip")),
    "role-weight": Kind(
        "role-weight:ROLE=0", "weigh a role's gradient; 0 leaves it out", _by_role("role_weight")
    ),
    "clip": Kind(
        "clip:0.5",
        "clip every policy's gradient",
        lambda c, _, value: {"clip_norm": _number(value)},
    ),
    "damping": Kind(
        "damping:0.3 or damping:0.3,32", "damp gradients that repeat themselves", _damping
    ),
    "role-damping": Kind(
        "role-damping:ROLE=0.3", "damp those of a role's policy", _by_role("role_damping")
    ),
    "updates": Kind(
        "updates:1",
        "make this many updates per policy and step",
        lambda c, _, value: {"updates": "fixed", "fixed_updates": _number(value, int)},
    ),
    "entropy": Kind(
        "entropy:0.001",
        "add an entropy bonus",
        lambda c, _, value: {"entropy_coefficient": _number(value)},
    ),
    "group-by": Kind(
        "group-by:role_number", "compare other rewards", lambda c, _, value: {"group_by": value}
    ),
    "reward": Kind("reward:mix", "pay for something else", lambda c, _, value: {"reward": value}),
    "isolate": Kind(
        "isolate",
        "give each role a copy of the adapter that it shares",
        lambda *_: {"routing": "isolated"},
    ),
    "isolate-agents": Kind(
        "isolate-agents",
        "give each agent a copy of the adapter that it shares",
        lambda *_: {"routing": "agents"},
    ),
    "merge": Kind(
        "merge:ROLE",
        "let all roles share an adapter, which starts as this role's or agent's",
        lambda *_: {"routing": "shared"},
    ),
}
_CHOICES = {
    "group_by": ("role", "role_number", "role_turn"),
    "reward": ("outcome", "own", "rubric", "mix"),
}


def changed(config: TrainConfig, changes: Sequence[str]) -> TrainConfig:
    """The configuration with the changes made, in order.

    Raises ValueError for what cannot be read or changes nothing.
    """
    if not changes:
        raise ValueError(f"a replay needs something to change: --with one of\n{listed()}")
    for text in changes:
        before = config
        name, role, value = parsed(text)
        try:
            fields = KINDS[name].apply(config, role, value)
            for field, choices in _CHOICES.items():
                if fields.get(field, choices[0]) not in choices:
                    raise ValueError(f"expected {', '.join(choices)}")
            config = replace(config, **fields)
        except ValueError as error:
            raise ValueError(f"--with {text}: {error}") from error
        if config == before:
            raise ValueError(f"--with {text} changes nothing: the run was trained with that")
    return config


def parsed(text: str) -> tuple[str, str, str]:
    """(name, role, value) of one change; '' for what its kind does not have."""
    match = re.fullmatch(r"([a-z-]+)(?:[:=](.+))?", text.strip())
    name, rest = (match[1], match[2] or "") if match else (text, "")
    if name not in KINDS:
        raise ValueError(f"--with {text}: unknown; expected one of\n{listed()}")
    form = KINDS[name].form
    role, mark, value = rest.partition("=") if "=" in form else ("", "=", rest)
    if ":" not in form and rest:
        raise ValueError(f"--with {text}: takes no value; expected {form}")
    if not mark or (":" in form and not value) or ("=" in form and not role):
        raise ValueError(f"--with {text}: cannot be read; expected {form}")
    return name, role, value


def merged_from(changes: Sequence[str]) -> str | None:
    """The role whose adapter `merge:ROLE` starts from; None without it."""
    roles = [value for name, _, value in map(parsed, changes) if name == "merge"]
    return roles[-1] if roles else None


def listed() -> str:
    return "\n".join(f"  {kind.form:32} {kind.meaning}" for kind in KINDS.values())
