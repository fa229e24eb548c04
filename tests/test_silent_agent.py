"""An agent without a gradient is told if its siblings have theirs, and only then."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analysis.detectors.silent_agent import SilentAgentRule
from analysis.diagnosis import diagnose
from analysis.synthetic.runs import synthetic_run
from gradlab.records import Agent, PolicyMeta, RunLedger, RunMeta, StepRecord, UpdateRecord
from gradlab.store.run import Run, open_run
from gradlab.store.writer import RunStore


def run_of(path: Path, chance: tuple[float, ...], updates: int = 60, seed: int = 0) -> Run:
    """Workers that have a gradient with these chances, beside a planner of another policy."""
    rng = np.random.default_rng(seed)
    workers = tuple(Agent("worker", i) for i in range(len(chance)))
    policies = [
        PolicyMeta("worker", workers, ("all",), 10),
        PolicyMeta("planner", (Agent("planner"),), ("all",), 10),
    ]
    with RunStore.create(path / "run.zarr", RunMeta.of_policies("made", policies)) as store:
        for step in range(1, updates + 1):
            norm_A = (rng.random(len(chance)) < chance) * rng.uniform(0.5, 2, len(chance))
            store.append(UpdateRecord("worker", step, np.diag(norm_A**2)[None]))
            store.append(UpdateRecord("planner", step, np.zeros((1, 1, 1))))
            store.append(StepRecord(step, 0.0, RunLedger(), {}))
    return open_run(path)


@pytest.mark.parametrize("chance", [(1.0, 1.0, 0.0), (0.9, 0.02), (0.7, 0.8, 0.7, 0.0)])
def test_the_silent_one_is_named(chance: tuple[float, ...], tmp_path: Path) -> None:
    silent = int(np.argmin(chance))
    run = run_of(tmp_path, chance)
    [found] = SilentAgentRule()(run)
    assert found.subject == "worker"
    assert found.summary.startswith(f"{Agent('worker', silent)} of {len(chance)} parallel agents")
    rng, drawn = np.random.default_rng(0), []  # the same draws again, counted
    for _ in range(60):
        drawn.append(rng.random(len(chance))[silent] < chance[silent])
        rng.uniform(0.5, 2, len(chance))
    assert found.strength == pytest.approx(1 - np.mean(drawn))
    assert found.lower is not None
    assert found.upper is not None
    assert found.lower <= found.strength <= found.upper + 1e-12


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("chance", [0.05, 0.3, 0.5, 0.8, 1.0])
def test_agents_that_are_alike_are_never_told_apart(
    chance: float, seed: int, tmp_path: Path
) -> None:
    assert SilentAgentRule()(run_of(tmp_path, (chance,) * 3, updates=20, seed=seed)) == []


def test_a_role_that_gets_nothing_at_all_is_another_finding(tmp_path: Path) -> None:
    assert SilentAgentRule()(run_of(tmp_path, (0.0, 0.0, 0.0))) == []


def test_few_updates_and_lone_agents_say_nothing(tmp_path: Path) -> None:
    assert SilentAgentRule()(run_of(tmp_path / "few", (1.0, 0.0), updates=19)) == []
    assert SilentAgentRule()(run_of(tmp_path / "alone", (0.0,))) == []


def test_the_evidence_counts_in_percent(tmp_path: Path) -> None:
    """60 of 60 updates without a gradient; the siblings had one in each."""
    [found] = SilentAgentRule()(run_of(tmp_path, (1.0, 0.0)))
    assert found.strength == 1
    assert found.summary.endswith("no gradient in 60 of 60 updates, while the others did in 100 %"
                                  " or more.")  # fmt: skip
    assert found.evidence[0].startswith("norm exactly 0 in 100 % of the updates")
    assert found.evidence[0].endswith("in 0 % at most of a sibling's")


def test_a_diagnosis_tells_it_and_what_to_look_at(tmp_path: Path) -> None:
    diagnosis = diagnose(run_of(tmp_path, (1.0, 1.0, 0.0)))
    [found] = diagnosis.of_kind("silent agent")
    assert found.p_family is None
    assert SilentAgentRule().num_tested(run_of(tmp_path / "other", (1.0, 0.0))) == 0
    [remedy] = [r for r in diagnosis.remedies if "gets no gradient" in r.reason]
    assert "one agent of worker gets no gradient while its siblings do" in remedy.reason


def test_a_healthy_run_has_none(tmp_path: Path) -> None:
    run = open_run(synthetic_run(tmp_path / "run", steps=60, evals=7, seed=3))
    assert SilentAgentRule()(run) == []
