"""Signals are put in the order in which they moved, with words that claim no cause."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from analysis.cliff.accuracy import AccuracySeries
from analysis.cliff.cliff import FallTest
from analysis.diagnosis import diagnose
from analysis.explain.graph import PARENTS, ancestors
from analysis.explain.order import UNRECORDED, OnsetOrder
from analysis.explain.suspects import _with_replays
from analysis.findings import Cause, Onset, Order, SignalVerdict
from analysis.replays.results import Replayed
from analysis.signals import KIND, Measured
from analysis.synthetic.runs import Cliff, Shift, synthetic_run
from gradlab.store.run import open_run


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SignalVerdict]:
    """A cliff at step 200 with a KL that rises before, a length that grows after."""
    path = synthetic_run(
        tmp_path_factory.mktemp("causes") / "run",
        steps=300,
        evals=61,
        problems=300,
        cliff=Cliff(200, 0.25),
        shifts=(
            Shift("kl", "generator", 170, 5.0),
            Shift("entropy", "generator", 180, 0.4),
            Shift("length_mean", "aggregator", 230, 2.0),
            Shift("logprob_gap", "aggregator", 40, 8.0),
        ),
        seed=4,
    )
    diagnosis = diagnose(open_run(path))
    assert diagnosis.status == "cliff"
    assert diagnosis.candidates[-1] == UNRECORDED
    return {verdict.key: verdict for verdict in diagnosis.signals}


def test_earlier_change_precedes_and_later_change_follows(
    verdicts: dict[str, SignalVerdict],
) -> None:
    kl = verdicts["kl:generator"]
    assert kl.order == "precedes"
    assert kl.is_candidate
    assert kl.onset is not None
    assert abs(kl.onset.step - 170) <= 4
    assert kl.lead == pytest.approx(28, abs=8)
    assert kl.after / kl.before == pytest.approx(5.0, rel=0.15)
    assert verdicts["length_mean:aggregator"].order == "follows"


def test_candidate_that_an_earlier_one_explains_is_dropped(
    verdicts: dict[str, SignalVerdict],
) -> None:
    entropy = verdicts["entropy:generator"]
    assert entropy.order == "precedes"
    assert not entropy.is_candidate
    assert "generator KL" in entropy.note


def test_change_long_before_the_drop_is_not_named(verdicts: dict[str, SignalVerdict]) -> None:
    early = verdicts["logprob_gap:aggregator"]
    assert early.order == "no evidence"
    assert "too early" in early.note


def test_signals_that_did_not_move_are_no_evidence(verdicts: dict[str, SignalVerdict]) -> None:
    still = [
        verdict
        for key, verdict in verdicts.items()
        if key.split(":")[0] in ("truncated", "parse_failures", "clip_fraction", "ratio_std")
    ]
    assert len(still) == 8
    assert all(verdict.order == "no evidence" for verdict in still)


def test_outcomes_are_never_candidates(verdicts: dict[str, SignalVerdict]) -> None:
    outcomes = [verdict for verdict in verdicts.values() if verdict.is_outcome]
    assert outcomes
    assert not any(verdict.is_candidate for verdict in outcomes)


def test_words_never_claim_a_cause() -> None:
    assert set(get_args(Order)) == {"precedes", "coincides", "follows", "no evidence"}


def test_declared_graph_has_no_cycle_and_knows_its_signals() -> None:
    for kind, parents in PARENTS.items():
        assert kind in KIND
        assert set(parents) <= set(KIND)
        assert kind not in ancestors(kind)
    assert "learning_rate" in ancestors("parse_failures")


def judged(value_T: np.ndarray, kind: str, fall: int = 120) -> SignalVerdict:
    """The verdict on one series against a cliff at a step of 160, evaluated every 5 steps."""
    rng = np.random.default_rng(0)
    step_E = np.arange(0, 161, 5)
    correct = rng.binomial(400, np.where(step_E < fall, 0.6, 0.3)).astype(float)
    drop = FallTest().measure(AccuracySeries(step_E, correct, np.full(33, 400.0)))
    assert drop.onset is not None
    signal = Measured(KIND[kind], "p", "p", "1", value_T)
    return OnsetOrder()([signal], np.arange(1, 161), drop)[0]


def test_rising_learning_rate_is_dated_exactly_and_a_falling_one_is_no_suspect() -> None:
    step_T = np.arange(1, 161)
    rising = judged(np.where(step_T < 101, 1e-3, 4e-3), "learning_rate")
    assert rising.order == "precedes"
    assert rising.is_candidate
    assert rising.onset is not None
    assert rising.onset.step in (100, 101)
    assert (rising.before, rising.after) == pytest.approx((1e-3, 4e-3))
    warming = judged(1e-4 * step_T, "learning_rate")  # a straight line has no bend, and is known
    assert warming.is_candidate
    assert warming.lead == pytest.approx(80, abs=10)
    # The fall may come before the ramp has been looked at for long.
    early = judged(1e-4 * step_T, "learning_rate", fall=20)
    assert early.is_candidate
    assert early.note == "rising from the first step until the fall"
    warmed_up = judged(1e-3 * np.minimum(step_T / 60, 1), "learning_rate")
    assert not warmed_up.is_candidate
    assert "settled" in warmed_up.note
    earlier = judged(np.where(step_T < 71, 1e-3, 4e-3), "learning_rate")  # at rest, then a jump
    assert earlier.is_candidate
    falling = judged(np.where(step_T < 101, 4e-3, 1e-3), "learning_rate")
    assert not falling.is_candidate
    assert judged(np.full(160, 1e-3), "learning_rate").onset is None


def test_start_up_of_a_run_is_no_event() -> None:
    rng = np.random.default_rng(1)
    value_T = 0.1 * rng.standard_normal(160) + 2.0 * (np.arange(160) < 2)
    assert judged(value_T, "conflict").onset is None


@pytest.mark.parametrize(("known", "is_judged"), [(40, True), (39, False)])
def test_a_signal_is_judged_where_half_of_it_is_known(known: int, is_judged: bool) -> None:
    """40 of 80 points; the 39 of the second case are less than half between the first and last."""
    value_T = np.where(np.arange(80) < 50, 0.1, 2.0)
    value_T[1:79:2] = np.nan  # 41 are left, the first and the last among them
    value_T[2 : 2 + 2 * (41 - known) : 2] = np.nan
    signal = Measured(KIND["conflict"], "p", "p", "1", value_T)
    assert np.isfinite(value_T).sum() == known
    found = OnsetOrder()._seen(signal, np.arange(2, 162, 2), (0, 80))
    assert (found is not None) == is_judged


def test_a_replay_speaks_of_its_own_suspect_alone() -> None:
    """By kind and by name, for the subject that it names or for any."""
    cause = Cause("a KL up", "kl", "a", "preceded by", Onset(5, 5, 5), 3.0, 0.01)
    for kind, subject, words in (
        ("kl", "a", "confirmed by replay"),
        ("a KL up", "", "confirmed by replay"),
        ("kl", "b", "preceded by"),
        ("entropy", "a", "preceded by"),
        ("entropy", "", "preceded by"),
    ):
        replay = Replayed(kind, subject, "--with x=1", "confirmed", 0.1, None, None)
        assert _with_replays(cause, (replay,)).words == words
