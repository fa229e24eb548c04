"""Fused splitting: training keeps its whole gradient whatever happens to the tags."""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import make_qwen3
from hypothesis import given, settings
from hypothesis import strategies as st
from test_capture import AGENTS, assert_same_gram, lora, make_batch, row_losses, twin, twin_gram
from torch import Tensor, nn

from gradlab.probe.capture.rules import with_gaps
from gradlab.probe.probe import Probe, attach
from gradlab.records import Mode

DOUBLE = torch.float64


def fused(model: nn.Module) -> tuple[Probe, torch.optim.Optimizer]:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    return attach(model, optimizer, agents=AGENTS, mode="fused"), optimizer


def two_layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).to(DOUBLE)


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad((model(x) ** 2).sum(), [*model.parameters()]))


def assert_whole_gradient(model: nn.Module, expected: list[Tensor]) -> None:
    for p, gradient in zip(model.parameters(), expected, strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, gradient, rtol=1e-12, atol=1e-14)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_tags_and_any_split_into_micro_batches(data: st.DataObject) -> None:
    agents = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=7))
    cuts = data.draw(st.lists(st.integers(0, len(agents)), max_size=3))
    model, batch = lora(make_qwen3()), make_batch(agents, seed=data.draw(st.integers(0, 99)))
    slow = twin(model, batch)
    probe, optimizer = fused(model)
    for lo, hi in pairwise(sorted({0, *cuts, len(agents)})):
        part = batch.part(range(lo, hi))
        probe.tag(part.agent_B)
        row_losses(model, part).sum().backward()
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert p.grad is not None
            torch.testing.assert_close(p.grad.flatten(), slow[name].sum(0), rtol=0, atol=1e-12)
    optimizer.step()
    expected = twin_gram(slow, probe.blocks)
    assert probe.last is not None
    np.testing.assert_allclose(probe.last.gram_BAA, expected, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize("has_prompts", [False, True])
@pytest.mark.parametrize("index", [[0, -1, 2, -1], [-1, -1, -1, -1], [2, 0, -1, 0], [-1, 1, 0, 1]])
def test_rows_of_nobody_still_train(index: list[int], has_prompts: bool) -> None:
    model, x = two_layers(), torch.randn(4, 3, 4, dtype=DOUBLE)
    expected = gradients(model, x)
    own = [
        torch.cat([g.flatten() for g in gradients(model, x[[row]])]) if agent >= 0 else None
        for row, agent in enumerate(index)
    ]
    probe, optimizer = fused(model)
    probe.tag(torch.tensor(index), prompts=range(4) if has_prompts else None)
    (model(x) ** 2).sum().backward()
    assert_whole_gradient(model, expected)
    with pytest.warns(UserWarning, match="unexplained"):
        optimizer.step()
    zero = torch.zeros(sum(p.numel() for p in model.parameters()), dtype=DOUBLE)
    flat = torch.stack(
        [
            sum((g for g, a in zip(own, index, strict=True) if a == agent and g is not None), zero)
            for agent in range(3)
        ]
    )
    assert probe.last is not None
    np.testing.assert_allclose(
        probe.last.gram_BAA.sum(0), (flat @ flat.T).numpy(), atol=1e-10 * float(flat.square().sum())
    )


def test_gaps_are_nobodys() -> None:
    assert with_gaps([(0, 1, 2), (1, 2, 3), (0, 5, 6)], 8) == [
        (-1, 0, 1), (0, 1, 2), (1, 2, 3), (-1, 3, 5), (0, 5, 6), (-1, 6, 8),
    ]  # fmt: skip
    assert with_gaps([], 2) == [(-1, 0, 2)]


def test_token_tags() -> None:
    model, x = two_layers(), torch.randn(1, 6, 4, dtype=DOUBLE)
    expected = gradients(model, x)
    flat = torch.stack(
        [torch.cat([g.flatten() for g in gradients(model, x[:, i : i + 2])]) for i in (0, 2, 4)]
    )
    probe, optimizer = fused(model)
    probe.tag(torch.tensor([[0, 0, 1, 1, 2, 2]]))
    (model(x) ** 2).sum().backward()
    assert_whole_gradient(model, expected)
    optimizer.step()
    assert probe.last is not None
    np.testing.assert_allclose(probe.last.gram_BAA.sum(0), (flat @ flat.T).numpy(), rtol=1e-10)


def test_forwards_without_tags_train_to_the_bit() -> None:
    plain, x = two_layers().float(), torch.randn(5, 4)
    model = copy.deepcopy(plain)
    fused(model)
    for m in (plain, model):
        (m(x) ** 2).sum().backward()
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)  # type: ignore[arg-type] # both were trained


class Flattening(nn.Module):
    """Folds rows and tokens together, so that the layer behind it cannot be split by row."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6, dtype=DOUBLE)
        self.second = nn.Linear(6, 2, dtype=DOUBLE)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.second(self.first(x).flatten(0, 1).tanh())
        return hidden


def test_a_layer_that_cannot_be_split_trains_all_the_same_and_is_named() -> None:
    torch.manual_seed(0)
    model, x = Flattening(), torch.randn(3, 5, 4, dtype=DOUBLE)
    expected = gradients(model, x)
    probe, optimizer = fused(model)
    probe.tag(list(AGENTS))
    (model(x) ** 2).sum().backward()
    assert_whole_gradient(model, expected)
    with pytest.warns(UserWarning, match=r"Not explained: second\.weight, .*module 'second'"):
        optimizer.step()
    assert probe.last is not None
    assert 0 < probe.last.metrics.coverage < 1


def test_a_wrapped_layer_is_split_beside_autograd_and_said_so() -> None:
    model, x = two_layers(), torch.randn(3, 4, dtype=DOUBLE)
    first = model[0]
    before = first.forward
    first.forward = lambda input: before(input) * 1.0
    probe, optimizer = fused(model)
    probe.tag(list(AGENTS))
    (model(x) ** 2).sum().backward()
    optimizer.step()
    assert probe.last is not None
    assert probe.last.metrics.residual < 1e-12
    assert "fused: 1 of 2 modules; split beside autograd: Linear, e.g. '0'" in probe.report()


def test_a_graph_that_is_kept_counts_every_backward() -> None:
    model, batch = lora(make_qwen3()), make_batch((0, 1, 2))
    slow = {name: 2 * g for name, g in twin(model, batch).items()}
    probe, optimizer = fused(model)
    probe.tag(batch.agent_B)
    loss = row_losses(model, batch).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    optimizer.step()
    assert_same_gram(probe, twin_gram(slow, probe.blocks), 1e-10)


def test_a_backward_inside_autocast_uses_the_dtypes_of_the_forward() -> None:
    plain, x = two_layers().float(), torch.randn(6, 4)
    model = copy.deepcopy(plain)
    (plain(x) ** 2).sum().backward()
    probe, _ = fused(model)
    probe.tag(torch.tensor([0, 0, 1, 1, 2, 2]))
    loss = (model(x) ** 2).sum()
    with torch.autocast("cpu", torch.bfloat16):
        loss.backward()
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-6)


def test_frozen_and_switched_parameters() -> None:
    """A weight that stops learning has no gradient, and its input's gradient still flows."""
    model, x = two_layers(), torch.randn(3, 4, dtype=DOUBLE)
    probe, optimizer = fused(model)
    model[2].weight.requires_grad_(False)
    probe.tag(list(AGENTS))
    (model(x) ** 2).sum().backward()
    assert model[2].weight.grad is None
    assert model[2].bias.grad is not None
    optimizer.step()
    assert probe.last is not None
    assert probe.last.metrics.residual < 1e-12
    assert probe.last.metrics.coverage == 1


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler's own guards
@pytest.mark.parametrize("mode", ["exact", "fused"])
def test_compiled_layers_are_split_beside_autograd(mode: Mode) -> None:
    model, x = two_layers(), torch.randn(3, 4, dtype=DOUBLE)
    expected = gradients(model, x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    probe = attach(model, optimizer, agents=AGENTS, mode=mode)
    compiled = torch.compile(model, backend="aot_eager")
    probe.tag(list(AGENTS))
    (compiled(x) ** 2).sum().backward()
    assert_whole_gradient(model, expected)
    optimizer.step()
    assert probe.last is not None
    assert probe.last.metrics.coverage == 1
    assert probe.last.metrics.residual < 1e-10
