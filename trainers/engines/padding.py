"""Widen attention heads to a size that an engine takes, without changing what a model says.

Queries, keys and values get zeros after their own numbers, which adds nothing to their products;
only three things notice. Rotary positions turn the first part of a head alone. A norm over the head
divides by the root mean square over more numbers: both queries and keys come out larger by
sqrt(D / d). And attention divides by sqrt(D): the keys' norm takes the two together back.

Legend: d head size, D head size of the engine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

HEADS_OUT = ("q_proj", "k_proj", "v_proj")


def padded_shapes(shapes: Any, wide: int) -> dict[str, Any]:
    """config.json of the model with heads of `wide`.

    Raises ValueError for an architecture of which it is not known how.
    """
    found: dict[str, Any] = shapes.to_dict()
    narrow = found.get("head_dim")
    if found.get("model_type") != "qwen3" or not narrow:
        raise ValueError(
            f"--sampler: the model is a {found.get('model_type')} with attention heads of "
            f"{narrow or shapes.hidden_size // shapes.num_attention_heads}, which an engine takes "
            "only if they can be widened, and that is known of Qwen3 alone; expected --sampler "
            "transformers, or another model"
        )
    found["head_dim"] = wide
    rope = found.get("rope_parameters") or {"rope_type": "default", "rope_theta": 10_000.0}
    found["rope_parameters"] = rope | {"partial_rotary_factor": narrow / wide}
    return found


def padded_weights(weights: Mapping[str, Tensor], narrow: int, wide: int) -> dict[str, Tensor]:
    """The base model's weights with heads of `wide`."""
    found = dict(weights)
    for name, weight in weights.items():
        module = name.split(".")[-2] if "." in name else ""
        if module in HEADS_OUT:
            found[name] = _padded_out(weight, narrow, wide)
        elif module == "o_proj" and weight.dim() == 2:
            found[name] = _padded_in(weight, narrow, wide)
        elif module in ("q_norm", "k_norm"):
            factor = math.sqrt(narrow / wide) if module == "k_norm" else 1.0
            found[name] = pad(weight * factor, (0, wide - narrow))
    return found


def padded_adapter(weights: Mapping[str, Tensor], narrow: int, wide: int) -> dict[str, Tensor]:
    """A LoRA adapter of the model, for the model with heads of `wide`."""
    found = dict(weights)
    for name, weight in weights.items():
        if "lora_B" in name and any(f".{module}." in name for module in HEADS_OUT):
            found[name] = _padded_out(weight, narrow, wide)
        elif "lora_A" in name and ".o_proj." in name:
            found[name] = _padded_in(weight, narrow, wide)
    return found


def _padded_out(weight: Tensor, narrow: int, wide: int) -> Tensor:
    """[heads d, …] -> [heads D, …]."""
    rest = weight.shape[1:]
    heads = weight.reshape(-1, narrow, *rest)
    zeros = torch.zeros(heads.shape[0], wide - narrow, *rest, dtype=weight.dtype)
    return torch.cat([heads, zeros.to(weight.device)], dim=1).reshape(-1, *rest)


def _padded_in(weight: Tensor, narrow: int, wide: int) -> Tensor:
    """[…, heads d] -> […, heads D]."""
    return _padded_out(weight.T, narrow, wide).T.contiguous()
