"""Tell the levels of a binomial series from its noise: exact Bayesian product partition.

A series is cut into segments of constant success rate; a cut may happen before every point with a
prior probability, rates are uniform a priori. Sums over all 2^(T-1) partitions are exact (O(T^2)
recursion), and posterior draws are independent: no Markov chain to worry about.

Legend: T points, D draws.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln, logsumexp

Floats = NDArray[np.float64]


def probability_of_drop(
    successes_T: Floats,
    trials_T: Floats,
    delta: float,
    rng: np.random.Generator,
    *,
    num_draws: int = 200,
    expected_changes: float = 2.0,
) -> float:
    """P(rate of the last segment < best earlier segment's - delta); 0 with a single segment."""
    num_points = len(successes_T)
    successes = np.concatenate([[0.0], np.cumsum(successes_T)])
    trials = np.concatenate([[0.0], np.cumsum(trials_T)])
    hit = np.maximum(successes[None, :] - successes[:, None], 0.0)  # [start, end)
    miss = np.maximum((trials[None, :] - trials[:, None]) - hit, 0.0)
    evidence = betaln(hit + 1.0, miss + 1.0)
    log_cut = np.log(min(expected_changes / num_points, 0.5))

    # log_start[s, e]: weight of all partitions of 0..e whose last segment starts at s.
    log_start = np.full((num_points + 1, num_points + 1), -np.inf)
    log_total = np.zeros(num_points + 1)
    for end in range(1, num_points + 1):
        starts = np.arange(end)
        prior = np.where(starts > 0, log_cut, 0.0)
        log_start[:end, end] = log_total[:end] + evidence[:end, end] + prior
        log_total[end] = logsumexp(log_start[:end, end])
    chance = np.exp(log_start - log_total[None, :])
    cumulative_ES = np.cumsum(chance, axis=0).T

    end_D = np.full(num_draws, num_points)
    last_D = np.full(num_draws, np.nan)
    best_D = np.full(num_draws, -np.inf)
    while (end_D > 0).any():
        draws = np.nonzero(end_D > 0)[0]
        ends = end_D[draws]
        pick = rng.random(len(draws))[:, None]
        starts = (cumulative_ES[ends] < pick).sum(axis=1)
        starts = np.minimum(starts, ends - 1)
        rate = rng.beta(hit[starts, ends] + 1.0, miss[starts, ends] + 1.0)
        is_last = ends == num_points
        last_D[draws[is_last]] = rate[is_last]
        earlier = draws[~is_last]
        best_D[earlier] = np.maximum(best_D[earlier], rate[~is_last])
        end_D[draws] = starts
    return float(np.mean(last_D < best_D - delta))
