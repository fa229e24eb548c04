"""The policy loss: PPO with clipping, dual clip, a KL anchor per role and an entropy bonus.

Legend: B rows, T response tokens. The loss of a micro-batch is a weighted sum over its tokens; the
weights are fixed for the whole update (`token_weights`), so that splitting an update into
micro-batches changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainers.config import TrainConfig


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


def kl_k3(logprob_BT: Tensor, reference_BT: Tensor) -> Tensor:
    """[B, T] Schulman's k3 estimate of KL(policy to reference): exp(d) - d - 1, d = ref - pol."""
    difference = (reference_BT - logprob_BT).clamp(-20, 20)
    return torch.exp(difference) - difference - 1
