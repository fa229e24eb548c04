"""Show where the demo's time goes: rollout, training, probe, evaluation, store; probe on and off.

    python bench/demo.py           # about three minutes; writes bench/results/demo.json

Runs the demo's isolated setting for a few steps with the probe on and off in alternation and
compares medians over all steps but the first.
"""

from __future__ import annotations

import json
import platform
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradlab.store.run import open_run
from trainers.presets import demo_isolated
from trainers.rundir.directory import versions
from trainers.training import train

ROUNDS = 3
STEPS = 12


def main() -> None:
    runs: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(ROUNDS):
            for probe in (True, False):
                out = Path(scratch) / f"{number}-{probe}"
                runs[probe].append(measure(out, probe))
    on, off = (medians(runs[probe]) for probe in (True, False))
    result: dict[str, Any] = {
        "setting": f"demo-isolated, {STEPS} steps, {ROUNDS} rounds in alternation",
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
