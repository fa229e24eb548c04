"""Split a role's gradient into signal, shared prompt and shared episode, from its row gradients.

Rows are turns: row (i, x, k) is what agent i answered to prompt x in sample k. Inner products come
from sketches, so they are unbiased but noisy; a row's inner product with itself is its exact norm.
All estimates are U-statistics: averages over pairs of different rows.

Legend: R rows, K sketch buckets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradlab.arrays import Floats
from gradlab.records import RowStatistics

Ints = NDArray[np.int64]


UNTAGGED = 2
"""In place of the sign of an advantage, where advantages were not tagged."""


@dataclass(frozen=True)
class Rows:
    """Row gradients of a training step: exact squared norms, and sketches for inner products."""

    sketch_RK: Floats
    norm2_R: Floats
    agent_R: Ints
    """-1: nobody's."""
    prompt_R: Ints
    sample_R: Ints
    """-1: unknown."""
    sign_R: Ints
    """Sign of the advantage, or `UNTAGGED`."""

    @classmethod
    def empty(cls, num_buckets: int) -> Rows:
        none = np.zeros(0, dtype=np.int64)
        return cls(np.zeros((0, num_buckets)), np.zeros(0), none, none, none, none)

    def __len__(self) -> int:
        return len(self.norm2_R)

    def with_batch(self, batch: Rows) -> Rows:
        """These rows and those of one more batch."""
        return Rows(
            np.concatenate([self.sketch_RK, batch.sketch_RK]),
            np.concatenate([self.norm2_R, batch.norm2_R]),
            np.concatenate([self.agent_R, batch.agent_R]),
            np.concatenate([self.prompt_R, batch.prompt_R]),
            np.concatenate([self.sample_R, batch.sample_R]),
            np.concatenate([self.sign_R, batch.sign_R]),
        )

    def of(self, agents: Sequence[int]) -> tuple[Floats, Floats, Ints, Ints, Ints, Ints]:
        """The rows of some agents, as arguments of `row_statistics`."""
        is_in = np.isin(self.agent_R, agents)
        return (
            self.sketch_RK[is_in],
            self.norm2_R[is_in],
            self.agent_R[is_in],
            self.prompt_R[is_in],
            self.sample_R[is_in],
            self.sign_R[is_in],
        )


def row_statistics(
    sketch_RK: Floats,
    norm2_R: Floats,
    agent_R: Ints,
    prompt_R: Ints,
    sample_R: Ints,
    sign_R: Ints | None = None,
) -> RowStatistics:
    """Variance components of one role's row gradients; O(R K), NaN where no pair of rows exists.

    `sketch_RK` may be anything with the right expected inner products; full gradients give the
    exact statistics. A role with one agent has no pairs of agents: its `signal` comes from that
    agent's own rows. Rows of unknown sample are each their own, and `episode` is NaN.

    `crosscov` uses the prompts that every agent of the role answered, rows without gradient
    included (dropping those would break its null). It is the mean over prompts of
    sum_{i<j} <g_i(x) - mean g_i, g_j(x) - mean g_j>, with g_i(x) summed over the rows of agent i on
    prompt x; crosscov / crosscov_se is a t statistic whose mean is 0 when sharing a prompt couples
    nothing. Pool it over steps.

    `group_signal` and `group_noise` take prompts as units (rows on one prompt are normalised
    together, so they are dependent): unbiased for ||E g_x||^2 and tr Cov(g_x). `sign_R`: of the
    advantages; `positive`, `negative` and `opposition` are NaN unless all rows have one.
    """
    num_rows = len(norm2_R)
    if num_rows == 0:
        return RowStatistics(agents=0, prompts=0, rows=0)
    agent_R, prompt_R = compact(agent_R), compact(prompt_R)
    is_known = bool((sample_R >= 0).all())
    sample_R = compact(sample_R) if is_known else np.arange(num_rows)
    num_agents, num_prompts = int(agent_R.max()) + 1, int(prompt_R.max()) + 1

    # Sums of <g_r, g_s> over pairs of rows that share a key, and the numbers of such pairs. Own
    # terms cancel in every difference below, but for the last one, the coherence.
    pairs = _Pairs(sketch_RK, norm2_R)
    everything = pairs.sharing(np.zeros(num_rows, dtype=np.int64))
    agent, prompt = pairs.sharing(agent_R), pairs.sharing(prompt_R)
    agent_prompt = pairs.sharing(agent_R, prompt_R)
    episode, turn = pairs.sharing(prompt_R, sample_R), pairs.sharing(agent_R, prompt_R, sample_R)
    signal = (
        mean(everything - agent - prompt + agent_prompt)
        if num_agents > 1
        else mean(everything - prompt)
    )
    other_sample = mean(prompt - agent_prompt - episode + turn)
    total = float(norm2_R.mean())
    own = float(agent[0])
    crosscov, crosscov_se = cross_covariance(sketch_RK, agent_R, prompt_R)
    norm2 = float(norm2_R.sum())
    group_signal, group_noise = signal_and_noise(everything, prompt, num_prompts)
    positive, negative, opposition = sign_split(sketch_RK, norm2_R, sign_R)
    return RowStatistics(
        total=total,
        signal=signal,
        within=mean(agent_prompt - turn) - signal,
        prompt=other_sample - signal,
        episode=mean(episode - turn) - other_sample if is_known else math.nan,
        coherence=float(everything[0]) / own if own > 0 else math.nan,
        crosscov=crosscov,
        crosscov_se=crosscov_se,
        agents=num_agents,
        prompts=num_prompts,
        rows=num_rows,
        dead_rows=float((norm2_R == 0).mean()),
        top_row=float(norm2_R.max()) / norm2 if norm2 > 0 else math.nan,
        dead_prompts=float((np.bincount(prompt_R, norm2_R) == 0).mean()),
        group_signal=group_signal,
        group_noise=group_noise,
        positive=positive,
        negative=negative,
        opposition=opposition,
    )


def icc(statistics: RowStatistics) -> float:
    """Intraclass correlation of agents on one prompt: (prompt + episode) / (total - signal).

    An unmeasured episode component counts as 0.
    """
    episode = 0.0 if math.isnan(statistics.episode) else statistics.episode
    rest = statistics.total - statistics.signal
    return (statistics.prompt + episode) / rest if rest > 0 else math.nan


def deff(statistics: RowStatistics) -> float:
    """Design effect 1 + (N - 1) ICC: N agents on one prompt are worth N / DEFF independent ones."""
    return 1.0 + (statistics.agents - 1.0) * icc(statistics)


def cross_covariance(sketch_RK: Floats, agent_R: Ints, prompt_R: Ints) -> tuple[float, float]:
    """(mean, standard error) over prompts of the agents' centred cross-covariance; see above."""
    num_agents, num_prompts = int(agent_R.max()) + 1, int(prompt_R.max()) + 1
    shape = (num_prompts, num_agents)
    cell_R = prompt_R * num_agents + agent_R
    count_XN = np.bincount(cell_R, minlength=num_prompts * num_agents).reshape(shape)
    is_shared_X = (count_XN > 0).all(axis=1)
    n = int(is_shared_X.sum())
    if num_agents < 2 or n < 2:
        return math.nan, math.nan
    sums = group_sums(sketch_RK, cell_R, num_prompts * num_agents)
    centred_XNK = sums.reshape(*shape, -1)[is_shared_X]
    centred_XNK = centred_XNK - centred_XNK.mean(axis=0)
    together_XK = centred_XNK.sum(axis=1)
    cross_X = ((together_XK**2).sum(axis=1) - (centred_XNK**2).sum(axis=(1, 2))) / 2
    cross_X *= n / (n - 1)  # centring takes one degree of freedom
    return float(cross_X.mean()), float(cross_X.std(ddof=1) / math.sqrt(n))


def signal_and_noise(everything: Floats, prompt: Floats, num_prompts: int) -> tuple[float, float]:
    """mu2 and trS from the inner products over all pairs of rows, and over those of one prompt."""
    if num_prompts < 2:
        return math.nan, math.nan
    signal = float(everything[0] - prompt[0]) / (num_prompts * (num_prompts - 1))
    return signal, float(prompt[0]) / num_prompts - signal


def sign_split(
    sketch_RK: Floats, norm2_R: Floats, sign_R: Ints | None
) -> tuple[float, float, float]:
    """||g+||^2, ||g-||^2 and <g+, g->; see above."""
    if sign_R is None or (sign_R == UNTAGGED).any():
        return math.nan, math.nan, math.nan
    norm2, total = [], []
    for sign in (1, -1):
        sketch_nK = sketch_RK[sign_R == sign]
        total.append(sketch_nK.sum(0))
        own = float(norm2_R[sign_R == sign].sum()) - float((sketch_nK**2).sum())
        norm2.append(float(total[-1] @ total[-1]) + own)
    return norm2[0], norm2[1], float(total[0] @ total[1])


@dataclass(frozen=True)
class _Pairs:
    """Ordered pairs of rows, a row with itself included."""

    sketch_RK: Floats
    norm2_R: Floats

    def sharing(self, *keys: Ints) -> Floats:
        """[sum of <g_r, g_s>, number] over the pairs of rows that agree in all keys."""
        group_R = np.unique(np.stack(keys), axis=1, return_inverse=True)[1].reshape(-1)
        sizes = np.bincount(group_R)
        sums = group_sums(self.sketch_RK, group_R, len(sizes))
        sketched_own = float((self.sketch_RK**2).sum())
        inner = float((sums**2).sum()) - sketched_own + float(self.norm2_R.sum())
        return np.array([inner, float((sizes.astype(np.float64) ** 2).sum())])


def group_sums(sketch_RK: Floats, group_R: Ints, num_groups: int) -> Floats:
    """Sum of the rows of every group."""
    sums = np.zeros((num_groups, sketch_RK.shape[1]))
    np.add.at(sums, group_R, sketch_RK)
    return sums


def compact(label_R: Ints) -> Ints:
    """Labels as 0, 1, 2, …"""
    return np.unique(label_R, return_inverse=True)[1].reshape(-1)


def mean(pairs: Floats) -> float:
    """Mean inner product of [sum, number] of pairs; NaN if there are none."""
    return float(pairs[0] / pairs[1]) if pairs[1] > 0 else math.nan
