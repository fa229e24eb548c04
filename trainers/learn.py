"""Train one policy on one step's rows: forward, backward under the probe, clip, optimizer step.

Legend: B rows of a micro-batch, T response tokens (right-padded).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradlab.readout.gram import grouped, grouping
from gradlab.records import Agent
from trainers.config import TrainConfig
from trainers.episodes import Row
from trainers.interventions import role_factors
from trainers.logprobs import (
    Batch,
    old_logprobs,
    reference_logprobs,
    response_logprobs,
    to_batch,
)
from trainers.losses import kl_k3, policy_loss, token_weights
from trainers.minibatches import micro_batches, plan_updates
from trainers.models.language import LanguageModel
from trainers.policies import Policy, adapter_parameters, not_finite

MONITORED_ROWS = 16
"""Rows per role on which trainer and reference log-probs are compared with the rollout's."""
LARGEST_GAP = 0.2
"""Nats per token that rounding can explain, also in bfloat16; more means an adapter out of sync."""
LARGEST_GAP_FLOAT32 = 1e-4
"""The same in float32: thirty times what real runs show."""


class TrainingError(RuntimeError):
    """Training cannot go on, and going on silently would be worse."""


@dataclass
class TokenSums:
    """Sums over the response tokens of one role in one step."""

    tokens: float = 0.0
    entropy: float = 0.0
    ratio: float = 0.0
    ratio_squared: float = 0.0
    clipped: float = 0.0
    weight: float = 0.0
    """Loss weight of the role's rows, summed over updates."""
    updates: int = 0
    learning_rate: float = float("nan")
    """Of the last update that held rows of the role."""
    kl: float = float("nan")
    """Mean k3 per token against the base model, on monitored rows."""
    logprob_gap: float = float("nan")
    """Mean |rollout - trainer| log-prob per token, on monitored rows."""


def learn(
    language: LanguageModel, policy: Policy, rows: Sequence[Row], config: TrainConfig, step: int
) -> dict[str, TokenSums]:
    """Run all of the policy's updates of one training step; what the tokens were like, by role.

    Raises TrainingError when a loss or a gradient is not finite, naming what caused it.
    """
    sums = {role: TokenSums() for role in policy.roles}
    if not rows:
        return sums
    language.activate(policy.name)
    language.model.train()
    monitor(language, policy, rows, config, sums)
    old = old_logprobs(language, rows, config)
    problems = {problem: i for i, problem in enumerate(dict.fromkeys(r.problem for r in rows))}
    key = (config.training_seed, step, *policy.name.encode())
    for update in plan_updates(rows, config, key):
        for role in {row.turn.agent.role for row in update}:
            sums[role].updates += 1
            sums[role].learning_rate = policy.learning_rate
        accumulate(language, policy, update, old, problems, config, step, sums)
        clip_and_step(language, policy, config, step)
    return sums


def accumulate(
    language: LanguageModel,
    policy: Policy,
    update: Sequence[Row],
    old: dict[int, NDArray[np.float32]],
    problems: Mapping[str, int],
    config: TrainConfig,
    step: int,
    sums: dict[str, TokenSums],
    *,
    only: Agent | None = None,
) -> None:
    """Forward and backward of one update, its rows tagged for the probe.

    `only`: rows of all other agents weigh nothing, as an audit needs it.
    """
    full = config.rows_per_update if config.partial_minibatch == "full" else None
    weights = token_weights(
        [len(row.turn.response_ids) for row in update], config.aggregation, full
    )
    weight_by_row = {
        id(row): float(w) if only in (None, row.turn.agent) else 0.0
        for row, w in zip(update, weights, strict=True)
    }
    total_loss = 0.0
    for micro in micro_batches(update, config.micro_tokens):
        batch = to_batch(micro, language, old)
        if policy.probe:
            policy.probe.step = step
            policy.probe.tag(
                [row.turn.agent for row in micro],
                prompts=[problems[row.problem] for row in micro],
                samples=[row.sample for row in micro],
                advantages=[row.advantage for row in micro],
            )
        loss = batch_loss(language, batch, weight_by_row, config, sums)
        if not torch.isfinite(loss):
            raise TrainingError(blame(language, batch, policy, step, loss))
        loss.backward()  # type: ignore[no-untyped-call]
        total_loss += loss.item()
        if policy.probe:
            policy.probe.untag()
            policy.probe.loss = total_loss


def clip_and_step(language: LanguageModel, policy: Policy, config: TrainConfig, step: int) -> None:
    intervene(policy, config)
    limit = config.clip_norm or float("inf")
    norm = torch.nn.utils.clip_grad_norm_(policy.parameters, limit)
    if not torch.isfinite(norm):
        bad = [
            name
            for name, parameter in adapter_parameters(language.model, policy.name).items()
            if parameter.grad is not None and not bool(parameter.grad.isfinite().all())
        ]
        raise TrainingError(
            f"step {step}, policy '{policy.name}' ({', '.join(policy.roles)}): gradient norm is "
            f"{norm.item()}; not finite in {len(bad)} parameters, first {', '.join(bad[:3])}. "
            "Start a new run with a lower --learning-rate or --clip-norm."
        )
    policy.optimizer.step()
    policy.optimizer.zero_grad(set_to_none=True)


def intervene(policy: Policy, config: TrainConfig) -> None:
    """Change the gradient of the update in hand as `config` says; nothing without its options."""
    if any((config.role_weight, config.role_clip, config.max_share, config.equalize)):
        assert policy.probe is not None, "the configuration was checked"
        gram_AA = policy.probe.captured_gram()
        norm2_R = grouped(gram_AA, grouping(policy.agents, policy.roles)).diagonal()
        masses = {
            role: math.sqrt(max(float(norm2), 0.0))
            for role, norm2 in zip(policy.roles, norm2_R, strict=True)
        }
        factors = role_factors(masses, config)
        if any(factor != 1 for factor in factors.values()):
            policy.probe.reweight(factors)
    if policy.damping is not None:
        factor = policy.damping.factor()
        if factor == 1:
            return
        if policy.probe is not None:
            policy.probe.reweight(dict.fromkeys(policy.roles, factor))
            return
        for parameter in policy.parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)


def batch_loss(
    language: LanguageModel,
    batch: Batch,
    weight_by_row: dict[int, float],
    config: TrainConfig,
    sums: dict[str, TokenSums],
) -> Tensor:
    """Weighted sum of the token losses of one micro-batch; adds to the roles' token sums."""
    is_token = batch.is_token_BT
    logprob_BT, entropy_BT = response_logprobs(
        language, batch, entropy_grad=config.entropy_coefficient > 0
    )
    token = policy_loss(logprob_BT, batch.old_BT, batch.advantage_B, config)
    loss_BT = token.loss_BT
    coefficient_B = torch.tensor(
        [config.kl_coefficient.get(row.turn.agent.role, 0.0) for row in batch.rows],
        device=loss_BT.device,
    )
    if bool((coefficient_B > 0).any()):
        reference_BT = reference_logprobs(language, batch)
        loss_BT = loss_BT + coefficient_B[:, None] * kl_k3(logprob_BT, reference_BT)
    if config.entropy_coefficient:
        loss_BT = loss_BT - config.entropy_coefficient * entropy_BT
    weight_B = torch.tensor([weight_by_row[id(row)] for row in batch.rows], device=loss_BT.device)
    loss = torch.where(is_token, loss_BT * weight_B[:, None].to(loss_BT.dtype), 0.0).sum()

    per_row = [
        torch.where(is_token, value.detach().float(), 0.0).sum(1).tolist()
        for value in (entropy_BT, token.ratio_BT, token.ratio_BT**2, token.is_clipped_BT)
    ]
    for row, entropy, ratio, squared, clipped in zip(batch.rows, *per_row, strict=True):
        total = sums[row.turn.agent.role]
        total.tokens += len(row.turn.response_ids)
        total.entropy += entropy
        total.ratio += ratio
        total.ratio_squared += squared
        total.clipped += clipped
        total.weight += weight_by_row[id(row)] * len(row.turn.response_ids)
    return loss


@torch.no_grad()
def monitor(
    language: LanguageModel,
    policy: Policy,
    rows: Sequence[Row],
    config: TrainConfig,
    sums: dict[str, TokenSums],
) -> None:
    """Compare rollout, trainer and base model on some rows of each role, before the first update.

    A gap between rollout and trainer means that an adapter did not reach the sampler (verl#7495).
    """
    for role in policy.roles:
        mine = [row for row in rows if row.turn.agent.role == role]
        # Spread over the step: the first rows would all belong to one problem.
        some = mine[:: max(1, len(mine) // MONITORED_ROWS)][:MONITORED_ROWS]
        tokens = gap = divergence = 0.0
        kept = {id(row): np.asarray(row.turn.logprobs, dtype=np.float32) for row in some}
        for micro in micro_batches(some, config.micro_tokens):
            batch = to_batch(micro, language, kept)
            trainer_BT, _ = response_logprobs(language, batch)
            reference_BT = reference_logprobs(language, batch)
            is_token = batch.is_token_BT
            tokens += float(is_token.sum())
            gap += float((trainer_BT - batch.old_BT).abs()[is_token].sum())
            divergence += float(kl_k3(trainer_BT, reference_BT)[is_token].sum())
        if tokens:
            sums[role].logprob_gap = gap / tokens
            largest = LARGEST_GAP_FLOAT32 if config.dtype == "float32" else LARGEST_GAP
            if gap / tokens > largest:
                warnings.warn(
                    f"policy '{policy.name}', role '{role}': rollout and trainer log-probs differ "
                    f"by {gap / tokens:.2g} nats per token (expected below {largest:g}): the "
                    "sampler does not use the weights that are trained",
                    stacklevel=2,
                )
            sums[role].kl = divergence / tokens


def blame(language: LanguageModel, batch: Batch, policy: Policy, step: int, loss: Tensor) -> str:
    """Name what is not finite in a micro-batch whose loss is not."""
    bad_weights = not_finite(language, policy.name)
    bad_advantage = [row for row in batch.rows if not np.isfinite(row.advantage)]
    with torch.no_grad():
        is_finite_B = response_logprobs(language, batch)[0].isfinite().all(1).tolist()
    bad_rows = [row for row, fine in zip(batch.rows, is_finite_B, strict=True) if not fine]
    blamed = bad_advantage or bad_rows or batch.rows
    agents = sorted({str(row.turn.agent) for row in blamed})
    cause = (
        f"{len(bad_weights)} of its {len(policy.parameters)} parameters are not finite "
        f"({bad_weights[0]})"
        if bad_weights
        else f"{len(bad_advantage)} rows have an advantage that is not finite"
        if bad_advantage
        else "weights and advantages are finite: the forward pass overflowed"
    )
    problems = sorted({row.problem for row in blamed})[:3]
    return (
        f"step {step}, policy '{policy.name}': loss is {loss.item()}; {cause}. Rows of "
        f"{', '.join(agents)}, problems {', '.join(problems)}, … Start a "
        "new run with a lower --learning-rate: resuming would repeat this step exactly."
    )
