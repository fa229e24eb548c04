"""Find policies whose parameters do not move, or get no gradient, although they should."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.cliff.accuracy import wilson
from analysis.detectors.shape import Context, Detector, Judged, Kind
from analysis.findings import Finding, percent
from gradlab.records import PolicyMeta
from gradlab.store.run import Run

STILL = Kind(
    "still adapter",
    "learning rate and length of the step of every update",
    (("check updates", "updates change no parameter"),),
)
NO_GRADIENT = Kind(
    "no gradient",
    "gradient norms, and the reward spread of groups",
    (("check updates", "rewards differ and the gradient is exactly zero"),),
)


@dataclass(frozen=True)
class StillRule(Detector):
    """Thresholds of the rule."""

    kinds: tuple[Kind, ...] = (STILL, NO_GRADIENT)
    min_share: float = 0.5
    """Of the updates that moved nothing; a few without reward spread are ordinary."""
    resolution: float = 1e-8
    """||step|| / ||parameters|| that counts as nothing: a sixth of float32's rounding."""
    min_updates: int = 5
    """Below, the interval of the share reaches below a half even if none moved."""
    min_empty: float = 0.9
    """Of the updates with reward spread whose gradient is exactly zero: then it is no accident."""

    def judge(self, context: Context) -> Judged:
        """One finding per policy that stands still, or that no gradient reaches."""
        run, findings = context.run, []
        for policy in run.policies:
            found = self._no_gradient(run, policy) or self._still(run, policy)
            if found:
                findings.append(found)
        return Judged(tuple(findings))

    def _no_gradient(self, run: Run, policy: PolicyMeta) -> Finding | None:
        """Exact zeros where advantages are not: the loss does not reach the parameters."""
        gradient = _gradient(run, policy)
        rate = _metric(run, "learning_rate", policy.name)
        spread, what = _spread(run, policy)
        asked = np.isfinite(gradient) & ~(rate <= 0) & spread
        empty = asked & (gradient == 0)
        count, total = int(empty.sum()), int(asked.sum())
        if total < self.min_updates or count < self.min_empty * total:
            return None
        lower, upper = share_interval(count, total)
        each = "steps" if policy.mode == "imported" else "updates"
        of = f" of policy '{policy.name}'" if len(run.policies) > 1 else ""
        return Finding(
            "no gradient",
            policy.name,
            f"No gradient in {count} of {total} {each}{of} although {what}: the trained parameters "
            "do not reach the loss (frozen adapter, detached graph, wrong optimizer).",
            count / total,
            f"share of {each}",
            "high",
            evidence=(
                f"grad_norm is exactly 0 in {count} of the {total} {each} whose rewards differ "
                f"(95 % interval {percent(lower)} to {percent(upper)}): rounding gives no zeros",
            ),
            lower=lower,
            upper=upper,
        )

    def _still(self, run: Run, policy: PolicyMeta) -> Finding | None:
        rate, moved, weight, gradient = (
            _metric(run, name, policy.name)
            for name in ("learning_rate", "update_norm", "weight_norm", "grad_norm")
        )
        asked = (rate > 0) & np.isfinite(moved)
        if asked.sum() < self.min_updates:
            return None
        smallest = np.where(np.isfinite(weight), self.resolution * weight, 0.0)
        still = asked & (moved <= smallest)
        share = still.sum() / asked.sum()
        if share < self.min_share:
            return None
        lower, upper = share_interval(int(still.sum()), int(asked.sum()))
        empty = float(np.mean(~(gradient[still] > 0)))
        why = (
            "their gradients are zero: no reward spread, or no rows of the policy"
            if empty > 0.5
            else "their gradients are not zero: frozen parameters, a learning rate below the "
            "rounding of the parameters, or an optimizer of other parameters"
        )
        return Finding(
            "still adapter",
            policy.name,
            f"Policy '{policy.name}' does not move: {percent(share)} of its updates changed "
            "nothing.",
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


def _gradient(run: Run, policy: PolicyMeta) -> NDArray[np.float64]:
    """[U] norm of the policy's gradient; of its roles', where only those were logged."""
    whole = _metric(run, "grad_norm", policy.name)
    # Of a role of several policies, its agents in this one.
    parts = [
        run.norm(who, per="update").value_T
        for who in dict.fromkeys(
            a.role if len(run.meta.policies_of(a.role)) == 1 else a for a in policy.agents
        )
    ]
    if not parts:
        return whole
    return np.where(np.isfinite(whole), whole, np.sum(parts, axis=0))


def _spread(run: Run, policy: PolicyMeta) -> tuple[NDArray[np.bool_], str]:
    """[U] whether rewards that are compared differ in the update's step, and how that is known."""
    step_U = run.update_metric("rows", policy.name).step_T
    spread_U = np.zeros(len(step_U), dtype=np.bool_)
    is_by_group = False
    for role in {agent.role for agent in policy.agents}:
        flat_T = np.asarray(run.ledger("zero_variance_groups", role).value_T)
        alone_T = np.nan_to_num(np.asarray(run.ledger("singleton_groups", role).value_T))
        # A group of one has no spread, and is not counted among those without.
        differ_T = flat_T + alone_T < 1 - 1e-6
        if np.isfinite(flat_T).any():
            is_by_group = True
        else:
            differ_T = np.asarray(run.ledger("reward_std", role).value_T) > 0
        spread_U |= np.isin(step_U, run.steps[differ_T])
    return spread_U, "groups have reward spread" if is_by_group else "rewards differ"


def _metric(run: Run, name: str, policy: str) -> NDArray[np.float64]:
    return np.asarray(run.update_metric(name, policy).value_T, dtype=np.float64)


def share_interval(count: int, total: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson)."""
    if not total:
        return 0.0, 1.0
    lower, upper = wilson(np.array([float(count)]), np.array([float(total)]))
    return max(float(lower[0]), 0.0), min(float(upper[0]), 1.0)
