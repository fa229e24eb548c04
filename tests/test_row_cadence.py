"""Row statistics in every K-th step: gaps elsewhere, explained; training is the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import SmallConfig

from analysis.diagnosis import diagnose
from analysis.synthetic.runs import synthetic_run
from gradlab.store.run import Run, open_run
from trainers.training import train


def rows_of(run: Run, name: str = "total") -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """[steps, roles]"""
    return np.stack([run.row_statistic(name, role).value_T for role in run.roles], axis=1)


def test_other_steps_are_gaps_and_nothing_else_changes(
    small_config: SmallConfig, tmp_path: Path
) -> None:
    config = small_config(steps=3, eval_every=3)
    runs = []
    for every in (1, 2, 0):
        out = tmp_path / str(every)
        train(replace(config, out=out, row_statistics=every))
        runs.append(open_run(out))
    whole, thinned, none = (rows_of(run) for run in runs)
    assert np.isfinite(whole).all()
    np.testing.assert_array_equal(thinned[[0, 2]], whole[[0, 2]])
    assert np.isnan(thinned[1]).all()
    assert np.isnan(none).all()
    for run in runs[1:]:
        for policy in run.policies:
            np.testing.assert_array_equal(
                run.update_metric("weight_norm", policy.name).value_T,
                runs[0].update_metric("weight_norm", policy.name).value_T,
            )
        for role in run.roles:  # products per agent in place of products per row
            np.testing.assert_allclose(
                run.norm(role).value_T, runs[0].norm(role).value_T, rtol=1e-4, atol=1e-9
            )
    assert runs[0].row_statistics_gap is None
    assert runs[1].row_statistics_gap is not None
    assert "every 2 steps" in runs[1].row_statistics_gap


def test_a_diagnosis_says_why_amplification_cannot_be_judged(tmp_path: Path) -> None:
    run = open_run(synthetic_run(tmp_path / "run", steps=30, evals=7, row_statistics=False))
    open_questions = [item for item in diagnose(run).not_judged if "amplification" in item.what]
    assert open_questions
    assert all("--row-statistics 0" in item.why for item in open_questions)
    assert all(item.to_do == "train with --row-statistics 1" for item in open_questions)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"row_statistics": 0, "probe": "off"}, "measures no rows"),
        ({"row_statistics": 5, "probe": "off"}, "measures no rows"),
        ({"row_statistics": -1}, "expected 0 or more"),
        ({"row_statistics": 10**10}, "at most"),
    ],
)
def test_values_that_mean_nothing_are_refused(
    small_config: SmallConfig, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        small_config(**settings)
