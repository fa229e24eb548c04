"""Sum up the turns of a training step, whoever trained on them: the step record of the store.

Legend: n turns of one step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradlab.records import Agent, RoleLedger, RunLedger, StepRecord

TURN = np.dtype(
    [
        ("agent", "f8"),  # index in the list of agents
        ("episode", "f8"),  # number of its episode in the step
        ("reward", "f8"),  # NaN: nothing scored it
        ("own", "f8"),  # 1 if right by itself, else 0; NaN: unknown, or the role cannot be
        ("outcome", "f8"),  # 1 if its episode was solved, else 0; NaN: unknown
        ("group_size", "f8"),  # turns whose rewards are compared with its own, itself included
        ("zero_variance", "f8"),  # 1 if there are several and their rewards are equal
        ("all_right", "f8"),  # 1 if, besides, the episodes of all were solved; NaN: unknown
        ("all_wrong", "f8"),  # 1 if, besides, none was
        ("advantage", "f8"),
        ("truncated", "f8"),
        ("parse_failed", "f8"),
        ("prompt_tokens", "f8"),
        ("tokens", "f8"),  # response tokens
        ("logprob", "f8"),  # sum over the response tokens
    ]
)
"""One turn of a step, as numbers; NaN where the trainer does not know."""

Turns = NDArray[np.void]


@dataclass
class RoleTally:
    """What a step did for one role: token sums, updates, and two monitored means."""

    tokens: float = 0.0
    entropy: float = 0.0
    ratio: float = 0.0
    ratio_squared: float = 0.0
    clipped: float = 0.0
    weight: float = 0.0
    """Loss weight of the role's tokens, summed over updates."""
    updates: int = 0
    kl: float = math.nan
    """Mean k3 per token against the base model."""
    logprob_gap: float = math.nan
    """Mean |sampler - trainer| log-prob per token."""
    correction_ess: float = math.nan
    """Effective sample size of the importance weights of a rollout correction, as a share."""
    correction_cut: float = math.nan
    """Share of them that the correction cut."""
    compared_turns: float = 0.0
    """Turns that the two are means over; 0 where nobody said."""
    compared_tokens: float = 0.0

    def compared(self, tokens: float, gap: float, divergence: float) -> None:
        """Take another turn into the monitored means, by its sums over tokens."""
        before, self.compared_tokens = self.compared_tokens, self.compared_tokens + tokens
        for name, total in (("logprob_gap", gap), ("kl", divergence)):
            known = getattr(self, name) * before if before else 0.0
            setattr(self, name, (known + total) / self.compared_tokens)
        self.compared_turns += 1

    def per_token(self, name: str) -> float:
        return float(getattr(self, name)) / self.tokens if self.tokens else math.nan


def step_record(
    step: int,
    wall_time: float,
    run: RunLedger,
    agents: Sequence[Agent],
    turns: Turns,
    tallies: Mapping[str, Mapping[str, RoleTally]],
    token_counts: Mapping[str, NDArray[np.int64]],
    components: Mapping[str, Mapping[str, float]] | None = None,
) -> StepRecord:
    """The record of one step of the roles of `agents`.

    `tallies`: policy -> role -> what the step did for it; none for roles that are not trained.
    `token_counts` are by role, then signature bucket; `components` of the reward by role.
    """
    role_n = np.array([agents[int(index)].role for index in turns["agent"]], dtype=object)
    trained = {role for by_role in tallies.values() for role in by_role}
    # Frozen roles learn nothing, whatever the normalization.
    compared = turns[np.isin(role_n, [*trained])] if trained else turns
    roles: dict[str, RoleLedger] = {}
    for role in dict.fromkeys(agent.role for agent in agents):
        mine = [by_role for by_role in tallies.values() if role in by_role]
        weight = sum(tally.weight for by_role in mine for tally in by_role.values())
        tally = joined([by_role[role] for by_role in mine])
        roles[role] = role_ledger(turns[role_n == role], compared, tally, weight)
    signatures = {role: count / count.sum() for role, count in token_counts.items() if count.sum()}
    return StepRecord(step, wall_time, run, roles, signatures, components or {})


def joined(tallies: Sequence[RoleTally]) -> RoleTally:
    """The tally of a role out of those of its policies; means are weighted by tokens."""
    if len(tallies) == 1:
        return tallies[0]
    names = ("tokens", "entropy", "ratio", "ratio_squared", "clipped", "weight", "updates",
             "compared_turns", "compared_tokens")  # fmt: skip
    whole = RoleTally(**{name: sum(getattr(t, name) for t in tallies) for name in names})
    for name in ("kl", "logprob_gap", "correction_ess", "correction_cut"):
        known = [(getattr(t, name), t.tokens) for t in tallies if math.isfinite(getattr(t, name))]
        total = sum(tokens for _, tokens in known)
        if len({value for value, _ in known}) == 1:
            setattr(whole, name, known[0][0])
        elif total:
            setattr(whole, name, sum(value * tokens for value, tokens in known) / total)
    return whole


def role_ledger(
    mine: Turns, everybody: Turns, tally: RoleTally, policy_weight: float
) -> RoleLedger:
    """Ledger of one role: `mine` are its turns, `everybody` those of all roles, `policy_weight` the
    loss weight of all roles of its policies."""
    if not len(mine):
        return RoleLedger(episodes=0, turns=0, prompt_tokens=0, response_tokens=0)
    reward, tokens = finite(mine["reward"]), float(mine["tokens"].sum())
    spread = tally.per_token("ratio_squared") - tally.per_token("ratio") ** 2
    logprob = float(mine["logprob"].sum()) / tokens if tokens else math.nan
    return RoleLedger(
        episodes=len(np.unique(mine["episode"])),
        turns=len(mine),
        prompt_tokens=float(mine["prompt_tokens"].sum()),
        response_tokens=tokens,
        optimizer_steps=tally.updates,
        loss_weight=tally.weight / policy_weight if policy_weight else math.nan,
        reward_mean=mean(reward),
        reward_std=float(reward.std()) if len(reward) else math.nan,
        own_accuracy=mean(mine["own"]),
        outcome_accuracy=mean(mine["outcome"]),
        advantage_std=float(mine["advantage"].std()),
        zero_variance_groups=share_of_groups(mine, mine["zero_variance"]),
        all_right_groups=share_of_groups(mine, mine["all_right"]),
        all_wrong_groups=share_of_groups(mine, mine["all_wrong"]),
        singleton_groups=share_of_groups(mine, mine["group_size"] == 1),
        inflation=inflation(everybody["reward"], mine["reward"]),
        entropy=tally.per_token("entropy"),
        perplexity=math.exp(min(-logprob, 50.0)),
        kl=tally.kl,
        clip_fraction=tally.per_token("clipped"),
        ratio_std=math.sqrt(max(spread, 0.0)),
        length_mean=float(mine["tokens"].mean()),
        length_p95=float(np.percentile(mine["tokens"], 95)),
        truncated=mean(mine["truncated"]),
        parse_failures=mean(mine["parse_failed"]),
        logprob_gap=tally.logprob_gap,
        correction_ess=tally.correction_ess,
        correction_cut=tally.correction_cut,
        compared_turns=tally.compared_turns or math.nan,
    )


def share_of_groups(turns: Turns, is_so_n: NDArray[Any]) -> float:
    """Share of the groups of these turns for which something holds; NaN where it is unknown.

    Every turn of a group says the same, so each counts for its part of the group.
    """
    part_n = 1.0 / turns["group_size"]
    is_known = np.isfinite(is_so_n) & np.isfinite(part_n)
    known = float(part_n[is_known].sum())
    return float((part_n * is_so_n)[is_known].sum()) / known if known else math.nan


def inflation(everybody_n: NDArray[np.float64], mine_n: NDArray[np.float64]) -> float:
    """Dr. MAS kappa of a role: [sigma_k^2 + (mu_k - mu)^2] / sigma^2 (arXiv 2602.08847, Lemma 4.2).

    How much global normalization would inflate the second moment of the role's rewards; NaN if all
    rewards agree.
    """
    rewards, own = finite(everybody_n), finite(mine_n)
    variance = float(rewards.var()) if len(rewards) else 0.0
    if variance == 0 or not len(own):
        return math.nan
    return float((own.var() + (own.mean() - rewards.mean()) ** 2) / variance)


def finite(values: NDArray[Any]) -> NDArray[Any]:
    known: NDArray[Any] = values[np.isfinite(values)]
    return known


def mean(values: NDArray[Any] | Sequence[float | bool]) -> float:
    """Mean of what is known, NaN of nothing."""
    known = finite(np.asarray(values, dtype=np.float64))
    return float(known.mean()) if len(known) else math.nan
