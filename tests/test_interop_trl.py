"""TRL's own GRPOTrainer on the tiny model, under the probe, against one gradient per agent."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

trl = pytest.importorskip(
    "trl", reason="trl is not installed; pip install 'gradlab[trl]'", exc_type=ImportError
)

from accelerate import PartialState  # noqa: E402
from accelerate.state import AcceleratorState  # noqa: E402
from accelerate.utils import DistributedType  # noqa: E402
from datasets import Dataset, IterableDataset  # noqa: E402
from peft import LoraConfig  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback  # noqa: E402

from analysis.diagnosis import diagnose  # noqa: E402
from gradlab.interop.trl.grpo import Watch, watch  # noqa: E402
from gradlab.interop.trl.turns import ROW, step_record  # noqa: E402
from gradlab.ledger import inflation  # noqa: E402
from gradlab.probe.ranks.fsdp1 import is_sharded  # noqa: E402
from gradlab.records import Agent  # noqa: E402
from gradlab.signature import token_counts  # noqa: E402
from gradlab.store.run import Run, open_run  # noqa: E402
from trainers.models.language import WEIGHTS  # noqa: E402
from trainers.watch.ledger import signature_counts  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]

TINY = WEIGHTS / "tiny-0.3m"
FIRST, SECOND, JUDGE = Agent("generator", 0), Agent("generator", 1), Agent("judge")
MARKS = {FIRST: "+", SECOND: "-", JUDGE: "*"}
"""Every agent has its own sign in its prompts, so that a test can tell whose row it is."""


def question(agent: Agent, a: int, b: int) -> str:
    return f"{a}{MARKS[agent]}{b}="


def dataset(num_problems: int = 4) -> Dataset:
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": question(agent, 3 + i, 11)}],
                "role": agent.role,
                "number": agent.number,
                "problem": i,
            }
            for i in range(num_problems)
            for agent in MARKS
        ]
    )


def scatter(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """A reward that varies within every group, whatever the model says."""
    return [sum(ids) % 7 / 7 for ids in completion_ids]


def is_even(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [float(sum(ids) % 2 == 0) for ids in completion_ids]


class KeepsBatches(trl.GRPOTrainer):  # type: ignore[misc] # untyped where trl is not installed
    """Remembers the micro-batches of the update under way."""

    batches: list[dict[str, Any]] = []  # noqa: RUF012 # replaced per instance

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self.batches = [*self.batches, inputs]
        loss: Tensor = super()._compute_loss(model, inputs)
        return loss


Make = Callable[..., KeepsBatches]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return partial(build, tmp_path / "trl")


def build(out: Path, data: Any = None, evaluation: Any = None, **settings: Any) -> KeepsBatches:
    """A trainer with LoRA, two micro-batches, checkpointing and a KL term."""
    config = {
        "output_dir": str(out),
        "per_device_train_batch_size": 6,
        "gradient_accumulation_steps": 2,
        "num_generations": 2,
        "max_completion_length": 8,
        "max_steps": 3,
        "beta": 0.1,
        "learning_rate": 1e-3,
        "temperature": 1.5,
        "gradient_checkpointing": True,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "disable_tqdm": True,
        "per_device_eval_batch_size": 6,
        **settings,
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    return KeepsBatches(
        model,
        [scatter, is_even],
        trl.GRPOConfig(**config),
        train_dataset=dataset() if data is None else data,
        eval_dataset=evaluation,
        processing_class=AutoTokenizer.from_pretrained(TINY),
        peft_config=LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.0),
    )


def agent_of(trainer: Any, prompt_ids: Tensor) -> Agent:
    """The agent of a row by what it was asked, not by its tag."""
    text = trainer.processing_class.decode(prompt_ids, skip_special_tokens=True)
    return next(agent for agent, mark in MARKS.items() if mark in text)


class Twin(TrainerCallback):  # type: ignore[misc] # untyped
    """Before every step: each agent's gradient by one backward of TRL's own loss on its rows."""

    def __init__(self, trainer: KeepsBatches) -> None:
        self.trainer = trainer
        self.grams: list[np.ndarray[Any, np.dtype[np.float64]]] = []

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        trainer = self.trainer
        parameters = [p for p in trainer.model.parameters() if p.requires_grad]
        gradients = []
        for agent in MARKS:
            total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
            for batch in trainer.batches:
                owners = [agent_of(trainer, ids) for ids in batch["prompt_ids"]]
                is_mine = torch.tensor([owner == agent for owner in owners])
                # TRL weighs tokens by this mask, and leaves its normalizer and attention alone.
                tools = batch["completion_mask"] * is_mine[:, None]
                loss = trl.GRPOTrainer._compute_loss(
                    trainer, trainer.model, {**batch, "tool_mask": tools}
                )
                parts = torch.autograd.grad(loss, parameters)
                total += torch.cat([part.flatten().double() for part in parts])
            gradients.append(total)
        stacked = torch.stack(gradients)
        self.grams.append((stacked @ stacked.T).numpy())
        trainer.batches = []


def train(trainer: KeepsBatches, **settings: Any) -> Watch:
    watching = watch(trainer, number_column="number", **settings)
    trainer.train()
    return watching


@pytest.mark.parametrize(
    ("loss_type", "settings"),
    [
        ("dapo", {}),
        ("grpo", {"sketch_buckets": 4093}),
        ("dapo", {"mode": "fused", "row_statistics": False}),
    ],
)
def test_grams_equal_one_backward_of_trls_loss_per_agent(
    make: Make, tmp_path: Path, loss_type: str, settings: dict[str, Any]
) -> None:
    trainer = make(loss_type=loss_type)
    twin = Twin(trainer)
    path = tmp_path / "a" / "run.zarr"
    watching = watch(trainer, number_column="number", record=path, **settings)
    trainer.add_callback(twin)
    trainer.train()
    probe = watching.probe
    assert probe is not None
    assert probe.worst_residual < 1e-5
    assert probe.agents == (FIRST, SECOND, JUDGE)
    run = open_run(tmp_path / "a")
    assert run.closed
    assert run.steps.tolist() == [1, 2, 3]
    gram_UAA = run.gram("shared").gram_UBAA.sum(axis=1)
    for measured, expected in zip(gram_UAA, twin.grams, strict=True):
        assert np.linalg.norm(expected) > 0
        np.testing.assert_allclose(measured, expected, atol=1e-5 * np.linalg.norm(expected))
    if "sketch_buckets" in settings:
        assert run.cosine_across("judge").shape == (3, 3)


def test_training_is_bitwise_that_of_an_unwatched_trainer(make: Make, tmp_path: Path) -> None:
    watched = make(max_steps=2)
    train(watched, record=tmp_path / "run.zarr")
    plain = make(max_steps=2)  # sets the seed
    plain.train()
    expected = plain.model.state_dict()
    for name, value in watched.model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_the_store_tells_of_each_role_what_trl_logs_of_all(make: Make, tmp_path: Path) -> None:
    trainer = make(logging_steps=1)
    train(trainer, record=tmp_path / "run.zarr", correct="is_even", problem_column="problem")
    run = open_run(tmp_path)
    logs = [entry for entry in trainer.state.log_history if "reward" in entry]
    turns = np.array([run.ledger("turns", role).value_T for role in run.roles])
    tokens = np.array([run.ledger("response_tokens", role).value_T for role in run.roles])
    assert turns.sum(axis=0).tolist() == [12, 12, 12]
    for name, key, weights in (
        ("reward_mean", "reward", turns),
        ("own_accuracy", "rewards/is_even/mean", turns),
        ("length_mean", "completions/mean_length", turns),
        ("truncated", "completions/clipped_ratio", turns),
        ("zero_variance_groups", "frac_reward_zero_std", turns),
    ):
        values = np.array([run.ledger(name, role).value_T for role in run.roles])
        expected = [entry[key] for entry in logs]
        np.testing.assert_allclose(
            np.nansum(values * weights, axis=0) / weights.sum(axis=0), expected, rtol=1e-5
        )
    flat, right, wrong = (
        np.array([run.ledger(name, role).value_T for role in run.roles])
        for name in ("zero_variance_groups", "all_right_groups", "all_wrong_groups")
    )
    np.testing.assert_allclose(right + wrong, flat)  # the reward is the grade
    # TRL averages these over micro-batches, whose numbers of tokens differ a little.
    for name, key in (("entropy", "entropy"), ("kl", "kl")):
        values = np.array([run.ledger(name, role).value_T for role in run.roles])
        mean = np.nansum(values * tokens, axis=0) / tokens.sum(axis=0)
        np.testing.assert_allclose(mean, [entry[key] for entry in logs], rtol=0.2, atol=1e-7)
    weights = np.array([run.ledger("loss_weight", role).value_T for role in run.roles])
    np.testing.assert_allclose(np.nansum(weights, axis=0), 1.0, rtol=1e-6)
    assert np.isfinite(run.update_metric("loss", "shared").value_T).all()
    assert run.row_statistic("rows", "judge").value_T.max() > 0
    split = run.sign_split("judge")
    assert split["positive"].value_T.max() > 0
    assert split["negative"].value_T.max() > 0
    assert {"trl", "torch"} <= set(run.meta.versions)


def test_reused_generations_are_told_by_their_ratios(make: Make, tmp_path: Path) -> None:
    trainer = make(num_iterations=2, max_steps=4, learning_rate=3e-2, logging_steps=1)
    train(trainer, record=tmp_path / "run.zarr")
    run = open_run(tmp_path)
    spread = np.array([run.ledger("ratio_std", role).value_T for role in run.roles])
    assert (spread[:, [0, 2]] < 1e-5).all()  # generated by the policy that is trained
    assert (spread[:, [1, 3]] > 1e-2).all()  # by the one before
    tokens = np.array([run.ledger("response_tokens", role).value_T for role in run.roles])
    clipped = np.array([run.ledger("clip_fraction", role).value_T for role in run.roles])
    logs = [entry for entry in trainer.state.log_history if "reward" in entry or "kl" in entry]
    expected = [entry["clip_ratio/region_mean"] for entry in logs[:4]]
    assert expected[1] > 0
    mean = (clipped * tokens).sum(axis=0) / tokens.sum(axis=0)
    np.testing.assert_allclose(mean, expected, rtol=0.2)


def test_evaluations_are_recorded_per_row_of_the_evaluation_dataset(
    make: Make, tmp_path: Path
) -> None:
    trainer = make(
        evaluation=dataset(3), eval_strategy="steps", eval_steps=1, max_steps=2, eval_on_start=True
    )
    train(trainer, record=tmp_path / "run.zarr", correct="is_even")
    evaluations = open_run(tmp_path).evaluations()
    logs = [
        entry["eval_rewards/is_even/mean"]
        for entry in trainer.state.log_history
        if "eval_reward" in entry
    ]
    assert evaluations.step_E.tolist() == [0, 1, 2]
    assert evaluations.correct_EPS.shape == (3, 9, 2)
    np.testing.assert_allclose(evaluations.accuracy().value_T, logs, rtol=1e-6)
    own = evaluations.role_correct_ERP
    assert np.isfinite(own[0]).sum(axis=1).tolist() == [6, 3]  # two generators and one judge


def test_an_evaluation_of_another_dataset_is_left_alone(make: Make, tmp_path: Path) -> None:
    plain = dataset(2).remove_columns(["role", "number"])
    trainer = make(evaluation=dataset(3), eval_strategy="steps", eval_steps=2, max_steps=2)
    watch(trainer, number_column="number", record=tmp_path / "run.zarr", correct="is_even")
    trainer.add_callback(Evaluates(trainer, plain))
    trainer.train()
    assert open_run(tmp_path).evaluations().step_E.tolist() == [2]
    without = make(evaluation=plain, eval_strategy="steps", eval_steps=1, max_steps=1)
    train(without, record=None)  # no grades are asked for, so its rows need no role
    with pytest.raises(ValueError, match="no value in the column 'role'"):
        watch(make(evaluation=plain), correct="is_even")


class Evaluates(TrainerCallback):  # type: ignore[misc] # untyped
    """Evaluates something else in the middle of training."""

    def __init__(self, trainer: Any, data: Any) -> None:
        self.trainer, self.data = trainer, data

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.trainer.evaluate(self.data)


def test_such_a_run_is_diagnosed(make: Make, tmp_path: Path) -> None:
    train(make(), record=tmp_path / "run.zarr")
    assert "evaluations" in diagnose(open_run(tmp_path)).verdict


def test_a_resumed_run_continues_the_store_and_the_split(make: Make, tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
    whole = make(max_steps=4, output_dir=str(tmp_path / "whole"), **settings)
    expected = train(whole, record=tmp_path / "whole.zarr")
    first = make(max_steps=2, output_dir=str(tmp_path / "parts"), **settings)
    train(first, record=tmp_path / "parts.zarr")
    second = make(max_steps=4, output_dir=str(tmp_path / "parts"), **settings)
    watching = watch(second, number_column="number", record=tmp_path / "parts.zarr")
    second.train(resume_from_checkpoint=True)
    assert open_run(tmp_path / "parts.zarr").steps.tolist() == [1, 2, 3, 4]
    assert watching.probe is not None
    assert expected.probe is not None
    assert watching.probe.num_updates == 4
    assert "attached to an optimizer" not in watching.probe.report()
    a, b = (
        open_run(tmp_path / name).update_gram("shared") for name in ("whole.zarr", "parts.zarr")
    )
    np.testing.assert_allclose(a[:2], b[:2])
    assert np.isfinite(b).all()


def test_a_custom_rollout_may_bring_the_roles(make: Make) -> None:
    data = dataset().remove_columns(["role", "number"])
    trainer = make(data, max_steps=1)

    def rollout(prompts: list[Any], trainer: Any) -> dict[str, list[Any]]:
        texts = [prompt[0]["content"] for prompt in prompts]
        owners = [next(a for a, mark in MARKS.items() if mark in text) for text in texts]
        ids = trainer.processing_class(texts)["input_ids"]
        return {
            "prompt_ids": ids,
            "completion_ids": [[*row[:1], 7 + i % 3, 1] for i, row in enumerate(ids)],
            "logprobs": None,  # type: ignore[dict-item] # as TRL has it without vLLM
            "role": [owner.role for owner in owners],
            "number": [owner.number for owner in owners],
        }

    trainer.rollout_func = rollout
    with pytest.raises(ValueError, match=r"pass agents=\[Agent"):
        watch(trainer, record=None)
    watching = train(trainer, agents=[*MARKS], record=None)
    assert watching.probe is not None
    assert watching.probe.worst_residual < 1e-5


def shard_on_cpus() -> None:
    """accelerate takes FSDP for several GPUs, and DDP for CPUs whatever it is told: mislead it."""

    def as_if_on_gpus(self: Any, *args: Any, **kwargs: Any) -> None:
        shared = PartialState._shared_state
        if shared["distributed_type"] == DistributedType.MULTI_CPU:
            shared["distributed_type"] = DistributedType.MULTI_GPU
            shared["device"] = torch.device("cpu")
        original(self, *args, **kwargs)

    original = AcceleratorState.__init__
    AcceleratorState.__init__ = as_if_on_gpus


def two_processes(rank: int, directory: Path, port: int, fsdp_version: int | None) -> None:
    torch.set_num_threads(1)
    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in (world | address).items()})
    warnings.simplefilter("ignore")
    settings: dict[str, Any] = {}
    if fsdp_version is not None:
        shard_on_cpus()
        plugin = {
            "version": fsdp_version,
            "transformer_layer_cls_to_wrap": ["Qwen3DecoderLayer"],
            "cpu_ram_efficient_loading": False,
            "sync_module_states": False,
            "use_orig_params": True,
        }
        settings = {"fsdp": True, "fsdp_config": plugin, "gradient_checkpointing": False}
    trainer = build(
        directory / "trl",
        evaluation=dataset(3),
        eval_strategy="steps",
        eval_steps=1,
        per_device_eval_batch_size=2,
        ddp_backend="gloo",
        ddp_find_unused_parameters=False,
        **settings,
    )
    watching = train(trainer, record=directory / "run.zarr", correct="is_even")
    trainer.evaluate()  # at a step that has its evaluation: no rank may wait for another
    assert watching.probe is not None
    assert watching.probe.worst_residual < 1e-5
    assert watching.probe.last is not None
    assert watching.probe.last.metrics.coverage == 1
    if fsdp_version is not None:
        assert trainer.accelerator.distributed_type == DistributedType.FSDP
        assert any(is_sharded(p) for p in watching.probe._instrument.layout.parameters)
    torch.distributed.destroy_process_group()


def on_two_processes(directory: Path, fsdp_version: int | None = None) -> Run:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    directory.mkdir()
    torch.multiprocessing.spawn(two_processes, args=(directory, port, fsdp_version), nprocs=2)
    return open_run(directory)


@pytest.mark.slow
def test_two_processes_record_all_rows_once(tmp_path: Path) -> None:
    run = on_two_processes(tmp_path / "ddp")
    turns = sum(run.ledger("turns", role).value_T for role in run.roles)
    assert turns.tolist() == [24, 24, 24]
    assert run.update_metric("rows", "shared").value_T.tolist() == [24, 24, 24]
    evaluations = run.evaluations()
    assert evaluations.step_E.tolist() == [1, 2, 3]
    assert evaluations.num_samples_E().tolist() == [18, 18, 18]
    for version in (1, 2):
        sharded = on_two_processes(tmp_path / f"fsdp{version}", version)
        assert sharded.gram("shared").blocks == run.gram("shared").blocks
        for name in ("gram", "update_gram", "transfer"):
            mine, theirs = (getattr(r, name)("shared") for r in (sharded, run))
            if name == "gram":
                mine, theirs = mine.gram_UBAA, theirs.gram_UBAA
            largest = np.abs(theirs).max()
            np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-4 * largest, err_msg=name)


# What is refused.


def test_a_dataset_without_the_role_column_is_refused(make: Make) -> None:
    with pytest.raises(ValueError, match=r"no column 'agent'.*'role', 'number'.*role_column="):
        watch(make(), role_column="agent")
    with pytest.raises(ValueError, match=r"no column 'index'.*number_column="):
        watch(make(), number_column="index")


def test_an_unknown_role_is_named_before_anything_is_generated(make: Make) -> None:
    trainer = make()
    watch(trainer, agents=[FIRST], record=None)
    with pytest.raises(ValueError, match=r"rows of judge\[0\].*agents \['generator\[0\]'\]"):
        trainer.train()


def test_a_row_without_a_role_is_refused(make: Make) -> None:
    rows = [{**row, "role": None} for row in dataset()]
    with pytest.raises(ValueError, match=r"no value in the column 'role'"):
        watch(make(Dataset.from_list(rows)))


def test_a_stream_needs_its_agents_named(make: Make) -> None:
    stream = IterableDataset.from_generator(lambda: iter(dataset()))
    with pytest.raises(ValueError, match=r"pass agents="):
        watch(make(stream))


@pytest.mark.parametrize(
    ("settings", "watched", "message"),
    [
        ({"remove_unused_columns": True}, {}, "remove_unused_columns=False"),
        ({}, {"correct": "exact"}, r"called 'exact'; there are \['scatter', 'is_even'\]"),
        ({}, {"record": "runs/a"}, "ends in .zarr"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    make: Make, settings: dict[str, Any], watched: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        watch(make(**settings), **watched)


def test_a_trainer_is_watched_once(make: Make) -> None:
    trainer = make()
    watch(trainer, record=None)
    with pytest.raises(ValueError, match="watched already"):
        watch(trainer, record=None)
    with pytest.raises(ValueError, match="GRPOTrainer, got object"):
        watch(object())  # type: ignore[arg-type] # on purpose


def test_a_trained_fused_head_is_named(make: Make, tmp_path: Path) -> None:
    """TRL multiplies by the head's weight outside its module: full fine-tuning is not covered."""
    trainer = make(max_steps=1)
    for parameter in trainer.model.get_output_embeddings().parameters():
        parameter.requires_grad_(True)
    with pytest.warns(UserWarning, match=r"Not explained: .*embed_tokens\.weight"):
        train(trainer, record=tmp_path / "run.zarr")


def test_signatures_are_those_of_our_own_runs(make_row_of: Callable[[list[int]], Any]) -> None:
    ids = [5, 7, 7, 99, 12345]
    counts = token_counts(np.array(ids))
    np.testing.assert_allclose(counts, signature_counts([make_row_of(ids)]))


def test_a_ledger_counts_only_what_is_known() -> None:
    turns = np.full(4, np.nan, dtype=ROW)
    turns["agent"] = [0, 0, 2, 2]
    turns["reward"] = [1.0, 0.0, np.nan, 1.0]
    turns["outcome"] = [1.0, 0.0, np.nan, np.nan]
    turns["tokens"], turns["prompt_tokens"], turns["weight"] = [4, 2, 1, 1], 3, [4, 2, 1, 1]
    turns["entropy"], turns["logprob"], turns["advantage"] = 1.0, -3.0, [1, -1, 0, 0]
    record = step_record(7, 0.0, [*MARKS], turns, {}, {"step_seconds": 2.0})
    generator, judge = record.roles["generator"], record.roles["judge"]
    assert (generator.reward_mean, judge.reward_mean) == (0.5, 1.0)
    assert generator.own_accuracy == 0.5
    assert np.isnan(judge.own_accuracy)
    assert (generator.loss_weight, judge.loss_weight) == (0.75, 0.25)  # 6 and 2 of 8 tokens
    assert generator.entropy == pytest.approx(2 / 6)  # nats per token
    assert generator.perplexity == pytest.approx(np.exp(1))  # -(-3 - 3) / 6 nats per token
    assert np.isnan(generator.kl)
    rewards = np.array([1.0, 0.0, 1.0])
    expected = inflation(rewards, rewards[:2])
    assert generator.inflation == pytest.approx(expected)
    assert record.run.tokens == 4 * 3 + 8


def test_a_role_without_rows_has_an_empty_ledger() -> None:
    turns = np.zeros(0, dtype=ROW)
    record = step_record(1, 0.0, [*MARKS], turns, {}, {})
    assert record.roles["judge"].turns == 0
    assert np.isnan(record.roles["judge"].reward_mean)


@pytest.fixture
def make_row_of() -> Callable[[list[int]], Any]:
    from conftest import make_row, make_turn

    return lambda ids: make_row(make_turn(response_ids=tuple(ids)))


def test_importing_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        import gradlab.interop.trl.grpo  # noqa: F401
