"""Measure what is kept on request only: sketches of every update, gradients of effective weights.

Legend: A agents, B parameter blocks, P measured parameters (elements), K sketch buckets.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from gradlab.probe.capture.tags import Tags
from gradlab.probe.layout import Layout
from gradlab.probe.measures.effective import Effective
from gradlab.probe.measures.exact_sums import inner_products
from gradlab.probe.measures.sketches import SIGN_SEED, Sketcher, unit
from gradlab.probe.measures.step_split import StepSplit
from gradlab.probe.ranks.distributed import Losses, Ranks
from gradlab.records import FloatArray, Mode, PolicyMeta


@dataclass(frozen=True)
class Request:
    """What `gradlab.probe.probe.attach` was asked to keep; see there."""

    sketch_buckets: int = 0
    effective: bool = False

    def check(self, mode: Mode, num_ranks: int, losses: Losses = "mean") -> None:
        if self.sketch_buckets and mode in ("sketch", "streaming"):
            raise ValueError(
                f"attach: sketch_buckets needs the agents' whole gradients, which mode '{mode}' "
                "does not keep; use 'exact' or 'fused'"
            )
        if self.effective and (mode == "reference" or (num_ranks > 1 and losses == "mean")):
            raise ValueError(
                f"attach: effective=True needs tags and one process, or losses='sum'; mode is "
                f"'{mode}', there are {num_ranks} processes"
            )


class Extras:
    """The requested measurements of one policy; does nothing where nothing was requested."""

    def __init__(
        self, request: Request, model: nn.Module, layout: Layout, num_agents: int, seed: int
    ) -> None:
        buckets = request.sketch_buckets
        self.sketcher = Sketcher(layout.num_parameters, buckets) if buckets else None
        self._effective: Effective | None = None
        self._effective_sketcher: Sketcher | None = None
        if request.effective:
            self._effective = Effective(model, layout.parameters, num_agents, seed)
            if buckets:
                num_elements = self._effective.layout.num_parameters
                self._effective_sketcher = Sketcher(num_elements, buckets)

    @property
    def failures(self) -> dict[str, str]:
        """Module -> why the gradient of its effective weight is not known."""
        return {} if self._effective is None else self._effective.failures

    def complete(self, meta: PolicyMeta) -> PolicyMeta:
        """Say in the policy's metadata what is kept."""
        if self._effective is not None:
            meta = replace(meta, effective=self._effective.fingerprint)
        if self.sketcher is not None:
            buckets = self.sketcher.num_buckets
            meta = replace(meta, sketch_buckets=buckets, sketch_seed=SIGN_SEED)
        return meta

    def follow(self, tags: Tags, step: int, before_first: Callable[[], None]) -> None:
        """The next forwards have these tags; see `gradlab.probe.capture.capture.Capture.listen`."""
        if self._effective is not None:
            self._effective.follow(tags, step, before_first)

    def untag(self) -> None:
        if self._effective is not None:
            self._effective.tags = None

    def paused(self) -> AbstractContextManager[None]:
        """Capture nothing inside."""
        return nullcontext() if self._effective is None else self._effective.paused()

    def multiply(self, factor: float) -> None:
        """Multiply what was captured so far."""
        if self._effective is not None:
            self._effective.multiply(factor)

    def share(self, ranks: Ranks) -> None:
        """Join what the ranks captured."""
        if self._effective is not None and ranks.size > 1:
            self._effective.allocate()
            ranks.join(self._effective.buffer)

    def drop(self) -> None:
        """Forget the gradients, not the tags."""
        if self._effective is not None:
            self._effective.drop()

    def clear(self) -> None:
        """Forget the update."""
        if self._effective is not None:
            self._effective.clear()

    def remove(self) -> None:
        """Take all hooks off the model."""
        if self._effective is not None:
            self._effective.remove()

    def read(
        self, gradient_AP: Tensor, gram_BAA: FloatArray, split: StepSplit | None
    ) -> dict[str, FloatArray]:
        """What the update leaves behind, by field of `UpdateRecord`; sketches of unit vectors."""
        found: dict[str, Tensor] = {}
        if self._effective is not None:
            effective_AP = self._effective.gradient_AP
            gram_AA = inner_products(effective_AP, effective_AP)
            found["effective_gram_AA"] = gram_AA
            if self._effective_sketcher is not None:
                sketch_AK = self._effective_sketcher.of(effective_AP)
                found["effective_sketch_AK"] = unit(sketch_AK, gram_AA.diagonal())
        if self.sketcher is not None:
            norm2_A = torch.as_tensor(gram_BAA.sum(0).diagonal().copy())
            found["sketch_AK"] = unit(self.sketcher.of(gradient_AP), norm2_A)
            if split is not None and split.sketch_AK is not None:
                norm2_A = split.update_gram_AA.diagonal()
                found["update_sketch_AK"] = unit(split.sketch_AK, norm2_A)
        return {name: tensor.cpu().numpy() for name, tensor in found.items()}
