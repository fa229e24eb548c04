"""Shrink weight gradients by random signs from both sides, keeping inner products in expectation.

G -> L^T G R with L [out, k] and R [in, k] of signs / sqrt(k): E <L^T G R, L^T H R> = <G, H>. It is
linear, so projections of parts add up to that of the whole. A linear layer's product G = out^T into
becomes (out L)^T (into R), and G itself is never formed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor

from gradlab.probe.layout import Layout


@dataclass(frozen=True)
class Projection:
    """The signs of one parameter; None for a side that is no longer than the rank."""

    left_Ok: Tensor | None
    right_Ik: Tensor | None

    def of_output(self, out: Tensor) -> Tensor:
        """[..., out] -> [..., k]"""
        return out if self.left_Ok is None else out @ self.left_Ok

    def of_input(self, into: Tensor) -> Tensor:
        """[..., in] -> [..., k]"""
        return into if self.right_Ik is None else into @ self.right_Ik

    def of_gradient(self, gradient: Tensor) -> Tensor:
        """The gradient, leading axes as rows, from both sides."""
        flat = gradient.reshape(-1, gradient.shape[-1])
        return self.of_output(self.of_input(flat).T).T


def projected(layout: Layout, rank: int) -> Layout:
    """The layout of the projected gradients: no side longer than `rank`; vectors stay whole."""
    slots, start = [], 0
    for slot in layout.slots:
        shape = slot.shape
        if len(shape) > 1:
            shape = torch.Size(min(side, rank) for side in sides(shape))
        slots.append(replace(slot, shape=shape, start=start, stop=start + shape.numel()))
        start = slots[-1].stop
    blocks = []
    for block, members in groupby(slots, key=lambda slot: slot.block):
        inside = list(members)
        blocks.append((block, inside[0].start, inside[-1].stop))
    return Layout(tuple(slots), layout.parameters, tuple(blocks), start)


def draw(
    shapes: Sequence[torch.Size], rank: int, seed: int, device: torch.device, dtype: torch.dtype
) -> dict[int, Projection]:
    """Index of a parameter -> its projection, for those that have a side longer than `rank`."""
    generator = torch.Generator(device).manual_seed(seed)

    def signs(side: int) -> Tensor | None:
        if side <= rank:
            return None
        bits = torch.randint(0, 2, (side, rank), generator=generator, device=device, dtype=dtype)
        return bits.mul_(2).sub_(1).div_(rank**0.5)

    found = {}
    for i, shape in enumerate(shapes):
        if len(shape) > 1 and max(sides(shape)) > rank:
            rows, columns = sides(shape)
            found[i] = Projection(signs(rows), signs(columns))
    return found


def sides(shape: torch.Size) -> tuple[int, int]:
    """Rows and columns of a parameter as a matrix: leading axes make up the rows."""
    return shape.numel() // shape[-1], shape[-1]
