"""Shrink long gradients to a few thousand signed sums whose inner products estimate theirs.

A strided sign-sum: element i of a gradient, times a random sign, is added to bucket i mod K. It is
linear, so sketches of agents add up to that of a role, and sketches of updates to that of a path.
Signs are the same in every update and run: two sketches of gradients over the same flat axis can be
compared whenever they were made. An estimated cosine is off by about (1 - cos^2) / sqrt(K).

Legend: A agents, N elements of a stretch of the flat axis, P all of them, K buckets.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

SIGN_SEED = 1
"""Of the signs of every run; kept in the store beside the sketches."""

CHUNK_ELEMENTS = 1 << 18
"""Signed elements held at a time."""


class Sketcher:
    """The buckets and signs of one flat axis; P bytes."""

    def __init__(self, num_elements: int, num_buckets: int, seed: int = SIGN_SEED) -> None:
        """Raises ValueError unless `num_buckets` is prime."""
        # Otherwise a stride of the buckets may fall on whole columns of a weight, and add them up.
        if num_buckets < 2 or any(
            num_buckets % d == 0 for d in range(2, math.isqrt(num_buckets) + 1)
        ):
            raise ValueError(
                f"attach: sketch_buckets is {num_buckets}; expected a prime number such as 4093 "
                "or 16381 (0: no sketches)"
            )
        self.num_buckets = num_buckets
        # Raw bits of PCG64, whose stream is the same in every version of numpy and on every device.
        raw = np.random.PCG64(seed).random_raw(-(-num_elements // 64)).astype("<u8")
        bits = np.unpackbits(raw.view(np.uint8), count=num_elements, bitorder="little")
        self.sign_P = torch.from_numpy(bits.astype(np.int8) * 2 - 1)

    def of(self, part_AN: Tensor, start: int = 0) -> Tensor:
        """[A, K] sketches, in float64, of the stretch of the flat axis that begins at `start`."""
        num_buckets, (num_agents, length) = self.num_buckets, part_AN.shape
        self.sign_P = self.sign_P.to(part_AN.device)
        sums_AK = torch.zeros((num_agents, num_buckets), dtype=torch.float64, device=part_AN.device)
        width = max(CHUNK_ELEMENTS // (num_agents * num_buckets), 1) * num_buckets
        for lo in range(0, length, width):
            hi = min(lo + width, length)
            signed = part_AN[:, lo:hi] * self.sign_P[start + lo : start + hi]
            full = (hi - lo) // num_buckets * num_buckets
            sums_AK += signed[:, :full].view(num_agents, -1, num_buckets).sum(1)
            sums_AK[:, : hi - lo - full] += signed[:, full:]
        return sums_AK.roll(start % num_buckets, dims=1)


def unit(sketch_AK: Tensor, norm2_A: Tensor) -> Tensor:
    """Sketches of the gradients divided by their norms; 0 where the gradient is 0."""
    norm_A = norm2_A.clamp(min=0).sqrt().to(sketch_AK)
    return sketch_AK / torch.where(norm_A == 0, 1.0, norm_A)[:, None]
