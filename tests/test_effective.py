"""Gradients of effective weights against autograd's on the merged layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from conftest import make_qwen3
from torch import Tensor, nn

from gradlab.probe.measures.effective import RANK, layers_of
from gradlab.probe.measures.requested import Request
from gradlab.probe.probe import Probe, attach
from gradlab.records import Agent, RunMeta
from gradlab.store.run import Run, open_run
from gradlab.store.writer import RunStore
from trainers.config import TrainConfig
from trainers.training import train
from trainers.watch.progress import Progress

AGENTS = (Agent("generator", 0), Agent("generator", 1), Agent("aggregator"))
AGENT_B = torch.tensor([0, 1, 2, 0])
SMALL = {"hidden_size": 24, "intermediate_size": 32}
"""No side longer than the projections: they keep everything."""
LARGE = {"hidden_size": 48, "intermediate_size": 96, "head_dim": 16}


def with_lora(*names: str, dtype: torch.dtype = torch.float64, **settings: Any) -> peft.PeftModel:
    """Adapters with both factors at random, on all linear layers."""
    config = peft.LoraConfig(r=4, target_modules="all-linear")
    model = peft.get_peft_model(make_qwen3(dtype=dtype, **settings), config, names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = (0.1 * torch.randn(parameter.shape)).to(dtype)
    return model


def batch(seed: int = 0) -> Tensor:
    return torch.randint(1, 40, (4, 6), generator=torch.Generator().manual_seed(seed))


def row_losses(model: nn.Module, ids: Tensor) -> Tensor:
    logits = model(input_ids=ids).logits[:, :-1]
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return loss.view(len(ids), -1).mean(1)


def merged_gram(model: peft.PeftModel, ids: Tensor, agent_B: Tensor = AGENT_B) -> np.ndarray:
    """[A, A] of gradients with respect to the weights of the merged model, by autograd."""
    names = [name.removeprefix("base_model.model.") for name in lora_layers(model)]
    plain = copy.deepcopy(model).merge_and_unload()
    weights = [plain.get_submodule(name).weight.requires_grad_() for name in names]
    losses, parts = row_losses(plain, ids), []
    for agent in range(3):
        own = losses[agent == agent_B].sum()
        gradients = torch.autograd.grad(own, weights, retain_graph=True)
        parts.append(torch.cat([g.flatten() for g in gradients]))
    gradient_AP = torch.stack(parts)
    return (gradient_AP @ gradient_AP.T).numpy()


def lora_layers(model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, peft.tuners.lora.Linear)]


def prepare(
    model: nn.Module, rate: float = 1e-2, **settings: Any
) -> tuple[torch.optim.Optimizer, Probe]:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    return optimizer, attach(model, optimizer, agents=AGENTS, effective=True, **settings)


def effective_gram(probe: Probe) -> np.ndarray:
    assert probe.last is not None
    assert probe.last.effective_gram_AA is not None
    return probe.last.effective_gram_AA


@pytest.mark.parametrize("mode", ["exact", "fused", "sketch", "streaming"])
@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_gradients_are_those_of_the_merged_weights(mode: str, is_checkpointed: bool) -> None:
    model = with_lora("default", **SMALL)
    if is_checkpointed:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    optimizer, probe = prepare(model, mode=mode)
    for seed in (0, 1):
        expected = merged_gram(model, batch(seed))
        probe.tag(AGENT_B, prompts=[0, 0, 0, 1])
        row_losses(model, batch(seed)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        np.testing.assert_allclose(effective_gram(probe), expected, rtol=1e-10)


def test_backwards_add_up_and_dropped_ones_do_not() -> None:
    model = with_lora("default", **SMALL)
    optimizer, probe = prepare(model)
    probe.tag(AGENT_B)
    row_losses(model, batch(5)).sum().backward()
    optimizer.zero_grad()  # a skipped step
    expected = merged_gram(model, batch(0))
    for half in (slice(0, 2), slice(2, 4)):
        probe.tag(AGENT_B[half])
        row_losses(model, batch(0)[half]).sum().backward()
    optimizer.step()
    np.testing.assert_allclose(effective_gram(probe), expected, rtol=1e-10)


def test_linear_layers_without_adapters_are_measured_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2)).double()
    optimizer, probe = prepare(model)
    x = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = [model[0].weight, model[2].weight]
    rows = (model(x) ** 2).sum(1)
    gradient_AP = torch.stack(
        [
            torch.cat(
                [
                    g.flatten()
                    for g in torch.autograd.grad(
                        rows[agent == AGENT_B].sum(), weights, retain_graph=True
                    )
                ]
            )
            for agent in range(3)
        ]
    )
    probe.tag(AGENT_B)
    (model(x) ** 2).sum().backward()
    optimizer.step()
    np.testing.assert_allclose(
        effective_gram(probe), (gradient_AP @ gradient_AP.T).numpy(), rtol=1e-10
    )


def test_the_gauge_of_the_factors_does_not_matter() -> None:
    found = []
    for gauge in (1.0, 8.0):
        model = with_lora("default", **LARGE)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data *= gauge if "lora_A" in name else 1 / gauge
        optimizer, probe = prepare(model)
        probe.tag(AGENT_B)
        row_losses(model, batch()).sum().backward()
        optimizer.step()
        assert probe.last is not None
        found.append((effective_gram(probe), probe.last.gram_BAA.sum(0)))
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-9)
    assert (np.diagonal(found[1][1]) > 2 * np.diagonal(found[0][1])).all()


def test_autocast_and_bfloat16_stay_within_their_rounding() -> None:
    expected = merged_gram(with_lora("default", **SMALL), batch())
    model = with_lora("default", dtype=torch.float32, **SMALL)
    optimizer, probe = prepare(model)
    probe.tag(AGENT_B)
    with torch.autocast("cpu", torch.bfloat16):
        loss = row_losses(model, batch()).sum()
    loss.backward()
    optimizer.step()
    np.testing.assert_allclose(effective_gram(probe), expected, atol=0.05 * expected.max())


def test_gradients_stay_bitwise_those_of_a_run_without_the_probe() -> None:
    found = []
    for is_probed in (True, False):
        model = with_lora("default", dtype=torch.float32, **LARGE)
        if is_probed:
            _, probe = prepare(model, sketch_buckets=101)
            probe.tag(AGENT_B)
        row_losses(model, batch()).sum().backward()
        found.append([p.grad for p in model.parameters() if p.requires_grad])
    for probed, plain in zip(*found, strict=True):
        assert torch.equal(probed, plain)


def test_an_audit_leaves_them_alone() -> None:
    model = with_lora("default", **SMALL)
    optimizer, probe = prepare(model)
    expected = merged_gram(model, batch())
    probe.tag(AGENT_B)
    row_losses(model, batch()).sum().backward()

    def alone(agent: Agent) -> Tensor:
        return row_losses(model, batch())[AGENTS.index(agent) == AGENT_B].sum()

    assert probe.audit(alone).is_right
    optimizer.step()
    np.testing.assert_allclose(effective_gram(probe), expected, rtol=1e-10)


def test_projections_estimate_without_bias() -> None:
    model = with_lora("default", **LARGE)
    expected = merged_gram(model, batch())
    optimizer, probe = prepare(model, rate=0.0)
    found = []
    for _ in range(60):  # the same gradients in every step, new projections
        probe.tag(AGENT_B)
        row_losses(model, batch()).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(effective_gram(probe))
    error = np.mean(found, axis=0) - expected
    assert (np.abs(error) < 4 * np.std(found, axis=0) / np.sqrt(60)).all()
    assert np.std(found, axis=0).max() < 0.25 * expected.max()


# Two policies.


@pytest.fixture(scope="module")
def isolated(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two adapters of the same effective weights, on the same rows in step 1, on others in 2."""
    path = tmp_path_factory.mktemp("isolated") / "run.zarr"
    model = with_lora("first", "second", **LARGE)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.zeros_(parameter)  # so that both layers are W0, though their A differ
    teams = {"first": (Agent("left"),), "second": (Agent("right", 0), Agent("right", 1))}
    probes, optimizers = {}, {}
    for name, team in teams.items():
        model.set_adapter(name)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizers[name] = torch.optim.SGD(trained, lr=0.0)
        probes[name] = attach(
            model,
            optimizers[name],
            agents=team,
            policy=name,
            sketch_buckets=4093,
            effective=True,
        )
    meta = RunMeta.of_policies("isolated", [probe.meta for probe in probes.values()])
    with RunStore.create(path, meta) as store:
        for probe in probes.values():
            probe.send_to(store)
        for step, seeds in ((1, (0, 0)), (2, (0, 3))):
            for (name, probe), seed in zip(probes.items(), seeds, strict=True):
                model.set_adapter(name)
                probe.step = step
                probe.tag(torch.tensor([0, len(probe.agents) - 1] * 2))
                row_losses(model, batch(seed)).sum().backward()
                probe.untag()
                optimizers[name].step()
                optimizers[name].zero_grad()
    return open_run(path)


def test_isolated_policies_have_an_angle_in_the_space_of_weights(isolated: Run) -> None:
    found = isolated.cosine("left", "right", space="weights")
    assert found.step_T.tolist() == [1, 2]
    assert found.value_T[0] == pytest.approx(1, abs=1e-3)  # the same rows, through other factors
    assert found.value_T[1] < 0.8
    with pytest.raises(ValueError, match="live in different spaces"):
        isolated.cosine("left", "right")
    with pytest.raises(ValueError, match="updates of their own; use per='step'"):
        isolated.cosine("left", "right", space="weights", per="update")
    with pytest.raises(ValueError, match="for the whole policy only"):
        isolated.cosine("left", "right", space="weights", block="embeddings")
    with pytest.raises(ValueError, match="space is 'tokens'; expected"):
        isolated.cosine("left", "right", space="tokens")  # type: ignore[arg-type]


def test_one_policy_has_its_angles_from_the_gram(isolated: Run) -> None:
    first, second = Agent("right", 0), Agent("right", 1)
    gram_UAA = isolated.effective_gram("second")
    expected = gram_UAA[:, 0, 1] / np.sqrt(gram_UAA[:, 0, 0] * gram_UAA[:, 1, 1])
    found = isolated.cosine(first, second, space="weights", per="update")
    np.testing.assert_allclose(found.value_T, expected)


def test_policies_that_were_not_measured_alike_are_refused(tmp_path: Path) -> None:
    model = with_lora("default", **SMALL)
    _, probe = prepare(model, record=tmp_path / "run.zarr")
    assert len(probe.meta.effective) == 8
    assert prepare(with_lora("default", **SMALL))[1].meta.effective == probe.meta.effective
    assert prepare(with_lora("default", **LARGE))[1].meta.effective != probe.meta.effective
    probe.close()
    plain = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    attach(model, plain, agents=AGENTS, record=tmp_path / "plain.zarr").close()
    with pytest.raises(ValueError, match="'effective_gram' was not recorded"):
        open_run(tmp_path / "plain.zarr").cosine("generator", "aggregator", space="weights")


# What is measured.


def test_layers_are_found_once_and_adapters_of_embeddings_are_none() -> None:
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"])
    model = peft.get_peft_model(make_qwen3(tie_word_embeddings=False), config)
    measured = {id(p) for p in model.parameters() if p.requires_grad}
    found = layers_of(model, measured)
    assert [name.rpartition(".")[2] for name in found] == ["q_proj", "q_proj"]
    assert all(base.weight.shape == (24, 24) for _, base in found.values())


def test_what_cannot_be_measured_is_refused() -> None:
    embedding = nn.Embedding(4, 3)
    optimizer = torch.optim.AdamW(embedding.parameters())
    with pytest.raises(ValueError, match="none of them is trained"):
        attach(embedding, optimizer, agents=AGENTS, effective=True)
    linear = nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(linear.parameters())
    with pytest.raises(
        ValueError, match="needs tags and one process, or losses='sum'; mode is 'reference'"
    ):
        attach(linear, optimizer, agents=AGENTS, effective=True, mode="reference")


def test_several_processes_are_refused() -> None:
    with pytest.raises(
        ValueError, match="one process, or losses='sum'; mode is 'exact', there are 2 processes"
    ):
        Request(effective=True).check("exact", 2)


def test_a_probe_that_is_detached_leaves_no_hook() -> None:
    model = with_lora("default", **LARGE)
    _, probe = prepare(model)
    probe.detach()
    assert not any(m._forward_hooks for m in model.modules())
    assert RANK < 48


def test_a_training_run_compares_isolated_roles(
    small_config: Callable[..., TrainConfig], quiet: Progress
) -> None:
    config = small_config(sketch_buckets=4093, effective=True, routing="isolated")
    train(config, quiet)
    run = open_run(config.out)
    found = run.cosine(*run.roles[:2], space="weights").value_T
    assert len(found) == len(run.steps)
    assert (np.abs(found[np.isfinite(found)]) <= 1).all()
