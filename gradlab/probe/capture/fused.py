"""Run a linear layer whose weight gradient is computed once, by agent, in place of autograd's own.

The gradient that reaches the optimizer is then the sum of the agents' gradients: the same number
as autograd's to rounding, not to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Split = Callable[[Tensor, Tensor], dict[str, Tensor]]
"""(input, output gradient) -> gradients of 'weight' and 'bias'; empty: compute them here."""


class FusedLinear(torch.autograd.Function):
    """`nn.functional.linear` that asks `split` for the gradients of weight and bias."""

    @staticmethod
    def forward(
        ctx: Any, split: Split, into: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(into, weight)
        ctx.split = split
        return nn.functional.linear(into, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        into, weight = ctx.saved_tensors
        _, needs_into, needs_weight, needs_bias = ctx.needs_input_grad
        # Products of the forward's dtypes, whatever surrounds the backward.
        with torch.autocast(gradient.device.type, enabled=False):
            into_gradient = gradient @ weight if needs_into else None
            found = ctx.split(into, gradient)
            if needs_weight and "weight" not in found:
                out = gradient.reshape(-1, gradient.shape[-1])
                found["weight"] = out.T @ into.reshape(-1, into.shape[-1])
            if needs_bias and "bias" not in found:
                found["bias"] = gradient.reshape(-1, gradient.shape[-1]).sum(0)
        return (
            None,
            into_gradient,
            found["weight"].to(weight.dtype) if needs_weight else None,
            found["bias"].to(gradient.dtype) if needs_bias else None,
        )


def can_fuse(module: nn.Module) -> bool:
    """Whether the module runs exactly what `FusedLinear` runs."""
    return (
        isinstance(module, nn.Linear)
        and type(module).forward is nn.Linear.forward
        and "forward" not in vars(module)  # wrapped already, e.g. to offload its weights
    )


def fits(into: Tensor, weight: Tensor) -> bool:
    """Whether this call can be fused: plain tensors, and nobody traces the code."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return False
    return type(into) is Tensor and type(weight) in (Tensor, nn.Parameter)


def is_fused(output: Any) -> bool:
    """Whether `FusedLinear` made this output."""
    if torch.compiler.is_compiling() or not isinstance(output, Tensor):
        return False
    return isinstance(output.grad_fn, FusedLinear._backward_cls)


def as_autocast(tensor: Tensor) -> Tensor:
    """The tensor in the dtype that autocast gives to inputs of a linear layer."""
    device = tensor.device.type
    if not torch.is_autocast_enabled(device) or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(device))
