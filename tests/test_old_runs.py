"""Runs of earlier versions, kept in tests/old_runs, do here what they did there.

What the earlier version said is kept beside each, so every expectation comes from other code.
"""

from __future__ import annotations

import csv
import json
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import field, fields, make_dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from old_runs.make import EXTENDED, arithmetic, command, drawn, further, recorded, replayed

from gradlab.store.disk import StoreError
from gradlab.store.run import open_run
from gradlab.store.schema import RETIRED
from trainers.config import EARLIER, TrainConfig
from trainers.replay.arms import ReplayPlan, begin
from trainers.rundir import directory
from trainers.rundir.directory import config_of, read_run_directory, stored_config

VERSIONS = sorted(path for path in (Path(__file__).parent / "old_runs").iterdir() if path.is_dir())
OLD = [archive for version in VERSIONS for archive in sorted(version.glob("*.tar.gz"))]
CLOCKS = {
    "probe_seconds", "rollout_seconds", "train_seconds", "eval_seconds", "step_seconds",
}  # fmt: skip
"""Metrics that differ from one training to the next."""
REDEFINED = {"kl", "logprob_gap"}
"""Means over fewer turns than then; what is trained does not depend on them."""

Unpack = Callable[[Path], Path]


@pytest.fixture
def unpack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Unpack:
    """Unpack a run where its paths are those that it was made with."""
    monkeypatch.chdir(tmp_path)

    def unpacked(archive: Path) -> Path:
        with tarfile.open(archive) as content:
            content.extractall("runs", filter="data")
        return Path("runs") / archive.name.removesuffix(".tar.gz")

    return unpacked


@pytest.fixture(scope="session")
def is_same_arithmetic() -> bool:
    """Whether sums are rounded here as where the runs were made."""
    return arithmetic() == said(OLD[0])["arithmetic"]


def said(archive: Path) -> dict[str, Any]:
    """What the version that made a run said of it."""
    about: dict[str, Any] = json.loads(beside(archive, ".json").read_text())
    return about


def beside(archive: Path, suffix: str) -> Path:
    return archive.with_name(archive.name.removesuffix(".tar.gz") + suffix)


def each_old_run(test: Callable[..., None]) -> Callable[..., None]:
    names = [f"{path.parent.name}-{path.name.removesuffix('.tar.gz')}" for path in OLD]
    mark: Callable[..., Callable[..., None]] = pytest.mark.parametrize("archive", OLD, ids=names)
    return mark(test)


def assert_same_training(run: Path, archive: Path, *, is_exact: bool) -> None:
    """The steps that a run was trained further are those that the earlier version got."""
    with np.load(beside(archive, ".npz")) as kept:
        then = dict(kept)
    now = recorded(run, said(archive)["steps"])
    assert set(then) <= set(now)
    assert now["train/step"][-1] == EXTENDED
    compared = 0
    for path, old in then.items():
        new = now[path]
        metric = metric_of(path, set(then))
        if path.endswith("_metric"):
            assert set(old) <= set(new)
            continue
        if metric:  # by name: later versions measure more
            retired = RETIRED.get(metric.rpartition("/")[2], {})
            left_out = {*CLOCKS, *REDEFINED, *retired}
            names = [name for name in then[metric] if name not in left_out]
            old = old[..., [list(then[metric]).index(name) for name in names]]
            new = new[..., [list(now[metric]).index(name) for name in names]]
        if is_exact and path.startswith("updates/") and not path.endswith(("/metrics", "/step")):
            # The probe takes its sums in another order than then. Training does not read them.
            largest = np.nanmax(np.abs(old), initial=0)
            np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-6 * largest, err_msg=path)
            compared += 1
        elif is_exact:
            np.testing.assert_array_equal(new, old, err_msg=path)
            compared += 1
        elif path.startswith("updates/") and path.endswith("/gram"):
            # Of one step only: from the next on, other tokens may be drawn.
            np.testing.assert_allclose(new[0], old[0], rtol=1e-3, err_msg=path)
            compared += 1
    assert compared >= (8 if is_exact else 1)


def fused(run: Path) -> bool:
    """Whether its gradients are the sums that the probe takes, whose order is not kept."""
    return config_of(run).probe == "fused"


def metric_of(path: str, paths: set[str]) -> str | None:
    """The coordinate that names the metrics along an array's last axis."""
    group, _, name = path.rpartition("/")
    dims = {"run": "run_metric", "rows": "row_metric", "metrics": "update_metric"}
    by_group = {"train": "role_metric", "eval": "eval_metric"}
    dim = by_group.get(group) if name == "roles" else dims.get(name)
    coordinate = f"{group}/{dim}"
    return coordinate if dim and coordinate in paths else None


@each_old_run
def test_an_old_run_is_trained_further_to_the_numbers_of_its_version(
    archive: Path, unpack: Unpack, is_same_arithmetic: bool
) -> None:
    run = unpack(archive)
    further(run)
    assert_same_training(run, archive, is_exact=is_same_arithmetic and not fused(run))


@each_old_run
def test_an_old_run_is_audited_diagnosed_drawn_and_shown(archive: Path, unpack: Unpack) -> None:
    run, then = unpack(archive), said(archive)

    status, audit = command("audit", run)
    assert status == 0
    assert findings_of(audit.splitlines()) == findings_of(then["audit"])

    _, diagnosis = command("diagnose", run, "--json")
    now = json.loads(diagnosis)
    assert (run / "report.html").is_file()
    for part in ("run_id", "status"):
        assert now[part] == then["diagnosis"][part]
    # What could have been found follows from the noise that is expected: later versions know more.
    fact, was = (one["verdict"].partition(" A loss of")[0] for one in (now, then["diagnosis"]))
    assert fact == was
    for name, value in then["diagnosis"]["accuracy"].items():
        if name == "detectable_drop":
            continue
        assert now["accuracy"][name] == (
            pytest.approx(value) if isinstance(value, float) else value
        ), name

    csvs = drawn(run, Path("figures"))
    assert set(then["figures"]) <= set(csvs)
    for name, text in then["figures"].items():
        assert_same_table(csvs[name], text)

    status, shown = command("show", run, "--step", then["steps"])
    assert status == 0
    problem = next(line.split()[0] for line in shown.splitlines() if "sum-" in line)
    status, shown = command("show", run, "--step", then["steps"], "--problem", problem)
    assert status == 0
    assert "reward" in shown


def findings_of(audit: list[str]) -> list[tuple[str, str]]:
    """(agent, finding) of every line about an agent; the numbers are those of random advantages."""
    return [(line.split()[0], line.split()[-1]) for line in audit if "]  " in line]


def assert_same_table(now: str, then: str) -> None:
    """Columns of later versions may stand beside those of then."""
    old, new = [*csv.DictReader(StringIO(then))], [*csv.DictReader(StringIO(now))]
    assert len(new) == len(old)
    for before, after in zip(old, new, strict=True):
        for name, value in before.items():
            try:
                assert float(after[name]) == pytest.approx(float(value), rel=1e-6), name
            except ValueError:
                assert after[name] == value


@each_old_run
def test_an_old_run_is_replayed(archive: Path, unpack: Unpack, is_same_arithmetic: bool) -> None:
    run, then = unpack(archive), said(archive)["replay"]
    result = replayed(run)
    assert result["plan"] == then["plan"]
    assert result["change"] == then["change"]
    if is_same_arithmetic:
        assert result["reproduction"] == then["reproduction"]
        assert result["reproduction"]["is_exact"]
        assert result["final"] == then["final"]
        assert result["verdict"] == then["verdict"]


@each_old_run
def test_a_new_run_begins_with_a_checkpoint_of_an_old_one(archive: Path, unpack: Unpack) -> None:
    run, done = unpack(archive), said(archive)["steps"]
    status, told = command(
        "train", "--from", run, "--at", done, "--out", "runs/new", "--steps", done + 1
    )
    assert status == 0, told
    assert open_run(Path("runs/new")).steps.tolist() == [done + 1]


# After an option was added.


def without_options(run: Path, *names: str) -> None:
    """Make a run one of a time before there were these options."""
    edit(run / "config.json", lambda about: [about["config"].pop(name) for name in names])
    edit(
        run / "run.zarr" / "zarr.json",
        lambda root: [root["attributes"]["meta"]["config"].pop(name) for name in names],
    )


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


ADDED: Mapping[str, Mapping[str, Any]] = {
    # What runs of before do, where it is not today's default.
    "evaluator_optimizer": {"scheduler_tick": "policy", "warmup_steps": 4},
    "orchestrator_workers": {"coherence_window": 8, "probe": "fused"},
    "solo": {"entropy_coefficient": 0.001, "effective": True},
    "voting": {"kl_coefficient": {"aggregator": 0.05}},
}
DEFAULTS = ("alarm", "history", "minibatches", "code_packages", "task_options", "replay_seed")
"""Options that have their default in all of these runs."""


@each_old_run
def test_an_old_run_stays_what_it_was_after_options_were_added(
    archive: Path, unpack: Unpack, is_same_arithmetic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = unpack(archive)
    added = ADDED[run.name]
    then = config_of(run)
    assert all(getattr(then, name) != getattr(TrainConfig(), name) for name in added)
    without_options(run, *added, *(() if then.alarm != "off" else DEFAULTS))
    assert config_of(run) != then, "today's defaults are not what was done then"
    monkeypatch.setattr(directory, "EARLIER", {**directory.EARLIER, **added})
    assert config_of(run) == then
    assert command("diagnose", run, "--json", "--no-page")[0] == 0
    assert command("audit", run)[0] == 0
    replay = replayed(run)
    assert replay["reproduction"]["is_exact"] or not is_same_arithmetic
    further(run)
    assert_same_training(run, archive, is_exact=is_same_arithmetic and not fused(run))


@each_old_run
def test_an_option_that_is_added_tomorrow_changes_no_old_run(
    archive: Path, unpack: Unpack, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = make_dataclass(
        "LaterConfig", [("momentum", float, field(default=0.9))], bases=(TrainConfig,), frozen=True
    )
    monkeypatch.setattr(directory, "TrainConfig", later)
    monkeypatch.setattr(directory, "EARLIER", {"momentum": 0.0})
    run = unpack(archive)
    given: Any = later(out=run, resume=True)
    old: Any = stored_config(read_run_directory(run), given)
    assert old.momentum == 0
    edit(run / "config.json", lambda about: about["config"].update(momentum=0.5))
    own: Any = stored_config(read_run_directory(run), given)
    assert own.momentum == 0.5, "what a run says of itself goes first"


def test_every_option_younger_than_the_oldest_run_says_what_was_done_before(
    unpack: Unpack,
) -> None:
    about = read_run_directory(unpack(OLD[0]))
    younger = {option.name for option in fields(TrainConfig)} - set(about["config"])
    assert younger == set(EARLIER), (
        "every new option gets a line in trainers.config.EARLIER: what runs did before it existed"
    )
    assert younger.isdisjoint(about["config"])


def test_options_of_a_later_version_are_named(
    unpack: Unpack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADLAB_TRACEBACK", "1")  # the error itself, not its line on stderr
    run = unpack(OLD[0])
    edit(run / "config.json", lambda about: about["config"].update(momentum=0.9, nesterov=True))
    told = (
        rf"{run}/config.json: a later version wrote the run \(gradlab 0.1.0\) "
        r"and has options that this version does not know: momentum, nesterov; use that version"
    )
    for arguments in (
        ("train", "--resume", "--out", run),
        ("audit", run),
        ("replay", run, "--with", "lr:0.5", "--from", "4"),
        ("train", "--from", run, "--at", "4", "--out", "runs/new"),
    ):
        with pytest.raises(ValueError, match=told):
            command(*arguments)
    assert command("diagnose", run, "--no-page")[0] == 0, "reading needs no options"


def test_metadata_of_a_later_version_is_named(unpack: Unpack) -> None:
    run = unpack(OLD[0])
    root = run / "run.zarr" / "zarr.json"
    whole = root.read_text()
    edit(root, lambda content: content["attributes"]["meta"].update(shards=4))
    with pytest.raises(
        StoreError, match=r"zarr.json: a later version wrote .*0\.1\.0.*meta has shards"
    ):
        open_run(run)
    root.write_text(whole)
    edit(
        root,
        lambda content: content["attributes"]["meta"]["policies"][0].update(frozen=True),
    )
    with pytest.raises(StoreError, match=r"later version .*policy '\w+' has frozen, which"):
        open_run(run)


@pytest.mark.parametrize("key", ["run_id", "data"])
def test_a_config_file_without_its_parts_is_damaged(unpack: Unpack, key: str) -> None:
    run = unpack(OLD[0])
    edit(run / "config.json", lambda about: about.pop(key))
    with pytest.raises(ValueError, match=rf"config.json is damaged \(it has no '{key}'\); restore"):
        read_run_directory(run)


def test_a_replay_that_an_earlier_version_began_goes_on(tmp_path: Path) -> None:
    plan = ReplayPlan(tmp_path, "half", 3, 5, ("lr:0.5",), (0,))
    begin(plan)
    later = make_dataclass(
        "LaterPlan", [("every", int, field(default=1))], bases=(ReplayPlan,), frozen=True
    )
    again: Any = later(tmp_path, "half", 3, 5, ("lr:0.5",), (0,))
    with pytest.raises(ValueError, match="holds another replay"):
        begin(replace(again, every=2))
    begin(again)
    assert json.loads((plan.out / "plan.json").read_text())["every"] == 1
