"""A run as it was after a step equals the run that stopped there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from analysis.diagnosis import diagnose
from analysis.synthetic.runs import Cliff, synthetic_run
from gradlab.commands.main import main
from gradlab.store.run import open_run
from gradlab.store.writer import RunStore


@pytest.mark.parametrize("until", [0, 1, 97, 150, 199, 200, 500])
def test_later_rows_are_left_out(tmp_path: Path, until: int) -> None:
    path = synthetic_run(tmp_path / "run.zarr", steps=200, evals=41, cliff=Cliff(130, 0.3))
    cut, whole = open_run(path, until=until), open_run(path)
    assert cut.closed is (until >= 200)
    assert cut.steps.tolist() == [step for step in whole.steps if step <= until]
    assert whole.steps.tolist() == list(range(1, 201))
    expected = [step for step in whole.evaluations().step_E if step <= until]
    assert cut.evaluations().step_E.tolist() == expected
    for role in whole.roles:
        long, short = whole.norm(role), cut.norm(role)
        np.testing.assert_array_equal(short.value_T, long.value_T[long.step_T <= until])
    # What really stops there.
    RunStore.resume(path, after_step=min(until, 200), meta=whole.meta).close()
    stopped = open_run(path)
    np.testing.assert_array_equal(stopped.steps, cut.steps)
    for policy in stopped.policies:
        np.testing.assert_array_equal(
            stopped.gram(policy.name).gram_UBAA, cut.gram(policy.name).gram_UBAA
        )


def test_a_part_of_a_run_is_not_called_killed(tmp_path: Path) -> None:
    path = synthetic_run(tmp_path / "run.zarr", steps=200, evals=41)
    diagnosis = diagnose(open_run(path, until=150))
    assert diagnosis.status == "unfinished"
    assert "Looked at up to step 150 only; the store holds later steps." in diagnosis.verdict
    assert "killed" not in diagnosis.verdict
    assert not any("--resume" in question.to_do for question in diagnosis.not_judged)
    assert diagnose(open_run(path, until=200)).status == "healthy"


def test_replays_of_the_whole_run_are_not_told_of_a_part(tmp_path: Path) -> None:
    path = synthetic_run(tmp_path / "run", steps=200, evals=41, cliff=Cliff(130, 0.3))
    (tmp_path / "run/replays/a").mkdir(parents=True)
    result = json.dumps({"change": "--with lr:0.5", "verdict": "confirmed"})
    (tmp_path / "run/replays/a/result.json").write_text(result)
    assert "lr:0.5" in diagnose(open_run(path)).verdict
    assert "lr:0.5" not in diagnose(open_run(path, until=100)).verdict


def test_a_step_before_the_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = synthetic_run(tmp_path / "run", steps=50, evals=11)
    assert main(["diagnose", str(path), "--until", "-3", "--no-page"]) == 2
    assert "--until is -3; expected a training step" in capsys.readouterr().err
