"""Write what was said of inputs that were misjudged once, beside what is said of them now.

    python bench/said_then_and_now.py --curves CURVES --bugs runs/bugs --twins runs/twins

CURVES: the four published curves with their map; `--bugs`: runs of `bench/real_bugs.py`; `--twins`:
`isolated` and `shared` of `gradlab train --preset faithful --workflow voting --routing … --steps
250 --learning-rate 2e-3 --warmup-steps 15 --eval-every 10 --eval-problems 200`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from real_runs import RESULTS

from analysis.diagnosis import diagnose
from analysis.findings import Diagnosis
from gradlab.interop.logs.importing import import_run
from gradlab.store.run import open_run

SHOWN = 2
"""Remedies."""


@dataclass(frozen=True)
class Said:
    """One input."""

    place: str
    """'curves', 'bugs' or 'twins'."""
    name: str
    then: str
    """What was wrong in what was said."""


BLAMED = (
    "consistent with advantage starvation (-2 to -5 steps before) and nothing else that was "
    "recorded"
)
SAID = (
    Said("curves", "voting-qwen3_1.7b_s430-math",
         "unresolved drop … only the last evaluation is low, low confidence"),
    Said("curves", "orchestrator_workers-qwen3_1.7b_s430-share_policy-math", "no cliff"),
    Said("curves", "voting-qwen3_1.7b_s430-share_policy-math",
         "no word on the few points that it lost"),
    Said("curves", "evaluator_optimizer-qwen3_1.7b_s430-math", "no fall (right)"),
    Said("bugs", "reward-sign", BLAMED),
    Said("bugs", "rate-times-8", BLAMED),
    Said("bugs", "anchor-sign", BLAMED),
    Said("bugs", "stale-sampler", "nothing"),
    Said("bugs", "lenient-grader", "nothing"),
    Said("bugs", "rate-too-large",
         "starvation blamed; first remedy --samples <more>, which made it fall earlier"),
    Said("bugs", "exchanged-tags", "no word that the tags may be exchanged"),
    Said("twins", "isolated", "generator learning rate, step 94, 0.002 to 5.2e-07"),
    Said("twins", "shared",
         "healthy, with swings of 87, 56, 80 % and no word on them. Trained again it swings no "
         "more: after step 50 neighbouring evaluations differ by 10 points at most"),
)  # fmt: skip


def runs(curves: Path, bugs: Path, twins: Path, scratch: Path) -> Iterator[tuple[Said, Diagnosis]]:
    for one in SAID:
        path = {"bugs": bugs, "twins": twins}.get(one.place, scratch) / one.name
        if one.place == "curves":
            import_run([curves / f"{one.name}.csv"], path, column_map=curves / "map.yaml")
        yield one, diagnose(open_run(path))


def told(one: Said, found: Diagnosis) -> Iterator[str]:
    yield from ("", f"## {one.place}/{one.name}", "", f"Then: {one.then}.", "")
    yield f"Now: {found.status}. {found.verdict}"
    rates = [v for v in found.signals if v.kind == "learning_rate"]
    for verdict in rates if one.place == "twins" else ():
        yield f"- {verdict.title}: {verdict.told}"
    yield from (f"- {finding.summary}" for finding in found.findings if finding.kind not in
                ("cliff", "fall", "decay"))  # fmt: skip
    if found.separation:
        yield f"- What explains it: {found.separation}"
    for remedy in found.remedies[:SHOWN]:
        yield f"- {remedy.title}: `{remedy.option}`"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("curves", "bugs", "twins"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    given = parser.parse_args()
    lines = ["# What was said, and what is said now", "", "`bench/said_then_and_now.py`"]
    with tempfile.TemporaryDirectory() as scratch:
        for one, found in runs(given.curves, given.bugs, given.twins, Path(scratch)):
            lines += told(one, found)
    text = "\n".join(lines) + "\n"
    for name in ("bugs", "twins"):
        text = text.replace(str(getattr(given, name)), f"runs/{name}")
    (RESULTS / "said_then_and_now.md").write_text(text)


if __name__ == "__main__":
    main()
