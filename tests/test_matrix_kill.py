"""Cells, runners and nodes that are killed: nothing is lost, nothing runs twice, bit for bit."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_train import assert_same_runs, assert_same_states

from gradlab.commands.matrix import train_named
from trainers.matrix.board import LineBoard
from trainers.matrix.claim import owner_of
from trainers.matrix.cluster import Cluster
from trainers.matrix.folder import Folder, begin, open_folder
from trainers.matrix.plan import read_plan
from trainers.matrix.run import Runner
from trainers.matrix.slurm import Job, write_script
from trainers.matrix.state import LOG, PROGRESS, Progress, Watcher, read
from trainers.training import train
from trainers.watch.progress import Progress as Quiet

pytestmark = pytest.mark.slow

STEPS = 12
PLAN = f"""
[options]
steps = {STEPS}
eval-every = 4
checkpoint-every = 3
problems-per-step = 4
samples = 4
eval-problems = 8
rows-per-update = 32
lora-rank = 4
device = "cpu"
threads = 1
[vary]
workflow = ["voting"]
routing = ["shared", "isolated"]
seed = [0, 1]
"""
PATIENCE = 900
"""Seconds until a test gives up waiting, beside other work on few cores."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cells as runs of their own."""
    where = tmp_path_factory.mktemp("undisturbed")
    (where / "plan.toml").write_text(PLAN)
    for cell in read_plan(where / "plan.toml").cells:
        config = replace(cell.config, out=where / cell.name)
        train(config, Quiet(Console(file=io.StringIO())))
    return where


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    (tmp_path / "plan.toml").write_text(PLAN)
    return tmp_path / "plan.toml"


def runner(plan: Path, *words: str) -> subprocess.Popen[str]:
    out = plan.parent / "map"
    return subprocess.Popen(
        [sys.executable, "-m", "gradlab", "matrix", str(plan), "--out", str(out), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=dict(os.environ) | {"OMP_NUM_THREADS": "1"},
    )


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def cell_at_step(plan: Path, step: int) -> tuple[str, int]:
    """A cell that is trained and has got so far, and its process."""

    def look() -> tuple[str, int] | None:
        if not (plan.parent / "map" / "matrix" / "cells.json").is_file():
            return None
        folder = open_folder(plan.parent / "map")
        for cell in folder.cells:
            about = folder.about(cell.name)
            progress, owner = read(about / PROGRESS, Progress), owner_of(about)
            if progress and owner and step <= progress.step < STEPS - 2:
                return cell.name, owner.pid
        return None

    found: tuple[str, int] = wait_for(look)
    return found


def assert_as_if_nothing_had_been(undisturbed: Path, folder: Folder) -> None:
    states = Watcher(folder).look()
    assert {state.status for state in states.values()} == {"finished"}, states
    for name in states:
        assert_same_runs(undisturbed / name, folder.out / name)
        assert_same_states(undisturbed / name, folder.out / name, STEPS)


def times_begun(folder: Folder) -> dict[str, int]:
    """How often each cell was begun, by its log: a run says where it writes."""
    return {
        cell.name: (folder.about(cell.name) / LOG).read_text().count(f"{STEPS} steps")
        for cell in folder.cells
    }


def test_a_killed_cell_is_told_and_goes_on_with_the_next_command(
    plan: Path, undisturbed: Path
) -> None:
    first = runner(plan, "--at-once", "2")
    name, pid = cell_at_step(plan, 4)
    os.kill(pid, signal.SIGKILL)
    said, _ = first.communicate(timeout=PATIENCE)
    assert first.returncode == 1, said
    assert f"{name}: interrupted" in said
    assert "killed by signal 9 (SIGKILL); goes on from step " in said
    assert "1 cell is left; the same command goes on" in said
    folder = open_folder(plan.parent / "map")
    counts = [state.status for state in Watcher(folder).look().values()]
    assert sorted(counts) == ["finished", "finished", "finished", "interrupted"]

    again = runner(plan)
    said, _ = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0, said
    assert "done: all of 4" in said
    assert_as_if_nothing_had_been(undisturbed, folder)
    assert times_begun(folder) == {n: 1 + (n == name) for n in Watcher(folder).look()}


def test_a_killed_runner_is_followed_by_another_and_nothing_runs_twice(
    plan: Path, undisturbed: Path
) -> None:
    """The cell in hand goes on by itself; the new runner waits for it and begins the others."""
    first = runner(plan)
    name, pid = cell_at_step(plan, 2)
    first.kill()
    first.communicate()
    again = runner(plan, "--at-once", "2")
    said, _ = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0, said
    assert f"{name}: running" in said
    assert f"by process {pid} on " in said
    folder = open_folder(plan.parent / "map")
    assert_as_if_nothing_had_been(undisturbed, folder)
    assert set(times_begun(folder).values()) == {1}


def test_runner_and_cell_killed_together(plan: Path, undisturbed: Path) -> None:
    first = runner(plan)
    _, pid = cell_at_step(plan, 4)
    first.kill()
    os.kill(pid, signal.SIGKILL)
    first.communicate()
    again = runner(plan)
    said, _ = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0, said
    assert_as_if_nothing_had_been(undisturbed, open_folder(plan.parent / "map"))


def test_two_runners_share_the_cells(plan: Path, undisturbed: Path) -> None:
    both = [runner(plan), runner(plan)]
    for one in both:
        said, _ = one.communicate(timeout=PATIENCE)
        assert one.returncode == 0, said
    folder = open_folder(plan.parent / "map")
    assert_as_if_nothing_had_been(undisturbed, folder)
    assert set(times_begun(folder).values()) == {1}


def test_ctrl_c_saves_what_is_in_hand(plan: Path, undisturbed: Path) -> None:
    first = runner(plan)
    name, _ = cell_at_step(plan, 2)
    first.send_signal(signal.SIGINT)
    said, _ = first.communicate(timeout=PATIENCE)
    assert first.returncode == 130, said
    assert f"stopping: {name} will finish the step in hand and save" in said
    folder = open_folder(plan.parent / "map")
    state = Watcher(folder).look()[name]
    assert state.status == "interrupted"
    assert state.said.startswith(f"stopped after step {state.progress.step}; goes on from step ")
    again = runner(plan)
    said, _ = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0, said
    assert_as_if_nothing_had_been(undisturbed, folder)


def test_tasks_of_an_array_take_their_cells(plan: Path, undisturbed: Path) -> None:
    folder = begin(read_plan(plan), plan.parent / "map")
    names = [cell.name for cell in folder.cells]
    path = write_script(folder, names, Job())
    for number in range(len(names)):
        environment = dict(os.environ) | {"SLURM_ARRAY_TASK_ID": str(number)}
        subprocess.run(["bash", str(path)], env=environment, check=True, capture_output=True)
        states = Watcher(folder).look()
        assert [states[name].status for name in names[: number + 1]] == ["finished"] * (number + 1)
    assert_as_if_nothing_had_been(undisturbed, folder)


@pytest.fixture
def two_nodes() -> Iterator[Any]:
    """A Ray cluster on this machine: a head and another node, a CPU each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster as Nodes

    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes.other = nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    yield nodes
    nodes.shutdown()


def test_a_lost_node_loses_nothing(plan: Path, undisturbed: Path, two_nodes: Any) -> None:
    folder = begin(read_plan(plan), plan.parent / "map")
    said = io.StringIO()

    class Losing(LineBoard):
        """Removes the second node once the cells on both nodes are on their way."""

        is_lost = False

        def show(self, states: Any) -> None:
            running = [s for s in states.values() if s.status == "running" and s.progress.step > 3]
            if len(running) == 2 and not self.is_lost:
                self.is_lost = True
                two_nodes.remove_node(two_nodes.other, allow_graceful=False)
            super().show(states)

    board = Losing(Console(file=said, width=200), 2)
    engine = Cluster(folder, train_named, address=two_nodes.address)
    assert engine.free() == 2
    states = Runner(folder, engine, board).run()
    assert board.is_lost
    counts = sorted(state.status for state in states.values())
    assert counts == ["finished", "finished", "finished", "interrupted"], said.getvalue()
    [lost] = [state for state in states.values() if state.status == "interrupted"]
    assert lost.said.startswith("lost: "), lost.said
    assert f"{lost.name}: interrupted" in said.getvalue()

    engine = Cluster(folder, train_named, address=two_nodes.address)
    assert engine.free() == 1
    Runner(folder, engine, board).run()
    assert_as_if_nothing_had_been(undisturbed, folder)


def test_a_cell_that_no_node_has_room_for_is_refused(plan: Path, two_nodes: Any) -> None:
    folder = begin(read_plan(plan), plan.parent / "map")
    for wanted, message in (({"threads": 2}, "has 2 CPUs"), ({"gpus": 0.5}, "and 0.5 GPUs")):
        with pytest.raises(ValueError, match=message):
            Cluster(folder, train_named, address=two_nodes.address, **wanted)  # type: ignore[arg-type]


def test_a_cell_that_fails_on_a_cluster_keeps_its_text(plan: Path, two_nodes: Any) -> None:
    folder = begin(read_plan(plan), plan.parent / "map")
    path = folder.out / "matrix" / "cells.json"
    said = json.loads(path.read_text())
    said["cells"][1]["config"]["model"] = "nowhere/none"
    path.write_text(json.dumps(said))
    folder = open_folder(folder.out)
    engine = Cluster(folder, train_named, address=two_nodes.address)
    states = Runner(folder, engine, LineBoard(Console(file=io.StringIO()), 2)).run()
    assert [state.status for state in states.values()].count("finished") == 3
    broken = states[folder.cells[1].name]
    assert broken.status == "failed"
    assert "nowhere/none" in broken.said
