"""Split turns into updates and micro-batches; turns to tensors to log-probs.

Legend: B turns of a micro-batch, T response tokens (right-padded), P prompt tokens (left-padded),
V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from trainers.config import TrainConfig
from trainers.episodes import Turn
from trainers.models.language import LanguageModel
from trainers.models.sampling import left_padded, precise


def num_updates(num_rows: int, config: TrainConfig) -> int:
    """Updates of a policy in this step.

    By samples, a role played by N parallel agents gets N times the updates of a role played by
    one: a confound of gradient amplification, which `--updates fixed` removes.
    """
    if config.updates == "fixed":
        return config.fixed_updates
    return math.ceil(num_rows / config.rows_per_update)


def plan_updates(rows: Sequence[Turn], config: TrainConfig, key: Sequence[int]) -> list[list[Turn]]:
    """The rows of each update of one policy in one step; `key` seeds the shuffle.

    By prompts: whole problems are dealt to updates after a shuffle, so that every update holds all
    agents' rows on its problems. By length: consecutive slices of the rows in order of length,
    which stratifies updates by role (the paper's code under a shared policy).
    """
    if not rows:
        return []
    wanted = num_updates(len(rows), config)
    if config.minibatches == "length":
        by_length = sorted(rows, key=lambda row: row.tokens)
        size = math.ceil(len(rows) / wanted)
        if config.updates == "samples":
            size = config.rows_per_update
        return [by_length[start : start + size] for start in range(0, len(rows), size)]
    problems = list(dict.fromkeys(row.problem for row in rows))
    order = np.random.default_rng(np.random.SeedSequence(list(key))).permutation(len(problems))
    updates: list[list[Turn]] = []
    for part in np.array_split(order, min(wanted, len(problems))):
        chosen = {problems[i] for i in part}
        updates.append([row for row in rows if row.problem in chosen])
    return updates


def micro_batches(rows: Sequence[Turn], max_tokens: int) -> list[list[Turn]]:
    """Batches of at most `max_tokens` padded tokens (one row at least), rows of like length.

    Within a batch the rows of an agent stand together, which lets the probe slice instead of copy.
    """
    batches: list[list[Turn]] = []
    # Prompts and responses are padded each to their own longest: a long prompt with a short
    # response next to a short prompt with a long response costs more than either.
    prompt = response = 0
    for row in sorted(rows, key=lambda row: (row.tokens, row.agent)):
        prompt = max(prompt, len(row.prompt_ids))
        response = max(response, len(row.response_ids))
        if not batches or (prompt + response) * (len(batches[-1]) + 1) > max_tokens:
            batches.append([])
            prompt, response = len(row.prompt_ids), len(row.response_ids)
        batches[-1].append(row)
    return [sorted(batch, key=lambda row: row.agent) for batch in batches]


@dataclass(frozen=True)
class Batch:
    """A micro-batch as tensors."""

    rows: list[Turn]
    ids_BT: Tensor
    """Prompts padded on the left and responses on the right: responses start in one column."""
    mask_BT: Tensor
    target_BT: Tensor
    """[B, T] response tokens."""
    is_token_BT: Tensor
    old_BT: Tensor
    advantage_B: Tensor
    weight_B: Tensor
    temperature: float | Tensor
    """[B, 1, 1] that each row was sampled at, or the one of all rows."""


def to_batch(rows: list[Turn], language: LanguageModel) -> Batch:
    pad, device = language.sampling.pad_id, language.device
    prompt_BP, prompt_mask_BP = left_padded([row.prompt_ids for row in rows], pad, device)
    longest = max(len(row.response_ids) for row in rows)
    target = torch.full((len(rows), longest), pad)
    is_token = torch.zeros((len(rows), longest), dtype=torch.bool)
    old_BT = torch.zeros((len(rows), longest))
    for i, row in enumerate(rows):
        length = len(row.response_ids)
        target[i, :length] = torch.tensor(row.response_ids)
        is_token[i, :length] = True
        old = row.logprobs if row.old_logprobs is None else row.old_logprobs
        old_BT[i, :length] = torch.as_tensor(np.asarray(old, dtype=np.float32))
    target, is_token = target.to(device), is_token.to(device)
    return Batch(
        rows,
        torch.cat([prompt_BP, target], dim=1),
        torch.cat([prompt_mask_BP, is_token.long()], dim=1),
        target,
        is_token,
        old_BT.to(device),
        torch.tensor([row.advantage for row in rows], device=device),
        torch.tensor([row.weight for row in rows], device=device),
        temperature_of(rows, device),
    )


def temperature_of(rows: Sequence[Turn], device: torch.device) -> float | Tensor:
    """The temperature of all rows, or [B, 1, 1] where they differ.

    A number where it can be: a GPU multiplies by its reciprocal, which rounds otherwise.
    """
    if len({row.temperature for row in rows}) == 1:
        return rows[0].temperature
    return torch.tensor([row.temperature for row in rows], device=device)[:, None, None]


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
    logprobs_BTV = torch.log_softmax(precise(logits) / batch.temperature, dim=-1)
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


@torch.no_grad()
def with_old_logprobs(
    language: LanguageModel, rows: Sequence[Turn], config: TrainConfig
) -> list[Turn]:
    """The turns, in their order, with the log-probabilities in the denominator of their ratio."""
    if config.old_logprobs == "rollout":
        return list(rows)
    recomputed: dict[Turn, Turn] = {}
    for micro in micro_batches(rows, config.micro_tokens):
        logprob_BT, _ = response_logprobs(language, to_batch(micro, language))
        for row, values in zip(micro, logprob_BT.float().cpu().numpy(), strict=True):
            old = values[: len(row.response_ids)]
            recomputed[row] = replace(row, old_logprobs=old)
    return [recomputed[row] for row in rows]
