"""Say which agent owns which rows (or tokens) of a forward, and keep what is measured per row.

Legend: A agents, n units (rows, or tokens where tokens are tagged), K sketch buckets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor

from gradlab.probe.measures.exact_sums import squared_norms_of

SKETCH_BUCKETS = 257
"""Prime, so that a strided sketch of a matrix does not put whole columns into one bucket."""


@dataclass
class RowSketches:
    """Row gradients of one tagged batch: exact squared norms and sketches, filled by backward."""

    agent_n: Tensor
    prompt_n: Tensor
    sample_n: Tensor
    """-1 where samples were not tagged."""
    sign_n: Tensor
    """Sign of each row's advantage; see `gradlab.probe.measures.row_statistics.UNTAGGED`."""
    one_hot_An: Tensor
    norm2_n: Tensor
    sketch_nK: Tensor
    is_filled: bool = False
    awaited: dict[int, int] = field(default_factory=dict)
    """Slot -> calls of its modules whose gradient has not come yet."""
    held: dict[int, Tensor] = field(default_factory=dict)
    """Slot -> [n, size] row gradients so far, where a parameter is used more than once."""

    @cached_property
    def has_others(self) -> bool:
        """Whether some rows are nobody's."""
        return bool((self.agent_n < 0).any())

    def expect(self, slot: int) -> None:
        self.awaited[slot] = self.awaited.get(slot, 0) + 1

    def settle(self, slot: int) -> None:
        """Add the norms of a parameter that all its uses have contributed to."""
        gradient_nM = self.held.pop(slot)
        self.norm2_n.add_(squared_norms_of(gradient_nM))


@dataclass(frozen=True)
class Tags:
    """Who owns the units of one forward."""

    shape: tuple[int, ...]
    """(rows,) or (rows, tokens)."""
    agents: tuple[int, ...]
    """Agent of each unit; -1 where nobody's."""
    runs: tuple[tuple[int, int, int], ...]
    """(agent, first, last + 1) over units, after `order`."""
    order: tuple[int, ...] | None
    """Permutation that makes the runs contiguous; None if they are already."""
    order_n: Tensor | None
    """The same on the parameters' device."""
    rows: RowSketches | None = None

    @property
    def num_rows(self) -> int:
        """Rows of somebody; all of them where tokens are tagged."""
        return sum(a >= 0 for a in self.agents) if len(self.shape) == 1 else self.shape[0]

    @classmethod
    def of(cls, index: Tensor, device: torch.device, rows: RowSketches | None = None) -> Tags:
        """Tags from agent indices of shape (rows,) or (rows, tokens), in host memory."""
        agents = tuple(index.flatten().tolist())
        runs = runs_of(agents)
        if len(runs) <= 2 * len({agent for agent, _, _ in runs}):
            return cls(tuple(index.shape), agents, tuple(runs), None, None, rows)
        # Many short products cost more than one gather of the inputs.
        order = tuple(sorted(range(len(agents)), key=agents.__getitem__))
        runs = runs_of([agents[unit] for unit in order])
        on_device = torch.tensor(order, device=device)
        return cls(tuple(index.shape), agents, tuple(runs), order, on_device, rows)


def runs_of(agents: Sequence[int]) -> list[tuple[int, int, int]]:
    """(agent, first, last + 1) of maximal stretches of one agent; -1 belongs to nobody."""
    runs, start = [], 0
    for agent, members in groupby(agents):
        stop = start + sum(1 for _ in members)
        if agent >= 0:
            runs.append((agent, start, stop))
        start = stop
    return runs


def whole_numbers(what: str, given: Sequence[int] | Tensor) -> Tensor:
    """Labels in host memory; fractions are refused, since cutting them would join labels."""
    labels = torch.as_tensor(given)
    if labels.is_floating_point() and not bool((labels == labels.round()).all()):
        raise ValueError(f"tag: {what} are {labels.dtype} with fractions; expected whole numbers")
    return labels.to(device="cpu", dtype=torch.int64)
