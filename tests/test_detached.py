"""Rewards that leave what they are paid for are found at their step, and no others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.detectors.detached import DetachedRule
from analysis.detectors.exchanged import with_exchange
from analysis.detectors.role_capture import CaptureRule
from analysis.diagnosis import diagnose
from analysis.explain.remedies import remedies
from analysis.findings import Finding, Onset
from analysis.synthetic.runs import Capture, synthetic_run
from gradlab.records import (
    Agent,
    EvalRecord,
    PolicyMeta,
    RoleLedger,
    RunLedger,
    RunMeta,
    StepRecord,
    UpdateMetrics,
    UpdateRecord,
)
from gradlab.store.run import open_run
from gradlab.store.writer import RunStore


def accuracies(steps: int, seed: int) -> np.ndarray:
    """[T] of 64 answers a step: a climb, with the noise of a batch."""
    rng = np.random.default_rng(seed)
    return rng.binomial(64, np.linspace(0.35, 0.65, steps)) / 64


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["sign", "length", "mixed, then sign"])
def test_a_reward_that_changes_its_meaning_is_found_at_its_step(kind: str, seed: int) -> None:
    own_T, outcome_T = accuracies(80, seed), accuracies(80, seed + 100)
    reward_T = 0.5 * own_T + 0.5 * outcome_T if kind.startswith("mixed") else outcome_T.copy()
    reward_T[40:] = 5 + own_T[40:] if kind == "length" else -reward_T[40:]
    found = DetachedRule().measure(reward_T, np.stack([own_T, outcome_T, np.zeros(80)]))
    assert found is not None
    assert found.at == 40
    assert found.expected == pytest.approx(0.5, abs=0.15)
    assert found.seen == pytest.approx(reward_T[40:45].mean())


@pytest.mark.parametrize("seed", range(10))
def test_rewards_that_follow_their_answers_are_left_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    own_T, outcome_T = accuracies(120, seed), accuracies(120, seed + 100)
    own_T[80:] *= np.linspace(1, 0, 40)  # the answers fall, and the reward with them
    outcome_T[80:] *= np.linspace(1, 0, 40)
    fails_T = rng.random(120) * 0.05
    paid_KT = np.stack([own_T, outcome_T, fails_T])
    for reward_T in (
        outcome_T,
        0.5 * own_T + 0.5 * outcome_T - 0.2 * fails_T,
        outcome_T + 0.05 * rng.standard_normal(120),
        rng.standard_normal(120),  # of something else altogether: not judged
        np.zeros(120),
    ):
        assert DetachedRule().measure(reward_T, paid_KT) is None


def test_a_flipped_reward_leads_the_fall_and_no_option_is_said_to_take_it_away(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(1)
    policy = PolicyMeta("p", (Agent("solver", 0),), ("all",), 10)
    meta = RunMeta.of_policies(
        "flipped", [policy], problems=tuple(map(str, range(200))), config={"steps": 80}
    )
    with RunStore.create(tmp_path / "run.zarr", meta) as store:
        for step in range(1, 81):
            truth = 0.6 if step <= 46 else max(0.6 - 0.06 * (step - 46), 0.05)
            share = rng.binomial(64, truth) / 64
            reward = share if step <= 40 else -share
            ledger = RoleLedger(reward_mean=reward, own_accuracy=share, outcome_accuracy=share)
            store.append(UpdateRecord("p", step, np.eye(1)[None], metrics=UpdateMetrics(1e-3)))
            store.append(StepRecord(step, 0.0, RunLedger(accuracy=share), {"solver": ledger}))
            if step % 4 == 0:
                solved = (rng.random((200, 1)) < truth).astype(np.uint8)
                store.append(EvalRecord(step, solved, {}, np.full((1, 200), np.nan)))
    diagnosis = diagnose(open_run(tmp_path))
    assert diagnosis.status in ("cliff", "fall")
    (found,) = diagnosis.of_kind("detached reward")
    assert found.onset == Onset(41, 40, 41)
    assert diagnosis.causes[0].name == "detached reward of solver"
    assert diagnosis.causes[0].words == "preceded by"
    assert "No option takes that away" in diagnosis.separation
    assert diagnosis.remedies[0].title == "Look at what the reward pays for"


def capture_at(step: int) -> Finding:
    return Finding(
        "capture", "generator", "It captured.", 1.0, "odds", "high", Onset(step, step - 1, step + 1)
    )


def test_a_capture_that_takes_its_time_is_no_exchange(tmp_path: Path) -> None:
    run = open_run(
        synthetic_run(tmp_path / "run", steps=200, evals=11, capture=Capture("generator", 100, 8.0))
    )
    found = CaptureRule()(run)
    assert found
    assert all("audit" not in finding.summary for finding in found)
    assert with_exchange(run, replace(capture_at(100), onset=None)).onset is None


def test_shares_that_change_places_send_people_to_the_audit(tmp_path: Path) -> None:
    policy = PolicyMeta("p", (Agent("generator"), Agent("judge")), ("all",), 10)
    with RunStore.create(tmp_path / "run.zarr", RunMeta.of_policies("x", [policy])) as store:
        for step in range(1, 61):
            norms = [4.0, 1.0] if step > 30 else [1.0, 4.0]
            gram = np.diag(np.square(norms))[None]
            store.append(UpdateRecord("p", step, gram, metrics=UpdateMetrics(1e-3)))
            store.append(StepRecord(step, 0.0, RunLedger(), {}))
    found = with_exchange(open_run(tmp_path), capture_at(30))
    assert found.summary.endswith("were exchanged: audit first.")
    assert "gradlab audit RUN --step 31" in found.evidence[0]
    first = remedies(open_run(tmp_path), (found,), ())[0]
    assert first.title == "Rule out that the tags of two roles were exchanged"
