"""The verl recipe of docs/interop.md against a stand-in of verl's actor, whose methods it wraps.

The stand-in keeps what the recipe relies on of `verl/workers/actor/dp_actor.py`: `update_policy`
selects its columns by name, splits into mini- and micro-batches and normalizes a loss per
micro-batch; `_forward_micro_batch` gets a mapping, packs unpadded rows into one and divides logits
in place; `_optimizer_step` clips, and drops a gradient that is not finite. verl itself is not run.

Legend: n rows, T tokens, R response tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_qwen3
from test_interop_docs import recipe
from torch import Tensor, nn

from gradlab.records import Agent
from gradlab.store.run import open_run

AGENTS = [Agent("generator", 0), Agent("generator", 1), Agent("judge")]
PROMPT, RESPONSE, MINI, MICRO = 4, 3, 4, 2


@dataclass
class Batch:
    """What the recipe uses of `DataProto`."""

    batch: dict[str, Tensor]
    meta_info: dict[str, Any] = field(default_factory=dict)
    non_tensor_batch: dict[str, Any] = field(default_factory=dict)

    def select(
        self, batch_keys: list[str] | None = None, non_tensor_batch_keys: list[str] | None = None
    ) -> Batch:
        return Batch({key: self.batch[key] for key in batch_keys or self.batch}, self.meta_info)

    def split(self, size: int) -> Iterator[Batch]:
        for lo in range(0, len(self.batch["input_ids"]), size):
            yield Batch({k: v[lo : lo + size] for k, v in self.batch.items()}, self.meta_info)


class DataParallelPPOActor:
    """The interface of verl's actor."""

    def __init__(
        self,
        config: Any,
        actor_module: nn.Module,
        actor_optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        self.config, self.actor_module, self.actor_optimizer = config, actor_module, actor_optimizer
        self.use_remove_padding: bool = config.use_remove_padding

    def update_policy(self, data: Batch) -> list[float]:
        self.actor_module.train()
        keys = ["responses", "input_ids", "attention_mask", "position_ids", "advantages"]
        norms = []
        for mini_batch in data.select(batch_keys=keys).split(MINI):
            assert self.actor_optimizer is not None
            self.actor_optimizer.zero_grad()
            for micro_batch in mini_batch.split(MICRO):
                inputs = {**micro_batch.batch, **micro_batch.non_tensor_batch}
                _, logprob_nR = self._forward_micro_batch(
                    inputs, temperature=0.7, calculate_entropy=False
                )
                loss_of(logprob_nR, inputs, len(inputs["advantages"]) / MINI).backward()
            norms.append(float(self._optimizer_step()))
        return norms

    def compute_log_prob(self, data: Batch) -> Tensor:
        self.actor_module.eval()
        keys = ["responses", "input_ids", "attention_mask", "position_ids"]
        with torch.no_grad():
            inputs = data.select(batch_keys=keys).batch
            return self._forward_micro_batch(micro_batch=inputs, temperature=0.7)[1]

    def _forward_micro_batch(
        self, micro_batch: dict[str, Tensor], temperature: float, calculate_entropy: bool = False
    ) -> tuple[None, Tensor]:
        ids_nT, mask_nT = micro_batch["input_ids"], micro_batch["attention_mask"].bool()
        position_nT = micro_batch["position_ids"]
        if not self.use_remove_padding:
            logits = self.actor_module(
                input_ids=ids_nT, attention_mask=mask_nT, position_ids=position_nT, use_cache=False
            ).logits
            logits.div_(temperature)
            logits = logits[:, -RESPONSE - 1 : -1]
            logprob = logits.log_softmax(-1)
            return None, logprob.gather(2, micro_batch["responses"][..., None])[..., 0]
        packed = ids_nT[mask_nT][None]
        logits = self.actor_module(
            input_ids=packed,
            attention_mask=None,
            position_ids=position_nT[mask_nT][None],
            use_cache=False,
        ).logits[0]
        logits.div_(temperature)
        labels = torch.roll(packed, -1, dims=1)[0]
        logprob = logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]
        padded = torch.zeros(ids_nT.shape, dtype=logprob.dtype).masked_scatter(mask_nT, logprob)
        return None, padded[:, -RESPONSE - 1 : -1]

    def _optimizer_step(self) -> Tensor:
        assert self.actor_optimizer is not None
        norm = torch.nn.utils.clip_grad_norm_(self.actor_module.parameters(), max_norm=0.1)
        if torch.isfinite(norm):
            self.actor_optimizer.step()
        else:
            self.actor_optimizer.zero_grad()
        return norm


def loss_of(logprob_nR: Tensor, inputs: dict[str, Tensor], weight: float) -> Tensor:
    """A token mean, normalized by the micro-batch."""
    mask_nR = inputs["attention_mask"][:, -RESPONSE:]
    loss: Tensor = -(logprob_nR * inputs["advantages"] * mask_nR).sum() / mask_nR.sum() * weight
    return loss


def rollouts() -> tuple[Batch, Tensor]:
    """Eight rows of three agents, padded on both sides, and whose they are."""
    generator = torch.Generator().manual_seed(0)
    ids_nT = torch.randint(1, 40, (8, PROMPT + RESPONSE), generator=generator)
    prompt = torch.tensor([4, 2, 3, 4, 1, 4, 2, 3])
    response = torch.tensor([3, 1, 3, 2, 3, 2, 1, 3])
    place = torch.arange(PROMPT + RESPONSE)
    mask_nT = (place >= PROMPT - prompt[:, None]) & (place < PROMPT + response[:, None])
    owner_n = torch.tensor([0, 2, 1, 0, 2, 2, 1, 0])
    advantage_n = torch.randn(8, generator=generator, dtype=torch.float64)
    columns = {
        "input_ids": ids_nT * mask_nT,
        "attention_mask": mask_nT.long(),
        "position_ids": (mask_nT.long().cumsum(1) - 1).clamp(min=0),
        "responses": (ids_nT * mask_nT)[:, -RESPONSE:],
        "advantages": advantage_n[:, None].expand(8, RESPONSE).clone(),
        "gradlab_agent": owner_n,
    }
    return Batch(columns), owner_n


@pytest.fixture
def actor_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Any]:
    """The recipe's class, on top of the stand-in."""
    for name in ("verl", "verl.workers", "verl.workers.actor", "verl.workers.actor.dp_actor"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["verl.workers.actor.dp_actor"].DataParallelPPOActor = DataParallelPPOActor  # type: ignore[attr-defined]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"torch": torch, "AGENTS": AGENTS}
    exec(recipe("verl"), names)
    found: type[Any] = names["ProbedActor"]
    return found


def build(actor_class: type[Any], is_packed: bool) -> Any:
    model = make_qwen3(attn_implementation="sdpa")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return actor_class(SimpleNamespace(use_remove_padding=is_packed), model, optimizer)


def gram_of_masked_losses(actor: Any, mini_batch: Batch, owner_n: Tensor) -> np.ndarray[Any, Any]:
    """[A, A] the truth: one backward per agent, with everybody else's advantages at zero."""
    gradients = []
    parameters = [*actor.actor_module.parameters()]
    for agent in range(len(AGENTS)):
        total = 0.0
        for lo in range(0, MINI, MICRO):
            inputs = {k: v[lo : lo + MICRO] for k, v in mini_batch.batch.items()}
            is_mine = (owner_n[lo : lo + MICRO] == agent)[:, None]
            inputs["advantages"] = inputs["advantages"] * is_mine
            _, logprob = DataParallelPPOActor._forward_micro_batch(actor, inputs, 0.7)
            total = total + loss_of(logprob, inputs, MICRO / MINI)
        found = torch.autograd.grad(total, parameters)  # type: ignore[arg-type]
        gradients.append(torch.cat([g.flatten() for g in found]))
    gradient_AP = torch.stack(gradients)
    return (gradient_AP @ gradient_AP.T).numpy()


@pytest.mark.parametrize("is_packed", [False, True])
def test_every_mini_batch_is_split_as_by_one_backward_per_agent(
    actor_class: type[Any], is_packed: bool
) -> None:
    data, owner_n = rollouts()
    actor = build(actor_class, is_packed)
    first, _ = data.split(MINI)
    expected = gram_of_masked_losses(actor, first, owner_n[:MINI])
    actor.compute_log_prob(data)  # no gradient: nobody is captured
    unprobed = build(DataParallelPPOActor, is_packed)
    norms = actor.update_policy(data)
    assert norms == unprobed.update_policy(rollouts()[0]), "training is left alone"
    for mine, theirs in zip(
        actor.actor_module.parameters(), unprobed.actor_module.parameters(), strict=True
    ):
        assert torch.equal(mine, theirs)
    actor.probe.close()
    run = open_run(Path("run.zarr"))
    gram_UAA = run.gram("shared").gram_UBAA.sum(1)
    assert len(gram_UAA) == 2
    np.testing.assert_allclose(gram_UAA[0], expected, rtol=1e-6)
    np.testing.assert_allclose(
        np.sqrt(gram_UAA.sum((1, 2))), norms, rtol=1e-6, err_msg="agents add up to the gradient"
    )
    assert run.update_metric("residual", "shared").value_T.max() < 1e-10
    assert run.update_metric("coverage", "shared").value_T.min() == 1


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_step_that_verl_skips_leaves_nothing_behind(
    actor_class: type[Any], is_packed: bool
) -> None:
    data, owner_n = rollouts()
    data.batch["advantages"][0] = torch.inf
    actor = build(actor_class, is_packed)
    _, second = data.split(MINI)
    expected = gram_of_masked_losses(actor, second, owner_n[MINI:])
    with np.errstate(all="raise"):
        norms = actor.update_policy(data)
    assert not np.isfinite(norms[0])
    assert actor.probe.num_updates == 1
    np.testing.assert_allclose(actor.probe.last.gram_BAA.sum(0), expected, rtol=1e-9)
    assert actor.probe.last.metrics.residual < 1e-10


def test_the_reference_policy_has_no_probe(actor_class: type[Any]) -> None:
    data, _ = rollouts()
    config = SimpleNamespace(use_remove_padding=True)
    reference = actor_class(config, make_qwen3(attn_implementation="sdpa"), None)
    assert reference.compute_log_prob(data).shape == (8, RESPONSE)
    assert not hasattr(reference, "probe")
