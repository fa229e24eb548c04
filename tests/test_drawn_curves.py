"""Twelve curves drawn by hand as real runs look: what a careful person says is what is said.

Right answers per evaluation, drawn and judged before the test of falls saw them. No formula made
them.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from analysis.cliff.accuracy import AccuracySeries
from analysis.cliff.cliff import FallTest
from analysis.cliff.fall import Fall
from analysis.cliff.fall_words import how_it_fell
from analysis.diagnosis import diagnose
from analysis.explain.verdict import outcome_in_words
from gradlab.interop.logs.importing import import_run
from gradlab.store.run import open_run

PARTLY_BACK = (
    180, 201, 214, 226, 231, 238, 235, 241, 239, 244, 150, 121, 128, 147, 163, 171, 182, 178, 185,
    188,
)  # fmt: skip
JAGGED = (
    62, 71, 66, 80, 74, 88, 79, 93, 85, 90, 101, 94, 89, 104, 110, 98, 107, 115, 103, 112, 118,
    109, 121, 114, 119, 126, 113, 124, 120, 128,
)  # fmt: skip
SLOW_DECAY = (
    312, 388, 431, 462, 480, 488, 484, 491, 486, 489, 483, 478, 470, 471, 458, 449, 440, 436, 421,
    412, 399, 391,
)  # fmt: skip
TWO_FALLS = (
    240, 276, 301, 318, 330, 336, 341, 338, 344, 340, 261, 252, 258, 249, 256, 251, 254, 247, 160,
    148, 151, 145, 150, 146,
)  # fmt: skip
WITHOUT_COUNTS = (
    0.31, 0.38, 0.42, 0.47, 0.49, 0.52, 0.51, 0.53, 0.52, 0.54, 0.53, 0.41, 0.33, 0.30, 0.31, 0.29,
    0.30,
)  # fmt: skip
PERCENT = (28.0, 33.5, 39.0, 43.5, 46.0, 48.5, 49.0, 50.5, 50.0, 51.5, 51.0, 52.5, 51.5, 53.0)


def judged(correct: tuple[int, ...], answers: int, every: int) -> Fall:
    correct_T = np.array(correct, dtype=np.float64)
    step_T = every * np.arange(len(correct))
    return FallTest().measure(
        AccuracySeries(step_T, correct_T, np.full(len(correct), float(answers)))
    )


def test_accelerating_fall_in_progress_is_dated_where_it_begins() -> None:
    """53 % until step 60, then 48, 45, 38, 29, 19: a person dates it at step 50 or 60."""
    fall = judged((206, 228, 242, 255, 261, 267, 263, 240, 223, 189, 147, 93), 500, 10)
    assert fall.fell
    assert fall.progress == "still falling"
    assert fall.onset is not None
    assert fall.onset.lower <= 50
    assert 50 <= fall.onset.step <= 60
    assert fall.onset.upper <= 80
    assert fall.top == pytest.approx(0.53, abs=0.01)
    assert fall.bottom == pytest.approx(0.19, abs=0.01)


def test_fall_of_which_a_part_came_back() -> None:
    """60 % until step 180, 30 % at 220, 46 to 47 % at the end."""
    fall = judged(PARTLY_BACK, 400, 20)
    assert fall.fell
    assert fall.progress == "coming back"
    assert fall.onset is not None
    assert fall.onset.step == 180
    assert fall.low_step in (220, 240)
    assert fall.low == pytest.approx(0.32, abs=0.02)
    assert fall.top == pytest.approx(0.60, abs=0.01)
    assert fall.bottom == pytest.approx(0.465, abs=0.02)
    assert "coming back" in how_it_fell(fall)


def test_jagged_climb_is_healthy() -> None:
    """31 % to 64 % in steps back and forth of 4 to 6 points; the last is the best."""
    fall = judged(JAGGED, 200, 5)
    assert fall.shape == "none"
    assert outcome_in_words(fall).startswith("No fall: ")


def test_collapse_at_the_beginning() -> None:
    """40 % twice, then 32, 14, 4: it never came to learning."""
    fall = judged((118, 121, 96, 41, 12, 9, 14, 8, 11, 10, 7, 9, 12, 8), 300, 10)
    assert fall.fell
    assert fall.kind == "early collapse"
    assert fall.progress == "settled"
    assert fall.onset is not None
    assert fall.onset.lower <= 10 <= fall.onset.upper <= 30


def test_slow_decay_after_a_plateau_is_still_going_on() -> None:
    """61 % from step 125 to 225, then 0.5 to 2 points an evaluation to 49 %: still falling."""
    fall = judged(SLOW_DECAY, 800, 25)
    assert fall.fell
    assert fall.shape in ("fall", "decay")
    assert fall.progress == "still falling"
    assert fall.onset is not None
    assert fall.onset.lower <= 225
    assert 200 <= fall.onset.step <= 300
    assert fall.top == pytest.approx(0.611, abs=0.01)
    assert fall.bottom == pytest.approx(0.50, abs=0.015)
    assert fall.drop_lower > 0.07


def test_two_falls_with_a_plateau_between() -> None:
    """57 % until step 90, 42 % until 170, 24 % to the end."""
    fall = judged(TWO_FALLS, 600, 10)
    assert fall.fell
    assert fall.kind == "two falls"
    assert fall.onset is not None
    assert fall.onset.step == 90
    assert fall.second_step == 170
    assert fall.progress == "settled"


def test_single_low_last_evaluation_is_not_called_a_fall() -> None:
    """52 % throughout, and 38 % in the last evaluation alone."""
    correct = (205, 222, 236, 241, 252, 256, 249, 258, 261, 255, 262, 259, 264, 258, 261, 190)
    fall = judged(correct, 500, 10)
    assert fall.shape == "last evaluation low"
    assert "evaluate again" in outcome_in_words(fall)


def test_fall_that_was_cut_after_two_low_evaluations() -> None:
    """52 % until step 120, then 46 and 38 %."""
    correct = (205, 224, 233, 247, 250, 259, 254, 262, 258, 266, 261, 263, 259, 231, 188)
    fall = judged(correct, 500, 10)
    assert fall.fell
    assert fall.progress == "still falling"
    assert fall.onset is not None
    assert 110 <= fall.onset.step <= 120
    assert "evaluate again" in how_it_fell(fall)


def test_six_evaluations_can_show_a_fall() -> None:
    """53 % at step 150, then 29 and 25 %."""
    fall = judged((96, 131, 152, 158, 88, 74), 300, 50)
    assert fall.fell
    assert fall.onset is not None
    assert fall.onset.lower <= 150 <= fall.onset.upper <= 200
    assert fall.drop > 0.2


def _imported(tmp_path: Path, values: tuple[float, ...], change: dict[str, float]) -> Path:
    log = tmp_path / "log.jsonl"
    lines = [
        {"step": 10 * n, "loss": 0.1, "learning_rate": 1e-6, "eval_accuracy": value}
        for n, value in enumerate(values)
    ]
    log.write_text("\n".join(json.dumps(line) for line in lines))
    column_map = tmp_path / "map.json"
    entry = {"to": "Evaluation.accuracy", **change}
    column_map.write_text(json.dumps({"columns": {"eval_accuracy": entry}}))
    import_run([log], tmp_path / "run", column_map=column_map)
    return tmp_path / "run"


def test_rates_without_counts_show_a_fall_under_an_assumed_noise(tmp_path: Path) -> None:
    """53 % until step 100, then 41, 33 and 30 % to the end; how many answers, nobody knows."""
    said = diagnose(open_run(_imported(tmp_path, WITHOUT_COUNTS, {})))
    [found] = [finding for finding in said.findings if finding.kind in ("cliff", "fall")]
    assert found.onset is not None
    assert found.onset.step == 100
    assert any("noise assumed" in words for words in found.evidence)
    assert "has settled" in said.verdict


def test_percent_scale_is_refused_or_mapped_and_told_in_percent(tmp_path: Path) -> None:
    """28 to 53 %, healthy: never 5,300 %."""
    with pytest.raises(ValueError, match=r"times: 0\.01"):
        _imported(tmp_path, PERCENT, {})
    said = diagnose(open_run(_imported(tmp_path, PERCENT, {"times": 0.01})))
    assert said.status == "healthy"
    assert "28 %" in said.verdict
    assert "52 %" in said.verdict or "53 %" in said.verdict


def test_run_that_never_learned() -> None:
    """28 % from the first evaluation to the last."""
    correct = (71, 66, 75, 69, 73, 64, 70, 77, 68, 72, 66, 74, 69, 71, 67, 73)
    fall = judged(correct, 250, 10)
    assert fall.shape == "never learned"
    assert outcome_in_words(fall).startswith("Nothing learned: ")
