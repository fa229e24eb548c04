"""Turn a model and a batch into a training step that also yields the Gram of the agents' gradients.

Every technique returns the same [A, A] inner products and leaves the same gradient to the same
clipping and AdamW; they differ in how, and in what else they measure on the way.

Legend: A agents, n rows, P trained parameters (elements).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from models import Case, row_losses
from torch import Tensor, nn

from gradlab.probe.measures.exact_sums import inner_products
from gradlab.probe.probe import attach
from gradlab.records import MODES, Mode

Step = Callable[[], Tensor | None]
"""One training step; the Gram [A, A], or None if nobody asked for it."""


@dataclass(frozen=True)
class Job:
    """A model in training; it belongs to one technique."""

    case: Case
    model: nn.Module
    trained: list[nn.Parameter]
    optimizer: torch.optim.Optimizer

    @classmethod
    def of(cls, case: Case, model: nn.Module) -> Job:
        trained = [p for p in model.parameters() if p.requires_grad]
        return cls(case, model, trained, torch.optim.AdamW(trained, lr=1e-4))

    def losses(self, model: nn.Module | None = None) -> Tensor:
        """[n]"""
        return row_losses(model or self.model, *self.case.batch)

    def update(self) -> None:
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def by_agent(self, per_row: list[Tensor]) -> Tensor:
        """[A, P] from one [n, ...] per parameter."""
        num_agents = self.case.num_agents
        sizes = [p.numel() for p in self.trained]
        flat_AP = torch.zeros(num_agents, sum(sizes))
        for out, rows in zip(flat_AP.split(sizes, dim=1), per_row, strict=True):
            out.index_add_(0, self.case.agent_n, rows.flatten(1))
        return flat_AP

    def views(self, flat_AP: Tensor) -> list[list[Tensor]]:
        """For every agent the parameters' parts of its row, in their shapes."""
        sizes = [p.numel() for p in self.trained]
        return [
            [part.view_as(p) for part, p in zip(row.split(sizes), self.trained, strict=True)]
            for row in flat_AP
        ]

    def set_gradient(self, flat_AP: Tensor) -> None:
        """Leave the sum of the agents' gradients to the optimizer."""
        (total,) = self.views(flat_AP.sum(0, keepdim=True))
        for p, gradient in zip(self.trained, total, strict=True):
            p.grad = gradient


def plain(job: Job) -> Step:
    def step() -> None:
        job.losses().sum().backward()
        job.update()

    return step


def probed(mode: Mode, with_rows: bool = False) -> Callable[[Job], Step]:
    """gradlab: also Grams per block, the parts of Adam's step, and the self-check."""

    def make(job: Job) -> Step:
        case = job.case
        probe = attach(job.model, job.optimizer, agents=case.agents, mode=mode)
        prompt_n = torch.arange(case.rows) % (case.rows // case.num_agents)

        def step() -> Tensor:
            probe.tag(case.agent_n, prompts=prompt_n if with_rows else None)
            job.losses().sum().backward()
            job.update()
            assert probe.last is not None
            return torch.from_numpy(probe.last.gram_BAA.sum(0))

        return step

    return make


def banks(job: Job) -> Step:
    """A micro-batch per agent, whose gradient collects in a bank of its own."""
    case = job.case
    bank_AP = torch.zeros(case.num_agents, sum(p.numel() for p in job.trained))
    views = job.views(bank_AP)
    ids, weight = case.batch
    parts = [case.agent_n == agent for agent in range(case.num_agents)]

    def step() -> Tensor:
        bank_AP.zero_()
        for part, bank in zip(parts, views, strict=True):
            for p, gradient in zip(job.trained, bank, strict=True):
                p.grad = gradient
            row_losses(job.model, ids[part], weight[part]).sum().backward()
        gram_AA = inner_products(bank_AP, bank_AP)
        job.set_gradient(bank_AP)
        job.update()
        return gram_AA

    return step


def backwards(job: Job) -> Step:
    """A backward per agent through one graph."""

    def step() -> Tensor:
        losses, parts, num_agents = job.losses(), [], job.case.num_agents
        for agent in range(num_agents):
            loss = losses[job.case.agent_n == agent].sum()
            keep = agent < num_agents - 1
            gradients = torch.autograd.grad(loss, job.trained, retain_graph=keep)
            parts.append(torch.cat([g.flatten() for g in gradients]))
        flat_AP = torch.stack(parts)
        gram_AA = inner_products(flat_AP, flat_AP)
        job.set_gradient(flat_AP)
        job.update()
        return gram_AA

    return step


def opacus(job: Job) -> Step:
    """Gradients per row, of Opacus; no noise, no clipping of rows."""
    from opacus import GradSampleModule

    model = GradSampleModule(job.model, strict=False, loss_reduction="sum")

    def step() -> Tensor:
        job.losses(model).sum().backward()
        missing = [p for p in job.trained if p.grad_sample is None]  # type: ignore[attr-defined]
        if missing:
            raise ValueError(f"{len(missing)} of {len(job.trained)} grad_sample are None")
        flat_AP = job.by_agent([p.grad_sample for p in job.trained])  # type: ignore[attr-defined]
        gram_AA = inner_products(flat_AP, flat_AP)
        for p in job.trained:
            p.grad_sample = None  # type: ignore[attr-defined]
        job.update()
        return gram_AA

    return step


def backpack_batch_grad(job: Job) -> Step:
    """Gradients per row, of BackPACK."""
    from backpack import backpack, extend
    from backpack.extensions import BatchGrad

    mine = {id(p) for p in job.trained}
    kinds = {}
    for module in job.model.modules():
        for p in module.parameters(recurse=False):
            if id(p) in mine:
                extend(module)
                kinds[id(p)] = type(module).__name__

    def step() -> Tensor:
        losses = job.losses()
        with backpack(BatchGrad()):
            losses.sum().backward()
        missing = [kinds[id(p)] for p in job.trained if not hasattr(p, "grad_batch")]
        if missing:
            of = ", ".join(sorted(set(missing)))
            raise ValueError(f"{len(missing)} of {len(job.trained)} have no grad_batch: {of}")
        flat_AP = job.by_agent([p.grad_batch for p in job.trained])  # type: ignore[attr-defined]
        gram_AA = inner_products(flat_AP, flat_AP)
        for p in job.trained:
            del p.grad_batch  # type: ignore[attr-defined]
        job.update()
        return gram_AA

    return step


def functorch(unit: str) -> Callable[[Job], Step]:
    """torch.func's vmap(grad) over rows, or over agents with as many rows each."""

    def make(job: Job) -> Step:
        case = job.case
        named = {k: p.detach() for k, p in job.model.named_parameters() if p.requires_grad}
        order = [id(p) for p in job.trained]
        assert order == [id(p) for p in job.model.parameters() if p.requires_grad]
        ids, weight = case.batch
        num_units = case.rows if unit == "rows" else case.num_agents

        def loss(parameters: dict[str, Tensor], ids: Tensor, weight: Tensor) -> Tensor:
            call = partial(torch.func.functional_call, job.model, parameters, ())
            return row_losses(lambda **kwargs: call(kwargs), ids, weight).sum()

        gradient_of = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))

        def step() -> Tensor:
            found = gradient_of(
                named,
                ids.view(num_units, -1, ids.shape[1]),
                weight.view(num_units, -1),
            )
            per_unit = [found[name] for name in named]
            if unit == "rows":
                flat_AP = job.by_agent(per_unit)
            else:
                flat_AP = torch.cat([part.flatten(1) for part in per_unit], dim=1)
            gram_AA = inner_products(flat_AP, flat_AP)
            job.set_gradient(flat_AP)
            job.update()
            return gram_AA

        return step

    return make


OURS: dict[str, Callable[[Job], Step]] = {
    **{mode: probed(mode) for mode in ("exact", "fused", "streaming", "sketch") if mode in MODES},
    "exact + row statistics": probed("exact", with_rows=True),
    "fused + row statistics": probed("fused", with_rows=True),
}

TECHNIQUES: dict[str, Callable[[Job], Step]] = {
    "plain": plain,
    **OURS,
    "banks, a micro-batch per agent": banks,
    "Opacus GradSampleModule": opacus,
    "BackPACK BatchGrad": backpack_batch_grad,
    "vmap(grad) over rows": functorch("rows"),
    "vmap(grad) over agents": functorch("agents"),
    "a backward per agent": backwards,
}


def reference(job: Job) -> Tensor:
    """[A, A] the slow way: a forward and a backward of the whole batch per agent."""
    parts = []
    for agent in range(job.case.num_agents):
        loss = (job.losses() * (job.case.agent_n == agent)).sum()
        gradients = torch.autograd.grad(loss, job.trained)
        parts.append(torch.cat([g.flatten() for g in gradients]).double())
    return torch.stack([torch.stack([a @ b for b in parts]) for a in parts])
