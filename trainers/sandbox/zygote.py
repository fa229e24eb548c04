"""Serve one job after another in a process of its own: fork, jail, run, kill at its limits, report.

Started by `pool` with a clean environment. It imports the standard library only, and is itself
outside the jails it builds. What it has once held in its memory, every later job can read in its
own: so requests go unread to their job, and what a job writes goes to memory that no fork inherits.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import mmap
import os
import select
import signal
import socket
import struct
import sys
import time
from dataclasses import dataclass
from typing import Any, NoReturn

from trainers.sandbox import job
from trainers.sandbox.jail import UNPROTECTED, Jail

_PRELOADED = (
    "array bisect cmath collections concurrent.futures copy dataclasses datetime decimal enum "
    "fractions functools heapq io itertools json math operator queue random re statistics string "
    "struct tempfile textwrap threading time traceback typing zlib"
)
_HEADER = struct.Struct(">I")
_READY = b"+"
"""First on the channel of results: the jail is closed, the program begins."""
_TICK = 0.25
"""Seconds between looks at a job's CPU clock, at most."""
_READ = 1 << 16
"""Bytes read at once from a job."""
_WIPE_ON_FORK, _DONT_FORK = 18, 10
"""Advice to the kernel: a fork finds zeros there, or nothing."""
_TESTER_GRACE = 1.0
"""Seconds that the test of a program may take longer than the program."""


class _Sink:
    """What a job has written to one pipe, in memory that is no other job's."""

    def __init__(self, cap: int, *, keeps_end: bool = False) -> None:
        self.cap = cap
        self.keeps_end = keeps_end
        size = cap + _READ
        self._memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        try:
            self._memory.madvise(_WIPE_ON_FORK)
        except OSError:  # before Linux 4.14
            self._memory.madvise(_DONT_FORK)
        self._view = memoryview(self._memory)
        self.used = 0

    def read(self, fd: int) -> tuple[int, bool]:
        """Read once: the number of bytes, and whether there is a line end among them.

        Raises BlockingIOError if there is nothing to read now.
        """
        num = os.readv(fd, [self._view[self.used : self.used + _READ]])
        start, self.used = self.used, self.used + num
        has_end = self._memory.find(b"\n", start, self.used) >= 0
        if self.used > self.cap and self.keeps_end:
            self._memory.move(0, self.used - self.cap, self.cap)
            self.used = self.cap
        return num, has_end

    @property
    def is_over(self) -> bool:
        return self.used > self.cap

    def starts_with(self, mark: bytes) -> bool:
        return self._memory.find(mark, 0, min(len(mark), self.used)) == 0

    def content(self) -> memoryview:
        return self._view[: min(self.used, self.cap)]


@dataclass(frozen=True)
class _Shared:
    """Made once, used by every job."""

    prelude: list[str]
    streams: job.Streams
    alive: tuple[int, int]
    """A pipe whose writing end the zygote alone holds: it closes when the zygote dies."""
    sinks: tuple[_Sink, _Sink, _Sink]
    """Standard output and error of the job at hand, and its results."""


@dataclass
class _Watched:
    """A running job."""

    pid: int
    started: float
    steps: int
    """Results that start its CPU time anew: one for each call that it has to answer."""
    step_cpu: float = 0.0
    """CPU seconds when the last of them came."""
    killed: str = ""
    """Why it was killed; empty if it was not."""

    def cpu(self) -> float:
        return time.clock_gettime((~self.pid << 3) | 2)  # its process clock (CPUCLOCK_SCHED)

    def kill(self, why: str) -> None:
        self.killed = self.killed or why
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


def main() -> NoReturn:
    """Entry point; the configuration is a JSON object in the last argument."""
    config = json.loads(sys.argv[-1])
    control = socket.socket(fileno=config["control"])
    parent = os.getppid()
    try:
        _preload(config["packages"])
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("500")  # rather a job than the trainer
        paths = tuple(path for _, path in config["packages"])
        jail = Jail(config["level"], packages=paths, scratch_bytes=config["scratch_bytes"])
    except Exception as error:
        _send(control, {"error": f"{type(error).__name__}: {error}"})
        os._exit(1)
    out, err = _Sink(config["output_bytes"]), _Sink(config["stderr_bytes"], keeps_end=True)
    results = _Sink(config["output_bytes"])
    shared = _Shared(job.install_prelude(), job.open_streams(), os.pipe(), (out, err, results))
    gc.collect()
    gc.freeze()
    _send(control, {"ready": True})
    while True:
        _wait_for_request(control, parent)
        _run(*_receive(control), jail, control, shared)


def _preload(packages: list[list[str]]) -> None:
    """Import what programs like to import; a package from its own directory."""
    for name in _PRELOADED.split():
        importlib.import_module(name)
    plain = list(sys.path)
    for name, path in packages:
        sys.path.insert(0, os.path.dirname(path))
        importlib.import_module(name)
        sys.path[:] = plain


def _wait_for_request(control: socket.socket, parent: int) -> None:
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while not poll.poll(1000):
        if os.getppid() != parent:  # killed, while somebody else holds its end of the socket
            os._exit(0)


def _receive(control: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The terms of a job, and its files: the request, standard input, and maybe a channel."""
    header, fds, _, _ = socket.recv_fds(control, _HEADER.size, 3)
    if len(header) < _HEADER.size:  # the trainer is gone
        os._exit(0)
    (left,) = _HEADER.unpack(header)
    parts = []
    while left:
        part = control.recv(left)
        if not part:
            os._exit(0)
        parts.append(part)
        left -= len(part)
    return json.loads(b"".join(parts)), fds


def _send(control: socket.socket, message: dict[str, Any], *contents: memoryview) -> None:
    data = json.dumps(message).encode()
    try:
        control.sendall(_HEADER.pack(len(data)) + data)
        for content in contents:
            control.sendall(content)
    except BrokenPipeError:
        os._exit(0)


def _run(
    terms: dict[str, Any],
    fds: list[int],
    jail: Jail,
    control: socket.socket,
    shared: _Shared,
) -> None:
    """Run a job and send what came of it."""
    request, stdin, *channel = fds
    pipes = [os.pipe() for _ in range(3)]
    (out, out_end), (err, err_end), (results, results_end) = pipes
    started = time.monotonic()
    pid = jail.fork()
    if pid == 0:
        ends = [stdin, out_end, err_end, *channel, results_end]
        _become_job(request, ends, terms["limits"], jail, shared)
    for fd in (*(end for _, end in pipes), *fds):
        os.close(fd)
    watched = _Watched(pid, started, terms["steps"])
    for sink in shared.sinks:
        sink.used = 0
    sinks = dict(zip((out, err, results), shared.sinks, strict=True))
    _watch(watched, terms, sinks, control)
    for fd in sinks:
        os.close(fd)
    _, status, usage = os.wait4(pid, 0)
    if jail.level == UNPROTECTED:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    report = _report(watched, terms, status, usage.ru_utime + usage.ru_stime)
    entered = shared.sinks[2].starts_with(_READY)
    contents = [sink.content() for sink in shared.sinks]
    report |= {"entered": entered, "sizes": [len(content) for content in contents]}
    _send(control, report, *contents)


def _become_job(
    request_fd: int,
    ends: list[int],
    limits: dict[str, int],
    jail: Jail,
    shared: _Shared,
) -> NoReturn:
    try:
        request = json.loads(os.pread(request_fd, os.fstat(request_fd).st_size, 0))
        os.close(shared.alive[1])
        if jail.level == UNPROTECTED:
            os.setsid()
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 200) for fd in (*ends, shared.alive[0])]
        for target, fd in enumerate(high[: len(ends)]):
            os.dup2(fd, target)
        watch = high[-1]
        kept = {jail.rules, watch}
        low = len(ends)
        for fd in sorted(kept - {-1}):
            os.closerange(low, fd)
            low = fd + 1
        os.closerange(low, low + 64)
        jail.enter(limits)
        # Had the zygote died before its death was our signal, its end of the pipe would be closed.
        if select.select([watch], [], [], 0)[0]:
            os._exit(1)
        os.write(len(ends) - 1, _READY)  # from here on, the program may write there
        os.close(watch)
    except BaseException as error:
        os.write(2, f"jail: {type(error).__name__}: {error}".encode())
        os._exit(1)
    job.run(request, shared.prelude, shared.streams)


def _watch(
    watched: _Watched,
    terms: dict[str, Any],
    sinks: dict[int, _Sink],
    control: socket.socket,
) -> None:
    """Collect output until the job has ended, killing it when it goes over a limit."""
    pidfd, last = os.pidfd_open(watched.pid), [*sinks][-1]
    poll = select.poll()
    for fd in (*sinks, pidfd):
        os.set_blocking(fd, False)
        poll.register(fd, select.POLLIN)
    poll.register(control, 0)  # hang-up only
    cpu_limit = terms["cpu_seconds"]
    deadline = watched.started + terms["wall_seconds"]
    busy_deadline = watched.started + terms["busy_wall_seconds"]
    if terms["is_tester"]:  # mostly waits for the program, whose own limits end them both
        deadline = busy_deadline = busy_deadline + _TESTER_GRACE
    ended = False
    while not ended:
        left = deadline - time.monotonic()
        events = poll.poll(max(left, 0.001) * 1000 if 0 < left < _TICK else _TICK * 1000)
        for fd, _ in events:
            if fd == pidfd:
                ended = True
            elif fd == control.fileno():  # the trainer is gone
                watched.kill("orphaned")
                os._exit(0)
            elif not _drain(fd, sinks[fd], watched, is_results=fd == last):
                poll.unregister(fd)
        if ended or watched.killed:
            continue
        now, cpu = time.monotonic(), watched.cpu()
        if cpu - watched.step_cpu > cpu_limit:
            watched.kill("cpu")
        elif now > deadline and (cpu < 0.1 * (now - watched.started) or now > busy_deadline):
            watched.kill("wall")
    os.close(pidfd)
    for fd in sinks:
        while _drain(fd, sinks[fd], watched, is_results=fd == last):
            pass


def _drain(fd: int, sink: _Sink, watched: _Watched, *, is_results: bool) -> bool:
    """Read once; False if there is nothing (more) to read."""
    try:
        num, has_end = sink.read(fd)
    except BlockingIOError:
        return False
    if sink.is_over:
        watched.kill("output")
        return False
    if is_results and has_end and watched.steps > 0:
        watched.steps -= 1
        with contextlib.suppress(OSError):
            watched.step_cpu = watched.cpu()
    return num > 0


def _report(watched: _Watched, terms: dict[str, Any], status: int, cpu: float) -> dict[str, Any]:
    killed = watched.killed
    if not killed and cpu - watched.step_cpu > terms["cpu_seconds"]:
        killed = "cpu"
    return {"killed": killed, "code": os.waitstatus_to_exitcode(status), "cpu": cpu}
