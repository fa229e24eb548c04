"""Compare sampler, trainer and base model on some turns of a role before the first update.

A gap between sampler and trainer means that an adapter did not reach the sampler (verl#7495).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from gradlab.ledger import RoleTally
from trainers.batches import (
    Batch,
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
from trainers.ranks.peers import ALONE, Peers

MONITORED_TURNS = 16
"""Most turns per role and step that are compared."""
MONITORED_SHARE = 1 / 16
"""And most of them, since the base model's forward comes on top: it is a third of what such a turn
costs in an update."""
LARGEST_GAP = 0.2
"""Nats per token that rounding can explain, also in bfloat16; more means an adapter out of sync."""
LARGEST_GAP_FLOAT32 = 1e-4
"""The same in float32: thirty times what real runs show."""


@torch.no_grad()
def with_reference(
    language: LanguageModel,
    policy: Policy,
    rows: Sequence[Turn],
    first: Sequence[Turn],
    config: TrainConfig,
    tallies: Mapping[str, RoleTally],
    peers: Peers = ALONE,
) -> list[Turn]:
    """The rows of the first update, those to compare with log-probs under the base model.

    What the trainer says of them, the update's own forward tells. Roles that are not in it have
    theirs made here, before the weights change. `rows` are those of the whole step.
    """
    chosen: list[Turn] = []
    for role in policy.roles:
        mine = [row for row in rows if row.agent.role == role]
        some = min(MONITORED_TURNS, math.ceil(len(mine) * MONITORED_SHARE))
        mine = [row for row in first if row.agent.role == role] or mine
        # Spread over them: the first ones would all belong to one problem.
        chosen += mine[:: max(1, len(mine) // max(1, some))][:some]

    def mark(mine: list[Turn]) -> list[Turn]:
        marked: dict[Turn, Turn] = {}
        for micro in micro_batches(mine, config):
            values_BT = reference_logprobs(language, to_batch(micro, language)).float().cpu()
            for row, values in zip(micro, values_BT.numpy(), strict=True):
                marked[row] = replace(row, reference_logprobs=values[: len(row.response_ids)])
        return [marked[row] for row in mine]

    known = dict(zip(chosen, peers.spread(chosen, mark), strict=True))
    in_first = set(first)
    later = [marked for row, marked in known.items() if row not in in_first]
    for micro in micro_batches(peers.share(later), config):
        batch = to_batch(micro, language)
        compare(batch, response_logprobs(language, batch)[0], tallies)
    return [known.get(row, row) for row in first]


@torch.no_grad()
def compare(batch: Batch, logprob_BT: Tensor, tallies: Mapping[str, RoleTally]) -> None:
    """Add what the trainer's log-probs of a batch say of its rows that are to be compared."""
    for row, own_T, is_token_T in zip(batch.rows, logprob_BT, batch.is_token_BT, strict=True):
        if row.reference_logprobs is None:
            continue
        length = len(row.response_ids)
        is_token = is_token_T[:length].cpu()
        trainer_T = own_T[:length].float().cpu()
        gap_T = trainer_T - torch.tensor(np.asarray(row.logprobs, dtype=np.float32))
        kl_T = kl_k3(trainer_T, torch.from_numpy(row.reference_logprobs))
        tallies[row.agent.role].compared(
            float(is_token.sum()), float(gap_T.abs()[is_token].sum()), float(kl_T[is_token].sum())
        )


def warn_of_gaps(policy: Policy, config: TrainConfig, tallies: Mapping[str, RoleTally]) -> None:
    """Warn where sampler and trainer differ by more than rounding."""
    largest = LARGEST_GAP if config.dtype == "bfloat16" else LARGEST_GAP_FLOAT32
    for role, tally in tallies.items():
        if tally.logprob_gap > largest:
            warnings.warn(
                f"policy '{policy.name}', role '{role}': rollout and trainer log-probs differ "
                f"by {tally.logprob_gap:.2g} nats per token (expected below {largest:g}): the "
                "sampler does not use the weights that are trained",
                stacklevel=2,
            )
