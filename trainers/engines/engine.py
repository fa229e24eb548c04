"""Say what a sampler needs of an engine: adapters by name, and tokens drawn with them.

An engine holds the base model and copies of adapters. It knows nothing of policies, versions and
training; `trainers.engines.sampler` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trainers.engines.settings import EngineSettings
from trainers.models.sampler import Sample


class EngineLost(RuntimeError):
    """An engine is gone, slow or forgetful: with its adapters loaded anew it may answer again."""


class EngineRefused(RuntimeError):
    """An engine will not do what it was asked for, however often."""


@dataclass(frozen=True)
class Request:
    """One response that is wanted."""

    adapter: str
    """Name that it was loaded under; '' for the base model."""
    prompt: tuple[int, ...]
    temperature: float
    max_tokens: int
    end_ids: tuple[int, ...]
    """Tokens that end the response, as its last token."""
    seed: int


class Engine(Protocol):
    """Whoever draws tokens. Every method raises EngineLost or EngineRefused."""

    @property
    def name(self) -> str:
        """What people know it by, such as its address."""

    def check(self, settings: EngineSettings) -> None:
        """Refuse an engine that was started in another way than the run needs."""

    def revive(self, seconds: float) -> None:
        """Wait until it answers (again), so long at most."""

    def adapters(self) -> list[str]:
        """Names of what is loaded."""

    def load(self, adapter: str, path: Path) -> None:
        """Load a PEFT adapter; its files are there until it is unloaded."""

    def unload(self, adapter: str) -> None:
        """Forget an adapter."""

    def draw(self, requests: Sequence[Request]) -> list[Sample]:
        """A response to each, in their order, with log-probs at the request's temperature."""

    def sleep(self) -> None:
        """Give back what memory can be given back until `wake`."""

    def wake(self) -> None:
        """Be ready to draw."""

    def close(self) -> None:
        """End it, if it is this process's own."""
