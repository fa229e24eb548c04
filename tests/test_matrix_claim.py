"""One owner per cell: processes that race, die, fall silent, or come back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from trainers.matrix import claim
from trainers.matrix.claim import (
    OUSTED,
    STALE_SECONDS,
    Owner,
    Taken,
    claimed,
    last_owner,
    machine,
    owner_of,
)

HOLD = """
import sys, time
from pathlib import Path
from trainers.matrix import claim
claim.BEAT_SECONDS = 0.05
try:
    with claim.claimed(Path(sys.argv[1])):
        print("mine", flush=True)
        sys.stdin.readline()
except claim.Taken as taken:
    print(taken, flush=True)
"""


def holder(cell: Path) -> subprocess.Popen[str]:
    """A process that tries to own the cell, and keeps it until a line comes."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(cell)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def cell(tmp_path: Path) -> Path:
    return tmp_path / "voting.shared.s0"


def put_owner(cell: Path, number: int, **changes: object) -> Path:
    """An owner file as a process of another machine would have left it."""
    cell.mkdir(exist_ok=True)
    owner = Owner("far", "far/boot/1", 1, 0.0, "token")
    path = cell / f"owner-{number:06d}.json"
    path.write_text(json.dumps(asdict(replace(owner, **changes))))  # type: ignore[arg-type]
    return path


def test_an_owner_is_seen_and_gives_the_cell_back(cell: Path) -> None:
    assert owner_of(cell) is None
    with claimed(cell) as me:
        assert owner_of(cell) == me
        assert me.pid == os.getpid()
        with pytest.raises(
            Taken, match=rf"voting.shared.s0 is trained by process {os.getpid()} on"
        ):
            claimed(cell).__enter__()
    assert owner_of(cell) is None
    assert last_owner(cell) == replace(me, is_over=True)
    with claimed(cell) as again:
        assert again.token != me.token
    assert [path.name for path in cell.iterdir()] == ["owner-000002.json"]


def test_of_many_that_want_a_cell_one_gets_it(cell: Path) -> None:
    put_owner(cell, 7, machine=machine(), pid=2**22 + 1)  # a dead one, which all take over from
    processes = [holder(cell) for _ in range(4)]
    answers = [said(process) for process in processes]
    assert answers.count("mine") == 1
    assert sum("is trained by" in a or "taken by another" in a for a in answers) == 3
    for process in processes:
        process.communicate("\n")


def test_a_killed_owner_is_dead_at_once_on_its_machine(cell: Path) -> None:
    process = holder(cell)
    assert said(process) == "mine"
    owner = owner_of(cell)
    assert owner is not None
    assert owner.pid == process.pid
    process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
    assert owner_of(cell) is None, "it waits to be reaped, and trains no more"
    process.communicate()
    assert owner_of(cell) is None
    with claimed(cell):
        pass


def test_another_process_of_the_same_number_is_no_owner(cell: Path) -> None:
    me = psutil.Process()
    put_owner(cell, 1, machine=machine(), pid=me.pid, started=me.create_time() - 100)
    assert owner_of(cell) is None
    put_owner(cell, 2, machine=machine(), pid=me.pid, started=me.create_time())
    assert owner_of(cell) is not None


def test_an_owner_elsewhere_lives_while_it_is_heard_of(cell: Path) -> None:
    path = put_owner(cell, 3)
    assert str(owner_of(cell)) == "process 1 on far"
    with pytest.raises(Taken):
        claimed(cell).__enter__()
    now = time.time()
    os.utime(path, (now, now - STALE_SECONDS + 20))
    assert owner_of(cell) is not None
    os.utime(path, (now, now - STALE_SECONDS - 20))
    assert owner_of(cell) is None
    with claimed(cell):
        assert (cell / "owner-000004.json").is_file()
    assert not path.exists()


def test_an_owner_that_gave_back_or_was_cut_off_is_none(cell: Path) -> None:
    put_owner(cell, 1, is_over=True)
    assert owner_of(cell) is None
    (cell / "owner-000002.json").write_text('{"host": "fa')
    assert owner_of(cell) is None
    with claimed(cell):
        assert (cell / "owner-000003.json").is_file()


def test_owners_are_heard_of(cell: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "BEAT_SECONDS", 0.02)
    with claimed(cell):
        path = cell / "owner-000001.json"
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 30
        while path.stat().st_mtime < 1:
            assert time.monotonic() < deadline


def test_who_was_taken_for_dead_and_comes_back_ends_at_once(cell: Path) -> None:
    with holder(cell) as process:
        assert said(process) == "mine"
        put_owner(cell, 2)  # another machine took over while this one slept
        assert process.wait(timeout=60) == OUSTED
