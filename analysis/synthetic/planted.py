"""Name what can be planted in a synthetic run: failures, causes, and the shape of gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DropKind = Literal["cliff", "slow decay", "dip", "last"]


@dataclass(frozen=True)
class Cliff:
    """A drop in held-out accuracy. 'dip' recovers, 'last' is one evaluation: both innocent."""

    step: int
    drop: float
    kind: DropKind = "cliff"
    duration: int = 0
    """Steps from the first loss to the last; for 'dip', how long it lasts."""
    role: str = "generator"
    """Whose own evaluation falls with it."""


@dataclass(frozen=True)
class Capture:
    """From `step` on, the role's gradient is `factor` times as long as its share of the loss."""

    role: str
    step: int
    factor: float = 6.0
    ramp: int = 1
    """Steps it takes."""


@dataclass(frozen=True)
class Shift:
    """From `step` on, one ledger signal of a role, or the learning rate, times `factor`."""

    signal: str
    role: str
    step: int
    factor: float
    ramp: int = 1


@dataclass(frozen=True)
class Spike:
    """From `step` on, for `length` steps, the role's gradient is `factor` times as long."""

    role: str
    step: int
    factor: float
    length: int = 1


@dataclass(frozen=True)
class Rows:
    """Variance components of a role's row gradients, as shares of a row's energy."""

    signal: float = 0.03
    prompt: float = 0.0
    """Shared by the agents on the same prompt: what amplification is."""
    within: float = 0.1
    """An agent's own, on a prompt."""
    episode: float = 0.0
