"""Weigh how soon a fall is told against how often a healthy run is called fallen, look by look.

    python bench/alarm_delay.py --runs 40 --write
    python bench/alarm_delay.py --evaluations 12 --runs 40 --write

Series of the second world (`world_curves`), 51 evaluations of 500 steps, looked at after every
evaluation by the fall test alone: what `analysis.online` raises for a fall. Rules: two looks in a
row, one look, and one look where the interval is beyond doubt (else two), as the product does.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
from models import tabled
from world_curves import draw_series

from analysis.cliff.accuracy import AccuracySeries
from analysis.cliff.cliff import FallTest
from analysis.cliff.fall import Fall
from analysis.cliff.fall_words import certainty
from analysis.detectors.frozen import share_interval
from analysis.online import Online

RESULT = Path(__file__).parent / "results" / "alarm_delay.md"
EVALS = 51
HEALTHY = ("climb: saturating", "climb: s-shaped", "wander of 1 to 2 points")
FALLS = ("abrupt", "over 5 %", "over 20 %")
SHORT = ("early collapse", "abrupt", "over 20 %")
"""Of runs of fewer evaluations, such as 12: one every 4 of 44 steps."""
Rule = Callable[[list[Fall]], bool]


def _beyond(fall: Fall) -> bool:
    return fall.fell and certainty(fall) == "high" and fall.drop_lower >= Online().beyond_doubt


RULES: dict[str, Rule] = {
    "two looks": lambda falls: len(falls) > 1 and falls[-1].fell and falls[-2].fell,
    "one look": lambda falls: falls[-1].fell,
    "as in the product": lambda falls: _beyond(falls[-1]) or RULES["two looks"](falls),
}


def looks(family: str, seed: int, answers: int, evals: int) -> tuple[list[Fall], float]:
    """The test after every evaluation from the second on; the true onset's (-1: none)."""
    rng = np.random.default_rng([seed, answers])
    drawn = draw_series(family, rng, answers=answers, num_evaluations=evals, points=20)
    found = [
        FallTest().measure(
            AccuracySeries(drawn.step_T[:stop], drawn.correct_T[:stop], drawn.trials_T[:stop])
        )
        for stop in range(2, evals + 1)
    ]
    return found, drawn.truth.onset_evaluation if drawn.truth.fell else -1.0


def rows(runs: int, evals: int) -> list[str]:
    header = ("family", "answers", "rule", "told (95 %)", "too early", "evaluations late, median")
    lines = []
    falls = FALLS if evals == EVALS else SHORT
    for family in (*HEALTHY, *falls):
        for answers in (100, 1400):
            seen = [looks(family, seed, answers, evals) for seed in range(runs)]
            for name, rule in RULES.items():
                told, early, late = 0, 0, list[float]()
                for found, onset in seen:
                    at = next((n for n in range(len(found)) if rule(found[: n + 1])), None)
                    told += at is not None
                    if at is not None and onset >= 0:
                        delay = at + 1 - onset
                        early += delay <= 0
                        late += [delay] if delay > 0 else []
                low, high = share_interval(told, runs)
                lines.append(
                    f"| {family} | {answers} | {name} | {told}/{runs} ({low:.0%} to {high:.0%}) | "
                    f"{early if family in falls else ''} | "
                    f"{format(statistics.median(late), '.1f') if late else ''} |"
                )
    return tabled(header, iter(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--evaluations", type=int, default=EVALS)
    parser.add_argument("--write", action="store_true", help="write the result")
    options = parser.parse_args()
    lines = rows(options.runs, options.evaluations)
    if options.write:
        is_short = options.evaluations != EVALS
        path = RESULT.with_name("alarm_delay_short.md") if is_short else RESULT
        asked = f"--evaluations {options.evaluations} " if is_short else ""
        head = [
            f"# How soon a fall is told, {options.evaluations} evaluations",
            "",
            f"`python bench/alarm_delay.py {asked}--runs {options.runs}`",
        ]
        path.write_text("\n".join([*head, "", *lines, ""]))


if __name__ == "__main__":
    main()
