"""Capture is found where it was planted, and an asymmetry of roles is not called one."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from analysis.detectors.consequences import changed, continued
from analysis.detectors.role_capture import CaptureRule
from analysis.detectors.shape import Context, Judged
from analysis.series.stretches import correlation_time, hysteresis, lasting, running_median
from analysis.synthetic.runs import Capture, Shift, autoregressive, synthetic_run
from gradlab.store.run import open_run

SEEDS = range(8)


def shares(
    seed: int, *, steps: int = 300, onset: int = 150, factor: float = 1.0, constant: float = 1.0
) -> np.ndarray:
    """[T] share of the first of two roles with noisy norms; times `factor` from `onset`."""
    rng = np.random.default_rng(seed)
    ratio = 0.4 * (autoregressive(steps, 0.5, rng) - autoregressive(steps, 0.5, rng))
    ratio += math.log(constant) + math.log(factor) * (np.arange(steps) >= onset)
    return 1 / (1 + np.exp(-ratio))


@pytest.mark.parametrize("factor", [4.0, 8.0])
def test_capture_is_found_where_it_was_planted(factor: float) -> None:
    errors = []
    for seed in SEEDS:
        takeover = CaptureRule().measure(shares(seed, factor=factor), np.full(300, 0.5))
        assert takeover.onset is not None
        errors.append(abs(takeover.onset - 150))
        assert takeover.captured_T[-1]
        assert not takeover.captured_T[:140].any()
    assert np.median(errors) <= 10
    assert max(errors) <= 35


def test_balanced_roles_and_token_heavy_roles_are_not_flagged() -> None:
    for seed in SEEDS:
        for share_T, weight in ((shares(seed), 0.5), (shares(seed, constant=3.0), 0.75)):
            takeover = CaptureRule().measure(share_T, np.full(300, weight))
            assert not takeover.dominant_T.any()


def test_large_share_from_the_start_is_dominance_without_onset() -> None:
    for seed in SEEDS:
        takeover = CaptureRule().measure(shares(seed, constant=5.0), np.full(300, 0.5))
        assert takeover.dominant_T.any()
        assert takeover.onset is None


def test_short_burst_is_not_capture() -> None:
    found = 0
    for seed in SEEDS:
        share_T = shares(seed)
        share_T[150:156] = 0.98
        found += CaptureRule().measure(share_T, np.full(300, 0.5)).onset is not None
    assert found == 0


def test_entry_threshold_in_share_terms() -> None:
    # theta = 3 q / (1 - q + 3 q): 0.75 of two roles, 0.60 of three.
    for weight, theta in ((1 / 2, 0.75), (1 / 3, 0.60)):
        start = np.full(100, weight)
        for share, expected in ((theta + 0.01, True), (theta - 0.01, False)):
            share_T = np.concatenate([start, np.full(100, share)])
            takeover = CaptureRule().measure(share_T, np.full(200, weight))
            assert takeover.dominant_T.any() == expected


def test_pieces_of_the_rule_by_hand() -> None:
    states = hysteresis(np.array([0.0, 2.0, 1.5, 1.0, 0.4, 1.5, 2.0]), 2.0, 1.0)
    assert states.tolist() == [False, True, True, True, False, False, True]
    state_T = np.array([True, True, False, True, True, True, False])
    assert lasting(state_T, 3).tolist() == [False, False, False, True, True, True, False]
    np.testing.assert_allclose(
        running_median(np.array([1.0, 5.0, 3.0, 0.0]), 3), [1.0, 3.0, 3.0, 3.0]
    )
    # White noise has no memory: two-step differences are as large as one-step ones.
    assert correlation_time(np.random.default_rng(0).standard_normal(4000)) == pytest.approx(
        1, abs=0.3
    )
    assert correlation_time(autoregressive(4000, 0.8, np.random.default_rng(0))) > 4


def test_consequence_is_a_change_that_the_trend_from_before_does_not_explain() -> None:
    rng = np.random.default_rng(0)
    before = np.arange(160) < 80
    noise = 0.05 * rng.standard_normal(160)
    trend = np.exp(4.8 + np.arange(160) / 160 + noise)  # grows all along, 2.7 times in the run
    jump = np.exp(4.8 + noise) * np.where(before, 1.0, 2.0)
    assert changed("length_mean", "aggregator", trend, before) is None
    sentence = changed("length_mean", "aggregator", jump, before)
    assert sentence is not None
    assert "response length went from" in sentence
    assert changed("length_mean", "aggregator", 1 / jump, before) is None  # for the better
    # A line through 1, 2, 3 reaches 6 at time 5, with no error.
    assert continued(np.arange(3.0), np.array([1.0, 2.0, 3.0]), 5.0) == pytest.approx((6.0, 0.0))


@pytest.mark.parametrize("signal", ["kl", "length_mean"])
def test_what_grows_in_any_training_is_no_consequence_of_capture(
    tmp_path: Path, signal: str
) -> None:
    path = synthetic_run(
        tmp_path / "run",
        steps=160,
        evals=0,
        problems=0,
        capture=Capture("generator", 80, 8.0),
        shifts=(Shift(signal, "aggregator", 1, 10.0, 160),),
        seed=2,
    )
    (finding,) = CaptureRule()(open_run(path))
    assert finding.kind == "capture"
    assert not any("went from" in sentence for sentence in finding.evidence)


def test_capture_in_a_run_names_role_step_and_consequences(tmp_path: Path) -> None:
    path = synthetic_run(
        tmp_path / "run", steps=160, evals=9, capture=Capture("generator", 80, 8.0), seed=2
    )
    judged = CaptureRule().judge(Context(open_run(path)))
    findings = judged.findings
    assert [(f.kind, f.subject) for f in findings] == [("capture", "generator")]
    finding = findings[0]
    assert finding.onset is not None
    assert abs(finding.onset.step - 80) <= 10
    assert any("drifts towards generator" in sentence for sentence in finding.evidence)
    assert any("pull" in sentence for sentence in finding.evidence)
    assert finding.confidence == "high"
    assert not judged.not_judged


def test_isolated_roles_cannot_capture_and_short_runs_say_so(tmp_path: Path) -> None:
    isolated = synthetic_run(tmp_path / "a", steps=60, evals=0, problems=0, routing="isolated")
    assert CaptureRule().judge(Context(open_run(isolated))) == Judged()
    short = synthetic_run(tmp_path / "b", steps=20, evals=0, problems=0)
    judged = CaptureRule().judge(Context(open_run(short)))
    assert not judged.findings
    assert "needs 40" in judged.not_judged[0].why
