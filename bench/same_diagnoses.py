"""Write down all that is said of a fixed set of runs, so that two commits can be compared by diff.

    python bench/same_diagnoses.py STORES OUT [RUN...]

STORES is filled once with synthetic runs, real curves and imported logs at fixed seeds; it is kept,
and every later call judges the same bytes. RUN is a further run, or a folder with any number below
it, such as the `--basetemp` of a test run. Of each, OUT gets the diagnosis as JSON and as text, the
replay that it proposes, and the terms that its page explains. Then, with the other commit:

    diff -r OUT OTHER
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from analysis.diagnosis import diagnose
from analysis.findings import Diagnosis
from analysis.replays.propose import propose
from analysis.report.glossary import glossary
from analysis.report.terminal import print_text
from analysis.synthetic.runs import synthetic_run
from analysis.synthetic.scenarios import SCENARIOS
from gradlab.interop.logs.importing import import_run
from gradlab.store.run import Run, open_run

TESTS = Path(__file__).resolve().parent.parent / "tests"
STEPS, SEEDS = 200, (0, 1)
IMPORTS: dict[str, dict[str, Any]] = {
    "trl-adapter-not-synced.json": {},
    "linear-decay-dated.json": {},
    "imported-gradient-zero.json": {},
    "all-cut-from-start.json": {},
    "advice-for-a-sole-imported-role.json": {},
    "length-collapse.log": {},
    "nan-from-60.json": {},
    "slime.jsonl": {"accuracy": "eval/aime24", "eval_size": "240"},
    "trl-console.log": {},
    "wandb-output-cut.log": {"eval_size": "30x16"},
}
"""Name in tests/logs/cases -> how it is imported."""


def make(stores: Path) -> None:
    """Fill a folder with runs whose bytes follow from their seeds."""
    for name, scenario in SCENARIOS.items():
        for seed in SEEDS:
            where = stores / "synthetic" / f"{_file_name(name)}-{seed}"
            synthetic_run(where, **scenario.settings(STEPS, seed=seed))
    sys.path.insert(0, str(TESTS))
    from stores import store_of
    from test_real_curves import ANSWERS, CURVES

    for name, curve in CURVES.items():
        rates = {10 * i: correct / ANSWERS for i, correct in enumerate(curve)}
        entropy_T = np.linspace(1.0, 0.5, 10 * (len(curve) - 1))
        where = stores / "curves" / _file_name(name)
        store_of(where, roles={"agent": {"entropy": entropy_T}}, rates=rates, answers=ANSWERS)
    for name, settings in IMPORTS.items():
        import_run([TESTS / "logs/cases" / name], stores / "imported" / name, **settings)


def stores_below(folder: Path) -> list[Path]:
    """Every run store in a folder, or the folder itself."""
    found = [path.parent for path in folder.rglob("zarr.json") if _is_store(path.parent)]
    return sorted(found)


def _is_store(path: Path) -> bool:
    document = json.loads((path / "zarr.json").read_text())
    return "run_id" in json.dumps(document.get("attributes", {}))


def said(run: Run, diagnosis: Diagnosis) -> str:
    """The diagnosis on a screen of 100 columns, what it would replay, and the terms explained."""
    screen = io.StringIO()
    print_text(diagnosis, Console(file=screen, width=100, color_system=None))
    try:
        replay = str(propose(run, diagnosis))
    except ValueError as error:
        replay = str(error)
    text = screen.getvalue()
    return f"{text}\n{replay}\n\n{glossary(text + diagnosis.to_json())}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stores", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", type=Path, nargs="*")
    options = parser.parse_args()
    if not options.stores.exists():
        make(options.stores)
    written, refused = 0, 0
    for folder in (options.stores, *options.runs):
        for path in stores_below(folder):
            where = options.out / folder.name / path.relative_to(folder).with_suffix("")
            where.parent.mkdir(parents=True, exist_ok=True)
            try:
                run = open_run(path)
                diagnosis = diagnose(run)
            except ValueError as error:
                where.with_suffix(".txt").write_text(f"{error}\n")
                refused += 1
                continue
            told = json.dumps(json.loads(diagnosis.to_json()), indent=1, ensure_ascii=False)
            where.with_suffix(".json").write_text(told + "\n")
            where.with_suffix(".txt").write_text(said(run, diagnosis))
            written += 1
    print(f"{written} diagnoses, {refused} refusals in {options.out}")


def _file_name(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")


if __name__ == "__main__":
    main()
