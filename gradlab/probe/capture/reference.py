"""Split a gradient the slow and obvious way: one backward per agent through the same graph.

Legend: A agents, P measured parameters (elements).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from gradlab.probe.layout import Layout
from gradlab.probe.ranks.fsdp1 import ordinary


def backward_per_agent(
    losses: Mapping[int, Tensor], layout: Layout, gradient_AP: Tensor
) -> set[int]:
    """Add each agent's gradient to its row of `gradient_AP`, and all of them to the `grad`s.

    `losses`: by index of the agent, -1 for nobody's. Returns the slots that got a gradient. Cost: a
    backward per loss, and the graph is kept until the last.
    """
    parameters, found = ordinary(layout.parameters, "mode 'reference'"), set()
    summed = [p.grad for p in parameters]
    try:
        for number, (agent, loss) in enumerate(losses.items(), start=1):
            for p in parameters:
                p.grad = None
            loss.backward(retain_graph=number < len(losses))  # type: ignore[no-untyped-call]
            for i, (p, slot) in enumerate(zip(parameters, layout.slots, strict=True)):
                if p.grad is None:
                    continue
                if agent >= 0:
                    own = p.grad.to_dense().reshape(-1).to(gradient_AP.dtype)
                    gradient_AP[agent, slot.start : slot.stop].add_(own)
                    found.add(i)
                before = summed[i]
                summed[i] = p.grad if before is None else before + p.grad
    finally:
        for p, gradient in zip(parameters, summed, strict=True):
            p.grad = gradient
    return found
