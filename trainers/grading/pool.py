"""Grade answers in processes that are killed when they take too long: training never hangs.

Symbolic equality can take forever (`10**10**10`), and math-verify's own timeouts need signals,
which work in the main thread only and would take those of the program. Here the CPU time of a
process is bounded by the kernel, and its wall time by us; an answer that runs out of either is
wrong, ungraded and counted.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

CPU_SECONDS = 2
"""CPU time of one answer; the kernel rounds up to whole seconds."""
WALL_SECONDS = 30.0
"""Wall time of one answer: far above, since a busy machine must not change a verdict."""
START_SECONDS = 120.0
"""Wall time for the first answer of a process, which imports sympy."""


class OutOfTime(Exception):
    """The process was ended, or ended itself, before it answered."""


class Worker:
    """One grading process."""

    def __init__(self) -> None:
        # Nothing of our environment is in it: answers are parsed there. The hash seed makes
        # generated problems the same in every process.
        environment = {
            "PATH": os.defpath,
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
            "PYTHONHASHSEED": "0",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "trainers.grading.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            process_group=0,  # Ctrl-C is for the trainer, which finishes its step
        )
        self.is_new = True
        self.is_ended = False

    def ask(self, request: Mapping[str, Any], wall_seconds: float) -> dict[str, Any]:
        """The reply to a request.

        Raises OutOfTime, after which the process is gone, as after whatever else it raises.
        """
        assert self.process.stdin is not None
        limit = max(wall_seconds, START_SECONDS) if self.is_new else wall_seconds
        self.is_new = False
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            reply: dict[str, Any] = json.loads(self._line(limit))
        except (OutOfTime, BrokenPipeError):
            self.end()
            raise OutOfTime from None
        except BaseException:  # its reply would be taken for that to the next request
            self.end()
            raise
        return reply

    def _line(self, seconds: float) -> bytes:
        assert self.process.stdout is not None
        pipe, deadline, line = self.process.stdout.fileno(), time.monotonic() + seconds, b""
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(deadline - time.monotonic(), 0)):
                    raise OutOfTime
                part = os.read(pipe, 1 << 20)
                if not part:
                    raise OutOfTime
                line += part
        return line

    def end(self) -> None:
        """Kill the process and close its pipes."""
        self.is_ended = True
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


class GradingPool:
    """Processes that are started when first needed, and used again.

    Example:
        with GradingPool() as pool:
            [reply] = pool([{"rule": "math", "answer": "0.5", "reference": "1/2"}])
    """

    def __init__(
        self,
        processes: int | None = None,
        cpu_seconds: int = CPU_SECONDS,
        wall_seconds: float = WALL_SECONDS,
    ) -> None:
        self.processes = processes or min(os.cpu_count() or 1, 8)
        self.cpu_seconds = cpu_seconds
        self.wall_seconds = wall_seconds
        self._idle: SimpleQueue[Worker | None] = SimpleQueue()
        for _ in range(self.processes):
            self._idle.put(None)

    def __call__(self, requests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The replies, in order; never raises for what a request holds."""
        if len(requests) < 2:
            return [self._ask(request) for request in requests]
        with ThreadPoolExecutor(min(self.processes, len(requests))) as threads:
            return list(threads.map(self._ask, requests))

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        request = {"cpu_seconds": self.cpu_seconds, **request}
        with self._worker() as slot:
            worker = slot[0] = slot[0] or Worker()
            try:
                return worker.ask(request, max(self.wall_seconds, 4.0 * request["cpu_seconds"]))
            except OutOfTime:
                return {"is_correct": False, "reason": "out of time", "is_graded": False}
            finally:
                if worker.is_ended:
                    slot[0] = None

    @contextlib.contextmanager
    def _worker(self) -> Iterator[list[Worker | None]]:
        """A place for a process, which holds one after the first use."""
        slot = [self._idle.get()]
        try:
            yield slot
        finally:
            self._idle.put(slot[0])

    def close(self) -> None:
        """End all processes; the pool can be used again."""
        for _ in range(self.processes):
            if worker := self._idle.get():
                worker.end()
            self._idle.put(None)

    def __enter__(self) -> GradingPool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
