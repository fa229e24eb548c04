"""Train SmolLM2-135M on GSM8K for two steps: every workflow, both routings; keep the ledgers.

    python bench/smollm2.py    # half an hour on two cores; writes docs/results/smollm2.json

A record that the whole path runs on a real pretrained model on a CPU, with what it measured. Two
steps show no learning, and nothing here claims any.
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
from gradlab.store import Run, open_run
from trainers.presets import smollm2
from trainers.train import train
from trainers.workflows import WorkflowName

WORKFLOWS: tuple[WorkflowName, ...] = ("voting", "evaluator_optimizer", "orchestrator_workers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/results/smollm2.json"))
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for workflow in WORKFLOWS:
            for routing in ("shared", "isolated"):
                out = Path(scratch) / f"{workflow}-{routing}"
                config = replace(
                    smollm2(), out=out, workflow=workflow, routing=routing, threads=options.threads
                )
                started = time.perf_counter()
                train(config)
                results.append(ledger(open_run(out), routing, time.perf_counter() - started))
    config_json = replace(smollm2(), out=Path("run")).to_json()
    document = {
        "machine": f"{platform.system()} {platform.machine()}, two cores",
        "config": {key: value for key, value in config_json.items() if key != "data"},
        "runs": results,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    print(f"wrote {options.out}")


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
