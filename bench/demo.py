"""Show where the demo's time goes: rollout, training, probe, evaluation, store; probe on and off.

    python bench/demo.py           # about three minutes; writes bench/results/demo.json
    python bench/demo.py --ways [--rounds 3] [--steps 6]   # its runs side by side, or in turn

Runs the demo's isolated setting for a few steps with the probe on and off in alternation and
compares medians over all steps but the first. With --ways, the first steps of its three runs are
trained side by side with one thread each, as the demo does, and one after the other in one process
with torch's own threads, as it did; in alternation, wall clock and CPU time, start included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradlab.commands.side_by_side import num_cores, train_side_by_side
from gradlab.store.run import open_run
from trainers.presets import PRESETS, demo_isolated
from trainers.rundir.directory import versions
from trainers.training import train

ROUNDS = 3
STEPS = 12


DEMOS = [name for name in PRESETS if name.startswith("demo-")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ways", action="store_true")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--in-turn", type=Path, help="train them here, one after the other")
    options = parser.parse_args()
    if options.in_turn:
        in_turn(options.in_turn, options.steps)
    elif options.ways:
        compare_ways(options.rounds, options.steps)
    else:
        probe_on_and_off(options.rounds)


def in_turn(out: Path, steps: int) -> None:
    for name in DEMOS:
        train(replace(PRESETS[name](), out=out / name, steps=steps))


def compare_ways(rounds: int, steps: int) -> None:
    """Print medians, and the ratio of each round's wall clocks."""
    wall: dict[str, list[float]] = {"side by side": [], "in turn": []}
    cpu: dict[str, list[float]] = {way: [] for way in wall}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(rounds):
            for way in [*wall] if number % 2 else [*reversed(wall)]:
                out = Path(scratch) / f"{number}-{way}"
                spent, started = children_seconds(), time.perf_counter()
                if way == "in turn":
                    command = [sys.executable, __file__, "--in-turn", str(out), "--steps", steps]
                    subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL)
                else:
                    train_side_by_side(
                        {
                            name: [f"--preset={name}", f"--steps={steps}", f"--out={out / name}"]
                            for name in DEMOS
                        },
                        lambda line: None,
                    )
                wall[way].append(time.perf_counter() - started)
                cpu[way].append(children_seconds() - spent)
    load = os.getloadavg()[0]
    print(f"{steps} steps of {', '.join(DEMOS)}; {num_cores()} cores, load average {load:.1f}")
    for way in wall:
        print(
            f"{way:13} wall {statistics.median(wall[way]):6.1f} s   "
            f"CPU {statistics.median(cpu[way]):6.1f} s"
        )
    ratios = [a / b for a, b in zip(wall["side by side"], wall["in turn"], strict=True)]
    print(f"wall clock, side by side / in turn: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")


def children_seconds() -> float:
    """CPU time of all processes that were started here and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def probe_on_and_off(rounds: int) -> None:
    runs: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(rounds):
            for probe in (True, False):
                out = Path(scratch) / f"{number}-{probe}"
                runs[probe].append(measure(out, probe))
    on, off = (medians(runs[probe]) for probe in (True, False))
    result: dict[str, Any] = {
        "setting": f"demo-isolated, {STEPS} steps, {rounds} rounds in alternation",
        "versions": versions(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "probe_on": on,
        "probe_off": off,
        "train_ratio": on["train"] / off["train"],
        "step_ratio": on["step"] / off["step"],
    }
    for name in on:
        print(f"{name:18} probe on {on[name]:8.3f} s   off {off[name]:8.3f} s")
    print(f"training part, probe on / off: {result['train_ratio']:.3f}")
    print(f"whole step,    probe on / off: {result['step_ratio']:.3f}")
    path = Path(__file__).parent / "results" / "demo.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {path}")


def measure(out: Path, probe: bool) -> dict[str, float]:
    """Medians over the steps of one run, in seconds."""
    config = replace(demo_isolated(), out=out, steps=STEPS, eval_every=STEPS, probe=probe)
    started = time.perf_counter()
    train(config)
    total = time.perf_counter() - started
    run = open_run(out)

    def median(name: str) -> float:
        return float(np.median(run.run_metric(name).value_T[1:]))

    result = {
        "rollout": median("rollout_seconds"),
        "train": median("train_seconds"),
        "step": median("step_seconds"),
        "whole run": total,
    }
    if probe:
        read_out = [
            float(np.nansum(run.update_metric("probe_seconds", policy.name).value_T))
            for policy in run.policies
        ]
        result["probe read-out"] = sum(read_out) / STEPS
    return {**result, "probe read-out": result.get("probe read-out", 0.0)}


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


if __name__ == "__main__":
    main()
