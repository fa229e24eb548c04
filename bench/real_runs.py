"""Train small runs whose trouble is brought about on purpose, and compare what is diagnosed.

    python bench/real_runs.py --out runs/real            # about a minute a run on a free core
    python bench/real_runs.py --out runs/real --write    # docs/results/real_runs.json and .md
    python bench/real_runs.py --again                    # only the tables, from that .json

Runs that are finished are kept, so the command can be repeated. Everything is real: `tiny` on sums,
one thing changed per family. What a family is expected to show is written down before it is run,
here; families whose outcome is not known beforehand are `open` and count in no rate. Replays that
were made of them (`gradlab replay RUN --with lr:0.1 --steps 14`) are listed with what they showed.
"""

from __future__ import annotations

import argparse
import io
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from analysis.diagnosis import diagnose
from analysis.findings import DROPS
from gradlab.store.run import open_run
from trainers.config import TrainConfig
from trainers.training import train
from trainers.watch.progress import Progress

RESULTS = Path(__file__).parent.parent / "docs" / "results"
STEPS = 40
QUOTED = (
    "Verdicts and findings are quoted as they were said on 2026-11-20. Words and rules have "
    "changed since; `real_bugs.md` and `said_then_and_now.md` have those of today."
)
CALLED_DROPS = {*DROPS, "slow decay", "unresolved drop"}
"""With the names of that time."""


@dataclass(frozen=True)
class Planned:
    """One run."""

    name: str
    family: str
    expected: str
    """'no fall', 'fall', or 'open'."""
    config: TrainConfig


def base(**changes: Any) -> TrainConfig:
    config = TrainConfig(
        steps=STEPS, eval_every=2, eval_problems=100, checkpoint_every=4, problems_per_step=8,
        rows_per_update=64, learning_rate=6e-4, threads=1, device="cpu",
    )  # fmt: skip
    return replace(config, **changes)


def harsh(**changes: Any) -> TrainConfig:
    """A learning rate that ramps far past what the model stands."""
    return base(learning_rate=1e-2, warmup_steps=STEPS, rows_per_update=32, **changes)


def planned() -> Iterator[Planned]:
    for seed in range(3):
        for routing in ("shared", "isolated"):
            yield Planned(
                f"calm-{routing}-{seed}", "calm", "no fall", base(routing=routing, seed=seed)
            )
            yield Planned(
                f"rate-{routing}-{seed}", "learning rate ramps to 1e-2", "fall",
                harsh(routing=routing, seed=seed),
            )  # fmt: skip
    for seed in range(2):
        yield Planned(
            f"anchored-{seed}", "the same ramp with a KL anchor of 0.1", "open",
            harsh(seed=seed, kl_coefficient={"generator": 0.1, "aggregator": 0.1}),
        )  # fmt: skip
        yield Planned(
            f"flat-{seed}", "rewards without variance (temperature 0.05)", "no fall",
            base(temperature=0.05, seed=seed),
        )  # fmt: skip
    for role in ("generator", "aggregator"):
        yield Planned(
            f"heavy-{role}", f"{role} weighs ten times as much in a shared policy", "open",
            base(routing="shared", role_weight={role: 10.0}),
        )  # fmt: skip
    yield Planned(
        "long-generator", "a generator of eight voters in a shared policy", "open",
        base(routing="shared", votes=8),
    )  # fmt: skip
    for votes in (1, 3, 8):
        for updates in ("samples", "fixed"):
            yield Planned(
                f"votes-{votes}-{updates}", f"{votes} voters, updates by {updates}", "open",
                base(votes=votes, updates=updates, rows_per_update=32),
            )  # fmt: skip


def run_all(out: Path, wanted: str) -> list[Planned]:
    """Train what is not finished; every run of the plan whose name holds `wanted`."""
    chosen = [plan for plan in planned() if wanted in plan.name]
    for plan in chosen:
        path = out / plan.name
        if (path / "checkpoints" / f"step-{STEPS:06d}" / "checkpoint.json").is_file():
            continue
        config = replace(plan.config, out=path, resume=(path / "config.json").is_file())
        print(f"{plan.name} …", flush=True)
        train(config, Progress(Console(file=io.StringIO())))
    return chosen


def summary(out: Path, plan: Planned) -> dict[str, Any]:
    """What was recorded and what is said about it, small enough to commit."""
    run = open_run(out / plan.name)
    found, evaluations = diagnose(run), run.evaluations()
    return {
        "name": plan.name,
        "family": plan.family,
        "expected": plan.expected,
        "run_id": run.meta.run_id,
        "accuracy": [round(float(value), 3) for value in evaluations.accuracy().value_T],
        "step": evaluations.step_E.tolist(),
        "status": found.status,
        "verdict": found.verdict,
        "findings": [
            {
                "kind": finding.kind,
                "subject": finding.subject,
                "summary": finding.summary,
                "onset": None if finding.onset is None else str(finding.onset),
                "confidence": finding.confidence,
            }
            for finding in found.findings
        ],
        "candidates": list(found.candidates),
        "replays": [
            {key: result[key] for key in ("change", "verdict", "difference", "lower", "upper")}
            for path in sorted((out / plan.name).glob("replays/*/result.json"))
            for result in [json.loads(path.read_text())]
        ],
        "largest_residual": max(
            float(run.update_metric("residual", policy.name).value_T.max())
            for policy in run.policies
        ),
        "share": {
            role: _share(signal.value_T[-5:]) for role, signal in run.step_mass("share").items()
        },
        "ledger": {
            role: {
                "norm": short(run.norm(role).value_T),
                "share": short(run.step_mass("share")[role].value_T),
                **{name: short(run.ledger(name, role).value_T) for name in LEDGER},
            }
            for role in run.roles
        },
        "updates_per_step": {
            role: float(run.ledger("optimizer_steps", role).value_T.mean()) for role in run.roles
        },
    }


def _share(value_T: np.ndarray) -> float | None:
    """Mean; None, which JSON has, where a step had no gradient to share."""
    mean = float(np.mean(value_T))
    return round(mean, 3) if math.isfinite(mean) else None


LEDGER = (
    "optimizer_steps", "reward_mean", "own_accuracy", "zero_variance_groups",
    "entropy", "kl", "length_mean", "parse_failures", "truncated",
)  # fmt: skip
"""Of every role and step; the whole store is not committed."""


def short(values: Any) -> list[float | None]:
    """Three significant digits; None for what was not measured."""
    return [float(f"{value:.3g}") if math.isfinite(value) else None for value in values]


def as_expected(row: dict[str, Any]) -> bool | None:
    if row["expected"] == "open":
        return None
    return (row["status"] in CALLED_DROPS) is (row["expected"] == "fall")


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| run | brought about | expected | accuracy: base, best, end | verdict | findings |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        accuracy = row["accuracy"]
        kinds = Counter(f"{f['kind']} ({f['subject']})" for f in row["findings"])
        mark = {True: "", False: " **not as expected**", None: ""}[as_expected(row)]
        lines.append(
            f"| {row['name']} | {row['family']} | {row['expected']} | {100 * accuracy[0]:.0f}, "
            f"{100 * max(accuracy):.0f}, {100 * accuracy[-1]:.0f} | {row['status']}{mark} | "
            f"{'; '.join(kinds)} |"
        )
    lines += ["", "| run | replayed | verdict | points at the end (95 %) |", "|---|---|---|---|"]
    for row in rows:
        for replay in row["replays"]:
            low, middle, high = (100 * replay[key] for key in ("lower", "difference", "upper"))
            lines.append(
                f"| {row['name']} | {replay['change']} | {replay['verdict']} | {middle:+.0f} "
                f"({low:.0f} to {high:.0f}) |"
            )
    confusion = Counter(
        (row["expected"], "fall" if row["status"] in CALLED_DROPS else "no fall") for row in rows
    )
    lines += ["", "| expected | diagnosed: fall | no fall |", "|---|---|---|"]
    for expected in ("fall", "no fall", "open"):
        counts = [confusion[expected, said] for said in ("fall", "no fall")]
        lines.append(f"| {expected} | {counts[0]} | {counts[1]} |")
    return lines


def write_results(
    name: str, title: str, rows: list[dict[str, Any]], lines: list[str], out: Path
) -> None:
    """Both results files of a bench; commands in them name `runs/...`, wherever the runs lie."""
    RESULTS.mkdir(exist_ok=True)
    page = "\n".join([f"# {title}", "", f"`bench/{name}.py`", "", *lines, ""])
    for suffix, text in (("json", json.dumps(rows) + "\n"), ("md", page)):
        short_out = f"runs/{out.name.removeprefix('runs-')}"
        told = text.replace(str(out.resolve()), short_out).replace(str(out), short_out)
        (RESULTS / f"{name}.{suffix}").write_text(told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/real"))
    parser.add_argument("--only", default="", help="runs whose name holds this")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS}/real_runs.*")
    parser.add_argument("--again", action="store_true", help="only write the tables again")
    options = parser.parse_args()
    title = "Real runs with trouble brought about on purpose"
    if options.again:
        rows = json.loads((RESULTS / "real_runs.json").read_text())
        write_results("real_runs", title, rows, [QUOTED, "", *table(rows)], options.out)
        return
    rows = [summary(options.out, plan) for plan in run_all(options.out, options.only)]
    lines = table(rows)
    print(*lines, sep="\n")
    if options.write:
        write_results("real_runs", title, rows, lines, options.out)


if __name__ == "__main__":
    main()
