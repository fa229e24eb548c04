"""Order the measured parameters along one flat axis, so that a parameter block is a slice of it.

Legend: P measured parameters (elements).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby

import torch

from gradlab.probe.ranks.fsdp1 import Parameter

LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.([^.]+)")


def block_of(name: str) -> str:
    """Block of a parameter by its name: layer x attention/MLP/norm, embeddings, head or other.

    Example:
        >>> block_of("model.layers.3.self_attn.q_proj.lora_A.default.weight")
        'layers.3.attention'
    """
    layer = LAYER.search(name)
    if layer:
        index, part = layer.groups()
        if "norm" in part or part.startswith("ln"):
            return f"layers.{index}.norm"
        if "attn" in part or "attention" in part:
            return f"layers.{index}.attention"
        if "mlp" in part or "feed_forward" in part:
            return f"layers.{index}.mlp"
        return "other"
    if "embed" in name or "wte" in name or "wpe" in name:
        return "embeddings"
    if "lm_head" in name or name.startswith("score."):
        return "head"
    return "other"


def block_order(block: str) -> tuple[int, int, str]:
    """Sort key: embeddings, layers by number, other, head."""
    layer = re.match(r"layers\.(\d+)\.(.*)", block)
    if layer:
        return (1, int(layer[1]), layer[2])
    return ({"embeddings": 0, "other": 2, "head": 3}[block], 0, block)


@dataclass(frozen=True)
class Slot:
    """Where one parameter lives in the flat axis P."""

    name: str
    block: str
    shape: torch.Size
    start: int
    stop: int


@dataclass(frozen=True)
class Layout:
    """The flat axis P: measured parameters ordered by block, so that a block is a slice."""

    slots: tuple[Slot, ...]
    parameters: tuple[Parameter, ...]
    """In the order of the slots."""
    blocks: tuple[tuple[str, int, int], ...]
    """(name, start, stop) in store order."""
    num_parameters: int


def lay_out(named_parameters: Mapping[str, Parameter]) -> Layout:
    """Order parameters by block; the order within a block is the model's."""
    ordered = sorted(named_parameters, key=lambda name: block_order(block_of(name)))
    slots, start = [], 0
    for name in ordered:
        parameter = named_parameters[name]
        stop = start + parameter.numel()
        slots.append(Slot(name, block_of(name), parameter.shape, start, stop))
        start = stop
    blocks = []
    for block, members in groupby(slots, key=lambda slot: slot.block):
        inside = list(members)
        blocks.append((block, inside[0].start, inside[-1].stop))
    return Layout(
        tuple(slots), tuple(named_parameters[name] for name in ordered), tuple(blocks), start
    )
