"""Measure how many programs a second are graded, beside a fresh interpreter for each.

    python bench/sandbox.py [--rounds 9] [--write]

A trivial program, and ones of about 1 and 4 ms of work, each with one test, on two workers. Ours at
every level this machine offers, `python -I -S -B` with resource limits, and the floor for whatever
forks: a fork of an interpreter with the same modules that runs the program, with no input, output,
limits or protection. Alternating in one process, so that a busy machine is busy for all; medians
over the rounds. CPU time per program is that of all processes together: 2 / it is the rate on two
cores with nothing beside, as far as caches allow.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from trainers.grading.code_tests import StdinTest
from trainers.grading.programs import CodeGrader, same_output
from trainers.sandbox.levels import NAMES
from trainers.sandbox.pool import SandboxError

RESULT = Path(__file__).parent / "results" / "sandbox.md"
LOOP = "n = int(input())\nt = 0\nfor i in range({}): t += i * i % 7\nprint(n * 2)"
PROGRAMS = {
    "trivial": "print(int(input()) * 2)",
    "about 1 ms of work": LOOP.format(12_500),
    "typical (about 4 ms of work)": LOOP.format(50_000),
}
TEST = StdinTest("21\n", "42\n")
LIMITS = (
    "import resource as r\nr.setrlimit(r.RLIMIT_AS, (1 << 29, 1 << 29))\n"
    "r.setrlimit(r.RLIMIT_CPU, (4, 4))\n"
)
WORKERS = 2
FORKER = """
import gc, os, resource, sys, time
from trainers.sandbox import job, zygote
zygote._preload([])
job.install_prelude()
gc.collect()
gc.freeze()
for line in sys.stdin:
    code = sys.argv[1:][int(line)]
    pid = os.fork()
    if pid == 0:
        exec(compile(code, "s", "exec"), {"input": lambda: "21", "print": id})
        os._exit(0)
    print(sum(os.wait4(pid, 0)[2][:2]), time.process_time(), flush=True)
"""
Way = Callable[[str, int], float]
"""Grades a program so many times; returns the CPU seconds of the other processes."""


@dataclass(frozen=True)
class Sample:
    """One round of one way."""

    rate: float
    """Programs per second."""
    cpu: float
    """CPU milliseconds per program, trainer and all others."""


def fresh(code: str, number: int) -> float:
    """Each program in a new interpreter, nothing else to hold it; CPU seconds of its processes."""

    def run(_: int) -> bool:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-B", "-c", LIMITS + code],
            input=TEST.input,
            capture_output=True,
            text=True,
            check=True,
            env={},
        )
        return same_output(done.stdout, TEST.output)

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with ThreadPoolExecutor(WORKERS) as pool:
        assert all(pool.map(run, range(number)))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


class Forkers:
    """As many processes as workers that do nothing but fork and run."""

    def __init__(self) -> None:
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-s", "-P", "-S", "-B", "-c", FORKER, *PROGRAMS.values()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={"PYTHONPATH": str(Path(__file__).parents[1])},
            )
            for _ in range(WORKERS)
        ]

    def __call__(self, code: str, number: int) -> float:
        which = list(PROGRAMS.values()).index(code)
        with ThreadPoolExecutor(WORKERS) as pool:
            return sum(pool.map(lambda p: self._ask(p, which, number), self._processes))

    def _ask(self, process: subprocess.Popen[str], which: int, number: int) -> float:
        assert process.stdin
        assert process.stdout
        children, own = 0.0, []
        for _ in range(number // WORKERS):
            process.stdin.write(f"{which}\n")
            process.stdin.flush()
            child, clock = map(float, process.stdout.readline().split())
            children += child
            own.append(clock)
        return children + own[-1] - own[0]

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


def graded(grader: CodeGrader) -> Way:
    # The clock of a process by its id: (~pid << 3) | 2, see clock_getcpuclockid.
    clocks = [(~worker.process.pid << 3) | 2 for worker in grader._pool._workers]

    def run(code: str, number: int) -> float:
        before = sum(map(time.clock_gettime, clocks))
        verdicts = grader.grade([(code, [TEST])] * number)
        assert all(verdict.passed for verdict in verdicts)
        zygotes = sum(map(time.clock_gettime, clocks)) - before
        return zygotes + sum(verdict.cpu_seconds for verdict in verdicts)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--number", type=int, default=60, help="programs per round")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT}")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with ExitStack() as stack:
        ways: dict[str, Way] = {}
        for level, name in NAMES.items():
            for packages in ((), ("numpy",)) if level == 3 else ((),):
                try:
                    grader = CodeGrader(
                        workers=WORKERS, level=level, allow_unprotected=True, packages=packages
                    )
                except SandboxError:
                    continue
                stack.callback(grader.close)
                ways[f"level {level}, {name}" + ", numpy loaded" * bool(packages)] = graded(grader)
        forkers = Forkers()
        stack.callback(forkers.close)
        ways["bare fork, the floor"] = forkers
        ways["fresh interpreter, limits only"] = fresh
        samples = measure(ways, options.rounds, options.number)
    text = table(samples, options.rounds, options.number, load, os.getloadavg()[0])
    print(text)
    if options.write:
        RESULT.write_text(text)


def measure(ways: dict[str, Way], rounds: int, number: int) -> dict[str, dict[str, list[Sample]]]:
    """way -> program -> a sample per round."""
    samples: dict[str, dict[str, list[Sample]]] = {way: {p: [] for p in PROGRAMS} for way in ways}
    for _ in range(rounds):
        for program, code in PROGRAMS.items():
            for way, run in ways.items():
                started, own = time.perf_counter(), time.process_time()
                cpu = run(code, number) + time.process_time() - own
                seconds = time.perf_counter() - started
                samples[way][program].append(Sample(number / seconds, 1e3 * cpu / number))
    return samples


def table(
    samples: dict[str, dict[str, list[Sample]]],
    rounds: int,
    number: int,
    load_before: float,
    load_after: float,
) -> str:
    *_, baseline = samples
    lines = [
        "# Programs graded per second",
        "",
        f"`python bench/sandbox.py`, {datetime.now(UTC):%Y-%m-%d}: {os.cpu_count()} cores "
        f"({platform.machine()}), Linux {platform.release()}, Python {platform.python_version()}; "
        f"{WORKERS} workers, median of {rounds} alternating rounds of {number} programs (least to "
        f"most in brackets). Load average {load_before:.1f} before, {load_after:.1f} after: what "
        "ran beside takes its share. CPU ms: per program, of all processes together; 2000 / it is "
        "the rate of two cores with nothing beside.",
        "",
        f"| | {' | '.join(f'{program} | ratio | CPU ms' for program in PROGRAMS)} |",
        "|---" * (1 + 3 * len(PROGRAMS)) + "|",
    ]
    for way, found in samples.items():
        cells = []
        for program in PROGRAMS:
            ours, theirs = found[program], samples[baseline][program]
            rates = [sample.rate for sample in ours]
            ratios = [a.rate / b.rate for a, b in zip(ours, theirs, strict=True)]
            cells.append(f"{statistics.median(rates):.0f} ({min(rates):.0f}–{max(rates):.0f})")
            cells.append(f"{statistics.median(ratios):.1f}")
            cpu = [sample.cpu for sample in ours]
            cells.append(f"{statistics.median(cpu):.1f} (least {min(cpu):.1f})")
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
