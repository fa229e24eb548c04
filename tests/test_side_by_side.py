"""Trainings side by side are those in turn; what stops or fails is told, with its name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest
from test_train import assert_same_runs

from gradlab.commands.demo import is_finished, train_options
from gradlab.commands.side_by_side import start, train_side_by_side

SMALL = (
    "--problems-per-step=2", "--samples=2", "--eval-problems=4", "--device=cpu",
)  # fmt: skip


def test_those_that_fail_are_named_with_what_they_said(tmp_path: Path) -> None:
    lines: list[str] = []
    trainings = {
        name: [f"--out={tmp_path / name}", "--steps=0"] for name in ("first", "the-second")
    }
    with pytest.raises(RuntimeError, match=r"failed: first \(status 2\), the-second \(status 2\)"):
        train_side_by_side(trainings, lines.append)
    assert any(line.startswith("first      ") and "--steps" in line for line in lines)
    assert any(line.startswith("the-second ") and "--steps" in line for line in lines)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_demo_that_was_cut_short_is_continued(tmp_path: Path) -> None:
    assert train_options("demo-cliff", tmp_path) == ["--preset=demo-cliff", f"--out={tmp_path}"]
    (tmp_path / "config.json").write_text("{}")
    assert train_options("demo-cliff", tmp_path) == ["--resume", f"--out={tmp_path}"]


@pytest.mark.slow
def test_side_by_side_is_in_turn(tmp_path: Path) -> None:
    """Bit for bit, since each has one thread either way."""
    seeds = {"one": "--seed=1", "two": "--seed=2"}
    lines: list[str] = []
    train_side_by_side(
        {
            name: [*SMALL, "--steps=2", seed, f"--out={tmp_path / name}"]
            for name, seed in seeds.items()
        },
        lines.append,
    )
    assert any("held-out" in line and line.startswith("two ") for line in lines)
    for name, seed in seeds.items():
        alone = tmp_path / f"{name}-alone"
        process = start([*SMALL, "--steps=2", seed, f"--out={alone}"])
        assert "done" in process.communicate()[0]
        assert_same_runs(tmp_path / name, alone)


@pytest.mark.slow
def test_a_signal_ends_all_with_a_checkpoint(tmp_path: Path) -> None:
    """As from a terminal or `kill`: to this process alone, when the first evaluation is there."""
    script = tmp_path / "both.py"
    outs = [tmp_path / "one", tmp_path / "two"]
    options = [[*SMALL, "--steps=5000", f"--out={out}"] for out in outs]
    script.write_text(
        "from gradlab.commands.side_by_side import train_side_by_side\n"
        "def say(line): print(line, flush=True)\n"
        f"train_side_by_side(dict(zip(['one', 'two'], {options!r})), say)\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert process.stdout is not None
    seen: set[str] = set()
    for line in process.stdout:
        if "step    0" in line:
            seen.add(line.split()[0])
        if len(seen) == 2:
            break
    rest: list[str] = []
    reader = Thread(target=rest.extend, args=(process.stdout,))
    reader.start()
    process.send_signal(signal.SIGINT)
    reader.join()
    assert process.wait() != 0
    assert sum("stopped after step" in line for line in rest) == 2
    for out in outs:
        assert list((out / "checkpoints").iterdir())
        assert not is_finished(out, 5000)
