"""What a run says when read, against gradients written down by hand and against xarray."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray
import zarr

from gradlab.records import (
    Agent,
    EvalRecord,
    PolicyMeta,
    RoleEvaluation,
    RoleLedger,
    RowStatistics,
    RunLedger,
    RunMeta,
    Signal,
    StepRecord,
    UpdateMetrics,
    UpdateRecord,
    names,
)
from gradlab.store.disk import StoreError, decode_chunk, encode_chunk
from gradlab.store.run import Run, open_run
from gradlab.store.writer import RunStore

VOTERS = (Agent("generator", 0), Agent("generator", 1), Agent("aggregator"))
META = RunMeta.of_policies(
    "worked",
    [
        PolicyMeta("solver", VOTERS, ("mlp", "head"), 4),
        PolicyMeta("judge", (Agent("judge"),), ("mlp",), 2),
    ],
    workflow="voting",
    task="arithmetic",
    model="tiny",
    problems=("p1", "p2"),
    eval_samples=2,
)
# Gradients of generator[0], generator[1], aggregator; the first two coordinates are the block
# 'mlp', the last is 'head'. Step 1 has two updates, step 2 has one, step 4 has none of its own.
UPDATES = {
    (1, 0): [(3.0, 0.0, 0.0), (0.0, 4.0, 0.0), (1.0, 1.0, 0.0)],
    (1, 1): [(0.0, 0.0, 1.0), (0.0, 0.0, 0.0), (0.0, 0.0, -2.0)],
    (2, 0): [(0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (2.0, 0.0, 1.0)],
}


def gram_BAA(vectors: list[tuple[float, float, float]]) -> np.ndarray:
    mlp, head = np.array(vectors)[:, :2], np.array(vectors)[:, 2:]
    return np.stack([mlp @ mlp.T, head @ head.T])


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    with RunStore.create(directory / "run.zarr", META) as store:
        for (step, number), vectors in UPDATES.items():
            statistics = {
                "generator": RowStatistics(
                    total=10.0 * step + number,
                    prompts=6,
                    group_signal=2.0 if step == 1 else -1.0,
                    group_noise=8.0,
                    positive=9.0,
                    negative=4.0,
                    opposition=-3.0,
                )
            }
            history = np.array([[6.0, 0.0, 9.0], [0.0, 0.0, 9.0], [9.0, 9.0, -0.5]]) / (1 + number)
            split = np.array([[1.0, 1.0, 0.0], [1.0, 4.0, 0.0], [0.0, 0.0, 2.0]])
            store.append(
                UpdateRecord(
                    "solver",
                    step,
                    gram_BAA(vectors),
                    metrics=UpdateMetrics(clip_factor=0.5, weight_norm=10.0 * step),
                    update_gram_AA=split if step == 1 else None,
                    history_AA=history if step == 1 else None,
                    moment_gram_AA=np.diag([4.0, 0.0, 1.0]) if step == 1 else None,
                    row_statistics=statistics,
                )
            )
            store.append(
                UpdateRecord("judge", step, np.full((1, 1, 1), 9.0), metrics=UpdateMetrics())
            )
            if number == 0 and step == 1:
                continue
            store.append(
                StepRecord(
                    step,
                    1e9,
                    RunLedger(accuracy=0.25 * step),
                    {"judge": RoleLedger(entropy=1.5)},
                    {"judge": np.full(128, 1 / 128)},
                )
            )
        store.append(
            EvalRecord(
                2,
                np.array([[1, 255], [1, 0]], np.uint8),
                {"judge": RoleEvaluation(own_accuracy=0.75)},
                np.array([[np.nan, np.nan], [0.0, 1.0], [0.5, 0.5]]),
            )
        )
    return directory


@pytest.fixture
def run(directory: Path) -> Run:
    return open_run(directory)


def check(signal: Signal, steps: list[int], values: list[float]) -> None:
    assert signal.step_T.tolist() == steps
    np.testing.assert_allclose(signal.value_T, values, rtol=1e-6)


# -- read-outs ---------------------------------------------------------------------------------


def test_norms(run: Run) -> None:
    # generators sum to (3, 4, 0), (0, 0, 1), 0: norms 5, 1, 0
    check(run.norm("generator", per="update"), [1, 1, 2], [5, 1, 0])
    check(run.norm("generator"), [1, 2], [3, 0])
    check(run.norm(Agent("generator", 1), per="update"), [1, 1, 2], [4, 0, 0])
    check(run.norm("aggregator", block="head", per="update"), [1, 1, 2], [0, 2, 1])
    check(run.norm("judge"), [1, 2], [3, 3])
    signal = run.norm("aggregator", block="head")
    assert (signal.name, signal.unit, signal.subject) == ("norm in head", "loss", "aggregator")


def test_cosines(run: Run) -> None:
    # (3, 4, 0) and (1, 1, 0): 7 / (5 sqrt 2); (0, 0, 1) and (0, 0, -2): -1; then 0 has no angle
    first = 7 / (5 * np.sqrt(2))
    check(run.cosine("generator", "aggregator", per="update"), [1, 1, 2], [first, -1, np.nan])
    check(run.cosine("generator", "aggregator"), [1, 2], [(first - 1) / 2, np.nan])
    # in 'mlp' the second update has no gradient, so the mean is over the first alone
    check(run.cosine("generator", "aggregator", block="mlp"), [1, 2], [first, np.nan])
    check(run.cosine(*VOTERS[:2], per="update"), [1, 1, 2], [0, np.nan, np.nan])
    # total: (4, 5, 0), (0, 0, -1), (2, 0, 1)
    check(run.cosine("aggregator", "total", per="update"), [1, 1, 2], [9 / np.sqrt(2 * 41), 1, 1])


def test_step_masses(run: Run) -> None:
    mass, share, pull = (run.step_mass(measure) for measure in ("mass", "share", "pull"))
    assert list(mass) == ["generator", "aggregator", "judge"]
    check(mass["generator"], [1, 2], [6, 0])
    check(mass["aggregator"], [1, 2], [np.sqrt(2) + 2, np.sqrt(5)])
    check(share["generator"], [1, 2], [6 / (8 + np.sqrt(2)), 0])
    check(share["judge"], [1, 2], [1, 1])
    # <g_r, g>: generator (3,4,0).(4,5,0) = 32, (0,0,1).(0,0,-1) = -1; ||g||^2 = 41 + 1
    check(pull["generator"], [1, 2], [31 / 42, 0])
    check(pull["aggregator"], [1, 2], [11 / 42, 1])
    check(run.step_mass("mass", block="head")["generator"], [1, 2], [1, 0])
    assert list(run.step_mass(block="head")) == ["generator", "aggregator"]  # judge has none
    # the optimizer step's Gram sums to [[7, 0], [0, 2]] by role, and is missing in step 2
    check(run.step_mass("update")["generator"], [1, 2], [7 / 9, np.nan])


def test_the_gradient_against_its_own_history(run: Run) -> None:
    # Step 1: generators (3, 4, 0), then (0, 0, 1), with norms 5, 1; <g, m> = 6, then 3; ||m|| = 2
    cosine = run.cosine_with_history("generator", per="update")
    check(cosine, [1, 1, 2], [6 / (5 * 2), 1.0, np.nan])  # 3 / (1 * 2) is cut to 1
    check(run.cosine_with_history("generator"), [1, 2], [(0.6 + 1) / 2, np.nan])
    check(run.cosine_with_history(VOTERS[1], per="update"), [1, 1, 2], [np.nan] * 3)
    # aggregator (1, 1, 0), then (0, 0, -2); <g, m> = -0.5, then -0.25; ||m|| = 1
    aggregator = run.cosine_with_history("aggregator", per="update")
    check(aggregator, [1, 1, 2], [-0.5 / np.sqrt(2), -0.125, np.nan])


def test_how_far_the_optimizer_walked(run: Run) -> None:
    # the split's Gram of the generators sums to 7, in both updates of step 1; none in step 2
    check(run.path_length("generator"), [1, 2], [2 * np.sqrt(7), np.nan])
    check(run.path_length(VOTERS[1]), [1, 2], [2 * 2, np.nan])
    check(run.update_to_weight("aggregator"), [1, 2], [np.sqrt(2) / 10, np.nan])


def test_metrics_and_ledgers(run: Run) -> None:
    check(run.update_metric("clip_factor", "solver"), [1, 1, 2], [0.5, 0.5, 0.5])
    check(run.row_statistic("total", "generator"), [1, 2], [11, 20])  # the last update of a step
    check(run.row_statistic("total", "aggregator"), [1, 2], [np.nan, np.nan])
    check(run.run_metric("accuracy"), [1, 2], [0.25, 0.5])
    check(run.ledger("entropy", "judge"), [1, 2], [1.5, 1.5])
    assert run.ledger("entropy", "judge").unit == "nats"
    assert run.signature("judge").shape == (2, 128)
    np.testing.assert_allclose(run.signature("judge").sum(axis=1), 1)


def test_signal_and_noise(run: Run) -> None:
    check(run.noise_scale("generator"), [1, 2], [8 / 2, np.nan])  # no signal in step 2
    check(run.snr("generator"), [1, 2], [6 * 2 / 8, np.nan])
    # pooled over both steps: signal (2 - 1) / 2
    check(run.noise_scale("generator", window=2), [1, 2], [4, 16])
    check(run.snr("generator", window=2), [1, 2], [1.5, 6 * 0.5 / 8])
    assert run.noise_scale("generator").unit == "prompts"
    check(run.noise_scale("aggregator"), [1, 2], [np.nan, np.nan])
    with pytest.raises(ValueError, match="window is 0 steps; expected 1 or more"):
        run.snr("generator", window=0)


def test_the_split_by_sign(run: Run) -> None:
    split = run.sign_split("generator")
    check(split["positive"], [1, 2], [3, 3])
    check(split["negative"], [1, 2], [2, 2])
    check(split["cosine"], [1, 2], [-0.5, -0.5])
    assert (split["positive"].unit, split["cosine"].unit) == ("loss", "1")
    check(run.sign_split("aggregator")["cosine"], [1, 2], [np.nan, np.nan])


def test_evaluations(run: Run) -> None:
    evaluations = run.evaluations()
    assert evaluations.problems == ("p1", "p2")
    np.testing.assert_array_equal(evaluations.correct_EPS, [[[1, np.nan], [1, 0]]])
    assert evaluations.num_correct_E().tolist() == [2]
    assert evaluations.num_samples_E().tolist() == [3]
    check(evaluations.accuracy(), [2], [2 / 3])
    check(evaluations.role("own_accuracy", "judge"), [2], [0.75])
    np.testing.assert_array_equal(evaluations.role_correct_ERP[0, 1], [0, 1])


def test_what_there_is(run: Run, directory: Path) -> None:
    assert run.path == directory / "run.zarr"
    assert open_run(run.path).meta == META == run.meta
    assert run.closed
    assert run.agents("generator") == VOTERS[:2]
    assert run.policy_of("judge").name == "judge"
    assert run.steps.dtype == np.int64
    gram = run.gram("solver")
    assert gram.gram_UBAA.dtype == np.float64
    np.testing.assert_array_equal(gram.gram_UBAA[1], gram_BAA(UPDATES[1, 1]))
    assert (gram.agents, gram.blocks) == (VOTERS, ("mlp", "head"))
    assert np.isnan(run.transfer("solver")).all()
    assert "voting on arithmetic with tiny, 2 steps, closed" in repr(run)


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda run: run.norm("voter"), r"unknown role 'voter'; this run has \['generator', 'agg"),
        (lambda run: run.norm(Agent("generator", 7)), r"unknown agent 'generator\[7\]'"),
        (lambda run: run.norm("generator", block="x"), r"unknown block.*\['mlp', 'head'\]"),
        (lambda run: run.norm("generator", per="epoch"), "expected 'step' or 'update'"),
        (lambda run: run.norm("total"), r"'total' is ambiguous.*\['solver', 'judge'\]"),
        (lambda run: run.cosine("generator", "judge"), "live in different spaces"),
        (lambda run: run.step_mass("weight"), "unknown step mass 'weight'"),
        (lambda run: run.step_mass("update", block="mlp"), "leave block out"),
        (lambda run: run.step_mass(block="x"), "unknown block 'x'"),
        (lambda run: run.gram("shared"), r"unknown policy 'shared'; .*\['solver', 'judge'\]"),
        (lambda run: run.transfer("shared"), "unknown policy 'shared'"),
        (lambda run: run.update_metric("x", "judge"), r"unknown update metric 'x'.*'grad_norm'"),
        (lambda run: run.row_statistic("x", "judge"), "unknown row statistic 'x'"),
        (lambda run: run.ledger("x", "judge"), "unknown ledger metric 'x'"),
        (lambda run: run.run_metric("x"), "unknown run metric 'x'"),
        (lambda run: run.signature("x"), "unknown role 'x'"),
        (lambda run: run.evaluations().role("x", "judge"), "unknown evaluation metric 'x'"),
    ],
)
def test_what_there_is_not(run: Run, read: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(run)  # type: ignore[operator]


def test_arrays_cannot_be_written_to_by_accident(run: Run) -> None:
    with pytest.raises(ValueError, match="read-only"):
        run.steps[0] = 7


def test_reading_needs_no_torch_and_no_zarr(directory: Path) -> None:
    code = (
        "import sys; from gradlab.store.run import open_run\n"
        "assert not {'torch', 'zarr', 'numcodecs', 'xarray'} & set(sys.modules)\n"
        f"open_run({str(directory)!r}).step_mass()\n"
        "assert not {'torch', 'zarr', 'xarray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- other readers -----------------------------------------------------------------------------


def same_tree(ours: xarray.DataTree, theirs: xarray.DataTree) -> None:
    for path in ("train", "updates/solver", "updates/judge", "eval"):
        for name, array in ours[path].data_vars.items():
            assert theirs[path][name].dims == array.dims
            np.testing.assert_array_equal(theirs[path][name].values, array.values)
        for name, labels in ours[path].coords.items():
            assert theirs[path][name].values.tolist() == labels.values.tolist()


def test_xarray_opens_a_closed_run(run: Run) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tree = xarray.open_datatree(run.path, engine="zarr")
    same_tree(run.to_xarray(), tree)
    mlp = tree["updates/solver"].gram.sel(block="mlp", agent="generator[0]", agent2="aggregator[0]")
    np.testing.assert_array_equal(mlp, [3.0, 0.0, 0.0])
    assert tree["updates/solver"].gram.attrs["unit"] == "loss^2"
    assert tree["train"]["roles"].attrs["metrics"]["entropy"]["unit"] == "nats"
    entropy = run.to_xarray()["train"]["roles"].sel(role="judge", role_metric="entropy")
    np.testing.assert_array_equal(entropy, [1.5, 1.5])


def test_zarr_opens_it_without_consolidated_metadata(run: Run) -> None:
    root = zarr.open_group(run.path, mode="r", use_consolidated=False)
    np.testing.assert_array_equal(root["updates/solver/step"][:], [1, 1, 2])
    assert root["train/roles"].shape == (2, 3, len(names(RoleLedger)))


@pytest.mark.parametrize("num_steps", [3, 70])
def test_a_run_is_readable_while_it_is_written(tmp_path: Path, num_steps: int) -> None:
    path = tmp_path / "run.zarr"
    store = RunStore.create(path, META)
    for step in range(1, num_steps + 1):
        store.append(UpdateRecord("solver", step, gram_BAA(UPDATES[1, 0]), metrics=UpdateMetrics()))
        store.append(StepRecord(step, 0.0, RunLedger(accuracy=step), {}))
        run = open_run(tmp_path)
        assert not run.closed
        assert run.run_metric("accuracy").value_T.tolist() == list(range(1, step + 1))
        assert len(run.norm("generator").value_T) == step
    store.flush()
    tree = xarray.open_datatree(path, engine="zarr", consolidated=False)
    assert tree["train"].sizes["step"] == num_steps
    same_tree(open_run(path).to_xarray(), tree)
    store.close()


def test_concurrent_readers_always_see_a_whole_prefix(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    RunStore.create(path, META).close()
    child = os.fork()
    if child == 0:
        try:
            with RunStore.resume(path, 0) as store:
                for step in range(1, 3001):
                    gram = np.full((2, 3, 3), float(step))
                    store.append(
                        UpdateRecord("solver", step, gram, metrics=UpdateMetrics(loss=step))
                    )
                    store.append(StepRecord(step, 0.0, RunLedger(accuracy=step), {}))
            os._exit(0)
        finally:
            os._exit(1)
    seen = 0
    opened = 0
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        run = open_run(path)
        opened += 1
        num_steps, num_updates = len(run.steps), len(run.gram("solver").step_U)
        assert num_steps >= seen
        seen = num_steps
        expected = np.arange(1, num_updates + 1)
        np.testing.assert_array_equal(run.update_metric("loss", "solver").value_T, expected)
        np.testing.assert_array_equal(run.gram("solver").gram_UBAA[:, 1, 2, 0], expected)
        np.testing.assert_array_equal(
            run.run_metric("accuracy").value_T, np.arange(1, num_steps + 1)
        )
    assert opened > 3
    assert len(open_run(path).steps) == 3000
    assert open_run(path).closed


def test_a_reader_notices_that_the_run_was_resumed_from_earlier(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    with RunStore.create(path, META) as store:
        for step in range(1, 5):
            store.append(StepRecord(step, 0.0, RunLedger(), {}))
    run = open_run(path)
    RunStore.resume(path, 2).close()
    with pytest.raises(StoreError, match=r"was resumed from an earlier step .* open it again"):
        run.run_metric("accuracy")
    assert open_run(path).steps.tolist() == [1, 2]


# -- stores that cannot be read ----------------------------------------------------------------


@pytest.fixture
def copy(directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(directory / "run.zarr", tmp_path / "run.zarr"))


def edit(path: Path, **attributes: object) -> None:
    document = json.loads((path / "zarr.json").read_text())
    document["attributes"] |= attributes
    (path / "zarr.json").write_text(json.dumps(document))


def test_a_missing_run(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no run store at .*give a run directory"):
        open_run(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="is not a run store"):
        open_run(tmp_path)


def test_a_foreign_store(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "x.zarr")
    for use in (open_run, lambda path: RunStore.resume(path, 0)):
        with pytest.raises(StoreError, match=r"schema None, expected 'gradlab\.run'"):
            use(tmp_path / "x.zarr")
    assert [file.name for file in tmp_path.iterdir()] == ["x.zarr"]


def test_another_schema_version(copy: Path) -> None:
    edit(copy, schema_version="1.9")
    assert open_run(copy).closed
    edit(copy, schema_version="2.0")
    for use in (open_run, lambda path: RunStore.resume(path, 2)):
        with pytest.raises(StoreError, match=r"version 2\.0, this gradlab reads 1\.4; install"):
            use(copy)


def test_damaged_metadata(copy: Path) -> None:
    edit(copy, meta={"run_id": "x"})
    with pytest.raises(StoreError, match="metadata is damaged"):
        open_run(copy)


@pytest.mark.parametrize("victim", ["zarr.json", "train/zarr.json", "updates/judge/zarr.json"])
def test_a_truncated_document(copy: Path, victim: str) -> None:
    data = (copy / victim).read_bytes()
    (copy / victim).write_bytes(data[: len(data) // 2])
    with pytest.raises(StoreError, match=f"{victim} is damaged .* restore it from a copy"):
        open_run(copy)


def test_a_missing_group(copy: Path) -> None:
    shutil.rmtree(copy / "updates" / "judge")
    with pytest.raises(StoreError, match=r"judge/zarr\.json is missing.*copy it again as a whole"):
        open_run(copy)


def test_a_missing_and_a_truncated_chunk(copy: Path) -> None:
    chunk = copy / "updates/solver/gram/c.0.0.0.0"
    chunk.write_bytes(chunk.read_bytes()[:100])
    run = open_run(copy)
    assert run.run_metric("accuracy").value_T.tolist() == [0.25, 0.5]  # the rest stays readable
    with pytest.raises(StoreError, match=r"c\.0\.0\.0\.0 is damaged \(checksum"):
        run.norm("generator")
    chunk.unlink()
    with pytest.raises(StoreError, match=r"c\.0\.0\.0\.0 is missing although rows 0\.\.2"):
        run.norm("generator")


def test_an_array_that_another_program_rewrote(copy: Path) -> None:
    document = json.loads((copy / "train/zarr.json").read_text())
    document["consolidated_metadata"]["metadata"]["roles"]["data_type"] = "float64"
    (copy / "train/zarr.json").write_text(json.dumps(document))
    with pytest.raises(StoreError, match="data_type is float64, expected float32: another program"):
        open_run(copy)
    del document["consolidated_metadata"]
    (copy / "train/zarr.json").write_text(json.dumps(document))
    with pytest.raises(StoreError, match="lacks 'consolidated_metadata'"):
        open_run(copy)


def test_a_store_from_before_an_array_existed_is_read_without_it(copy: Path) -> None:
    directory = copy / "updates" / "solver"
    document = json.loads((directory / "zarr.json").read_text())
    for name in ("history", "moment_gram"):
        del document["consolidated_metadata"]["metadata"][name]
        shutil.rmtree(directory / name)
    (directory / "zarr.json").write_text(json.dumps(document))
    edit(copy, schema_version="1.0")
    run = open_run(copy)
    check(run.norm("generator"), [1, 2], [3, 0])
    check(run.path_length("generator"), [1, 2], [2 * np.sqrt(7), np.nan])
    with pytest.raises(ValueError, match=r"'history' was not recorded .* policy 'solver'"):
        run.cosine_with_history("generator")
    assert "history" not in run.to_xarray()["updates/solver"]


def test_a_metric_that_only_older_stores_have_is_read_there_and_told_elsewhere(copy: Path) -> None:
    """The learning rate by role, until schema 1.3; what is added to such a store has NaN."""
    with pytest.raises(
        ValueError, match=r"no ledger metric 'learning_rate': schema 1\.4 keeps it by"
    ):
        open_run(copy).ledger("learning_rate", "generator")
    kl_T = open_run(copy).ledger("kl", "generator").value_T
    directory = copy / "train"
    document = json.loads((directory / "zarr.json").read_text())
    roles_array = document["consolidated_metadata"]["metadata"]["roles"]
    metrics = roles_array["attributes"]["metrics"]
    as_it_was = {("learning_rate" if n == "kl" else n): unit for n, unit in metrics.items()}
    roles_array["attributes"]["metrics"] = as_it_was
    (directory / "zarr.json").write_text(json.dumps(document))
    edit(copy, schema_version="1.3")
    run = open_run(copy)
    assert run.ledger("learning_rate", "generator").unit == "1"
    np.testing.assert_array_equal(run.ledger("learning_rate", "generator").value_T, kl_T)
    with RunStore.resume(copy, 2) as store:
        turns = {role: RoleLedger(turns=5.0) for role in run.roles}
        store.append(StepRecord(3, 1e9, RunLedger(accuracy=0.75), turns))
    again = open_run(copy)
    np.testing.assert_array_equal(
        again.ledger("learning_rate", "generator").value_T, [*kl_T, np.nan]
    )
    assert again.ledger("turns", "generator").value_T[-1] == 5


def test_a_store_with_fewer_metrics_than_this_version_is_read_and_resumed(copy: Path) -> None:
    directory = copy / "train"
    document = json.loads((directory / "zarr.json").read_text())
    run_array = document["consolidated_metadata"]["metadata"]["run"]
    last = list(run_array["attributes"]["metrics"])[-1]
    del run_array["attributes"]["metrics"][last]
    run_array["shape"][1] -= 1
    (directory / "zarr.json").write_text(json.dumps(document))
    chunk = directory / "run" / "c.0.0"
    values = np.empty((1024, len(names(RunLedger))), np.float32)
    decode_chunk(chunk.read_bytes(), values)
    chunk.write_bytes(encode_chunk(np.ascontiguousarray(values[:, :-1])))

    run = open_run(copy)
    assert run.run_metric("accuracy").value_T.tolist() == [0.25, 0.5]
    assert np.isnan(run.run_metric(last).value_T).all()
    with RunStore.resume(copy, 2) as store:
        store.append(StepRecord(3, 1e9, RunLedger(accuracy=0.75, **{last: 7.0}), {}))
    run = open_run(copy)
    assert run.run_metric("accuracy").value_T.tolist() == [0.25, 0.5, 0.75]
    assert np.isnan(run.run_metric(last).value_T).all()  # the store has no place for it


def test_a_store_with_a_metric_of_a_later_version_is_read_but_not_resumed(copy: Path) -> None:
    file = copy / "train" / "zarr.json"
    file.write_text(file.read_text().replace('"accuracy"', '"accuracy_of_tomorrow"'))
    assert open_run(copy).steps.tolist() == [1, 2]
    with pytest.raises(StoreError, match=r"run_metric differs .*'accuracy_of_tomorrow'"):
        RunStore.resume(copy, 2)


def test_equal_runs_are_equal_files_but_for_the_clock(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with RunStore.create(tmp_path / name / "run.zarr", replace(META, run_id="same")) as store:
            store.append(
                UpdateRecord("solver", 1, gram_BAA(UPDATES[1, 0]), metrics=UpdateMetrics())
            )
    chunks = sorted(file.relative_to(tmp_path / "a") for file in tmp_path.glob("a/**/c.*"))
    assert chunks
    for chunk in chunks:
        assert (tmp_path / "a" / chunk).read_bytes() == (tmp_path / "b" / chunk).read_bytes()
