"""Whole runs with known truth are judged as they are, and what is missing is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from analysis.detectors.breakdown import BreakdownRule
from analysis.diagnosis import diagnose
from analysis.report.page import write_page
from analysis.synthetic.runs import Capture, Cliff, Shift, synthetic_run
from figures.make import make_figures
from gradlab.commands.main import main
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


@pytest.fixture(scope="module")
def fallen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_run(
        tmp_path_factory.mktemp("runs") / "fallen",
        steps=200,
        evals=41,
        problems=200,
        cliff=Cliff(130, 0.25, role="generator"),
        capture=Capture("generator", 100, 8.0),
        seed=1,
    )


@pytest.mark.parametrize("seed", range(3))
def test_healthy_run_is_called_healthy_with_what_it_would_have_shown(
    tmp_path: Path, seed: int
) -> None:
    path = synthetic_run(tmp_path / "run", steps=120, evals=25, seed=seed)
    diagnosis = diagnose(open_run(path))
    assert diagnosis.status == "healthy"
    assert diagnosis.findings == ()
    assert diagnosis.remedies == ()
    assert "would have been found" in diagnosis.verdict
    assert 0.03 < diagnosis.accuracy.detectable_drop < 0.3


def test_fallen_run_names_drop_capture_role_and_remedies(fallen: Path) -> None:
    diagnosis = diagnose(open_run(fallen))
    assert diagnosis.status == "cliff"
    assert diagnosis.name == "fallen"
    kinds = [(finding.kind, finding.subject) for finding in diagnosis.findings]
    assert kinds == [("cliff", "run"), ("capture", "generator")]
    drop = diagnosis.findings[0]
    assert drop.onset is not None
    assert drop.onset.lower <= 125 <= drop.onset.upper
    assert any("generator: own accuracy" in sentence for sentence in drop.evidence)
    assert any("capture by generator" in candidate for candidate in diagnosis.candidates)
    options = {remedy.option for remedy in diagnosis.remedies}
    assert {"--learning-rate 0.0005", "--kl-coefficient generator 0.05"} <= options


def test_learning_rate_to_halve_is_the_one_in_force_when_the_run_fell(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with RunStore.create(tmp_path / "run.zarr", bare_meta(samples=200)) as store:
        for step in range(1, 101):
            rate = 1e-3 if step <= 30 else 4e-4 if step <= 70 else 8e-3
            store.append(UpdateRecord("p", step, np.eye(3)[None], metrics=UpdateMetrics(rate)))
            store.append(StepRecord(step, 0.0, RunLedger(), {}))
            if step % 5 == 0:
                solved = (rng.random((2, 200)) < (0.6 if step <= 55 else 0.2)).astype(np.uint8)
                store.append(EvalRecord(step, solved, {}, np.full((3, 2), np.nan)))
    diagnosis = diagnose(open_run(tmp_path))
    assert diagnosis.status == "cliff"
    assert "learning rate 0.0002" in {remedy.option for remedy in diagnosis.remedies}


def test_diagnosis_is_json_without_nan(fallen: Path) -> None:
    text = diagnose(open_run(fallen)).to_json()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    parsed = json.loads(text, parse_constant=refuse)
    assert parsed["status"] == "cliff"
    assert parsed["findings"][0]["onset"]["step"] > 0
    assert parsed["signals"]


def test_run_too_short_says_what_is_missing(tmp_path: Path) -> None:
    path = synthetic_run(tmp_path / "run", steps=12, evals=4, close=False)
    diagnosis = diagnose(open_run(path))
    assert diagnosis.status == "not judged"
    assert "Only 4 evaluations: no fall beyond noise" in diagnosis.verdict
    missing = {question.what: question.why for question in diagnosis.not_judged}
    assert "4 evaluations" in missing["small losses"]
    assert "12 steps" in missing["what moved first"]
    assert "store is open" in missing["the end of the run"]


@pytest.mark.parametrize(
    ("planned", "last"), [(300, 300), (120, 0), (None, 0), ("300", 0), (True, 0), (-1, 0)]
)
def test_run_that_stopped_early_is_not_healthy(tmp_path: Path, planned: object, last: int) -> None:
    run = open_run(synthetic_run(tmp_path / "run", steps=120, evals=25))
    run.meta = replace(run.meta, config={} if planned is None else {"steps": planned})
    diagnosis = diagnose(run)
    asked = {question.what for question in diagnosis.not_judged}
    if last:
        assert diagnosis.status == "unfinished"
        assert diagnosis.verdict.startswith(f"The run stopped at 120 of {last} steps.")
        assert "the end of the run" in asked
    else:
        assert diagnosis.status == "healthy"
        assert "stopped" not in diagnosis.verdict
        assert "the end of the run" not in asked


def test_run_that_fell_and_stopped_early_says_both(tmp_path: Path) -> None:
    path = synthetic_run(
        tmp_path / "run",
        steps=200,
        evals=41,
        problems=200,
        cliff=Cliff(130, 0.25),
        planned=500,
        seed=1,
    )
    diagnosis = diagnose(open_run(path))
    assert diagnosis.status == "cliff"
    assert "The run stopped at 200 of 500 steps." in diagnosis.verdict


def test_run_still_being_written_is_not_healthy(tmp_path: Path) -> None:
    path = synthetic_run(tmp_path / "run", steps=120, evals=25, close=False)
    diagnosis = diagnose(open_run(path))
    assert diagnosis.status == "unfinished"
    assert "still being written, or was killed" in diagnosis.verdict


def test_run_without_evaluations_is_said_plainly(tmp_path: Path) -> None:
    path = synthetic_run(tmp_path / "run", steps=50, evals=0, problems=0)
    diagnosis = diagnose(open_run(path))
    assert diagnosis.status == "healthy"
    assert diagnosis.accuracy.outcome == "training accuracy"
    assert "No held-out evaluation says so: this is training accuracy" in diagnosis.verdict
    assert any("no evaluations" in question.why for question in diagnosis.not_judged)


def bare_meta(samples: int = 1) -> RunMeta:
    agents = (Agent("generator", 0), Agent("generator", 1), Agent("judge"))
    return RunMeta.of_policies(
        "bare",
        [PolicyMeta("p", agents, ("all",), 10)],
        roles=("generator", "judge", "ghost"),
        routing={"generator": "p", "judge": "p", "ghost": "p"},
        problems=("a", "b"),
        eval_samples=samples,
    )


def test_empty_store_is_judged_without_an_error(tmp_path: Path) -> None:
    RunStore.create(tmp_path / "run.zarr", bare_meta()).close()
    diagnosis = diagnose(open_run(tmp_path))
    assert diagnosis.status == "not judged"
    json.loads(diagnosis.to_json())


@pytest.mark.filterwarnings("error")
def test_store_of_nothing_but_nan_and_gaps_is_judged_without_an_error(tmp_path: Path) -> None:
    with RunStore.create(tmp_path / "run.zarr", bare_meta()) as store:
        rng = np.random.default_rng(0)
        for step in range(1, 61):
            gram = np.full((1, 3, 3), np.nan) if step % 7 == 0 else np.eye(3)[None]
            if step % 5:
                store.append(UpdateRecord("p", step, gram, metrics=UpdateMetrics()))
            store.append(StepRecord(step, 0.0, RunLedger(), {"judge": RoleLedger()}))
            if step % 5 == 0:
                correct = rng.integers(0, 2, (2, 1)).astype(np.uint8)
                correct[0] = 255 if step % 10 else correct[0]
                store.append(EvalRecord(step, correct, {}, np.full((3, 2), np.nan)))
    diagnosis = diagnose(open_run(tmp_path))
    assert diagnosis.status in ("healthy", "not judged")
    assert any("judge: " in question.what for question in diagnosis.not_judged)
    assert any("loss weight" in question.what for question in diagnosis.not_judged)


def test_unexplained_gradients_come_before_everything_else(tmp_path: Path) -> None:
    with RunStore.create(tmp_path / "run.zarr", bare_meta()) as store:
        for step in range(1, 31):
            residual = 0.3 if step == 9 else 1e-6
            metrics = UpdateMetrics(residual=residual, coverage=0.9)
            store.append(UpdateRecord("p", step, np.eye(3)[None], metrics=metrics))
            store.append(StepRecord(step, 0.0, RunLedger(), {}))
    finding = diagnose(open_run(tmp_path)).findings[0]
    assert finding.kind == "instrumentation"
    assert finding.strength == pytest.approx(0.3)
    assert any("first at step 9" in sentence for sentence in finding.evidence)


@pytest.mark.parametrize(
    ("dtype", "residual", "every", "is_found"),
    [
        ("float32", 0.01, 1, True),  # 1 % of every gradient is nobody's
        ("float32", 0.01, 25, True),  # in 4 % of the updates
        ("float32", 0.01, 200, False),  # one update in 200
        ("float32", 0.03, 200, True),  # but not as much as this
        ("float32", 1e-5, 1, False),
        ("bfloat16", 0.01, 1, False),  # rounding
        ("bfloat16", 0.03, 200, True),
        (None, 0.01, 1, False),
        (None, float("inf"), 200, True),
    ],
)
def test_unexplained_gradient_is_told_from_rounding(
    tmp_path: Path, dtype: str | None, residual: float, every: int, is_found: bool
) -> None:
    meta = replace(bare_meta(), config={"dtype": dtype} if dtype else {})
    with RunStore.create(tmp_path / "run.zarr", meta) as store:
        for step in range(1, 201):
            metrics = UpdateMetrics(residual=1e-6 if step % every else residual, coverage=1.0)
            store.append(UpdateRecord("p", step, np.eye(3)[None], metrics=metrics))
            store.append(StepRecord(step, 0.0, RunLedger(), {}))
    diagnosis = diagnose(open_run(tmp_path))
    assert bool(diagnosis.of_kind("instrumentation")) == is_found
    json.loads(diagnosis.to_json())


@pytest.mark.parametrize(("factor", "is_found"), [(1.0, False), (50.0, True)])
def test_adapter_that_never_reached_the_sampler_is_found(
    tmp_path: Path, factor: float, is_found: bool
) -> None:
    path = synthetic_run(
        tmp_path / "run", steps=60, evals=9, shifts=(Shift("logprob_gap", "generator", 1, factor),)
    )
    diagnosis = diagnose(open_run(path))
    found = [finding.subject for finding in diagnosis.of_kind("instrumentation")]
    assert found == (["generator"] if is_found else [])


def test_broken_role_is_found_although_accuracy_holds(tmp_path: Path) -> None:
    path = synthetic_run(
        tmp_path / "run",
        steps=100,
        evals=21,
        shifts=(
            Shift("parse_failures", "aggregator", 60, 31.0),
            Shift("length_mean", "aggregator", 60, 3.0),
        ),
    )
    run = open_run(path)
    finding = BreakdownRule()(run)[0]
    assert (finding.kind, finding.subject) == ("role breakdown", "aggregator")
    assert finding.onset is not None
    assert abs(finding.onset.step - 60) <= 3
    assert any("response length" in sentence for sentence in finding.evidence)
    assert BreakdownRule().num_tested(run) == 4  # parse failures and cuts, of two roles
    diagnosis = diagnose(run)
    assert diagnosis.status == "role breakdown"
    assert "Broken down, by format or length: aggregator" in diagnosis.verdict


def test_spike_of_parse_failures_is_not_a_breakdown(tmp_path: Path) -> None:
    shifts = (
        Shift("parse_failures", "aggregator", 50, 31.0),
        Shift("parse_failures", "aggregator", 60, 1 / 31.0),
    )
    path = synthetic_run(tmp_path / "run", steps=100, evals=0, problems=0, shifts=shifts)
    assert BreakdownRule()(open_run(path)) == []


def test_long_run_is_judged_with_what_moved(tmp_path: Path) -> None:
    path = synthetic_run(
        tmp_path / "run",
        steps=500,
        evals=51,
        cliff=Cliff(300, 0.2),
        shifts=(Shift("kl", "generator", 270, 4.0), Shift("entropy", "aggregator", 280, 0.5)),
    )
    diagnosis = diagnose(open_run(path))
    assert diagnosis.status == "cliff"
    assert {"kl:generator", "entropy:aggregator"} <= {v.key for v in diagnosis.signals if v.onset}


def trained(store: RunStore, steps: int, every: int = 0, correct: float = 0.5) -> None:
    """Steps with healthy numbers of the roles that act, and an evaluation every `every` steps."""
    rng = np.random.default_rng(0)
    for step in range(1, steps + 1):
        store.append(
            UpdateRecord("p", step, np.eye(3)[None], metrics=UpdateMetrics(learning_rate=1e-4))
        )
        store.append(StepRecord(step, 0.0, RunLedger(), {"judge": RoleLedger(entropy=0.5)}))
        if every and step % every == 0:
            solved = (rng.random((2, 50)) < correct).astype(np.uint8)
            store.append(EvalRecord(step, solved, {}, np.full((3, 2), np.nan)))


def judged(folder: Path) -> tuple[str, dict[str, str]]:
    """Verdict, and what was not judged and why; the page and every figure have to be drawn."""
    run = open_run(folder)
    diagnosis = diagnose(run)
    write_page(diagnosis, run, folder / "report.html")
    make_figures([folder], folder / "figures", say=lambda _: None)
    return diagnosis.verdict, {q.what: q.why for q in diagnosis.not_judged}


@pytest.mark.filterwarnings("error")
def test_one_evaluation_is_an_accuracy_and_no_verdict(tmp_path: Path) -> None:
    with RunStore.create(tmp_path / "run.zarr", bare_meta(samples=50)) as store:
        trained(store, 30, every=30)
    verdict, open_questions = judged(tmp_path)
    assert verdict.startswith("One evaluation (")
    assert "two are needed" in verdict
    assert "a single one" in open_questions["held-out accuracy"]


@pytest.mark.filterwarnings("error")
def test_role_that_never_acts_is_listed_and_the_others_are_judged(tmp_path: Path) -> None:
    with RunStore.create(tmp_path / "run.zarr", bare_meta(samples=50)) as store:
        trained(store, 60, every=5)
    verdict, open_questions = judged(tmp_path)
    assert verdict.startswith(("No fall: ", "Nothing learned: "))
    assert any(what.startswith("ghost: ") for what in open_questions)
    keys = {signal.key for signal in diagnose(open_run(tmp_path)).signals}
    assert "entropy:judge" in keys
    assert not any(key.endswith(":ghost") for key in keys)


@pytest.mark.filterwarnings("error")
def test_run_that_is_being_written_is_judged_as_far_as_it_got(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "run.zarr", bare_meta(samples=50))
    trained(store, 60, every=5)
    verdict, open_questions = judged(tmp_path)
    assert verdict.startswith("The run is at step 60 and its store is open")
    assert "the end of the run" in open_questions
    trained_on = len(open_run(tmp_path).steps)
    store.close()
    assert trained_on == 60, "also what only the journal holds"


@pytest.mark.parametrize("group", ["train", "eval", "updates/p"])
def test_rows_out_of_order_are_refused_with_where_and_what_to_do(
    tmp_path: Path, group: str
) -> None:
    with RunStore.create(tmp_path / "run.zarr", bare_meta(samples=50)) as store:
        trained(store, 20, every=2)
    run = open_run(tmp_path)
    stored = run._groups[group]
    step = stored.array("step").copy()
    step[[3, 4]] = step[[4, 3]]
    stored._arrays["step"] = step
    where = rf"{group}: step {step[4]} comes after step {step[3]}, expected rows in the order"
    with pytest.raises(ValueError, match=where):
        diagnose(run)


def test_stores_that_are_not_ours_are_refused_by_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zarr.create_group(tmp_path / "theirs.zarr")
    assert main(["diagnose", str(tmp_path / "theirs.zarr")]) == 2
    assert "was not recorded by gradlab" in capsys.readouterr().err
    assert main(["diagnose", str(tmp_path / "nothing")]) == 2
    assert "no run store at" in capsys.readouterr().err
    (tmp_path / "log.txt").write_text("step:1 - a:1")
    assert main(["diagnose", str(tmp_path / "log.txt")]) == 2
    error = capsys.readouterr().err
    assert "is not a run store" in error
    assert "gradlab import" in error


def test_a_role_that_ends_broken_broke_however_slowly() -> None:
    """From 3 % to all in 60 of 84 steps, with noise that remembers."""
    rng = np.random.default_rng(1)
    wobble_T = np.convolve(rng.normal(0, 0.12, 90), np.ones(7) / 7**0.5, "valid")
    share_T = np.clip(0.03 + np.clip((np.arange(84) - 20) / 55, 0, 1) + wobble_T, 0, 1)
    share_T[:20] = rng.uniform(0, 0.06, 20)
    share_T[-8:] = 0.98
    found = BreakdownRule().measure(share_T)
    assert found is not None
    assert found.p_value <= 1e-4
    assert found.after > 0.8
    # Half of it is asked for wander as before.
    half = BreakdownRule().measure(0.6 * share_T)
    assert half is None or half.p_value > 1e-4
