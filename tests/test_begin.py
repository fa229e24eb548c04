"""A new run begins where another one was: with nothing changed it is the other run again."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_train import adapters, assert_same_states, assert_same_tensors

from gradlab.commands.main import main
from gradlab.run_directory import STATE, checkpoint_path
from gradlab.store.run import open_run
from trainers.config import TrainConfig
from trainers.replay.begin import begin
from trainers.replay.fork import changed_state
from trainers.rundir.directory import config_of
from trainers.training import open_run_for_training, train
from trainers.watch.progress import Progress

Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 steps with checkpoints and evaluations at 2 and 4, in its warm-up throughout."""
    config = TrainConfig(
        out=tmp_path_factory.mktemp("runs") / "source",
        steps=4, eval_every=2, checkpoint_every=2, problems_per_step=4, samples=4,
        eval_problems=6, rows_per_update=32, lora_rank=4, threads=1, device="cpu",
        routing="shared", warmup_steps=8, kl_coefficient={"aggregator": 0.01},
    )  # fmt: skip
    return train(config)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def status(*arguments: str) -> object:
    """Of a command; what cannot be parsed exits."""
    try:
        return main(arguments)
    except SystemExit as stop:
        return stop.code


def about(run: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((run / "config.json").read_text())
    return content


def test_with_nothing_changed_it_is_the_run_again_bit_for_bit(source: Path, tmp_path: Path) -> None:
    before = files(source)
    again = tmp_path / "again"
    assert main(["train", "--from", str(source), "--at", "3", "--out", str(again)]) == 0
    assert files(source) == before, "the source is only read"
    assert_same_tensors(adapters(again, 4), adapters(source, 4))
    assert_same_states(again, source, 4)
    one, other = open_run(source), open_run(again)
    late = one.gram("shared").step_U > 2
    np.testing.assert_array_equal(
        one.gram("shared").gram_UBAA[late], other.gram("shared").gram_UBAA
    )
    assert other.evaluations().step_E.tolist() == [2, 4], "steps are counted on"
    np.testing.assert_array_equal(
        one.evaluations().correct_EPS[1:], other.evaluations().correct_EPS
    )


def test_what_it_began_with_is_on_record_and_options_are_the_sources(
    source: Path, tmp_path: Path, capsys: Output
) -> None:
    out = tmp_path / "slower"
    options = ["--learning-rate", "0.0005", "--steps", "3", "--out", str(out)]
    assert main(["train", "--from", str(source), "--at", "2", *options]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "begins at step 2 of" in told
    assert "with --steps 3 instead of 4, --learning-rate 0.0005 instead of 0.001" in told
    config = config_of(out)
    assert config == replace(config_of(source), out=out, steps=3, learning_rate=0.0005)
    origin = about(out)["from"]
    assert origin == {
        "path": str(source),
        "run_id": about(source)["run_id"],
        "step": 2,
        "config_sha256": hashlib.sha256((source / "config.json").read_bytes()).hexdigest(),
        "changed": {"steps": [4, 3], "learning_rate": [0.001, 0.0005]},
    }
    run = open_run(out)
    assert run.meta.config["from"] == origin, "the store alone says it, too"
    assert about(out)["run_id"] != about(source)["run_id"]
    # The warm-up goes on at half the rate: step 3 of 8, counted from 1.
    rates = run.update_metric("learning_rate", "shared").value_T
    np.testing.assert_allclose(rates, 0.0005 * 3 / 8, rtol=1e-6)
    assert main(["show", str(out), "--step", "3"]) == 0
    assert "begins at step 2 of" in " ".join(capsys.readouterr().out.split())


def test_it_can_be_killed_and_resumed_to_the_same_numbers(
    source: Path, tmp_path: Path, quiet: Progress
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    config = replace(config_of(source), entropy_coefficient=0.01, checkpoint_every=1)
    for out in (whole, killed):
        begin(source, 2, replace(config, out=out))
    train(replace(config, out=whole, resume=True), quiet)

    class Dying(Progress):
        def trained(self, record: object, policies: object) -> None:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train(replace(config, out=killed, resume=True), Dying(quiet.console))
    assert main(["train", "--resume", "--out", str(killed)]) == 0
    assert_same_tensors(adapters(killed, 4), adapters(whole, 4))
    np.testing.assert_array_equal(open_run(killed).evaluations().step_E, [2, 4])


def test_step_0_trains_from_the_beginning(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "anew"
    shutil.copytree(source, tmp_path / "bare", ignore=shutil.ignore_patterns("checkpoints"))
    given = ["train", "--from", str(tmp_path / "bare"), "--at", "0", "--out", str(out)]
    assert main(given) == 0
    assert_same_tensors(adapters(out, 4), adapters(source, 4))
    assert open_run(out).evaluations().step_E.tolist() == [0, 2, 4]


def test_an_isolated_role_begins_with_a_copy(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "isolated"
    anchors = ["--kl-coefficient", "generator", "0.05"]
    options = ["--routing", "isolated", "--steps", "3", *anchors, "--out", str(out)]
    assert main(["train", "--from", str(source), "--at", "2", *options]) == 0
    run = open_run(out)
    assert [policy.name for policy in run.policies] == ["generator", "aggregator"]
    assert config_of(out).kl_coefficient == {"generator": 0.05}, "pairs are given as a whole"
    np.testing.assert_array_equal(
        run.evaluations().correct_EPS[0], open_run(source).evaluations().correct_EPS[1]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "needs --at STEP: {source} has checkpoints with optimizer state of steps 2, 4, or 0"),
        (["--at", "1"], "no checkpoint to begin with at or before step 1 ({source} has"),
        (["--at", "-2"], "--at is -2; expected a training step"),
        (["--at", "4"], "--steps is 4 and the run would begin at step 4; expected more"),
        (["--at", "2", "--model", "tiny-1m"], "--model is tiny-1m, and {source} was trained with"),
        (["--at", "2", "--lora-rank", "8"], "--lora-rank is 8, and {source} was trained with 4"),
        (["--at", "2", "--preset", "clean"], "--preset clean each set all options"),
        (["--at", "2", "--resume"], "--resume continues a run as it was configured"),
        (["--at", "2", "--eval-problems", "0"], "--eval-problems is 0"),
        (["--at", "soon"], "--at"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_written(
    source: Path, tmp_path: Path, options: list[str], message: str, capsys: Output
) -> None:
    out = tmp_path / "out"
    assert status("train", "--from", str(source), "--out", str(out), *options) == 2
    told = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert message.format(source=source) in told
    assert not out.exists()


def test_other_mistakes_are_told(source: Path, tmp_path: Path, capsys: Output) -> None:
    def told(*options: str) -> str:
        assert main(["train", *options]) == 2
        return capsys.readouterr().err

    out = str(tmp_path / "out")
    assert "--at 2 is a step of a run; expected --from RUN" in told("--at", "2", "--out", out)
    begun = ("--from", str(source), "--at", "2")
    assert "expected --out with the directory" in told(*begun)
    assert "holds a run; nothing was overwritten" in told(*begun, "--out", str(source))
    nowhere = str(tmp_path / "nowhere")
    assert "cannot be trained again" in told("--from", nowhere, "--at", "2", "--out", out)
    assert "--workflow is solo, and" in told(*begun, "--out", out, "--workflow", "solo")
    assert not Path(out).exists()


def test_a_damaged_or_changed_source_is_refused(source: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    config = replace(config_of(copy), out=tmp_path / "out")
    state = checkpoint_path(copy, 2) / "shared" / STATE
    state.write_bytes(state.read_bytes()[:-1] + b"!")
    with pytest.raises(ValueError, match="is damaged: the checksum of"):
        begin(copy, 2, config)
    content = about(copy)
    content["data"]["sha256"] = "0" * 64  # type: ignore[index]
    (copy / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"problems of task 'arithmetic' have changed since"):
        begin(copy, 4, replace(config, steps=6))
    begin(copy, 4, replace(config, steps=6, eval_problems=5))  # asked for
    assert (tmp_path / "out" / "problems.jsonl.gz").is_file()


def test_an_older_run_lacks_options_and_is_read_with_what_was_done_then(
    source: Path, tmp_path: Path, quiet: Progress
) -> None:
    old = Path(shutil.copytree(source, tmp_path / "old"))
    content = about(old)
    del content["config"]["coherence_damping"], content["config"]["device"]  # type: ignore[index]
    (old / "config.json").write_text(json.dumps(content))
    assert config_of(old).coherence_damping == 0
    run = open_run_for_training(TrainConfig(out=old, resume=True, device="cpu", threads=1))
    run.store.close()
    run.judge.close()
    assert run.done == 4
    content["config"]["momentum"] = 0.9  # type: ignore[index]
    (old / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"later version wrote .* does not know: momentum; use"):
        train(TrainConfig(out=old, resume=True), quiet)


def test_changed_weight_decay_and_warm_up_reach_the_optimizer(source: Path) -> None:
    original = config_of(source)
    path = checkpoint_path(source, 2) / "shared" / STATE
    agents = [(agent.role, agent.number) for agent in original.build_workflow().agents]

    def state(**changed: float) -> dict[str, dict[str, list[dict[str, float]]]]:
        found = torch.load(path, weights_only=True)
        config = replace(original, **changed)  # type: ignore[arg-type]
        changed_state(found, original, config, agents, ("shared", "shared"))
        assert found["schedule"] == {"base": config.learning_rate, "ticks": 2}
        return found  # type: ignore[no-any-return]

    kept = torch.load(path, weights_only=True)["optimizer"]["param_groups"]
    assert state()["optimizer"]["param_groups"] == kept
    assert state(weight_decay=0.5)["optimizer"]["param_groups"][0]["weight_decay"] == 0.5
    state(warmup_steps=0)
    state(warmup_steps=16, learning_rate=3e-4)
