"""Split the rows of a step into updates, and an update into micro-batches of bounded size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from trainers.config import TrainConfig
from trainers.episodes import Row


def num_updates(num_rows: int, config: TrainConfig) -> int:
    """Updates of a policy in this step.

    By samples, a role played by N parallel agents gets N times the updates of a role played by
    one: a confound of gradient amplification, which `--updates fixed` removes.
    """
    if config.updates == "fixed":
        return config.fixed_updates
    return math.ceil(num_rows / config.rows_per_update)


def plan_updates(rows: Sequence[Row], config: TrainConfig, key: Sequence[int]) -> list[list[Row]]:
    """The rows of each update of one policy in one step; `key` seeds the shuffle.

    By prompts: whole problems are dealt to updates after a shuffle, so that every update holds all
    agents' rows on its problems. By length: consecutive slices of the rows in order of length,
    which stratifies updates by role (the paper's code under a shared policy).
    """
    if not rows:
        return []
    wanted = num_updates(len(rows), config)
    if config.minibatches == "length":
        by_length = sorted(rows, key=lambda row: row_tokens(row))
        size = math.ceil(len(rows) / wanted)
        if config.updates == "samples":
            size = config.rows_per_update
        return [by_length[start : start + size] for start in range(0, len(rows), size)]
    problems = list(dict.fromkeys(row.problem for row in rows))
    order = np.random.default_rng(np.random.SeedSequence(list(key))).permutation(len(problems))
    updates: list[list[Row]] = []
    for part in np.array_split(order, min(wanted, len(problems))):
        chosen = {problems[i] for i in part}
        updates.append([row for row in rows if row.problem in chosen])
    return updates


def micro_batches(rows: Sequence[Row], max_tokens: int) -> list[list[Row]]:
    """Batches of at most `max_tokens` padded tokens (one row at least), rows of like length.

    Within a batch the rows of an agent stand together, which lets the probe slice instead of copy.
    """
    batches: list[list[Row]] = []
    # Prompts and responses are padded each to their own longest: a long prompt with a short
    # response next to a short prompt with a long response costs more than either.
    prompt = response = 0
    for row in sorted(rows, key=lambda row: (row_tokens(row), row.turn.agent)):
        prompt = max(prompt, len(row.turn.prompt_ids))
        response = max(response, len(row.turn.response_ids))
        if not batches or (prompt + response) * (len(batches[-1]) + 1) > max_tokens:
            batches.append([])
            prompt, response = len(row.turn.prompt_ids), len(row.turn.response_ids)
        batches[-1].append(row)
    return [sorted(batch, key=lambda row: row.turn.agent) for batch in batches]


def row_tokens(row: Row) -> int:
    """Prompt and response tokens of a row."""
    return len(row.turn.prompt_ids) + len(row.turn.response_ids)
