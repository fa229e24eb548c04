"""Train cells in processes of this machine, its threads and GPUs dealt out among them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainers.matrix.engine import DISK, FAILED, FINISHED, TAKEN, Exit
from trainers.matrix.folder import Folder
from trainers.matrix.state import ENDED, LOG, open_log, read, tail
from trainers.matrix.state import Ended as Ending

THREADS = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
)  # fmt: skip


def cell_command(folder: Folder, cell: str, threads: int, retry_failed: bool) -> list[str]:
    """What trains one cell, in a process of its own."""
    words = [sys.executable, "-m", "gradlab", "matrix", "--out", str(folder.out), "--cell", cell]
    words += ["--threads-each", str(threads)] if threads else []
    return words + (["--retry-failed"] if retry_failed else [])


def cores_here() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def gpus_here() -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls the GPUs that can be used."""
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in given.split(",") if name and name != "-1"]
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return []  # saves the seconds that torch takes to load
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


@dataclass
class _Running:
    process: subprocess.Popen[bytes]
    slot: int


class Processes:
    """`at_once` processes, each with its share of the threads and, in turn, one of the GPUs."""

    def __init__(
        self, folder: Folder, at_once: int, threads: int = 0, retry_failed: bool = False
    ) -> None:
        self.folder = folder
        self.at_once = at_once
        self.threads = threads or max(1, cores_here() // at_once)
        self.gpus = gpus_here()
        self.retry_failed = retry_failed
        self._running: dict[str, _Running] = {}

    @property
    def busy(self) -> Sequence[str]:
        return tuple(self._running)

    def free(self) -> int:
        return self.at_once - len(self._running)

    def environment(self, slot: int) -> dict[str, str]:
        """What a cell finds around it."""
        found = dict(os.environ) | dict.fromkeys(THREADS, str(self.threads))
        if self.gpus:
            found["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        return found

    def start(self, name: str) -> None:
        taken = {running.slot for running in self._running.values()}
        slot = next(slot for slot in range(self.at_once) if slot not in taken)
        with open_log(self.folder.about(name) / LOG) as log:
            process = subprocess.Popen(
                cell_command(self.folder, name, self.threads, self.retry_failed),
                env=self.environment(slot),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C reaches the runner alone, which asks the cells to save.
                start_new_session=True,
            )
        self._running[name] = _Running(process, slot)

    def ended(self) -> Sequence[Exit]:
        found = []
        for name, running in list(self._running.items()):
            if (status := running.process.poll()) is not None:
                del self._running[name]
                found.append(self._exit(name, status))
        return found

    def _exit(self, name: str, status: int) -> Exit:
        about = self.folder.about(name)
        said = read(about / ENDED, Ending)
        if status in (FINISHED, TAKEN) or said is not None:
            return Exit(name, was_taken=status == TAKEN)
        if status < 0:
            number = signal.Signals(-status)
            return Exit(name, "killed", f"killed by signal {-status} ({number.name})")
        if status == DISK:  # which did not even take the reason
            return Exit(name, "disk", "the disk took no more")
        word = "failed" if status == FAILED else f"ended with status {status}"
        return Exit(name, "failed", f"{word}: {tail(about / LOG) or 'nothing was printed'}")

    def stop(self, now: bool) -> None:
        for running in self._running.values():
            running.process.send_signal(signal.SIGKILL if now else signal.SIGTERM)

    def close(self) -> None:
        """Processes that still run go on by themselves, and are found by their claims."""
