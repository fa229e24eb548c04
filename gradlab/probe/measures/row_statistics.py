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
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gradlab.arrays import Floats
from gradlab.records import RowStatistics

Ints = NDArray[np.int64]


UNTAGGED = 2
"""In place of the sign of an advantage, where advantages were not tagged."""


@dataclass(frozen=True)
class Rows:
    """Row gradients: exact squared norms, and sketches for inner products."""

    sketch_RK: Floats
    norm2_R: Floats
    agent_R: Ints
    """-1: nobody's."""
    prompt_R: Ints
    sample_R: Ints
    """-1: unknown."""
    sign_R: Ints
    """Sign of the advantage, or `UNTAGGED`."""

    def __len__(self) -> int:
        return len(self.norm2_R)

    @cached_property
    def sketched_own_R(self) -> Floats:
        """Squared norms of the sketches."""
        own: Floats = (self.sketch_RK**2).sum(axis=1)
        return own

    def of(self, agents: Sequence[int]) -> Rows:
        """The rows of some agents."""
        is_in = np.isin(self.agent_R, agents)
        return Rows(
            self.sketch_RK[is_in],
            self.norm2_R[is_in],
            self.agent_R[is_in],
            self.prompt_R[is_in],
            self.sample_R[is_in],
            self.sign_R[is_in],
        )


class RowSums:
    """One role's rows of a step, as the sums that its statistics are made of.

    A batch costs its own rows, whatever came before it.
    """

    def __init__(self) -> None:
        self._rows = self._dead = 0
        self._norm2 = self._sketched_own = self._largest = 0.0
        self._are_samples_known = True
        self._agent, self._prompt, self._cell = Groups(), Groups(), Groups()
        self._episode, self._turn, self._sign = Groups(), Groups(), Groups()

    def add(self, rows: Rows) -> None:
        """Take in the rows of one more batch."""
        if not len(rows):
            return
        self._rows += len(rows)
        self._dead += int((rows.norm2_R == 0).sum())
        self._norm2 += float(rows.norm2_R.sum())
        self._sketched_own += float(rows.sketched_own_R.sum())
        self._largest = float(np.maximum(self._largest, rows.norm2_R.max()))
        self._are_samples_known &= bool((rows.sample_R >= 0).all())
        agent, prompt, sample = rows.agent_R, rows.prompt_R, rows.sample_R
        self._agent.add(rows, agent)
        self._prompt.add(rows, prompt)
        self._cell.add(rows, prompt, agent)
        self._sign.add(rows, rows.sign_R)
        if self._are_samples_known:  # once one is unknown, nobody asks for these
            self._episode.add(rows, prompt, sample)
            self._turn.add(rows, prompt, agent, sample)

    def statistics(self) -> RowStatistics:
        """What these rows say; see `row_statistics`."""
        if self._rows == 0:
            return RowStatistics(agents=0, prompts=0, rows=0)
        num_agents, num_prompts = len(self._agent), len(self._prompt)
        everything = self._pairs(self._agent.total_K[None], self._rows**2)
        agent, prompt, cell = map(self._pairs_in, (self._agent, self._prompt, self._cell))
        if self._are_samples_known:
            episode, turn = map(self._pairs_in, (self._episode, self._turn))
        else:  # each row is its own
            episode = turn = np.array([self._norm2, float(self._rows)])
        signal = (
            mean(everything - agent - prompt + cell)
            if num_agents > 1
            else mean(everything - prompt)
        )
        other_sample = mean(prompt - cell - episode + turn)
        own, norm2 = float(agent[0]), self._norm2
        crosscov, crosscov_se = cross_covariance(self._cell, num_agents)
        group_signal, group_noise = signal_and_noise(everything, prompt, num_prompts)
        positive, negative, opposition = self._sign_split()
        return RowStatistics(
            total=norm2 / self._rows,
            signal=signal,
            within=mean(cell - turn) - signal,
            prompt=other_sample - signal,
            episode=mean(episode - turn) - other_sample if self._are_samples_known else math.nan,
            coherence=float(everything[0]) / own if own > 0 else math.nan,
            crosscov=crosscov,
            crosscov_se=crosscov_se,
            agents=num_agents,
            prompts=num_prompts,
            rows=self._rows,
            dead_rows=self._dead / self._rows,
            top_row=self._largest / norm2 if norm2 > 0 else math.nan,
            dead_prompts=float((self._prompt.norm2_G == 0).mean()),
            group_signal=group_signal,
            group_noise=group_noise,
            positive=positive,
            negative=negative,
            opposition=opposition,
        )

    # Sums of <g_r, g_s> over ordered pairs of rows that share a key, and the numbers of such pairs.
    # Own terms cancel in every difference of them, but for the coherence.

    def _pairs_in(self, groups: Groups) -> Floats:
        return self._pairs(groups.sum_GK, int((groups.size_G**2).sum()))

    def _pairs(self, sum_GK: Floats, number: int) -> Floats:
        inner = float((sum_GK**2).sum()) - self._sketched_own + self._norm2
        return np.array([inner, float(number)])

    def _sign_split(self) -> tuple[float, float, float]:
        """||g+||^2, ||g-||^2 and <g+, g->; see `row_statistics`."""
        if self._sign.find(UNTAGGED) is not None:
            return math.nan, math.nan, math.nan
        norm2, total = [], []
        for sign in (1, -1):
            group = self._sign.find(sign)
            if group is None:
                total.append(np.zeros_like(self._sign.total_K))
                norm2.append(0.0)
                continue
            total.append(self._sign.sum_GK[group])
            own = float(self._sign.norm2_G[group] - self._sign.sketched_own_G[group])
            norm2.append(float(total[-1] @ total[-1]) + own)
        return norm2[0], norm2[1], float(total[0] @ total[1])


class Groups:
    """Sums of row gradients by a key of one or more labels, fed batch by batch."""

    def __init__(self) -> None:
        self._index: dict[tuple[int, ...], int] = {}
        self._sums = np.zeros((0, 0))
        """[G', K] with room to grow: G' >= G."""
        self._numbers = np.zeros((0, 3))
        """[G', 3] rows, squared norms and squared sketches, summed."""

    def __len__(self) -> int:
        return len(self._index)

    @property
    def keys(self) -> Ints:
        """[G, number of labels]"""
        return np.array([*self._index], dtype=np.int64)

    @property
    def sum_GK(self) -> Floats:
        return self._sums[: len(self)]

    @property
    def size_G(self) -> Floats:
        return self._numbers[: len(self), 0]

    @property
    def norm2_G(self) -> Floats:
        """Sum of the rows' exact squared norms."""
        return self._numbers[: len(self), 1]

    @property
    def sketched_own_G(self) -> Floats:
        """The same of their sketches."""
        return self._numbers[: len(self), 2]

    @property
    def total_K(self) -> Floats:
        """[K] sum of all rows."""
        total: Floats = self.sum_GK.sum(axis=0)
        return total

    def find(self, *key: int) -> int | None:
        """Index of a group, if it has rows."""
        return self._index.get(key)

    def add(self, rows: Rows, *labels: Ints) -> None:
        """Add rows to the groups that their labels name."""
        code_R = np.zeros(len(rows), dtype=np.int64)
        for label_R in labels:  # one number in place of several: sorting tuples is slow
            code_R = compact(code_R) * len(rows) + compact(label_R)
        _, first, group_R = np.unique(code_R, return_index=True, return_inverse=True)
        keys = np.stack(labels, axis=1)[first]
        index = self._index
        place = np.array([index.setdefault(key, len(index)) for key in map(tuple, keys.tolist())])
        self._grow(rows.sketch_RK.shape[1])
        order = np.argsort(group_R.reshape(-1), kind="stable")
        starts = np.searchsorted(group_R.reshape(-1)[order], np.arange(len(keys)))
        numbers = np.stack([np.ones(len(rows)), rows.norm2_R, rows.sketched_own_R], axis=1)
        self._sums[place] += np.add.reduceat(rows.sketch_RK[order], starts, axis=0)
        self._numbers[place] += np.add.reduceat(numbers[order], starts, axis=0)

    def _grow(self, num_buckets: int) -> None:
        missing = len(self) - len(self._sums)
        if missing > 0:
            room = max(missing, len(self._sums))  # doubling: a step's batches copy it a few times
            old = self._sums if len(self._sums) else np.zeros((0, num_buckets))
            self._sums = np.concatenate([old, np.zeros((room, num_buckets))])
            self._numbers = np.concatenate([self._numbers, np.zeros((room, 3))])


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
    sign_R = np.full(len(norm2_R), UNTAGGED) if sign_R is None else sign_R
    sums = RowSums()
    sums.add(Rows(sketch_RK, norm2_R, agent_R, prompt_R, sample_R, sign_R))
    return sums.statistics()


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


def cross_covariance(cells: Groups, num_agents: int) -> tuple[float, float]:
    """(mean, standard error) over prompts of the agents' centred cross-covariance; see above.

    `cells`: groups of one prompt and one agent.
    """
    prompt_C, agent_C = cells.keys.T
    answered = np.bincount(compact(prompt_C))[compact(prompt_C)]
    is_shared_C = answered == num_agents
    n = int(is_shared_C.sum()) // num_agents
    if num_agents < 2 or n < 2:
        return math.nan, math.nan
    order = np.lexsort((agent_C[is_shared_C], prompt_C[is_shared_C]))
    centred_XNK = cells.sum_GK[is_shared_C][order].reshape(n, num_agents, -1)
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


def compact(label_R: Ints) -> Ints:
    """Labels as 0, 1, 2, …"""
    return np.unique(label_R, return_inverse=True)[1].reshape(-1)


def mean(pairs: Floats) -> float:
    """Mean inner product of [sum, number] of pairs; NaN if there are none."""
    return float(pairs[0] / pairs[1]) if pairs[1] > 0 else math.nan
