"""Compare the time that a dry run predicts with what training steps take on this CPU.

    python bench/dryrun_time.py [--steps 3] [--only tiny-1m smollm2] [--write]

One thread, process CPU time, also where the dry run measures the machine, just before each run. A
step is the median of those after the first, of SmolLM2 the only one; an evaluation is the last. The
prediction knows of a run no more than `gradlab train --dry-run` does: the longest episodes, and
typical lengths.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
from models import machine, tabled
from rich.console import Console

from gradlab.records import StepRecord
from trainers.config import TrainConfig
from trainers.presets import preset
from trainers.preview.estimates import plan
from trainers.training import task_of, train
from trainers.watch.callbacks import Callback
from trainers.watch.progress import Progress

RESULT = Path(__file__).parent / "results" / "dryrun_time.md"


class Kept(Callback):
    """The ledgers of a run's steps."""

    def __init__(self) -> None:
        self.records: list[StepRecord] = []

    def on_step(self, record: StepRecord) -> None:
        self.records.append(record)


def configs(steps: int) -> dict[str, TrainConfig]:
    usual = TrainConfig(device="cpu", threads=1, steps=steps, eval_every=steps)
    tiny = replace(usual, model="tiny-1m")
    short = replace(
        preset("smollm2"), device="cpu", threads=1, steps=1, eval_every=1,
        task="arithmetic", eval_problems=2, max_response_tokens=32,
    )  # fmt: skip
    return {
        "tiny-0.3m, Voting": usual,
        "tiny-1m, Voting": tiny,
        "tiny-1m, Voting, probe off": replace(tiny, probe="off"),
        "tiny-1m, Voting, shared": replace(tiny, routing="shared"),
        "tiny-1m, Voting, 9 votes": replace(tiny, votes=9),
        "tiny-1m, EvalOpt": replace(tiny, workflow="evaluator_optimizer"),
        "tiny-1m, OrchWorkers": replace(tiny, workflow="orchestrator_workers"),
        "tiny-3m, Voting": replace(usual, model="tiny-3m"),
        "smollm2-135m, Voting": short,
    }


def measure(config: TrainConfig) -> list[tuple[str, float, float]]:
    """(part, predicted, measured) seconds of rollout, updates, step and evaluation."""
    kept = Kept()
    with tempfile.TemporaryDirectory() as folder, patch("time.perf_counter", time.process_time):
        times = plan(config, task_of(config)).times
        config = replace(config, out=Path(folder) / "run")
        train(config, Progress(Console(quiet=True)), callbacks=[kept])
    ledgers = [record.run for record in kept.records]
    later = ledgers[1:] or ledgers
    return [
        ("rollout", times.rollout, statistics.median(one.rollout_seconds for one in later)),
        ("updates", times.learning, statistics.median(one.train_seconds for one in later)),
        ("step", times.step, statistics.median(one.step_seconds for one in later)),
        ("evaluation", times.evaluation, ledgers[-1].eval_seconds),
    ]


def rows(chosen: dict[str, TrainConfig], found: dict[str, list[float]]) -> Iterator[str]:
    for name, config in chosen.items():
        for part, predicted, measured in measure(config):
            ratio = predicted / measured
            found.setdefault(part, []).append(ratio)
            yield f"| {name} | {part} | {predicted:.2f} | {measured:.2f} | {ratio:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument(
        "--only", nargs="+", default=[""], help="runs whose name holds one of these"
    )
    parser.add_argument("--write", action="store_true", help=f"write {RESULT}")
    options = parser.parse_args()
    chosen = {
        name: config
        for name, config in configs(options.steps).items()
        if any(part in name for part in options.only)
    }
    found: dict[str, list[float]] = {}
    lines = tabled(
        ("run", "part", "predicted, s", "measured, s", "predicted / measured"),
        rows(chosen, found),
    )
    told = [
        f"{part}: {min(ratios):.2f} to {max(ratios):.2f}, typically off by a factor of "
        f"{math.exp(np.mean(np.abs(np.log(ratios)))):.2f}"
        for part, ratios in found.items()
    ]
    print(*told, sep="\n")
    if options.write:
        only = " ".join(f"'{part}'" for part in options.only if part)
        command = f"python bench/dryrun_time.py --steps {options.steps}"
        command += f" --only {only}" if only else ""
        head = [
            "# The time that a dry run predicts",
            "",
            f"`{command}`: one thread, process CPU time.",
            "",
            machine(("torch", "transformers", "peft")),
            "",
            "Predicted / measured. " + "; ".join(told) + ".",
            "",
        ]
        RESULT.write_text("\n".join([*head, *lines, ""]))


if __name__ == "__main__":
    main()
