"""Sum up a training step: the step record that goes into the store."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from gradlab.records import SIGNATURE_BUCKETS, RoleLedger, RunLedger, StepRecord
from gradlab.signature import token_counts
from trainers.advantages import GroupCounts, inflation
from trainers.episodes import Episode, Row
from trainers.learn import TokenSums


def mean(values: Sequence[float | bool]) -> float:
    """Mean, or NaN of nothing."""
    return float(np.mean(values)) if len(values) else float("nan")


def lengths(rows: Sequence[Row]) -> NDArray[np.int64]:
    return np.array([len(row.turn.response_ids) for row in rows], dtype=np.int64)


def role_ledger(
    rows: Sequence[Row],
    all_rows: Sequence[Row],
    counts: GroupCounts,
    sums: TokenSums,
    policy_weight: float,
) -> RoleLedger:
    """Ledger of one role. `rows` are the role's, `all_rows` everybody's, `policy_weight` the loss
    weight of all roles of its policy."""
    if not rows:
        return RoleLedger(episodes=0, turns=0, prompt_tokens=0, response_tokens=0)
    reward_B = np.array([row.reward for row in rows])
    own = [row.turn.own_correct for row in rows if row.turn.own_correct is not None]
    length_B = lengths(rows)
    ratio = sums.ratio / sums.tokens if sums.tokens else math.nan
    spread = sums.ratio_squared / sums.tokens - ratio**2 if sums.tokens else math.nan
    logprob = sum(sum(row.turn.logprobs) for row in rows) / length_B.sum()
    return RoleLedger(
        episodes=len({(row.problem, row.sample) for row in rows}),
        turns=len(rows),
        prompt_tokens=sum(len(row.turn.prompt_ids) for row in rows),
        response_tokens=int(length_B.sum()),
        optimizer_steps=sums.updates,
        learning_rate=sums.learning_rate,
        loss_weight=sums.weight / policy_weight if policy_weight else math.nan,
        reward_mean=float(reward_B.mean()),
        reward_std=float(reward_B.std()),
        own_accuracy=mean(own),
        outcome_accuracy=mean([row.outcome for row in rows]),
        advantage_std=float(np.std([row.advantage for row in rows])),
        zero_variance_groups=counts.zero_variance / counts.groups,
        all_right_groups=counts.all_right / counts.groups,
        all_wrong_groups=counts.all_wrong / counts.groups,
        singleton_groups=counts.singleton / counts.groups,
        inflation=inflation(
            np.array([row.reward for row in all_rows]),
            np.array([row.turn.agent.role == rows[0].turn.agent.role for row in all_rows]),
        ),
        entropy=sums.entropy / sums.tokens if sums.tokens else math.nan,
        perplexity=math.exp(min(-logprob, 50.0)),
        kl=sums.kl,
        clip_fraction=sums.clipped / sums.tokens if sums.tokens else math.nan,
        ratio_std=math.sqrt(max(spread, 0.0)) if sums.tokens else math.nan,
        length_mean=float(length_B.mean()),
        length_p95=float(np.percentile(length_B, 95)),
        truncated=mean([row.turn.truncated for row in rows]),
        parse_failures=mean([not row.turn.parse_ok for row in rows]),
        logprob_gap=sums.logprob_gap,
    )


def signature(rows: Sequence[Row]) -> NDArray[np.float64]:
    """[SIGNATURE_BUCKETS] share of response tokens per hash bucket; NaN without tokens."""
    ids = np.array([token for row in rows for token in row.turn.response_ids], dtype=np.int64)
    if not len(ids):
        return np.full(SIGNATURE_BUCKETS, np.nan)
    return token_counts(ids) / len(ids)


def step_record(
    step: int,
    episodes: Sequence[Episode],
    rows: Sequence[Row],
    counts: Mapping[str, GroupCounts],
    sums: Mapping[str, TokenSums],
    policy_by_role: Mapping[str, str],
    seconds: Mapping[str, float],
    ungraded: int = 0,
) -> StepRecord:
    """The record of one step. `sums` are by role; `seconds` has the fields of
    RunLedger that end in '_seconds'."""
    by_role = {role: [r for r in rows if r.turn.agent.role == role] for role in policy_by_role}
    policy_weight: dict[str, float] = {}
    for role, policy in policy_by_role.items():
        policy_weight[policy] = policy_weight.get(policy, 0.0) + sums[role].weight
    nothing = GroupCounts(1, 0, 0)
    return StepRecord(
        step,
        time.time(),
        RunLedger(
            accuracy=mean([episode.outcome for episode in episodes]),
            reward_mean=mean([row.reward for row in rows]),
            episodes=len(episodes),
            failed_episodes=sum(episode.failure is not None for episode in episodes),
            tokens=sum(len(r.turn.prompt_ids) + len(r.turn.response_ids) for r in rows),
            **seconds,
            ungraded=ungraded,
        ),
        {
            role: role_ledger(
                mine,
                rows,
                counts.get(role, nothing),
                sums[role],
                policy_weight[policy_by_role[role]],
            )
            for role, mine in by_role.items()
        },
        {role: signature(mine) for role, mine in by_role.items() if mine},
    )
