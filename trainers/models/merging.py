"""Let a policy speak through copies of the layers in which its adapter is merged into the weights.

The layers themselves stay aside meanwhile and nothing is ever written to them, so that they are
bitwise what they were however a wave ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as AdaptedLinear
from torch import nn

EXACT = (torch.float32, torch.float64)
"""Dtypes in which a merged weight holds the adapter's part: bfloat16 has 8 bits, in which small
updates of a large weight vanish."""

Copies = dict[str, nn.Linear]
"""Merged layers by the name of the layer that they stand for, kept for the next wave."""


@contextmanager
def merged(model: PeftModel, policy: str, copies: Copies) -> Iterator[Any]:
    """The base model, with `policy`'s adapter merged where that is exact and applied elsewhere.

    `policy` is the active adapter, or '' where none is: then layers stand there as they are
    without any. Its weights are read here: changes are seen by the next call.
    """
    base = model.get_base_model()
    layers = [
        (name, layer) for name, layer in base.named_modules() if isinstance(layer, AdaptedLinear)
    ]
    places = [(name, layer) for name, layer in layers if not policy or is_mergeable(layer, policy)]
    try:
        for name, layer in places:
            if policy and name not in copies:
                copies[name] = empty_like(layer.base_layer)
            if policy:
                merge(layer, policy, copies[name])
            base.set_submodule(name, copies[name] if policy else layer.base_layer)
        yield base
    finally:
        for name, layer in places:
            base.set_submodule(name, layer)


def is_mergeable(layer: AdaptedLinear, policy: str) -> bool:
    """Whether the layer is a plain product in a dtype that holds the sum, with a plain adapter."""
    weight = layer.base_layer.weight
    return (
        policy in layer.lora_A
        and policy not in layer.lora_variant
        and not layer.lora_bias[policy]
        # A quantized or a sharded weight is of another type.
        and type(layer.base_layer) is nn.Linear
        and type(weight) is nn.Parameter
        and weight.dtype in EXACT
        and layer.lora_A[policy].weight.dtype == weight.dtype
    )


def adapted_parameters(model: nn.Module) -> int:
    """Parameters of the layers that copies are made of, without their adapters."""
    return sum(
        layer.base_layer.weight.numel()
        for layer in model.modules()
        if isinstance(layer, AdaptedLinear)
    )


def empty_like(base: nn.Linear) -> nn.Linear:
    """A frozen layer of the same shape and with the very bias, its weight not set yet."""
    copy = nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
    copy.weight = nn.Parameter(torch.empty_like(base.weight), requires_grad=False)
    copy.bias = base.bias
    return copy.eval()


@torch.no_grad()
def merge(layer: AdaptedLinear, policy: str, copy: nn.Linear) -> None:
    """Set the copy's weight to the layer's with the adapter's part."""
    torch.addmm(
        layer.base_layer.weight,
        layer.lora_B[policy].weight,
        layer.lora_A[policy].weight,
        alpha=layer.scaling[policy],
        out=copy.weight,
    )
