"""Train one policy on one step's rows: loss, backward under the probe, clip, optimizer step.

The loss is PPO with clipping, dual clip, a KL anchor per role and an entropy bonus: a weighted sum
over tokens. The weights are fixed for the whole update (`token_weights`), so that splitting an
update into micro-batches changes nothing.

Legend: B rows of a micro-batch, T response tokens (right-padded).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradlab.ledger import RoleTally
from gradlab.probe.probe import Probe
from gradlab.readout.gram import grouped, grouping
from gradlab.records import Agent
from trainers.batches import (
    Batch,
    kl_k3,
    micro_batches,
    plan_updates,
    reference_logprobs,
    response_logprobs,
    to_batch,
    with_old_logprobs,
)
from trainers.config import TrainConfig
from trainers.correction import corrected
from trainers.episodes import Turn
from trainers.interventions import role_factors
from trainers.models.language import LanguageModel
from trainers.policies import Policy, TrainingError, adapter_parameters, not_finite
from trainers.ranks.peers import ALONE, Peers
from trainers.watch.monitor import compare, warn_of_gaps, with_reference


def learn(
    language: LanguageModel,
    policy: Policy,
    rows: Sequence[Turn],
    config: TrainConfig,
    step: int,
    peers: Peers = ALONE,
) -> dict[str, RoleTally]:
    """Run all of the policy's updates of one training step; what the tokens were like, by role.

    `rows` are those of the whole step, of which each of the `peers` trains its share.

    Raises TrainingError when a loss or a gradient is not finite, naming what caused it.
    """
    tallies = {role: RoleTally() for role in policy.roles}
    if not rows:
        return tallies
    language.activate(policy.name)
    language.model.train()
    if config.old_logprobs == "trainer":
        rows = peers.spread(rows, lambda mine: with_old_logprobs(language, mine, config))
    rows = corrected(rows, config, tallies)
    problems = {problem: i for i, problem in enumerate(dict.fromkeys(r.problem for r in rows))}
    key = (config.training_seed, step, *policy.name.encode())
    updates = plan_updates(rows, config, key)
    updates[0] = with_reference(language, policy, rows, updates[0], config, tallies, peers)
    for update in updates:
        for role in {row.agent.role for row in update}:
            tallies[role].updates += 1
        accumulate(language, policy, update, problems, config, step, tallies, peers=peers)
        peers.reduce(policy)
        clip_and_step(language, policy, config, step)
    peers.add_up(tallies)
    warn_of_gaps(policy, config, tallies)
    return tallies


def accumulate(
    language: LanguageModel,
    policy: Policy,
    update: Sequence[Turn],
    problems: Mapping[str, int],
    config: TrainConfig,
    step: int,
    tallies: dict[str, RoleTally],
    *,
    only: Agent | None = None,
    peers: Peers = ALONE,
) -> None:
    """Forward and backward of one update, its rows tagged for the probe.

    Weights are those in the whole update, whichever of its rows are this process's.
    `only`: rows of all other agents weigh nothing, as an audit needs it.
    """
    full = config.rows_per_update if config.partial_minibatch == "full" else None
    weights = token_weights([len(row.response_ids) for row in update], config.aggregation, full)
    weighed = [
        replace(row, weight=float(weight) if only in (None, row.agent) else 0.0)
        for row, weight in zip(update, weights, strict=True)
    ]
    total_loss = 0.0
    if policy.probe:
        policy.probe.step = step
    for micro in micro_batches(peers.share(weighed), config):
        batch = to_batch(micro, language)
        if policy.probe:
            tag(policy.probe, micro, problems, measures_rows(config, step))
        loss = batch_loss(language, batch, config, tallies)
        if not torch.isfinite(loss):
            raise TrainingError(blame(language, batch, policy, step, loss))
        peers.backward(loss)
        total_loss += loss.item()
        if policy.probe:
            policy.probe.untag()
            policy.probe.loss = total_loss


def token_weights(
    lengths_B: Sequence[int], aggregation: str, full_rows: int | None = None
) -> NDArray[np.float64]:
    """[B] weight of each token of a row, such that loss = sum over tokens of weight * token loss.

    sequence_mean_token_mean  1 / (rows * row length)
    token_mean                1 / tokens of the update
    sequence_sum              1 / rows

    `full_rows` replaces the number of rows: the paper's code divides a partial mini-batch by the
    full mini-batch size.
    """
    lengths = np.asarray(lengths_B, dtype=np.float64)
    rows = full_rows or len(lengths)
    if aggregation == "token_mean":
        return np.full(len(lengths), len(lengths) / rows / lengths.sum())
    if aggregation == "sequence_sum":
        return np.full(len(lengths), 1.0 / rows)
    return 1.0 / (rows * lengths)


def tag(probe: Probe, rows: Sequence[Turn], problems: Mapping[str, int], has_rows: bool) -> None:
    """Say whose rows the next forward holds; with `has_rows`, what their statistics need."""
    agents = [row.agent for row in rows]
    if not has_rows:
        probe.tag(agents)
        return
    probe.tag(
        agents,
        prompts=[problems[row.problem] for row in rows],
        samples=[row.sample for row in rows],
        advantages=[row.advantage for row in rows],
    )


def measures_rows(config: TrainConfig, step: int) -> bool:
    """Whether gradients of single rows are measured in this step."""
    return config.row_statistics > 0 and (step - 1) % config.row_statistics == 0


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
    config: TrainConfig,
    tallies: dict[str, RoleTally],
) -> Tensor:
    """Weighted sum of the token losses of one micro-batch; adds to the roles' token tallies."""
    is_token = batch.is_token_BT
    logprob_BT, entropy_BT = response_logprobs(
        language, batch, entropy_grad=config.entropy_coefficient > 0
    )
    compare(batch, logprob_BT, tallies)
    token = policy_loss(logprob_BT, batch.old_BT, batch.advantage_B, config)
    loss_BT = token.loss_BT * batch.correction_BT
    coefficient_B = torch.tensor(
        [config.kl_coefficient.get(row.agent.role, 0.0) for row in batch.rows],
        device=loss_BT.device,
    )
    if bool((coefficient_B > 0).any()):
        reference_BT = reference_logprobs(language, batch)
        loss_BT = loss_BT + coefficient_B[:, None] * kl_k3(logprob_BT, reference_BT)
    if config.entropy_coefficient:
        loss_BT = loss_BT - config.entropy_coefficient * entropy_BT
    weight_B = batch.weight_B[:, None].to(loss_BT.dtype)
    loss = torch.where(is_token, loss_BT * weight_B, 0.0).sum()

    per_row = [
        torch.where(is_token, value.detach().float(), 0.0).sum(1).tolist()
        for value in (entropy_BT, token.ratio_BT, token.ratio_BT**2, token.is_clipped_BT)
    ]
    for row, entropy, ratio, squared, clipped in zip(batch.rows, *per_row, strict=True):
        total = tallies[row.agent.role]
        total.tokens += len(row.response_ids)
        total.entropy += entropy
        total.ratio += ratio
        total.ratio_squared += squared
        total.clipped += clipped
        total.weight += row.weight * len(row.response_ids)
    return loss


@dataclass(frozen=True)
class TokenLoss:
    """Per-token loss and what is worth knowing about it; all [B, T], zero or masked outside."""

    loss_BT: Tensor
    ratio_BT: Tensor
    is_clipped_BT: Tensor


def policy_loss(
    logprob_BT: Tensor, old_BT: Tensor, advantage_B: Tensor, config: TrainConfig
) -> TokenLoss:
    """PPO surrogate per token (arXiv 1707.06347; asymmetric clip: DAPO, dual clip: 1912.09729)."""
    # Bounded so that one absurd ratio cannot overflow; exp(20) is far outside any clip.
    ratio = torch.exp((logprob_BT - old_BT).clamp(-20, 20))
    advantage = advantage_B[:, None]
    plain = -advantage * ratio
    clipped = -advantage * ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    loss = torch.maximum(plain, clipped)
    is_clipped = clipped > plain
    if config.dual_clip > 0:
        bound = -advantage * config.dual_clip
        is_negative = advantage < 0
        is_clipped = is_clipped | (is_negative & (loss > bound))
        loss = torch.where(is_negative, torch.minimum(loss, bound), loss)
    return TokenLoss(loss, ratio.detach(), is_clipped.detach())


def blame(language: LanguageModel, batch: Batch, policy: Policy, step: int, loss: Tensor) -> str:
    """Name what is not finite in a micro-batch whose loss is not."""
    bad_weights = not_finite(language, policy.name)
    bad_advantage = [row for row in batch.rows if not np.isfinite(row.advantage)]
    with torch.no_grad():
        is_finite_B = response_logprobs(language, batch)[0].isfinite().all(1).tolist()
    bad_rows = [row for row, fine in zip(batch.rows, is_finite_B, strict=True) if not fine]
    blamed = bad_advantage or bad_rows or batch.rows
    agents = sorted({str(row.agent) for row in blamed})
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
