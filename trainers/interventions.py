"""Change a policy's gradient between backward and clipping: weights and bounds per role, damping.

    g <- sum_r f_r g_r        f from --role-weight, --role-clip, --equalize or --max-share
    g <- s g                  s from --coherence-damping, or --role-damping

Roles are told apart by the probe, which records their gradients as captured, and the factors.

Legend: P parameters of the policy (elements).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from trainers.config import TrainConfig

MAX_FACTOR = 10.0
"""Largest factor of --equalize: a role with hardly any gradient is mostly noise."""


class CoherenceDamping:
    """Shorten gradients that repeat the direction of those before.

    s = 1 - strength * max(0, cos(g, m)); then m <- t m + (1 - t) s g with t = 1 - 1 / window: the
    mean is fed what is left of the gradient (the coherence regularizer of arXiv 2605.24202's code).
    Its start: `zero`, where s of the first update is 1 and every later one counts by its age alone,
    as in a mean without bias; or `first`, as in that code, a copy of the first gradient: the first
    update has cosine 1, so s = 1 - strength, and with a window of 128 this one noisy gradient still
    weighs (127/128)^10 = .92 after ten more.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        strength: float,
        window: int,
        start: Literal["zero", "first"] = "zero",
    ) -> None:
        self._parameters = tuple(parameters)
        self._strength = strength
        self._keep = 1 - 1 / window
        self._start = start
        self.mean_P: Tensor | None = None

    def factor(self) -> float:
        """s of the gradient in hand, which the mean is fed: call it once per update."""
        gradient_P = torch.cat([_gradient(p).reshape(-1) for p in self._parameters])
        if self.mean_P is None:
            is_copy = self._start == "first"
            self.mean_P = gradient_P.clone() if is_copy else torch.zeros_like(gradient_P)
        norms = torch.linalg.vector_norm(gradient_P) * torch.linalg.vector_norm(self.mean_P)
        cosine = float(gradient_P @ self.mean_P / norms) if norms > 0 else 0.0
        if not math.isfinite(cosine):  # clipping finds and names what is not finite
            return 1.0
        factor = 1 - self._strength * max(0.0, min(cosine, 1.0))
        self.mean_P.mul_(self._keep).add_(gradient_P, alpha=factor * (1 - self._keep))
        return factor

    def state_dict(self) -> dict[str, Any]:
        return {"mean_P": None if self.mean_P is None else self.mean_P.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        mean_P = state["mean_P"]
        self.mean_P = None if mean_P is None else mean_P.to(self._parameters[0].device, copy=True)


def damping_of(
    parameters: Sequence[Parameter], config: TrainConfig, roles: Sequence[str]
) -> CoherenceDamping | None:
    """What --coherence-damping and --role-damping ask for in the policy of these roles."""
    strength = config.damping_of(roles[0])
    if not strength:
        return None
    return CoherenceDamping(parameters, strength, config.coherence_window, config.coherence_start)


def role_factors(masses: Mapping[str, float], config: TrainConfig) -> dict[str, float]:
    """Factor of each role's gradient in an update of one policy; `masses` are the norms ||g_r||.

    In this order: weights, clipping by role, then equal masses or the caps on shares.
    """
    if not any(masses.values()) or not all(map(math.isfinite, masses.values())):
        return {}  # nothing to weigh; clipping finds and names what is not finite
    factors = {role: config.role_weight.get(role, 1.0) for role in masses}
    for role, limit in config.role_clip.items():
        if factors.get(role, 0.0) * masses.get(role, 0.0) > limit:
            factors[role] = limit / masses[role]
    weighed = {role: factors[role] * mass for role, mass in masses.items()}
    more: Mapping[str, float] = {}
    if config.equalize:
        more = equalizing(weighed)
    elif config.max_share:
        more = capping(weighed, config.max_share)
    return {role: factor * more.get(role, 1.0) for role, factor in factors.items()}


def equalizing(masses: Mapping[str, float]) -> dict[str, float]:
    """Factors that give all roles with a gradient the same mass and keep the sum of masses.

    At most `MAX_FACTOR`. A role without a gradient in this update stays without.
    """
    present = {role: mass for role, mass in masses.items() if mass > 0}
    if not present:
        return {}
    mean = sum(present.values()) / len(present)
    return {role: min(mean / mass, MAX_FACTOR) for role, mass in present.items()}


def capping(masses: Mapping[str, float], caps: Mapping[str, float]) -> dict[str, float]:
    """Factors, none above 1, after which no role has more than its cap of the sum of masses.

    Roles whose caps cannot be met together, such as one that is alone in an update, get shares in
    proportion to their caps.
    """
    present = {role: mass for role, mass in masses.items() if mass > 0}
    limit = {role: caps.get(role, 1.0) for role in present}
    if sum(limit.values()) <= 1:
        total = min(mass / limit[role] for role, mass in present.items()) if present else 0.0
        return {role: total * limit[role] / mass for role, mass in present.items()}
    bound: set[str] = set()
    while True:
        # The bound roles hold their caps of the total, everybody else keeps their mass.
        free = sum(mass for role, mass in present.items() if role not in bound)
        total = free / (1 - sum(limit[role] for role in bound))
        over = {role for role in present.keys() - bound if present[role] > limit[role] * total}
        if not over:
            return {role: limit[role] * total / present[role] for role in bound}
        bound |= over


def _gradient(parameter: Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
