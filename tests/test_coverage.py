"""What cannot be attributed is named, left out of the coverage, and trained all the same.

Every model is checked parameter by parameter against one backward per agent: those that are not
named are exact, those that are named have no share.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import peft
import pytest
import torch
from conftest import make_llama, make_qwen3
from test_capture import AGENTS, make_batch, row_losses, twin
from torch import Tensor, nn
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from gradlab.probe.probe import Probe, attach
from gradlab.records import Mode

AGENT_B = (0, 1, 2, 0, 1, 2)


def mixture() -> nn.Module:
    """Two layers with four experts each, two of them per token."""
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=40, hidden_size=24, intermediate_size=36, moe_intermediate_size=16,
        num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1, head_dim=8,
        num_experts=4, num_experts_per_tok=2, pad_token_id=0, experts_implementation="eager",
    )  # fmt: skip
    return Qwen3MoeForCausalLM(config).double()


def adapted(model: nn.Module, **settings: object) -> nn.Module:
    """With an adapter none of whose parts is zero."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft advises on what it is told to do here
        wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, **settings)).double()
    generator = torch.Generator().manual_seed(2)
    for name, p in wrapped.named_parameters():
        if "lora_" in name and "magnitude" not in name:
            p.data.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    return wrapped


COVERED: dict[str, Callable[[], nn.Module]] = {
    "DoRA, magnitudes included": lambda: adapted(
        make_qwen3(), target_modules="all-linear", use_dora=True
    ),
    "attention of a mixture": lambda: adapted(mixture(), target_modules=["q_proj", "o_proj"]),
    "trainable token indices": lambda: adapted(
        make_llama(), target_modules=["q_proj"], trainable_token_indices=[1, 2]
    ),
    "adapter on embeddings": lambda: adapted(
        make_llama(), target_modules=["q_proj", "embed_tokens"]
    ),
}

UNCOVERED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "experts and router of a mixture": (mixture, r"\.mlp\."),
    "adapters on experts": (
        lambda: adapted(
            mixture(), target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj"]
        ),
        r"\.mlp\.experts\.",
    ),
}


def step(model: nn.Module, mode: Mode) -> tuple[Probe, dict[str, Tensor], dict[str, Tensor]]:
    """The probe after one update, and by parameter the agents' gradients: captured and slow."""
    batch = make_batch(AGENT_B)
    slow = twin(model, batch)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    probe = attach(model, optimizer, agents=AGENTS, mode=mode)
    probe.tag(batch.agent_B)
    row_losses(model, batch).sum().backward()
    for name, p in model.named_parameters():
        if p.requires_grad and p.grad is not None:
            torch.testing.assert_close(p.grad.flatten(), slow[name].sum(0), rtol=0, atol=1e-12)
    captured = {
        slot.name: probe._instrument.capture.gradient_AP[:, slot.start : slot.stop].clone()
        for slot in probe._instrument.layout.slots
    }
    optimizer.step()
    return probe, captured, slow


@pytest.mark.parametrize("mode", ["exact", "fused"])
@pytest.mark.parametrize("name", COVERED)
def test_covered(name: str, mode: Mode) -> None:
    probe, captured, slow = step(COVERED[name](), mode)
    for key, expected in slow.items():
        torch.testing.assert_close(captured[key], expected, rtol=0, atol=1e-12)
    assert probe.last_check is not None
    assert probe.last_check.coverage == 1
    assert probe.last_check.residual < 1e-12


@pytest.mark.parametrize("mode", ["exact", "fused"])
@pytest.mark.parametrize("name", UNCOVERED)
def test_uncovered_is_named_and_everything_else_is_exact(name: str, mode: Mode) -> None:
    build, pattern = UNCOVERED[name]
    with pytest.warns(UserWarning, match=f"Not explained: .*{pattern}"):
        probe, captured, slow = step(build(), mode)
    assert probe.last_check is not None
    suspects = set(probe.last_check.suspects)
    assert suspects
    uncovered = 0
    for key, expected in slow.items():
        if key in suspects:
            assert not captured[key].any()
            uncovered += expected.shape[1]
        else:
            torch.testing.assert_close(captured[key], expected, rtol=0, atol=1e-12)
    total = sum(expected.shape[1] for expected in slow.values())
    assert probe.last_check.coverage == pytest.approx(1 - uncovered / total)
    assert all(name in probe.report() for name in suspects)


def test_reference_mode_covers_a_mixture() -> None:
    model, batch = mixture(), make_batch(AGENT_B)
    slow = twin(model, batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    probe = attach(model, optimizer, agents=AGENTS, mode="reference")
    losses = row_losses(model, batch)
    probe.backward({agent: losses[batch.agent_B == a].sum() for a, agent in enumerate(AGENTS)})
    optimizer.step()
    flat = torch.cat([*slow.values()], dim=1)
    assert probe.last is not None
    np.testing.assert_allclose(probe.last.gram_BAA.sum(0), (flat @ flat.T).numpy(), rtol=1e-9)
    assert probe.last.metrics.coverage == 1


class TiedHead(nn.Module):
    """Reads its embedding as a module, and its head behind the module's back."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(9, 4, dtype=torch.float64)
        self.body = nn.Linear(4, 4, dtype=torch.float64)

    def forward(self, ids: Tensor) -> Tensor:
        return self.body(self.embed(ids)).tanh() @ self.embed.weight.T


@pytest.mark.parametrize("limit", [0.1, 1e6])
def test_a_half_captured_parameter_is_the_only_suspect_and_does_not_bend_the_scale(
    limit: float,
) -> None:
    model = TiedHead()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    probe = attach(model, optimizer, agents=AGENTS)
    ids = torch.randint(0, 9, (6, 5), generator=torch.Generator().manual_seed(0))
    probe.tag(torch.tensor(AGENT_B))
    (model(ids) ** 2).sum().backward()
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), limit))
    with pytest.warns(UserWarning, match=r"Not explained: embed\.weight: either"):
        optimizer.step()
    assert probe.last_check is not None
    assert probe.last_check.suspects == ("embed.weight",)
    assert probe.last_check.scale == pytest.approx(min(1, limit / norm), rel=1e-5)
    assert probe.last_check.grad_norm == pytest.approx(norm, rel=1e-5)
    assert probe.last_check.coverage == 20 / 56


class Prefixed(nn.Module):
    """A model with parameters of its own in a list, around a layer that learns too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shifts = nn.ParameterList([nn.Parameter(torch.randn(4, dtype=torch.float64))])
        self.layer = nn.Linear(4, 4, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.layer(x + self.shifts[0])
        return hidden


def test_a_whole_model_is_not_run_again_for_a_parameter_in_a_list() -> None:
    model = Prefixed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    probe = attach(model, optimizer, agents=AGENTS)
    probe.tag(list(AGENTS))
    (model(torch.randn(3, 4, dtype=torch.float64)) ** 2).sum().backward()
    with pytest.warns(UserWarning, match=r"Not explained: shifts\.0: either"):
        optimizer.step()
    assert probe.last is not None
    assert probe.last.metrics.coverage == 20 / 24
    model.layer.requires_grad_(False)
    probe.detach()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    probe = attach(model, optimizer, agents=AGENTS)  # now it is a leaf, and cheap to run again
    model.zero_grad()
    probe.tag(list(AGENTS))
    (model(torch.randn(3, 4, dtype=torch.float64)) ** 2).sum().backward()
    optimizer.step()
    assert probe.last is not None
    assert probe.last.metrics.residual < 1e-12
