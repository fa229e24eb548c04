"""Logs in the style of many trainers, and damaged ones, are read as far as they can be trusted."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest

from gradlab.interop.logs.history import History, join
from gradlab.interop.logs.importing import import_run
from gradlab.interop.logs.reading.console import read_console
from gradlab.interop.logs.reading.numbers import number
from gradlab.interop.logs.reading.sources import kind_of, read
from gradlab.interop.logs.reading.texts import CUT_AT
from gradlab.store.run import open_run


def history(path: Path, text: str, **asked: object) -> History:
    """What a file with this text holds."""
    path.write_text(text, newline="")
    return join([part for _, part in read([path], **asked)])  # type: ignore[arg-type]


def bar(step: int, of: int = 60, what: str = "") -> str:
    blocks = "█" * (10 * step // of)
    return f"\r{what} {100 * step // of}%|{blocks}  | {step}/{of} [00:10<01:00,  1.2s/it]"


# numbers


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.5", 0.5),
        ("1e-06", 1e-6),
        ("np.float64(0.5)", 0.5),
        ("np.float32(-3e-05)", -3e-5),
        ("tensor(0.5, device='cuda:0', dtype=torch.bfloat16)", 0.5),
        ("tensor([2.])", 2.0),
        ("'12.9'", 12.9),
        ("Infinity", math.inf),
        ("-inf", -math.inf),
        ("np.float64(0.", None),
        ("tensor(0.3", None),
        ("1.2.3", None),
        ("12/60", None),
        ("20.00%", None),
        (True, 1.0),
        (None, None),
    ],
)
def test_numbers_as_they_are_printed(text: object, value: float | None) -> None:
    assert number(text) == value


def test_nan_is_a_number_in_any_spelling() -> None:
    for text in ("NaN", "nan", "tensor(nan)", float("nan")):
        found = number(text)
        assert found is not None
        assert math.isnan(found)


# dictionaries on the console


def test_bars_of_other_things_give_no_steps(tmp_path: Path) -> None:
    lines = [bar(2, 2, "Loading checkpoint shards: "), "\n"]
    for step in range(5, 61, 5):
        lines += [bar(step), bar(7, 7, "Generating: "), "\n"]
        lines += [f"{{'loss': 0.1, 'grad_norm': {step}.5, 'epoch': 0.1}}\n"]
        if step % 20 == 0:
            lines += [bar(100, 100), "\n", "{'eval_loss': 0.3, 'eval_runtime': 2.0}\n"]
    lines += ["{'train_runtime': 12.0, 'train_loss': 0.1, 'epoch': 1.0}\n"]
    found = history(tmp_path / "a.log", "".join(lines))
    assert found.step_T.tolist() == [*range(5, 61, 5)]
    assert found.metrics["grad_norm"].tolist() == [step + 0.5 for step in range(5, 61, 5)]
    evaluated = found.step_T[np.isfinite(found.metrics["eval_loss"])]
    assert evaluated.tolist() == [20, 40, 60], "an evaluation is of the step before it"
    assert found.planned == 60


def test_dictionaries_without_bars_are_counted_and_it_is_said(tmp_path: Path) -> None:
    rows = "".join(f"{{'loss': '0.1', 'reward': '0.{i}', 'kl': 'nan'}}\r\n" for i in range(1, 5))
    found = history(tmp_path / "a.log", rows)
    assert found.step_T.tolist() == [1, 2, 3, 4]
    assert found.metrics["reward"].tolist() == [0.1, 0.2, 0.3, 0.4], "quoted, as newer trainers do"
    assert any("were counted, the first is step 1" in note for note in found.notes)


def test_stdout_that_came_in_one_piece_is_spread_over_the_finished_run(tmp_path: Path) -> None:
    bars = "".join(bar(step) for step in range(61))
    rows = "".join(f"{{'loss': 0.1, 'reward': 0.{i}}}\n" for i in range(1, 7))
    found = history(tmp_path / "a.log", f"{bars}\n{rows}{{'train_runtime': 5.0}}\n")
    assert found.step_T.tolist() == [10, 20, 30, 40, 50, 60]
    assert any("10 steps apart" in note for note in found.notes)


def test_torn_dictionaries_lose_what_stood_at_the_tear_and_nothing_else(tmp_path: Path) -> None:
    text = (
        f"{bar(1)}{{'loss': 0.1, 'reward': 0.5, 'kl': 0.01}}{{'eval_loss': 0.7}}\n"
        f"{bar(2)}{{'loss': 0.1, 'rew{bar(2)}ard': 0.25, 'kl': 0.02}}\n"
        f"{bar(3)}{{'loss': 0.1, 'reward': 0.75,\n 'kl': 0.03}}\n"
        f"{bar(4)}{{'loss': 0.1, 'reward': (EngineCore pid=3) INFO: hello\n 0.9, 'kl': 0.04}}\n"
        f"{bar(5)}{{'loss': 0.1, 'reward': 0.6, 'k\n"
        f"{bar(6)}{{'loss': 0.1, 'reward': 0.7, 'kl': 1}}\n"
    )
    found = history(tmp_path / "a.log", text)
    assert found.step_T.tolist() == [1, 2, 3, 4, 5, 6]
    assert found.metrics["reward"][[0, 1, 2]].tolist() == [0.5, 0.25, 0.75]
    assert math.isnan(found.metrics["reward"][3]), "nobody knows what stood there"
    assert found.metrics["reward"][[4, 5]].tolist() == [0.6, 0.7]
    assert found.metrics["kl"].tolist()[:4] == [0.01, 0.02, 0.03, 0.04]
    assert any("dictionaries are torn by other output" in note for note in found.notes)


def test_step_before_a_dictionary_is_its_step(tmp_path: Path) -> None:
    text = "".join(
        f"\x1b[36m(Trainer pid=3)\x1b[0m INFO Global step {s}: {{'policy_loss': -0.1, "
        f"'reward': tensor(0.{s}, device='cuda:0'), 'actor_lr': 1e-06}}\n"
        for s in (3, 4, 5)
    )
    found = history(
        tmp_path / "openrlhf.log", "{'lr': 1e-06, 'model': 'qwen', 'run': 'a'}\n" + text
    )
    assert found.step_T.tolist() == [3, 4, 5]
    assert found.metrics["reward"].tolist() == [0.3, 0.4, 0.5]


def test_step_in_a_dictionary_goes_before_any_bar(tmp_path: Path) -> None:
    text = "".join(
        f"{bar(i)}{{'loss': 0.1, 'reward': 0.5, 'global_step/max_steps': '{10 * i}/600'}}\n"
        for i in (1, 2, 3)
    )
    found = history(tmp_path / "swift.log", text)
    assert found.step_T.tolist() == [10, 20, 30]
    assert found.planned == 600


def test_settings_and_samples_are_no_metrics(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("{'model': 'x', 'batch': 3}\n{'prompt': 'a', 'answer': 'b'}\n")
    with pytest.raises(ValueError, match=r"cannot tell what this is"):
        kind_of(log)


# lines that were cut


def cut_line(step: int, rest: str, colour: str = "", wide: str = "") -> str:
    """A line of verl, padded so that it would go on, and cut at 4096 characters."""
    line = f"{colour}step:{step} - actor/grad_norm:0.5 - note/{wide}"
    line += "x" * (CUT_AT - len(line) - len(rest) - 10)
    return f"{line}:1.5 - {rest}12345678901234567890"[:CUT_AT]


@pytest.mark.parametrize(
    "rest", ["val/a/pass@1:0.", "val/a/pass@1:np.float64(0.25", "val/a/pass@1:0"]
)
@pytest.mark.parametrize("wide", ["", "é"])
def test_value_at_the_cut_is_not_taken_whatever_it_looks_like(
    tmp_path: Path, rest: str, wide: str
) -> None:
    whole = "step:0 - actor/grad_norm:0.5 - val/a/pass@1:0.25 - val/b/pass@1:0.5\n"
    log = tmp_path / "output.log"
    log.write_text(
        whole + cut_line(10, rest, wide=wide) + "\n7 more\nstep:11 - actor/grad_norm:1.0\n"
    )
    part = read_console(log)
    by_step = {row.step: row.values for row in part.rows}
    assert by_step[0]["val/a/pass@1"] == 0.25
    assert "val/a/pass@1" not in by_step[10]
    assert by_step[10]["actor/grad_norm"] == 0.5
    (note,) = [note for note in part.notes if "4096" in note]
    assert "val/a/pass@1 (from step 10 on, in 1 of them)" in note
    assert part.lost == ("val/a/pass@1",) or set(part.lost) == {"val/a/pass@1", "val/b/pass@1"}


def test_cut_counts_bytes_too(tmp_path: Path) -> None:
    line = "step:3 - actor/grad_norm:0.5 - note/é:1.5 - val/a/pass@1:0."
    line = line.replace("é", "é" + "y" * (CUT_AT - len(line.encode())))
    assert len(line.encode()) == CUT_AT
    assert len(line) < CUT_AT
    (tmp_path / "output.log").write_text(line + "\n")
    assert "val/a/pass@1" not in read_console(tmp_path / "output.log").rows[0].values


# tables


def test_rows_without_a_step_are_counted_and_their_columns_named(tmp_path: Path) -> None:
    rows = [{"loss": 0.1, "iteration": i, "lr": 1e-6} for i in range(60)] + [
        {"global_step": 60, "x": 1}
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        ValueError,
        match=r"none of its metrics is known \(x\).*60 of 61 rows have no number in the step "
        r"column 'global_step'.*they have the columns loss, iteration, lr.*--step",
    ):
        import_run([tmp_path / "a.jsonl"], tmp_path / "run")
    import_run([tmp_path / "a.jsonl"], tmp_path / "run", step="iteration")
    assert open_run(tmp_path / "run").steps.tolist() == [*range(60)]


def test_updates_of_one_rollout_are_averaged(tmp_path: Path) -> None:
    rows: list[dict[str, float]] = []
    for rollout in range(10):
        rows.append({"_step": len(rows), "rollout/step": rollout, "rollout/raw_reward": 0.5})
        for i in range(4):
            at = 4 * rollout + i
            rows.append({"_step": len(rows), "train/step": at, "train/grad_norm": float(at)})
    found = history(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert found.step_T.tolist() == [*range(10)]
    # The mean of 4r, 4r + 1, 4r + 2 and 4r + 3.
    assert found.metrics["train/grad_norm"].tolist() == [4 * r + 1.5 for r in range(10)]
    assert any(
        "'train/step' counts updates, 4 to a step of 'rollout/step'" in n for n in found.notes
    )


def test_evaluations_of_openrlhf_have_a_step_column_of_their_own(tmp_path: Path) -> None:
    rows: list[dict[str, float]] = []
    for step in range(1, 31):
        rows.append({"_step": len(rows), "train/global_step": step, "train/reward": 0.4})
        if step % 10 == 0:
            rows.append({"_step": len(rows), "eval/global_step": step, "eval/eval_aime_pass1": 0.3})
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    imported = import_run([tmp_path / "a.jsonl"], tmp_path / "run")
    run = open_run(tmp_path / "run")
    assert run.steps.tolist() == [*range(1, 31)]
    assert run.evaluations().step_E.tolist() == [10, 20, 30]
    assert imported.meta.config["trainer"] == "openrlhf"


def test_csv_of_pandas_with_a_row_number_and_filled_cells(tmp_path: Path) -> None:
    lines = [",_step,loss,val/a/pass@1"]
    lines += [f"{i},{i},0.{i + 1},{'0.5' if i % 3 == 0 else 'NaN'}" for i in range(7)]
    found = history(tmp_path / "a.csv", "\r\n".join(lines))
    assert set(found.metrics) == {"loss", "val/a/pass@1"}
    assert found.step_T[found.is_logged["val/a/pass@1"]].tolist() == [0, 3, 6]
    assert any("NaN between the numbers of val/a/pass@1" in note for note in found.notes)


def test_nan_to_the_end_of_a_filled_table_was_logged(tmp_path: Path) -> None:
    lines = ["step,loss"] + [f"{i},{'0.5' if i < 4 else 'nan'}" for i in range(1, 12)]
    found = history(tmp_path / "a.csv", "\n".join(lines))
    assert found.is_logged["loss"].all()
    assert np.isnan(found.metrics["loss"]).sum() == 8


def test_csv_with_semicolons_and_decimal_commas(tmp_path: Path) -> None:
    found = history(tmp_path / "a.csv", "Step;Loss\n1;0,5\n2;1,25e-1\n")
    assert found.metrics["Loss"].tolist() == [0.5, 0.125]


def test_long_table_gets_a_row_per_step(tmp_path: Path) -> None:
    text = "wall_time,step,tag,value\n1,1,loss,0.5\n1,1,kl,0.1\n2,2,loss,0.4\n2,2,kl,0.2\n"
    found = history(tmp_path / "a.csv", text)
    assert found.metrics["loss"].tolist() == [0.5, 0.4]
    assert found.metrics["kl"].tolist() == [0.1, 0.2]


def test_packed_files_and_json_of_other_shapes(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write('{"step": 1, "loss": Infinity}\n{"step": 2, "loss": "nan"}\n')
    (tmp_path / "list.json").write_text('[{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4}]')
    (tmp_path / "by_step.json").write_text('{"train/loss": {"1": 0.5, "2": 0.4}, "x": {"2": 1}}')
    (tmp_path / "by_column.json").write_text('{"step": [1, 2], "loss": [0.5, 0.4]}')
    with gzip.open(tmp_path / "train.log.gz", "wt") as file:
        file.write("step:1 - actor/lr:0.5 - actor/grad_norm:1.0\nstep:2 - actor/lr:0.4\n")
    for name, metric, values in (
        ("a.jsonl.gz", "loss", [math.inf, math.nan]),
        ("list.json", "loss", [0.5, 0.4]),
        ("by_step.json", "train/loss", [0.5, 0.4]),
        ("by_column.json", "loss", [0.5, 0.4]),
        ("train.log.gz", "actor/lr", [0.5, 0.4]),
    ):
        found = join([part for _, part in read([tmp_path / name])])
        np.testing.assert_array_equal(found.metrics[metric], values)


def test_summary_of_wandb_is_no_history(tmp_path: Path) -> None:
    (tmp_path / "wandb-summary.json").write_text('{"_step": 59, "reward": 0.5, "kl": 0.1}')
    with pytest.raises(ValueError, match=r"as in a wandb-summary\.json: .* no history.*scan_hist"):
        read([tmp_path / "wandb-summary.json"])


# several runs


def test_runs_side_by_side_and_without_a_name_are_refused_too(tmp_path: Path) -> None:
    by_step = "step,seed,loss\n" + "".join(
        f"{s},{k},0.{k}{s}\n" for s in range(1, 6) for k in (1, 2)
    )
    (tmp_path / "a.csv").write_text(by_step)
    with pytest.raises(ValueError, match=r"'seed' has 2 values \(1, 2\).*--run 1"):
        read([tmp_path / "a.csv"])
    ((_, part),) = read([tmp_path / "a.csv"], run="2")
    assert [row.values["loss"] for row in part.rows] == [0.21, 0.22, 0.23, 0.24, 0.25]
    nameless = "step,loss\n" + "".join(f"{s},0.{k}{s}\n" for k in (1, 2) for s in range(1, 6))
    (tmp_path / "b.csv").write_text(nameless)
    with pytest.raises(
        ValueError, match=r"2 times steps 1 to 5 below each other.*--run 1 to --run 2"
    ):
        read([tmp_path / "b.csv"])
    ((_, part),) = read([tmp_path / "b.csv"], run="2")
    assert part.rows[0].values["loss"] == 0.21


def test_resume_under_another_run_id_goes_on(tmp_path: Path) -> None:
    rows = [{"step": s, "run_id": "a", "loss": 0.1} for s in range(1, 31)]
    rows += [{"step": s, "run_id": "b", "loss": 0.2} for s in range(26, 61)]
    found = history(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert found.metrics["loss"].tolist() == [0.1] * 25 + [0.2] * 35
    assert any("steps 26 to 30 logged again after a resume" in note for note in found.notes)


def test_words_that_differ_by_row_are_no_runs(tmp_path: Path) -> None:
    rows = [
        {"step": s, "sample": f"text {s}", "phase": "ab"[s > 5], "loss": 0.1} for s in range(1, 11)
    ]
    found = history(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert len(found.step_T) == 10


def test_start_from_scratch_in_one_log_is_called_so(tmp_path: Path) -> None:
    lines = [f"step:{s} - actor/lr:0.1" for s in range(1, 31)]
    lines += [f"step:{s} - actor/lr:0.2" for s in range(1, 11)]
    found = history(tmp_path / "a.log", "\n".join(lines) + "\n")
    assert found.metrics["actor/lr"].tolist() == [0.2] * 10
    assert any("begins again at step 1: a start from scratch or another" in n for n in found.notes)


def test_files_that_begin_alike_are_runs_of_their_own(tmp_path: Path) -> None:
    for name, level in (("a", 0.1), ("b", 0.2)):
        lines = [f"step:{s} - actor/lr:{level}" for s in range(1, 6)]
        (tmp_path / f"{name}.log").write_text("\n".join(lines) + "\n")
    files = [tmp_path / "a.log", tmp_path / "b.log"]
    with pytest.raises(ValueError, match=r"a\.log, b\.log all begin at step 1 .*--run b\.log"):
        read(files)
    ((_, part),) = read(files, run="a.log")
    assert part.rows[0].values == {"actor/lr": 0.1}


def test_folders_of_one_wandb_run_are_segments_and_those_of_others_are_not(tmp_path: Path) -> None:
    def written(folder: str, steps: range, level: float) -> None:
        files = tmp_path / folder / "files"
        files.mkdir(parents=True)
        lines = [f"step:{s} - actor/lr:{level}" for s in steps]
        (files / "output.log").write_text("\n".join(lines) + "\n")

    written("run-20251120_101010-abc", range(1, 6), 0.1)
    written("run-20251121_101010-abc", range(4, 9), 0.2)
    found = join([part for _, part in read([tmp_path])])
    assert found.metrics["actor/lr"].tolist() == [0.1] * 3 + [0.2] * 5
    written("run-20251122_101010-xyz", range(1, 6), 0.3)
    with pytest.raises(ValueError, match=r"2 runs \(abc, xyz\); choose one with --run"):
        read([tmp_path])
    assert join([p for _, p in read([tmp_path], run="xyz")]).metrics["actor/lr"][0] == 0.3


def test_event_files_in_one_folder_that_all_begin_alike_are_runs(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="reads event files")
    from torch.utils.tensorboard import SummaryWriter

    for name, level in (("a", 0.1), ("b", 0.2)):
        with SummaryWriter(str(tmp_path / "both"), filename_suffix=f".{name}") as writer:
            for step in range(1, 6):
                writer.add_scalar("actor/grad_norm", level, step)
        with SummaryWriter(str(tmp_path / "apart" / name)) as writer:
            for step in range(1, 6):
                writer.add_scalar("actor/grad_norm", level, step)
    with pytest.raises(ValueError, match=r"all begin at step 1 .*--run"):
        read([tmp_path / "both"])
    with pytest.raises(ValueError, match=r"in 2 folders \(a, b\).*--run a"):
        read([tmp_path / "apart"])
    ((_, part),) = read([tmp_path / "apart"], run="b")
    assert part.rows[0].values["actor/grad_norm"] == pytest.approx(0.2)


def test_evaluations_logged_after_all_training_are_columns_and_no_restart(tmp_path: Path) -> None:
    lines = [f"step:{s} - actor/lr:0.1" for s in range(1, 31)]
    lines += [f"step:{s} - val/a/pass@1:0.5" for s in range(0, 31, 10)]
    found = history(tmp_path / "a.log", "\r\n".join(lines) + "\r\n")
    assert np.isfinite(found.metrics["actor/lr"]).sum() == 30
    assert found.step_T[np.isfinite(found.metrics["val/a/pass@1"])].tolist() == [0, 10, 20, 30]
    assert not found.notes


def test_console_of_slime(tmp_path: Path) -> None:
    lines = []
    for step in range(6):
        lines += [
            f"(Actor pid=3) rollout {step}: {{'rollout/raw_reward': 0.{step}, 'rollout/x': 1}}",
            f"(Actor pid=3) step {step}: {{'train/loss': 0.1, 'train/grad_norm': np.float64(0.5)}}",
        ]
    found = history(tmp_path / "slime.log", "\n".join(lines) + "\n")
    assert found.step_T.tolist() == [*range(6)]
    assert found.metrics["train/grad_norm"].tolist() == [0.5] * 6
    assert found.metrics["rollout/raw_reward"].tolist() == [s / 10 for s in range(6)]
