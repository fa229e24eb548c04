"""Draw the next token of every row: from one stream of numbers, or each from numbers of its own.

Legend: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

Draw = Callable[[Tensor, Tensor, int], Tensor]
"""(probability_BV, rows_B, token) -> [B, 1] the tokens drawn; `rows_B` are the places of the rows
in the batch as it was begun, `token` counts those of the responses."""


def from_one_stream(rng: torch.Generator) -> Draw:
    """All rows draw from one generator: who draws beside a row changes what it draws."""

    def draw(probability_BV: Tensor, rows_B: Tensor, token: int) -> Tensor:
        return torch.multinomial(probability_BV, 1, generator=rng)

    return draw


def from_own_numbers(keys: Sequence[Sequence[int]], max_tokens: int, device: torch.device) -> Draw:
    """Each row draws by numbers that depend on its own key alone, whoever is in the batch with it.

    One uniform number per token, looked up in the cumulative distribution.
    """
    uniform = np.stack([np.random.default_rng([*key]).random(max_tokens) for key in keys])
    uniform_BT = torch.from_numpy(uniform).to(device)

    def draw(probability_BV: Tensor, rows_B: Tensor, token: int) -> Tensor:
        # In float32 a sum over a large vocabulary would lose the unlikely tokens at its end.
        cumulative_BV = probability_BV.cumsum(-1, dtype=torch.float64)
        wanted_B1 = uniform_BT[rows_B, token][:, None] * cumulative_BV[:, -1:]
        found_B1 = torch.searchsorted(cumulative_BV, wanted_B1, right=True)
        # The product may round up to the whole: the likeliest token then, never an impossible one.
        is_past_B1 = found_B1 == probability_BV.shape[-1]
        return torch.where(is_past_B1, probability_BV.argmax(-1, keepdim=True), found_B1)

    return draw
