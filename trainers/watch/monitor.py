"""Compare sampler, trainer and base model on some turns of a role before the first update."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch

from gradlab.ledger import RoleTally
from trainers.batches import (
    kl_k3,
    micro_batches,
    reference_logprobs,
    response_logprobs,
    to_batch,
)
from trainers.config import TrainConfig
from trainers.episodes import Turn
from trainers.models.language import LanguageModel
from trainers.policies import Policy

MONITORED_ROWS = 16
"""Rows per role on which trainer and reference log-probs are compared with the rollout's."""
LARGEST_GAP = 0.2
"""Nats per token that rounding can explain, also in bfloat16; more means an adapter out of sync."""
LARGEST_GAP_FLOAT32 = 1e-4
"""The same in float32: thirty times what real runs show."""


@torch.no_grad()
def monitor(
    language: LanguageModel,
    policy: Policy,
    rows: Sequence[Turn],
    config: TrainConfig,
    tallies: Mapping[str, RoleTally],
) -> None:
    """Compare rollout, trainer and base model on some rows of each role, before the first update.

    A gap between rollout and trainer means that an adapter did not reach the sampler (verl#7495).
    """
    for role in policy.roles:
        mine = [row for row in rows if row.agent.role == role]
        # Spread over the step: the first rows would all belong to one problem.
        some = mine[:: max(1, len(mine) // MONITORED_ROWS)][:MONITORED_ROWS]
        tokens = gap = divergence = 0.0
        for micro in micro_batches(some, config.micro_tokens):
            batch = to_batch(micro, language)
            trainer_BT, _ = response_logprobs(language, batch)
            reference_BT = reference_logprobs(language, batch)
            is_token = batch.is_token_BT
            tokens += float(is_token.sum())
            gap += float((trainer_BT - batch.old_BT).abs()[is_token].sum())
            divergence += float(kl_k3(trainer_BT, reference_BT)[is_token].sum())
        if tokens:
            tallies[role].logprob_gap = gap / tokens
            largest = LARGEST_GAP if config.dtype == "bfloat16" else LARGEST_GAP_FLOAT32
            if gap / tokens > largest:
                warnings.warn(
                    f"policy '{policy.name}', role '{role}': rollout and trainer log-probs differ "
                    f"by {gap / tokens:.2g} nats per token (expected below {largest:g}): the "
                    "sampler does not use the weights that are trained",
                    stacklevel=2,
                )
            tallies[role].kl = divergence / tokens
