"""What a long run meets: full and read-only disks, damaged checkpoints, batches without a signal.

Kills are in test_kill.py; rows and journals in test_writer.py.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import SmallConfig
from test_train import adapters, assert_same_runs, assert_same_states, signal_after_step
from transformers import AutoTokenizer

from gradlab.records import RunLedger, StepRecord
from gradlab.run_directory import checkpoint_path
from gradlab.store.run import open_run
from gradlab.store.writer import RunStore
from trainers.config import TrainConfig
from trainers.grading.pool import Worker
from trainers.learn import TrainingError
from trainers.models.language import load_language_model
from trainers.models.local_sampler import LocalSampler
from trainers.rundir.checkpoint import CheckpointError, last_checkpoint
from trainers.rundir.transcripts import read_episodes
from trainers.training import Run, open_run_for_training, train, train_step
from trainers.watch.progress import Progress

# Disks that refuse.


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """Every write beyond `num_bytes` of a file fails, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def two_steps(small_config: SmallConfig, quiet: Progress) -> TrainConfig:
    """A run of two steps, a checkpoint after each, that can be extended."""
    config = small_config(steps=2, checkpoint_every=1, problems_per_step=1, eval_problems=2)
    train(config, quiet)
    return config


class OnFullDisk(Progress):
    """From the moment the run is open, no file can grow beyond `limit` bytes."""

    limit = 0

    @contextmanager
    def showing(self, config: TrainConfig, done: int) -> Iterator[None]:
        with files_of_at_most(self.limit), super().showing(config, done):
            yield


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (300, r"cannot write to \S+ \(File too large\).*from the checkpoint of step 2"),
        (20_000, r"cannot write the checkpoint of step 3 .*File too large.*one is of step 2"),
    ],
    ids=["episodes", "checkpoint"],
)
def test_a_full_disk_stops_the_run_which_continues_once_there_is_room(
    two_steps: TrainConfig, quiet: Progress, tmp_path: Path, limit: int, message: str
) -> None:
    straight = tmp_path / "straight"
    shutil.copytree(two_steps.out, straight)
    more = TrainConfig(out=two_steps.out, resume=True, extend_to=3)
    full = OnFullDisk(quiet.console)
    full.limit = limit
    with pytest.raises((TrainingError, CheckpointError), match=message) as caught:
        train(more, full)
    assert "gradlab train --resume --out" in str(caught.value)
    assert last_checkpoint(two_steps.out) == 2
    assert open_run(two_steps.out).steps.tolist()[:2] == [1, 2]
    assert not list(two_steps.out.rglob("*partial"))
    train(more, quiet)
    train(replace(more, out=straight), quiet)
    assert_same_runs(straight, two_steps.out)
    assert_same_states(straight, two_steps.out, 3)


def append_and_fill(path: Path, record: StepRecord) -> None:
    """The last row goes to the journal, and nothing after it goes anywhere."""
    with RunStore.resume(path, after_step=2) as store:
        store.append(record)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))


def test_a_store_that_cannot_be_closed_keeps_its_journal_for_the_next_one(
    two_steps: TrainConfig,
) -> None:
    path = two_steps.out / "run.zarr"
    record = StepRecord(3, 0.0, RunLedger(accuracy=0.5), {})
    with pytest.raises(OSError, match="File too large"), files_of_at_most(6_000):
        append_and_fill(path, record)
    assert open_run(two_steps.out).steps.tolist() == [1, 2, 3]
    with files_of_at_most(10), pytest.raises(ValueError, match="make room"):
        RunStore.resume(path, after_step=3)
    with RunStore.resume(path, after_step=3):
        assert open_run(two_steps.out).steps.tolist() == [1, 2, 3]


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up the rights of root for a while")
def test_a_read_only_run_is_read_and_not_continued(two_steps: TrainConfig, quiet: Progress) -> None:
    directory = Path(tempfile.mkdtemp(prefix="gradlab-"))  # pytest's own is closed to others
    run = directory / "run"
    shutil.copytree(two_steps.out, run)
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    os.seteuid(65534)
    try:
        assert open_run(run).steps.tolist() == [1, 2]
        with pytest.raises(ValueError, match=r"cannot continue the run store .*make it writable"):
            train(TrainConfig(out=run, resume=True, extend_to=3), quiet)
    finally:
        os.seteuid(0)
    assert open_run(run).closed
    train(TrainConfig(out=run, resume=True, extend_to=3), quiet)
    shutil.rmtree(directory)


# Damaged checkpoints.


def damage(run: Path, step: int, name: str, how: str) -> None:
    path = checkpoint_path(run, step) / name
    data = bytearray(path.read_bytes())
    if how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "flipped":  # one bit of a weight: the file still loads
        data[-5] ^= 1
        path.write_bytes(data)
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["cut", "flipped", "missing"])
@pytest.mark.parametrize(
    "name",
    ["aggregator/adapter_model.safetensors", "generator/trainer_state.pt", "checkpoint.json"],
)
def test_a_damaged_checkpoint_is_passed_over_and_told(
    two_steps: TrainConfig, quiet: Progress, tmp_path: Path, name: str, how: str
) -> None:
    straight = tmp_path / "straight"
    shutil.copytree(two_steps.out, straight)
    if (name, how) == ("checkpoint.json", "flipped"):
        pytest.skip("a bit of its white space means nothing")
    damage(two_steps.out, 2, name, how)
    more = TrainConfig(out=two_steps.out, resume=True)
    told = r"step-000002 is (damaged|not whole): .*Continuing from the checkpoint of step 1 instead"
    with pytest.warns(RuntimeWarning, match=told):
        run = open_run_for_training(more)
    assert run.done == 1
    run.store.close()
    assert open_run(two_steps.out).steps.tolist() == [1], "the record was cut back, too"
    with pytest.warns(RuntimeWarning, match=told):
        train(more, quiet)
    assert_same_runs(straight, two_steps.out)
    assert_same_states(straight, two_steps.out, 2)


def test_without_a_checkpoint_left_nothing_is_thrown_away(
    two_steps: TrainConfig, quiet: Progress
) -> None:
    for step in (1, 2):
        damage(two_steps.out, step, "generator/trainer_state.pt", "cut")
    with pytest.raises(CheckpointError, match=r"no checkpoint to continue.*step-000002.*000001"):
        train(TrainConfig(out=two_steps.out, resume=True, extend_to=3), quiet)
    run = open_run(two_steps.out)
    assert run.closed
    assert run.steps.tolist() == [1, 2]


def test_checkpoints_whose_state_was_not_kept_are_no_way_back(
    small_config: SmallConfig, quiet: Progress
) -> None:
    config = small_config(
        steps=2, checkpoint_every=1, problems_per_step=1, eval_problems=2, keep_states=1
    )
    train(config, quiet)
    damage(config.out, 2, "generator/trainer_state.pt", "cut")
    with pytest.raises(CheckpointError, match="--keep-states keeps those of the newest only"):
        train(TrainConfig(out=config.out, resume=True), quiet)


def test_a_store_that_was_taken_away_is_missed(two_steps: TrainConfig, quiet: Progress) -> None:
    shutil.rmtree(two_steps.out / "run.zarr")
    with pytest.raises(ValueError, match=r"run\.zarr is missing although the run has checkpoints"):
        train(TrainConfig(out=two_steps.out, resume=True), quiet)


# Preemption.


def test_sigterm_checkpoints_as_ctrl_c_does(tmp_path: Path, quiet: Progress) -> None:
    out = tmp_path / "run"
    status, said = signal_after_step(out, steps=20, step=2, number=signal.SIGTERM)
    assert status == 143, said
    stopped = last_checkpoint(out)
    assert stopped is not None
    assert 2 <= stopped < 20
    assert f"stopped after step {stopped}; continue with: gradlab train --resume --out" in said
    run = open_run(out)
    assert run.closed
    assert run.steps[-1] == stopped


def test_what_grades_outlives_the_signal_that_a_cluster_sends_to_all() -> None:
    worker = Worker()
    request = {"rule": "math", "answer": "0.5", "reference": "1/2", "cpu_seconds": 20}
    assert worker.ask(request, 60)["is_correct"]
    os.kill(worker.process.pid, signal.SIGTERM)
    assert worker.ask(request, 60)["is_correct"]
    worker.end()


# Batches that teach nothing.


def assert_finite(run: Run) -> None:
    for policy in run.policies.values():
        assert all(bool(p.isfinite().all()) for p in policy.parameters)
        for state in policy.optimizer.state.values():
            assert all(bool(value.isfinite().all()) for value in state.values())


def say_only(run: Run, token: int) -> None:
    """Make every policy answer with one token: its logit is far above all others."""

    def force(module: torch.nn.Module, inputs: object, logits: torch.Tensor) -> torch.Tensor:
        forced = torch.zeros_like(logits)
        forced[..., token] = 60.0
        return logits + forced

    run.languages[run.config.model].model.get_output_embeddings().register_forward_hook(force)


@pytest.mark.parametrize("routing", ["shared", "isolated"])
@pytest.mark.parametrize("answer", ["wrong", "right"])
def test_a_batch_of_equal_rewards_moves_nothing(
    small_config: SmallConfig, answer: str, routing: str
) -> None:
    """Every advantage is 0, so every gradient is: a residual of 0, and no NaN in the optimizer."""
    config = small_config(routing=routing, weight_decay=0)
    run = open_run_for_training(config)
    if answer == "right":
        run.judge.__class__ = type(
            "Generous", (type(run.judge),), {"grades": lambda self, asked: [True] * len(asked)}
        )
    else:
        say_only(run, run.languages[run.config.model].sampling.end_ids[0])
    before = [p.detach().clone() for policy in run.policies.values() for p in policy.parameters]
    with run.store:
        record = train_step(run, 1)
        run.store.append(record)
    assert record.run.accuracy == (answer == "right")
    assert_finite(run)
    after = [p for policy in run.policies.values() for p in policy.parameters]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    read = open_run(config.out)
    for role in read.roles:
        assert read.ledger("zero_variance_groups", role).value_T.tolist() == [1]
        assert read.ledger("advantage_std", role).value_T.tolist() == [0]
    for policy in read.policies:
        assert (read.update_metric("residual", policy.name).value_T == 0).all()
        assert (read.gram(policy.name).gram_UBAA == 0).all()
        assert (read.update_metric("grad_norm", policy.name).value_T == 0).all()


def test_empty_responses_are_rows_like_any_other(small_config: SmallConfig) -> None:
    """The end token comes first: one trained token a row, nothing to read in it."""
    config = small_config()
    run = open_run_for_training(config)
    say_only(run, run.languages[run.config.model].sampling.end_ids[0])
    with run.store:
        record = train_step(run, 1)
    assert_finite(run)
    for ledger in record.roles.values():
        assert ledger.length_mean == 1
        assert ledger.parse_failures == 1
        assert ledger.truncated == 0
        assert ledger.own_accuracy == 0
    said = [*read_episodes(config.out / "episodes" / "step-000001.jsonl.gz")]
    assert {turn["response"] for episode in said for turn in episode["turns"]} == {""}


def test_a_step_whose_every_episode_is_given_up_is_recorded_and_the_run_goes_on(
    small_config: SmallConfig, quiet: Progress
) -> None:
    config = small_config(max_prompt_tokens=1)
    train(config, quiet)
    run = open_run(config.out)
    assert run.steps.tolist() == [1, 2]
    assert run.run_metric("episodes").value_T.tolist() == [16, 16]
    assert run.run_metric("failed_episodes").value_T.tolist() == [16, 16]
    assert run.run_metric("accuracy").value_T.tolist() == [0, 0]
    for role in run.roles:
        assert run.ledger("turns", role).value_T.tolist() == [0, 0]
        assert len(run.gram(run.policy_of(role).name).step_U) == 0
    assert run.evaluations().accuracy().value_T.tolist() == [0, 0]
    first, last = (adapters(config.out, 2) for _ in range(2))
    assert first.keys() == last.keys()
    train(TrainConfig(out=config.out, resume=True, extend_to=3), quiet)  # AdamW has no moments yet
    assert open_run(config.out).steps.tolist() == [1, 2, 3]


def test_some_episodes_given_up_leave_the_others_to_learn_from(small_config: SmallConfig) -> None:
    """An aggregator is shown three solutions: its prompts are the longest of the workflow."""
    config = small_config(problems_per_step=8)
    run = open_run_for_training(config)
    with run.store:
        [(name, language)] = run.languages.items()
        prompts = [
            len(language.encode(language.prompts.generate(problem))) for problem in run.task.train
        ]
        shorter = replace(language, max_prompt_tokens=max(prompts) + 20)
        run.sampler = LocalSampler({name: shorter})
        record = train_step(run, 1)
    assert_finite(run)
    assert 0 <= record.run.failed_episodes <= record.run.episodes
    given_up = [
        episode
        for episode in read_episodes(config.out / "episodes" / "step-000001.jsonl.gz")
        if episode["failure"]
    ]
    assert len(given_up) == record.run.failed_episodes
    assert all("limit" in episode["failure"] for episode in given_up)


def test_a_tokenizer_without_pad_token_trains(
    small_config: SmallConfig, quiet: Progress, char_model: Path, tmp_path: Path
) -> None:
    """Padding is masked: which token pads changes no number."""
    bare = tmp_path / "bare"
    shutil.copytree(char_model, bare)
    tokenizer = AutoTokenizer.from_pretrained(char_model)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(bare)
    assert AutoTokenizer.from_pretrained(bare).pad_token_id is None
    plain, padless = (
        small_config(out=tmp_path / name, model=str(where), steps=1)
        for name, where in (("plain", char_model), ("padless", bare))
    )
    assert load_language_model(padless, ["solver"]).sampling.pad_id == tokenizer.eos_token_id
    for config in (plain, padless):
        train(config, quiet)
    for name, tensor in adapters(plain.out, 1).items():
        torch.testing.assert_close(tensor, adapters(padless.out, 1)[name], rtol=1e-4, atol=1e-6)


def children() -> set[str]:
    """Ids of the processes that this one has started and that still exist."""
    return {
        child
        for thread in Path("/proc/self/task").iterdir()
        for child in (thread / "children").read_text().split()
    }


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux")
@pytest.mark.parametrize("is_refused", [True, False])
def test_no_process_is_left_by_a_run_of_programs(
    small_config: SmallConfig, quiet: Progress, tmp_path: Path, is_refused: bool
) -> None:
    """The sandbox is started before the directory is, which may be refused."""
    tests = [{"input": "2\n", "output": "4\n"}]
    lines = [json.dumps({"question": f"Print {i}.", "tests": tests}) for i in range(4)]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    config = small_config(
        task="file", data=tmp_path / "mine.jsonl", steps=1, problems_per_step=1, eval_problems=1
    )
    before = children()
    if is_refused:
        config.out.mkdir(parents=True)
        (config.out / "letter.txt").write_text("not a run")
        with pytest.raises(ValueError, match="is not empty and holds no run") as held:
            train(config, quiet)
        assert held.tb is not None  # as long as its frames are held nothing is collected
    else:
        train(config, quiet)
        assert "sandbox level" in open_run(config.out).meta.versions["sandbox"]
    assert children() <= before
