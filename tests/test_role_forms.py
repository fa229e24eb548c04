"""Forms that change and work that moves, planted, and what healthy training does to both."""

from pathlib import Path

import numpy as np
import pytest
from stores import store_of

from analysis.detectors.forms import FormRule, WorkRule
from analysis.synthetic.runs import synthetic_run
from analysis.synthetic.scenarios import SCENARIOS
from gradlab.store.run import Run, open_run

NUM = 21


def step_change(before: float, after: float, at: int = 12) -> np.ndarray:
    return np.where(np.arange(NUM) >= at, after, before)


def judged_run(path: Path, seed: int = 0, **shares: np.ndarray) -> Run:
    """An evaluator among others, with shares of 200 responses; the aggregator chooses."""
    rng = np.random.default_rng(seed)
    drawn = {name: rng.binomial(200, share_E) / 200 for name, share_E in shares.items()}
    of_evaluator = {k: v for k, v in drawn.items() if not k.startswith("terse")}
    of_aggregator = {"choice_accuracy": np.full(NUM, 0.8)}
    if "terse" in drawn:
        of_aggregator["terse"] = drawn["terse"]
    generator = {"terse": drawn["terse_generator"]} if "terse_generator" in drawn else {}
    return store_of(
        path,
        roles={role: {"turns": np.ones(200)} for role in ("generator", "aggregator", "evaluator")},
        solved={10 * e: np.ones(200) for e in range(NUM)},
        judged={"evaluator": of_evaluator, "aggregator": of_aggregator, "generator": generator},
    )


def test_an_evaluator_that_writes_programs_is_told(tmp_path: Path) -> None:
    run = judged_run(
        tmp_path, stamp_form=step_change(0.95, 0.2), code_form=step_change(0.01, 0.6, at=13)
    )
    [found] = FormRule()(run)
    assert found.subject == "evaluator"
    assert found.onset is not None
    assert (found.onset.step, found.onset.upper) == (110, 120)
    assert found.summary.startswith(
        "evaluator changed the form of its responses from step 110 (110 to 120): bare stamps among "
        "its verdicts 9"
    )
    assert any(
        "responses with a block of code" in line and "step 120" in line for line in found.evidence
    )
    assert found.lower is not None
    assert found.upper is not None
    assert found.lower <= found.strength <= found.upper


def test_an_aggregator_that_explains_is_told_and_a_generator_may(tmp_path: Path) -> None:
    """Terseness is a form of who chooses: a generator that explains more is doing its job."""
    run = judged_run(tmp_path, terse=step_change(0.9, 0.1), terse_generator=step_change(0.9, 0.1))
    assert [found.subject for found in FormRule()(run)] == ["aggregator"]


@pytest.mark.parametrize("seed", range(3))
def test_forms_that_stay_or_improve_are_no_finding(tmp_path: Path, seed: int) -> None:
    run = judged_run(
        tmp_path,
        seed,
        stamp_form=np.linspace(0.4, 0.95, NUM),  # healthy training teaches the format
        code_form=step_change(0.3, 0.02),
        terse=np.full(NUM, 0.6),
        hedging=step_change(0.1, 0.8),  # evidence for a reader, and no signature
    )
    assert FormRule()(run) == []
    assert FormRule().num_tested(run) == 3


def test_runs_that_kept_no_forms_are_not_tested(tmp_path: Path) -> None:
    path = synthetic_run(tmp_path, **SCENARIOS["healthy"].settings(120), row_statistics=False)
    run = open_run(path)
    assert FormRule().num_tested(run) == 0
    assert FormRule()(run) == []
    assert WorkRule()(run) == []


def lengths_run(path: Path, planner_T: np.ndarray, worker_T: np.ndarray, seed: int = 0) -> Run:
    rng = np.random.default_rng(seed)
    noise = [np.exp(0.1 * rng.standard_normal(len(planner_T))) for _ in range(2)]
    roles = {
        "orchestrator": {"length_mean": planner_T * noise[0]},
        "worker": {"length_mean": worker_T * noise[1]},
    }
    echo = {"worker": {"echo": [0.1, 0.9]}}
    return store_of(path, roles=roles, solved={0: np.ones(5), 150: np.ones(5)}, judged=echo)


def late(before: float, after: float, at: int = 80) -> np.ndarray:
    return np.asarray(before * (after / before) ** np.clip((np.arange(150) - at) / 10, 0, 1))


def test_a_planner_that_solves_while_workers_echo(tmp_path: Path) -> None:
    run = lengths_run(tmp_path, late(110, 2400), late(480, 14, at=90))
    [found] = WorkRule()(run)
    assert found.subject == "worker"
    assert "Work moved from worker to orchestrator: responses of orchestrator 1" in found.summary
    assert found.onset is not None
    assert found.onset.step <= 85
    assert found.onset.upper <= 95
    assert "10 % at the first evaluation, 90 % at the last" in found.evidence[1]


@pytest.mark.parametrize(
    ("planner_T", "worker_T"),
    [
        (late(110, 2400), np.full(150, 480.0)),
        (np.full(150, 110.0), late(480, 14)),
        (late(110, 2400), late(480, 300)),
        (110 * 2 ** (np.arange(150) / 150), 480 * 0.5 ** (np.arange(150) / 150)),
    ],
    ids=["only grows", "only shrinks", "shrinks a little", "smooth trends"],
)
def test_half_of_it_is_not_it(tmp_path: Path, planner_T: np.ndarray, worker_T: np.ndarray) -> None:
    assert WorkRule()(lengths_run(tmp_path, planner_T, worker_T)) == []
