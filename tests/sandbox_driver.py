"""Run attacks or honest programs at one level, as the user this process runs as; print JSON.

A process of its own, so that the tests can start it as another user. It needs the standard library
and the sandbox only.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from sandbox_programs import ATTACKS, HONEST, attack_program

from trainers.grading.programs import same_output
from trainers.sandbox.jail import UNPROTECTED
from trainers.sandbox.levels import probe
from trainers.sandbox.limits import Limits
from trainers.sandbox.pool import Pool, Reply


def main() -> None:
    what, level, directory = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    packages = ("numpy",) if find_spec("numpy") else ()
    problem, uid = probe(level, Limits(), packages)
    found: dict[str, list[str]] = {}
    if not problem:
        run = run_attacks if what == "attacks" else run_honest
        found = run(level, directory, packages)
    print(json.dumps({"problem": problem, "uid": uid, "found": found}))


def run_attacks(level: int, directory: Path, packages: tuple[str, ...]) -> dict[str, list[str]]:
    """What each attack achieved."""
    # In the memory, the environment and a file of this process, as a trainer might have it.
    answer = os.environ["GRADLAB_SECRET"] = f"ANSWER-{secrets.token_hex(16)}"
    (directory / "answers").write_text(answer)
    (directory / "answers").chmod(0o600)
    (directory / "canary").write_text("alive")
    (directory / "canary").chmod(0o666)
    before = sorted(os.listdir(directory))
    canary = _start_canary()
    listeners = [socket.create_server(("127.0.0.1", 0)), *_unix_listeners(directory)]
    places = {
        "TMP": str(directory),
        "SECRET_FILE": str(directory / "answers"),
        "CANARY": str(canary.pid),
        "TRAINER": str(os.getpid()),
        "PORT": str(listeners[0].getsockname()[1]),
        "SOCKET": str(directory / "socket"),
    }
    datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    datagrams.bind(str(directory / "socket-datagrams"))
    pool: Pool[str] = Pool(2, level, Limits(cpu_seconds=0.5, wall_seconds=1.0), packages)
    found: dict[str, list[str]] = {}
    waiting = list(ATTACKS)
    # Where they succeed, two at a time would be taken for one another, and kill each other's aim.
    at_once = 1 if level == UNPROTECTED else 2
    try:
        while len(found) < len(ATTACKS):
            while waiting and len(waiting) + len(found) > len(ATTACKS) - at_once:
                name = waiting.pop(0)
                request = {"mode": "script", "code": attack_program(name, places)}
                pool.submit(name, request, pool.limits.cpu_seconds)
            for name, reply in pool.wait():
                found[name] = _achieved(reply, answer)
                if level == UNPROTECTED:
                    time.sleep(0.1)  # a killed process takes a moment to die
                if canary.poll() is not None:
                    found[name].append("killed a process")
                    canary = _start_canary()
                    places["CANARY"] = str(canary.pid)
        sessions = [worker.process.pid for worker in pool._workers]
        left = [pid for pid in sessions_of(sessions) if pid not in sessions]
    finally:
        pool.close()
    found["afterwards"] = [f"process {pid} left" for pid in (*left, *sessions_of(sessions))]
    found["afterwards"] += _traces(directory, before)
    if canary.poll() is not None:
        found["afterwards"].append("killed a process")
    for listener in listeners:
        listener.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            listener.accept()
            found["afterwards"].append("a connection came in")
        listener.close()
    datagrams.close()
    (directory / "socket-datagrams").unlink()
    canary.communicate(b"\n")
    if _peak_memory_kib() > 400 * 1024:
        found["afterwards"].append("the grader's memory grew")
    (directory / "socket").unlink()
    return found


def _start_canary() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)


def _peak_memory_kib() -> int:
    # Not getrusage: that begins with the memory of the process this one was forked from.
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1])


def _unix_listeners(directory: Path) -> list[socket.socket]:
    made = []
    for address in (str(directory / "socket"), f"\0{directory / 'socket'}"):
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(address)
        listener.listen()
        made.append(listener)
    return made


def _achieved(reply: Reply, answer: str) -> list[str]:
    achieved = [line for line in reply.stdout.splitlines() if line.startswith("BREACH")]
    if reply.failure:
        achieved.append(f"broke the sandbox: {reply.failure}")
    if answer in reply.stdout + reply.stderr + reply.results:
        achieved.append("found the answer")
    if not reply.killed and same_output(reply.stdout, answer):
        achieved.append("was rewarded")
    return achieved


def sessions_of(leaders: list[int]) -> list[int]:
    """Processes that belong to the sessions of `leaders`."""
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            fields = Path(f"/proc/{int(entry)}/stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) in leaders and fields[0] not in "ZX":
                found.append(int(entry))
    return found


def _traces(directory: Path, before: list[str]) -> list[str]:
    traces = []
    canary = directory / "canary"
    if not canary.exists():
        traces.append("the canary is gone")
    elif canary.read_text() != "alive" or canary.stat().st_mode & 0o777 != 0o666:
        traces.append("the canary was changed")
    traces += [f"{name} in {directory}" for name in sorted({*os.listdir(directory)} - {*before})
               if not name.startswith("socket")]  # fmt: skip
    for place in ("/tmp", "/dev/shm", "/var/tmp", os.path.dirname(os.__file__)):
        for name in os.listdir(place):
            if name.startswith((f"gradlab-attack-{os.getpid()}", f"gradlab_attack_{os.getpid()}")):
                traces.append(f"{name} in {place}")
                os.remove(f"{place}/{name}")
    return traces


def run_honest(level: int, directory: Path, packages: tuple[str, ...]) -> dict[str, list[str]]:
    """What is wrong with each honest program; nothing, if it was accepted."""
    programs = dict(HONEST)
    if packages:
        programs["numpy"] = (
            "import numpy as np\nprint(np.linalg.solve(np.eye(3), np.arange(3)).sum())", "", "3.0",
        )  # fmt: skip
    pool: Pool[str] = Pool(1, level, Limits(cpu_seconds=5.0), packages)
    found: dict[str, list[str]] = {}
    try:
        for name, (code, stdin, expected) in programs.items():
            pool.submit(name, {"mode": "script", "code": code, "stdin": stdin}, 5.0)
            ((_, reply),) = pool.wait()
            is_right = not reply.killed and same_output(reply.stdout, expected)
            found[name] = [] if is_right else [reply.killed, reply.stderr[-300:], reply.stdout[:80]]
    finally:
        pool.close()
    return found


if __name__ == "__main__":
    main()
