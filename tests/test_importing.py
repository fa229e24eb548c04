"""Other people's runs become stores with the logged values, and say what cannot be judged."""

from __future__ import annotations

import csv
import json
import math
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from analysis.diagnosis import diagnose
from analysis.report.page import write_page
from figures.make import make_figures
from gradlab.commands import main as cli
from gradlab.interop.logs.importing import Imported, import_run
from gradlab.interop.logs.summary import told
from gradlab.store.run import Run, open_run

LOGS = Path(__file__).parent / "logs"
STEPS = 60
Metrics = dict[str, dict[int, float]]
"""metric -> step -> value."""


def made(falls: bool = True) -> Metrics:
    """A run of the paper's trainer under isolated policies; accuracy of 200 answers falls."""
    rng = np.random.default_rng(0)
    steps = range(1, STEPS + 1)
    metrics: Metrics = {
        "actor/generator/grad_norm": {s: float(rng.lognormal(-1, 0.2)) for s in steps},
        "actor/aggregator/grad_norm": {s: float(rng.lognormal(1, 0.2)) for s in steps},
        "actor/generator/training_ppl": {s: float(rng.normal(1.3, 0.01)) for s in steps},
        "actor/lr": dict.fromkeys(steps, 2e-5),
        "batch/success": {s: float(rng.binomial(512, 0.4) / 512) for s in steps},
        "generator_acc": {s: float(rng.binomial(512, 0.35) / 512) for s in steps},
        "actor/entropy": dict.fromkeys(steps, 0.4),
    }
    metrics["val/unknown/pass@1"] = {
        s: float(rng.binomial(200, 0.2 if falls and s > 35 else 0.6) / 200)
        for s in range(0, STEPS + 1, 3)
    }
    return metrics


def by_step(metrics: Metrics) -> dict[int, dict[str, float]]:
    rows: dict[int, dict[str, float]] = {}
    for name, values in metrics.items():
        for step, value in values.items():
            rows.setdefault(step, {})[name] = value
    return dict(sorted(rows.items()))


def as_console(metrics: Metrics, folder: Path) -> Path:
    lines = ["(raylet) starting", "Training Progress:   0%|          | 0/60 [00:00<?, ?it/s]"]
    for step, row in by_step(metrics).items():
        pieces = " - ".join(f"{name}:{value!r}" for name, value in row.items())
        lines.append(f"\x1b[36m(TaskRunner pid=7)\x1b[0m step:{step} - {pieces}")
    file = folder / "train.log"
    file.write_text("\n".join(lines) + "\n")
    return file


def as_wandb_page(metrics: Metrics, folder: Path) -> Path:
    file = folder / "wandb_export_2025-11-20T10_00_00.000+00_00.csv"
    with file.open("w", newline="") as out:
        table = csv.writer(out, quoting=csv.QUOTE_ALL)
        parts = ["", "__MIN", "__MAX"]
        table.writerow(["Step", *(f"run-1 - {name}{p}" for name in metrics for p in parts)])
        for step, row in by_step(metrics).items():
            table.writerow([step, *(row.get(name, "") for name in metrics for _ in parts)])
    return file


def as_scan_history(metrics: Metrics, folder: Path) -> Path:
    file = folder / "history.jsonl"
    rows = [
        {**row, "_step": step, "_timestamp": 1.7e9 + step} for step, row in by_step(metrics).items()
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def as_event_files(metrics: Metrics, folder: Path) -> Path:
    pytest.importorskip("tensorboard", reason="reads event files")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "tb")) as writer:
        for name, values in metrics.items():
            for step, value in values.items():
                writer.add_scalar(name, value, step)
    return folder / "tb"


FORMATS = [as_console, as_wandb_page, as_scan_history, as_event_files]


def shown(run: Run, folder: Path) -> str:
    """The page and all figures of a run; the text of the page."""
    said: list[str] = []
    written = make_figures([run.path], folder / "figures", say=said.append)
    assert all(file.stat().st_size for file in written)
    return write_page(diagnose(run), run, folder / "report.html").read_text("utf-8")


@pytest.mark.parametrize("write", FORMATS)
def test_values_come_back_and_the_fall_is_found(
    tmp_path: Path, write: Callable[[Metrics, Path], Path]
) -> None:
    metrics = made()
    imported = import_run([write(metrics, tmp_path)], tmp_path / "run", eval_size="200")
    run = open_run(tmp_path / "run")
    loose = 1e-6  # the store and event files keep float32
    for role in ("generator", "aggregator"):
        norm = run.norm(role)
        assert norm.step_T.tolist() == [*range(1, STEPS + 1)]
        np.testing.assert_allclose(
            norm.value_T, [*metrics[f"actor/{role}/grad_norm"].values()], rtol=loose
        )
    np.testing.assert_allclose(
        run.run_metric("accuracy").value_T, [*metrics["batch/success"].values()], rtol=loose
    )
    np.testing.assert_allclose(
        run.ledger("own_accuracy", "generator").value_T,
        [*metrics["generator_acc"].values()],
        rtol=loose,
    )
    evaluations = run.evaluations()
    assert evaluations.step_E.tolist() == [*range(0, STEPS + 1, 3)]
    np.testing.assert_allclose(
        evaluations.accuracy().value_T, [*metrics["val/unknown/pass@1"].values()], rtol=loose
    )
    assert set(evaluations.num_samples_E()) == {200}
    diagnosis = diagnose(run)
    assert diagnosis.status == "cliff"
    assert diagnosis.findings[0].onset is not None
    assert diagnosis.findings[0].onset.lower <= 33 <= diagnosis.findings[0].onset.upper
    assert "on 200 answers; band: 95 %" in shown(run, tmp_path)
    assert imported.matched.refused["actor/entropy"] == "one value for all roles"
    assert "actor/entropy" in run.meta.config["imported"]["not taken"]


def test_noise_of_rates_of_unknown_size_is_inferred_and_said_so(tmp_path: Path) -> None:
    imported = import_run([as_console(made(), tmp_path)], tmp_path / "run")
    run = open_run(tmp_path / "run")
    diagnosis = diagnose(run)
    assert diagnosis.status == "cliff"
    assert diagnosis.accuracy.is_noise_assumed
    assert any("noise assumed: " in sentence for sentence in diagnosis.drops[0].evidence)
    to_do = {question.what: question.to_do for question in diagnosis.not_judged}
    assert "--eval-size" in to_do["how noisy an evaluation is"]
    assert diagnosis.accuracy.base == pytest.approx(made()["val/unknown/pass@1"][0])
    assert diagnosis.accuracy.terminal < 0.3
    assert "so there is no interval" in shown(run, tmp_path)
    missing = {entry["what"] for entry in run.meta.config["missing"]}
    assert any("they are multiples of 1/200, if that is it" in what for what in missing)
    assert {lack.what for lack in imported.lacks} == missing


def test_size_that_does_not_fit_the_rates_is_questioned(tmp_path: Path) -> None:
    imported = import_run([as_console(made(), tmp_path)], tmp_path / "run", eval_size="30x3")
    assert any("no multiples of 1/90: is --eval-size 30x3 right?" in n for n in imported.notes)


@pytest.mark.filterwarnings("error")
def test_norms_without_angles_in_a_shared_policy_are_shares_and_nothing_more(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(1)
    file = tmp_path / "mine.csv"
    lines = ["it,solver,judge,acc,n"]
    for step in range(1, 81):
        judge = 6.0 if step > 40 else 0.7
        accuracy = f"{rng.binomial(100, 0.5) / 100},100" if step % 5 == 0 else ","
        lines.append(f"{step},{rng.lognormal(0, 0.1)},{judge * rng.lognormal(0, 0.1)},{accuracy}")
    file.write_text("\n".join(lines))
    column_map = tmp_path / "map.json"
    columns = {
        "solver": "Gradient(solver).norm",
        "judge": "Gradient(judge).norm",
        "acc": "Evaluation.accuracy",
        "n": "Evaluation.answers",
    }
    column_map.write_text(json.dumps({"step": "it", "routing": "shared", "columns": columns}))
    import_run([file], tmp_path / "run", column_map=column_map)
    run = open_run(tmp_path / "run")
    norms = {role: np.asarray(run.norm(role).value_T) for role in run.roles}
    share_T = np.asarray(run.step_mass("share")["judge"].value_T)
    np.testing.assert_allclose(share_T, norms["judge"] / (norms["judge"] + norms["solver"]))
    assert np.isnan(run.cosine("solver", "judge").value_T).all()
    for measure in ("pull", "update"):
        assert np.isnan(run.step_mass(measure)["judge"].value_T).all()  # type: ignore[arg-type]
    assert np.isnan(run.norm("total").value_T).all(), "no norm of a sum without angles"
    diagnosis = diagnose(run)
    assert [f.subject for f in diagnosis.of_kind("capture", "dominance")] == ["judge"]
    assert all(finding.confidence != "high" for finding in diagnosis.of_kind("capture"))
    shown(run, tmp_path)
    assert (tmp_path / "figures/step_mass.png").exists()
    assert not (tmp_path / "figures/cosine.png").exists()


def test_cosines_in_a_map_complete_the_gram(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"step": 1, "a": 3.0, "b": 4.0, "c": 0.5}\n')
    column_map = tmp_path / "map.json"
    columns = {
        "a": "Gradient(x).norm",
        "b": "Gradient(y).norm",
        "c": "Gradient(x, y).cosine",
    }
    column_map.write_text(json.dumps({"routing": "shared", "columns": columns}))
    import_run([file], tmp_path / "run", column_map=column_map)
    run = open_run(tmp_path / "run")
    assert run.cosine("x", "y").value_T[0] == pytest.approx(0.5)
    # <g_x, g_x + g_y> / ||g_x + g_y||^2 = (9 + 6) / (9 + 16 + 12)
    assert run.step_mass("pull")["x"].value_T[0] == pytest.approx(15 / 37)
    assert run.norm("total").value_T[0] == pytest.approx(math.sqrt(37))


def test_trainer_state_of_trl(tmp_path: Path) -> None:
    imported = import_run([LOGS / "trainer_state.json"], tmp_path / "run", about={"model": "qwen"})
    assert imported.meta.model == "qwen"
    run = open_run(tmp_path / "run")
    assert run.steps.tolist() == [10, 20, 30]
    np.testing.assert_allclose(run.norm("agent").value_T, [0.4125, 0.3875, np.nan], rtol=1e-6)
    np.testing.assert_allclose(run.ledger("kl", "agent").value_T, [0.0009, 0.0021, 0.0033], 1e-6)
    np.testing.assert_allclose(run.ledger("truncated", "agent").value_T, [0.25, 0.3125, np.nan])
    np.testing.assert_allclose(run.run_metric("accuracy").value_T, [0.3125, 0.375, np.nan])
    assert run.evaluations().accuracy().value_T.tolist() == [0.35]
    diagnosis = diagnose(run)
    assert "The run stopped at 30 of 500 steps." in diagnosis.verdict
    shown(run, tmp_path)


def test_resumed_segments_with_dropped_keys_and_gaps(tmp_path: Path) -> None:
    metrics = made()
    rows = by_step(metrics)
    first = {step: row for step, row in rows.items() if step <= 30}
    second = {
        step: {name: value for name, value in row.items() if not name.startswith("batch")}
        for step, row in rows.items()
        if step >= 26 and step not in (40, 41)
    }
    files = []
    for name, part in (("1", first), ("2", second)):
        (tmp_path / name).mkdir()
        again: Metrics = {}
        for step, row in part.items():
            for metric, value in row.items():
                again.setdefault(metric, {})[step] = value
        files.append(as_console(again, tmp_path / name))
    imported = import_run(files, tmp_path / "run", eval_size="200")
    run = open_run(tmp_path / "run")
    assert run.steps.tolist() == [*range(1, STEPS + 1)]
    success = np.asarray(run.run_metric("accuracy").value_T)
    assert np.flatnonzero(np.isfinite(success)).tolist() == [*range(25)]
    assert not np.isfinite(run.ledger("perplexity", "generator").value_T[39:41]).any()
    assert any("steps 26 to 30 logged again after a resume" in note for note in imported.notes)
    assert any("2 steps between 40 and 41 are not in the log" in note for note in imported.notes)
    assert diagnose(run).status == "cliff"
    shown(run, tmp_path)


def test_evaluations_between_logged_steps_are_no_steps(tmp_path: Path) -> None:
    entries = [{"step": s, "loss": 0.1, "grad_norm": 0.5} for s in range(10, 101, 10) if s != 60]
    entries += [{"step": s, "eval_rewards/accuracy/mean": 0.5} for s in range(5, 101, 5)]
    entries.sort(key=lambda entry: entry["step"])
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": entries}))
    import_run([tmp_path / "trainer_state.json"], tmp_path / "run")
    run = open_run(tmp_path / "run")
    assert run.steps.tolist() == [*range(10, 101, 10)], "60 is a gap, 5 is an evaluation"
    assert run.norm("agent").step_T.tolist() == [s for s in range(10, 101, 10) if s != 60]
    assert run.evaluations().step_E.tolist() == [*range(5, 101, 5)]


def test_run_without_accuracies_is_diagnosed_by_what_moved(tmp_path: Path) -> None:
    metrics = made()
    del metrics["val/unknown/pass@1"]
    import_run([as_console(metrics, tmp_path)], tmp_path / "run")
    run = open_run(tmp_path / "run")
    assert not run.meta.rates
    diagnosis = diagnose(run)
    assert diagnosis.accuracy.outcome.startswith("training ")
    assert "No held-out evaluation says so" in diagnosis.verdict
    to_do = {question.what: question.to_do for question in diagnosis.not_judged}
    assert "--accuracy" in to_do["held-out accuracy"]
    assert diagnosis.signals
    shown(run, tmp_path)


def test_messy_log_of_a_whole_job(tmp_path: Path) -> None:
    imported = import_run([LOGS / "verl-0.4.log"], tmp_path / "run")
    run = open_run(tmp_path / "run")
    assert run.steps.tolist() == [1, 2, 3, 4, 5]
    assert run.evaluations().step_E.tolist() == [0, 3], "the base model is no training step"
    assert np.isinf(run.norm("agent").value_T[2])
    assert np.isnan(run.ledger("kl", "agent").value_T[2])
    assert run.meta.config["steps"] == 435
    diagnose(run)
    shown(run, tmp_path)
    text = "\n".join(told(imported))
    assert "Note: verl-0.4.log: actor/lr printed as 0.000" in text
    assert "actor/ppo_kl (KL to the policy before the step" in text


def told_of(imported: Imported) -> str:
    return "\n".join(told(imported))


def test_everything_left_out_is_told(tmp_path: Path) -> None:
    text = told_of(import_run([as_console(made(), tmp_path)], tmp_path / "run"))
    assert "console, 60 steps, 21 evaluations, generator, aggregator in 2 policies" in text
    assert "Not taken: actor/entropy (one value for all roles)" in text
    assert "Missing: gradients of single agents; needed for amplification." in text
    assert text.endswith(f"Next: gradlab diagnose {tmp_path / 'run'}")


BAD_CALLS = [
    ({"eval_size": "many"}, r"eval size is 'many'; expected the number of held-out problems"),
    ({"eval_size": "0"}, r"eval size is '0'"),
    ({"accuracy": "nope"}, r"no metric 'nope' to take as held-out accuracy"),
    ({"kind": "csv"}, r"the first line has 1 columns, expected a header"),
    ({"column_map": Path("nowhere.json")}, r"nowhere\.json"),
]


@pytest.mark.parametrize(("settings", "message"), BAD_CALLS)
def test_bad_call_writes_nothing(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    log = as_console(made(), tmp_path)
    with pytest.raises((ValueError, OSError), match=message):
        import_run([log], tmp_path / "run", **settings)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_size_without_an_accuracy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no metric holds a held-out accuracy; name it with --acc"
    ):
        import_run([LOGS / "list.log"], tmp_path / "run", eval_size="30")


def test_log_of_unknown_metrics_asks_for_a_map(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("step,foo\n1,2\n")
    with pytest.raises(ValueError, match=r"none of its metrics is known \(foo\); say with --map"):
        import_run([tmp_path / "a.csv"], tmp_path / "run")


def test_run_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    import_run([LOGS / "list.log"], tmp_path / "run")
    with pytest.raises(ValueError, match=r"run: holds a run already; choose another --out"):
        import_run([LOGS / "list.log"], tmp_path / "run")
    with pytest.raises(ValueError, match="is a run store already; use gradlab diagnose"):
        import_run([tmp_path / "run"], tmp_path / "other")


def test_command_imports_and_diagnoses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, out = str(as_console(made(), tmp_path)), str(tmp_path / "run")
    words = ["import", log, "--out", out, "--eval-size", "200", "--task", "DAPO"]
    assert cli.main([*words, "--routing", "generator=g,aggregator=a"]) == 0
    assert "60 steps, 21 evaluations" in capsys.readouterr().out
    assert cli.main(["diagnose", out]) == 0
    assert "Held-out accuracy fell by" in capsys.readouterr().out.replace("\n", " ")
    assert open_run(out).meta.routing == {"generator": "g", "aggregator": "a"}
    assert cli.main([*words]) == 2
    assert "holds a run already" in capsys.readouterr().err


def test_map_of_the_documentation_works(tmp_path: Path) -> None:
    pytest.importorskip("yaml", reason="reads YAML")
    document = (LOGS.parent.parent / "docs/interop.md").read_text("utf-8")
    found = re.search(r"^```yaml map\n(.*?)^```", document, re.M | re.S)
    assert found
    (tmp_path / "map.yaml").write_text(found[1])
    (tmp_path / "mine.csv").write_text(
        "iteration;solver_gnorm;judge_gnorm;cos;solver_len;lr;solved;heldout;judge_ok\n"
        "1;0.5;0.25;-0.1;120;1e-5;0.4;41.5;0.6\n"
    )
    import_run([tmp_path / "mine.csv"], tmp_path / "run", column_map=tmp_path / "map.yaml")
    run = open_run(tmp_path / "run")
    assert run.evaluations().accuracy().value_T[0] == pytest.approx(0.415)
    assert run.evaluations().num_samples_E().tolist() == [200]
    assert run.evaluations().role("own_accuracy", "judge").value_T[0] == pytest.approx(0.6)
    assert run.cosine("solver", "judge").value_T[0] == pytest.approx(-0.1)


def test_commands_of_the_documentation_have_options_that_exist(
    capsys: pytest.CaptureFixture[str],
) -> None:
    document = (LOGS.parent.parent / "docs/interop.md").read_text("utf-8")
    used = set(re.findall(r"--[a-z-]+", document.partition("# Other people's runs")[2]))
    with pytest.raises(SystemExit):
        cli.main(["import", "--help"])
    explained = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    assert used
    assert used <= explained


def test_a_huge_step_number_takes_no_memory(tmp_path: Path) -> None:
    """A log whose last line counts tokens: a row per logged step, none for what lies between."""
    log = tmp_path / "log.jsonl"
    steps = [0, 1, 2, 3, 10**9, 2**53]
    log.write_text("".join(json.dumps({"step": step, "loss": 0.5}) + "\n" for step in steps))
    tracemalloc.start()
    imported = import_run([log], tmp_path / "run")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6
    assert open_run(tmp_path / "run").steps.tolist() == steps
    assert not any("not in the log" in note for note in imported.notes)
