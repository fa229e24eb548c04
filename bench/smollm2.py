"""Train SmolLM2-135M on sums for a few steps: every workflow, both routings; keep the ledgers.

    python bench/smollm2.py    # half an hour on two cores; writes docs/results/smollm2_sums.json

A record that the whole path runs on a real pretrained model on a CPU, with what it measured. Sums
and differences of two one-digit numbers (reasoning-gym's chain_sum), of which it solves about one
in five when shown the form of an answer. Three steps, 20 held-out problems, one seed: what moves
most is how many responses keep to the format.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from gradlab.records import RoleLedger, RunLedger, UpdateMetrics, names
from gradlab.store.run import Run, open_run
from trainers.config import TrainConfig
from trainers.presets import smollm2
from trainers.training import train

WORKFLOWS: tuple[str, ...] = ("voting", "evaluator_optimizer", "orchestrator_workers")


def settings() -> TrainConfig:
    return replace(
        smollm2(),
        task="rg:chain_sum",
        task_options={
            "min_terms": "2", "max_terms": "2", "min_digits": "1", "max_digits": "1", "size": "400",
        },
        examples=True,
        steps=3,
        problems_per_step=2,
        eval_problems=20,
        eval_every=3,
        max_response_tokens=24,
        learning_rate=3e-4,
        entropy_coefficient=0.0,
        micro_tokens=2048,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/results/smollm2_sums.json"))
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for workflow in WORKFLOWS:
            for routing in ("shared", "isolated"):
                out = Path(scratch) / f"{workflow}-{routing}"
                config = replace(
                    settings(),
                    out=out,
                    workflow=workflow,
                    routing=routing,
                    threads=options.threads,
                )
                started = time.perf_counter()
                train(config)
                results.append(ledger(open_run(out), routing, time.perf_counter() - started))
                write(options.out, results)


def write(path: Path, results: list[dict[str, Any]]) -> None:
    """After every run, so that what is done is not lost."""
    config_json = replace(settings(), out=Path("run")).to_json()
    document = {
        "machine": f"{platform.system()} {platform.machine()}, two cores",
        "config": {key: value for key, value in config_json.items() if key != "data"},
        "runs": results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"wrote {path}: {len(results)} runs")


def ledger(run: Run, routing: str, seconds: float) -> dict[str, Any]:
    """Everything scalar that a run recorded, by step or update."""
    evaluations = run.evaluations()
    return {
        "workflow": run.meta.workflow,
        "routing": routing,
        "seconds": round(seconds, 1),
        "versions": dict(run.meta.versions),
        "heldout_accuracy": rounded(evaluations.accuracy().value_T),
        "run": {name: rounded(run.run_metric(name).value_T) for name in names(RunLedger)},
        "roles": {
            role: {name: rounded(run.ledger(name, role).value_T) for name in names(RoleLedger)}
            for role in run.roles
        },
        "updates": {
            policy.name: {
                name: rounded(run.update_metric(name, policy.name).value_T)
                for name in names(UpdateMetrics)
            }
            for policy in run.policies
        },
        "step_mass": {
            measure: {role: rounded(s.value_T) for role, s in run.step_mass(measure).items()}
            for measure in ("mass", "share", "pull", "update")
        },
    }


def rounded(values: Any) -> list[float | None]:
    """Five significant digits; None for what was not measured."""
    return [float(f"{v:.5g}") if math.isfinite(v) else None for v in map(float, values)]


if __name__ == "__main__":
    main()
