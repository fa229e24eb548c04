"""Find an agent without a gradient among parallel ones that have theirs.

Parallel agents of a role are alike, so they have a gradient about equally often. One that has none,
in nearly every update, while each of its siblings has one in most, does not speak, is not tagged,
or is paid the same whatever it says. Exact zeros of the record are counted: there is no noise, and
no p-value.

Legend: U updates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.detectors.frozen import share_interval
from analysis.detectors.shape import Context, Detector, Judged, Kind
from analysis.findings import Finding, percent
from gradlab.records import Agent
from gradlab.store.run import Run

SILENT_AGENT = Kind(
    "silent agent",
    "gradients by agent of a role with parallel agents, over at least 20 updates",
    (("check updates", "one agent of {role} gets no gradient while its siblings do"),),
)


@dataclass(frozen=True)
class SilentAgentRule(Detector):
    """Thresholds of the rule."""

    kinds: tuple[Kind, ...] = (SILENT_AGENT,)
    min_empty: float = 0.9
    """Share of the updates without its gradient: left out, not seldom asked."""
    max_sibling: float = 0.5
    """Largest share of any sibling: above, the role as a whole has little to learn from."""
    min_updates: int = 20
    """With agents that are alike, shares this far apart are then rarer than one in a million."""

    def judge(self, context: Context) -> Judged:
        """One finding per role, which names the agents."""
        run = context.run
        return Judged(tuple(f for role in run.roles if (f := self._role(run, role))))

    def _role(self, run: Run, role: str) -> Finding | None:
        agents = run.agents(role)
        if len(agents) < 2:
            return None
        empty = {agent: share for agent in agents if (share := self.measure(run, agent))}
        if len(empty) < len(agents):
            return None  # of one of them too little is known
        silent = [a for a, (count, total) in empty.items() if count >= self.min_empty * total]
        speaking = [a for a in agents if a not in silent]
        if not silent or not speaking:
            return None
        largest = max(empty[a][0] / empty[a][1] for a in speaking)
        if largest > self.max_sibling:
            return None
        count, total = max(empty[a] for a in silent)
        lower, upper = share_interval(count, total)
        names = ", ".join(map(str, silent))
        return Finding(
            "silent agent",
            role,
            f"{names} of {len(agents)} parallel agents got no gradient in {count} of {total} "
            f"updates, while the others did in {percent(1 - largest)} or more.",
            count / total,
            "share of updates",
            "high",
            evidence=(
                f"norm exactly 0 in {percent(count / total)} of the updates (95 % interval "
                f"{percent(lower)} to {percent(upper)}), in {percent(largest)} at most of a "
                "sibling's",
                "it does not speak, its rows are not tagged, or its rewards never differ",
            ),
            lower=lower,
            upper=upper,
        )

    def measure(self, run: Run, agent: Agent) -> tuple[int, int] | None:
        """Updates without a gradient of the agent, and all of them; None for too few."""
        norm_U: NDArray[np.float64] = np.asarray(run.norm(agent, per="update").value_T)
        known = np.isfinite(norm_U)
        if known.sum() < self.min_updates:
            return None
        return int((norm_U[known] == 0).sum()), int(known.sum())
