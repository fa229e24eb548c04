"""Hand the rows that TRL trained on to the ledger: the step record that goes into the store.

Legend: n rows of one optimizer update.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from gradlab import ledger
from gradlab.ledger import TURN, RoleTally, Turns, mean
from gradlab.records import Agent, RunLedger, StepRecord

SUMS = ("weight", "entropy", "kl", "ratio", "ratio_squared", "clipped")
"""Of each row: what its tokens weigh in the loss, up to a factor; sums over its response tokens."""
ROW = np.dtype(TURN.descr + [(name, "f8") for name in SUMS])
"""One row of an update: a turn, and its sums."""


def step_record(
    step: int,
    wall_time: float,
    agents: Sequence[Agent],
    rows: Turns,
    counts: Mapping[str, NDArray[np.int64]],
    seconds: Mapping[str, float],
) -> StepRecord:
    """The record of one update's rows, `ROW` each: every row is an episode of one turn.

    `counts`: `token_counts` by role; `seconds` has the fields of RunLedger that end in '_seconds'.
    """
    rows = rows.copy()
    rows["episode"] = np.arange(len(rows))
    rows["own"] = rows["outcome"]
    run = RunLedger(
        accuracy=mean(rows["outcome"]),
        reward_mean=mean(rows["reward"]),
        episodes=len(rows),
        tokens=float(rows["prompt_tokens"].sum() + rows["tokens"].sum()),
        **seconds,
    )
    roles = dict.fromkeys(agent.role for agent in agents)
    role_n = np.array([agents[int(index)].role for index in rows["agent"]], dtype=object)
    tallies = {role: tally(rows[role_n == role]) for role in roles}
    return ledger.step_record(step, wall_time, run, agents, rows, {"": tallies}, counts)


def tally(rows: Turns) -> RoleTally:
    """What an update did for the role of these rows."""
    if not len(rows):
        return RoleTally()
    tokens = float(rows["tokens"].sum())
    sums = {name: float(rows[name].sum()) for name in SUMS if name != "kl"}
    kl = float(rows["kl"].sum()) / tokens if tokens else math.nan
    return RoleTally(tokens, **sums, updates=1, kl=kl)
