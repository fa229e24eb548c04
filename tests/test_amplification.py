"""Parallel agents that repeat one another are found; a common direction alone is not."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from analysis.detectors.amplification import AmplificationTest, Coherence, Components, path_length
from analysis.detectors.shape import Context
from analysis.diagnosis import diagnose
from analysis.synthetic.runs import Rows, row_gradients, statistics_of, synthetic_run
from gradlab.records import (
    Agent,
    PolicyMeta,
    RowStatistics,
    RunLedger,
    RunMeta,
    StepRecord,
    UpdateRecord,
    names,
)
from gradlab.store.run import open_run
from gradlab.store.writer import RunStore


def components_of(records: list[RowStatistics]) -> Components:
    def read(name: str) -> np.ndarray:
        return np.array([getattr(record, name) for record in records])

    return Components(
        read("total"), read("signal"), read("prompt"), read("episode"), read("crosscov")
    )


def coherence_of(rows: Rows, seed: int, steps: int = 40) -> Coherence:
    rng = np.random.default_rng(seed)
    records = [statistics_of(row_gradients(rows, 3, rng)) for _ in range(steps)]
    coherence = AmplificationTest().measure(components_of(records), 3)
    assert coherence is not None
    return coherence


def test_planted_components_come_back() -> None:
    coherence = coherence_of(Rows(signal=0.1, prompt=0.3, within=0.1, episode=0.05), 0, 300)
    assert coherence.signal_share == pytest.approx(0.1, abs=0.02)
    assert coherence.prompt_share == pytest.approx(0.3, abs=0.03)
    assert coherence.episode_share == pytest.approx(0.05, abs=0.02)
    # ICC = (prompt + episode) / (1 - signal) = 0.35 / 0.9; DEFF = 1 + 2 ICC.
    assert coherence.deff == pytest.approx(1 + 2 * 0.35 / 0.9, abs=0.08)
    assert coherence.deff_lower < coherence.deff < coherence.deff_upper


def test_shared_prompts_are_found_and_a_common_direction_is_not() -> None:
    for seed in range(6):
        planted = coherence_of(Rows(prompt=0.2), seed)
        assert planted.p_value < 0.01
        assert planted.deff > 1.1
        innocent = coherence_of(Rows(signal=0.3, prompt=0.0), seed)  # coherence far above 1
        assert innocent.deff < 1.1


def test_shared_subspace_with_random_signs_is_not_coherence() -> None:
    # Agents on a prompt move along one line, each with a random sign: large inner products, mean 0.
    flagged = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        records = []
        for _ in range(20):
            line = rng.standard_normal((1, 12, 1, 32))
            sign = rng.choice([-1.0, 1.0], (3, 12, 2, 1))
            records.append(statistics_of(line * sign))
        coherence = AmplificationTest().measure(components_of(records), 3)
        assert coherence is not None
        flagged += coherence.p_value < 0.05
    assert flagged <= 6


def test_one_exploding_step_does_not_decide() -> None:
    rng = np.random.default_rng(0)
    records = [statistics_of(row_gradients(Rows(), 3, rng)) for _ in range(39)]
    records.append(statistics_of(1e4 * row_gradients(Rows(prompt=0.8), 3, rng)))
    coherence = AmplificationTest().measure(components_of(records), 3)
    assert coherence is not None
    assert coherence.p_value > 0.01


def test_too_few_steps_give_none_and_unknown_episodes_count_as_zero() -> None:
    rng = np.random.default_rng(0)
    records = [statistics_of(row_gradients(Rows(prompt=0.3), 3, rng)) for _ in range(12)]
    components = components_of(records)
    assert AmplificationTest(min_steps=13).measure(components, 3) is None
    unknown = Components(
        components.total_T,
        components.signal_T,
        components.prompt_T,
        np.full(12, math.nan),
        components.crosscov_T,
    )
    coherence = AmplificationTest().measure(unknown, 3)
    assert coherence is not None
    assert coherence.episode_share == 0.0


def test_findings_of_a_run(tmp_path: Path) -> None:
    path = synthetic_run(
        tmp_path / "run",
        steps=40,
        evals=0,
        problems=0,
        routing="isolated",
        amplification={"generator": 0.3},
    )
    run = open_run(path)
    judged = AmplificationTest().judge(Context(run))
    findings = judged.findings
    assert [(f.kind, f.subject) for f in findings] == [
        ("amplification", "generator"),
        ("path amplification", "generator"),
    ]
    assert findings[0].strength == pytest.approx(1 + 2 * 0.3 / 0.97, abs=0.15)
    assert findings[1].strength == pytest.approx(3.0)
    assert not judged.not_judged


def test_agents_that_train_a_policy_together_are_judged_though_others_train_another(
    tmp_path: Path,
) -> None:
    """generator[1] and [2] in policy b get what two agents of a whole role had."""
    whole = open_run(
        synthetic_run(
            tmp_path / "whole",
            steps=40,
            evals=0,
            problems=0,
            routing="isolated",
            agents={"generator": 2, "aggregator": 1},
            amplification={"generator": 0.3},
        )
    )
    [expected] = [
        f for f in AmplificationTest().judge(Context(whole)).findings if f.kind == "amplification"
    ]
    first, second, third = (Agent("generator", n) for n in range(3))
    aggregator = Agent("aggregator")
    policies = [
        PolicyMeta("a", (first,), ("all",), 10),
        PolicyMeta("b", (second, third, aggregator), ("all",), 10),
    ]
    read = {n: whole.row_statistic(n, "generator").value_T for n in names(RowStatistics)}
    with RunStore.create(tmp_path / "run.zarr", RunMeta.of_policies("r", policies)) as store:
        for t, step in enumerate(whole.steps.tolist()):
            rows = {"generator": RowStatistics(**{n: float(v[t]) for n, v in read.items()})}
            store.append(UpdateRecord("a", step, np.ones((1, 1, 1))))
            store.append(UpdateRecord("b", step, np.ones((1, 3, 3)), row_statistics=rows))
            store.append(StepRecord(step, 1e9, RunLedger(), {}))
    run = open_run(tmp_path / "run.zarr")
    test = AmplificationTest()
    judged = test.judge(Context(run))
    [found] = judged.findings
    assert (found.subject, found.strength, found.p_value) == (
        "generator",
        pytest.approx(expected.strength, rel=1e-5),
        pytest.approx(expected.p_value, rel=1e-3),
    )
    assert "The 2 generator agents of policy 'b' repeat one another" in found.summary
    assert test.num_tested(run) == 1
    assert [one.what for one in judged.not_judged] == [
        "amplification of generator[0]",
        "path amplification of generator",
    ]
    told = {one.what: one.why for one in diagnose(run).not_judged}
    assert (
        "gradients of different policies" in told["gradient cosines of generator with aggregator"]
    )
    assert "capture in policy 'b'" in told


def test_fixed_updates_have_no_path_amplification(tmp_path: Path) -> None:
    path = synthetic_run(
        tmp_path / "run", steps=40, evals=0, problems=0, routing="isolated", updates_by="fixed"
    )
    assert AmplificationTest()(open_run(path)) == []


def test_path_length_sums_the_steps_of_a_role(tmp_path: Path) -> None:
    path = synthetic_run(tmp_path / "run", steps=12, evals=0, problems=0, routing="isolated")
    run = open_run(path)
    norm = run.update_metric("update_norm", "generator")
    expected = [norm.value_T[norm.step_T == step].sum() for step in run.steps]
    np.testing.assert_allclose(path_length(run, "generator"), expected, rtol=1e-5)


def test_p_value_is_a_one_sided_t_test_of_block_means() -> None:
    rng = np.random.default_rng(2)
    crosscov_T = rng.normal(0.2, 1.0, 60)
    one = np.ones(60)
    components = Components(one, 0 * one, 0.1 * one, 0 * one, crosscov_T)
    coherence = AmplificationTest().measure(components, 3)
    assert coherence is not None
    blocks = crosscov_T.reshape(12, 5).mean(axis=1)
    expected = ttest_1samp(blocks, 0.0, alternative="greater").pvalue
    assert coherence.p_value == pytest.approx(expected)
    assert coherence.deff == pytest.approx(1.2)  # 1 + 2 * 0.1 / (1 - 0)
