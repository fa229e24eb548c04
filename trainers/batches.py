"""Turn a policy's rows into updates, micro-batches, tensors and log-probabilities.

Legend: B rows of a micro-batch, T response tokens (right-padded), S prompt (left-padded) and
response tokens, N response tokens of all rows, C those of a chunk, H hidden units, V vocabulary.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainers.config import TrainConfig
from trainers.episodes import Turn
from trainers.models.language import LanguageModel
from trainers.models.sampling import precise


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


EXTRA_BATCH = 1 / 64
"""What one more micro-batch costs, as a share of the most tokens of one. At the default of 16,384
these are 256 tokens, measured on a small model (170 without and 260 with the probe); where tokens
are dear, budgets are small, and the other way around."""


def micro_batches(rows: Sequence[Turn], config: TrainConfig) -> list[list[Turn]]:
    """Batches of at most `config.micro_tokens` padded tokens (one row at least), of like length.

    Within a batch the rows of an agent stand together, which lets the probe slice instead of copy.
    Prompts and responses are padded each to their own longest: a long prompt with a short response
    next to a short prompt with a long response costs more than either.
    """
    ordered = sorted(rows, key=lambda row: (row.tokens, row.agent))
    parts = (cut if config.micro_batches == "cut" else filled)(ordered, config.micro_tokens)
    return [sorted(part, key=lambda row: row.agent) for part in parts]


def filled(ordered: Sequence[Turn], max_tokens: int) -> list[list[Turn]]:
    """Each batch as large as it may be."""
    batches: list[list[Turn]] = []
    prompt = response = 0
    for row in ordered:
        prompt = max(prompt, len(row.prompt_ids))
        response = max(response, len(row.response_ids))
        if not batches or (prompt + response) * (len(batches[-1]) + 1) > max_tokens:
            batches.append([])
            prompt, response = len(row.prompt_ids), len(row.response_ids)
        batches[-1].append(row)
    return batches


def cut(ordered: Sequence[Turn], max_tokens: int) -> list[Sequence[Turn]]:
    """Among all cuts the one with the fewest padded tokens, each batch counting for `EXTRA_BATCH`
    of the budget more."""
    prompt_n = np.array([len(row.prompt_ids) for row in ordered])
    response_n = np.array([len(row.response_ids) for row in ordered])
    least = np.zeros(len(ordered) + 1)  # cost of the rows before each place, at best
    begin = np.zeros(len(ordered), dtype=np.int64)  # of the batch that ends with each row
    for end in range(len(ordered)):
        # Lengths rise: no batch that ends here holds more rows than of this length fit.
        most = max(1, max_tokens // ordered[end].tokens)
        back = slice(end, end - most if most <= end else None, -1)
        width = np.maximum.accumulate(prompt_n[back]) + np.maximum.accumulate(response_n[back])
        padded = width * np.arange(1, len(width) + 1)
        fits = np.count_nonzero(padded <= max_tokens) or 1
        cost = least[end + 1 - fits : end + 1][::-1] + padded[:fits] + EXTRA_BATCH * max_tokens
        size = int(cost.argmin())
        least[end + 1], begin[end] = cost[size], end - size
    cuts = [len(ordered)]
    while cuts[-1]:
        cuts.append(int(begin[cuts[-1] - 1]))
    return [ordered[start:end] for end, start in reversed(list(pairwise(cuts)))]


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
    correction_BT: Tensor
    """Factor of the policy loss of each token."""
    advantage_B: Tensor
    weight_B: Tensor
    temperature: float | Tensor
    """[B, 1, 1] that each row was sampled at, or the one of all rows."""


def to_batch(rows: list[Turn], language: LanguageModel) -> Batch:
    pad, device = language.sampling.pad_id, language.device
    start = max(len(row.prompt_ids) for row in rows)
    longest = max(len(row.response_ids) for row in rows)
    ids = np.full((len(rows), start + longest), pad)
    mask = np.zeros_like(ids)
    old = np.zeros((len(rows), longest), dtype=np.float32)
    correction = np.ones_like(old)
    for i, row in enumerate(rows):
        here = slice(start - len(row.prompt_ids), start + len(row.response_ids))
        ids[i, here] = row.prompt_ids + row.response_ids
        mask[i, here] = 1
        known = row.logprobs if row.old_logprobs is None else row.old_logprobs
        old[i, : len(known)] = known
        if row.correction is not None:
            correction[i, : len(known)] = row.correction
    ids_BS, mask_BS = torch.tensor(ids, device=device), torch.tensor(mask, device=device)
    return Batch(
        rows,
        ids_BS,
        mask_BS,
        ids_BS[:, start:],
        mask_BS[:, start:].bool(),
        torch.tensor(old, device=device),
        torch.tensor(correction, device=device),
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
    entropy of the distribution it was drawn from (nats), with a gradient only if asked for.

    Both are 0 on padding.
    """
    is_token = batch.is_token_BT
    head = language.head
    with contextlib.nullcontext() if head is None else giving_hidden_states(head):
        output_BTX = language.model(
            input_ids=batch.ids_BT,
            attention_mask=batch.mask_BT,
            position_ids=(batch.mask_BT.cumsum(1) - 1).clamp(min=0),
            logits_to_keep=is_token.shape[1] + 1,
            use_cache=False,
        ).logits[:, :-1]
    output_NX, target_N, temperature = (
        output_BTX[is_token],
        batch.target_BT[is_token],
        batch.temperature,
    )
    if isinstance(temperature, Tensor):
        temperature = temperature.expand(*is_token.shape, 1)[is_token]
    if head is None:
        logprobs_NV = torch.log_softmax(precise(output_NX) / temperature, dim=-1)
        logprob_N = logprobs_NV.gather(1, target_N[:, None])[:, 0]
        with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
            entropy_N = -(logprobs_NV.exp() * logprobs_NV).sum(-1)
    else:
        logprob_N, entropy_N = FrozenHead.apply(
            output_NX, head.weight, head.bias, target_N, temperature, entropy_grad
        )  # type: ignore[no-untyped-call]
    zero_BT = torch.zeros(is_token.shape, dtype=logprob_N.dtype, device=is_token.device)
    return zero_BT.masked_scatter(is_token, logprob_N), zero_BT.masked_scatter(is_token, entropy_N)


@contextlib.contextmanager
def giving_hidden_states(head: torch.nn.Linear) -> Iterator[None]:
    """Within it a model gives what its head would have read, in place of logits."""
    head.forward = lambda hidden: hidden  # type: ignore[assignment]  # the argument is named otherwise
    try:
        yield
    finally:
        del head.forward  # the class's shows again


CHUNK_LOGITS = 2**25
"""Most logits at once (128 MiB in float32, of which there are three)."""


class FrozenHead(torch.autograd.Function):
    """[N] log-probability of each target, and entropy, without [N, V] logits.

    The head does not learn, so that the gradient of a token's hidden state is one number times a
    vector that is known when the logits are: they need not be kept, nor made again.

        d logprob / d h = (W[target] - sum_v p_v W_v) / temperature
        d entropy / d h = -sum_v p_v (log p_v + entropy) W_v / temperature
    """

    @staticmethod
    def forward(
        context: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None,
        target_N: Tensor, temperature: float | Tensor, entropy_grad: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        dtype = torch.promote_types(hidden_NH.dtype, torch.float32)
        needs_grad = context.needs_input_grad[0]
        chunk = max(1, CHUNK_LOGITS // len(weight_VH))
        found: list[list[Tensor]] = [[], [], [], []]
        for start in range(0, len(hidden_NH), chunk):
            part = slice(start, start + chunk)
            heat = temperature[part] if isinstance(temperature, Tensor) else temperature
            logits_CV = torch.nn.functional.linear(hidden_NH[part], weight_VH, bias_V).to(dtype)
            logprobs_CV = torch.log_softmax(logits_CV.div_(heat), dim=-1)
            del logits_CV
            p_CV, target_C1 = logprobs_CV.exp(), target_N[part, None]
            entropy_C1 = -(p_CV * logprobs_CV).sum(-1, keepdim=True)
            found[0].append(logprobs_CV.gather(1, target_C1)[:, 0])
            found[1].append(entropy_C1[:, 0])
            if needs_grad and entropy_grad:
                slope_CV = logprobs_CV.add_(entropy_C1).mul_(p_CV).div_(heat).neg_()
                found[3].append(slope_CV.to(weight_VH.dtype) @ weight_VH)
            if needs_grad:
                slope_CV = p_CV.neg_()
                slope_CV.scatter_add_(1, target_C1, torch.ones_like(entropy_C1)).div_(heat)
                found[2].append(slope_CV.to(weight_VH.dtype) @ weight_VH)
        logprob_N, entropy_N = torch.cat(found[0]), torch.cat(found[1])
        context.save_for_backward(*(torch.cat(slopes) for slopes in found[2:] if slopes))
        if not entropy_grad:
            context.mark_non_differentiable(entropy_N)
        return logprob_N, entropy_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, *upstream_N: Tensor) -> tuple[Tensor | None, ...]:
        slopes = context.saved_tensors
        parts = [g[:, None] * slope_NH for g, slope_NH in zip(upstream_N, slopes, strict=False)]
        return sum(parts[1:], parts[0]).to(slopes[0].dtype), None, None, None, None, None


@torch.no_grad()
def reference_logprobs(language: LanguageModel, batch: Batch) -> Tensor:
    """[B, T] log-probabilities under the base model: the model with its adapters switched off."""
    was_training = language.model.training
    language.model.eval()
    with language.model.disable_adapter():
        logprob_BT, _ = response_logprobs(language, batch)
    language.model.train(was_training)
    return logprob_BT


def kl_k3(logprob_BT: Tensor, reference_BT: Tensor) -> Tensor:
    """[B, T] Schulman's k3 estimate of KL(policy to reference): exp(d) - d - 1, d = ref - pol."""
    difference = (reference_BT - logprob_BT).clamp(-20, 20)
    return torch.exp(difference) - difference - 1


@torch.no_grad()
def with_old_logprobs(
    language: LanguageModel, rows: Sequence[Turn], config: TrainConfig
) -> list[Turn]:
    """The turns, in their order, with the log-probabilities in the denominator of their ratio."""
    if config.old_logprobs == "rollout":
        return list(rows)
    recomputed: dict[Turn, Turn] = {}
    for micro in micro_batches(rows, config):
        logprob_BT, _ = response_logprobs(language, to_batch(micro, language))
        for row, values in zip(micro, logprob_BT.float().cpu().numpy(), strict=True):
            old = values[: len(row.response_ids)]
            recomputed[row] = replace(row, old_logprobs=old)
    return [recomputed[row] for row in rows]
