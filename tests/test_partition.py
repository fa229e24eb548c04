"""The exact product partition against a sum over all partitions."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from scipy.special import betaln
from scipy.stats import beta

from analysis.partition import probability_of_drop


def test_probability_equals_enumeration_of_all_partitions() -> None:
    correct = np.array([6.0, 7.0, 3.0, 2.0])
    trials = np.full(4, 10.0)
    delta, rng = 0.05, np.random.default_rng(0)
    grid = np.linspace(0, 1, 2001)
    total = below = 0.0
    for count in range(4):
        for cuts in combinations(range(1, 4), count):
            edges = [0, *cuts, 4]
            segments = list(pairwise(edges))
            hit = [correct[a:b].sum() for a, b in segments]
            miss = [trials[a:b].sum() - h for (a, b), h in zip(segments, hit, strict=True)]
            weight = 0.5**count * np.exp(
                sum(betaln(h + 1, m + 1) for h, m in zip(hit, miss, strict=True))
            )
            total += weight
            if count:  # P(last < best earlier - delta) by integrating over the best one
                cdf = np.prod(
                    [
                        beta.cdf(grid, h + 1, m + 1)
                        for h, m in zip(hit[:-1], miss[:-1], strict=True)
                    ],
                    axis=0,
                )
                last = beta.cdf(grid - delta, hit[-1] + 1, miss[-1] + 1)
                below += weight * float(np.sum(np.diff(cdf) * (last[1:] + last[:-1]) / 2))
    # expected_changes 2 over 4 points is the prior 0.5 used above.
    measured = probability_of_drop(correct, trials, delta, rng, num_draws=40_000)
    assert measured == pytest.approx(below / total, abs=0.01)


def test_constant_series_has_no_drop() -> None:
    rng = np.random.default_rng(1)
    assert probability_of_drop(np.full(30, 50.0), np.full(30, 100.0), 0.05, rng) < 0.05
