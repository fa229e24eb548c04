"""Train cells as tasks of a Ray cluster whose nodes share the folder of the matrix."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainers.matrix.engine import DISK, FAILED, FINISHED, TAKEN, Exit
from trainers.matrix.folder import Folder
from trainers.matrix.state import ENDED, LOG, Ended, open_log, read

ANSWER_SECONDS = 20.0
TrainNamed = Callable[[Path, str, int, bool], int]
"""(folder of the matrix, cell, threads, whether failed ones are tried) -> exit status."""


def ray_module() -> Any:
    """The package.

    Raises ValueError where it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ValueError(
            f"--on ray needs ray, which is not installed ({error}); pip install 'gradlab[ray]'"
        ) from error
    return ray


class Cluster:
    """Tasks with `threads` CPUs and `gpus` GPUs each, a fresh worker process for each."""

    def __init__(
        self,
        folder: Folder,
        train: TrainNamed,
        *,
        address: str = "",
        at_once: int = 0,
        threads: int = 1,
        gpus: float = 0.0,
        retry_failed: bool = False,
    ) -> None:
        """`address`: of a running cluster; '' looks for one, and else begins one here."""
        self._ray = ray_module()
        self.folder = folder
        self.at_once, self.threads, self.gpus = at_once, threads, gpus
        self._retry = retry_failed
        self._is_ours = not self._ray.is_initialized()
        if self._is_ours:
            self._connect(address)
        self._task = self._ray.remote(
            num_cpus=threads, num_gpus=gpus, max_retries=0, max_calls=1
        )(logged)  # fmt: skip
        self._train = train
        if not self._room():
            self.close()
            raise ValueError(
                f"no node of the Ray cluster has {threads} CPUs"
                + (f" and {gpus:g} GPUs" if gpus else "")
                + " for a cell; lower --threads-each or --gpus-each, or add a node"
            )
        self._refs: dict[Any, str] = {}

    def _connect(self, address: str) -> None:
        check_answers(address)
        settings = {"log_to_driver": False, "logging_level": "ERROR"}
        try:
            self._ray.init(address=address or "auto", **settings)
        except ConnectionError:
            if address:
                raise
            self._ray.init(include_dashboard=False, **settings)

    @property
    def busy(self) -> Sequence[str]:
        return tuple(self._refs.values())

    def free(self) -> int:
        """As many as the nodes that are there now have room for, so that no cell waits in a queue
        that nobody sees."""
        room = self._room()
        return (min(room, self.at_once) if self.at_once else room) - len(self._refs)

    def _room(self) -> int:
        """Cells that all nodes together can train at a time; each is on one node."""
        total = 0
        for node in self._ray.nodes():
            there = node["Resources"] if node["Alive"] else {}
            room = int(there.get("CPU", 0) // self.threads)
            total += min(room, int(there.get("GPU", 0) / self.gpus)) if self.gpus else room
        return total

    def start(self, name: str) -> None:
        log = (self.folder.about(name) / LOG).resolve()
        ref = self._task.remote(
            self._train, self.folder.out.resolve(), name, self.threads, self._retry, log,
            Path.cwd(),
        )  # fmt: skip
        self._refs[ref] = name

    def ended(self) -> Sequence[Exit]:
        found = []
        if not self._refs:
            return []
        refs = list(self._refs)
        for ref in self._ray.wait(refs, num_returns=len(refs), timeout=0)[0]:
            name = self._refs.pop(ref)
            found.append(self._exit(ref, name))
        return found

    def _exit(self, ref: Any, name: str) -> Exit:
        try:
            status = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            return Exit(name, "failed", str(error).strip().splitlines()[-1])
        except self._ray.exceptions.RayError as error:  # its worker or its node is gone
            if read(self.folder.about(name) / ENDED, Ended):  # stopped, and said so itself
                return Exit(name)
            first = str(error).strip().splitlines()[0].partition(" This can happen")[0]
            return Exit(name, "killed", f"lost: {type(error).__name__}: {first}")
        if status in (FINISHED, TAKEN) or read(self.folder.about(name) / ENDED, Ended):
            return Exit(name, was_taken=status == TAKEN)
        if status == DISK:
            return Exit(name, "disk", "the disk took no more")
        return Exit(name, "failed", "failed" if status == FAILED else f"status {status}")

    def stop(self, now: bool) -> None:
        for ref in self._refs:
            self._ray.cancel(ref, force=now)

    def close(self) -> None:
        if self._is_ours:
            self._ray.shutdown()


def check_answers(address: str) -> None:
    """Raise ValueError where nobody listens at HOST:PORT: Ray would try for many minutes."""
    host, mark, port = address.rpartition(":")
    if not mark or not port.isdecimal() or "/" in host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except OSError as error:
        raise ValueError(
            f"--address {address}: nobody answers there ({error}); expected HOST:PORT of a Ray "
            "cluster's head, e.g. head:6379"
        ) from error


def logged(
    train: TrainNamed,
    out: Path,
    name: str,
    threads: int,
    retry_failed: bool,
    log: Path,
    start: Path,
) -> int:
    """Train a cell on the node that this runs on; what is printed goes to its log.

    `start`: where paths of the plan are read from.
    """
    os.chdir(start)
    with printing_to(log):
        return train(out, name, threads, retry_failed)


@contextmanager
def printing_to(log: Path) -> Iterator[None]:
    """Everything that this process prints, compiled libraries included, goes to a file."""
    sys.stdout.flush()
    kept = [os.dup(number) for number in (1, 2)]
    with open_log(log) as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        try:
            yield
        finally:
            sys.stdout.flush()
            for number, before in zip((1, 2), kept, strict=True):
                os.dup2(before, number)
                os.close(before)
