"""A dry run's numbers against those of models that were really built and trained."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from conftest import SmallConfig
from transformers import AutoModelForCausalLM

from gradlab.commands.main import main
from gradlab.store.run import open_run
from trainers.models.architectures import KNOWN, qwen3
from trainers.models.language import (
    load_language_model,
    load_language_models,
    load_tokenizer,
)
from trainers.models.local_sampler import LocalSampler
from trainers.policies import build_policies
from trainers.presets import cell
from trainers.preview.dryrun import described, dry_run, size
from trainers.preview.estimates import (
    Lengths,
    evaluations_of,
    largest_wave,
    lengths_of,
    memory_of,
    plan,
)
from trainers.preview.times import CARD, Load, Speed, speed_here, times_of
from trainers.rundir.transcripts import read_episodes
from trainers.training import task_of, train
from trainers.watch.progress import Progress
from trainers.workflows import WORKFLOWS


def test_parameters_and_policies_are_those_of_the_loaded_model(small_config: SmallConfig) -> None:
    config = small_config(routing="isolated", workflow="evaluator_optimizer")
    found = plan(config)
    language = load_language_model(config, ["generator", "evaluator"])
    policies = build_policies({config.model: language}, config)
    assert found.policies == tuple(policy.meta() for policy in policies.values())
    trained = sum(p.num_parameters for p in found.policies)
    assert found.parameters + trained == sum(p.numel() for p in language.model.parameters())


@pytest.mark.parametrize(
    "options", [{}, {"sketch_buckets": 4093, "effective": True}, {"probe": "off"}], ids=str
)
def test_updates_and_store_are_those_of_a_run(
    small_config: SmallConfig, quiet: Progress, options: dict[str, object]
) -> None:
    config = small_config(routing="isolated", rows_per_update=16, steps=2, eval_every=1, **options)
    found = plan(config)
    run = open_run(train(config, quiet))
    for policy in run.policies:
        is_measured = config.probe != "off"
        assert (
            len(run.gram(policy.name).step_U)
            == is_measured * found.updates[policy.name] * config.steps
        )
    assert len(run.evaluations().step_E) == 3
    arrays = zarr.open_group(config.out / "run.zarr", mode="r").members(max_depth=None)
    rows = {"train/": "step", "updates/": "update", "eval/": "eval"}
    written = sum(
        member.nbytes
        for path, member in arrays
        if isinstance(member, zarr.Array)
        and any(path.startswith(group) for group in rows)
        and (member.metadata.dimension_names or ("",))[0] in rows.values()
    )
    assert found.disk.store == written


def test_the_last_step_is_evaluated_too(small_config: SmallConfig) -> None:
    whole, more = (small_config(steps=steps, eval_every=2) for steps in (2, 3))
    assert (evaluations_of(whole), evaluations_of(more)) == (2, 3)


def test_a_wave_holds_one_turn_of_every_episode(small_config: SmallConfig) -> None:
    """Rounds follow each other; parallel agents do not, and evaluations are rollouts too."""
    config = small_config(
        problems_per_step=2, samples=4, eval_problems=5, eval_samples=1, votes=3, rounds=3
    )
    assert largest_wave(config) == 2 * 4 * 3
    assert largest_wave(replace(config, workflow="evaluator_optimizer")) == 2 * 4
    assert largest_wave(replace(config, eval_problems=20)) == 20 * 3


@pytest.mark.parametrize("name", KNOWN)
def test_the_known_shapes_have_the_published_sizes(name: str) -> None:
    """Parameters without embeddings as the model cards state them: 0.44B, 1.4B, 3.6B."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(qwen3(name))  # type: ignore[no-untyped-call]
    total = sum(p.numel() for p in model.parameters())
    outside = total - model.get_input_embeddings().weight.numel()
    published = {"0.6B": (0.6, 0.44), "1.7B": (1.72, 1.4), "4B": (4.0, 3.6)}
    expected = published[name.rpartition("-")[2]]
    assert (round(total / 1e9, 1), round(outside / 1e9, 1)) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_activations_against_what_autograd_keeps(
    small_config: SmallConfig, is_checkpointed: bool
) -> None:
    config = replace(
        small_config(),
        max_prompt_tokens=1024, micro_tokens=1024, gradient_checkpointing=is_checkpointed,
    )  # fmt: skip
    shapes = qwen3(
        KNOWN[0], hidden_size=128, intermediate_size=384, num_hidden_layers=6, head_dim=32,
        num_attention_heads=4, num_key_value_heads=2, vocab_size=256,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(shapes)  # type: ignore[no-untyped-call]
    if is_checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model.model(torch.zeros(1, 1024, dtype=torch.long), use_cache=False)
    assert output.last_hidden_state.requires_grad
    estimate = memory_of(config, shapes, 0, [], Lengths(1024, 1024, 16, ""))
    logits = min(1024, config.max_response_tokens) * shapes.vocab_size * 16
    if is_checkpointed:  # one layer is recomputed at a time; it is in the estimate, not in `kept`
        assert sum(kept.values()) <= estimate.activations
    else:
        assert sum(kept.values()) == pytest.approx(estimate.activations - logits, rel=0.25)


def test_copies_with_merged_adapters_are_as_large_as_is_said(small_config: SmallConfig) -> None:
    """All that a wave of both policies leaves behind, and nothing where it leaves nothing."""
    config = small_config(routing="isolated", policy_model={"aggregator": "tiny-1m"})
    languages = load_language_models(config)
    sampler = LocalSampler(languages, config.merges_adapters)
    sampler.ask({speaker: [(5, 6)] for speaker in set(config.speakers().values())}, (0,))
    held = sum(
        layer.weight.nbytes for copies in sampler.copies.values() for layer in copies.values()
    )
    found = plan(config)
    assert found.memory.merged == held > 0
    assert f"holds {size(held)} more: copies" in "\n".join(described(config, found))
    for other in (replace(config, sampler_merge=False), replace(config, dtype="bfloat16")):
        assert plan(other).memory.merged == 0
        assert plan(other).memory.peak <= found.memory.peak


def test_a_cell_of_the_paper_is_planned_without_download_or_gpu() -> None:
    found = plan(cell("Voting-IP-1.7B-Math"))
    assert found.parameters == 1_720_574_976
    assert [p.num_parameters for p in found.policies] == [69_730_304, 69_730_304]
    assert found.turns == 64 * 8 * 4
    assert found.updates == {"generator": 3, "aggregator": 1}
    if not torch.cuda.is_available():
        told = "\n".join(described(cell("Voting-IP-1.7B-Math"), found))
        assert not found.is_here
        assert "--device cuda is not here, and no GPU was compared with this" in told
        assert "an H100 SXM by its data sheet" in told
        assert found.times.speed == CARD
    assert found.engine is not None
    assert found.engine.weights == 2 * 1_720_574_976
    # 28 layers, keys and values, 8 heads of 128, 2 bytes; prompts are assumed to have 1,024 tokens.
    assert found.engine.cache == 256 * (1024 + 5120) * 28 * 2 * 8 * 128 * 2
    assert found.memory.cache == 0


def test_paper_cells_fit_an_80_gb_card_beside_their_engine() -> None:
    for name in ("Voting-IP-1.7B-Math", "OrchWorkers-IP-4B-Math", "EvalOpt-SP-0.6B-Code"):
        config = cell(name)
        found = plan(config)
        assert config.sampler == "vllm"
        assert found.engine is not None
        taken = config.sampler_memory * CARD.held
        assert found.engine.starts_in(taken), name
        assert found.memory.peak + taken < CARD.held - 2 * (1 << 30), f"{name}, CUDA's own beside"


def test_the_time_of_a_step_is_worked_out_by_hand(small_config: SmallConfig) -> None:
    """A machine of 1 GFLOP/s, 1 GB/s and calls that cost nothing; two roles, 2 problems x 4."""
    config = small_config(problems_per_step=2, samples=4, probe="off", micro_tokens=1000)
    speed = Speed(1e9, 1e9, 0.0, math.inf, "cpu", "by hand")
    load = Load(
        parameters=1000, adapter=100, trained=200, layers=1, kept=10, queries=0, keys=0,
        vocabulary=0, element=4, prompt=30, response=10, longest=16,
        turns={"generator": (1.0, 3), "aggregator": (1.0, 1)}, learned=1.0, updates=4,
    )  # fmt: skip
    found = times_of(config, [load], speed)
    # Drawn: 8 x 4 responses of 10 tokens, prompts of 2 problems and of 8 aggregators; the weights
    # are read 16 times in each of two waves.
    forward = 2 * 1100
    drawn = (32 * 10 + (2 + 8) * 30) * forward / 0.8e9
    assert found.rollout == pytest.approx(drawn + 2 * 16 * 1000 * 4 * 2.5 / 1e9)
    # Learned: all 32 turns of 40 tokens and their padding, forward, backward and the adapter's own.
    tokens = 32 * 40 * 1.15
    learned = tokens * (2 * forward + 2 * 100) / 0.8e9
    assert found.learning == pytest.approx(
        learned + (tokens * 10 * 4 * 20 + 4 * 200 * 4 * 30) / 1e9
    )
    assert found.step == found.rollout + found.learning


def test_a_gpu_computes_while_calls_are_made(small_config: SmallConfig) -> None:
    assert Speed(1e9, 1e9, 1e-3, 1.0, "cuda", "").seconds(1e9, 1e9, 10) == 1 / 0.5 + 1
    assert Speed(1e9, 1e9, 1.0, 1.0, "cuda", "").seconds(1e9, 1e9, 10) == 10
    assert Speed(1e9, 1e9, 1.0, math.inf, "cpu", "").seconds(1e9, 1e9, 10) == 1 / 0.8 + 1 + 10


def test_an_engine_draws_as_many_at_once_as_its_memory_holds(small_config: SmallConfig) -> None:
    config = cell("Voting-IP-1.7B-Math")
    small, large = (
        plan(config, speed=replace(CARD, held=held * (1 << 30))).times for held in (40, 80)
    )
    assert small.learning == large.learning
    assert small.rollout > large.rollout
    assert plan(replace(config, sampler="transformers"), speed=CARD).times.rollout > small.rollout


def test_the_device_here_is_measured(small_config: SmallConfig) -> None:
    found = speed_here(small_config(device="cpu"), seconds=0.03)
    assert found is not None
    assert found.kind == "cpu"
    assert found.held == math.inf
    assert 1e8 < found.products < 1e14
    assert 1e8 < found.memory < 1e13
    assert 1e-8 < found.call < 1e-2


def test_a_device_that_no_run_could_use_is_refused_as_the_run_does(
    small_config: SmallConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cuda` on a machine without any is planned for another one; a number is of this one."""
    lines: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    dry_run(small_config(device="cuda"), lines.append)
    assert "--device cuda is not here, and no GPU was compared" in "".join(lines)
    with pytest.raises(ValueError, match=r"sees no CUDA device; .* or --device cuda to plan a run"):
        dry_run(small_config(device="cuda:0"), lines.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"cuda:99: torch sees 2 CUDA devices; expected cuda:0 to"):
        dry_run(small_config(device="cuda:99"), lines.append)


def test_the_command_prints_the_plan_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, small_config: SmallConfig
) -> None:
    out = small_config().out
    assert main(["train", "--dry-run", "--out", str(out), "--routing", "shared"]) == 0
    printed = capsys.readouterr().out
    for word in ("model ", "policy      shared: 82,944 trainable", "memory ", "disk ", "time "):
        assert word in printed
    assert "data        arithmetic, generated: 8,100 problems, 100 held out" in printed
    assert "responses of 5 (measured on 16 problems)" in printed
    assert "KiB before compression" in printed
    assert not out.exists()


@pytest.mark.parametrize("workflow", tuple(WORKFLOWS))
@pytest.mark.parametrize("model", ["tiny", "tiny-code"])
def test_tokens_are_those_of_a_step_of_an_embedded_model(
    small_config: SmallConfig, quiet: Progress, workflow: str, model: str
) -> None:
    """Mean lengths of prompts and responses, within a half: workers show how they got there, the
    replies that are measured do not. Fewer turns where rounds end early."""
    task = "programs" if model == "tiny-code" else "arithmetic"
    config = small_config(model=model, task=task, workflow=workflow, steps=1, samples=8)
    found = plan(config, task_of(config))
    assert found.lengths.source == "measured on 16 problems"
    train(config, quiet)
    tokenizer = load_tokenizer(config.model)
    turns = [
        turn
        for episode in read_episodes(config.out / "episodes" / "step-000001.jsonl.gz")
        for turn in episode["turns"]
    ]
    lengths = [len(tokenizer.encode(t["prompt"], add_special_tokens=False)) for t in turns]
    assert np.mean(lengths) == pytest.approx(found.lengths.prompt, rel=1 / 2)
    assert np.mean([t["tokens"] for t in turns]) == pytest.approx(found.lengths.response, rel=1 / 2)
    assert len(turns) <= found.turns
    assert sum(lengths) <= found.turns * found.lengths.prompt * 3 / 2


def test_prompts_are_assumed_where_the_tokenizer_is_not_here(
    small_config: SmallConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(model="Qwen/Qwen3-0.6B")
    monkeypatch.setenv("HF_HUB_CACHE", str(config.out))
    found = lengths_of(config, task_of(config))
    assert (found.prompt, found.response) == (1024, 16)
    assert found.source == "assumed, since the tokenizer is not here"


def test_prompts_of_a_chat_model_hold_answers_at_their_limit(
    small_config: SmallConfig, char_model: Path, tmp_path: Path
) -> None:
    model = tmp_path / "chat"
    shutil.copytree(char_model, model)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, "prompt_style": "chat"}))
    short, long = (
        small_config(model=str(model), max_response_tokens=limit, max_prompt_tokens=9999)
        for limit in (64, 564)
    )
    first, second = (lengths_of(config, task_of(config)) for config in (short, long))
    assert (first.response, second.response) == (64, 564)
    assert second.longest_prompt - first.longest_prompt >= 3 * 500, "of three voters"
    assert lengths_of(replace(long, max_prompt_tokens=100), task_of(long)).longest_prompt == 100


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"probe": "off", "routing": "shared"},
        {"coherence_damping": 0.3, "workflow": "orchestrator_workers"},
        {"steps": 5, "checkpoint_every": 1, "keep_states": 1, "keep_state_every": 2},
        {"steps": 3, "checkpoint_every": 2, "keep_states": 1},
    ],
    ids=str,
)
def test_checkpoints_are_those_of_a_run(
    small_config: SmallConfig, quiet: Progress, options: dict[str, object]
) -> None:
    config = small_config(
        **{"lora_rank": 16, "problems_per_step": 1, "eval_problems": 2, **options}
    )
    disk = plan(config).disk
    train(config, quiet)
    for pattern, number, expected in (
        ("adapter_model.safetensors", disk.checkpoints[0], disk.adapters),
        ("trainer_state.pt", disk.checkpoints[1], disk.states),
    ):
        files = list((config.out / "checkpoints").glob(f"step-*/*/{pattern}"))
        assert len({file.parent.parent for file in files}) == number
        assert sum(file.stat().st_size for file in files) == pytest.approx(expected, rel=0.03)


def test_episodes_take_about_what_is_said(small_config: SmallConfig, quiet: Progress) -> None:
    config = small_config(problems_per_step=8, samples=8, eval_problems=64)
    expected = plan(config, task_of(config)).disk.episodes
    train(config, quiet)
    written = sum(file.stat().st_size for file in (config.out / "episodes").iterdir())
    assert expected / 1.6 < written < expected * 1.6


@pytest.mark.parametrize("options", [["--data", "none.jsonl"], []])
def test_problems_that_are_not_there_are_told_with_the_plan(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    options: list[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRADLAB_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert main(["train", "--dry-run", "--task", "gsm8k", *options]) == 2
    told = capsys.readouterr()
    assert "assumed, since the problems are not here" in told.out
    assert "gradlab train: task 'gsm8k'" in told.err


def test_the_files_that_a_run_would_read_are_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "mine.jsonl"
    rows = [json.dumps({"question": f"{n}+1", "answer": str(n + 1)}) for n in range(30)]
    file.write_text("\n".join(rows))
    options = [
        "--task",
        "file",
        "--data",
        str(file),
        "--eval-problems",
        "5",
        "--math-rule",
        "number",
    ]
    assert main(["train", "--dry-run", *options]) == 0
    assert f"data        {file}: 30 problems, 5 held out" in capsys.readouterr().out
    assert main(["train", "--dry-run", *options, "--problems-per-step", "26"]) == 2
    assert "has 25 problems left to train on" in capsys.readouterr().err


def test_a_model_that_is_nowhere_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["train", "--dry-run", "--model", "/nowhere/model"]) == 2
    assert "--model /nowhere/model" in capsys.readouterr().err
