"""What a person sees in four real curves is what the test says of them.

Numbers of right answers out of 1,412 (the test split of DAPO-Math), an evaluation every 10 steps,
Qwen3-1.7B, published by the authors of arXiv 2605.24202 in their development repository. The test
was neither made nor tuned for their shapes: they are its first look at the world.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from analysis.cliff.accuracy import AccuracySeries
from analysis.cliff.cliff import FallTest
from analysis.cliff.fall import Fall
from analysis.cliff.fall_words import how_it_fell
from analysis.explain.verdict import outcome_in_words

ANSWERS = 1412
CURVES: dict[str, tuple[int, ...]] = {
    "voting, isolated": (
        691, 754, 805, 806, 800, 806, 797, 809, 819, 816, 805, 814, 777, 792, 778, 731, 691, 697,
        678, 624, 597,
    ),
    "orchestrator_workers, shared": (
        712, 693, 732, 726, 729, 742, 746, 747, 768, 786, 770, 802, 799, 813, 805, 813, 836, 823,
        849, 794, 806, 786, 800, 811, 765, 715,
    ),
    "voting, shared": (
        691, 742, 762, 773, 776, 793, 781, 790, 789, 798, 795, 815, 797, 814, 785, 794, 810, 809,
        828, 812, 806, 819, 804, 800, 803, 761, 784, 781,
    ),
    "evaluator_optimizer, isolated": (
        691, 708, 713, 707, 705, 702, 695, 717, 737, 788, 762, 747, 731, 764, 750, 742, 725, 775,
        805, 810, 801, 792, 820, 840, 844, 807, 838, 847, 842, 812, 823,
    ),
}  # fmt: skip


def series_of(name: str, stop: int | None = None) -> AccuracySeries:
    correct_T = np.array(CURVES[name][:stop], dtype=np.float64)
    return AccuracySeries(
        10 * np.arange(len(correct_T)), correct_T, np.full(len(correct_T), float(ANSWERS))
    )


def judged(name: str, stop: int | None = None) -> Fall:
    return FallTest().measure(series_of(name, stop))


def test_a_fall_that_is_still_going_on_is_a_fall() -> None:
    """Holds 57 % from step 20 to 110, falls to 42 % at 200, where it was stopped."""
    fall = judged("voting, isolated")
    assert fall.shape in ("cliff", "fall")
    assert fall.p_value <= 0.005
    assert fall.progress == "still falling"
    assert fall.onset is not None
    assert fall.onset.lower <= 110 <= fall.onset.step <= 140
    assert fall.end_step == 200
    assert fall.top == pytest.approx(0.577, abs=0.01)
    assert fall.bottom == pytest.approx(0.423, abs=0.01)
    assert fall.drop_lower > 0.1
    assert fall.drop_upper < 0.2
    assert 0.3 <= fall.width_share <= 0.5
    said = outcome_in_words(fall)
    assert "was still falling" in said
    assert "below the first evaluation (49 %)" in said
    assert "nothing like this fall" in said


def test_two_low_evaluations_at_the_end_are_a_fall() -> None:
    """57 % until 230, then 54.2 and 50.6: back at its base."""
    fall = judged("orchestrator_workers, shared")
    assert fall.fell
    assert fall.progress == "still falling"
    assert fall.bottom == pytest.approx(0.506, abs=0.005)
    assert fall.onset is not None
    assert 180 <= fall.onset.step <= 230
    assert "below the first evaluation" not in how_it_fell(fall)


def test_a_loss_of_three_points_is_called_small() -> None:
    """Climbs to 58 %, ends at 55 %: barely beyond noise."""
    loss = judged("voting, shared")
    assert loss.shape == "small loss"
    assert loss.onset is None
    assert loss.drop == pytest.approx(0.029, abs=0.005)
    assert 0 < loss.drop_lower < loss.drop_upper < 0.05
    assert "barely beyond noise" in outcome_in_words(loss)


def test_a_curve_that_holds_is_not_called_fallen() -> None:
    """Climbs to 60 %, ends at 58 to 59 %."""
    held = judged("evaluator_optimizer, isolated")
    assert held.shape == "none"
    assert outcome_in_words(held).startswith("No fall: ")


@pytest.mark.parametrize("stop", range(8, 12))
def test_before_it_fell_nobody_calls_it_fallen(stop: int) -> None:
    assert not judged("voting, isolated", stop).fell


def test_the_fall_is_seen_while_it_happens() -> None:
    """By step 160, five evaluations into the fall, 40 steps before the run was stopped."""
    assert judged("voting, isolated", 17).fell
    assert "still falling" in outcome_in_words(judged("voting, isolated", 20))


def test_the_same_curves_without_their_numbers_of_answers() -> None:
    """The noise is then inferred, and the fall is there all the same."""
    for name, falls in (("voting, isolated", True), ("evaluator_optimizer, isolated", False)):
        known = series_of(name)
        rates = replace(
            known, correct_T=known.rate_T, trials_T=np.ones(len(known)), is_assumed=True
        )
        fall = FallTest().measure(rates)
        assert fall.fell is falls
        if falls:
            assert fall.bottom == pytest.approx(0.423, abs=0.01)
