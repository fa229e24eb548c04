"""Split a role's gradient into signal, shared prompt and shared episode, from its row gradients.

Rows are turns: row (i, x, k) is what agent i answered to prompt x in sample k. Inner products come
from sketches, so they are unbiased but noisy; a row's inner product with itself is its exact norm.
All estimates are U-statistics: averages over pairs of different rows.

Legend: R rows, K sketch buckets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradlab.records import RowStatistics

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Row gradients of a training step: exact squared norms, and sketches for inner products."""

    sketch_RK: Floats
    norm2_R: Floats
    agent_R: Ints
    """-1: nobody's."""
    prompt_R: Ints
    sample_R: Ints
    """-1: unknown."""

    @classmethod
    def empty(cls, num_buckets: int) -> Rows:
        none = np.zeros(0, dtype=np.int64)
        return cls(np.zeros((0, num_buckets)), np.zeros(0), none, none, none)

    def __len__(self) -> int:
        return len(self.norm2_R)

    def with_batch(
        self, sketch_RK: Floats, norm2_R: Floats, agent_R: Ints, prompt_R: Ints, sample_R: Ints
    ) -> Rows:
        """These rows and those of one more batch."""
        return Rows(
            np.concatenate([self.sketch_RK, sketch_RK]),
            np.concatenate([self.norm2_R, norm2_R]),
            np.concatenate([self.agent_R, agent_R]),
            np.concatenate([self.prompt_R, prompt_R]),
            np.concatenate([self.sample_R, sample_R]),
        )

    def of(self, agents: Sequence[int]) -> tuple[Floats, Floats, Ints, Ints, Ints]:
        """The rows of some agents, as arguments of `row_statistics`."""
        is_in = np.isin(self.agent_R, agents)
        return (
            self.sketch_RK[is_in],
            self.norm2_R[is_in],
            self.agent_R[is_in],
            self.prompt_R[is_in],
            self.sample_R[is_in],
        )


def row_statistics(
    sketch_RK: Floats, norm2_R: Floats, agent_R: Ints, prompt_R: Ints, sample_R: Ints
) -> RowStatistics:
    return RowStatistics(rows=len(norm2_R))
