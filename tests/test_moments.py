"""The agents' parts of an optimizer's step against the step itself."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradlab.probe.probe import Probe, attach
from gradlab.records import Agent

AGENTS = (Agent("generator", 0), Agent("generator", 1), Agent("aggregator"))
AGENT_B = torch.tensor([0, 1, 2, 0, 1, 2, 0])


class Branches(nn.Module):
    """Two linear layers, the second of which a forward may leave out."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 6, dtype=dtype)
        self.second = nn.Linear(6, 6, dtype=dtype)
        self.head = nn.Linear(6, 3, dtype=dtype)

    def forward(self, x: Tensor, has_second: bool) -> Tensor:
        hidden = self.first(x).tanh()
        if has_second:
            hidden = hidden + self.second(hidden).tanh()
        out: Tensor = self.head(hidden)
        return out


def losses(model: Branches, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    dtype = model.head.weight.dtype
    x = torch.randn(7, 4, generator=generator, dtype=dtype)
    target = torch.randn(7, 3, generator=generator, dtype=dtype)
    # Without the second layer in steps 2 and 3: its gradient is None, the optimizer passes over it.
    return ((model(x, step not in (2, 3)) - target) ** 2).sum(1)


def agent_gradients(model: Branches, step: int) -> Tensor:
    """[A, P] in the order of model.parameters()."""
    rows = losses(model, step)
    parts = []
    for agent in range(3):
        gradients = torch.autograd.grad(
            rows[agent == AGENT_B].sum(),
            [*model.parameters()],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        parts.append(torch.cat([g.flatten() for g in gradients]))
    return torch.stack(parts)


def flat(tensors: Any) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, fused=True),
    "adamw maximize": lambda p: torch.optim.AdamW(p, lr=1e-2, maximize=True),
    "adamw amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, betas=(0.8, 0.95)),
    "adam l2": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=0.1),
    "adam l2 maximize": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=0.1, maximize=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2),
    "sgd l2": lambda p: torch.optim.SGD(p, lr=1e-2, weight_decay=0.1),
    "sgd momentum l2": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, weight_decay=0.1),
    "sgd dampening": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, dampening=0.5),
    "sgd nesterov": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
}


@dataclass
class Twin:
    """The split written out per parameter: row a < A is agent a, the last row the L2 decay."""

    optimizer: torch.optim.Optimizer
    moment: dict[str, Tensor] = field(default_factory=dict)
    before: Tensor = field(default_factory=lambda: torch.zeros(0))
    """[A, P] the agents' moments before the step just made; 0 where the step moved nothing."""

    def parts(self, theta: dict[str, Tensor], gradient: dict[str, Tensor], c: float) -> Tensor:
        """[A + 1, P] the parts of the step just made; theta before it, gradients unclipped."""
        group = self.optimizer.param_groups[0]
        state = self.optimizer.state
        is_adam = "betas" in group
        is_coupled = not isinstance(self.optimizer, torch.optim.AdamW)
        found, moments = [], []
        for (name, before), p in zip(theta.items(), group["params"], strict=True):
            if name not in gradient:
                found.append(torch.zeros(4, before.numel(), dtype=before.dtype))
                moments.append(found[-1])
                continue
            sign = -1 if group["maximize"] else 1
            decay = group["weight_decay"] * before.flatten() * is_coupled
            new = torch.cat([sign * c * gradient[name], decay[None]])
            is_first = name not in self.moment
            old = self.moment.get(name, torch.zeros_like(new))
            moments.append(old)
            if is_adam:
                (b1, b2), t = group["betas"], float(state[p]["step"])
                v = state[p]["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"].flatten()
                self.moment[name] = b1 * old + (1 - b1) * new
                step = self.moment[name] / (1 - b1**t) / ((v / (1 - b2**t)).sqrt() + group["eps"])
            else:
                damp = 1 if is_first else 1 - group["dampening"]
                self.moment[name] = group["momentum"] * old + damp * new
                step = self.moment[name]
                if group["nesterov"]:
                    step = new + group["momentum"] * step
            found.append(-group["lr"] * step)
        self.before = torch.cat(moments, dim=1)[:3]
        return torch.cat(found, dim=1)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("max_norm", [0.05, math.inf])
def test_parts_sum_to_the_true_update(name: str, max_norm: float) -> None:
    model = Branches(torch.float64)
    optimizer = OPTIMIZERS[name](model.parameters())
    probe, twin = attach(model, optimizer, agents=AGENTS), Twin(optimizer)
    theta0 = flat(model.parameters())
    for step in range(6):
        gradient_AP = agent_gradients(model, step)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        probe.tag(AGENT_B)
        losses(model, step).sum().backward()
        norm = float(nn.utils.clip_grad_norm_(model.parameters(), max_norm))
        sizes = [p.numel() for p in model.parameters()]
        gradient = {
            n: g
            for (n, p), g in zip(
                model.named_parameters(), gradient_AP.split(sizes, dim=1), strict=True
            )
            if p.grad is not None
        }
        optimizer.step()
        optimizer.zero_grad()
        c = min(1.0, max_norm / (norm + 1e-6))
        parts_AP, decay_P = twin.parts(before, gradient, c).split([3, 1])
        if isinstance(optimizer, torch.optim.AdamW):
            rate = 1e-2 * optimizer.param_groups[0]["weight_decay"]
            decay_P = torch.cat([-rate * t.flatten() * (n in gradient) for n, t in before.items()])

        # The twin is right: its parts add up to what the parameters did.
        after = flat(model.parameters())
        moved = after - flat(before.values())
        assert float((parts_AP.sum(0) + decay_P.view(-1) - moved).norm()) < 1e-12 * float(
            after.norm()
        )
        # The probe's read-outs are those of the twin's parts.
        record = probe.last
        assert record is not None
        assert record.update_gram_AA is not None
        assert record.transfer_AA is not None
        np.testing.assert_allclose(record.update_gram_AA, parts_AP @ parts_AP.T, rtol=1e-10)
        np.testing.assert_allclose(record.transfer_AA, gradient_AP @ parts_AP.T, rtol=1e-9)
        assert record.history_AA is not None
        assert record.moment_gram_AA is not None
        moment_AP = twin.before * (optimizer.param_groups[0].get("momentum") != 0)
        uphill_AP = gradient_AP * (-1 if optimizer.param_groups[0]["maximize"] else 1)
        np.testing.assert_allclose(
            record.history_AA, uphill_AP @ moment_AP.T, rtol=1e-9, atol=1e-12
        )
        np.testing.assert_allclose(
            record.moment_gram_AA, moment_AP @ moment_AP.T, rtol=1e-9, atol=1e-12
        )
        metrics = record.metrics
        assert metrics.weight_norm == pytest.approx(float(flat(before.values()).norm()), rel=1e-12)
        step_P = parts_AP.sum(0) / optimizer.param_groups[0]["lr"]
        if name.startswith("adam"):
            rms = float(step_P[step_P != 0].square().mean().sqrt())
            assert metrics.step_coherence == pytest.approx(rms, rel=1e-12)
        else:
            assert math.isnan(metrics.step_coherence)
        assert metrics.clip_factor == pytest.approx(c, rel=1e-12)
        assert metrics.grad_norm == pytest.approx(norm, rel=1e-12)
        assert metrics.update_norm == pytest.approx(float(parts_AP.sum(0).norm()), rel=1e-12)
        assert metrics.decay_norm == pytest.approx(float(decay_P.norm()), rel=1e-12)
        assert metrics.distance == pytest.approx(float((after - theta0).norm()), rel=1e-12)


@pytest.mark.parametrize("is_fused", [True, False])
def test_parts_in_float32_sum_to_the_update_within_its_rounding(is_fused: bool) -> None:
    model = Branches(torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0, fused=is_fused)
    probe = attach(model, optimizer, agents=AGENTS)
    for step in range(6):
        before = flat(model.parameters())
        probe.tag(AGENT_B)
        losses(model, step).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        moved = float((flat(model.parameters()) - before).norm())
        assert probe.last is not None
        assert probe.last.metrics.update_norm == pytest.approx(moved, rel=1e-4)


def test_coherence_tells_a_march_from_a_random_walk() -> None:
    found = {}
    for kind in ("march", "walk"):
        theta = nn.Linear(400, 1, bias=False, dtype=torch.float64)
        optimizer = torch.optim.Adam(theta.parameters(), lr=1e-3, eps=1e-12)
        probe = attach(theta, optimizer, agents=AGENTS[:1])
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, 400, generator=generator, dtype=torch.float64)
        for _ in range(100):
            if kind == "walk":
                x = torch.randn(1, 400, generator=generator, dtype=torch.float64)
            probe.tag(torch.zeros(1, dtype=torch.int64))
            theta(x).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert probe.last is not None
        found[kind] = probe.last.metrics.step_coherence
    assert found["march"] == pytest.approx(1, rel=1e-9)  # m_hat = g, v_hat = g^2
    # Var m_hat = (1 - b1) / (1 + b1) v once both have settled: 0.229
    assert found["walk"] == pytest.approx(math.sqrt(0.1 / 1.9), rel=0.1)


def test_parameter_groups_have_their_own_rates_and_decay() -> None:
    model = Branches(torch.float64)
    optimizer = torch.optim.AdamW(
        [
            {"params": [*model.head.parameters(), model.first.weight], "lr": 1e-1},
            {"params": [model.first.bias, *model.second.parameters()], "weight_decay": 0.5},
        ],
        lr=1e-3,
        weight_decay=0.0,
    )
    probe = attach(model, optimizer, agents=AGENTS)
    for step in (0, 1):
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        probe.tag(AGENT_B)
        losses(model, step).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        decayed = {n for n in before if n.startswith("second") or n == "first.bias"}
        decay_P = torch.cat([-1e-3 * 0.5 * t.flatten() * (n in decayed) for n, t in before.items()])
        update = flat(model.parameters()) - flat(before.values()) - decay_P
        assert probe.last is not None
        assert probe.last.metrics.update_norm == pytest.approx(float(update.norm()), rel=1e-12)
        assert probe.last.metrics.decay_norm == pytest.approx(float(decay_P.norm()), rel=1e-12)


def test_an_optimizer_without_an_exact_split_is_said_to_have_none() -> None:
    model = Branches(torch.float64)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=1e-2)
    probe = attach(model, optimizer, agents=AGENTS)
    probe.tag(AGENT_B)
    losses(model, 0).sum().backward()
    optimizer.step()
    assert probe.last is not None
    assert probe.last.update_gram_AA is None
    assert math.isnan(probe.last.metrics.update_norm)
    assert probe.last.metrics.residual < 1e-12
    assert "Adagrad" in probe.report()


def test_momentum_from_before_the_probe_is_reported() -> None:
    model = Branches(torch.float64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses(model, 0).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    probe = attach(model, optimizer, agents=AGENTS)
    probe.tag(AGENT_B)
    losses(model, 1).sum().backward()
    optimizer.step()
    assert "had already stepped" in probe.report()


def test_a_resumed_probe_continues_to_the_same_numbers() -> None:
    def run(model: Branches, optimizer: torch.optim.Optimizer, probe: Probe, steps: range) -> None:
        for step in steps:
            probe.step = step
            probe.tag(AGENT_B, prompts=AGENT_B * 0)
            losses(model, step).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    def fresh() -> tuple[Branches, torch.optim.Optimizer, Probe]:
        model = Branches(torch.float32)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=0.1)
        return model, optimizer, attach(model, optimizer, agents=AGENTS)

    straight = fresh()
    run(*straight, range(6))
    first = fresh()
    run(*first, range(3))
    saved = [copy.deepcopy(part.state_dict()) for part in first]
    second = fresh()
    for part, state in zip(second, saved, strict=True):
        part.load_state_dict(state)
    run(*second, range(3, 6))
    one, other = straight[2].last, second[2].last
    assert one is not None
    assert other is not None
    assert np.array_equal(one.gram_BAA, other.gram_BAA)
    assert np.array_equal(one.update_gram_AA, other.update_gram_AA)
    assert np.array_equal(one.transfer_AA, other.transfer_AA)
    assert str(one.row_statistics) == str(other.row_statistics)  # NaN is not equal to itself
    assert replace(one.metrics, probe_seconds=0, loss=0) == replace(
        other.metrics, probe_seconds=0, loss=0
    )


def test_state_of_another_model_or_other_agents_is_refused() -> None:
    model = Branches(torch.float32)
    optimizer = torch.optim.AdamW(model.parameters())
    state = attach(model, optimizer, agents=AGENTS).state_dict()
    with pytest.raises(ValueError, match="the state was saved with"):
        attach(model, optimizer, agents=AGENTS[:2]).load_state_dict(state)
    part = torch.optim.AdamW(model.head.parameters())
    with pytest.raises(ValueError, match=r"first\.bias"):
        attach(model, part, agents=AGENTS).load_state_dict(state)
