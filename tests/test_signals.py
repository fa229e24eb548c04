"""Signals are collected on the steps of the run."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from analysis.signals import KIND, aligned, collect, divergence, drift, smoothed
from analysis.synthetic.runs import synthetic_run
from gradlab.records import Signal
from gradlab.store.run import open_run


def test_aligned_puts_values_on_their_steps() -> None:
    signal = Signal("x", "1", "run", np.array([2, 4, 9]), np.array([20.0, 40.0, 90.0]))
    np.testing.assert_allclose(
        aligned(np.array([1, 2, 3, 4]), signal), [math.nan, 20.0, math.nan, 40.0]
    )
    assert aligned(np.array([], dtype=np.int64), signal).size == 0


def test_divergence_by_hand() -> None:
    one, other = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    assert divergence(one, one)[0] == 0.0
    assert divergence(one, other)[0] == pytest.approx(math.log(2))
    # p = (1, 0), q = (1/2, 1/2): H(3/4, 1/4) - H(q) / 2.
    middle = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    half = np.array([[0.5, 0.5]])
    assert divergence(one, half)[0] == pytest.approx(middle - math.log(2) / 2)


def test_smoothed_skips_what_was_not_recorded() -> None:
    signature = np.array([[np.nan, np.nan], [1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    np.testing.assert_allclose(smoothed(signature, 2), [[np.nan, np.nan], [1, 0], [0.5, 0.5]])
    assert np.isnan(drift(np.full((10, 4), np.nan, dtype=np.float32))).all()


def test_every_signal_of_a_run_is_present_and_aligned(tmp_path: Path) -> None:
    run = open_run(synthetic_run(tmp_path / "run", steps=15, evals=0, problems=0))
    signals = collect(run)
    assert {signal.kind.name for signal in signals} == set(KIND)
    assert all(len(signal.value_T) == 15 and signal.is_present for signal in signals)
    by_key = {signal.key: signal for signal in signals}
    np.testing.assert_allclose(
        by_key["share:generator"].value_T + by_key["share:aggregator"].value_T, 1.0
    )
    assert "conflict:generator, aggregator" in by_key


def test_isolated_roles_have_no_shares_and_paths_are_summed(tmp_path: Path) -> None:
    path = synthetic_run(tmp_path / "run", steps=10, evals=0, problems=0, routing="isolated")
    run = open_run(path)
    by_key = {signal.key: signal for signal in collect(run)}
    assert not any(key.startswith(("share", "pull", "conflict")) for key in by_key)
    norm = run.update_metric("update_norm", "generator")
    assert by_key["update_norm:generator"].value_T[0] == pytest.approx(
        norm.value_T[norm.step_T == run.steps[0]].sum()
    )
