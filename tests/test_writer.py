"""What was appended comes back, whatever happens to the process, the disk or the store."""

import math
import os
import resource
import signal
import struct
import time
import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradlab.records import (
    Agent,
    EvalRecord,
    PolicyMeta,
    RoleEvaluation,
    RoleLedger,
    RowStatistics,
    RunLedger,
    RunMeta,
    StepRecord,
    UpdateMetrics,
    UpdateRecord,
)
from gradlab.store import writer as writer_module
from gradlab.store.disk import StoreError, journal_path
from gradlab.store.run import Run, open_run
from gradlab.store.writer import Record, RunStore

SOLVER = PolicyMeta(
    "solver", (Agent("generator", 0), Agent("generator", 1)), ("layers.0.mlp", "head"), 10
)
JUDGE = PolicyMeta("judge", (Agent("judge"),), ("layers.0.mlp",), 5)
META = RunMeta.of_policies(
    "test",
    [SOLVER, JUDGE],
    workflow="voting",
    task="arithmetic",
    model="tiny",
    problems=("p1", "p2", "p3"),
    eval_samples=2,
    config={"seed": 1, "rates": [0.1, 1e-5], "nested": {"on": True, "name": None}},
    versions={"gradlab": "0"},
)


def update(step: int, value: float = 0.0, policy: PolicyMeta = SOLVER) -> UpdateRecord:
    shape = (len(policy.blocks), len(policy.agents), len(policy.agents))
    gram = np.arange(np.prod(shape), dtype=np.float64).reshape(shape) + value
    return UpdateRecord(policy.name, step, gram, metrics=UpdateMetrics(loss=value, rows=step))


def training_step(step: int, value: float = 0.0) -> StepRecord:
    ledger = RoleLedger(turns=step, entropy=value)
    return StepRecord(step, 1e9 + step, RunLedger(accuracy=value), {"judge": ledger})


def evaluation(step: int, value: float = 0.5) -> EvalRecord:
    correct = np.array([[1, 0], [255, 1], [0, 0]], np.uint8)
    return EvalRecord(
        step, correct, {"judge": RoleEvaluation(own_accuracy=value)}, np.full((2, 3), value)
    )


def record_steps(store: RunStore, first: int, last: int, value: float = 0.0) -> None:
    for step in range(first, last + 1):
        for record in (update(step, value), update(step, value), update(step, value, JUDGE)):
            store.append(record)
        if step % 5 == 0:
            store.append(evaluation(step, value))
        store.append(training_step(step, value))  # last: where it is, the step is complete


def group_steps(run: Run) -> dict[str, list[int]]:
    """The step of every row, by group."""
    return {
        "train": run.steps.tolist(),
        "solver": run.gram("solver").step_U.tolist(),
        "judge": run.gram("judge").step_U.tolist(),
        "eval": run.evaluations().step_E.tolist(),
    }


def expected_steps(last: int) -> dict[str, list[int]]:
    steps = list(range(1, last + 1))
    return {
        "train": steps,
        "solver": [step for step in steps for _ in range(2)],
        "judge": steps,
        "eval": [step for step in steps if step % 5 == 0],
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "run.zarr"


# -- round trip --------------------------------------------------------------------------------

number = st.floats(width=32, allow_nan=True, allow_infinity=True)


def metrics(kind: type[Any]) -> st.SearchStrategy[Any]:
    return st.builds(kind, **{f.name: number for f in fields(kind)})


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    statistics=metrics(RowStatistics),
    scalars=metrics(UpdateMetrics),
    ledger=metrics(RoleLedger),
    run_ledger=metrics(RunLedger),
    role_evaluation=metrics(RoleEvaluation),
    seed=st.integers(0, 1000),
    is_split=st.booleans(),
    state=st.sampled_from(["appended", "flushed", "closed"]),
)
def test_every_record_comes_back_in_every_state(
    tmp_path_factory: pytest.TempPathFactory,
    statistics: RowStatistics,
    scalars: UpdateMetrics,
    ledger: RoleLedger,
    run_ledger: RunLedger,
    role_evaluation: RoleEvaluation,
    seed: int,
    is_split: bool,
    state: str,
) -> None:
    generator = np.random.default_rng(seed)
    gram = generator.normal(size=(2, 2, 2)).astype(np.float32)
    split, transfer = generator.normal(size=(2, 2, 2)).astype(np.float32)
    signature = generator.random(128).astype(np.float32)
    correct = generator.choice(np.array([0, 1, 255], np.uint8), size=(3, 2))
    role_correct = generator.random((2, 3)).astype(np.float32)
    directory = tmp_path_factory.mktemp("run")
    store = RunStore.create(directory / "run.zarr", META)
    store.append(
        UpdateRecord(
            "solver",
            3,
            gram,
            metrics=scalars,
            update_gram_AA=split if is_split else None,
            transfer_AA=transfer if is_split else None,
            row_statistics={"generator": statistics},
        )
    )
    store.append(StepRecord(3, 1e9, run_ledger, {"judge": ledger}, {"generator": signature}))
    store.append(EvalRecord(3, correct, {"judge": role_evaluation}, role_correct))
    if state != "appended":
        store.flush()
    if state == "closed":
        store.close()

    run = open_run(directory)
    assert run.meta == META
    assert run.closed == (state == "closed")
    same = np.testing.assert_array_equal
    same(run.gram("solver").gram_UBAA, gram[np.newaxis])
    same(run.update_gram("solver")[0], split if is_split else np.full((2, 2), np.nan))
    same(run.transfer("solver")[0], transfer if is_split else np.full((2, 2), np.nan))
    for field in fields(UpdateMetrics):
        same(run.update_metric(field.name, "solver").value_T, [getattr(scalars, field.name)])
    for field in fields(RowStatistics):
        same(run.row_statistic(field.name, "generator").value_T, [getattr(statistics, field.name)])
    for field in fields(RoleLedger):
        same(run.ledger(field.name, "judge").value_T, [getattr(ledger, field.name)])
        same(run.ledger(field.name, "generator").value_T, [math.nan])
    for field in fields(RunLedger):
        same(run.run_metric(field.name).value_T, [getattr(run_ledger, field.name)])
    same(run.signature("generator"), [signature])
    same(run.signature("judge"), np.full((1, 128), np.nan))
    evaluations = run.evaluations()
    same(evaluations.correct_EPS[0], np.where(correct == 255, np.nan, correct))
    same(evaluations.role_correct_ERP[0], role_correct)
    for field in fields(RoleEvaluation):
        same(evaluations.role(field.name, "judge").value_T, [getattr(role_evaluation, field.name)])
    store.close()


@pytest.mark.parametrize("num_steps", [1, 31, 32, 33, 700])
def test_long_runs_come_back_across_flushes_and_chunks(path: Path, num_steps: int) -> None:
    with RunStore.create(path, META) as store:
        record_steps(store, 1, num_steps)
        assert group_steps(open_run(path)) == expected_steps(num_steps)
    run = open_run(path)
    assert group_steps(run) == expected_steps(num_steps)
    np.testing.assert_array_equal(
        run.update_metric("rows", "solver").value_T, expected_steps(num_steps)["solver"]
    )
    assert not journal_path(path).exists()
    assert not list(path.rglob("*.partial"))


def test_rows_larger_than_a_chunk_are_flushed_in_time(path: Path) -> None:
    wide = replace(SOLVER, blocks=tuple(f"layers.{index}" for index in range(20_000)))
    with RunStore.create(path, replace(META, policies=(wide, JUDGE))) as store:
        for step in range(1, 20):
            store.append(update(step, step, wide))
    grams = open_run(path).gram("solver").gram_UBAA
    assert grams.shape == (19, 20_000, 2, 2)
    np.testing.assert_array_equal(grams[:, 0, 0, 0], np.arange(1, 20))


def test_a_value_beyond_float32_is_infinite_not_an_error(path: Path) -> None:
    with RunStore.create(path, META) as store:
        store.append(update(1, 1e300))
    assert np.isinf(open_run(path).gram("solver").gram_UBAA).all()


def test_a_durable_store_is_a_store(path: Path) -> None:
    with RunStore.create(path, META, durable=True) as store:
        record_steps(store, 1, 3)
    with RunStore.resume(path, 2, durable=True) as store:
        record_steps(store, 3, 4)
    assert group_steps(open_run(path)) == expected_steps(4)


def test_an_old_row_is_committed_by_the_next_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "FLUSH_SECONDS", 0.0)  # every row is late
    with RunStore.create(path, META) as store:
        for step in range(1, 4):
            store.append(training_step(step))
            assert zarr.open_group(path / "train", mode="r")["step"].shape == (step,)
            assert journal_path(path).stat().st_size == 0


def test_an_empty_run_reads_as_empty(path: Path) -> None:
    RunStore.create(path, META).close()
    run = open_run(path)
    assert group_steps(run) == expected_steps(0)
    for signal_ in (
        run.norm("generator"),
        run.cosine("generator", "total"),
        run.row_statistic("total", "judge"),
        run.evaluations().accuracy(),
        *run.step_mass("share").values(),
        *run.step_mass("update").values(),
    ):
        assert len(signal_.step_T) == len(signal_.value_T) == 0
    assert run.signature("judge").shape == (0, 128)
    assert run.to_xarray()["train"].sizes["step"] == 0


def test_a_run_without_problems_has_no_evaluations(path: Path) -> None:
    with RunStore.create(path, replace(META, problems=())) as store:
        store.append(training_step(1))
        with pytest.raises(StoreError, match=r"without held-out problems; name them in RunMeta"):
            store.append(evaluation(1))
    evaluations = open_run(path).evaluations()
    assert len(evaluations.step_E) == 0
    assert len(evaluations.accuracy().value_T) == 0


# -- resume ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0, 1, 24, 25, 31, 32, 33, 64, 69, 70])
@pytest.mark.parametrize("is_closed", [True, False])
def test_resume_cuts_off_later_rows_and_they_never_come_back(
    path: Path, kept: int, is_closed: bool
) -> None:
    store = RunStore.create(path, META)
    record_steps(store, 1, 70, value=1.0)
    if is_closed:
        store.close()
    else:
        store._journal.close()  # as a kill leaves it: rows in the journal, the lock released
    with RunStore.resume(path, kept, META) as store:
        assert group_steps(open_run(path)) == expected_steps(kept)
        record_steps(store, kept + 1, 80, value=2.0)  # grows past the old rows again
    run = open_run(path)
    assert run.closed
    assert group_steps(run) == expected_steps(80)
    for policy in ("solver", "judge"):
        loss = run.update_metric("loss", policy)
        np.testing.assert_array_equal(loss.value_T, np.where(loss.step_T <= kept, 1.0, 2.0))


@pytest.mark.parametrize(("recorded", "kept"), [(70, 40), (5, 3), (5, 0), (70, 70)])
def test_a_kill_before_the_journal_was_emptied_brings_no_rows_back(
    path: Path, recorded: int, kept: int
) -> None:
    store = RunStore.create(path, META)
    record_steps(store, 1, recorded)
    journal = journal_path(path).read_bytes()
    assert journal
    store._journal.close()
    RunStore.resume(path, kept)._journal.close()
    journal_path(path).write_bytes(journal)  # as if the resume had died before it emptied it
    assert group_steps(open_run(path)) == expected_steps(kept)
    with RunStore.resume(path, kept) as store:
        record_steps(store, kept + 1, kept + 2)
    assert group_steps(open_run(path)) == expected_steps(kept + 2)


def test_a_record_cut_by_a_kill_does_not_hide_the_ones_after_the_resume(path: Path) -> None:
    store = RunStore.create(path, META)
    record_steps(store, 1, 3)
    store._journal.close()
    with journal_path(path).open("ab") as file:
        file.write(journal_path(path).read_bytes()[:50])
    store = RunStore.resume(path, 3)
    record_steps(store, 4, 5)
    store._journal.close()
    assert group_steps(open_run(path)) == expected_steps(5)


def test_resume_that_adds_nothing_changes_nothing(path: Path) -> None:
    with RunStore.create(path, META) as store:
        record_steps(store, 1, 40)
    before = {file: file.read_bytes() for file in path.rglob("c.*")}
    with RunStore.resume(path, 40):
        pass
    assert {file: file.read_bytes() for file in path.rglob("c.*")} == before


def test_resume_after_a_step_that_was_never_recorded_warns(path: Path) -> None:
    with RunStore.create(path, META) as store:
        record_steps(store, 1, 3)
    with pytest.warns(RuntimeWarning, match="ends at step 3, the run resumes after step 9"):
        RunStore.resume(path, 9).close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"roles": ("judge", "generator")}, "recorded with roles"),
        ({"problems": ("p1", "p2", "p4")}, "recorded with problems"),
        ({"model": "large"}, "recorded with model 'tiny', this run has 'large'"),
    ],
)
def test_resume_of_another_run_is_refused(path: Path, change: dict[str, Any], message: str) -> None:
    RunStore.create(path, META).close()
    with pytest.raises(StoreError, match=message):
        RunStore.resume(path, 0, replace(META, **change))
    RunStore.resume(path, 0, replace(META, run_id="other", config={})).close()


def test_an_existing_store_is_never_overwritten(path: Path) -> None:
    RunStore.create(path, META).close()
    with pytest.raises(StoreError, match=r"exists; continue it with RunStore\.resume"):
        RunStore.create(path, META)


def test_two_writers_are_refused(path: Path) -> None:
    store = RunStore.create(path, META)
    with pytest.raises(StoreError, match=rf"written by another process \(process {os.getpid()}"):
        RunStore.resume(path, 0)
    store.append(training_step(1))
    store.close()
    assert open_run(path).steps.tolist() == [1]


def test_a_refused_resume_leaves_nothing_behind(path: Path) -> None:
    RunStore.create(path, META).close()
    with pytest.raises(StoreError):
        RunStore.resume(path, 0, replace(META, task="other"))
    assert [file.name for file in path.parent.iterdir()] == ["run.zarr"]
    assert open_run(path).closed


# -- records that do not fit -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (replace(update(1), policy="other"), r"has the policies \['solver', 'judge'\]"),
        (replace(update(1), gram_BAA=np.zeros((2, 3, 3))), r"gram has shape \(2, 3, 3\), expected"),
        (replace(update(1), transfer_AA=np.zeros(2)), r"transfer has shape \(2,\), expected"),
        (
            replace(update(1), row_statistics={"judge": RowStatistics()}),
            r"role 'judge' is not in 'updates/solver'.*\['generator'\]",
        ),
        (replace(training_step(1), roles={"x": RoleLedger()}), "role 'x' is not in 'train'"),
        (
            replace(training_step(1), signatures={"judge": np.zeros(3)}),
            r"signature of role 'judge' has shape \(3,\), expected \(128,\)",
        ),
        (replace(evaluation(1), correct_PS=np.zeros((3, 2))), "correct_PS is float64"),
        (replace(evaluation(1), role_correct_RP=np.zeros(2)), "role_correct has shape"),
    ],
)
def test_a_record_that_does_not_fit_is_refused_and_leaves_no_row(
    path: Path, record: Record, message: str
) -> None:
    with RunStore.create(path, META) as store:
        record_steps(store, 1, 4)
        with pytest.raises(StoreError, match=message):
            store.append(replace(record, step=5))
        record_steps(store, 5, 6)
    assert group_steps(open_run(path)) == expected_steps(6)


def test_steps_go_forward(path: Path) -> None:
    with RunStore.create(path, META) as store:
        record_steps(store, 1, 5)
        for record in (training_step(5), evaluation(5), update(4)):
            with pytest.raises(StoreError, match="to go back, resume the store"):
                store.append(record)
        store.append(update(5))


def test_a_closed_store_takes_no_rows(path: Path) -> None:
    store = RunStore.create(path, META)
    store.close()
    store.close()
    with pytest.raises(StoreError, match=r"is closed; resume it"):
        store.append(training_step(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"roles": ()}, "roles is empty"),
        ({"config": {"path": Path()}}, "config cannot be kept as JSON"),
        ({"config": {"threshold": math.inf}}, "config cannot be kept as JSON"),
        ({"policies": (replace(SOLVER, blocks=()), JUDGE)}, "updates/solver': block is empty"),
        ({"policies": (replace(SOLVER, blocks=("a", "a")), JUDGE)}, r"\['a'\] more than once"),
        ({"policies": (SOLVER, SOLVER, JUDGE)}, r"policies has \['solver'\] more than once"),
        ({"policies": (replace(SOLVER, agents=JUDGE.agents), JUDGE)}, "routed to 'judge'"),
        ({"problems": ("p", "p")}, r"problem has \['p'\] more than once"),
    ],
)
def test_metadata_that_cannot_be_kept_is_refused(
    path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(StoreError, match=message):
        RunStore.create(path, replace(META, **change))
    assert not path.exists()


def test_a_policy_name_must_be_a_directory_name(path: Path) -> None:
    meta = replace(
        META,
        policies=(replace(SOLVER, name="../x"), JUDGE),
        routing={"generator": "../x", "judge": "judge"},
    )
    with pytest.raises(StoreError, match=r"'\.\./x' cannot name a directory"):
        RunStore.create(path, meta)


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"cannot create .*choose a directory you may write to"):
        RunStore.create(tmp_path / "file" / "run.zarr", META)


# -- a full disk -------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [100, 700, 5_000, 8_000])
def test_a_full_disk_stops_neither_training_nor_loses_rows(
    path: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "RETRY_SECONDS", (0.0, 0.0))  # every append tries again
    store = RunStore.create(path, META)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        try:
            record_steps(store, 1, 60)
            with pytest.raises(OSError, match="File too large") as failure:
                store.flush()
            seen = group_steps(open_run(path))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {warning.category for warning in caught} == {RuntimeWarning}
    assert "the rows are kept in memory" in str(caught[0].message)
    assert "free space and flush again" in failure.value.__notes__[0]
    for name, steps in seen.items():  # readable, at what was saved before
        assert steps == expected_steps(60)[name][: len(steps)]
    record_steps(store, 61, 70)
    store.close()
    assert group_steps(open_run(path)) == expected_steps(70)
    assert not list(path.rglob("*.partial"))


def test_a_failing_disk_is_reported_once(path: Path) -> None:
    store = RunStore.create(path, META)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        resource.setrlimit(resource.RLIMIT_FSIZE, (50, limits[1]))
        try:
            record_steps(store, 1, 300)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(caught) == 1
    store.close()
    assert group_steps(open_run(path)) == expected_steps(300)


# -- kill -9 -----------------------------------------------------------------------------------


def write_until_killed(path: Path, kept: int, attempt: int, acknowledge: int) -> None:
    """In a child: resume after `kept`, then record for ever, saying which steps are complete."""
    warnings.simplefilter("ignore")
    store = RunStore.resume(path, kept, META) if path.exists() else RunStore.create(path, META)
    step = kept
    os.write(acknowledge, struct.pack("<q", step))
    while True:
        step += 1
        record_steps(store, step, step, attempt)
        os.write(acknowledge, struct.pack("<q", step))


def killed_writer(path: Path, kept: int, attempt: int, num_steps: int, delay: float) -> int | None:
    """Kill a writer `delay` seconds after `num_steps` steps; the last step it said was complete."""
    said, acknowledge = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(said)
            write_until_killed(path, kept, attempt, acknowledge)
        finally:
            os._exit(1)
    os.close(acknowledge)
    last = None
    with os.fdopen(said, "rb", buffering=0) as pipe:
        for _ in range(num_steps):
            last = struct.unpack("<q", pipe.read(8))[0]
        end = time.perf_counter() + delay
        while time.perf_counter() < end:
            pass
        os.kill(child, signal.SIGKILL)
        while message := pipe.read(8):  # what it said before it died
            last = struct.unpack("<q", message)[0]
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, "the writer failed by itself"
    return last


def survive_kills(path: Path, num_kills: int, seed: int) -> None:
    """Kill a writer again and again; after every kill everything acknowledged must be there."""
    generator = np.random.default_rng(seed)
    attempt_of: list[set[int]] = []  # by step: which attempts may have written it
    for attempt in range(1, num_kills + 1):
        kept = len(attempt_of)
        if kept and generator.random() < 0.3:
            kept = int(generator.integers(max(0, kept - 100), kept + 1))
        num_steps = int(generator.choice([0, 1, generator.integers(2, 60)], p=[0.25, 0.25, 0.5]))
        acknowledged = killed_writer(path, kept, attempt, num_steps, generator.random() * 0.008)
        if not path.exists():  # killed while it was being created
            assert acknowledged is None
            continue
        run = open_run(path)
        assert not run.closed
        steps = group_steps(run)
        last = len(steps["train"])
        assert last >= (kept if acknowledged is None else acknowledged)
        assert steps["train"] == expected_steps(last)["train"]
        if acknowledged is None:  # killed in recovery: groups may be cut off one after the other
            attempt_of = [
                attempts | ({attempt} if step > kept else set())
                for step, attempts in enumerate(attempt_of, start=1)
            ]
            for name, found in steps.items():
                complete = expected_steps(kept)[name]
                assert found[: len(complete)] == complete
            attempt_of = attempt_of[:kept]
        else:
            attempt_of = attempt_of[:kept] + [{attempt}] * (last - kept)
            for name, found in steps.items():  # complete, and at most the step in flight more
                complete = expected_steps(last)[name]
                assert found[: len(complete)] == complete
                assert set(found[len(complete) :]) <= {last + 1}
        for signal_ in (
            run.update_metric("loss", "solver"),
            run.update_metric("loss", "judge"),
            run.run_metric("accuracy"),
        ):
            for step, value in zip(signal_.step_T, signal_.value_T, strict=True):
                if step <= len(attempt_of):
                    assert value in attempt_of[step - 1]
        assert np.isfinite(run.gram("solver").gram_UBAA).all()


def test_a_killed_writer_loses_nothing_it_appended(path: Path) -> None:
    path.parent.mkdir()
    survive_kills(path, num_kills=40, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 12))
def test_a_thousand_kills_lose_nothing(path: Path, seed: int) -> None:
    path.parent.mkdir()
    survive_kills(path, num_kills=100, seed=seed)
