"""Whole runs: the probe changes nothing, a resumed run is the same run, and bad input is told."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
from dataclasses import MISSING, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray
from conftest import SmallConfig
from rich.console import Console
from safetensors.torch import load_file

from gradlab.run_directory import STORE, checkpoint_path
from gradlab.store.run import open_run
from gradlab.store.writer import RunStore
from trainers.config import TrainConfig
from trainers.episodes import trained_turns
from trainers.learn import TrainingError, learn
from trainers.presets import preset
from trainers.rollout import rollout
from trainers.rundir.checkpoint import last_checkpoint
from trainers.rundir.transcripts import read_episodes
from trainers.training import open_run_for_training, step_problems, train, train_step
from trainers.watch.progress import Progress


def adapters(run: Path, step: int) -> dict[str, torch.Tensor]:
    """Every adapter weight of a checkpoint by 'policy/name'."""
    return {
        f"{file.parent.name}/{name}": tensor
        for file in sorted(checkpoint_path(run, step).glob("*/adapter_model.safetensors"))
        for name, tensor in load_file(file).items()
    }


def assert_same_tensors(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert left
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def leaves(value: object, name: str = "") -> dict[str, object]:
    """A nested state as a flat mapping from path to leaf."""
    if isinstance(value, dict):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(i), item) for i, item in enumerate(value)]
    else:
        return {name: value}
    return {k: v for key, item in items for k, v in leaves(item, f"{name}/{key}").items()}


def assert_same_states(left: Path, right: Path, step: int) -> None:
    """Optimizer, schedule, probe and random state of every policy, bit for bit."""
    files = sorted(checkpoint_path(left, step).glob("*/trainer_state.pt"))
    assert files
    for file in files:
        mine = leaves(torch.load(file, weights_only=True))
        other = checkpoint_path(right, step) / file.parent.name / file.name
        theirs = leaves(torch.load(other, weights_only=True))
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, theirs[name]), f"{file.parent.name}{name}"  # type: ignore[arg-type]
            else:
                assert value == theirs[name], f"{file.parent.name}{name}"


def arrays(run: Path) -> dict[str, xarray.DataArray]:
    """Every array of a run's store but the clock's."""
    tree = open_run(run).to_xarray()
    found = {}
    for node in tree.subtree:
        for name, array in node.data_vars.items():
            if name == "wall_time":
                continue
            for dim in ("run_metric", "update_metric"):
                if dim in array.dims:
                    timed = [label for label in array[dim].values if label.endswith("_seconds")]
                    array = array.drop_sel({dim: timed})
            found[f"{node.path}/{name}"] = array
    return found


def assert_same_runs(left: Path, right: Path) -> None:
    mine, theirs = arrays(left), arrays(right)
    assert mine.keys() == theirs.keys()
    assert len(mine) > 8
    for name, array in mine.items():
        xarray.testing.assert_identical(array, theirs[name])
    files = sorted(path.name for path in (left / "episodes").iterdir())
    assert files == sorted(path.name for path in (right / "episodes").iterdir())
    for file in files:
        one, other = ([*read_episodes(run / "episodes" / file)] for run in (left, right))
        assert one == other, file


# Numbers.


@pytest.mark.parametrize("routing", ["shared", "isolated"])
def test_the_probe_changes_nothing_bit_for_bit(
    small_config: SmallConfig, quiet: Progress, tmp_path: Path, routing: str
) -> None:
    runs = [
        train(
            small_config(out=tmp_path / probe, probe=probe, routing=routing, steps=3),
            quiet,
        )
        for probe in ("exact", "off")
    ]
    with_probe, without = (adapters(run, 3) for run in runs)
    assert_same_tensors(with_probe, without)
    assert any(tensor.any() for name, tensor in with_probe.items() if "lora_B" in name)
    episodes = ([*read_episodes(run / "episodes/eval-000003.jsonl.gz")] for run in runs)
    assert next(episodes) == next(episodes)


def test_the_fused_probe_measures_the_same_and_changes_rounding_only(
    small_config: SmallConfig, quiet: Progress, tmp_path: Path
) -> None:
    exact, fused = (
        open_run(train(small_config(out=tmp_path / probe, probe=probe, steps=1), quiet))
        for probe in ("exact", "fused")
    )
    for policy in exact.policies:
        assert fused.policy_of(policy.agents[0].role).mode == "fused"
        expected, found = (run.gram(policy.name).gram_UBAA[0] for run in (exact, fused))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * expected.max())
        assert (fused.update_metric("residual", policy.name).value_T < 1e-5).all()


def test_a_killed_run_resumes_to_the_same_numbers(
    small_config: SmallConfig, quiet: Progress, tmp_path: Path
) -> None:
    """The kill: everything after the checkpoint of step 2 but the journal and rows of step 3, 4."""
    config = small_config(out=tmp_path / "straight", steps=4, checkpoint_every=2, eval_every=1)
    train(config, quiet)
    killed = tmp_path / "killed"
    shutil.copytree(config.out, killed)
    shutil.rmtree(checkpoint_path(killed, 4))
    checkpoint_path(killed, 4).with_name(".step-000004.partial").mkdir()
    assert open_run(killed).steps.tolist() == [1, 2, 3, 4]

    train(TrainConfig(out=killed, resume=True), quiet)
    assert_same_runs(config.out, killed)
    assert_same_tensors(adapters(config.out, 4), adapters(killed, 4))
    assert_same_states(config.out, killed, 4)


def test_a_finished_run_that_is_extended_equals_a_longer_one(
    small_config: SmallConfig, quiet: Progress, tmp_path: Path
) -> None:
    setting = {"routing": "shared", "workflow": "evaluator_optimizer", "warmup_steps": 3}
    long = small_config(out=tmp_path / "long", steps=4, **setting)
    train(long, quiet)
    short = small_config(out=tmp_path / "short", steps=2, **setting)
    train(short, quiet)
    train(TrainConfig(out=short.out, resume=True, extend_to=4), quiet)
    assert_same_runs(long.out, short.out)
    assert_same_states(long.out, short.out, 4)


def test_a_run_killed_before_its_first_checkpoint_starts_over_to_the_same_numbers(
    small_config: SmallConfig, quiet: Progress, tmp_path: Path
) -> None:
    config = small_config(out=tmp_path / "straight")
    train(config, quiet)
    killed = tmp_path / "killed"
    shutil.copytree(config.out, killed)
    shutil.rmtree(killed / "checkpoints")
    RunStore.resume(killed / STORE, after_step=2)._journal.close()  # open, as a kill leaves it
    run = open_run_for_training(TrainConfig(out=killed, resume=True))
    assert run.resumed == "no checkpoint was written yet: steps 1 to 2 are trained again"
    run.store.close()
    train(TrainConfig(out=killed, resume=True), quiet)
    assert_same_runs(config.out, killed)
    assert_same_tensors(adapters(config.out, 2), adapters(killed, 2))


@pytest.mark.parametrize("every", [1, 20], ids=["beyond its first checkpoint", "finished"])
def test_a_run_whose_checkpoints_are_gone_is_not_started_over(
    small_config: SmallConfig, quiet: Progress, every: int
) -> None:
    config = small_config(checkpoint_every=every)
    train(config, quiet)
    shutil.rmtree(config.out / "checkpoints")
    told = r"measurements up to step 2 and no checkpoint to continue from; expected one in \S+check"
    with pytest.raises(ValueError, match=told):
        train(TrainConfig(out=config.out, resume=True), quiet)
    run = open_run(config.out)
    assert run.closed
    assert run.steps.tolist() == [1, 2], "nothing was cut"


def test_resuming_a_finished_run_changes_nothing(
    small_config: SmallConfig, quiet: Progress, tmp_path: Path
) -> None:
    config = small_config()
    train(config, quiet)
    before = tmp_path / "before"
    shutil.copytree(config.out, before)
    said = io.StringIO()
    train(TrainConfig(out=config.out, resume=True), Progress(Console(file=said)))
    assert "already finished at step 2; --extend-to M goes on" in said.getvalue()
    assert_same_runs(before, config.out)


def test_what_the_store_says_about_every_update(small_config: SmallConfig, quiet: Progress) -> None:
    """Coverage 1, residual below 1e-5, shares that sum to one, and the ledger's optimizer steps."""
    config = small_config(routing="isolated", rows_per_update=16)
    run = open_run(train(config, quiet))
    assert run.closed
    assert run.steps.tolist() == [1, 2]
    for role in run.roles:
        policy = run.policy_of(role).name
        assert (run.update_metric("residual", policy).value_T < 1e-5).all()
        assert (run.update_metric("coverage", policy).value_T == 1).all()
        # In step 1 the adapters' B matrices are next to zero and so are the second moments of A:
        # the agents' parts there are thousands of times their sum, which float32 resolves to 2 %.
        late = run.gram(policy).step_U > 1
        norm = run.update_metric("update_norm", policy).value_T
        parts = run.update_gram(policy).sum((1, 2))
        np.testing.assert_allclose(parts[late], norm[late] ** 2, rtol=1e-3)
        np.testing.assert_allclose(parts[~late], norm[~late] ** 2, rtol=5e-2)
    # 4 problems x 4 samples: 48 generator rows and 16 aggregator rows, 16 an update
    assert run.ledger("optimizer_steps", "generator").value_T.tolist() == [3, 3]
    assert run.ledger("optimizer_steps", "aggregator").value_T.tolist() == [1, 1]
    assert run.ledger("turns", "generator").value_T.tolist() == [48, 48]
    assert run.evaluations().step_E.tolist() == [0, 2]
    assert (run.ledger("logprob_gap", "generator").value_T < 1e-5).all()


@pytest.mark.parametrize("workflow", ["voting", "evaluator_optimizer", "orchestrator_workers"])
def test_the_faithful_preset_trains(
    small_config: SmallConfig, quiet: Progress, workflow: str
) -> None:
    """One schedule for all policies, from 0, a tick each time one was trained: of R policies the
    i-th trains step s at rate ((s - 1) R + i) / 15 of 1e-3, in all its updates."""
    small = small_config(workflow=workflow, rows_per_update=16)
    different = {
        field.name: getattr(preset("faithful"), field.name)
        for field in fields(small)
        if getattr(preset("faithful"), field.name) != field.default
        and field.default_factory is MISSING
    }
    run = open_run(train(replace(small, **different), quiet))
    for index, policy in enumerate(run.policies):
        rate_U = run.update_metric("learning_rate", policy.name).value_T
        tick_U = (run.gram(policy.name).step_U - 1) * len(run.policies) + index
        np.testing.assert_allclose(rate_U, 1e-3 * tick_U / 15, rtol=1e-5)
        assert (run.update_metric("update_norm", policy.name).value_T[0] == 0) == (index == 0)
        assert run.update_metric("distance", policy.name).value_T[-1] > 0


def test_loss_and_gram_of_a_seed_are_pinned(small_config: SmallConfig, quiet: Progress) -> None:
    """A refactor keeps these numbers; a change of numbers is its own commit and says why.

    Made with the shipped tiny-0.3m weights, which they depend on too.
    """
    config = small_config(model="tiny-0.3m", problems_per_step=8, rows_per_update=64, seed=1)
    run = open_run(train(config, quiet))
    numbers = {
        "generator norm": run.norm("generator").value_T,
        "aggregator norm": run.norm("aggregator").value_T,
        "cosine of two voters": run.cosine(*run.agents("generator")[:2]).value_T,
        "reward": run.run_metric("reward_mean").value_T,
        "entropy": run.ledger("entropy", "generator").value_T,
        "distance": run.update_metric("distance", "generator").value_T[-1:],
        # in the first update of a step every ratio is 1, and centred advantages sum to 0
        "loss": run.update_metric("loss", "generator").value_T,
        "Gram": run.gram("generator").gram_UBAA[-1].sum(0).ravel(),
    }
    pinned = {
        "generator norm": [0.216581, 0.241549],
        "aggregator norm": [0.098169, 0.22126],
        "cosine of two voters": [-0.400128, -0.0201006],
        "reward": [0.46875, 0.3125],
        "entropy": [0.407985, 0.406998],
        "distance": [0.270488],
        "loss": [0, 0.0015431, 0, -0.0016164],
        "Gram": [
            0.025056, -0.0037791, 0.013141, -0.0037791, 0.010175, -0.004715, 0.013141, -0.004715,
            0.040917,
        ],
    }  # fmt: skip
    for name, value in numbers.items():
        np.testing.assert_allclose(value, pinned[name], rtol=1e-3, atol=1e-6, err_msg=name)


def test_problems_of_a_step_go_through_an_epoch_before_any_comes_twice(
    small_config: SmallConfig,
) -> None:
    config = small_config(problems_per_step=4)
    problems = open_task(config)[:10]
    drawn = [p.id for step in range(1, 6) for p in step_problems(problems, config, step)]
    # Ten problems, four a step: two steps an epoch, the other two problems wait for the next.
    assert len(set(drawn[:8])) == len(set(drawn[8:16])) == 8
    assert set(drawn) <= {p.id for p in problems}
    assert drawn[:8] != drawn[8:16]
    assert all(len(set(drawn[i : i + 4])) == 4 for i in range(0, 20, 4))
    assert step_problems(problems, config, 3) == step_problems(problems, config, 3)


def open_task(config: TrainConfig) -> tuple:  # type: ignore[type-arg]
    from trainers.tasks.load import load_task

    return load_task("arithmetic", heldout=1, seed=config.seed).train


# What stops a run.


def test_a_poisoned_weight_stops_the_run_and_is_named(small_config: SmallConfig) -> None:
    run = open_run_for_training(small_config())
    with run.store:
        run.policies["aggregator"].parameters[3].data[0, 0] = float("nan")
        with pytest.raises(
            TrainingError, match=r"policy 'aggregator'.*not finite.*lora_.\.aggregator\.weight"
        ):
            train_step(run, 1)


def test_a_loss_that_is_not_a_number_names_the_culprit(small_config: SmallConfig) -> None:
    config = small_config(routing="shared")
    run = open_run_for_training(config)
    with run.store:
        episodes = rollout(
            run.sampler,
            run.workflow,
            run.speakers,
            run.task.train[:2],
            config.samples,
            (0,),
            run.judge,
        )
        rows = trained_turns(episodes)
        bad = [
            replace(row, advantage=float("nan") if row.agent.role == "aggregator" else 1.0)
            for row in rows
        ]
        with pytest.raises(
            TrainingError, match=r"step 7, policy 'shared': loss is nan; \d+ rows have an advantage"
        ) as caught:
            learn(run.languages[config.model], run.policies["shared"], bad, config, step=7)
        assert "aggregator[0]" in str(caught.value)
        assert "generator" not in str(caught.value)

        run.policies["shared"].parameters[0].data[0, 0] = float("inf")
        with pytest.raises(TrainingError, match=r"1 of its \d+ parameters .*lora_A\.shared"):
            learn(run.languages[config.model], run.policies["shared"], rows, config, step=7)


def test_an_infinite_gradient_stops_before_the_optimizer_moves(small_config: SmallConfig) -> None:
    config = small_config(routing="shared", dual_clip=0, clip_norm=1.0)
    run = open_run_for_training(config)
    with run.store:
        policy = run.policies["shared"]
        episodes = rollout(
            run.sampler,
            run.workflow,
            run.speakers,
            run.task.train[:2],
            config.samples,
            (0,),
            run.judge,
        )
        rows = [replace(r, advantage=1e38) for r in trained_turns(episodes)]
        before = [p.detach().clone() for p in policy.parameters]
        with pytest.raises(
            TrainingError, match=r"step 1, policy 'shared' \(generator, aggregator\): "
        ):
            learn(run.languages[config.model], policy, rows, config, step=1)
        assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters, strict=True))


SMALLEST = {
    "eval_every": 1, "problems_per_step": 2, "samples": 2, "eval_problems": 2, "lora_rank": 2,
    "checkpoint_every": 3,
}  # fmt: skip


def signal_after_step(out: Path, steps: int, step: int, number: int) -> tuple[int, str]:
    """Train in a process of its own and send it a signal after a step; its status and stderr."""
    options = {"out": out, "steps": steps, "threads": 1, "device": "cpu", **SMALLEST}
    command = [sys.executable, "-m", "gradlab", "train"]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.split()[:2] == ["step", str(step)]:
                process.send_signal(number)
                break
        _, complaint = process.communicate(timeout=120)
    return process.returncode, " ".join(complaint.split())


def test_ctrl_c_checkpoints_and_says_how_to_resume(tmp_path: Path, quiet: Progress) -> None:
    out = tmp_path / "run"
    status, said = signal_after_step(out, steps=20, step=2, number=signal.SIGINT)
    assert status == 130, said
    assert "continue with: gradlab train --resume --out" in said
    stopped = last_checkpoint(out)
    assert stopped is not None
    assert 2 <= stopped < 20
    assert f"stopped after step {stopped};" in said
    assert open_run(out).steps[-1] == stopped

    train(TrainConfig(out=out, resume=True), quiet)
    run = open_run(out)
    assert run.steps.tolist() == list(range(1, 21))
    assert run.evaluations().step_E.tolist() == list(range(21))


def test_a_run_killed_outright_resumes_to_the_same_numbers(
    small_config: SmallConfig, quiet: Progress, tmp_path: Path
) -> None:
    """SIGKILL at whatever moment after step 4: the checkpoint of step 3 and a journal are left."""
    killed = tmp_path / "killed"
    status, _ = signal_after_step(killed, steps=20, step=4, number=signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert not open_run(killed).closed
    assert open_run(killed).steps[-1] >= 3, "the store opens, with the acknowledged rows"
    train(TrainConfig(out=killed, resume=True), quiet)
    straight = small_config(
        out=tmp_path / "straight", steps=20, max_response_tokens=24, rows_per_update=128, **SMALLEST
    )
    train(straight, quiet)
    assert_same_runs(straight.out, killed)
    assert_same_states(straight.out, killed, 20)


# Directories.


def test_an_existing_run_is_never_overwritten(small_config: SmallConfig, quiet: Progress) -> None:
    config = small_config(steps=1, problems_per_step=1)
    train(config, quiet)
    before = sorted(path.stat().st_mtime_ns for path in config.out.rglob("*"))
    with pytest.raises(ValueError, match=r"holds a run; nothing was overwritten.*--resume"):
        train(config, quiet)
    assert sorted(path.stat().st_mtime_ns for path in config.out.rglob("*")) == before


def test_a_foreign_directory_is_refused(small_config: SmallConfig) -> None:
    config = small_config()
    config.out.mkdir()
    (config.out / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="is not empty and holds no run; nothing was overwritten"):
        train(config)
    assert [path.name for path in config.out.iterdir()] == ["thesis.tex"]


def test_an_empty_directory_is_used(small_config: SmallConfig) -> None:
    config = small_config()
    config.out.mkdir()
    with open_run_for_training(config).store:
        assert (config.out / "config.json").is_file()


def test_a_file_as_out_is_refused(small_config: SmallConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file; expected a directory"):
        train(small_config(out=tmp_path / "file"))


def test_an_unwritable_out_is_told(small_config: SmallConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=r"file is a file; expected a folder to write in"):
        train(small_config(out=tmp_path / "file" / "run"))


def test_resume_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no config\.json; expected the directory"):
        train(TrainConfig(out=tmp_path / "nowhere", resume=True))


@pytest.fixture
def finished(small_config: SmallConfig, quiet: Progress) -> TrainConfig:
    config = small_config(steps=1, problems_per_step=1, checkpoint_every=1)
    train(config, quiet)
    return config


def edit_config(run: Path, **changes: object) -> None:
    about = json.loads((run / "config.json").read_text())
    about["config"].update(changes)
    (run / "config.json").write_text(json.dumps(about))


def test_a_damaged_config_is_refused(finished: TrainConfig) -> None:
    (finished.out / "config.json").write_text('{"config": ')
    with pytest.raises(ValueError, match=r"config\.json is damaged .*restore it"):
        train(replace(finished, resume=True))


def test_a_config_of_another_version_is_refused(finished: TrainConfig) -> None:
    edit_config(finished.out, momentum=0.9)
    with pytest.raises(
        ValueError, match=r"later version wrote .*does not know: momentum; use that"
    ):
        train(replace(finished, resume=True))


def test_other_data_than_the_run_began_with_is_refused(finished: TrainConfig) -> None:
    edit_config(finished.out, difficulty=3)
    with pytest.raises(ValueError, match="have changed since the run began"):
        train(replace(finished, resume=True))


def test_another_routing_than_the_run_began_with_is_refused(finished: TrainConfig) -> None:
    edit_config(finished.out, routing="shared", steps=2)
    with pytest.raises(ValueError, match=r"polic|routing"):
        train(replace(finished, resume=True))


def test_a_checkpoint_that_lost_a_policy_is_refused(finished: TrainConfig) -> None:
    shutil.rmtree(checkpoint_path(finished.out, 1) / "aggregator")
    with pytest.raises(ValueError, match=r"no checkpoint.*aggregator/\S+ is missing.*Restore"):
        train(replace(finished, resume=True, extend_to=2))


def test_the_given_options_do_not_change_a_resumed_run(finished: TrainConfig) -> None:
    given = replace(finished, resume=True, seed=9, learning_rate=1.0, extend_to=3)
    run = open_run_for_training(given)
    run.store.close()
    assert (run.config.seed, run.config.learning_rate) == (0, 1e-3)
    assert run.config.steps == 3


def test_an_extension_that_extends_nothing_is_refused(finished: TrainConfig) -> None:
    told = r"--extend-to is 1 and the run in \S+ is one of 1 steps; expected more than 1"
    with pytest.raises(ValueError, match=told):
        train(replace(finished, resume=True, extend_to=1))
    with pytest.raises(ValueError, match=r"--extend-to is 9 and there is no --resume"):
        replace(finished, extend_to=9)


def test_two_writers_on_one_run_are_refused(finished: TrainConfig) -> None:
    meta = open_run(finished.out).meta
    with (
        RunStore.resume(finished.out / STORE, after_step=1, meta=meta),
        pytest.raises((ValueError, RuntimeError, OSError), match=r"writ|lock"),
    ):
        train(replace(finished, resume=True, extend_to=2))


def test_an_unknown_model_says_where_it_was_looked_for(small_config: SmallConfig) -> None:
    config = small_config(model="./no-such-model")
    with pytest.raises(ValueError, match=r"--model ./no-such-model: cannot be loaded .*local dir"):
        train(config)
    assert not config.out.exists(), "nothing is written for a run that cannot begin"


def test_a_task_that_cannot_be_read_leaves_no_directory(
    small_config: SmallConfig, tmp_path: Path
) -> None:
    config = small_config(task="gsm8k", data=tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="no file"):
        train(config)
    assert not config.out.exists()
