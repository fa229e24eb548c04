"""Find policies whose parameters do not move although the optimizer is asked to move them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.accuracy import wilson
from analysis.findings import Finding, percent
from gradlab.store import Run


@dataclass(frozen=True)
class StillRule:
    """Thresholds of the rule."""

    min_share: float = 0.5
    """Of the updates that moved nothing; a few without reward spread are ordinary."""
    resolution: float = 1e-8
    """||step|| / ||parameters|| that counts as nothing: a sixth of float32's rounding."""
    min_updates: int = 5
    """Below, the interval of the share reaches below a half even if none moved."""

    def __call__(self, run: Run) -> list[Finding]:
        """One finding per policy that stands still."""
        findings = []
        for policy in run.policies:
            rate, moved, weight, gradient = (
                _metric(run, name, policy.name)
                for name in ("learning_rate", "update_norm", "weight_norm", "grad_norm")
            )
            asked = (rate > 0) & np.isfinite(moved)
            if asked.sum() < self.min_updates:
                continue
            smallest = np.where(np.isfinite(weight), self.resolution * weight, 0.0)
            still = asked & (moved <= smallest)
            share = still.sum() / asked.sum()
            if share < self.min_share:
                continue
            lower, upper = share_interval(int(still.sum()), int(asked.sum()))
            empty = float(np.mean(~(gradient[still] > 0)))
            why = (
                "their gradients are zero: no reward spread, or no rows of the policy"
                if empty > 0.5
                else "their gradients are not zero: frozen parameters, a learning rate below the "
                "rounding of the parameters, or an optimizer of other parameters"
            )
            findings.append(
                Finding(
                    "still adapter",
                    policy.name,
                    f"Policy '{policy.name}' does not move: {percent(share)} of its updates "
                    "changed nothing.",
                    share,
                    "share of updates",
                    "high",
                    evidence=(
                        f"{int(still.sum())} of {int(asked.sum())} updates at a positive learning "
                        f"rate (95 % interval {percent(lower)} to {percent(upper)})",
                        why,
                    ),
                    lower=lower,
                    upper=upper,
                )
            )
        return findings


def _metric(run: Run, name: str, policy: str) -> NDArray[np.float64]:
    return np.asarray(run.update_metric(name, policy).value_T, dtype=np.float64)


def share_interval(count: int, total: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson)."""
    if not total:
        return 0.0, 1.0
    lower, upper = wilson(np.array([float(count)]), np.array([float(total)]))
    return max(float(lower[0]), 0.0), min(float(upper[0]), 1.0)
