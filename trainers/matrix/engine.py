"""What trains cells somewhere: start one, say which ended, stop them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from trainers.matrix.state import How

FINISHED, FAILED, TAKEN, DISK = 0, 1, 3, 28
"""Exit statuses of a cell's process; one that was stopped by a signal has 128 and its number."""


@dataclass(frozen=True)
class Exit:
    """A cell that is trained no more."""

    name: str
    how: How | None = None
    """Set where its own process could not say why it ended."""
    text: str = ""
    was_taken: bool = False
    """Whether another process trained it already."""


class Engine(Protocol):
    """Where cells are trained."""

    def free(self) -> int:
        """How many more cells can begin now."""

    def start(self, name: str) -> None:
        """Begin a cell."""

    def ended(self) -> Sequence[Exit]:
        """Cells that ended since the last question."""

    def stop(self, now: bool) -> None:
        """Ask all to finish the step in hand, save and end; with `now`, end them."""

    @property
    def busy(self) -> Sequence[str]:
        """Cells that were begun and have not ended."""

    def close(self) -> None:
        """Let go of everything."""
