"""What was said before and after a drop, from episode files written by hand."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from analysis.diagnosis import diagnose
from analysis.findings import Diagnosis
from analysis.report.page import write_page
from analysis.report.transcripts import LONGEST, around, transcripts
from analysis.synthetic.runs import Cliff, synthetic_run
from gradlab.store.run import Run, open_run


@pytest.fixture(scope="module")
def fallen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Diagnosis]:
    path = tmp_path_factory.mktemp("fallen") / "run.zarr"
    run = open_run(synthetic_run(path, steps=200, evals=41, cliff=Cliff(130, 0.3)))
    return run, diagnose(run)


def turn(role: str, text: str, *, own: bool | None, ok: bool = True, cut: bool = False) -> Any:
    return {
        "role": role, "number": 0, "round": 0, "prompt": "?", "response": text, "tokens": 3,
        "parse_ok": ok, "truncated": cut, "own_correct": own, "reward": None, "advantage": None,
    }  # fmt: skip


def write(run: Run, step: int, episodes: list[tuple[str, bool, list[Any]]]) -> Path:
    path = run.path.parent / "episodes" / f"eval-{step:06d}.jsonl.gz"
    path.parent.mkdir(exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for problem, outcome, turns in episodes:
            row = {
                "problem": problem, "question": f"what of {problem}?", "reference": "7",
                "sample": 0, "answer": "7", "outcome": outcome, "failure": None, "turns": turns,
            }  # fmt: skip
            file.write(json.dumps(row) + "\n")
    return path


def test_lost_problems_side_by_side(fallen: tuple[Run, Diagnosis], tmp_path: Path) -> None:
    run, diagnosis = fallen
    assert transcripts(run, diagnosis) is None  # no episodes yet
    steps = [int(step) for step in run.evaluations().step_E]
    before, after = 125, 130  # it falls at step 130, and is evaluated every 5
    good = [turn("generator", "[7]", own=True), turn("aggregator", "<b>[1]</b>", own=True)]
    for step in steps:
        write(run, step, [("a", True, good), ("b", False, good), ("c", True, good)])
    last = write(
        run,
        after,
        [
            ("a", False, [turn("generator", "x" * 2000, own=False, cut=True)]),
            ("b", False, good),
            ("c", False, [good[0], turn("aggregator", "well, …", own=False, ok=False)]),
        ],
    )
    found = transcripts(run, diagnosis)
    assert found is not None
    assert (found.before_step, found.after_step) == (before, after)
    assert found.num_lost == 2
    assert [lost.problem for lost in found.lost] == ["a", "c"]
    first, second = found.lost
    assert [exchange.title for exchange in second.exchanges] == ["aggregator[0]", "generator[0]"]
    decided = second.exchanges[0]
    assert decided.before is not None
    assert decided.after is not None
    assert (decided.before.text, decided.before.mark) == ("<b>[1]</b>", "right")
    assert (decided.after.text, decided.after.mark) == ("well, …", "no format")
    assert first.exchanges[0].after is None  # the aggregator did not speak
    cut = first.exchanges[1].after
    assert cut is not None
    assert cut.mark == "cut"
    assert cut.text == "x" * LONGEST + f" … ({2000 - LONGEST} more characters)"

    page = write_page(diagnosis, run, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "What was said" in page
    assert "Step 125 is the last evaluation before the fall, step 130 the first" in page
    assert "2 held-out episodes are solved at the one and not at the other" in page
    assert "&lt;b&gt;[1]&lt;/b&gt;" in page  # what models write is never markup
    assert "<b>[1]</b>" not in page

    last.write_bytes(last.read_bytes()[:40])  # killed while it was written
    assert transcripts(run, diagnosis) is None
    assert "What was said" not in write_page(diagnosis, run, tmp_path / "other.html").read_text()


def test_a_run_that_did_not_fall_has_nothing_to_compare(tmp_path: Path) -> None:
    run = open_run(synthetic_run(tmp_path / "run", steps=60, evals=13))
    assert transcripts(run, diagnose(run)) is None


def test_a_long_fall_is_shown_where_half_of_it_has_happened(tmp_path: Path) -> None:
    """60 steps long, evaluated every 5: at the first of them next to nothing has changed."""
    path = synthetic_run(
        tmp_path / "run", steps=200, evals=41, cliff=Cliff(100, 0.4, "slow decay", 60)
    )
    run = open_run(path)
    diagnosis = diagnose(run)
    found = around(run, diagnosis)
    assert found is not None
    evaluations = run.evaluations()
    rate = dict(
        zip(evaluations.step_E.tolist(), evaluations.accuracy().value_T.tolist(), strict=True)
    )
    before, after = found
    assert rate[before] - rate[after] > 0.15
    assert after < 165
