"""Split an optimizer's step into the agents' parts: exactly, because its moments are linear.

Adam(W): m_a <- b1 m_a + (1 - b1) c g_a ; d_a = -lr / (1 - b1^t) m_a / (sqrt(v / (1 - b2^t)) + eps),
where c is the scalar the probe fitted (clipping, averaging, loss scale) and v the optimizer's own
second moment. Then sum_a d_a + decay = theta_after - theta_before. SGD with momentum likewise. The
shares are exact given the realised v, which all agents shape together; they are no counterfactual.

Legend: A agents, P measured parameters (elements), S slots (parameters).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradlab.probe.layout import Layout
from gradlab.probe.measures.exact_sums import inner_products, total_of
from gradlab.probe.measures.sketches import Sketcher
from gradlab.probe.ranks.distributed import Piece, in_full
from gradlab.probe.ranks.fsdp1 import has_state, num_steps, owner_of, state_of

CHUNK_ELEMENTS = 1 << 20
"""Elements of an [A, chunk] block: bounds temporary memory; cache-sized blocks are no faster."""


@dataclass(frozen=True)
class StepSplit:
    """One optimizer step as a sum over agents."""

    update_gram_AA: Tensor
    """<d_a, d_b>, float64."""
    transfer_AA: Tensor
    """<g_a, d_b>, float64, g unclipped."""
    history_AA: Tensor
    """<g_a, m_b> with m before the step, float64, over the elements that the step moved."""
    moment_gram_AA: Tensor
    """<m_a, m_b> before the step, likewise."""
    update_norm: float
    """||sum_a d_a||, summed before it is squared: agents may cancel by orders of magnitude."""
    decay_norm: float
    """Norm of the weight-decay part of the step."""
    coherence: float
    """Adam: root mean square of sum_a d_a / lr over moved elements; NaN for others."""
    sketch_AK: Tensor | None
    """Sketches of d_a, where a sketcher was given."""


@dataclass(frozen=True)
class Segment:
    """A stretch of the flat axis whose parameters are stepped with the same numbers."""

    start: int
    stop: int
    group: dict[str, Any]
    count: int
    """Adam: steps made on these parameters, with the current one. SGD: 1 at the first, else 2."""


def why_not_split(optimizer: torch.optim.Optimizer) -> str | None:
    """Why this optimizer's step has no exact split into agents; None if it has one."""
    if type(optimizer) in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD):
        return None
    return (
        f"{type(optimizer).__name__} is not linear in the gradient with known moments; "
        "gradients are split, its updates are not (torch's Adam, AdamW and SGD are)"
    )


class Moments:
    """The agents' parts of an optimizer's first moment (Adam) or momentum buffer (SGD).

    `before_step` and `after_step` bracket every `optimizer.step()`. Cost: A x P floats and a few
    elementwise passes over them.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, layout: Layout, num_agents: int, dtype: torch.dtype
    ) -> None:
        self.optimizer = optimizer
        self.layout = layout
        device = layout.parameters[0].device
        self.moment_AP = torch.zeros(
            (num_agents, layout.num_parameters), dtype=dtype, device=device
        )
        self.decay_P: Tensor | None = None
        """Moment of the coupled (L2) weight decay; None while no group has any."""
        self.is_adam = isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW))
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        self._groups = [groups[id(owner_of(p))] for p in layout.parameters]
        self._coupled_P: Tensor | None = None
        self._decay_norm2 = 0.0
        self._is_first: list[bool] = []

    @property
    def is_attached_late(self) -> bool:
        """Whether the optimizer already has moments that no agent's gradient explains."""
        return any(has_state(self.optimizer, p) for p in self.layout.parameters)

    def before_step(self, theta_norm_S: Tensor) -> None:
        """Keep what of theta_before the step will need for its weight decay.

        `theta_norm_S`: [S] norms of the parameters, float64.
        """
        self._coupled_P, self._decay_norm2 = None, 0.0
        parameters = self.layout.parameters
        if not self.is_adam:
            self._is_first = [not has_state(self.optimizer, p) for p in parameters]
        for group in {id(group): group for group in self._groups}.values():
            decay = group["weight_decay"]
            moved = [
                i
                for i, (p, own) in enumerate(zip(parameters, self._groups, strict=True))
                if own is group and p.grad is not None
            ]
            if decay == 0 or not moved:
                continue
            if self._is_decoupled(group):
                norm2 = float(theta_norm_S[moved].square().sum())
                self._decay_norm2 += (float(group["lr"]) * decay) ** 2 * norm2
                continue
            if self._coupled_P is None:
                self._coupled_P = torch.zeros_like(self.moment_AP[0])
            thetas = in_full([parameters[i].detach() for i in moved])
            for i, theta in zip(moved, thetas, strict=True):
                slot = self.layout.slots[i]
                self._coupled_P[slot.start : slot.stop] = theta.reshape(-1) * decay
        if self._coupled_P is not None and self.decay_P is None:
            self.decay_P = torch.zeros_like(self._coupled_P)

    def _is_decoupled(self, group: dict[str, Any]) -> bool:
        # torch < 2.7 has no such entry in AdamW's groups
        return isinstance(self.optimizer, torch.optim.AdamW) or bool(
            group.get("decoupled_weight_decay", False)
        )

    def after_step(
        self,
        gradient_AP: Tensor,
        scale: float,
        sketcher: Sketcher | None = None,
        factor_A: Tensor | None = None,
    ) -> StepSplit:
        """Advance the moments with scale * gradient_AP and read the step's parts out of them.

        `factor_A`: by what the trainer multiplied each agent's gradient; transfer and history are
        of the gradients as captured.
        """
        num_agents = len(gradient_AP)
        if not math.isfinite(scale):  # nothing of this step is theirs, and NaN would stay for good
            gradient_AP, scale = torch.zeros_like(gradient_AP), 0.0
        update_gram_AA = torch.zeros(
            (num_agents, num_agents), dtype=torch.float64, device=gradient_AP.device
        )
        transfer_AA, history_AA = torch.zeros_like(update_gram_AA), torch.zeros_like(update_gram_AA)
        moment_gram_AA, update_norm2 = torch.zeros_like(history_AA), history_AA.new_zeros(())
        relative_norm2, num_moved = update_norm2.clone(), update_norm2.clone()
        decay_norm2, sketch_AK = self._decay_norm2, None
        scale_P = torch.empty_like(self.moment_AP[0])
        if self.is_adam:
            self._read_second_moment(scale_P)
        for part in self._segments():
            if self.is_adam:
                self._precondition(scale_P[part.start : part.stop], part)
            decay_norm2 += self._advance_decay(part, scale_P)
            sign = -1 if part.group["maximize"] else 1
            weight = sign * scale
            for lo, hi in self._chunks(part):
                gradient, moment = gradient_AP[:, lo:hi], self.moment_AP[:, lo:hi]
                history_AA.add_(inner_products(gradient, moment), alpha=sign)
                moment_gram_AA += inner_products(moment, moment)
                fed = gradient if factor_A is None else gradient * factor_A[:, None]
                step = self._advance(moment, fed, weight, part)
                if self.is_adam:
                    step = step * scale_P[lo:hi]
                update_gram_AA += inner_products(step, step)
                transfer_AA += inner_products(gradient, step)
                if sketcher is not None:
                    part_AK = sketcher.of(step, lo)
                    sketch_AK = part_AK if sketch_AK is None else sketch_AK.add_(part_AK)
                total = total_of(step)
                num_moved += torch.count_nonzero(total)
                norm2 = total.square_().sum()
                update_norm2 += norm2
                if float(part.group["lr"]) != 0:  # a group that is held still has moved nothing
                    relative_norm2 += norm2 / float(part.group["lr"]) ** 2
        norm2, coherence2 = torch.stack([update_norm2, relative_norm2 / num_moved]).tolist()
        return StepSplit(
            update_gram_AA,
            transfer_AA,
            history_AA,
            moment_gram_AA,
            math.sqrt(norm2),
            math.sqrt(decay_norm2),
            math.sqrt(coherence2) if self.is_adam else math.nan,
            sketch_AK,
        )

    def _segments(self) -> Iterator[Segment]:
        """Stretches of slots that the step moved, merged where the numbers agree."""
        current: Segment | None = None
        for slot, parameter, group, count in zip(
            self.layout.slots, self.layout.parameters, self._groups, self._counts(), strict=True
        ):
            if parameter.grad is None:  # the optimizer passes over it, moments and all
                continue
            if (
                current is not None
                and current.stop == slot.start
                and current.group is group
                and current.count == count
            ):
                current = Segment(current.start, slot.stop, group, count)
                continue
            if current is not None:
                yield current
            current = Segment(slot.start, slot.stop, group, count)
        if current is not None:
            yield current

    def _counts(self) -> list[int]:
        """`Segment.count` of every slot."""
        if not self.is_adam:
            return [1 if is_first else 2 for is_first in self._is_first]
        counts = [
            torch.zeros(()) if p.grad is None else num_steps(self.optimizer, p)
            for p in self.layout.parameters
        ]
        if len({count.device for count in counts}) == 1:
            return [int(count) for count in torch.stack(counts).tolist()]  # one transfer, not many
        return [int(count) for count in counts]

    def _chunks(self, part: Segment) -> Iterator[tuple[int, int]]:
        width = max(CHUNK_ELEMENTS // len(self.moment_AP), 1)
        for lo in range(part.start, part.stop, width):
            yield lo, min(lo + width, part.stop)

    def _read_second_moment(self, out_P: Tensor) -> None:
        pieces: list[Tensor | Piece] = []
        for slot, parameter, group in zip(
            self.layout.slots, self.layout.parameters, self._groups, strict=True
        ):
            if parameter.grad is None:
                pieces.append(out_P[slot.start : slot.stop])
                continue
            name = "max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"
            pieces.append(state_of(self.optimizer, parameter, name))
        # No `cat`: fresh memory of that size costs as much as the copies.
        for slot, v in zip(self.layout.slots, in_full(pieces), strict=True):
            out_P[slot.start : slot.stop].copy_(v.reshape(-1))

    def _precondition(self, scale: Tensor, part: Segment) -> None:
        """v -> -lr / (1 - b1^t) / (sqrt(v) / sqrt(1 - b2^t) + eps), in place, as torch has it."""
        beta1, beta2 = (float(beta) for beta in part.group["betas"])
        step_size = float(part.group["lr"]) / (1 - beta1**part.count)
        scale.sqrt_().div_(math.sqrt(1 - beta2**part.count)).add_(part.group["eps"])
        scale.reciprocal_().mul_(-step_size)

    def _advance(self, moment: Tensor, gradient: Tensor, weight: float, part: Segment) -> Tensor:
        """Feed weight * gradient to a moment; the step's part, for Adam not yet preconditioned."""
        group = part.group
        if self.is_adam:
            beta1 = float(group["betas"][0])
            return moment.mul_(beta1).add_(gradient, alpha=weight * (1 - beta1))
        momentum, rate = group["momentum"], float(group["lr"])
        if momentum == 0:
            return gradient * (-rate * weight)
        undamped = 1.0 if part.count == 1 else 1.0 - group["dampening"]  # spares the first gradient
        moment.mul_(momentum).add_(gradient, alpha=weight * undamped)
        if group["nesterov"]:
            return (gradient * weight).add_(moment, alpha=momentum).mul_(-rate)
        return moment * -rate

    def _advance_decay(self, part: Segment, scale_P: Tensor) -> float:
        """Squared norm of the coupled weight decay's part of the step; advances its moment."""
        if self.decay_P is None:
            return 0.0
        columns = slice(part.start, part.stop)
        moment = self.decay_P[columns]
        theta = torch.zeros_like(moment) if self._coupled_P is None else self._coupled_P[columns]
        step = self._advance(moment, theta, 1.0, part)
        if self.is_adam:
            step = step * scale_P[columns]
        return float(torch.linalg.vector_norm(step, dtype=torch.float64)) ** 2
