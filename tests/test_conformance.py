"""Every kind of model and loop that is covered x every mode, against one backward per agent.

The twin is `autograd.grad` of each agent's loss through one ordinary forward, in float64 unless the
case says otherwise; for `sketch` it is projected like the probe's. Whatever the mode, the optimizer
has to get the same gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import peft
import pytest
import torch
from conftest import make_llama, make_qwen3
from test_capture import (
    AGENTS,
    Batch,
    checkpoint_layers,
    lora,
    make_batch,
    row_losses,
    same_layer_twice,
    twin_gram,
)
from torch import Tensor, nn

from gradlab.probe.probe import Probe, attach
from gradlab.records import MODES, Mode

TAGS = (2, 0, 1, 0, 2, 1, 0, 2)
PARTS = ([0, 1, 2, 3], [4, 5], [6, 7])


@dataclass(frozen=True)
class Case:
    """A model, and how it is trained."""

    build: Callable[[], nn.Module]
    parts: Sequence[list[int]] = (range(8),)  # type: ignore[assignment] # a range is a list here
    """Rows of each micro-batch."""
    reentrant: bool | None = None
    """Kind of activation checkpointing; None: none."""
    autocast: bool = False
    in_place: bool = False
    """Whether the loss divides the logits in place, as TRL and verl do."""
    tolerance: float = 1e-10
    gradient_tolerance: float = 1e-12
    """Of the optimizer's gradient against the unprobed one; `fused` only sums in another order."""


def biased_lora() -> nn.Module:
    """Rank-stabilised LoRA that trains the biases beside it and a whole head."""
    settings = peft.LoraConfig(
        r=4, target_modules=["q_proj", "up_proj"], use_rslora=True, bias="all",
        modules_to_save=["lm_head"],
    )  # fmt: skip
    model = peft.get_peft_model(make_llama(), settings)
    generator = torch.Generator().manual_seed(2)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    return model.double()


def single(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: build().float()


CASES = {
    "full, tied, normed heads": Case(make_qwen3),
    "full, biases, untied": Case(make_llama),
    "lora": Case(lambda: lora(make_llama())),
    "lora, rank-stabilised, biases, saved head": Case(biased_lora),
    "a layer used twice": Case(same_layer_twice),
    "a lora layer used twice": Case(lambda: lora(same_layer_twice())),
    "accumulation": Case(lambda: lora(make_qwen3()), PARTS),
    "accumulation, full": Case(make_llama, PARTS),
    "dropout": Case(lambda: lora(make_qwen3(attention_dropout=0.2), dropout=0.3).train()),
    "checkpointing": Case(lambda: lora(make_qwen3()).train(), PARTS, reentrant=False),
    "reentrant checkpointing": Case(lambda: lora(make_qwen3()).train(), PARTS, reentrant=True),
    "checkpointing, full": Case(lambda: make_llama().train(), PARTS, reentrant=False),
    "reentrant, full": Case(lambda: make_llama().train(), PARTS, reentrant=True),
    "reentrant, full, tied": Case(lambda: make_qwen3().train(), reentrant=True),
    "checkpointing, full, tied": Case(lambda: make_qwen3().train(), reentrant=False),
    "checkpointing, dropout": Case(
        lambda: lora(make_qwen3(attention_dropout=0.2), dropout=0.3).train(), reentrant=False
    ),
    "logits divided in place": Case(make_llama, in_place=True),
    "logits divided in place, lora": Case(lambda: lora(make_llama()), in_place=True),
    "float32": Case(single(make_llama), tolerance=1e-5, gradient_tolerance=1e-6),
    "float32 lora": Case(
        single(lambda: lora(make_qwen3(), 8)), tolerance=1e-5, gradient_tolerance=1e-6
    ),
    "autocast": Case(
        single(lambda: lora(make_qwen3())), PARTS, autocast=True,
        tolerance=2e-2, gradient_tolerance=2e-2,
    ),
    "autocast, full": Case(
        single(make_llama), autocast=True, tolerance=2e-2, gradient_tolerance=2e-2
    ),
    "autocast, checkpointing": Case(
        single(lambda: lora(make_qwen3()).train()), PARTS, reentrant=False, autocast=True,
        tolerance=2e-2, gradient_tolerance=2e-2,
    ),
    "bfloat16": Case(
        lambda: lora(make_qwen3()).bfloat16(), tolerance=5e-2, gradient_tolerance=2e-2
    ),
}  # fmt: skip


def losses_of(case: Case, model: nn.Module, batch: Batch) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=case.autocast):
        if not case.in_place:
            return row_losses(model, batch)
        logits = model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT, use_cache=False).logits
        logits.div_(0.7)
        nll = -logits[:, :-1].log_softmax(-1).gather(-1, batch.ids_BT[:, 1:, None])[..., 0]
        return nll.mean(1) * batch.weight_B


def prepare(case: Case) -> tuple[nn.Module, Batch, list[nn.Parameter]]:
    model = case.build()
    trained = [p for p in model.parameters() if p.requires_grad]
    if case.reentrant is not None:
        model.enable_input_require_grads()  # type: ignore[operator] # a method of transformers'
        checkpoint_layers(model, case.reentrant)
    return model, make_batch(TAGS, dtype=trained[0].dtype), trained


def slow_gradients(case: Case) -> list[list[Tensor]]:
    """[agent][parameter] gradients summed over the micro-batches."""
    model, batch, trained = prepare(case)
    sums = [[torch.zeros_like(p, dtype=torch.float64) for p in trained] for _ in AGENTS]
    torch.manual_seed(5)
    for rows in case.parts:
        part = batch.part(rows)
        state = torch.get_rng_state()
        for agent in range(len(AGENTS)):
            torch.set_rng_state(state)  # the same dropout for every agent
            for p in trained:
                p.grad = None
            losses = losses_of(case, model, part)
            (losses * (part.agent_B == agent)).sum().backward()
            for p, total in zip(trained, sums[agent], strict=True):
                total += 0 if p.grad is None else p.grad
    return sums


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def kept(probe: Probe, name: str, gradient: Tensor) -> Tensor:
    """What the probe keeps of a gradient: all, or its projection."""
    (number,) = [i for i, slot in enumerate(probe._instrument.layout.slots) if slot.name == name]
    projection = probe._instrument.capture.projections.get(number)
    if projection is None:
        return gradient.flatten()
    left, right = projection.left_Ok, projection.right_Ik
    if left is not None:
        gradient = left.double().T @ gradient
    if right is not None:
        gradient = gradient @ right.double()
    return gradient.flatten()


@pytest.mark.parametrize("has_prompts", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CASES)
def test_mode_against_the_slow_twin(name: str, mode: Mode, has_prompts: bool) -> None:
    case = CASES[name]
    if mode == "reference" and has_prompts:
        pytest.skip("one backward per agent has no rows")
    if mode == "streaming" and len(case.parts) > 1:
        pytest.skip("an update is one backward there; see test_streaming.py")
    slow = slow_gradients(case)
    model, batch, trained = prepare(case)
    names = {id(p): key for key, p in model.named_parameters()}
    optimizer = torch.optim.SGD(trained, lr=0.0)
    probe = attach(model, optimizer, agents=AGENTS, mode=mode, sketch_rank=7)
    torch.manual_seed(5)
    for rows in case.parts:
        part = batch.part(rows)
        if mode == "reference":
            losses = losses_of(case, model, part)
            probe.backward(
                {
                    agent: (losses * (part.agent_B == a)).sum()
                    for a, agent in enumerate(AGENTS)
                    if bool((part.agent_B == a).any())
                }
            )
            continue
        probe.tag(part.agent_B, prompts=[row % 3 for row in rows] if has_prompts else None)
        loss = losses_of(case, model, part).sum()
        probe.untag()
        loss.backward()
    random_after = torch.get_rng_state()
    for p, *parts in zip(trained, *slow, strict=True):
        assert p.grad is not None
        expected = torch.stack(parts).sum(0)
        assert relative(p.grad.double(), expected) < case.gradient_tolerance, names[id(p)]
    optimizer.step()
    slow_by_name = {
        names[id(p)]: torch.stack([kept(probe, names[id(p)], part) for part in parts])
        for p, *parts in zip(trained, *slow, strict=True)
    }
    expected_BAA = twin_gram(slow_by_name, probe.blocks)
    assert probe.last is not None
    assert probe.last_check is not None
    size_BA = np.sqrt(np.einsum("baa->ba", expected_BAA))
    error = np.abs(probe.last.gram_BAA - expected_BAA) / (size_BA[:, :, None] * size_BA[:, None])
    assert error.max() < case.tolerance
    assert probe.last_check.residual <= probe.last_check.tolerance
    assert probe.last_check.coverage == 1.0
    assert probe.last_check.suspects == ()
    assert torch.equal(random_after, torch.get_rng_state())
    if mode in ("fused", "streaming"):
        linears = [m for m in model.modules() if type(m) is nn.Linear and "forward" in vars(m)]
        assert linears
        probe.detach()
        assert not any("forward" in vars(m) for m in linears)
