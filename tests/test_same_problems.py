"""A changed evaluation set against falls on the same problems, and reliability by hand."""

from pathlib import Path

import numpy as np
import pytest

from analysis.cliff.accuracy import AccuracySeries
from analysis.cliff.same_problems import ChangedSetRule, changed_set, reliability
from analysis.diagnosis import diagnose
from analysis.synthetic.runs import evaluation_matrix, synthetic_run
from analysis.synthetic.scenarios import SCENARIOS
from gradlab.records import (
    Agent,
    EvalRecord,
    PolicyMeta,
    RunLedger,
    RunMeta,
    StepRecord,
    UpdateMetrics,
    UpdateRecord,
)
from gradlab.store.run import open_run
from gradlab.store.writer import RunStore


def series_of(correct_TPS: np.ndarray) -> AccuracySeries:
    num, problems, samples = correct_TPS.shape
    return AccuracySeries(
        10 * np.arange(num),
        correct_TPS.sum(axis=(1, 2)).astype(np.float64),
        np.full(num, float(problems * samples)),
        correct_TPS.mean(axis=2),
        samples,
    )


def answers(kind: str, seed: int, at: int = 12, problems: int = 150) -> np.ndarray:
    """20 evaluations; at evaluation `at` something happens."""
    rng = np.random.default_rng(seed)
    rate_T = 0.35 + 0.25 * (1 - np.exp(-np.arange(20) / 4))
    lower_T = rate_T - np.where(np.arange(20) >= at, 0.25, 0.0)
    matrix = evaluation_matrix(rate_T, problems, 1, rng)
    if kind == "fall":
        return evaluation_matrix(lower_T, problems, 1, rng)
    if kind == "half of the right answers garbled":
        matrix[at:] *= rng.random(matrix[at:].shape) < 0.5
    if kind == "other problems":
        matrix[at:] = evaluation_matrix(lower_T, problems, 1, rng)[at:]
    if kind == "other order":
        matrix[at:] = matrix[at:][:, rng.permutation(problems)]
    if kind == "one answer to all":
        # right where the answer happens to be that one: reliable, and unrelated to difficulty
        matrix[at:] = (np.arange(problems) % 20 == 0)[None, :, None]
    return matrix


@pytest.mark.parametrize("kind", ["other problems", "other order"])
@pytest.mark.parametrize("seed", range(4))
def test_a_changed_set_is_told_and_dated(kind: str, seed: int) -> None:
    series = series_of(answers(kind, seed))
    found = changed_set(series, 11)
    assert found is not None
    assert found.kind == "changed evaluation set"
    assert found.onset is not None
    assert (found.onset.step, found.onset.upper) == (110, 120)
    assert "between steps 110 and 120" in found.summary
    assert found.lower is not None
    assert found.upper is not None
    assert found.lower <= found.strength <= found.upper
    # An onset that is dated two evaluations off does not hide it.
    assert changed_set(series, 9) == found


@pytest.mark.parametrize(
    "kind", ["none", "fall", "half of the right answers garbled", "one answer to all"]
)
@pytest.mark.parametrize("seed", range(4))
def test_a_fall_on_the_same_problems_is_no_changed_set(kind: str, seed: int) -> None:
    series = series_of(answers(kind, seed))
    assert changed_set(series, 11) is None


def test_too_little_to_tell_gives_no_verdict() -> None:
    matrix = answers("other order", 0)
    assert changed_set(series_of(matrix[:, :20]), 11) is None  # 20 problems
    assert changed_set(series_of(matrix[:13]), 11) is None  # a single evaluation after
    assert changed_set(AccuracySeries(np.arange(3), np.ones(3), np.full(3, 2.0)), 1) is None


def test_reliability_by_hand() -> None:
    # Means per problem after centring (evaluation means 1/2 and 1/2): 1/2, -1/2, 0, 0: variance
    # with ddof 1 is 1/6. Within: 0, 0, 1/2, 1/2 (0.5^2 + 0.5^2 over n - 1 = 1): mean of
    # within / 2 is 1/8. 1 - (1/8) / (1/6) = 1/4.
    assert reliability(np.array([[1, 0, 1, 0], [1, 0, 0, 1]], dtype=float)) == pytest.approx(0.25)
    assert reliability(np.array([[1, 0, 1, 0], [1, 0, 1, 0]], dtype=float)) == 1
    assert np.isnan(reliability(np.array([[1.0, 0.0]])))


def test_the_detector_finds_a_change_without_a_fall(tmp_path: Path) -> None:
    """Same accuracy before and after: only the single answers show it."""
    rule = ChangedSetRule()
    for name in ("healthy", "harm without capture", "slow decay"):
        settings = SCENARIOS[name].settings(200, seed=4)
        path = synthetic_run(tmp_path / name, **settings, row_statistics=False)
        run = open_run(path)
        assert rule.num_tested(run) == 1
        assert rule(run) == []
    matrix = answers("other order", 5)
    assert rule._best(series_of(matrix), range(1, 20))[0].onset.step == 110  # type: ignore[union-attr]


def test_a_changed_set_is_no_fall(tmp_path: Path) -> None:
    """The whole diagnosis: accuracy drops by 25 points with the set, and nobody is accused."""
    matrix = answers("other problems", 0)
    policy = PolicyMeta("p", (Agent("solver"),), ("all",), 10)
    problems = tuple(map(str, range(matrix.shape[1])))
    meta = RunMeta.of_policies("changed", [policy], problems=problems)
    with RunStore.create(tmp_path / "run.zarr", meta) as store:
        for step in range(200):
            if step:
                store.append(UpdateRecord("p", step, np.eye(1)[None], metrics=UpdateMetrics(1e-3)))
                store.append(StepRecord(step, 0.0, RunLedger(), {}))
            if step % 10 == 0:
                solved = matrix[step // 10]
                store.append(EvalRecord(step, solved, {}, np.full((1, len(solved)), np.nan)))
    diagnosis = diagnose(open_run(tmp_path))
    assert diagnosis.status == "not judged"
    assert diagnosis.verdict.startswith("Not a fall that can be told: the evaluation set changed")
    assert diagnosis.of_kind("changed evaluation set")
    assert not diagnosis.drops
    assert not diagnosis.causes
