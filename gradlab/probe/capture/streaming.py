"""Fold every parameter's gradients into the Gram as soon as its backward is done, and forget them.

For full fine-tuning, where a buffer of agents x parameters does not fit: one parameter's gradients
are held at a time (a tied one's from its first use to its last). What is folded cannot be added to,
so an update has to be one backward.

Legend: A agents, B parameter blocks, S slots (parameters), M elements of one parameter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from gradlab.probe.layout import Layout
from gradlab.probe.measures.exact_sums import inner_products, norm_of, squared_norm_of, total_of
from gradlab.probe.ranks.fsdp1 import ordinary
from gradlab.probe.selfcheck import UNEXPLAINED, SelfCheck

CHUNK = 1 << 18
"""Elements [A, chunk] that are folded at a time on a CPU: what its caches hold."""


class Stream:
    """Grams of one update, and what the self-check will ask of it."""

    def __init__(self, layout: Layout, num_agents: int, dtype: torch.dtype) -> None:
        self.device = layout.parameters[0].device
        self.folded: set[int] = set()
        """Slots whose gradients are in the Gram."""
        self.reopened: set[int] = set()
        """Slots that got gradients after they were folded: their Gram lacks the cross terms."""
        self._layout = layout
        self._num_agents = num_agents
        self._dtype = dtype
        self._open: dict[int, Tensor] = {}
        """Slot -> buffer that holds its part."""
        self._pool: list[Tensor] = []
        """Buffers to use again: pages of fresh memory cost more than the sums made in them."""
        self._block_S = [
            number
            for number, (_, start, stop) in enumerate(layout.blocks)
            for slot in layout.slots
            if start <= slot.start < stop
        ]
        self._gram_BAA = torch.zeros(
            (len(layout.blocks), num_agents, num_agents), dtype=torch.float64, device=self.device
        )
        self._error2_S = self._gram_BAA.new_zeros(len(layout.slots))
        """||g - sum_a g_a||^2 of every parameter, when its backward was done."""
        self._norm2_S = torch.zeros_like(self._error2_S)
        """||g||^2 then."""
        self._handles = [
            p.register_post_accumulate_grad_hook(partial(self._fold, i))  # type: ignore[no-untyped-call]
            for i, p in enumerate(ordinary(layout.parameters, "mode 'streaming'"))
        ]

    def remove(self) -> None:
        """Take the hooks off the parameters."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def clear(self) -> None:
        """Forget the update."""
        self._pool += self._open.values()
        self._open.clear()
        self.folded.clear()
        self.reopened.clear()
        self._gram_BAA.zero_()
        self._error2_S.zero_()
        self._norm2_S.zero_()

    def multiply(self, factor: float) -> None:
        """Multiply what was folded."""
        for squares in (self._gram_BAA, self._error2_S, self._norm2_S):
            squares.mul_(factor**2)

    def part(self, slot: int) -> Tensor:
        """[A, M] the agents' gradients of one parameter so far, to add to."""
        fresh = self.fresh_part(slot)
        return self._part(slot) if fresh is None else fresh.zero_()

    def views(self, slot: int) -> Sequence[Tensor]:
        """The same per agent and of the parameter's shape."""
        return self.part(slot).view(-1, *self._layout.slots[slot].shape).unbind()

    def fresh_part(self, slot: int) -> Tensor | None:
        """[A, M] room for the first gradients, which has to be written; None if some are there."""
        if slot in self._open:
            return None
        self._open[slot] = self._room(self._num_agents * self._layout.slots[slot].shape.numel())
        return self._part(slot)

    def _part(self, slot: int) -> Tensor:
        size = self._num_agents * self._layout.slots[slot].shape.numel()
        return self._open[slot][:size].view(self._num_agents, -1)

    def _room(self, size: int) -> Tensor:
        """A buffer of at least `size` elements; the largest grows where none fits."""
        fitting = [number for number, room in enumerate(self._pool) if room.numel() >= size]
        if fitting:
            return self._pool.pop(min(fitting, key=lambda number: self._pool[number].numel()))
        if self._pool:
            self._pool.pop(max(range(len(self._pool)), key=lambda n: self._pool[n].numel()))
        return torch.empty(size, dtype=self._dtype, device=self.device)

    def _fold(self, slot: int, parameter: Tensor) -> None:
        """Called when autograd has added a backward's whole gradient to `parameter.grad`."""
        if slot not in self._open or parameter.grad is None:
            return
        part_AM = self.part(slot)
        self._pool.append(self._open.pop(slot))
        if slot in self.folded:
            self.reopened.add(slot)
            return
        self.folded.add(slot)
        with torch.no_grad():
            gradient_M = parameter.grad.reshape(-1).to(self._dtype)
            size = part_AM.shape[1]
            width = CHUNK // self._num_agents if self.device.type == "cpu" else size
            for lo in range(0, size, width):
                part, gradient = part_AM[:, lo : lo + width], gradient_M[lo : lo + width]
                self._gram_BAA[self._block_S[slot]] += inner_products(part, part)
                error = total_of(part).sub_(gradient)
                self._error2_S[slot] += squared_norm_of(error)
                self._norm2_S[slot] += squared_norm_of(gradient)

    def gram(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        """[B, A, A] inner products of the agents' gradients."""
        gram_BAA: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = self._gram_BAA.cpu().numpy()
        return gram_BAA.copy()

    def check(self, gradients: Sequence[Tensor | None], rounding: float) -> SelfCheck:
        """The self-check of an update whose gradients are gone: see `SelfCheck`.

        When its backward was done, a gradient was the agents' sum s up to an error; since then all
        were multiplied by one c (clipping). Of a parameter that is not as it was times c, and of
        one without a share, the whole difference counts: ||g_now - c s||^2 is at most
        (c error)^2 + (||g_now|| - c ||g||)^2.
        """
        error2_S, norm2_S = self._error2_S.cpu().numpy(), self._norm2_S.cpu().numpy()
        gram_AA = self._gram_BAA.sum(0).cpu().numpy()
        present = [i for i, gradient in enumerate(gradients) if gradient is not None]
        now_S = np.array([0.0 if g is None else norm_of(g) for g in gradients])
        known = [i for i in present if i in self.folded]
        norm, then = float(np.linalg.norm(now_S)), math.sqrt(norm2_S[known].sum())
        sum2 = float(gram_AA.sum())
        scale = float(np.linalg.norm(now_S[known])) / then if then > 0 else math.nan
        usable = scale if math.isfinite(scale) else 0.0
        error_S = np.sqrt(usable**2 * error2_S + (now_S - usable * np.sqrt(norm2_S)) ** 2)
        total = float(np.linalg.norm(error_S))
        if norm != 0:
            residual = total / norm
        elif sum2 <= 0:
            residual, scale, usable = 0.0, 1.0, 1.0  # nothing to fit: a step without any advantage
        else:
            residual = math.inf
        cancelled = abs(usable) * math.sqrt(np.trace(gram_AA)) / norm if norm > 0 else 1.0
        tolerance = rounding * max(1.0, cancelled)
        suspects = []
        if not residual <= tolerance:
            share = tolerance * norm / math.sqrt(len(present))
            suspects = [i for i in present if not error_S[i] <= share]
        missing = {i for i in suspects if error_S[i] > UNEXPLAINED * now_S[i]}
        covered = set(known) - missing
        sizes_S = [slot.shape.numel() for slot in self._layout.slots]
        # A gradient of zeros, as zero_grad(set_to_none=False) leaves it, is nobody's and complete.
        moved = [i for i in present if i in self.folded or now_S[i] != 0]
        return SelfCheck(
            scale,
            residual,
            norm / (abs(usable) or 1.0),
            sum(sizes_S[i] for i in covered) / sum(sizes_S[i] for i in moved) if moved else 1.0,
            tolerance,
            tuple(
                self._layout.slots[i].name
                for i in sorted(suspects, key=lambda i: error_S[i], reverse=True)
            ),
        )
