"""Start the processes of one run from a test, as torchrun would, without its start-up time."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

SECONDS = 240


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _begin(
    act: Callable[..., Any], arguments: Sequence[Any], told: dict[str, str], out: Path
) -> None:
    os.environ.update(told)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    file = os.open(out / f"rank{told['RANK']}.txt", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    faulthandler.dump_traceback_later(SECONDS - 20)  # where a rank waits that will be killed
    sys.exit(act(*arguments))


class Processes:
    """Processes of one run, forked from the test: what is imported here is imported there."""

    def __init__(self, out: Path, act: Callable[..., Any], *arguments: Any, size: int = 2) -> None:
        """Each calls `act(*arguments)` and exits with what that returns."""
        self.out = out
        out.mkdir(parents=True, exist_ok=True)
        port, context = free_port(), multiprocessing.get_context("fork")
        self.all = [
            context.Process(
                target=_begin, args=(act, arguments, environment(rank, size, port), out)
            )
            for rank in range(size)
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # threads of the test beside a fork
            for process in self.all:
                process.start()

    def wait(self) -> list[int]:
        """The exit status of every rank."""
        for process in self.all:
            process.join(SECONDS)
        for process in self.all:
            if process.is_alive():
                process.kill()
                raise AssertionError(f"a rank is still there after {SECONDS} s: {self.said()}")
        return [process.exitcode or 0 for process in self.all]

    def said(self) -> list[str]:
        """What every rank wrote to the terminal."""
        return [(self.out / f"rank{rank}.txt").read_text() for rank in range(len(self.all))]
