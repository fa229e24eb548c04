"""Cells in their folder: trained, skipped, resumed, failed and told; boards and Slurm scripts."""

from __future__ import annotations

import errno
import importlib.util
import io
import json
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from test_train import assert_same_runs

from gradlab.commands import main as cli
from gradlab.run_directory import CONFIG, is_trained
from gradlab.store.run import open_run
from trainers.config import TrainConfig
from trainers.matrix import run as runner_module
from trainers.matrix import slurm
from trainers.matrix.board import LineBoard, LiveBoard, line, plain_table, seconds_left, summary
from trainers.matrix.claim import claimed
from trainers.matrix.cluster import check_answers, ray_module
from trainers.matrix.engine import Exit
from trainers.matrix.folder import Folder, begin, open_folder
from trainers.matrix.plan import Plan, read_plan
from trainers.matrix.processes import Processes, cell_command
from trainers.matrix.run import Runner, last_words, unfinished
from trainers.matrix.slurm import Job, ranges, script, write_script
from trainers.matrix.state import LOG, NOTHING, Progress, State, Watcher, is_finished, state_of
from trainers.matrix.work import DISK, FAILED, FINISHED, TAKEN, train_cell
from trainers.training import train
from trainers.watch.callbacks import Callback
from trainers.watch.progress import Progress as Quiet

PLAN = """
[options]
steps = 3
eval-every = 1
checkpoint-every = 1
problems-per-step = 2
samples = 2
eval-problems = 4
rows-per-update = 32
lora-rank = 2
device = "cpu"
threads = 1
[vary]
workflow = ["solo"]
routing = ["shared"]
seed = [0, 1, 2]
"""

Said = list[str]


def quietly(config: TrainConfig, callbacks: Sequence[Callback]) -> None:
    train(config, Quiet(Console(file=io.StringIO())), callbacks=callbacks)


class Breaks(Callback):
    """Raises after a step."""

    def __init__(self, step: int, error: BaseException) -> None:
        self.step, self.error = step, error

    def on_step(self, record: object) -> None:
        if record.step == self.step:  # type: ignore[attr-defined]
            raise self.error


def breaking(step: int, error: BaseException) -> Callable[..., None]:
    def trained(config: TrainConfig, callbacks: Sequence[Callback]) -> None:
        quietly(config, [*callbacks, Breaks(step, error)])

    return trained


class InTurn:
    """An engine that trains a cell at once, in this process."""

    def __init__(self, folder: Folder, trained: dict[str, Callable[..., None]]) -> None:
        self.folder, self.trained = folder, trained
        self.statuses: dict[str, int] = {}
        self._ended: list[Exit] = []

    busy: Sequence[str] = ()

    def free(self) -> int:
        return 1

    def start(self, name: str) -> None:
        trained = self.trained.get(name, quietly)
        self.statuses[name] = train_cell(self.folder, self.folder.cell(name), trained)
        self._ended.append(Exit(name, was_taken=self.statuses[name] == TAKEN))

    def ended(self) -> Sequence[Exit]:
        found, self._ended = self._ended, []
        return found

    def stop(self, now: bool) -> None:
        raise AssertionError("nobody asked to stop")

    def close(self) -> None:
        pass


class Notes:
    """A board that keeps what it is told."""

    def __init__(self) -> None:
        self.said: Said = []
        self.shown: list[dict[str, State]] = []

    def show(self, states: object) -> None:
        self.shown.append(dict(states))  # type: ignore[call-overload]

    def note(self, text: str) -> None:
        self.said.append(text)


def plan_of(tmp_path: Path, text: str = PLAN) -> Plan:
    (tmp_path / "plan.toml").write_text(text)
    return read_plan(tmp_path / "plan.toml")


def run_all(
    folder: Folder, broken: dict[str, Callable[..., None]] | None = None, **settings: object
) -> tuple[dict[str, State], InTurn, Notes]:
    engine, board = InTurn(folder, broken or {}), Notes()
    settings = {"every": 0.0, **settings}
    states = Runner(folder, engine, board, **settings).run()  # type: ignore[arg-type]
    return states, engine, board


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A matrix that nothing disturbed."""
    where = tmp_path_factory.mktemp("finished")
    folder = begin(plan_of(where), where / "map")
    states, _, _ = run_all(folder)
    assert {state.status for state in states.values()} == {"finished"}
    return where / "map"


S0, S1, S2 = (f"solo.shared.s{seed}" for seed in range(3))


def test_every_cell_is_an_ordinary_run(finished: Path) -> None:
    assert sorted(path.name for path in finished.iterdir()) == ["matrix", S0, S1, S2]
    for seed, name in enumerate((S0, S1, S2)):
        assert is_trained(finished / name)
        run = open_run(finished / name)
        assert run.steps.tolist() == [1, 2, 3]
        assert run.meta.config["seed"] == seed
    problems = {open_run(finished / name).meta.problems for name in (S0, S1, S2)}
    assert len(problems) == 1, "a seed changes training, never the test set"
    assert cli.main(["diagnose", str(finished / S0), "--no-page"]) == 0


def test_what_is_finished_is_skipped(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "map")
    before = (tmp_path / "map" / S0 / CONFIG).stat().st_mtime_ns
    states, engine, _ = run_all(begin(plan_of(tmp_path), tmp_path / "map"))
    assert engine.statuses == {}
    assert all(state.status == "finished" for state in states.values())
    assert (tmp_path / "map" / S0 / CONFIG).stat().st_mtime_ns == before


def test_a_failed_cell_is_listed_with_its_text_and_tried_again_when_asked(
    tmp_path: Path, finished: Path
) -> None:
    folder = begin(plan_of(tmp_path), tmp_path / "map")
    wrong = {S1: breaking(2, ValueError("a number went wrong"))}
    states, engine, _ = run_all(folder, wrong)
    assert engine.statuses == {S0: FINISHED, S1: FAILED, S2: FINISHED}, "the rest goes on"
    assert (states[S1].status, states[S1].progress.step) == ("failed", 2)
    assert states[S1].said == "ValueError: a number went wrong"
    words: Said = []
    assert not last_words(states, words.append)
    assert words == [
        f"failed: {S1}: ValueError: a number went wrong",
        "1 cell failed; --retry-failed tries it again",
    ]

    _, engine, _ = run_all(folder)
    assert engine.statuses == {}, "nothing is tried again unasked"
    states, engine, _ = run_all(folder, retry_failed=True)
    assert engine.statuses == {S1: FINISHED}
    assert states[S1].said == ""
    assert last_words(states, words.append)
    assert_same_runs(finished / S1, folder.out / S1)


def test_a_failed_cell_is_not_trained_unasked_by_name_either(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = begin(plan_of(tmp_path), tmp_path / "map")
    train_cell(folder, folder.cell(S0), breaking(1, ValueError("wrong")))
    assert cli.main(["matrix", "--out", str(folder.out), "--cell", S0]) == 2
    assert "failed before (ValueError: wrong); --retry-failed" in capsys.readouterr().err


def test_a_full_disk_ends_its_cell_which_goes_on_later(tmp_path: Path, finished: Path) -> None:
    """The errors that a disk gives, raised where a run writes."""
    folder = begin(plan_of(tmp_path), tmp_path / "map")
    full = {S0: breaking(2, OSError(errno.ENOSPC, "No space left on device"))}
    states, engine, _ = run_all(folder, full)
    assert engine.statuses == {S0: DISK, S1: FINISHED, S2: FINISHED}
    assert states[S0].status == "interrupted"
    assert "No space left on device" in states[S0].said
    assert states[S0].said.endswith("goes on from step 1")
    states, engine, _ = run_all(folder)
    assert engine.statuses == {S0: FINISHED}
    assert_same_runs(finished / S0, folder.out / S0)


def test_no_cell_begins_on_a_disk_that_is_all_but_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = begin(plan_of(tmp_path), tmp_path / "map")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        runner_module.shutil, "disk_usage", lambda _: usage._replace(free=1 << 29)
    )  # fmt: skip
    states, engine, board = run_all(folder, spare_disk=1.0)
    assert engine.statuses == {}
    assert [text for text in board.said if "0.50 GiB are free" in text]
    assert {state.status for state in states.values()} == {"waiting"}


def test_cells_that_another_runner_trains_are_left_to_it(tmp_path: Path) -> None:
    folder = begin(plan_of(tmp_path), tmp_path / "map")
    with claimed(folder.about(S0)) as owner:
        watcher = Watcher(folder)
        assert watcher.look()[S0].status == "running"
        assert watcher.look()[S0].said == f"by {owner}"
        runner = Runner(folder, InTurn(folder, {}), Notes(), every=0.0)
        assert runner.todo(watcher.look()) == [S1, S2]
        assert train_cell(folder, folder.cell(S0), quietly) == TAKEN
    assert not is_trained(folder.out / S0)


def test_a_changed_plan_is_held_against_what_was_begun(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "map")
    changed = plan_of(tmp_path, PLAN.replace("samples = 2", "samples = 4"))
    with pytest.raises(
        ValueError,
        match=rf"has changed for cells.*{S0} \(--samples 2 then, 4 now\).*another --out",
    ):
        begin(changed, tmp_path / "map")
    assert open_folder(tmp_path / "map").cell(S0).config.samples == 2

    wider = plan_of(tmp_path, PLAN.replace("[0, 1, 2]", "[7, 1, 2]"))
    folder = begin(wider, tmp_path / "map")
    assert [cell.name for cell in folder.cells] == [S0, S1, S2, "solo.shared.s7"]
    assert folder.dropped == (S0,)
    assert list(Watcher(folder).look()) == [S1, S2, "solo.shared.s7"]


def test_a_cell_that_did_not_begin_follows_the_plan(tmp_path: Path) -> None:
    begin(plan_of(tmp_path), tmp_path / "map")
    folder = begin(plan_of(tmp_path, PLAN.replace("steps = 3", "steps = 5")), tmp_path / "map")
    assert folder.cell("1").config.steps == 5
    assert folder.cell("1").config.out == tmp_path / "map" / S1
    with pytest.raises(ValueError, match="has no cell '9'; it has 3, numbered from 0"):
        folder.cell("9")


def test_a_matrix_goes_into_a_folder_of_its_own(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a run; expected a folder for the runs of a matrix"):
        begin(plan_of(tmp_path), finished / S0)
    with pytest.raises(ValueError, match=r"has no matrix/cells\.json"):
        open_folder(tmp_path)
    (tmp_path / "map" / "matrix").mkdir(parents=True)
    (tmp_path / "map" / "matrix" / "cells.json").write_text('{"cells": ')
    with pytest.raises(ValueError, match="is damaged or of a later version"):
        open_folder(tmp_path / "map")


def test_a_cell_whose_process_is_gone_is_interrupted(tmp_path: Path) -> None:
    folder = begin(plan_of(tmp_path), tmp_path / "map")
    with pytest.raises(SystemExit):  # nothing that ends.json is written for
        train_cell(folder, folder.cell(S0), breaking(2, SystemExit()))
    state = state_of(folder, folder.cell(S0))
    assert (state.status, state.progress.step) == ("interrupted", 2)
    assert "is gone; goes on from step 1" in state.said
    assert not is_finished(folder.cell(S0))


def test_status_is_a_line_per_cell(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path / "map")
    shutil.rmtree(tmp_path / "map" / S2)
    assert cli.main(["matrix", "--status", str(tmp_path / "map")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["cell", "status", "step", "accuracy", "left", "alarms"]
    assert [line.split()[:3] for line in lines[1:3]] == [
        [S0, "finished", "3/3"],
        [S1, "finished", "3/3"],
    ]
    assert lines[3].split()[:2] == [S2, "waiting"]
    assert lines[4].startswith("3 cells: 2 finished, 1 waiting")


def test_a_run_that_something_else_trained_is_read_from_its_record(
    finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "map")
    shutil.rmtree(tmp_path / "map" / "matrix" / "cells" / S0)
    folder = open_folder(tmp_path / "map")
    assert state_of(folder, folder.cell(S0)).progress == replace(
        state_of(folder, folder.cell(S1)).progress,
        accuracy=float(open_run(finished / S0).evaluations().accuracy().value_T[-1]),
        base=float(open_run(finished / S0).evaluations().accuracy().value_T[0]),
        seconds=None,
    )


RUNNING = State("a", "running", 60, Progress(20, 0.614, 0.5, 20, 1.5, 2), "by process 5 on here")
STATES = {
    "a": RUNNING,
    "b": State("b", "finished", 60, Progress(60, 0.7, 0.5, 60, 2.5, 0)),
    "c": State("c", "waiting", 60, NOTHING),
    "d": State("d", "failed", 60, Progress(9, None, None, -1, None, 0), "ValueError: no"),
}


def test_a_cell_in_a_line() -> None:
    assert line(RUNNING) == (
        "a: running, step 20/60, held-out 50.0% to 61.4%, 60.0 s left, 2 alarms, "
        "by process 5 on here"
    )
    assert line(STATES["c"]) == "c: waiting"
    rows = list(plain_table(list(STATES.values())))
    assert rows[1].split("  ")[0] == "a"
    assert rows[4].endswith("ValueError: no")


def test_the_time_that_is_left_by_hand() -> None:
    # a: 40 steps of 1.5 s; c: 60 of the mean of a's and b's, 2 s; d failed. Two at a time.
    assert seconds_left(STATES, 2) == (40 * 1.5 + 60 * 2.0) / 2
    assert seconds_left({"c": STATES["c"]}, 2) is None
    assert summary(STATES, 2) == (
        "4 cells: 1 finished, 1 running, 1 failed, 1 waiting; about 90.0 s left"
    )


def test_without_a_terminal_there_is_a_line_per_change() -> None:
    screen = io.StringIO()
    board = LineBoard(Console(file=screen, width=40), 1)
    later = replace(RUNNING, progress=replace(RUNNING.progress, step=21))
    evaluated = replace(RUNNING, progress=replace(RUNNING.progress, step=25, evaluated=25))
    for state in (RUNNING, later, evaluated, evaluated):
        board.show({"a": state, "c": STATES["c"]})
    told = [text[9:].split(",")[:2] for text in screen.getvalue().splitlines()]
    assert told == [
        ["a: running", " step 20/60"], ["2 cells: 1 running", " 1 waiting; about 2 min left"],
        ["a: running", " step 25/60"],
    ]  # fmt: skip


def test_on_a_terminal_there_is_a_table_of_what_matters() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, height=20, no_color=True)
    board = LiveBoard(console, 2)
    board.show(STATES)
    board.close()
    text = screen.getvalue()
    for part in ("running", "20/60", "50.0% to 61.4%", "ValueError: no", "4 cells: 1 finished"):
        assert part in text
    assert "c       waiting" not in text


# Processes of this machine.


def test_threads_and_gpus_are_dealt_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(12)), raising=False)
    folder = begin(plan_of(tmp_path), tmp_path / "map")
    engine = Processes(folder, at_once=3)
    around = [engine.environment(slot) for slot in range(3)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in around] == ["4", "7", "4"]
    assert {one["OMP_NUM_THREADS"] for one in around} == {"4"}
    assert Processes(folder, at_once=3, threads=2).environment(0)["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert Processes(folder, at_once=1).environment(0)["CUDA_VISIBLE_DEVICES"] == ""
    assert cell_command(folder, S0, 2, True)[1:] == [
        "-m", "gradlab", "matrix", "--out", str(folder.out), "--cell", S0, "--threads-each", "2",
        "--retry-failed",
    ]  # fmt: skip


def replaced_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """A shell script in place of Python, for processes that are started."""
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(path))


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("echo no module named torch; exit 1", "failed", "failed: no module named torch"),
        ("exit 7", "failed", "ended with status 7: nothing was printed"),
        ("kill -9 $$", "interrupted", r"killed by signal 9 (SIGKILL); goes on from step 0"),
        ("exit 28", "interrupted", "the disk took no more; goes on from step 0"),
    ],
)
def test_a_process_that_says_nothing_is_told_by_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, status: str, said: str
) -> None:
    folder = begin(plan_of(tmp_path), tmp_path / "map")
    replaced_python(tmp_path, monkeypatch, body)
    states = Runner(folder, Processes(folder, at_once=2), Notes(), every=0.01).run()
    assert {(state.status, state.said) for state in states.values()} == {(status, said)}
    again = set(unfinished(states, retry_failed=False))
    assert again == (set(states) if status == "interrupted" else set())
    if body.startswith("echo"):
        assert (folder.about(S0) / LOG).read_text() == "no module named torch\n"


# Slurm.


@pytest.mark.parametrize(
    ("numbers", "text"), [([3], "3"), ([0, 1, 2, 5, 7, 8], "0-2,5,7-8"), ([4, 0], "0,4")]
)
def test_ranges_as_slurm_writes_them(numbers: list[int], text: str) -> None:
    assert ranges(numbers) == text


def test_the_array_script_gives_every_task_its_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced_python(tmp_path, monkeypatch, 'echo "$OMP_NUM_THREADS" "$@"')
    folder = begin(plan_of(tmp_path), tmp_path / "map")
    job = Job(threads=3, gpus=1, at_once=2, options=("--partition=gpu",), retry_failed=True)
    path = write_script(folder, [S0, S2], job)
    assert [text for text in path.read_text().splitlines() if text.startswith("#SBATCH")] == [
        "#SBATCH --job-name=gradlab-plan", "#SBATCH --array=0,2%2", "#SBATCH --cpus-per-task=3",
        "#SBATCH --gpus-per-task=1", "#SBATCH --ntasks=1",
        f"#SBATCH --output={folder.out}/matrix/slurm-%A_%a.txt", "#SBATCH --open-mode=append",
        "#SBATCH --signal=B:TERM@180", "#SBATCH --partition=gpu",
    ]  # fmt: skip
    done = subprocess.run(
        ["bash", str(path)], env={"SLURM_ARRAY_TASK_ID": "2"}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.split() == [
        "3", "-m", "gradlab", "matrix", "--out", str(folder.out), "--cell", "2", "--threads-each",
        "3", "--retry-failed",
    ]  # fmt: skip
    assert "%" not in script(folder, [S0], Job()).partition("--array=")[2].partition("\n")[0]


def test_slurm_gets_what_is_left_and_is_asked_once(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    shutil.copytree(finished, tmp_path / "map")
    shutil.rmtree(tmp_path / "map" / S1)
    (tmp_path / "plan.toml").write_text(PLAN)
    words = ["matrix", str(tmp_path / "plan.toml"), "--out", str(tmp_path / "map"), "--on", "slurm"]
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert cli.main(words) == 0
    assert "#SBATCH --array=1\n" in capsys.readouterr().out
    monkeypatch.setattr(slurm.shutil, "which", lambda _: None)
    assert cli.main([*words, "--submit"]) == 2
    assert "there is no sbatch on this machine's PATH" in capsys.readouterr().err
    monkeypatch.undo()

    stand_in = tmp_path / "bin" / "sbatch"
    stand_in.parent.mkdir()
    stand_in.write_text('#!/bin/sh\necho "$@" >> "$0.asked"; echo Submitted batch job 41\n')
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stand_in.parent}:/usr/bin:/bin")
    assert cli.main([*words, "--submit", "--sbatch=--time=1:00:00", "--sbatch=--mem=4G"]) == 0
    assert "Submitted batch job 41" in capsys.readouterr().out
    path = tmp_path / "map" / "matrix" / "slurm.sh"
    assert (stand_in.parent / "sbatch.asked").read_text() == f"{path}\n"
    assert "#SBATCH --time=1:00:00\n#SBATCH --mem=4G\n" in path.read_text()
    stand_in.write_text("#!/bin/sh\necho no such partition >&2; exit 1\n")
    assert cli.main([*words, "--submit"]) == 2
    assert "sbatch refused" in (said := capsys.readouterr().err)
    assert "no such partition" in said


# Ray, without a cluster.


def test_an_address_that_nobody_answers_is_told_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ValueError, match=f"--address {address}: nobody answers there"):
            check_answers(address)
        taken.listen()
        check_answers(address)
    check_answers("")
    check_answers("auto")


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="ray is there")
def test_ray_is_asked_for_where_it_is_needed() -> None:
    with pytest.raises(ValueError, match=r"--on ray needs ray.*pip install 'gradlab\[ray\]'"):
        ray_module()


# The command.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected a plan"),
        (["sharing", "--at-once", "-1"], "--at-once is -1; expected 0 or more"),
        (["sharing", "--spare-disk", "-1"], "--spare-disk is -1.0; expected 0 or more"),
        (["sharing", "--gpus-each", "1"], "--gpus-each is for --on ray and slurm"),
        (["sharing", "--address", "x"], "add --on ray"),
        (["sharing", "--submit"], "add --on slurm"),
        (["sharing", "--on", "slurm", "--gpus-each", "0.5"], "Slurm gives whole ones"),
        (["none"], "there is no plan 'none'"),
        (["--cell", "a"], "--cell a: expected --out"),
        (["--status", "nowhere"], "nowhere has no matrix/cells.json"),
    ],
)
def test_what_the_command_refuses(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["matrix", *words]) == 2
    assert message in capsys.readouterr().err


def test_the_command_lists_and_adds_up(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["matrix", "--list"]) == 0
    assert "paper-tiny: 84 cells. The paper's cells on the embedded models" in (
        capsys.readouterr().out
    )
    (tmp_path / "plan.toml").write_text(PLAN.replace("[0, 1, 2]", "[0, 1, 2, 3]"))
    words = ["matrix", str(tmp_path / "plan.toml"), "--out", str(finished), "--dry-run"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "cells   4: 3 finished, 1 to train" in out
    assert json.loads((finished / "matrix" / "cells.json").read_text())["plan"]["cells"] == [
        S0, S1, S2,
    ]  # fmt: skip
    assert "time    about" in out
    assert "disk    at most" in out
