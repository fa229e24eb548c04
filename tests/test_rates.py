"""Evaluations of which only the rate is known are kept as that, and read like any other."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gradlab.records import (
    Agent,
    EvalRecord,
    PolicyMeta,
    RateRecord,
    RoleEvaluation,
    RunLedger,
    RunMeta,
    StepRecord,
)
from gradlab.store.disk import StoreError
from gradlab.store.run import open_run
from gradlab.store.writer import RunStore

META = RunMeta.of_policies("r", [PolicyMeta("p", (Agent("solver"),), ("all",), 1)], rates=True)


def written(path: Path, *records: RateRecord | StepRecord) -> Path:
    with RunStore.create(path / "run.zarr", META) as store:
        for record in records:
            store.append(record)
    return path


def test_rates_come_back_with_the_answers_that_are_known(tmp_path: Path) -> None:
    judged = {"solver": RoleEvaluation(own_accuracy=0.5)}
    run = open_run(
        written(
            tmp_path,
            RateRecord(0, 0.25, 40.0),
            RateRecord(5, 1 / 3, roles=judged),
            RateRecord(10, 0.55, 40.0),
        )
    )
    evaluations = run.evaluations()
    assert evaluations.step_E.tolist() == [0, 5, 10]
    assert evaluations.accuracy().value_T.tolist() == [0.25, 1 / 3, 0.55]
    assert evaluations.num_samples_E().tolist() == [40, 0, 40], "0: unknown"
    assert evaluations.num_correct_E().tolist() == [10, 0, 22]
    assert evaluations.problems == ()
    own = evaluations.role("own_accuracy", "solver").value_T
    np.testing.assert_array_equal(own, [np.nan, 0.5, np.nan])
    assert run.to_xarray()["rates"].accuracy.dims == ("eval",)


def test_rates_are_cut_off_by_a_resume_as_everything_is(tmp_path: Path) -> None:
    path = written(tmp_path, RateRecord(0, 0.25), StepRecord(1, 0.0, RunLedger(), {}))
    with RunStore.resume(path / "run.zarr", after_step=1, meta=META) as store:
        store.append(RateRecord(1, 0.5))
    with RunStore.resume(path / "run.zarr", after_step=0) as store:
        store.append(RateRecord(2, 0.75))
    assert open_run(path).evaluations().accuracy().value_T.tolist() == [0.25, 0.75]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            RateRecord(1, 41.0),
            r"step 1: accuracy is 41\.0, expected a share between 0 and 1 \(a per",
        ),
        (RateRecord(1, math.nan), r"accuracy is nan, expected a share"),
        (RateRecord(1, 0.5, 0.0), r"0 answers; expected 1 or more, or NaN if it is not known"),
        (
            EvalRecord(1, np.zeros((1, 1), np.uint8), {}, np.zeros((1, 1))),
            r"the run was created without held-out problems",
        ),
    ],
)
def test_record_that_is_no_rate_is_refused(
    tmp_path: Path, record: RateRecord | EvalRecord, message: str
) -> None:
    with (
        RunStore.create(tmp_path / "run.zarr", META) as store,
        pytest.raises(StoreError, match=message),
    ):
        store.append(record)


def test_run_keeps_evaluations_in_one_way(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"rates is set, and 1 problems are listed"):
        RunStore.create(tmp_path / "a.zarr", replace(META, problems=("a",)))
    with (
        RunStore.create(tmp_path / "b.zarr", replace(META, rates=False)) as store,
        pytest.raises(
            StoreError, match=r"accuracy at step 3: the run was created for .* by problem"
        ),
    ):
        store.append(RateRecord(3, 0.5))
