"""What is changed after `attach` is told at the first step, and nothing is written of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from conftest import make_qwen3
from test_probe import AGENTS, AGGREGATOR, ROWS, Small, batch, loss_of, setup, step
from torch import Tensor, nn

from gradlab.probe.probe import attach
from gradlab.store.run import open_run


def test_a_parameter_that_was_replaced_is_named() -> None:
    model, _, probe = setup()
    model.head.weight = nn.Parameter(model.head.weight.detach().clone())
    probe.tag(ROWS)
    with pytest.raises(ValueError, match=r"'head\.weight'.*the model computes with another"):
        model(batch())


def test_a_module_that_was_replaced_is_named() -> None:
    model, _, probe = setup()
    model.head = nn.Linear(4, 3, bias=False)
    probe.tag(ROWS)
    with pytest.raises(ValueError, match=r"'head\.weight'.*the model computes with another"):
        model(batch())


def test_an_optimizer_that_was_given_other_parameters_is_refused() -> None:
    """As accelerate does when it shards a model after the probe was attached."""
    model, optimizer, probe = setup()
    group = optimizer.param_groups[0]
    group["params"] = [nn.Parameter(p.detach().clone()) for p in group["params"]]
    probe.tag(ROWS)
    with pytest.raises(ValueError, match="the optimizer no longer has it"):
        model(batch())


def test_another_dtype_is_refused() -> None:
    model, _, probe = setup()
    model.double()
    probe.tag(ROWS)
    with pytest.raises(ValueError, match=r"dtype went from torch\.float32 to torch\.float64"):
        model(batch().double())


def test_a_model_that_was_wrapped_in_an_adapter_is_refused() -> None:
    model = make_qwen3()
    optimizer = torch.optim.AdamW(model.parameters())
    probe = attach(model, optimizer, agents=AGENTS)
    wrapped: Any = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    probe.tag([AGGREGATOR])
    with pytest.raises(ValueError, match=r"q_proj\.weight'.*no such parameter any more"):
        wrapped(input_ids=torch.ones(1, 3, dtype=torch.int64))


def test_a_model_that_was_frozen_is_refused() -> None:
    model, _, probe = setup()
    model.requires_grad_(False)
    probe.tag(ROWS)
    with pytest.raises(ValueError, match="neither it nor another requires a gradient"):
        model(batch().requires_grad_())


def test_a_new_optimizer_is_noticed_when_it_has_stepped_twice() -> None:
    model, _, probe = setup()
    other = torch.optim.AdamW(model.parameters())

    def train() -> None:
        probe.tag(ROWS)
        loss_of(model, batch()).backward()
        other.step()
        other.zero_grad()

    train()
    train()
    with pytest.raises(ValueError, match="stepped twice, and not by the AdamW"):
        train()


def test_a_look_ahead_is_no_new_optimizer() -> None:
    """Sharpness-aware: step up the gradient, drop it, and step with that of the other place."""
    model, optimizer, probe = setup()
    for _ in range(3):
        probe.tag(ROWS)
        loss_of(model, batch()).backward()
        moved = {p: 0.1 * p.grad for p in model.parameters() if p.grad is not None}
        with torch.no_grad():
            for p, shift in moved.items():
                p.add_(shift)
        optimizer.zero_grad()
        probe.tag(ROWS)
        loss_of(model, batch()).backward()
        with torch.no_grad():
            for p, shift in moved.items():
                p.sub_(shift)
        optimizer.step()
        optimizer.zero_grad()
    assert probe.num_updates == 3
    assert probe.worst_residual < 1e-5


def test_a_wrapped_optimizer_is_refused() -> None:
    model = Small()
    inner = torch.optim.AdamW(model.parameters())
    Accelerator(cpu=True)
    with pytest.raises(
        ValueError, match=r"AcceleratedOptimizer is a wrapper.*optimizer\.optimizer"
    ):
        attach(model, AcceleratedOptimizer(inner), agents=AGENTS)


def test_what_changes_nothing_is_left_alone() -> None:
    model, optimizer, probe = setup()
    model.to("cpu").train()
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    assert step(model, optimizer, probe).metrics.residual < 1e-5


@pytest.mark.parametrize("mistake", ["length", "unknown", "replaced", "mixed"])
def test_a_mistake_leaves_nothing_in_the_store(tmp_path: Path, mistake: str) -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.attention = nn.MultiheadAttention(4, 1, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.attention(x, x, x)[0]
            return out

    model: nn.Module = Attends() if mistake == "mixed" else Small()
    optimizer = torch.optim.AdamW(model.parameters())
    path = tmp_path / "run.zarr"
    probe = attach(model, optimizer, agents=AGENTS[:2], record=path)
    if mistake == "replaced":
        model.head = nn.Linear(4, 3)
    tags: Any = {"unknown": [AGGREGATOR], "mixed": torch.tensor([[0, 0, 1]])}.get(
        mistake, torch.tensor([0, 1])
    )
    rows = {"length": batch(3), "mixed": torch.randn(1, 3, 4)}.get(mistake, batch(2))

    def first_step() -> None:
        probe.tag(tags)
        model(rows).sum().backward()
        optimizer.step()

    with pytest.raises(ValueError, match=r"tag|attach"):
        first_step()
    probe.close()
    run = open_run(path)
    assert run.closed
    assert len(run.steps) == len(run.gram("shared").gram_UBAA) == 0


def test_after_a_mistake_the_next_update_is_whole() -> None:
    model, optimizer, probe = setup()
    probe.tag(ROWS[:3], prompts=[0, 1, 2])
    with pytest.raises(ValueError, match="agents for shape"):
        model(batch(4))
    probe.discard()
    probe.tag(ROWS, prompts=[0, 1, 2, 3])
    loss_of(model, batch(4)).backward()
    optimizer.step()
    assert probe.last is not None
    assert probe.last.metrics.rows == 4
    again, other, second = setup()
    second.tag(ROWS, prompts=[0, 1, 2, 3])
    loss_of(again, batch(4)).backward()
    other.step()
    assert second.last is not None
    assert np.array_equal(probe.last.gram_BAA, second.last.gram_BAA)
    assert repr(probe.last.row_statistics) == repr(second.last.row_statistics)
