"""What other trainers log is read as it was logged, and bad files are told from good ones.

The files in tests/logs are written by hand after documented formats: verl's console logger (verl
0.4 rounds to three decimals and Ray colours, prefixes and breaks lines; see verl issues 2060 and
316), the CSV that a wandb panel exports, rows of wandb's `Run.scan_history()`, and the
trainer_state.json of transformers with the metrics of TRL 1.16's GRPOTrainer.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from gradlab.interop.logs.history import Part, Row, join
from gradlab.interop.logs.reading.console import read_console
from gradlab.interop.logs.reading.sources import kind_of, read
from gradlab.interop.logs.reading.stacked import Choice
from gradlab.interop.logs.reading.tables import read_csv, read_jsonl, read_trainer_state

LOGS = Path(__file__).parent / "logs"


def row(part: Part, step: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for one in part.rows:
        if one.step == step:
            found |= one.values
    return found


# verl's console


def test_console_lines_are_read_out_of_everything_around_them() -> None:
    part = read_console(LOGS / "verl-0.4.log")
    assert [one.step for one in part.rows] == [0, 1, 2, 3, 4, 5]
    assert row(part, 0)["val-core/openai/gsm8k/acc/mean@1"] == 0.508
    first = row(part, 1)
    assert first["actor/grad_norm"] == 0.02
    assert first["response_length/mean"] == 288.698
    assert row(part, 2)["critic/rewards/mean"] == 0.571, "behind a progress bar, on its line"
    assert part.planned == 435


def test_line_that_was_broken_on_its_way_is_joined() -> None:
    first = row(read_console(LOGS / "verl-0.4.log"), 1)
    assert first["prompt_length/mean"] == 102.5
    assert first["timing_s/step"] == 30.5


def test_nan_and_infinity_are_kept_as_such() -> None:
    third = row(read_console(LOGS / "verl-0.4.log"), 3)
    assert math.isnan(third["actor/kl_loss"])
    assert third["actor/grad_norm"] == math.inf


def test_learning_rate_that_print_rounded_away_is_not_zero() -> None:
    part = read_console(LOGS / "verl-0.4.log")
    assert "actor/lr" not in row(part, 1)
    assert any("actor/lr printed as 0.000" in note for note in part.notes)


def test_value_that_a_kill_cut_off_is_not_taken() -> None:
    part = read_console(LOGS / "verl-0.4.log")
    assert row(part, 5) == {"actor/entropy": 0.29, "actor/grad_norm": 0.031}
    assert any("ends within a line" in note for note in part.notes)


def test_numbers_as_numpy_and_torch_print_them(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text(
        "step:1 - a/x:np.float64(0.25) - a/y:tensor(1.5, device='cuda:0') - a/z:-3e-05 - b:.5 "
        "- c:7 - odd piece - d:None - e:1.2.3\n"
    )
    part = read_console(log)
    assert row(part, 1) == {"a/x": 0.25, "a/y": 1.5, "a/z": -3e-05, "b": 0.5, "c": 7.0}
    assert part.notes == ["a.log: 3 pieces of metric lines are no 'name:number' and were passed "
                          "over, the first in line 1: 'odd piece'"]  # fmt: skip


def test_metrics_printed_as_a_list() -> None:
    part = read_console(LOGS / "list.log")
    assert row(part, 1) == {
        "actor/generator/grad_norm": 0.5,
        "actor/evaluator/grad_norm": 2.5,
        "batch/success": 0.41,
    }
    assert row(part, 2)["batch/success"] == 0.42


def test_log_without_metric_lines_says_what_they_look_like(tmp_path: Path) -> None:
    log = tmp_path / "slurm.out"
    log.write_text("epoch 1: loss 0.3\nglobal_step:5 done\n")
    with pytest.raises(ValueError, match=r"none of its 2 lines is a metric line; expected 'step:"):
        read_console(log)


WHOLE = (
    "(TaskRunner pid=7) step:3 - actor/a/grad_norm:np.float64(0.3125) - actor/lr:2e-05 - x/y:-0.5\n"
    "noise\n"
    "(TaskRunner pid=7) step:4 - actor/a/grad_norm:np.float64(0.25) - actor/lr:1e-05 - x/y:12.5\n"
)


def logged(path: Path, text: str) -> set[tuple[int, str, float]]:
    path.write_text(text)
    rows = read_console(path).rows
    return {(one.step, name, value) for one in rows for name, value in one.values.items()}


def test_log_cut_or_broken_at_any_place_gives_no_wrong_value(tmp_path: Path) -> None:
    truth = logged(tmp_path / "whole.log", WHOLE)
    assert len(truth) == 6
    lost = 0
    for at in range(WHOLE.index("x/y"), len(WHOLE)):
        assert logged(tmp_path / "cut.log", WHOLE[:at]) <= truth, WHOLE[:at][-30:]
        broken = logged(tmp_path / "broken.log", f"{WHOLE[:at]}\n{WHOLE[at:]}")
        assert broken <= truth, f"broken after {WHOLE[:at][-30:]!r}"
        lost += len(truth) - len(broken)
    assert lost < 0.2 * len(WHOLE), "most breaks are joined; breaks before 'step:' cannot be"


def test_steps_that_an_agent_prints_are_not_the_trainers(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text(
        "step:7 - actor/grad_norm:0.5\nagent step:1 - action:2 - reward:0.0\n"
        "step:1 - done\nstep:8 - actor/grad_norm:0.6\n"
    )
    part = read_console(log)
    assert [one.step for one in part.rows] == [7, 8]
    assert any("1 lines 'step:N" in note for note in part.notes)


# tables


def test_wandb_page_gives_one_run_without_the_ends_of_smoothing() -> None:
    part = read_csv(LOGS / "wandb-page.csv", choice=Choice("eo-ip-1.7b"))
    assert [one.step for one in part.rows] == [1, 2, 4, 5]
    assert row(part, 1) == {"actor/generator/grad_norm": 0.5125}
    assert math.isnan(row(part, 4)["actor/generator/grad_norm"])
    assert any("thins long runs out" in note for note in part.notes)


def test_wandb_page_with_several_runs_asks_which() -> None:
    with pytest.raises(ValueError, match=r"2 runs \(eo-ip-1\.7b, eo-sp-1\.7b\); choose .* --run"):
        read_csv(LOGS / "wandb-page.csv")
    with pytest.raises(ValueError, match=r"no run 'x'; it holds eo-ip-1\.7b"):
        read_csv(LOGS / "wandb-page.csv", choice=Choice("x"))
    with pytest.raises(ValueError, match=r"--run x: there is no such run; .* holds one run"):
        read([LOGS / "scan-history.jsonl"], run="x")


def test_scan_history_rows() -> None:
    part = read_jsonl(LOGS / "scan-history.jsonl")
    assert row(part, 0) == {"val/unknown/pass@1": 0.3}, "only wandb's own step is there"
    assert row(part, 1)["batch/success"] == 0.41
    assert math.isnan(row(part, 2)["actor/generator/grad_norm"]), "wandb spells it 'NaN'"
    assert "batch/success" not in row(part, 2)
    assert part.rows[1].wall_time == 1763600060.5
    (note,) = part.notes
    assert note.startswith("scan-history.jsonl: not numbers, not taken: histogram (")
    assert ", note (" in note
    assert ", the first in" in note


def test_verl_file_logger(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "data": {"actor/lr": 2e-05}}\n{"step": 2, "data": {"actor/l')
    part = read_jsonl(file)
    assert part.rows == [Row(1, {"actor/lr": 2e-05}, part.rows[0].wall_time)]
    assert part.notes == ["metrics.jsonl: the last line is cut off; not taken"]


def test_trainer_state_joins_training_and_evaluation() -> None:
    part = read_trainer_state(LOGS / "trainer_state.json")
    assert row(part, 10)["reward"] == 0.8125
    assert row(part, 10)["eval_rewards/accuracy_reward/mean"] == 0.35
    assert row(part, 30)["train_loss"] == 0.0106
    assert "epoch" not in row(part, 10)
    assert part.planned == 500


BAD_TABLES = {
    "one column.csv": ("step\n1\n", r"the first line has 1 columns, expected a header"),
    "twice.csv": ("step,a,a\n1,2,3\n", r"names 'a' more than once; rename"),
    "wide.csv": ("step,a\n1,2\n2,3,4\n", r"row 3: 3 cells under 2 columns; quote"),
    "header only.csv": ("step,a\n", r"holds no rows"),
    "no step.csv": ("iteration,a\n1,2\n", r"no column for the training step.*--step"),
    "fraction.csv": ("step,a\n1.5,2\n", r"row 2: 'step' is '1\.5', expected a whole step number"),
    "words.csv": ("step,a\nfirst,2\n", r"row 2: 'step' is 'first'"),
    "negative.csv": ("step,a\n-1,2\n", r"'step' is '-1'"),
    "empty steps.csv": ("step,a\n,2\n,3\n", r"no row has a number in its step column"),
    "broken.jsonl": ('{"step": 1}\n{"step": \n{"step": 3}\n', r"line 2: not JSON"),
    "list.jsonl": ("[1, 2]\n", r"line 1: a list, expected an object such as"),
    "state.json": ('{"a": 1}', r"list 'log_history' as trainers save it.*an object with \['a'\]"),
    "cut.json": ('{"log_history": [', r"not JSON .*was it cut off"),
    "empty.csv": ("", r"is empty; expected a console log"),
    "what.bin": ("no idea\n", r"cannot tell what this is; expected .*--kind"),
    "run-1.wandb": ("\x00", r"binary transaction log.*wandb sync.*scan_history"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_file_is_answered_with_what_to_do(tmp_path: Path, name: str) -> None:
    text, message = BAD_TABLES[name]
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read([file])
    assert str(file) in str(error.value)


def test_missing_file_and_folder_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file or folder .*nothing here; expected a console"):
        read([tmp_path / "nothing here"])
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"a folder with notes\.txt; expected"):
        read([tmp_path])


def test_folders_stand_for_what_is_in_them(tmp_path: Path) -> None:
    for step in (5, 30):
        (tmp_path / f"trl/checkpoint-{step}").mkdir(parents=True)
    shutil.copy(LOGS / "trainer_state.json", tmp_path / "trl/checkpoint-30")
    (tmp_path / "trl/checkpoint-5/trainer_state.json").write_text("{}")
    assert read([tmp_path / "trl"])[0][0] == "trainer-state"
    files = tmp_path / "wandb/run-20251120_101010-abc/files"
    files.mkdir(parents=True)
    shutil.copy(LOGS / "verl-0.4.log", files / "output.log")
    assert read([files.parent])[0][0] == "console"
    shutil.copy(LOGS / "scan-history.jsonl", files / "wandb-history.jsonl")
    assert read([files.parent])[0][0] == "jsonl"


def test_kind_is_told_from_contents_where_the_name_says_nothing(tmp_path: Path) -> None:
    shutil.copy(LOGS / "verl-0.4.log", tmp_path / "job.txt")
    shutil.copy(LOGS / "scan-history.jsonl", tmp_path / "history")
    assert kind_of(tmp_path / "job.txt") == "console"
    assert kind_of(tmp_path / "history") == "jsonl"


def test_event_files_of_a_resumed_run_are_segments_in_the_order_they_began(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="reads event files")
    from torch.utils.tensorboard import SummaryWriter

    for start, stop, level in ((1, 6, 0.1), (4, 9, 0.2)):
        with SummaryWriter(str(tmp_path), filename_suffix=f".{start}") as writer:
            for step in range(start, stop):
                writer.add_scalar("actor/grad_norm", level, step, walltime=1e9 + step)
            writer.add_text("config", "no scalar", 1)
        # The writer names files by the second: two in one second are told apart here.
        (newest,) = tmp_path.glob(f"*.{start}")
        newest.rename(tmp_path / f"events.out.tfevents.17636000{start:02d}.host.1.0")
    history = join([part for _, part in read([tmp_path])])
    assert history.step_T.tolist() == [*range(1, 9)]
    np.testing.assert_allclose(history.metrics["actor/grad_norm"], [0.1] * 3 + [0.2] * 5, rtol=1e-6)
    assert any("steps 4 to 5 logged again" in note for note in history.notes)
    assert history.wall_time_T[0] == 1e9 + 1


def test_event_files_of_several_runs_are_not_mixed(tmp_path: Path) -> None:
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "events.out.tfevents.1763600000.host.1.0").write_bytes(b"")
    pytest.importorskip("tensorboard", reason="reads event files")
    with pytest.raises(
        ValueError, match=r"in 2 folders \(a, b\).*import the folder of one, .*--run a"
    ):
        read([tmp_path])


# segments


def part(where: str, steps: dict[int, float], name: str = "loss") -> Part:
    return Part(where, [Row(step, {name: value}) for step, value in steps.items()])


def test_resumed_segment_replaces_what_it_repeats_and_what_came_after() -> None:
    first = Part("a", [Row(s, {"loss": 1.0, "batch/success": 0.5}) for s in range(1, 11)])
    second = Part("b", [Row(s, {"loss": 2.0}) for s in (6, 7, 8)])
    history = join([first, second])
    assert history.step_T.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert history.metrics["loss"].tolist() == [1.0] * 5 + [2.0] * 3
    success = history.metrics["batch/success"]
    assert np.isfinite(success).tolist() == [True] * 5 + [False] * 3, "not from the old rollouts"
    assert [*history.notes] == [
        "b: steps 6 to 8 logged again after a resume; the later log was taken",
        "b: steps 9 to 10 dropped: the run was resumed from before them and did not log them again",
    ]


def test_resume_within_one_log_is_seen_where_the_step_goes_back() -> None:
    rows = [Row(s, {"loss": 1.0}) for s in (1, 2, 3)] + [Row(s, {"loss": 2.0}) for s in (3, 4)]
    history = join([Part("a", rows)])
    assert history.metrics["loss"].tolist() == [1.0, 1.0, 2.0, 2.0]


def test_steps_out_of_order_are_sorted_and_said() -> None:
    history = join([part("a", {1: 1.0, 2: 2.0, 4: 4.0, 3: 3.0, 5: 5.0})])
    assert history.metrics["loss"].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert [*history.notes] == ["a: 2 steps between 3 and 5 out of order; sorted"]


def test_files_are_put_in_the_order_of_their_steps() -> None:
    history = join([part("late", {4: 4.0, 5: 5.0}), part("early", {1: 1.0, 2: 2.0})])
    assert history.metrics["loss"].tolist() == [1.0, 2.0, 4.0, 5.0]
    assert [*history.notes] == ["read in the order of their steps: early, late"]


def test_files_without_a_metric_in_common_add_columns() -> None:
    history = join([part("a", {1: 1.0, 2: 2.0}), part("b", {2: 0.5, 3: 0.6}, "accuracy")])
    assert history.step_T.tolist() == [1, 2, 3]
    np.testing.assert_array_equal(history.metrics["loss"], [1.0, 2.0, np.nan])
    np.testing.assert_array_equal(history.metrics["accuracy"], [np.nan, 0.5, 0.6])
    assert history.is_logged["accuracy"].tolist() == [False, True, True]


def test_one_step_logged_in_several_rows_is_one_step() -> None:
    rows = [Row(1, {"loss": 1.0}), Row(1, {"eval_loss": 2.0}), Row(1, {"loss": 1.0})]
    history = join([Part("a", rows)])
    assert history.metrics["loss"].tolist() == [1.0]
    assert history.metrics["eval_loss"].tolist() == [2.0]
    assert not history.notes
