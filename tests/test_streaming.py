"""Streaming Grams: exact, one parameter's gradients at a time, and one backward per update."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import make_llama, make_qwen3
from test_capture import AGENTS, assert_same_gram, make_batch, row_losses, twin, twin_gram
from test_sketch import TAGS, TiedHead
from torch import nn

from gradlab.probe.capture.streaming import Stream
from gradlab.probe.probe import Probe, attach


def streaming(model: nn.Module, lr: float = 0.0) -> tuple[Probe, torch.optim.Optimizer]:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return attach(model, optimizer, agents=AGENTS, mode="streaming"), optimizer


def test_updates_clipping_and_norms_are_those_of_the_exact_mode() -> None:
    """Several updates of a tied model, clipped, against the mode that keeps every gradient."""
    found = {}
    for mode in ("exact", "streaming"):
        model = make_qwen3()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        probe = attach(model, optimizer, agents=AGENTS, mode=mode)  # type: ignore[arg-type] # both are modes
        records = []
        for seed in range(4):
            batch = make_batch(TAGS, seed=seed)
            probe.tag(batch.agent_B, prompts=[0, 0, 1, 1, 2, 2])
            row_losses(model, batch).sum().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            optimizer.step()
            optimizer.zero_grad()
            assert probe.last is not None
            records.append(probe.last)
        found[mode] = records
    for exact, streamed in zip(found["exact"], found["streaming"], strict=True):
        scale = np.abs(exact.gram_BAA).max()
        np.testing.assert_allclose(streamed.gram_BAA, exact.gram_BAA, rtol=0, atol=1e-9 * scale)
        assert streamed.metrics.residual < 1e-10
        for name in ("clip_factor", "grad_norm", "coverage", "rows"):
            expected = getattr(exact.metrics, name)
            assert getattr(streamed.metrics, name) == pytest.approx(expected, rel=1e-9)
        for role, statistics in exact.row_statistics.items():
            assert streamed.row_statistics[role].total == pytest.approx(statistics.total, rel=1e-9)
        assert streamed.update_gram_AA is None


def test_no_more_than_one_untied_parameter_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    model, held = make_llama(), []
    probe, optimizer = streaming(model)
    ordinary = Stream._room

    def counted(self: Stream, size: int) -> torch.Tensor:
        room = ordinary(self, size)
        held.append(
            room.numel() + sum(other.numel() for other in (*self._open.values(), *self._pool))
        )
        return room

    monkeypatch.setattr(Stream, "_room", counted)
    batch = make_batch(TAGS)
    probe.tag(batch.agent_B)
    row_losses(model, batch).sum().backward()
    stream = probe._instrument.capture.stream
    assert stream is not None
    assert not stream._open
    sizes = [p.numel() for p in model.parameters()]
    biases = [p.numel() for p in model.parameters() if p.dim() == 1]
    # A layer's weight and its bias are open together.
    assert 0 < max(held) <= len(AGENTS) * (max(sizes) + max(biases))
    assert max(held) < len(AGENTS) * sum(sizes) / 5
    assert probe._instrument.capture.gradient_AP.numel() == 0
    optimizer.step()


def test_a_second_backward_is_refused_with_what_to_do() -> None:
    model, batch = make_llama(), make_batch(TAGS)
    probe, _ = streaming(model)
    for number in range(2):
        probe.tag(batch.agent_B)
        loss = row_losses(model, batch).sum()
        if number == 0:
            loss.backward()
    with pytest.raises(ValueError, match=r"a second backward before optimizer\.step.*one backward"):
        loss.backward()


def test_a_skipped_step_leaves_nothing_behind() -> None:
    model, batch = make_llama(), make_batch(TAGS)
    slow = twin(model, batch)
    probe, optimizer = streaming(model)
    for _ in range(2):
        optimizer.zero_grad()  # the first backward's gradients are dropped
        probe.tag(batch.agent_B)
        row_losses(model, batch).sum().backward()
    optimizer.step()
    assert_same_gram(probe, twin_gram(slow, probe.blocks), 1e-10)


def test_what_is_not_covered_is_named() -> None:
    model = TiedHead()
    probe, optimizer = streaming(model)
    ids = torch.randint(0, 30, (6, 5), generator=torch.Generator().manual_seed(0))
    probe.tag(torch.tensor(TAGS))
    (model(ids) ** 2).sum().backward()
    with pytest.warns(UserWarning, match=r"Not explained: embed\.weight"):
        optimizer.step()
    check = probe.last_check
    assert check is not None
    assert check.residual > 0.01
    assert "embed.weight" in check.suspects
    assert check.coverage < 0.6


def test_gradients_changed_for_some_parameters_only_are_named() -> None:
    model, batch = make_llama(), make_batch(TAGS)
    probe, optimizer = streaming(model)
    probe.tag(batch.agent_B)
    row_losses(model, batch).sum().backward()
    head = model.get_submodule("lm_head").weight.grad
    assert isinstance(head, torch.Tensor)
    head.mul_(1.5)
    with pytest.warns(UserWarning, match=r"lm_head\.weight"):
        optimizer.step()


def test_a_step_without_tags_is_told_and_a_loss_of_zero_is_not() -> None:
    model, batch = make_llama(), make_batch(TAGS)
    probe, optimizer = streaming(model)
    row_losses(model, batch).sum().backward()
    with pytest.warns(UserWarning, match=r"call probe\.tag"):
        optimizer.step()
    optimizer.zero_grad()
    probe.tag(batch.agent_B)
    (row_losses(model, batch).sum() * 0).backward()
    optimizer.step()
    assert probe.last is not None
    assert probe.last.metrics.residual == 0
    assert probe.last.metrics.clip_factor == 1
    assert math.isnan(probe.last.metrics.update_norm)


def test_an_audit_is_refused_with_the_reason() -> None:
    model, batch = make_llama(), make_batch(TAGS)
    probe, _ = streaming(model)
    probe.tag(batch.agent_B)
    row_losses(model, batch).sum().backward()
    with pytest.raises(ValueError, match="'streaming' has forgotten the gradients"):
        probe.audit(lambda agent: None)
