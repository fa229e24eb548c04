"""Gram matrices, Adam shares and transfer of real training steps against one backward per agent.

The twin below knows nothing of the probe: it takes the trainer's own loss with every other agent's
rows weighted zero, calls `autograd.grad` once per agent, and carries one Adam state per agent.
Everything runs in float64 except the softmax, which both share.

Legend: A agents, B blocks, P parameters of the policy, U updates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from conftest import SmallConfig
from torch import Tensor

from gradlab.ledger import RoleTally
from gradlab.records import Agent, UpdateRecord
from trainers.batches import micro_batches, plan_updates, to_batch
from trainers.config import TrainConfig
from trainers.episodes import Turn, trained_turns
from trainers.judge import Judge
from trainers.learn import batch_loss, learn, token_weights
from trainers.models.language import LanguageModel, load_language_model
from trainers.models.local_sampler import LocalSampler
from trainers.policies import Policy, adapter_parameters, build_policies
from trainers.rollout import rollout
from trainers.tasks.load import load_task

ROUTINGS = {
    ("voting", "partial"): "generator=solver,aggregator=judge",
    ("evaluator_optimizer", "partial"): "generator=solver,evaluator=judge",
    ("orchestrator_workers", "partial"): "orchestrator=lead,worker=solver,synthesizer=lead",
}
WORKFLOWS = ("voting", "evaluator_optimizer", "orchestrator_workers")
TOLERANCE = 1e-9


@dataclass
class Twin:
    """One update, computed the slow way."""

    gradient_AP: Tensor
    part_AP: Tensor
    """The agents' parts of the Adam step."""
    moved_P: Tensor
    """What the parameters really moved by, weight decay taken out."""


def build(config: TrainConfig) -> tuple[LanguageModel, dict[str, Policy]]:
    language = load_language_model(config, config.policies)
    language.model.double()
    draw = torch.Generator().manual_seed(7)
    for name, parameter in language.model.named_parameters():
        if "lora_B" in name:  # zero at the start, where half of all gradients vanish
            noise = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
            parameter.data += 0.01 * noise
    return language, build_policies({config.model: language}, config)


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def twin_step(
    language: LanguageModel, policy: Policy, rows: Sequence[Turn], config: TrainConfig, step: int
) -> list[Twin]:
    """The updates of one policy with a backward per agent; moves the parameters as learn does."""
    language.activate(policy.name)
    language.model.train()
    sums = {role: RoleTally() for role in policy.roles}
    beta1, beta2 = 0.9, 0.999
    moment_AP, second_P, twins = 0.0, 0.0, []
    for number, update in enumerate(
        plan_updates(rows, config, (config.seed, step, *policy.name.encode())), start=1
    ):
        weights = token_weights([len(r.response_ids) for r in update], config.aggregation)
        weight = dict(zip(update, weights.tolist(), strict=True))
        gradient_AP = torch.zeros(len(policy.agents), sum(p.numel() for p in policy.parameters))
        gradient_AP = gradient_AP.double()
        for micro in micro_batches(update, config):
            for a, agent in enumerate(policy.agents):
                only = [replace(row, weight=weight[row] * (row.agent == agent)) for row in micro]
                loss = batch_loss(language, to_batch(only, language), config, sums)
                gradient_AP[a] += flat(torch.autograd.grad(loss, policy.parameters))
        clip = min(1.0, config.clip_norm / (gradient_AP.sum(0).norm().item() + 1e-6))
        total_P = clip * gradient_AP.sum(0)
        # Adam (arXiv 1412.6980, algorithm 1), its first moment kept per agent.
        moment_AP = beta1 * moment_AP + (1 - beta1) * clip * gradient_AP
        second_P = beta2 * second_P + (1 - beta2) * total_P**2
        root_P = (second_P / (1 - beta2**number)).sqrt() + 1e-8
        part_AP = -config.learning_rate * moment_AP / (1 - beta1**number) / root_P

        before_P = flat(policy.parameters)
        start = 0
        for parameter in policy.parameters:
            size = parameter.numel()
            parameter.grad = total_P[start : start + size].view_as(parameter).clone()
            start += size
        policy.optimizer.step()
        policy.optimizer.zero_grad()
        decay_P = -config.learning_rate * config.weight_decay * before_P
        twins.append(Twin(gradient_AP, part_AP, flat(policy.parameters) - before_P - decay_P))
    return twins


def block_slices(language: LanguageModel, policy: Policy) -> dict[str, Tensor]:
    """Block name -> mask over the flat parameters, from the parameters' names alone."""
    blocks: list[str] = []
    for name, parameter in adapter_parameters(language.model, policy.name).items():
        layer = name.split(".layers.")[1].split(".")[0]
        part = "attention" if ".self_attn." in name else "mlp"
        blocks += [f"layers.{layer}.{part}"] * parameter.numel()
    labels = np.array(blocks)
    return {block: torch.from_numpy(labels == block) for block in dict.fromkeys(blocks)}


def assert_close(found: np.ndarray, expected: Tensor, what: str) -> None:
    truth = expected.numpy()
    error = np.abs(found - truth).max() / np.abs(truth).max()
    assert error < TOLERANCE, f"{what}: relative error {error:.1e}\n{found}\n{truth}"


@pytest.mark.parametrize("routing", ["shared", "isolated", "partial", "agents"])
@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_every_update_equals_one_backward_per_agent(
    small_config: SmallConfig, workflow: str, routing: str
) -> None:
    roles = {"voting": "aggregator", "evaluator_optimizer": "evaluator"}
    # A policy of one agent has few rows: smaller updates, so that there are several.
    smaller = {"rows_per_update": 3} if routing == "agents" else {}
    check(
        small_config(
            **{**SETTING, **smaller},
            workflow=workflow,
            routing=ROUTINGS.get((workflow, routing), routing),
            # reference forwards while the probe listens, and losses that differ between roles
            kl_coefficient={roles.get(workflow, "synthesizer"): 0.2},
            entropy_coefficient=0.01,
        )
    )


@pytest.mark.parametrize(
    "setting",
    [
        {"gradient_checkpointing": True},
        {"aggregation": "token_mean", "minibatches": "length", "old_logprobs": "rollout"},
        {"aggregation": "sequence_sum", "updates": "fixed", "fixed_updates": 2},
    ],
)
def test_other_ways_of_computing_the_loss_are_split_exactly_too(
    small_config: SmallConfig, setting: dict[str, object]
) -> None:
    check(small_config(**{**SETTING, "routing": "shared", **setting}))


SETTING = {
    "rows_per_update": 24,
    "micro_tokens": 500,
    "samples": 6,
    "clip_norm": 0.05,  # so that clipping really happens
    "learning_rate": 3e-3,  # so that the second update's ratios leave 1
}


def check(config: TrainConfig) -> None:
    """Train one step with the probe and with the twin, and compare every number of every update."""
    language, policies = build(config)
    twin_language, twin_policies = build(replace(config, probe="off"))
    task = load_task("arithmetic", heldout=1, seed=config.seed)
    played = config.build_workflow(), config.speakers(), task.train[:4]
    episodes = rollout(
        LocalSampler({config.model: language}), *played, config.samples, (3,), Judge()
    )
    # Advantages of any size and sign: the rewards of so few episodes could leave someone without.
    draw = np.random.default_rng(11)
    rows = [replace(row, advantage=draw.normal()) for row in trained_turns(episodes)]
    seen: set[Agent] = set()
    num_updates = 0
    for name, policy in policies.items():
        mine = [row for row in rows if row.agent in policy.agents]
        records: list[UpdateRecord] = []
        assert policy.probe is not None
        policy.probe.send_to(records.append)
        learn(language, policy, mine, config, step=1)
        twins = twin_step(twin_language, twin_policies[name], mine, config, step=1)
        assert len(records) == len(twins) > 0
        masks = block_slices(language, policy)
        assert tuple(masks) == policy.probe.blocks
        for u, (record, twin) in enumerate(zip(records, twins, strict=True)):
            what = f"policy {name}, update {u}"
            G = twin.gradient_AP
            for b, mask in enumerate(masks.values()):
                part = G[:, mask]
                assert_close(record.gram_BAA[b], part @ part.T, f"{what}, Gram of block {b}")
            assert record.update_gram_AA is not None
            assert record.transfer_AA is not None
            assert_close(record.gram_BAA.sum(0), G @ G.T, f"{what}, Gram")
            parts = twin.part_AP
            assert_close(record.update_gram_AA, parts @ parts.T, f"{what}, Adam shares")
            assert_close(record.transfer_AA, G @ parts.T, f"{what}, transfer")
            # The shares sum to what the optimizer really did.
            assert_close(record.update_gram_AA.sum(), twin.moved_P @ twin.moved_P, f"{what}, sum")
            assert_close(record.transfer_AA.sum(1), G @ twin.moved_P, f"{what}, first order")
            assert record.metrics.update_norm == pytest.approx(twin.moved_P.norm().item(), rel=1e-9)
            assert record.metrics.grad_norm == pytest.approx(G.sum(0).norm().item(), rel=1e-9)
            assert record.metrics.residual < 1e-10
            assert record.metrics.coverage == 1
            seen |= {a for a, g in zip(policy.agents, G, strict=True) if bool(g.any())}
        num_updates += len(twins)
        moved, twin_moved = flat(policy.parameters), flat(twin_policies[name].parameters)
        assert ((moved - twin_moved).norm() / twin_moved.norm()).item() < TOLERANCE
    assert seen == set(config.policy_by_agent()), "somebody learned nothing: a weak test"
    assert num_updates > len(policies)
