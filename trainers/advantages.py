"""Turn rewards into group-relative advantages (GRPO), counting the groups that teach nothing.

A group holds the rewards that are compared with each other. Its key is a declared option:

    role         (problem, role)            the paper's code voting: one group of N * K
    role_number  (problem, role, number)    the paper's maths voting: N groups of K
    role_turn    (problem, role, number, round)  AT-GRPO: one agent's turn of one round
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainers.config import TrainConfig
from trainers.episodes import Row

EPSILON = 1e-6
"""Added to the standard deviation, as in verl."""


@dataclass(frozen=True)
class GroupCounts:
    """What one role's groups were like in a step."""

    groups: int
    zero_variance: int
    """Groups of several equal rewards: their advantage is 0, they stay in the denominator."""
    singleton: int
    all_right: int = 0
    """Of those with zero variance: every turn's episode was solved."""
    all_wrong: int = 0
    """Of those with zero variance: no turn's episode was solved."""


GroupKey = tuple[str, str, int, int]


def group_key(row: Row, group_by: str) -> GroupKey:
    """(problem, role, number, round) of the group of `row`; 0 for what the group ignores."""
    number = 0 if group_by == "role" else row.turn.agent.number
    return (
        row.problem,
        row.turn.agent.role,
        number,
        row.turn.round if group_by == "role_turn" else 0,
    )


def group_advantages(
    reward_K: NDArray[np.float64], *, normalize_std: bool, singleton: str
) -> NDArray[np.float64]:
    """[K] advantages of one group: (r - mean) / (std + 1e-6), std with ddof=1 (DeepSeekMath).

    Without `normalize_std` the mean is subtracted only (Dr. GRPO). A group of one gets 0, or its
    raw reward with `singleton='reward'`.
    """
    if len(reward_K) == 1:
        return reward_K.copy() if singleton == "reward" else np.zeros(1)
    centred: NDArray[np.float64] = reward_K - reward_K.mean()
    return centred / (reward_K.std(ddof=1) + EPSILON) if normalize_std else centred


def with_advantages(
    rows: Sequence[Row], config: TrainConfig
) -> tuple[list[Row], dict[str, GroupCounts]]:
    """The rows with their advantages, and the group counts of each role."""
    members: dict[GroupKey, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        members[group_key(row, config.group_by)].append(index)
    advantage_B = np.zeros(len(rows))
    tally: dict[str, list[int]] = defaultdict(lambda: [0] * 5)
    for (_, role, *_), indices in members.items():
        reward_K = np.array([rows[i].reward for i in indices])
        advantage_B[indices] = group_advantages(
            reward_K, normalize_std=config.normalize_std, singleton=config.singleton
        )
        is_single = len(indices) == 1
        tally[role][0] += 1
        is_flat = not is_single and bool(np.ptp(reward_K) == 0)
        tally[role][1] += is_flat
        tally[role][2] += is_single
        tally[role][3] += is_flat and all(rows[i].outcome for i in indices)
        tally[role][4] += is_flat and not any(rows[i].outcome for i in indices)
    credited = [
        dataclasses.replace(row, advantage=float(advantage))
        for row, advantage in zip(rows, advantage_B, strict=True)
    ]
    return credited, {role: GroupCounts(*counts) for role, counts in tally.items()}


def inflation(reward_B: NDArray[np.float64], role_mask_B: NDArray[np.bool_]) -> float:
    """Dr. MAS kappa of a role: [sigma_k^2 + (mu_k - mu)^2] / sigma^2 (arXiv 2602.08847, Lemma 4.2).

    How much global normalization would inflate the role's second moment; NaN if all rewards agree.
    """
    variance = reward_B.var()
    if variance == 0 or not role_mask_B.any():
        return float("nan")
    own = reward_B[role_mask_B]
    return float((own.var() + (own.mean() - reward_B.mean()) ** 2) / variance)
