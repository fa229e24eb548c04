"""Compare what was captured for an agent with the gradient of that agent's rows alone.

The self-check of every update cannot see rows that carry another agent's tag: the sum stays right.
An audit runs the update again with everybody else's part of the loss at zero.

Legend: A agents, P measured parameters (elements).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gradlab.probe.measures.exact_sums import inner_products, norm_of
from gradlab.records import Agent

SAME_DIRECTION = 0.999
"""Cosine from which on two gradients are taken for those of the same rows."""


@dataclass(frozen=True)
class AgentAudit:
    """One agent's gradient, as captured and as it is alone."""

    agent: Agent
    captured_norm: float
    alone_norm: float
    cosine: float
    """Between the two; NaN if one is zero."""
    error: float
    """||captured - alone|| / the larger norm; 0 if both are zero."""
    tolerance: float
    """Error that rounding explains."""
    captured_as: Agent | None = None
    """Another agent whose captured gradient points the way of this one alone."""

    @property
    def is_right(self) -> bool:
        return self.error <= self.tolerance

    @property
    def finding(self) -> str:
        """What the comparison says, and what to look at."""
        if self.captured_norm == self.alone_norm == 0:
            return "no gradient either way: nothing to compare"
        if self.is_right:
            return "right"
        if self.captured_as is not None:
            return f"its rows are tagged as {self.captured_as}"
        if self.alone_norm == 0:
            return "captured a gradient, alone it has none: it carries tags of others' rows"
        if self.captured_norm == 0:
            return "captured nothing: its rows carry no tag, or others' tags"
        if self.cosine > SAME_DIRECTION:
            return (
                f"right direction, {self.captured_norm / self.alone_norm:.4g} times the size: the "
                "loss is normalised differently when others' rows weigh nothing, or some of its "
                "rows carry another tag"
            )
        return (
            "differs: some rows carry a wrong tag, or its tokens attend to another agent's in one "
            "sequence (then use mode='reference')"
        )


@dataclass(frozen=True)
class Audit:
    """The comparison for every agent of a policy."""

    policy: str
    agents: tuple[AgentAudit, ...]

    @property
    def is_right(self) -> bool:
        return all(audit.is_right for audit in self.agents)

    @property
    def verdict(self) -> str:
        wrong = [str(audit.agent) for audit in self.agents if not audit.is_right]
        compared = [audit for audit in self.agents if audit.alone_norm or audit.captured_norm]
        if wrong:
            return f"policy '{self.policy}': tags or attribution are wrong for {', '.join(wrong)}"
        if not compared:
            return f"policy '{self.policy}': no agent had a gradient; nothing was compared"
        return (
            f"policy '{self.policy}': the tags of {len(compared)} of {len(self.agents)} agents are "
            "right, the others had no gradient"
            if len(compared) < len(self.agents)
            else f"policy '{self.policy}': the tags of {_agents(len(self.agents))} are right"
        )

    def __str__(self) -> str:
        lines = [f"{'agent':20} {'captured':>10} {'alone':>10} {'error':>9}  finding"]
        lines += [
            f"{audit.agent!s:20} {audit.captured_norm:10.4g} {audit.alone_norm:10.4g} "
            f"{audit.error:9.1e}  {audit.finding}"
            for audit in self.agents
        ]
        return "\n".join([*lines, self.verdict])


def compare(
    agents: tuple[Agent, ...], own: int, captured_AP: Tensor, alone_P: Tensor, tolerance: float
) -> AgentAudit:
    """Compare agent number `own` with its gradient alone."""
    alone = norm_of(alone_P)
    norms = [norm_of(captured_P) for captured_P in captured_AP]
    inner = inner_products(captured_AP, alone_P[None])[:, 0].tolist()
    cosines = [
        product / (norm * alone) if norm and alone else float("nan")
        for product, norm in zip(inner, norms, strict=True)
    ]
    larger = max(norms[own], alone)
    error = norm_of(captured_AP[own] - alone_P) / larger if larger else 0.0
    others = [a for a in range(len(agents)) if a != own and cosines[a] > SAME_DIRECTION]
    stranger = max(others, key=cosines.__getitem__, default=None)
    is_lost = error > tolerance and not cosines[own] > SAME_DIRECTION
    return AgentAudit(
        agents[own],
        norms[own],
        alone,
        cosines[own],
        error,
        tolerance,
        agents[stranger] if is_lost and stranger is not None else None,
    )


def _agents(num: int) -> str:
    return "its one agent" if num == 1 else f"all {num} agents"
