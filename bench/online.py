"""Count the alarms of runs that are looked at after every evaluation, healthy and fallen.

    python bench/online.py --runs 40 --write

Synthetic runs of 500 steps with 51 evaluations of 100 problems, looked at as if they were being
written: healthy ones, ones whose accuracy or role shares wander without falling, and fallen ones.
Whatever a run that did not fall raises is a false alarm; the rate is per run of 500 steps, with a
95 % Wilson interval. For fallen runs: how many raised the fall, and how long after it began.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from models import tabled

from analysis.detectors.frozen import share_interval
from analysis.findings import DROPS
from analysis.online import Online
from analysis.synthetic.runs import Cliff, synthetic_run
from analysis.synthetic.scenarios import SCENARIOS
from gradlab.alarms import Alarm
from gradlab.store.run import open_run

RESULT = Path(__file__).parent / "results" / "online.md"
STEPS, EVALS = 500, 51
FAMILIES = ("healthy", "healthy, accuracy wanders", "healthy, shares wander", "cliff of 20 points")


def settings_of(name: str, seed: int) -> dict[str, Any]:
    """Of a run of a family; a cliff begins between steps 200 and 390."""
    draw = np.random.default_rng(seed)
    if name == "cliff of 20 points":
        return {"cliff": Cliff(int(draw.integers(20, 40)) * 10, 0.2)}
    return SCENARIOS[name].settings(STEPS, seed=seed)


def alarms_of(settings: dict[str, Any]) -> list[Alarm]:
    """All alarms of one run, asked after every evaluation."""
    with tempfile.TemporaryDirectory() as folder:
        made = {"steps": STEPS, "evals": EVALS, "row_statistics": False, **settings}
        path = synthetic_run(Path(folder) / "run", **made)
        online, found = Online(), list[Alarm]()
        for step in open_run(path).evaluations().step_E[1:]:
            found += online(path, int(step), until=int(step))
    return found


def row(name: str, runs: int) -> str:
    """What a family of runs raised."""
    raised, falls, delays, others = 0, 0, list[int](), Counter[str]()
    for seed in range(runs):
        settings = settings_of(name, seed)
        alarms = alarms_of(settings)
        fall = [a for a in alarms if a.kind in DROPS]
        raised += bool(alarms)
        falls += bool(fall)
        if fall and "cliff" in settings:
            delays.append(fall[0].step - settings["cliff"].step)
        others.update(a.kind for a in alarms if a not in fall)
    low, high = share_interval(raised, runs)
    delay = f"median {statistics.median(delays):.0f}" if delays else ""
    kinds = ", ".join(f"{kind} {count}" for kind, count in others.items())
    share = f"{raised} ({low:.0%} to {high:.0%})"
    return f"| {name} | {runs} | {share} | {falls} | {delay} | {kinds} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT}")
    options = parser.parse_args()
    lines = tabled(
        ("truth", "runs", "raised an alarm (95 %)", "a fall", "steps after it began", "others"),
        (row(name, options.runs) for name in FAMILIES),
    )
    if options.write:
        head = [
            "# Alarms while a run trains",
            "",
            f"`python bench/online.py --runs {options.runs}`",
        ]
        RESULT.write_text("\n".join([*head, "", *lines, ""]))


if __name__ == "__main__":
    main()
