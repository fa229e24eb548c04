"""Refuse a forward in which tokens of different agents attend to each other.

Per-token tags are exact for packed rows whose segments the model keeps apart. Whether it does is
read off the forward's arguments: a 4-D mask, lengths of segments, or positions that restart. For
one sequence with turns of several agents no split of the ordinary backward exists.

Legend: n rows, T tokens per row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradlab.probe.capture.tags import Tags
from gradlab.records import Agent

MIXERS = ("attention", "attn", "mixer", "mamba", "rnn", "lstm", "gru")
"""Parts of class names of modules in which tokens of a row see each other."""

LENGTHS = ("cu_seq_lens_q", "cu_seqlens_q", "cu_seqlens")
BLOCKED = -1e4
"""An additive mask at or below this lets nothing through."""

REMEDY = (
    "a row, or a packed segment, must belong to one agent. If these are packed segments, show it "
    "to the model: position_ids that restart at 0 (no attention_mask, use_cache=False), "
    "cu_seq_lens_q, or a block-diagonal 4-D mask; if it keeps them apart in another way, "
    "tag(..., are_apart=True). For turns of several agents in one sequence, attach with "
    "mode='reference'"
)


def mixes_tokens(model: nn.Module) -> bool:
    """Whether the model has a module through which tokens of a row see each other."""
    names = {type(module).__name__.lower() for module in model.modules()}
    return any(mixer in name for mixer in MIXERS for name in names)


def check_segments(
    model: nn.Module, kwargs: Mapping[str, Any], tags: Tags, agents: Sequence[Agent]
) -> None:
    """Raise ValueError if agents share a segment.

    Cost: nothing unless a row holds two agents, then a transfer from the device.
    """
    if len(tags.shape) < 2:
        return
    agent_nT = torch.tensor(tags.agents).view(tags.shape)
    whole = torch.arange(tags.shape[0])[:, None].expand(tags.shape)
    if first_mixed(agent_nT, whole) is None:
        return
    mask = kwargs.get("attention_mask")
    masks = [*mask.values()] if isinstance(mask, Mapping) else [mask]
    if masks[0] is not None and not all(isinstance(m, Tensor) and m.dim() == 2 for m in masks):
        seen = (pair for m in masks for pair in [first_pair(agent_nT, m)] if pair is not None)
        mixed, why = next(seen, None), ", by the attention_mask"
    else:
        segment_nT, why = segments(model, kwargs, tags.shape)
        mixed = first_mixed(agent_nT, segment_nT)
    if mixed is not None:
        row, one, other = mixed
        raise ValueError(
            f"row {row} holds tokens of {agents[one]} and {agents[other]} that attend to each "
            f"other{why}; {REMEDY}"
        )


def segments(
    model: nn.Module, kwargs: Mapping[str, Any], shape: tuple[int, ...]
) -> tuple[Tensor, str]:
    """[n, T] the segment of every token, as far as the arguments show any, and what they lack."""
    num_tokens = shape[0] * shape[1]
    starts = torch.zeros(num_tokens, dtype=torch.bool)
    starts[:: shape[1]] = True
    lengths = next((kwargs[key] for key in LENGTHS if kwargs.get(key) is not None), None)
    order, position, why = kwargs.get("seq_idx"), kwargs.get("position_ids"), ""
    if lengths is not None:
        bounds = torch.as_tensor(lengths).flatten().cpu().long()
        starts[bounds[bounds < num_tokens]] = True
        why = " within the segments of its lengths"
    elif isinstance(order, Tensor) and order.shape == shape:
        changes = order.cpu().diff(dim=1, prepend=order[:, :1].cpu()) != 0
        starts |= changes.flatten()
        why = " within the segments of seq_idx"
    elif isinstance(position, Tensor):
        why = ignored(model, kwargs, shape[0])
        if not why and position.shape[-1] == shape[1]:
            if position.dim() == 3:
                position = position[0]  # (axes of a rotary embedding, n, T)
            starts |= (position.cpu() == 0).expand(shape).flatten()
            why = " within the segments of position_ids"
    return starts.cumsum(0).view(shape), why


def ignored(model: nn.Module, kwargs: Mapping[str, Any], num_rows: int) -> str:
    """Why transformers pays no regard to positions that restart; empty if it does."""
    if kwargs.get("attention_mask") is not None:
        return " (position_ids that restart count for nothing beside an attention_mask)"
    config = getattr(model, "config", None)
    if "flash" in str(getattr(config, "_attn_implementation", "")):
        return "" if num_rows == 1 else " (flash attention takes packed rows one at a time)"
    if kwargs.get("use_cache", getattr(config, "use_cache", False)):
        return " (position_ids that restart count for nothing while a cache is filled)"
    return ""


def first_mixed(agent_nT: Tensor, segment_nT: Tensor) -> tuple[int, int, int] | None:
    """(row, agent, agent) of the first segment with two agents; -1 is nobody."""
    _, segment_N = torch.unique(segment_nT, return_inverse=True)
    is_owned = agent_nT.flatten() >= 0
    agent_N, segment_N = agent_nT.flatten()[is_owned], segment_N.flatten()[is_owned]
    if not len(agent_N):
        return None
    empty = torch.zeros(int(segment_N.max()) + 1, dtype=torch.int64)
    low = empty.scatter_reduce(0, segment_N, agent_N, "amin", include_self=False)
    high = empty.scatter_reduce(0, segment_N, agent_N, "amax", include_self=False)
    mixed = (low != high).nonzero().flatten()
    if not len(mixed):
        return None
    at = int(is_owned.nonzero().flatten()[(segment_N == mixed[0]).nonzero()[0, 0]])
    return at // agent_nT.shape[1], int(low[mixed[0]]), int(high[mixed[0]])


def first_pair(agent_nT: Tensor, mask: Any) -> tuple[int, int, int] | None:
    """(row, agent, agent) of the first tokens of two agents that a 4-D mask lets see each other."""
    if not isinstance(mask, Tensor) or mask.dim() != 4 or mask.shape[-1] != agent_nT.shape[1]:
        return None  # a kind of mask that is made for packed rows, and not to be read here
    agent_nT = agent_nT.to(mask.device)
    is_open = mask if mask.dtype == torch.bool else mask > BLOCKED
    of_query, of_key = agent_nT[:, :, None], agent_nT[:, None, :]
    foreign = (of_query != of_key) & (of_query >= 0) & (of_key >= 0)
    found = (is_open.any(1) & foreign).nonzero()
    if not len(found):
        return None
    row, query, key = found[0].tolist()
    return row, int(agent_nT[row, query]), int(agent_nT[row, key])
