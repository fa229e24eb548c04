"""Measure size and power of every detector on runs whose truth is known.

    python bench/detectors.py --runs 1000

Writes bench/results/detectors.md. Seeds are fixed: the same code gives the same table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from detector_tables import (
    SETTINGS,
    amplification_table,
    breakdown_table,
    capture_table,
    cliff_table,
    detectable_table,
    level_table,
    order_table,
    replay_table,
    run_table,
    seconds_table,
    spike_table,
)

Section = tuple[str, str, str, tuple[str, ...], Callable[[int], Iterator[tuple[str, ...]]]]
SECTIONS: tuple[Section, ...] = (
    (
        "drop",
        "Drop in accuracy",
        "Percent of runs by verdict; problems have logit difficulties of sd 1.5 and are known; "
        "wander is AR(0.7) on the logit. Of the planted cliffs that are found: onset within 3 "
        "evaluations, coverage of the onset interval (nominal 90), mean error of the drop in "
        "points, coverage of its interval (nominal 95; accuracy would have gone on rising).",
        (
            "evaluations, problems",
            "truth (points)",
            "none",
            "small loss",
            "last low",
            "swings",
            "cliff",
            "fall",
            "decay",
            "onset within 3",
            "onset covered",
            "drop error",
            "drop covered",
        ),
        cliff_table,
    ),
    (
        "detectable",
        "Detectable drop",
        "Percent of runs with a cliff of the size that healthy runs of the same design call "
        "detectable (nominal 80), found with any word but 'healthy'; accuracy rises first, the "
        "cliff begins at 50 to 85 % of the run.",
        ("evaluations, problems", "detectable drop (points)", "found"),
        detectable_table,
    ),
    (
        "capture",
        "Role capture",
        "Percent of runs with two roles that are flagged at p = 0.05 for each role; sd and memory "
        "are of each role's log norm; onset error in steps, median / 90 %.",
        ("steps, sd, memory", "truth", "flagged", "onset error", "onset covered"),
        capture_table,
    ),
    (
        "levels",
        "Changed levels",
        "Percent of one role's series of 200 steps that are flagged at p = 0.05; wander: sd 0.35 "
        "(0.2 with a jump) on the log, memory 0.9; onset error in steps, median / 90 %.",
        ("detector", "truth", "flagged", "onset error"),
        level_table,
    ),
    (
        "breakdown",
        "Role breakdown",
        "Percent of one role's series of 200 steps, 24 responses each, that are flagged at "
        "p = 0.05, by the share of responses that do not parse; wander: sd 0.7 of its logit, "
        "memory 0.9; onset error in steps, median / 90 %; interval nominal 90.",
        ("truth", "flagged", "onset error", "onset covered"),
        breakdown_table,
    ),
    (
        "spikes",
        "Gradient spikes",
        "Percent of series of 300 norms (sd of the log 0.3) with a spike found.",
        ("noise", "planted factor", "flagged"),
        spike_table,
    ),
    (
        "amplification",
        "Amplification",
        "Percent of runs with three agents, 12 prompts, 2 samples, 32 dimensions, in which the "
        "test is significant at 0.01, and in which DEFF also reaches 1.1.",
        ("steps", "truth", "p < 0.01", "flagged", "DEFF"),
        amplification_table,
    ),
    (
        "order",
        "Order against a drop",
        "Percent of signals by the word they get; cliff of 25 points at step 200 of 300, "
        "evaluated every 10 steps on 200 problems.",
        ("signal", "precedes", "coincides", "follows", "no evidence"),
        order_table,
    ),
    (
        "replay",
        "Replays",
        "Percent of replays whose 95 % interval holds the true difference in accuracy, and that "
        "lie above 0 (nominal 2.5 without a difference). The change shifts ability by 0, 0.5 or 2 "
        "logits, every arm of a seed has a shift of its own (sd), problems have difficulties of "
        "sd 1.5; three evaluations are averaged.",
        ("seeds, problems", "sd of arms (logit)", "truth (points)", "covered", "above 0"),
        replay_table,
    ),
    (
        "runs",
        "Whole runs",
        "Stores of 200 steps and 41 evaluations of 100 problems "
        "(`analysis/synthetic/scenarios.py`), with "
        "everything that a diagnosis tests. False findings: runs with any tested finding that was "
        "not planted, of all kinds but the drop (nominal 5). Named: the planted cause, alone. ",
        (
            "scenario",
            "healthy",
            "cliff",
            "fall",
            "decay",
            "swings",
            "false findings",
            "cause named",
            "called inseparable",
        ),
        run_table,
    ),
    (
        "time",
        "Time",
        "Processor seconds of a whole diagnosis, one thread.",
        ("steps, evaluations", "seconds"),
        seconds_table,
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=1000, help="runs per row")
    names = [section[0] for section in SECTIONS]
    parser.add_argument("--only", nargs="*", default=names, choices=names, help="sections")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "detectors.md"
    )
    parser.add_argument("--planted", type=int, default=100, help="percent of runs, if planted")
    settings = parser.parse_args()
    SETTINGS["planted"] = settings.planted
    for name, title, caption, header, rows in SECTIONS:
        if name not in settings.only:
            continue
        started = time.process_time()
        text = [f"## {title}", "", f"{caption} {settings.runs} runs per row{_fewer()}.", ""]
        text += ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        for row in rows(settings.runs):
            text.append("| " + " | ".join(row) + " |")
            print(name, *row, sep=" | ", flush=True)
        print(f"{title}: {time.process_time() - started:.0f} s of processor time", flush=True)
        _replace(settings.out, f"## {title}\n", "\n".join(text) + "\n")


def _fewer() -> str:
    share = SETTINGS["planted"]
    return f" ({share} % of that where a failure is planted)" if share < 100 else ""


def _replace(path: Path, start: str, section: str) -> None:
    """Put a section in the place of the one with its title; the others stay."""
    titles = [f"## {section[1]}\n" for section in SECTIONS]
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    parts = {start: section}
    for title in titles:
        if title in old and title != start:
            parts[title] = title + old.split(title, 1)[1].split("\n## ", 1)[0].rstrip() + "\n"
    head = (
        "# Size and power of the detectors\n\n`python bench/detectors.py`, or `--only` some "
        "sections; seeds are fixed. In brackets: 95 % Wilson intervals.\n"
    )
    body = [parts[title] for title in titles if title in parts]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join((head, *body)), encoding="utf-8")


if __name__ == "__main__":
    main()
