"""Prove on every update that the agents' gradients add up to the one the optimizer uses.

Legend: P measured parameters (elements), S slots (parameters).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from gradlab.probe.layout import Layout
from gradlab.probe.measures.exact_sums import norm_of

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
"""Largest residual that rounding explains, by the coarsest dtype on the way of a gradient."""

UNEXPLAINED = 0.1
"""Share of a parameter's gradient that may be missing before it counts as not covered."""


@dataclass(frozen=True)
class SelfCheck:
    """How well the agents' gradients explain the gradient the optimizer sees: g = c sum_a g_a."""

    scale: float
    """The fitted c: clipping, averaging and loss scale together."""
    residual: float
    """||g - c sum_a g_a|| / ||g||."""
    grad_norm: float
    """||g|| / c: before clipping."""
    coverage: float
    """Share of the parameters with a gradient that the agents explain."""
    tolerance: float
    """What rounding explains of the residual: more where agents or rows cancel each other."""
    suspects: tuple[str, ...] = ()
    """Parameters that carry the residual, worst first; empty while it is within tolerance."""


@dataclass(frozen=True)
class Claim:
    """The two gradients that are compared, and what is known about them."""

    flat_P: Tensor
    """What the optimizer is about to use."""
    sum_P: Tensor
    """Sum of the agents' gradients."""
    layout: Layout
    """Of the two tensors; where gradients are projected, of the projected ones."""
    sizes_S: Sequence[int]
    """Elements of every parameter."""
    present: Sequence[int]
    """Slots in which the optimizer has a gradient."""
    attributed: frozenset[int]
    """Slots that received a share of some agent."""
    rounding: float
    """Relative error of one sum, by dtype; see `TOLERANCE`."""
    parts_norm2: float
    """Sum of the squared norms of the parts that were added up: agents, or rows."""

    def check(self, whole_norm: float | None = None) -> SelfCheck:
        """Fit g = c sum_a g_a and name whoever does not fit.

        `whole_norm`: ||g||, where `flat_P` is only a projection of it.
        """
        norm, sum_norm2 = norm_of(self.flat_P), norm_of(self.sum_P) ** 2
        # Multiplied and summed, not `@`: BLAS loses five digits over millions of float32.
        scale = float((self.flat_P * self.sum_P).sum()) / sum_norm2 if sum_norm2 > 0 else math.nan
        usable = scale if math.isfinite(scale) else 0.0
        error_P = torch.sub(self.flat_P, self.sum_P, alpha=usable)
        if norm != 0:
            residual = norm_of(error_P) / norm
        elif sum_norm2 == 0:
            residual, scale, usable = 0.0, 1.0, 1.0  # nothing to fit: a step without any advantage
        else:
            residual = math.inf
        # A gradient of zeros, as zero_grad(set_to_none=False) leaves it, is nobody's and complete.
        present = [i for i in self.present if i in self.attributed or self._is_moved(i)]
        covered = self.attributed.intersection(present)
        cancelled = abs(usable) * math.sqrt(self.parts_norm2) / norm if norm > 0 else 1.0
        tolerance = self.rounding * max(1.0, cancelled)
        suspects: dict[int, float] = {}
        if not residual <= tolerance:  # also where it is not a number
            share = tolerance * norm / math.sqrt(len(self.present))  # somebody exceeds it
            suspects = self._suspects(error_P, share)
            # A parameter of which only a part was captured bends the fit, and all seem to be off.
            robust = self._median_scale(covered)
            error_P = torch.sub(self.flat_P, self.sum_P, alpha=robust)
            fewer = self._suspects(error_P, share)
            if len(fewer) < len(suspects):
                suspects, scale, usable = fewer, robust, robust
                residual = norm_of(error_P) / norm
            covered -= {
                i
                for i, error in suspects.items()
                if error > UNEXPLAINED * norm_of(self.flat_P[self._span(i)])
            }
        return SelfCheck(
            scale,
            residual,
            (norm if whole_norm is None else whole_norm) / (abs(usable) or 1.0),
            sum(self.sizes_S[i] for i in covered) / sum(self.sizes_S[i] for i in present)
            if present
            else 1.0,
            tolerance,
            self._names(suspects),
        )

    def _is_moved(self, slot: int) -> bool:
        return bool(self.flat_P[self._span(slot)].any())

    def _span(self, slot: int) -> slice:
        return slice(self.layout.slots[slot].start, self.layout.slots[slot].stop)

    def _names(self, suspects: dict[int, float]) -> tuple[str, ...]:
        worst_first = sorted(suspects, key=suspects.__getitem__, reverse=True)
        return tuple(self.layout.slots[i].name for i in worst_first)

    def _suspects(self, error_P: Tensor, share: float) -> dict[int, float]:
        """Norm of the error in every slot where it is more than `share`, or not a number."""
        errors = {i: norm_of(error_P[self._span(i)]) for i in self.present}
        return {i: error for i, error in errors.items() if not error <= share}

    def _median_scale(self, slots: Iterable[int]) -> float:
        """Median over parameters of the scale that fits each; 0 if none fits any."""
        found = []
        for i in slots:
            flat, total = self.flat_P[self._span(i)], self.sum_P[self._span(i)]
            norm2 = norm_of(total) ** 2
            if norm2 > 0:
                found.append(float((flat * total).sum()) / norm2)
        return float(np.nanmedian(found)) if np.isfinite(found).any() else 0.0


def with_unmeasured(
    check: SelfCheck, gradients: Mapping[str, Tensor], num_present: int
) -> SelfCheck:
    """The check of a gradient of which some parameters, here by name, were not measured.

    `num_present`: elements of those that were. Of sharded gradients this rank's part counts.
    """
    own = {name: g.to_local() if isinstance(g, DTensor) else g for name, g in gradients.items()}
    norms = {name: norm_of(gradient.to_dense()) for name, gradient in own.items()}
    missing = math.hypot(*norms.values())
    if missing == 0:
        return check
    norm = check.grad_norm * (abs(check.scale) if math.isfinite(check.scale) else 1.0)
    residual = math.hypot(check.residual * norm if norm else 0.0, missing)
    residual /= math.hypot(norm, missing)
    size = sum(gradient.numel() for gradient in gradients.values())
    worst_first = sorted(norms, key=norms.__getitem__, reverse=True)
    return replace(
        check,
        residual=residual,
        coverage=check.coverage * num_present / (num_present + size),
        suspects=(*check.suspects, *worst_first) if not residual <= check.tolerance else (),
    )


def rounding_of(dtypes: Iterable[torch.dtype], is_low_precision: bool) -> float:
    """Relative error that rounding explains: of the coarsest dtype on the way."""
    if is_low_precision:
        return TOLERANCE[torch.bfloat16]
    return max(TOLERANCE.get(dtype, 1e-2) for dtype in dtypes)
