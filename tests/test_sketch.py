"""Sketched Grams are unbiased estimates of the exact ones, with errors of the size foretold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import make_llama, make_qwen3
from test_capture import (
    AGENTS,
    Batch,
    assert_same_gram,
    checkpoint_layers,
    lora,
    make_batch,
    row_losses,
    twin,
    twin_gram,
)
from torch import Tensor, nn

from gradlab.probe.capture.projections import draw, projected
from gradlab.probe.probe import Probe, attach

TAGS = (2, 0, 1, 0, 2, 1)


def sketching(model: nn.Module, rank: int, seed: int = 0) -> tuple[Probe, torch.optim.Optimizer]:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    probe = attach(
        model, optimizer, agents=AGENTS, mode="sketch", sketch_rank=rank, projection_seed=seed
    )
    return probe, optimizer


def backward(
    model: nn.Module, probe: Probe, batch: Batch, prompts: list[int] | None = None
) -> None:
    probe.tag(batch.agent_B, prompts=prompts)
    row_losses(model, batch).sum().backward()


def test_a_rank_as_long_as_every_side_is_exact() -> None:
    model, batch = make_llama(), make_batch(TAGS)
    slow = twin(model, batch)
    probe, optimizer = sketching(model, rank=40)
    backward(model, probe, batch)
    optimizer.step()
    assert_same_gram(probe, twin_gram(slow, probe.blocks), 1e-10)


@pytest.mark.parametrize("name", ["llama full", "qwen3 full, tied", "llama lora"])
def test_estimates_are_unbiased_and_their_error_shrinks_with_the_rank(name: str) -> None:
    builds = {
        "llama full": make_llama,
        "qwen3 full, tied": make_qwen3,
        "llama lora": lambda: lora(make_llama()),
    }
    model, batch = builds[name](), make_batch(TAGS)
    slow = twin(model, batch)
    spread = {}
    for rank in (4, 12):
        probe, optimizer = sketching(model, rank)
        exact = twin_gram(slow, probe.blocks)
        found = []
        for _ in range(150):
            backward(model, probe, batch)
            optimizer.step()
            optimizer.zero_grad()
            assert probe.last is not None
            found.append(probe.last.gram_BAA)
        stacked = np.stack(found)
        error = np.abs(stacked.mean(0) - exact) / (stacked.std(0) / math.sqrt(150) + 1e-12)
        assert error.max() < 5  # standard errors, over some dozens of entries
        total = np.trace(exact.sum(0))
        spread[rank] = np.trace(stacked.sum(1), axis1=1, axis2=2).std() / total
    # Of variance 2/(k rho) per side and 2/k^2, rho the rank of the gradients.
    assert spread[12] < 0.75 * spread[4]


def test_training_is_bitwise_that_of_an_unprobed_run_and_the_self_check_is_sharp() -> None:
    plain, batch = make_llama(), make_batch(TAGS)
    model = make_llama()
    row_losses(plain, batch).sum().backward()
    probe, optimizer = sketching(model, rank=4)
    backward(model, probe, batch)
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)  # type: ignore[arg-type] # both were trained
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), 0.01))
    optimizer.step()
    assert probe.last is not None
    metrics = probe.last.metrics
    assert metrics.residual < 1e-12  # projections are linear
    assert metrics.coverage == 1
    assert metrics.clip_factor == pytest.approx(0.01 / (norm + 1e-6), rel=1e-9)
    assert metrics.grad_norm == pytest.approx(norm, rel=1e-6)  # of the gradient, not of its sketch


def test_micro_batches_and_checkpointing_add_up_to_the_same_sketch() -> None:
    batch, found = make_batch(TAGS), []
    for parts, is_checkpointed in (([range(6)], False), (([0, 1, 2], [3], [4, 5]), True)):
        model = make_qwen3().train()
        if is_checkpointed:
            model.enable_input_require_grads()
            checkpoint_layers(model, is_reentrant=False)
        probe, optimizer = sketching(model, rank=6)
        for rows in parts:
            backward(model, probe, batch.part([*rows]))
        optimizer.step()
        assert probe.last is not None
        found.append(probe.last.gram_BAA)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-10, atol=1e-16)


class TiedHead(nn.Module):
    """Reads its embedding as a module, and its head behind the module's back."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(30, 16, dtype=torch.float64)
        self.body = nn.Linear(16, 16, dtype=torch.float64)

    def forward(self, ids: Tensor) -> Tensor:
        return self.body(self.embed(ids)).tanh() @ self.embed.weight.T


def test_what_is_not_covered_is_named_from_the_sketch() -> None:
    model = TiedHead()
    probe, optimizer = sketching(model, rank=4)
    ids = torch.randint(0, 30, (6, 5), generator=torch.Generator().manual_seed(0))
    probe.tag(torch.tensor(TAGS))
    (model(ids) ** 2).sum().backward()
    with pytest.warns(UserWarning, match=r"Not explained: embed\.weight: either"):
        optimizer.step()
    assert probe.last_check is not None
    assert probe.last_check.scale == pytest.approx(1)
    assert probe.last_check.coverage == pytest.approx((16 * 16 + 16) / (16 * 16 + 16 + 30 * 16))


def test_a_step_without_tags_is_told_and_not_a_crash() -> None:
    model = make_llama()
    probe, optimizer = sketching(model, rank=4)
    row_losses(model, make_batch(TAGS)).sum().backward()
    with pytest.warns(UserWarning, match=r"call probe\.tag"):
        optimizer.step()
    assert probe.last is not None
    assert probe.last.metrics.residual == 1


def test_memory_is_the_rank_not_the_parameters_and_updates_are_not_split() -> None:
    model = make_llama()
    probe, optimizer = sketching(model, rank=4)
    backward(model, probe, make_batch(TAGS))
    vectors = sum(p.numel() for p in model.parameters() if p.dim() == 1)
    matrices = sum(p.dim() == 2 for p in model.parameters())
    assert probe._instrument.capture.gradient_AP.shape == (3, vectors + 16 * matrices)
    optimizer.step()
    assert probe.last is not None
    assert probe.last.update_gram_AA is None
    assert math.isnan(probe.last.metrics.distance)
    assert "no update shares: mode 'sketch' keeps no agent's moments" in probe.report()
    assert probe.meta.mode == "sketch"
    assert probe.meta.num_parameters == sum(p.numel() for p in model.parameters())


def test_row_statistics_of_sketches_are_estimates_too() -> None:
    model, batch = make_llama(), make_batch(TAGS)
    own = twin(model, Batch(batch.ids_BT, batch.mask_BT, batch.weight_B, torch.arange(6)), 6)
    norm2_R = torch.cat([*own.values()], dim=1).square().sum(1)
    probe, optimizer = sketching(model, rank=12)
    found = []
    for _ in range(60):
        backward(model, probe, batch, prompts=[0, 0, 0, 1, 1, 1])
        optimizer.step()
        optimizer.zero_grad()
        assert probe.last is not None
        found.append(probe.last.row_statistics["aggregator"].total)
    expected = float(norm2_R[batch.agent_B == 2].mean())
    assert abs(np.mean(found) - expected) < 5 * np.std(found) / math.sqrt(60)


def test_an_audit_compares_sketches() -> None:
    model, batch = make_llama(), make_batch(TAGS)
    probe, _ = sketching(model, rank=4)
    probe.tag(batch.agent_B)
    row_losses(model, batch).sum().backward()

    def alone(tag: int) -> Tensor:
        loss: Tensor = (row_losses(model, batch) * (batch.agent_B == tag)).sum()
        return loss

    assert probe.audit(lambda agent: alone(AGENTS.index(agent))).is_right
    wrong = probe.audit(lambda agent: alone((AGENTS.index(agent) + 1) % 3))
    assert [str(a.captured_as) for a in wrong.agents] == [
        "generator[1]", "aggregator[0]", "generator[0]",
    ]  # fmt: skip


def test_steps_draw_other_projections_and_a_seed_the_same() -> None:
    shapes = [torch.Size((50, 40)), torch.Size((50,)), torch.Size((3, 40)), torch.Size((2, 9, 8))]
    cpu = torch.device("cpu")
    one, same, other = (draw(shapes, 4, seed, cpu, torch.float64) for seed in (1, 1, 2))
    assert set(one) == {0, 2, 3}
    assert one[2].left_Ok is None
    for a, b in ((one, same), (one, other)):
        assert torch.equal(a[0].right_Ik, b[0].right_Ik) == (b is same)  # type: ignore[arg-type] # both are drawn
    assert one[3].of_gradient(torch.ones(2, 9, 8, dtype=torch.float64)).shape == (4, 4)


def test_a_layout_of_projections() -> None:
    model = make_llama()
    whole = attach(
        model, torch.optim.SGD(model.parameters(), lr=0.0), agents=AGENTS
    )._instrument.layout
    small = projected(whole, 8)
    assert [slot.name for slot in small.slots] == [slot.name for slot in whole.slots]
    assert [name for name, _, _ in small.blocks] == [name for name, _, _ in whole.blocks]
    assert small.blocks[-1][2] == small.num_parameters
    for slot, other in zip(small.slots, whole.slots, strict=True):
        assert slot.stop - slot.start == slot.shape.numel()
        assert max(slot.shape) <= 8 or slot.shape == other.shape
    with pytest.raises(ValueError, match="sketch_rank is 1; expected 2 or more"):
        attach(
            model, torch.optim.SGD(model.parameters()), agents=AGENTS, mode="sketch", sketch_rank=1
        )
