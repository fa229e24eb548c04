"""Synthetic runs hold the truth that was planted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analysis.synthetic.runs import (
    Capture,
    Cliff,
    Rows,
    Shift,
    accuracy_curve,
    evaluation_matrix,
    row_gradients,
    synthetic_run,
)
from gradlab.readout.gram import shares
from gradlab.store.run import open_run


def test_curves_fall_when_and_as_told() -> None:
    step_E = np.arange(0, 101, 10)
    healthy = accuracy_curve(step_E, 100, None)
    assert (np.diff(healthy) > 0).all()
    lost = healthy - accuracy_curve(step_E, 100, Cliff(50, 0.2))
    np.testing.assert_allclose(lost, 0.2 * (step_E >= 50))
    lost = healthy - accuracy_curve(step_E, 100, Cliff(50, 0.2, "dip", 20))
    np.testing.assert_allclose(lost, 0.2 * ((step_E >= 50) & (step_E < 70)), atol=1e-12)
    lost = healthy - accuracy_curve(step_E, 100, Cliff(20, 0.2, "slow decay", 40))
    np.testing.assert_allclose(lost, 0.2 * np.clip((step_E - 20) / 40, 0, 1), atol=1e-12)


def test_problems_differ_and_the_mean_is_the_planted_one() -> None:
    rate_E = np.linspace(0.2, 0.7, 6)
    matrix = evaluation_matrix(rate_E, 4000, 2, np.random.default_rng(0))
    np.testing.assert_allclose(matrix.mean(axis=(1, 2)), rate_E, atol=0.03)
    by_problem = matrix.mean(axis=(0, 2))
    assert by_problem.std() > 0.2


def test_rows_have_energy_one_and_impossible_components_are_refused() -> None:
    rows = row_gradients(Rows(prompt=0.2), 3, np.random.default_rng(0), prompts=200)
    assert (rows**2).sum(axis=-1).mean() == pytest.approx(1.0, abs=0.03)
    with pytest.raises(ValueError, match="sum to more than 1"):
        row_gradients(Rows(prompt=0.99), 3, np.random.default_rng(0))


def test_gradients_add_up_and_capture_moves_the_share(tmp_path: Path) -> None:
    path = synthetic_run(
        tmp_path / "run", steps=60, evals=5, capture=Capture("generator", 30, 8.0), noise=0.1
    )
    run = open_run(path)
    gram = run.gram("shared").gram_UBAA.sum(axis=1)
    total = np.sqrt(gram.sum(axis=(1, 2)))
    np.testing.assert_allclose(total, run.update_metric("grad_norm", "shared").value_T, rtol=1e-4)
    share = run.step_mass("share")["generator"].value_T
    assert np.median(share[:29]) == pytest.approx(0.75, abs=0.06)  # its share of the loss
    assert np.median(share[30:]) > 0.93
    update = run.update_gram("shared").sum(axis=(1, 2))
    np.testing.assert_allclose(
        np.sqrt(update), run.update_metric("update_norm", "shared").value_T, rtol=1e-4
    )
    norm = np.stack([run.norm(role).value_T for role in run.roles], axis=-1)
    np.testing.assert_allclose(shares(norm)[:, 0], share, rtol=1e-6)


def test_same_seed_gives_the_same_run_and_unknown_signals_are_refused(tmp_path: Path) -> None:
    first = open_run(synthetic_run(tmp_path / "a", steps=5, evals=3, seed=7))
    second = open_run(synthetic_run(tmp_path / "b", steps=5, evals=3, seed=7))
    np.testing.assert_array_equal(first.gram("shared").gram_UBAA, second.gram("shared").gram_UBAA)
    np.testing.assert_array_equal(first.evaluations().correct_EPS, second.evaluations().correct_EPS)
    with pytest.raises(ValueError, match="expected a role of"):
        synthetic_run(tmp_path / "c", steps=2, shifts=(Shift("nonsense", "generator", 1, 2.0),))
