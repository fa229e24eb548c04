"""Train small runs in which a bug begins at a step, and print what a user is told about each.

    python bench/real_bugs.py --out runs/bugs                # two minutes a run on a free core
    python bench/real_bugs.py --out runs/bugs --diagnose     # what is said now, from stored runs
    python bench/real_bugs.py --out runs/bugs --diagnose --write    # docs/results/real_bugs.*

Everything is real: `tiny` on sums, 200 held-out problems, an evaluation every 4 steps, one bug of
`planted_bugs` per run, in this process only. Runs that are finished are kept. `RUN/truth.json`
holds what is the matter with a run. The product that diagnoses, replays and audits is unpatched,
but for the audit of tags, which are part of the trainer: a replay of a bug that is not in the
configuration repeats the run without it.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from planted_bugs import BUGS, planted
from real_runs import RESULTS, Planned, short, summary, write_results
from rich.console import Console

from analysis.diagnosis import diagnose
from analysis.signals import collect
from gradlab.store.run import Run, open_run
from trainers.config import TrainConfig
from trainers.inspect.audit import audit_run
from trainers.rundir.checkpoint import checkpoint_path
from trainers.training import train
from trainers.watch.progress import Progress

STEPS, EVERY, SINCE = 84, 4, 41
"""Steps of a run, steps from one evaluation to the next, and the first step with the bug."""
BEFORE = 12
"""Steps before the bug whose signals are what is usual."""


@dataclass(frozen=True)
class Case:
    """One run."""

    name: str
    bug: str
    """In `BUGS`; '' for none beyond the configuration."""
    since: int
    """First step with it; 0: from the start, by configuration; -1: no bug."""
    truth: str
    """What is the matter, in words."""
    expected: str
    """'no fall', 'fall', or 'open' where nobody knew beforehand."""
    config: TrainConfig

    @property
    def plan(self) -> Planned:
        return Planned(self.name, self.truth, self.expected, self.config)


def base(**changes: Any) -> TrainConfig:
    config = TrainConfig(
        steps=STEPS, eval_every=EVERY, eval_problems=200, checkpoint_every=EVERY,
        problems_per_step=8, rows_per_update=64, learning_rate=6e-4, threads=1, device="cpu",
    )  # fmt: skip
    return replace(config, **changes)


def cases() -> Iterator[Case]:
    def case(
        name: str, bug: str, expected: str, since: int = SINCE, truth: str = "", **changes: Any
    ) -> Case:
        return Case(name, bug, since, truth or _says(bug), expected, base(**changes))

    anchored = {"generator": 0.1, "aggregator": 0.1}
    yield case("healthy-isolated", "", "no fall", -1, "nothing")
    yield case("healthy-shared", "", "no fall", -1, "nothing", routing="shared", seed=1)
    yield case("reward-sign", "reward sign", "fall")
    yield case("rate-times-8", "rate times 8", "fall")
    yield case("lenient-grader", "lenient grader", "fall")
    yield case("anchor-sign", "anchor sign", "fall", kl_coefficient=anchored)
    yield case("stale-sampler", "stale sampler", "open")
    yield case("rate-too-large", "", "fall", 0, "a constant rate of 6e-3, ten times the controls'",
               learning_rate=6e-3)  # fmt: skip
    yield case("reward-of-length", "reward of length", "fall")
    yield case("exchanged-tags", "exchanged tags", "no fall", routing="shared", seed=2)
    yield case("end-token", "end token", "open")
    yield case("advantage-times-10", "advantage times 10", "open", routing="shared", seed=3)
    yield case("other-temperature", "other temperature", "open",
               temperature=0.6, old_logprobs="trainer")  # fmt: skip
    yield case("no-baseline", "no baseline", "fall")
    yield case("adapter-lost", "adapter lost", "fall")
    yield case("choice-shifted", "choice shifted", "fall", routing="shared", seed=4)
    yield case("problems-repeated", "problems repeated", "open", seed=5)


def _says(bug: str) -> str:
    """What a bug does, as its function says."""
    return " ".join((BUGS[bug].__doc__ or "").split()).rstrip(".")


def run_case(out: Path, case: Case) -> Path:
    """Train a case that is not finished; one that was killed begins anew."""
    path = out / case.name
    if (checkpoint_path(path, case.config.steps) / "checkpoint.json").is_file():
        return path
    shutil.rmtree(path, ignore_errors=True)
    print(f"{case.name} …", flush=True)
    with planted(case.bug, case.since):
        train(replace(case.config, out=path), Progress(Console(file=io.StringIO())))
    truth = {name: getattr(case, name) for name in ("name", "bug", "since", "truth", "expected")}
    (path / "truth.json").write_text(json.dumps(truth, indent=1) + "\n")
    return path


def told(out: Path, case: Case) -> dict[str, Any]:
    """What was recorded and what is said about it, small enough to commit."""
    run = open_run(out / case.name)
    found = diagnose(run)
    return summary(out, case.plan) | {
        "since": case.since,
        "explained": found.separation,
        "remedies": [remedy.option for remedy in found.remedies],
        "signals": per_evaluation(run),
        "moved": moved(run, case.since),
        "audit": audited(out / case.name, case),
    }


def per_evaluation(run: Run) -> dict[str, list[float | None]]:
    """Every signal, as its mean over the steps that lead to each evaluation after the first."""
    step_E = run.evaluations().step_E
    found = {}
    for signal in collect(run):
        parts = [
            signal.value_T[(run.steps > low) & (run.steps <= high)]
            for low, high in pairwise(step_E)
        ]
        means = [float(np.mean(part[np.isfinite(part)])) if np.isfinite(part).any() else np.nan
                 for part in parts]  # fmt: skip
        if np.isfinite(means).any():
            found[signal.key] = short(means)
    return found


@dataclass(frozen=True)
class Move:
    """A signal that left its usual range after the bug began."""

    key: str
    before: float
    """Mean of the last steps before the bug."""
    first: float
    """Of the first interval between evaluations with the bug."""
    after: float
    """Of the last one."""
    step: int
    """First of three steps in a row that are 4 deviations away from what was usual."""


def moved(run: Run, since: int, away: float = 4.0) -> list[dict[str, Any]]:
    """Signals that moved once the bug was there, the earliest first. A plain rule of ours: it is
    no detector, and knows when the bug began."""
    if since < 2:
        return []
    found = []
    for signal in collect(run):
        value_T = signal.kind.on_scale(np.asarray(signal.value_T))
        usual = value_T[(run.steps >= since - BEFORE) & (run.steps < since)]
        late_T = run.steps >= since
        if not np.isfinite(usual).all() or not np.isfinite(value_T[late_T]).any():
            continue
        spread = max(float(usual.std(ddof=1)), signal.kind.min_change / away)
        is_away = late_T & (np.abs(value_T - usual.mean()) > away * spread)
        three = is_away[:-2] & is_away[1:-1] & is_away[2:]
        if three.any():
            plain_T, at = np.asarray(signal.value_T), run.steps
            parts = (
                (at >= since - BEFORE) & (at < since),
                (at >= since) & (at < since + EVERY),
                at > at[-1] - EVERY,
            )
            before, first, after = (float(np.nanmean(plain_T[part])) for part in parts)
            found.append(Move(signal.key, before, first, after, int(at[np.argmax(three)])))
    found.sort(key=lambda move: move.step)
    return [
        {"key": m.key, "step": m.step}
        | dict(zip(("before", "first", "after"), short((m.before, m.first, m.after)), strict=True))
        for m in found
    ]


def audited(path: Path, case: Case) -> list[str]:
    """What `gradlab audit` says where the bug is in the tags: it reads the trainer that has it."""
    if case.bug != "exchanged tags":
        return []
    with planted(case.bug, case.since) as now:
        now.is_on = True
        _, audits = audit_run(path)
    return [audit.verdict for audit in audits] + [
        f"{one.agent}: {one.finding}" for audit in audits for one in audit.agents
    ]


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| run | what is the matter | accuracy: start, when it began, best, lowest since, end | "
        "verdict | suspects | first remedy | replay |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        suspects = "; ".join(row["candidates"][:-1]) or "none"
        replays = "; ".join(f"{r['change']}: {r['verdict']}" for r in row["replays"])
        since = f", from step {row['since']}" if row["since"] > 0 else ""
        lines.append(
            f"| {row['name']} | {row['family']}{since} | {_levels(row)} | {row['status']}: "
            f"{row['verdict']} | {suspects} | `{(row['remedies'] or ['none'])[0]}` | {replays} |"
        )
    lines += ["", "| run | signal | before | first 4 steps | last 4 steps | away since step |",
              "|---|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        lines += [
            f"| {row['name']} | {m['key']} | {m['before']} | {m['first']} | {m['after']} | "
            f"{m['step']} |"
            for m in row["moved"]
        ]
    for row in rows:
        if row["audit"]:
            lines += ["", f"`gradlab audit` of {row['name']}:", ""]
            lines += [f"- {sentence}" for sentence in row["audit"]]
    return lines


def _levels(row: dict[str, Any]) -> str:
    """Accuracies in percent."""
    accuracy, step = np.array(row["accuracy"]), np.array(row["step"])
    late = accuracy[step >= max(row["since"], 1)]
    begin = accuracy[np.flatnonzero(step < max(row["since"], 1))[-1]]
    levels = accuracy[0], begin, accuracy.max(), late.min(), accuracy[-1]
    return ", ".join(f"{100 * level:.0f}" for level in levels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/bugs"))
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--diagnose", action="store_true", help="train nothing; stored runs only")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS}/real_bugs.*")
    options = parser.parse_args()
    chosen = [case for case in cases() if options.only in case.name]
    if not options.diagnose:
        for case in chosen:
            run_case(options.out, case)
    stored = [case for case in chosen if (options.out / case.name / "truth.json").is_file()]
    rows = [told(options.out, case) for case in stored]
    lines = table(rows)
    print(*lines, sep="\n")
    if options.write:
        title = "Real runs with a bug planted at a step"
        write_results("real_bugs", title, rows, lines, options.out)


if __name__ == "__main__":
    main()
