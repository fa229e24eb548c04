"""Turn rows into a batch of tensors, and a batch into log-probabilities of its responses.

Legend: B rows of a micro-batch, T response tokens (right-padded), P prompt tokens (left-padded),
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainers.config import TrainConfig
from trainers.episodes import Row
from trainers.minibatches import micro_batches
from trainers.models.language import LanguageModel
from trainers.models.sampling import left_padded


@dataclass(frozen=True)
class Batch:
    """A micro-batch as tensors."""

    rows: list[Row]
    ids_BT: Tensor
    """Prompts padded on the left and responses on the right: responses start in one column."""
    mask_BT: Tensor
    target_BT: Tensor
    """[B, T] response tokens."""
    is_token_BT: Tensor
    old_BT: Tensor
    advantage_B: Tensor


def to_batch(
    rows: list[Row], language: LanguageModel, old: dict[int, NDArray[np.float32]]
) -> Batch:
    pad, device = language.sampling.pad_id, language.device
    prompt_BP, prompt_mask_BP = left_padded([row.turn.prompt_ids for row in rows], pad, device)
    longest = max(len(row.turn.response_ids) for row in rows)
    target = torch.full((len(rows), longest), pad)
    is_token = torch.zeros((len(rows), longest), dtype=torch.bool)
    old_BT = torch.zeros((len(rows), longest))
    for i, row in enumerate(rows):
        length = len(row.turn.response_ids)
        target[i, :length] = torch.tensor(row.turn.response_ids)
        is_token[i, :length] = True
        old_BT[i, :length] = torch.as_tensor(old[id(row)])
    target, is_token = target.to(device), is_token.to(device)
    return Batch(
        rows,
        torch.cat([prompt_BP, target], dim=1),
        torch.cat([prompt_mask_BP, is_token.long()], dim=1),
        target,
        is_token,
        old_BT.to(device),
        torch.tensor([row.advantage for row in rows], device=device),
    )


def response_logprobs(
    language: LanguageModel, batch: Batch, *, entropy_grad: bool = False
) -> tuple[Tensor, Tensor]:
    """[B, T] log-probability of each response token under the temperature-scaled policy, and the
    entropy of the distribution it was drawn from (nats), with a gradient only if asked for."""
    longest = batch.target_BT.shape[1]
    logits = language.model(
        input_ids=batch.ids_BT,
        attention_mask=batch.mask_BT,
        position_ids=(batch.mask_BT.cumsum(1) - 1).clamp(min=0),
        logits_to_keep=longest + 1,
        use_cache=False,
    ).logits[:, :-1]
    logprobs_BTV = torch.log_softmax(logits.float() / language.sampling.temperature, dim=-1)
    chosen = logprobs_BTV.gather(2, batch.target_BT[:, :, None])[:, :, 0]
    with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
        entropy = -(logprobs_BTV.exp() * logprobs_BTV).sum(-1)
    return chosen, entropy


@torch.no_grad()
def reference_logprobs(language: LanguageModel, batch: Batch) -> Tensor:
    """[B, T] log-probabilities under the base model: the model with its adapters switched off."""
    was_training = language.model.training
    language.model.eval()
    with language.model.disable_adapter():
        logprob_BT, _ = response_logprobs(language, batch)
    language.model.train(was_training)
    return logprob_BT


def old_logprobs(
    language: LanguageModel, rows: Sequence[Row], config: TrainConfig
) -> dict[int, NDArray[np.float32]]:
    """id(row) -> [T] log-probabilities in the denominator of the ratio."""
    kept = {id(row): np.asarray(row.turn.logprobs, dtype=np.float32) for row in rows}
    if config.old_logprobs == "rollout":
        return kept
    recomputed: dict[int, NDArray[np.float32]] = {}
    for micro in micro_batches(rows, config.micro_tokens):
        with torch.no_grad():
            logprob_BT, _ = response_logprobs(language, to_batch(micro, language, kept))
        for row, values in zip(micro, logprob_BT.float().cpu().numpy(), strict=True):
            recomputed[id(row)] = values[: len(row.turn.response_ids)]
    return recomputed
