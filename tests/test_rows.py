"""Row statistics against a loop over all pairs, and against simulations with known truth."""

from __future__ import annotations

import math
from dataclasses import fields
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from gradlab.probe.measures.row_statistics import (
    UNTAGGED,
    Rows,
    RowSums,
    deff,
    icc,
    row_statistics,
)
from gradlab.records import RowStatistics

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


def brute_force(g_RD: Array, agent_R: Ints, prompt_R: Ints, sample_R: Ints) -> dict[str, float]:
    """The definitions, pair by pair."""
    found: dict[str, list[float]] = {key: [] for key in ("signal", "within", "prompt", "episode")}
    rows = range(len(g_RD))
    for r, s in product(rows, rows):
        inner = float(g_RD[r] @ g_RD[s])
        same_agent = agent_R[r] == agent_R[s]
        same_prompt, same_sample = prompt_R[r] == prompt_R[s], sample_R[r] == sample_R[s]
        if not same_prompt and not same_agent:
            found["signal"].append(inner)
        if same_prompt and same_agent and not same_sample:
            found["within"].append(inner)
        if same_prompt and not same_agent:
            found["episode" if same_sample else "prompt"].append(inner)
    mean = {key: float(np.mean(values)) for key, values in found.items()}
    agents = sorted(set(agent_R.tolist()))
    sums = [g_RD[agent_R == agent].sum(0) for agent in agents]
    return {
        "total": float(np.mean([g @ g for g in g_RD])),
        "signal": mean["signal"],
        "within": mean["within"] - mean["signal"],
        "prompt": mean["prompt"] - mean["signal"],
        "episode": mean["episode"] - mean["prompt"],
        "coherence": float(np.sum(sums, 0) @ np.sum(sums, 0)) / sum(float(s @ s) for s in sums),
    }


def design(num_agents: int, num_prompts: int, num_samples: int) -> tuple[Ints, Ints, Ints]:
    """Agent, prompt and sample of every row of a complete design."""
    cells = np.array([*product(range(num_agents), range(num_prompts), range(num_samples))])
    return cells[:, 0], cells[:, 1], cells[:, 2]


def statistics_of(g_RD: Array, agent_R: Ints, prompt_R: Ints, sample_R: Ints) -> RowStatistics:
    return row_statistics(g_RD, (g_RD**2).sum(1), agent_R, prompt_R, sample_R)


@pytest.mark.parametrize("is_complete", [True, False])
def test_components_equal_a_loop_over_all_pairs(is_complete: bool) -> None:
    rng = np.random.default_rng(0)
    agent_R, prompt_R, sample_R = design(3, 4, 3)
    if not is_complete:
        keep = rng.random(len(agent_R)) < 0.7
        agent_R, prompt_R, sample_R = agent_R[keep], prompt_R[keep], sample_R[keep]
    g_RD = rng.normal(size=(len(agent_R), 6)) + rng.normal(size=(4, 6))[prompt_R]
    found = statistics_of(g_RD, agent_R + 5, prompt_R * 7, sample_R)
    for name, expected in brute_force(g_RD, agent_R, prompt_R, sample_R).items():
        assert getattr(found, name) == pytest.approx(expected, abs=1e-12), name
    assert (found.agents, found.prompts, found.rows) == (3, 4, len(agent_R))


def test_cross_covariance_equals_its_definition() -> None:
    rng = np.random.default_rng(1)
    agent_R, prompt_R, sample_R = design(3, 5, 2)
    g_RD = rng.normal(size=(len(agent_R), 4))
    g_XND = np.zeros((5, 3, 4))
    for row, (agent, prompt) in enumerate(zip(agent_R, prompt_R, strict=True)):
        g_XND[prompt, agent] += g_RD[row]
    g_XND -= g_XND.mean(0)
    t_X = [
        sum(float(g_XND[x, i] @ g_XND[x, j]) for i in range(3) for j in range(i)) for x in range(5)
    ]
    found = statistics_of(g_RD, agent_R, prompt_R, sample_R)
    assert found.crosscov == pytest.approx(np.mean(t_X) * 5 / 4)
    assert found.crosscov / found.crosscov_se == pytest.approx(stats.ttest_1samp(t_X, 0).statistic)


def test_planted_components_are_recovered() -> None:
    rng = np.random.default_rng(2)
    agent_R, prompt_R, sample_R = design(3, 64, 8)
    dim, found = 200, []
    for _ in range(20):
        # E||.||^2 of each part: signal 4 (fixed), prompt 2, episode 1, own noise 3; total 10.
        signal = np.full(dim, math.sqrt(4 / dim))
        prompt = rng.normal(size=(64, dim)) * math.sqrt(2 / dim)
        episode = rng.normal(size=(64, 8, dim)) * math.sqrt(1 / dim)
        noise = rng.normal(size=(len(agent_R), dim)) * math.sqrt(3 / dim)
        g_RD = signal + prompt[prompt_R] + episode[prompt_R, sample_R] + noise
        found.append(statistics_of(g_RD, agent_R, prompt_R, sample_R))
    expected = {"total": 10, "signal": 4, "within": 2, "prompt": 2, "episode": 1}
    for name, value in expected.items():
        assert np.mean([getattr(s, name) for s in found]) == pytest.approx(value, rel=0.05), name
    assert np.mean([icc(s) for s in found]) == pytest.approx((2 + 1) / (10 - 4), rel=0.05)
    assert np.mean([deff(s) for s in found]) == pytest.approx(1 + 2 * 0.5, rel=0.05)


def bandit_rows(
    rng: np.random.Generator, num_prompts: int, num_samples: int, is_random: bool
) -> tuple[Array, Ints, Ints, Ints]:
    """GRPO row gradients of a softmax policy on shared prompts: exact scores, 3 agents, 6 actions.

    Agents on one prompt share its score subspace, which is what breaks naive permutation tests.
    """
    agent_R, prompt_R, sample_R = design(3, num_prompts, num_samples)
    features_XVD = rng.normal(size=(num_prompts, 6, 24)) * rng.uniform(0.3, 2, (num_prompts, 1, 1))
    logits_XV = features_XVD @ rng.normal(size=24) * 0.3
    p_XV = np.exp(logits_XV) / np.exp(logits_XV).sum(1, keepdims=True)
    action_R = np.array([rng.choice(6, p=p_XV[x]) for x in prompt_R])
    reward_R = rng.random(len(action_R)) < 0.5 if is_random else action_R == 0
    reward = reward_R.astype(float).reshape(3, num_prompts, num_samples)
    spread = reward.std(axis=2, keepdims=True)
    advantage = np.where(spread > 0, (reward - reward.mean(2, keepdims=True)) / (spread + 1e-9), 0)
    mean_XD = np.einsum("xv,xvd->xd", p_XV, features_XVD)
    score_RD = features_XVD[prompt_R, action_R] - mean_XD[prompt_R]
    return score_RD * advantage.reshape(-1, 1), agent_R, prompt_R, sample_R


def t_statistics(num_runs: int, is_random: bool, num_buckets: int | None) -> Array:
    rng = np.random.default_rng(3)
    found = []
    for _ in range(num_runs):
        g_RD, *labels = bandit_rows(rng, 16, 4, is_random)
        norm2_R = (g_RD**2).sum(1)
        if num_buckets is not None:
            sign, bucket = rng.choice([-1, 1], 24), rng.integers(0, num_buckets, 24)
            projection = np.zeros((24, num_buckets))
            projection[np.arange(24), bucket] = sign
            g_RD = g_RD @ projection
        s = row_statistics(g_RD, norm2_R, *labels)
        found.append(s.crosscov / s.crosscov_se)
    return np.array(found)


@pytest.mark.parametrize("num_buckets", [None, 64])
def test_random_rewards_on_shared_prompts_do_not_look_coupled(num_buckets: int | None) -> None:
    t = t_statistics(400, is_random=True, num_buckets=num_buckets)
    rejected = float((t > stats.t(df=15).ppf(0.95)).mean())
    # Nominal 5 %; three binomial standard errors at 400 runs are 3.3 %.
    assert 0.01 <= rejected <= 0.083


def test_own_rewards_on_shared_prompts_are_found_coupled() -> None:
    t = t_statistics(80, is_random=False, num_buckets=None)
    pooled = t.reshape(-1, 4).sum(axis=1) / 2  # four steps together
    assert float((pooled > stats.norm.ppf(0.95)).mean()) > 0.95


def test_dead_rows_and_the_top_row_are_counted() -> None:
    g_RD = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 5.0], [0.0, 0.0]])
    s = statistics_of(g_RD, np.zeros(4, int), np.arange(4), np.zeros(4, int))
    assert s.dead_rows == 0.5
    assert s.top_row == 0.5  # 25 of 50
    assert s.signal == pytest.approx(2 * 20 / 12)  # one pair with product 20, of 12 ordered pairs
    assert math.isnan(s.prompt)
    assert math.isnan(s.crosscov)


def test_signal_and_noise_take_prompts_as_units() -> None:
    # Prompt sums (3, 1), (1, 2), (0, 0): together (4, 3), ||.||^2 = 25, own ||.||^2 = 10, 5, 0.
    g_RD = np.array([[3.0, 0.0], [0.0, 1.0], [1.0, 2.0], [0.0, 0.0], [0.0, 0.0]])
    s = statistics_of(g_RD, np.zeros(5, int), np.array([7, 7, 2, 4, 4]), np.arange(5))
    assert s.group_signal == pytest.approx((25 - 15) / (3 * 2))
    assert s.group_noise == pytest.approx(5 - 10 / 6)
    assert s.dead_prompts == pytest.approx(1 / 3)
    alone = statistics_of(g_RD[:2], np.zeros(2, int), np.zeros(2, int), np.arange(2))
    assert math.isnan(alone.group_signal)
    assert math.isnan(alone.group_noise)


def test_signal_and_noise_are_unbiased() -> None:
    rng = np.random.default_rng(5)
    agent_R, prompt_R, sample_R = design(1, 12, 4)
    found = []
    for _ in range(400):
        # g_x sums 4 rows that share a direction and the prompt's own part: mean 4 * 1 in each of
        # 10 dimensions, so ||mean||^2 = 160; variance 16 * 2 + 4 * 3 per dimension, trace 440.
        prompt_XD = rng.normal(size=(12, 10)) * math.sqrt(2)
        g_RD = 1.0 + prompt_XD[prompt_R] + rng.normal(size=(48, 10)) * math.sqrt(3)
        found.append(statistics_of(g_RD, agent_R, prompt_R, sample_R))
    assert np.mean([s.group_signal for s in found]) == pytest.approx(160, rel=0.03)
    assert np.mean([s.group_noise for s in found]) == pytest.approx(440, rel=0.03)


def test_the_gradient_is_split_by_the_sign_of_the_advantage() -> None:
    rng = np.random.default_rng(6)
    g_RD, sign_R = rng.normal(size=(9, 6)), np.array([1, 1, -1, 0, -1, 1, -1, -1, 0])
    labels = np.zeros(9, int), np.arange(9), np.zeros(9, int)
    s = row_statistics(g_RD, (g_RD**2).sum(1), *labels, sign_R)
    plus, minus = g_RD[sign_R == 1].sum(0), g_RD[sign_R == -1].sum(0)
    assert s.positive == pytest.approx(plus @ plus)
    assert s.negative == pytest.approx(minus @ minus)
    assert s.opposition == pytest.approx(plus @ minus)
    sign_R[4] = UNTAGGED
    s = row_statistics(g_RD, (g_RD**2).sum(1), *labels, sign_R)
    assert math.isnan(s.positive)
    assert math.isnan(s.opposition)


def test_unknown_samples_leave_the_episode_component_unmeasured() -> None:
    rng = np.random.default_rng(4)
    agent_R, prompt_R, _ = design(2, 3, 2)
    g_RD = rng.normal(size=(len(agent_R), 5))
    s = statistics_of(g_RD, agent_R, prompt_R, np.full(len(agent_R), -1))
    assert math.isnan(s.episode)
    assert math.isfinite(icc(s))


def test_a_role_without_rows_has_no_statistics() -> None:
    s = RowSums().statistics()
    assert s.rows == 0
    assert math.isnan(s.total)


@pytest.mark.parametrize("seed", range(4))
def test_rows_fed_in_batches_have_the_statistics_of_all_of_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    agent_R, prompt_R, sample_R = design(3, 4, 3)
    order = rng.permutation(len(agent_R))[:30]
    agent_R, prompt_R, sample_R = agent_R[order], prompt_R[order], sample_R[order]
    g_RD = rng.normal(size=(30, 6)) + rng.normal(size=(4, 6))[prompt_R]
    g_RD[rng.random(30) < 0.2] = 0
    norm2_R, sign_R = (g_RD**2).sum(1), rng.choice([-1, 0, 1], 30)
    whole = Rows(g_RD, norm2_R, agent_R, prompt_R, sample_R, sign_R)
    sums = RowSums()
    for batch in np.split(np.arange(30), [0, 1, 11, 24]):
        sums.add(
            Rows(
                whole.sketch_RK[batch], norm2_R[batch], agent_R[batch], prompt_R[batch],
                sample_R[batch], sign_R[batch],
            )
        )  # fmt: skip
        sums.statistics()  # what is asked on the way leaves no trace
    found = sums.statistics()
    for name, expected in brute_force(g_RD, agent_R, prompt_R, sample_R).items():
        assert getattr(found, name) == pytest.approx(expected, abs=1e-12), name
    at_once = row_statistics(g_RD, norm2_R, agent_R, prompt_R, sample_R, sign_R)
    for field in fields(RowStatistics):
        expected = getattr(at_once, field.name)
        assert getattr(found, field.name) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert found.dead_rows == pytest.approx(float((norm2_R == 0).mean()))
    up, down = g_RD[sign_R > 0].sum(0), g_RD[sign_R < 0].sum(0)
    assert (found.positive, found.opposition) == pytest.approx((up @ up, up @ down))
