"""Weigh responses for the gap between the engine that drew them and the trainer that learns.

An engine and the trainer run the same weights through different kernels, often at different
precision, so that tokens are drawn from probabilities that differ a little from those that are
trained. The importance weight of a token is trainer / sampler, of its log-probabilities before the
first update; weights above the cap are cut (truncated importance sampling, Yao et al. 2025, "Your
efficient RL framework secretly brings you off-policy RL training"), or tokens outside 1 / cap to
cap are left out (masked importance sampling, as in IcePop and TRL).

Legend: T response tokens of a turn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gradlab.ledger import RoleTally
from trainers.config import TrainConfig
from trainers.episodes import Turn

LARGEST_LOG_RATIO = 20.0
"""Nats that a log ratio is bounded to, as in the policy loss: exp of it is far outside any cap."""


def log_ratios(turn: Turn, level: str) -> NDArray[np.float64]:
    """[T] log of trainer / sampler of each token; [1], their sum, by sequence.

    `turn.old_logprobs` are the trainer's.
    """
    assert turn.old_logprobs is not None, "recomputed before"
    difference = np.asarray(turn.old_logprobs, dtype=np.float64) - np.asarray(turn.logprobs)
    if level == "sequence":
        difference = difference.sum(keepdims=True)
    bounded: NDArray[np.float64] = difference.clip(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    return bounded


def is_cut(log_ratio_n: NDArray[np.float64], kind: str, cap: float) -> NDArray[np.bool_]:
    """[n] whether the correction differs from the importance weight; `kind` is tis or mis."""
    too_far = log_ratio_n if kind == "tis" else np.abs(log_ratio_n)
    return np.asarray(too_far > math.log(cap))


def weights(log_ratio_n: NDArray[np.float64], kind: str, cap: float) -> NDArray[np.float32]:
    """[n] what the policy loss is multiplied by: importance weights, cut at `cap` or to nothing."""
    cut = is_cut(log_ratio_n, kind, cap)
    return np.where(cut, cap if kind == "tis" else 0.0, np.exp(log_ratio_n)).astype(np.float32)


def effective_share(log_ratio_n: NDArray[np.float64]) -> float:
    """Effective sample size of importance weights over their number: (sum w)^2 / (n sum w^2)."""
    weight_n = np.exp(log_ratio_n - log_ratio_n.max())
    return float(weight_n.sum() ** 2 / (len(weight_n) * (weight_n**2).sum()))


def corrected(
    turns: Sequence[Turn], config: TrainConfig, tallies: Mapping[str, RoleTally]
) -> list[Turn]:
    """The turns, which have the trainer's log-probabilities, with their corrections.

    Notes in the tallies of their roles, by token or by sequence, how large a sample is left by the
    weights before they are cut, and the share that is cut.
    """
    kind, cap = config.rollout_correction, config.rollout_correction_cap
    if kind == "none":
        return list(turns)
    ratios = [log_ratios(turn, config.rollout_correction_level) for turn in turns]
    for role, tally in tallies.items():
        mine = [r for turn, r in zip(turns, ratios, strict=True) if turn.agent.role == role]
        if mine:
            together = np.concatenate(mine)
            tally.correction_ess = effective_share(together)
            tally.correction_cut = float(is_cut(together, kind, cap).mean())
    return [
        replace(
            turn,
            correction=np.broadcast_to(weights(ratio, kind, cap), len(turn.response_ids)),
        )
        for turn, ratio in zip(turns, ratios, strict=True)
    ]
