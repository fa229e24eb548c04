"""Read one policy's updates: what is captured, checked, shared between ranks, and recorded.

`gradlab.probe.probe.Probe` is what a trainer talks to; here is what happens between its calls.

Legend: A agents of the policy, B parameter blocks, P measured parameters (elements), S slots
(parameters), n rows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradlab.probe.attachment_checks import Attached
from gradlab.probe.audit import AgentAudit, compare
from gradlab.probe.capture.capture import Capture
from gradlab.probe.capture.projections import draw, projected
from gradlab.probe.capture.tags import RowSketches, Tags
from gradlab.probe.layout import Layout
from gradlab.probe.measures.exact_sums import inner_products, norm_of, total_of
from gradlab.probe.measures.requested import Extras
from gradlab.probe.measures.row_collection import RowBook
from gradlab.probe.measures.step_split import Moments, StepSplit, why_not_split
from gradlab.probe.ranks.distributed import Piece, Ranks, Shared, in_full, room_for
from gradlab.probe.ranks.fsdp1 import is_sharded, ordinary, refresh, unsharded
from gradlab.probe.selfcheck import Claim, SelfCheck, rounding_of, with_unmeasured
from gradlab.records import Agent, Mode, UpdateMetrics, UpdateRecord

AUDIT_FACTOR = 10
"""Rounding between two runs of one agent's rows, in units of the tolerance of a sum of all."""


@dataclass(frozen=True)
class Setup:
    """How a policy is measured; see `gradlab.probe.probe.attach`."""

    policy: str
    mode: Mode
    projection_seed: int
    sketch_rank: int | None
    """In mode 'sketch'."""


@dataclass(frozen=True)
class PendingUpdate:
    """What was read before the optimizer moved the parameters."""

    check: SelfCheck
    gram_BAA: np.ndarray[Any, np.dtype[np.float64]]
    learning_rate: float
    weight_norm: float
    loss: float
    seconds: float


class Instrument:
    """Everything that is measured of one policy."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        agents: tuple[Agent, ...],
        layout: Layout,
        setup: Setup,
        ranks: Ranks,
        extras: Extras,
    ) -> None:
        self.agents = agents
        self.setup = setup
        self.ranks = ranks
        self.extras = extras
        self.num_parameters = layout.num_parameters
        """Elements that are measured."""
        self._shapes = [slot.shape for slot in layout.slots]
        if setup.sketch_rank is not None:
            layout = projected(layout, setup.sketch_rank)
        self.layout = layout
        keeps_all = setup.mode not in ("sketch", "streaming")
        self.unsplit_reason = (
            why_not_split(optimizer)
            if keeps_all
            else f"mode '{setup.mode}' keeps no agent's moments"
        )
        self._optimizer = optimizer
        num_extras = len(layout.slots) + ranks.num_extras if ranks.size > 1 else 0
        self._optimized: Sequence[nn.Parameter] = ()
        """Parameters whose gradients the ranks add up by the probe's own message."""
        if ranks.size > 1 and ranks.is_sum:
            self._optimized = unsharded(layout.parameters, "attach: losses='sum'")
            num_extras += room_for(self._optimized)
        self.shared: Shared | None = None
        """What all ranks know of the update in hand, once they have shared it."""
        self.capture = Capture(model, layout, len(agents), num_extras, setup.mode)
        self._is_sharded = any(is_sharded(p) for p in layout.parameters)
        self.attached = Attached(model, optimizer, layout, ranks, setup.policy)
        self.moments: Moments | None = None
        self.is_late = False
        """Attached to an optimizer that had moments already."""
        self.theta0_P = self.flat([p.detach() for p in layout.parameters]) if keeps_all else None
        self.num_updates = 0
        self.num_rows = 0
        """Of the update in hand."""
        self.factor_A: Tensor | None = None
        """By what the trainer multiplied the agents' gradients of the update in hand."""
        self.rowbook = RowBook(agents, layout.num_parameters, setup.projection_seed, ranks)
        self._projection_step: int | None = None

    @property
    def device(self) -> torch.device:
        return self.layout.parameters[0].device

    def listen(
        self,
        index: Tensor,
        prompts: Sequence[int] | Tensor | None,
        samples: Sequence[int] | Tensor | None,
        advantages: Sequence[float] | Tensor | None,
        step: int,
    ) -> None:
        """Attribute the next forwards; see `gradlab.probe.probe.Probe.tag`."""
        self._draw_projections(step)
        for name, given in (("samples", samples), ("advantages", advantages)):
            if prompts is None and given is not None:
                raise ValueError(
                    f"tag: {name} given without prompts; pass the prompt of each row too"
                )
        rows = None
        if prompts is not None:
            rows = self._open_rows(index, prompts, samples, advantages, step)
        tags = Tags.of(index, self.device, rows)
        self.num_rows += tags.num_rows
        before_first = once(lambda: self.drop_if_dropped(step))
        self.capture.listen(tags, before_first)
        self.extras.follow(tags, step, before_first)

    def unlisten(self) -> None:
        self.capture.tags = None
        self.extras.untag()

    def remove(self) -> None:
        """Take all hooks off the model."""
        self.capture.remove()
        self.extras.remove()

    def _open_rows(
        self,
        index: Tensor,
        prompts: Sequence[int] | Tensor,
        samples: Sequence[int] | Tensor | None,
        advantages: Sequence[float] | Tensor | None,
        step: int,
    ) -> RowSketches:
        device, dtype = self.layout.parameters[0].device, self.capture.dtype
        like_P = torch.zeros(0, dtype=dtype, device=device)
        rows = self.rowbook.open_batch(index, prompts, samples, advantages, like_P)
        sign_P = self.rowbook.draw_signs(step, device)
        if sign_P is not None:
            self.capture.sign_P = sign_P.to(dtype)
        return rows

    def _draw_projections(self, step: int) -> None:
        """Anew every training step, so that errors of steps are independent; never within one."""
        if self.setup.sketch_rank is None:
            return
        capture, device = self.capture, self.layout.parameters[0].device
        if capture.attributed or self._projection_step == step:
            return
        self._projection_step = step
        seed = np.random.SeedSequence([self.setup.projection_seed, step, 1])
        capture.projections = draw(
            self._shapes,
            self.setup.sketch_rank,
            int(seed.generate_state(1)[0]),
            device,
            capture.dtype,
        )

    def drop_if_dropped(self, step: int) -> None:
        """A skipped step (zero_grad without step) leaves shares without their gradient."""
        capture = self.capture
        # Of sharded parameters a rank sees only its part, and none before the last backward.
        if self._is_sharded or not capture.attributed:
            return
        # Of what was captured: the gradient of a weight that escapes may be there before any other.
        captured = [self.layout.parameters[i].grad for i in capture.attributed]
        gradients = [gradient for gradient in captured if isinstance(gradient, Tensor)]
        if any(bool(gradient.any()) for gradient in gradients):
            if capture.stream is not None:
                raise ValueError(
                    f"policy '{self.setup.policy}', step {step}: a second backward before "
                    "optimizer.step(), but mode 'streaming' folds gradients after the first; put "
                    "the update into one backward (activation checkpointing saves its memory), or "
                    "attach with mode='sketch', or 'exact' where agents x parameters fit"
                )
            return
        if gradients and capture.is_zero():
            return  # zero on both sides: rows without advantage, not a skipped step
        if not self.attached.is_proven:
            self.attached.note_dropped()
        capture.drop()
        self.extras.drop()
        self.rowbook.drop_filled()
        self.num_rows = 0 if capture.tags is None else capture.tags.num_rows
        self.factor_A = None

    def forget(self) -> None:
        """Forget the update in hand."""
        self.capture.clear()
        self.extras.clear()
        self.rowbook.forget()
        self.num_rows, self.factor_A, self.shared = 0, None, None

    def audit(
        self, rerun: Callable[[Agent], Tensor | None], agents: Sequence[Agent]
    ) -> Iterator[AgentAudit]:
        """Each agent's captured gradient against that of its rows alone; see `Probe.audit`."""
        parameters = ordinary(self.layout.parameters, "audit")
        kept = [p.grad for p in parameters]
        try:
            with self.capture.paused(), self.extras.paused():
                for agent in agents:
                    for p in parameters:
                        p.grad = None
                    result = rerun(agent)
                    if result is not None:
                        result.backward()  # type: ignore[no-untyped-call]
                    alone_P = self.flat([p.grad for p in parameters])
                    with torch.no_grad():
                        own, tolerance = self.agents.index(agent), AUDIT_FACTOR * self.rounding()
                        captured_AP = self.capture.gradient_AP
                        yield compare(self.agents, own, captured_AP, alone_P, tolerance)
        finally:
            for p, gradient in zip(parameters, kept, strict=True):
                p.grad = gradient

    def reweight(self, factor_A: Tensor) -> None:
        """Multiply the agents' parts of the optimizer's gradient; see `Probe.reweight`."""
        parameters = ordinary(self.layout.parameters, "reweight")
        with torch.no_grad():
            before_A = torch.ones_like(factor_A) if self.factor_A is None else self.factor_A
            self.factor_A = before_A * factor_A
            if bool((factor_A == factor_A[0]).all()):
                for p in parameters:
                    if p.grad is not None:
                        p.grad.mul_(float(factor_A[0]))
                return
            gradient_AP = self.capture.gradient_AP
            flat_P, sum_P = self.flat([p.grad for p in parameters]), before_A @ gradient_AP
            norm2 = norm_of(sum_P) ** 2
            scale = float((flat_P * sum_P).sum()) / norm2 if norm2 > 0 else 1.0
            change_P = (before_A * (factor_A - 1)) @ gradient_AP
            for slot, p in zip(self.layout.slots, parameters, strict=True):
                if p.grad is not None:
                    change = change_P[slot.start : slot.stop].view(slot.shape).to(p.grad.dtype)
                    p.grad.add_(change, alpha=scale)

    def captured_gram(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """[A, A] <g_a, g_b> of the update in hand, as captured so far."""
        self.capture.allocate()
        with torch.no_grad():
            gram_AA: np.ndarray[Any, np.dtype[np.float64]] = self._gram().sum(axis=0)
        return gram_AA

    # Around the optimizer's step.

    def before_step(self, step: int, loss: float, loss_scale: float = 1.0) -> PendingUpdate | None:
        """Read the captured gradients while the optimizer's are there; None if it has none."""
        start = time.perf_counter()
        self._draw_projections(step)
        refresh(self.layout.parameters, self._optimizer)
        shared = self.shared or self.share(loss)
        if not shared.has_gradient:
            return None
        if loss_scale != 1:
            for part in (self.capture, self.rowbook, self.extras):
                part.multiply(1 / loss_scale)
        with torch.no_grad():
            gram_BAA = self._gram()
            # Rounding grows with what was added up: agents, and rows where they were measured.
            norm2_A, largest = np.diagonal(gram_BAA.sum(axis=0)), 1.0
            if self.factor_A is not None:
                norm2_A = norm2_A * self.factor_A.clamp(min=1).square().cpu().numpy()
                largest = max(1.0, float(self.factor_A.max()) ** 2)
            check = self._check(max(float(norm2_A.sum()), largest * shared.rows_norm2))
            theta_norm_S = self._weight_norms()
            if self.unsplit_reason is None:
                if self.moments is None:
                    self.moments = self._new_moments()
                    self.is_late = self.moments.is_attached_late
                assert theta_norm_S is not None, "updates of sketches are not split"
                self.moments.before_step(theta_norm_S)
        sizes = zip(self._shapes, self.layout.parameters, strict=True)
        present = sum(shape.numel() for shape, p in sizes if p.grad is not None)
        check = with_unmeasured(check, self.attached.unmeasured(), present)
        return PendingUpdate(
            replace(check, scale=check.scale / divisor_of(self._optimizer)),
            gram_BAA,
            float(self._optimizer.param_groups[0]["lr"]),
            math.nan if theta_norm_S is None else float(torch.linalg.vector_norm(theta_norm_S)),
            shared.loss,
            time.perf_counter() - start,
        )

    def share(self, loss: float) -> Shared:
        """Bring the ranks' captures together; also their gradients, where the probe adds them."""
        capture = self.capture
        capture.allocate()
        is_idle = self.ranks.is_sum and self.num_rows == 0
        self.shared = shared = self.ranks.share(
            capture.buffer,
            capture.gradient_AP.numel(),
            Shared(
                frozenset(capture.attributed),
                any(p.grad is not None for p in self.layout.parameters)
                and not is_called_off(self._optimizer),
                self.num_rows,
                0.0 if is_idle else loss,
                capture.is_low_precision,
                self.rowbook.norm2,
                (self.rowbook.num_sketched,),
            ),
            self._optimized,
        )
        self.extras.share(self.ranks)
        capture.attributed = set(shared.attributed)
        capture.is_low_precision = shared.is_low_precision
        self.num_rows = shared.num_rows
        self.rowbook.sketched_rows_W = shared.sketched_rows_W
        return shared

    def after_step(self, pending: PendingUpdate, step: int) -> UpdateRecord:
        """The record of the update, once the parameters have moved."""
        start = time.perf_counter()
        capture, check = self.capture, pending.check
        split: StepSplit | None = None
        with torch.no_grad():
            if self.moments is not None:
                split = self.moments.after_step(
                    capture.gradient_AP, check.scale, self.extras.sketcher, self.factor_A
                )
            extras = self.extras.read(capture.gradient_AP, pending.gram_BAA, split)
            distance = math.nan
            if self.theta0_P is not None:
                theta_P = self.flat([p.detach() for p in self.layout.parameters])
                distance = norm_of(theta_P.sub_(self.theta0_P.to(theta_P.device)))
        statistics = self.rowbook.statistics(step, self.layout.parameters[0].device)
        metrics = UpdateMetrics(
            learning_rate=pending.learning_rate,
            grad_norm=check.grad_norm,
            clip_factor=check.scale,
            residual=check.residual,
            coverage=check.coverage,
            update_norm=math.nan if split is None else split.update_norm,
            decay_norm=math.nan if split is None else split.decay_norm,
            distance=distance,
            weight_norm=pending.weight_norm,
            step_coherence=math.nan if split is None else split.coherence,
            loss=pending.loss,
            rows=self.num_rows,
        )
        seconds = pending.seconds + time.perf_counter() - start
        return UpdateRecord(
            policy=self.setup.policy,
            step=step,
            gram_BAA=pending.gram_BAA,
            metrics=replace(metrics, probe_seconds=seconds),
            update_gram_AA=None if split is None else split.update_gram_AA.cpu().numpy(),
            transfer_AA=None if split is None else split.transfer_AA.cpu().numpy(),
            history_AA=None if split is None else split.history_AA.cpu().numpy(),
            moment_gram_AA=None if split is None else split.moment_gram_AA.cpu().numpy(),
            row_statistics=statistics,
            factor_A=None if self.factor_A is None else self.factor_A.double().cpu().numpy(),
            **extras,
        )

    def _check(self, parts_norm2: float) -> SelfCheck:
        capture, parameters = self.capture, self.layout.parameters
        gradients = [p.grad for p in parameters]
        if capture.stream is not None:
            own = [p.grad for p in ordinary(parameters, "mode 'streaming'")]
            return capture.stream.check(own, self.rounding())
        flat_P = self.flat(gradients)
        claim = Claim(
            flat_P,
            total_of(capture.gradient_AP)
            if self.factor_A is None
            else self.factor_A @ capture.gradient_AP,
            self.layout,
            [shape.numel() for shape in self._shapes],
            [i for i, gradient in enumerate(gradients) if gradient is not None],
            frozenset(capture.attributed),
            self.rounding(),
            parts_norm2,
        )
        if self.setup.sketch_rank is None:
            return claim.check()
        # Of the norm of the optimizer's gradient a sketch knows only an estimate.
        whole = in_full([gradient for gradient in gradients if gradient is not None])
        return claim.check(math.hypot(*map(norm_of, whole)))

    def rounding(self) -> float:
        dtypes = {p.dtype for p in self.layout.parameters}
        return rounding_of(dtypes, self.capture.is_low_precision)

    def _gram(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        if self.capture.stream is not None:
            return self.capture.stream.gram()
        gradient_AP = self.capture.gradient_AP
        grams = [
            inner_products(gradient_AP[:, start:stop], gradient_AP[:, start:stop])
            for _, start, stop in self.layout.blocks
        ]
        stacked: np.ndarray[Any, np.dtype[np.float64]] = torch.stack(grams).cpu().numpy()
        return stacked

    def flat(self, tensors: Sequence[Tensor | Piece | None]) -> Tensor:
        """One tensor per slot, in a row, zeros for None; projected in mode 'sketch'."""
        dtype, projections = self.capture.dtype, self.capture.projections
        whole = iter(in_full([tensor for tensor in tensors if tensor is not None]))
        device, parts = self.layout.parameters[0].device, []
        for i, tensor in enumerate(tensors):
            if tensor is None:
                slot = self.layout.slots[i]
                parts.append(torch.zeros(slot.stop - slot.start, dtype=dtype, device=device))
                continue
            part = next(whole).to_dense().to(dtype)
            if i in projections:
                part = projections[i].of_gradient(part)
            parts.append(part.reshape(-1))
        return torch.cat(parts)

    def _weight_norms(self) -> Tensor | None:
        """[S] norms of the parameters; None where it takes gathering a model sharded for size."""
        if self._is_sharded and self.theta0_P is None:
            return None
        thetas = in_full([p.detach() for p in self.layout.parameters])
        norms = [torch.linalg.vector_norm(theta, dtype=torch.float64) for theta in thetas]
        return torch.stack(norms)

    def _new_moments(self) -> Moments:
        return Moments(self._optimizer, self.layout, len(self.agents), self.capture.dtype)

    def state(self) -> dict[str, Any]:
        """What was measured and is needed to go on."""
        moments = self.moments
        return {
            "slots": [(slot.name, tuple(slot.shape)) for slot in self.layout.slots],
            "theta0_P": None if self.theta0_P is None else self.theta0_P.clone(),
            "moment_AP": None if moments is None else moments.moment_AP.clone(),
            "decay_P": None
            if moments is None or moments.decay_P is None
            else moments.decay_P.clone(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state()` of an instrument on the same parameters."""
        slots = [(slot.name, tuple(slot.shape)) for slot in self.layout.slots]
        saved = [(name, tuple(shape)) for name, shape in state["slots"]]
        if slots != saved:
            differing = sorted({name for name, _ in set(slots) ^ set(saved)})
            raise ValueError(
                f"load_state_dict: the state of policy '{self.setup.policy}' was saved for other "
                f"parameters; differing: {differing[:5]}"
            )
        if self.theta0_P is not None:
            self.theta0_P.copy_(state["theta0_P"])
        if state["moment_AP"] is not None:
            self.moments = self._new_moments()
            self.moments.moment_AP.copy_(state["moment_AP"])
            if state["decay_P"] is not None:
                self.moments.decay_P = state["decay_P"].to(self.moments.moment_AP, copy=True)


def once(action: Callable[[], None]) -> Callable[[], None]:
    """Do it at the first call only."""
    rest = [action]

    def act() -> None:
        if rest:
            rest.pop()()

    return act


# A GradScaler leaves both to an optimizer that is fused, whose step is then called in any case.


def is_called_off(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the step will do nothing, because a scaled gradient overflowed."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def divisor_of(optimizer: torch.optim.Optimizer) -> float:
    """What the step will divide the gradients by: the scale of the loss."""
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else float(scale)
