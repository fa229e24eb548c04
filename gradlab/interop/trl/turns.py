"""Sum up the rows that a foreign trainer trained on: the step record that goes into the store.

Legend: n rows of one optimizer update.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradlab.records import Agent, RoleLedger, RunLedger, StepRecord

TURN = np.dtype(
    [
        ("agent", "f8"),  # index in the policy's agents
        ("reward", "f8"),  # NaN: no reward function scored it
        ("correct", "f8"),  # 0, 1; NaN: unknown
        ("zero_variance", "f8"),  # 1 if all rewards of its group are equal
        ("all_right", "f8"),  # 1 if, besides, all of the group are correct; NaN: unknown
        ("all_wrong", "f8"),  # 1 if, besides, none is
        ("advantage", "f8"),
        ("truncated", "f8"),
        ("prompt_tokens", "f8"),
        ("tokens", "f8"),  # response tokens
        ("weight", "f8"),  # what its tokens weigh in the loss, up to a factor
        # sums over the response tokens
        ("entropy", "f8"),
        ("logprob", "f8"),
        ("kl", "f8"),
        ("ratio", "f8"),
        ("ratio_squared", "f8"),
        ("clipped", "f8"),
    ]
)
"""One row of an update: a turn."""

Turns = NDArray[np.void]


def step_record(
    step: int,
    wall_time: float,
    agents: Sequence[Agent],
    turns: Turns,
    counts: Mapping[str, NDArray[np.int64]],
    learning_rate: float,
    seconds: Mapping[str, float],
) -> StepRecord:
    """The record of one update's rows. `counts`: `token_counts` by role; `seconds` has the fields
    of RunLedger that end in '_seconds'."""
    role_n = np.array([agents[int(index)].role for index in turns["agent"]], dtype=object)
    roles = dict.fromkeys(agent.role for agent in agents)
    return StepRecord(
        step,
        wall_time,
        RunLedger(
            accuracy=mean(turns["correct"]),
            reward_mean=mean(turns["reward"]),
            episodes=len(turns),
            tokens=float(turns["prompt_tokens"].sum() + turns["tokens"].sum()),
            **seconds,
        ),
        {role: role_ledger(turns[role_n == role], turns, learning_rate) for role in roles},
        {role: count / count.sum() for role, count in counts.items() if count.sum()},
    )


def role_ledger(mine: Turns, everybody: Turns, learning_rate: float) -> RoleLedger:
    """Ledger of one role of a policy that trains all roles."""
    if not len(mine):
        return RoleLedger(episodes=0, turns=0, prompt_tokens=0, response_tokens=0)
    tokens = float(mine["tokens"].sum())

    def per_token(name: str) -> float:
        return float(mine[name].sum()) / tokens if tokens else math.nan

    reward, rewards = finite(mine["reward"]), finite(everybody["reward"])
    ratio, variance = per_token("ratio"), float(rewards.var()) if len(rewards) else 0.0
    weight = float(everybody["weight"].sum())
    return RoleLedger(
        episodes=len(mine),
        turns=len(mine),
        prompt_tokens=float(mine["prompt_tokens"].sum()),
        response_tokens=tokens,
        optimizer_steps=1,
        learning_rate=learning_rate,
        loss_weight=float(mine["weight"].sum()) / weight if weight else math.nan,
        reward_mean=mean(reward),
        reward_std=float(reward.std()) if len(reward) else math.nan,
        own_accuracy=mean(mine["correct"]),
        outcome_accuracy=mean(mine["correct"]),
        advantage_std=float(mine["advantage"].std()),
        zero_variance_groups=mean(mine["zero_variance"]),
        all_right_groups=mean(mine["all_right"]),
        all_wrong_groups=mean(mine["all_wrong"]),
        inflation=float(((reward - rewards.mean()) ** 2).mean()) / variance
        if variance > 0 and len(reward)
        else math.nan,
        entropy=per_token("entropy"),
        perplexity=math.exp(min(-per_token("logprob"), 50.0)),
        kl=per_token("kl"),
        clip_fraction=per_token("clipped"),
        ratio_std=math.sqrt(max(per_token("ratio_squared") - ratio**2, 0.0)),
        length_mean=float(mine["tokens"].mean()),
        length_p95=float(np.percentile(mine["tokens"], 95)),
        truncated=mean(mine["truncated"]),
    )


def finite(values: NDArray[Any]) -> NDArray[Any]:
    known: NDArray[Any] = values[np.isfinite(values)]
    return known


def mean(values: NDArray[Any]) -> float:
    """Mean of what is known, NaN of nothing."""
    known = finite(values)
    return float(known.mean()) if len(known) else math.nan
