"""Sample responses for a batch of prompts from one policy, keeping each token's log-probability.

A prompt asked several times is prefilled once, and finished rows leave the batch.

Legend: B rows still being sampled, U distinct prompts, T prompt tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainers.models.draws import Draw, from_one_stream, from_own_numbers
from trainers.models.sampler import Sample

SHRINK_BELOW = 0.75
"""The batch is compacted when fewer than this share of its rows are unfinished: compacting copies
the key-value cache, so doing it at every finished row would cost more than it saves."""


@dataclass(frozen=True)
class SamplingOptions:
    temperature: float
    max_tokens: int
    """Longest response."""
    max_rows: int
    """Most rows sampled at once."""
    end_ids: tuple[int, ...]
    pad_id: int


@torch.no_grad()
def sample(
    model: Any,
    prompts: Sequence[tuple[int, ...]],
    options: SamplingOptions,
    rng: torch.Generator,
    keys: Sequence[Sequence[int]] | None = None,
) -> list[Sample]:
    """Sample one response per prompt, in the order given. `model` is a causal LM in eval mode.

    `keys`: of the numbers that each response is drawn by; without them all draw from `rng`.

    Raises FloatingPointError when the model's output is not finite.
    """
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), prompts[i]))
    results: list[Sample | None] = [None] * len(prompts)
    for start in range(0, len(order), options.max_rows):
        chunk = order[start : start + options.max_rows]
        draw = (
            from_one_stream(rng)
            if keys is None
            else from_own_numbers([keys[i] for i in chunk], options.max_tokens, rng.device)
        )
        said = _sample_chunk(model, [prompts[i] for i in chunk], options, draw, rng.device)
        for index, result in zip(chunk, said, strict=True):
            results[index] = result
    return [result for result in results if result is not None]


def _sample_chunk(
    model: Any,
    prompts: list[tuple[int, ...]],
    options: SamplingOptions,
    draw: Draw,
    device: torch.device,
) -> list[Sample]:
    distinct = list(dict.fromkeys(prompts))
    place = {prompt: i for i, prompt in enumerate(distinct)}
    repeat_B = torch.tensor([place[prompt] for prompt in prompts], device=device)

    ids_UT, mask_UT = left_padded(distinct, options.pad_id, device)
    positions_UT = (mask_UT.cumsum(1) - 1).clamp(min=0)
    output = model(
        input_ids=ids_UT,
        attention_mask=mask_UT,
        position_ids=positions_UT,
        use_cache=True,
        logits_to_keep=1,
    )
    cache, logits_BV = output.past_key_values, output.logits[:, -1][repeat_B]
    if len(distinct) < len(prompts):
        cache.batch_select_indices(repeat_B)
    mask_BT = mask_UT[repeat_B]
    position_B = mask_BT.sum(1)

    ends = torch.tensor(options.end_ids, device=device)
    rows_B = torch.arange(len(prompts), device=device)
    tokens: list[list[int]] = [[] for _ in prompts]
    logprobs: list[list[float]] = [[] for _ in prompts]
    active_B = torch.ones(len(prompts), dtype=torch.bool, device=device)
    for number in range(options.max_tokens):
        logits_BV = precise(logits_BV)
        if options.temperature != 1:  # a pass over all of the vocabulary that would change nothing
            logits_BV = logits_BV / options.temperature
        logprobs_BV = torch.log_softmax(logits_BV, dim=-1)
        # One pass in place of four: what is not finite makes the sum so, and nothing else does.
        if not bool(logprobs_BV.sum().isfinite()):
            raise FloatingPointError(f"output at response token {number} is not finite")
        next_B1 = draw(logprobs_BV.exp(), rows_B, number)
        chosen_B = logprobs_BV.gather(1, next_B1)[:, 0]
        for row, token, logprob, is_active in zip(
            rows_B.tolist(), next_B1[:, 0].tolist(), chosen_B.tolist(), active_B.tolist(),
            strict=True,
        ):  # fmt: skip
            if is_active:
                tokens[row].append(token)
                logprobs[row].append(logprob)
        active_B = active_B & ~torch.isin(next_B1[:, 0], ends)
        num_active = int(active_B.sum())
        if num_active == 0 or number == options.max_tokens - 1:
            break
        if num_active < SHRINK_BELOW * len(active_B):
            keep = active_B.nonzero()[:, 0]
            cache.batch_select_indices(keep)
            rows_B, next_B1, mask_BT = rows_B[keep], next_B1[keep], mask_BT[keep]
            position_B, active_B = position_B[keep], active_B[keep]
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(mask_BT), 1)], dim=1)
        output = model(
            input_ids=next_B1,
            attention_mask=mask_BT,
            position_ids=position_B[:, None],
            past_key_values=cache,
            use_cache=True,
        )
        logits_BV, position_B = output.logits[:, -1], position_B + 1
    end_set = set(options.end_ids)
    return [
        Sample(tuple(row), tuple(logprob), truncated=row[-1] not in end_set)
        for row, logprob in zip(tokens, logprobs, strict=True)
    ]


def precise(logits: Tensor) -> Tensor:
    """In float32 at least: log-probabilities of a large vocabulary need it."""
    return logits if logits.dtype == torch.float64 else logits.float()


def left_padded(
    rows: Sequence[Sequence[int]], pad_id: int, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both int64 [len(rows), longest], padded on the left."""
    longest = max(map(len, rows))
    ids = [[pad_id] * (longest - len(row)) + list(row) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
