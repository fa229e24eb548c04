"""Collect row gradients over the batches, updates and ranks of a training step.

Legend: P measured parameters (elements), K sketch buckets, n rows, M values kept of a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gradlab.probe.capture.tags import SKETCH_BUCKETS, RowSketches, whole_numbers
from gradlab.probe.measures.row_statistics import UNTAGGED, Rows, RowSums
from gradlab.probe.ranks.distributed import Ranks
from gradlab.records import Agent, RowStatistics


class RowBook:
    """The rows of one policy's step so far, as sketches."""

    def __init__(
        self, agents: Sequence[Agent], num_parameters: int, seed: int, ranks: Ranks
    ) -> None:
        """`seed`: of the random signs, which are drawn anew every training step."""
        self.agents = tuple(agents)
        self.sketched_rows_W: tuple[int, ...] = (0,)
        """Rows with a sketch in this update, by rank; set once ranks have shared it."""
        self._num_parameters = num_parameters
        self._seed = seed
        self._ranks = ranks
        self.batches: list[RowSketches] = []
        """Tagged batches of the update in hand."""
        self._agents_of_role = {
            role: [i for i, agent in enumerate(agents) if agent.role == role]
            for role in dict.fromkeys(agent.role for agent in agents)
        }
        self._sums: dict[str, RowSums] = {}
        """Role -> its rows of the step so far."""
        self._rows_step: int | None = None
        self._sign_step: int | None = None

    def open_batch(
        self,
        index: Tensor,
        prompts: Sequence[int] | Tensor,
        samples: Sequence[int] | Tensor | None,
        advantages: Sequence[float] | Tensor | None,
        like_P: Tensor,
    ) -> RowSketches:
        """Room for the rows of one tagged batch, on the device and in the dtype of `like_P`."""
        if index.dim() != 1:
            raise ValueError("tag: prompts need one agent per row; these agents are per token")
        prompt_n = whole_numbers("prompts", prompts).flatten()
        sample_n = (
            torch.full_like(prompt_n, -1)
            if samples is None
            else whole_numbers("samples", samples).flatten()
        )
        sign_n = (
            torch.full_like(prompt_n, UNTAGGED)
            if advantages is None
            else signs_of(torch.as_tensor(advantages, dtype=torch.float64).flatten().cpu())
        )
        labels = {"prompts": prompt_n, "samples": sample_n, "advantages": sign_n}
        for name, given in labels.items():
            if len(given) != len(index):
                raise ValueError(f"tag: {len(index)} rows have agents, {len(given)} have {name}")
        n = len(index)
        one_hot_An = torch.arange(len(self.agents))[:, None] == index
        batch = RowSketches(
            agent_n=index,
            prompt_n=prompt_n,
            sample_n=sample_n,
            sign_n=sign_n,
            one_hot_An=one_hot_An.to(like_P),
            norm2_n=like_P.new_zeros(n),
            sketch_nK=like_P.new_zeros((n, SKETCH_BUCKETS)),
        )
        self.batches.append(batch)
        return batch

    def draw_signs(self, step: int, device: torch.device) -> Tensor | None:
        """[P] random signs of a training step, so that sketch errors of steps are independent.

        None if those of the step were drawn already.
        """
        if self._sign_step == step:
            return None
        self._sign_step = step
        seed = np.random.SeedSequence([self._seed, step])
        generator = torch.Generator(device).manual_seed(int(seed.generate_state(1)[0]))
        bits = torch.randint(0, 2, (self._num_parameters,), generator=generator, device=device)
        return 2 * bits - 1

    @property
    def num_sketched(self) -> int:
        """Rows of this process in this update."""
        return sum(len(batch.norm2_n) for batch in self.batches)

    @property
    def norm2(self) -> float:
        """Sum of the squared norms of the rows of this process in this update."""
        return sum(float(batch.norm2_n.sum()) for batch in self.batches if batch.is_filled)

    def multiply(self, factor: float) -> None:
        """Multiply the row gradients of this update."""
        for batch in self.batches:
            batch.sketch_nK.mul_(factor)
            batch.norm2_n.mul_(factor**2)
            for held_nM in batch.held.values():
                held_nM.mul_(factor)

    def drop_filled(self) -> None:
        """Forget rows whose gradients the trainer dropped."""
        self.batches = [batch for batch in self.batches if not batch.is_filled]

    def forget(self) -> None:
        """Forget the rows of this update; those of the step so far stay."""
        self.batches, self.sketched_rows_W = [], (0,)

    def statistics(self, step: int, device: torch.device) -> dict[str, RowStatistics]:
        """Statistics of every role over the rows of the step so far."""
        if step != self._rows_step:
            self._rows_step, self._sums = step, {}
        if sum(self.sketched_rows_W):
            rows = self._gather(device)
            for role, agents in self._agents_of_role.items():
                self._sums.setdefault(role, RowSums()).add(rows.of(agents))
        return {role: sums.statistics() for role, sums in self._sums.items()}

    def _gather(self, device: torch.device) -> Rows:
        """The update's rows, of all ranks."""
        scale = self._ranks.scale
        floats = [torch.zeros((0, SKETCH_BUCKETS + 1), dtype=torch.float64, device=device)]
        labels = [torch.zeros((0, 4), dtype=torch.int64)]
        for batch in self.batches:
            for slot in [*batch.held]:  # one of the parameter's uses got no gradient
                batch.settle(slot)
            norm2_n = batch.norm2_n.double()[:, None] * scale**2
            floats.append(torch.cat([batch.sketch_nK.double() * scale, norm2_n], dim=1))
            tagged = [batch.agent_n, batch.prompt_n, batch.sample_n, batch.sign_n]
            labels.append(torch.stack(tagged, dim=1))
        floats_nM, labels_nL = self._ranks.gather_rows(
            torch.cat(floats), torch.cat(labels), self.sketched_rows_W
        )
        values, labels_Ln = floats_nM.cpu().numpy(), labels_nL.cpu().numpy().T
        return Rows(values[:, :-1], values[:, -1], *labels_Ln)


def signs_of(advantage_n: Tensor) -> Tensor:
    """The sign of each advantage; `UNTAGGED` for NaN, whose sign is 0 to torch."""
    return torch.where(advantage_n.isnan(), UNTAGGED, advantage_n.sign()).long()
