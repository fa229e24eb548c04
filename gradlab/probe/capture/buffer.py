"""Keep every agent's gradient of an update in one buffer, cleared no sooner than it has to be.

Most parameters get their gradients in one product per update, which writes where the last update's
still are: clearing all of them first would be one pass more over agents x parameters.

Legend: A agents, P measured parameters (elements), M elements of one parameter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from gradlab.probe.layout import Layout


class Buffer:
    """Gradients of A x P elements, and room behind them for what travels with them."""

    def __init__(
        self, layout: Layout, num_agents: int, num_extras: int, dtype: torch.dtype
    ) -> None:
        """`num_extras`: floats that ranks share with the gradients, in one message."""
        self.device = layout.parameters[0].device
        size = num_agents * layout.num_parameters
        self.flat = torch.zeros(size + num_extras, dtype=dtype, device=self.device)
        """[A * P + extras]; see `settle`."""
        self._raw_AP = self.flat[:size].view(num_agents, -1)
        self._parts = [self._raw_AP[:, slot.start : slot.stop] for slot in layout.slots]
        self._views = [
            [own.view(slot.shape) for own in part]
            for slot, part in zip(layout.slots, self._parts, strict=True)
        ]
        self._old: set[int] = set()
        """Slots that still hold an earlier update's gradients."""
        self.clear()

    @property
    def gradient_AP(self) -> Tensor:
        """[A, P] of this update; zero where there is none so far."""
        self.settle()
        return self._raw_AP

    def part(self, slot: int) -> Tensor:
        """[A, M] the agents' gradients of one parameter so far, to add to."""
        if slot in self._old:
            self._old.discard(slot)
            self._parts[slot].zero_()
        return self._parts[slot]

    def views(self, slot: int) -> Sequence[Tensor]:
        """The same per agent and of the parameter's shape."""
        self.part(slot)
        return self._views[slot]

    def fresh_part(self, slot: int) -> Tensor | None:
        """[A, M] room for the first gradients, which has to be written; None if some are there.

        It counts as written once `keep` was told.
        """
        return self._parts[slot] if slot in self._old else None

    def keep(self, slots: Iterable[int]) -> None:
        """What is in these slots is of this update."""
        self._old.difference_update(slots)

    def settle(self) -> None:
        """Clear what no gradient was written to."""
        for slot in self._old:
            self._parts[slot].zero_()
        self._old.clear()

    def multiply(self, factor: float) -> None:
        """Multiply what is there."""
        self.gradient_AP.mul_(factor)

    def clear(self) -> None:
        """Forget the update."""
        self._old.update(range(len(self._parts)))
