"""Train several runs at the same time, each in a process of its own with one thread."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from threading import Thread
from types import FrameType

Process = subprocess.Popen[str]


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def train_side_by_side(
    trainings: Mapping[str, Sequence[str]], say: Callable[[str], None] = print
) -> None:
    """`trainings`: name -> options of `gradlab train`. `say` gets their lines, each with its name.

    Ctrl-C and SIGTERM are handed on; all finish the step in hand, and KeyboardInterrupt is raised.
    Raises RuntimeError with the names of those that failed, when all have ended.
    """
    processes: dict[str, Process] = {}
    asked: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        for process in processes.values():
            process.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for name, options in trainings.items():
            if not asked:
                processes[name] = start(options)
        widest = max(map(len, trainings), default=0)
        readers = [
            Thread(target=copy_lines, args=(process, f"{name:{widest}} ", say))
            for name, process in processes.items()
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        statuses = {name: process.wait() for name, process in processes.items()}
    finally:
        for process in processes.values():
            process.terminate()  # nothing is done to one that has ended
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        raise KeyboardInterrupt("stopped; the same command goes on from the last checkpoints")
    failed = [f"{name} (status {status})" for name, status in statuses.items() if status]
    if failed:
        raise RuntimeError(
            f"training failed: {', '.join(failed)}; what each said is above. The same command goes "
            "on with those that are not finished"
        )


def start(options: Sequence[str]) -> Process:
    """Begin `gradlab train` with these options, on one thread."""
    return subprocess.Popen(
        [sys.executable, "-m", "gradlab", "train", *options, "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        # Ctrl-C reaches the whole foreground group, and a second one stops training at once: each
        # is handed on, and only that.
        process_group=0,
    )


def copy_lines(process: Process, name: str, say: Callable[[str], None]) -> None:
    assert process.stdout is not None, "it was started with a pipe"
    with process.stdout as lines:
        for line in lines:
            say(f"{name}{line.rstrip()}")
