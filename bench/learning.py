"""Train every workflow and routing on the embedded models; record what held-out accuracy gains.

    python bench/learning.py --write    # about ten minutes; writes bench/results/learning.md

Presets `programs` (40 steps, 300 held-out problems) and `clean` (sums, 50 steps, 200 problems), as
in tests/test_learning.py. The p-value is that of the exact McNemar test, one-sided: of the held-out
problems whose outcome changed, more became solved than unsolved.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from models import machine, tabled
from rich.console import Console
from scipy.stats import binomtest

from gradlab.store.run import open_run
from trainers.config import TrainConfig
from trainers.presets import preset
from trainers.training import train
from trainers.watch.progress import Progress
from trainers.workflows import WORKFLOWS

RESULT = Path(__file__).parent / "results" / "learning.md"
TASKS = {"programs": ("programs", 40, 300), "sums": ("clean", 50, 200)}
"""Task -> preset, steps, held-out problems."""


def configs(task: str, seeds: int) -> Iterator[TrainConfig]:
    name, steps, problems = TASKS[task]
    for workflow in tuple(WORKFLOWS):
        for routing in ("shared", "isolated") if workflow != "solo" else ("shared",):
            for seed in range(seeds):
                yield replace(
                    preset(name),
                    workflow=workflow,
                    routing=routing,
                    steps=steps,
                    eval_every=steps,
                    eval_problems=problems,
                    seed=seed,
                    threads=1,
                    device="cpu",
                )


def row(task: str, config: TrainConfig) -> str:
    """Base, end and the test of one run."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        train(replace(config, out=out), Progress(Console(quiet=True)))
        correct_EPS = open_run(out).evaluations().correct_EPS
    before_P, after_P = correct_EPS[0].ravel(), correct_EPS[-1].ravel()
    gained = int(((after_P == 1) & (before_P == 0)).sum())
    lost = int(((after_P == 0) & (before_P == 1)).sum())
    p_value = binomtest(gained, gained + lost, alternative="greater").pvalue
    cells = (
        task,
        config.workflow,
        config.routing,
        str(config.seed),
        f"{100 * before_P.mean():.1f}",
        f"{100 * after_P.mean():.1f}",
        f"+{gained} −{lost}",
        f"{p_value:.1g}",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--write", action="store_true", help=f"write {RESULT}")
    options = parser.parse_args()
    lines = tabled(
        ("task", "workflow", "routing", "seed", "before, %", "after, %", "problems", "p"),
        (row(task, c) for task in options.tasks for c in configs(task, options.seeds)),
    )
    if options.write:
        head = [
            "# What training gains on the embedded models",
            "",
            f"`python bench/learning.py`: {machine(('torch',))}",
        ]
        RESULT.write_text("\n".join([*head, "", *lines, ""]))


if __name__ == "__main__":
    main()
