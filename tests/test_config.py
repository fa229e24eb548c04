"""Configurations are checked at the door; routings, presets and cells resolve to what they say."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gradlab.commands.train import preset_for
from gradlab.records import Agent
from trainers.config import TrainConfig
from trainers.models import language as models
from trainers.models.language import load_language_model, load_tokenizer, pick_device
from trainers.models.routing import parse_routing
from trainers.policies import warmup
from trainers.presets import PRESETS, cell, preset

AGENTS = (Agent("orchestrator"), Agent("worker", 0), Agent("worker", 1), Agent("synthesizer"))


@pytest.mark.parametrize(
    ("routing", "expected"),
    [
        ("shared", ["shared", "shared", "shared", "shared"]),
        ("isolated", ["orchestrator", "worker", "worker", "synthesizer"]),
        ("agents", ["orchestrator", "worker-0", "worker-1", "synthesizer"]),
        ("worker=a,orchestrator=b,synthesizer=b", ["b", "a", "a", "b"]),
        (" worker = a , orchestrator=b, synthesizer=b_2-x ", ["b", "a", "a", "b_2-x"]),
        ("worker=a,worker[1]=c,orchestrator=b,synthesizer=b", ["b", "a", "c", "b"]),
        ("worker[0]=a,worker[1]=b,orchestrator=b,synthesizer=a", ["b", "a", "b", "a"]),
    ],
)
def test_routings(routing: str, expected: list[str]) -> None:
    found = parse_routing(routing, AGENTS)
    assert found == dict(zip(AGENTS, expected, strict=True))
    assert list(found) == list(AGENTS)


@pytest.mark.parametrize(
    ("routing", "complaint"),
    [
        ("sharde", "cannot read 'sharde'; expected 'shared', 'isolated', 'agents' or"),
        ("", "cannot read ''"),
        ("worker=a,", "cannot read ''"),
        ("worker=", "cannot read 'worker='"),
        ("=a", "cannot read '=a'"),
        ("generator=a", "names role 'generator'; the workflow has orchestrator, worker"),
        ("worker=a,worker=b", "names role 'worker' twice"),
        ("worker[2]=a", r"names agent 'worker\[2\]'; the workflow has worker\[0\] to worker\[1\]"),
        ("worker[0]=a,orchestrator=b,synthesizer=b", r"gives no policy to worker\[1\]; "),
        ("worker=a", "gives no policy to orchestrator, synthesizer; .*worker=policy1"),
        ("worker=a/b,orchestrator=c,synthesizer=c", "'a/b' must be letters, digits"),
        ("worker=a.b,orchestrator=c,synthesizer=c", "'a.b' must be letters, digits"),
    ],
)
def test_a_routing_that_cannot_be_followed_says_what_is_wrong(routing: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_routing(routing, AGENTS)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        *(
            ({name: 0}, rf"--{name.replace('_', '-')} is 0; expected 1 or more")
            for name in (
                "steps", "eval_every", "checkpoint_every", "problems_per_step", "samples",
                "rows_per_update", "fixed_updates", "max_response_tokens", "micro_tokens",
                "rollout_rows", "lora_rank", "eval_samples", "eval_problems", "difficulty",
            )
        ),
        *(
            ({name: 0}, rf"--{name.replace('_', '-')} is 0; expected more than 0")
            for name in ("temperature", "learning_rate", "lora_alpha")
        ),
        *(
            ({name: -1}, rf"--{name.replace('_', '-')} is -1; expected 0 or more")
            for name in (
                "clip_low", "clip_high", "dual_clip", "clip_norm", "warmup_steps", "weight_decay",
                "entropy_coefficient", "threads",
            )
        ),
        ({"learning_rate": float("nan")}, "--learning-rate is nan"),
        ({"mix": 1.5}, r"--mix is 1.5; expected 0 to 1"),
        ({"dual_clip": 0.5}, "--dual-clip is 0.5; expected more than 1, or 0 for off"),
        ({"votes": 17}, "--votes is 17; expected 1 to 16"),
        ({"kl_coefficient": {"judge": 0.1}}, "names role 'judge'; workflow voting has generator"),
        ({"routing": "generator=a"}, "gives no policy to aggregator"),
        ({"clip_norm": float("nan")}, "--clip-norm is nan"),
        ({"kl_coefficient": {"generator": -0.1}}, "--kl-coefficient of generator is -0.1"),
        ({"clip_low": 1.5}, "--clip-low is 1.5; expected at most 1"),
        ({"max_prompt_tokens": 0}, "--max-prompt-tokens is 0; expected 1 or more"),
        ({"probe": "off", "effective": True}, "--effective need a probe"),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_by_its_option(
    settings: Mapping[str, object], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        TrainConfig(**settings)  # type: ignore[arg-type]


def test_the_configuration_goes_through_json() -> None:
    config = TrainConfig(data=Path("a/b.jsonl"), kl_coefficient={"aggregator": 0.1})
    plain = json.loads(json.dumps(config.to_json()))
    assert set(plain) == {field.name for field in fields(TrainConfig)}
    assert (plain["data"], plain["out"]) == ("a/b.jsonl", "runs/run")
    back = {**plain, "data": Path(plain["data"]), "out": Path(plain["out"])}
    assert TrainConfig(**back) == config


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_valid_configuration(name: str) -> None:
    assert isinstance(preset(name), TrainConfig)


def test_the_faithful_preset_takes_the_fixes_back() -> None:
    clean, faithful = preset("clean"), preset("faithful")
    different = {
        f.name for f in fields(clean) if getattr(clean, f.name) != getattr(faithful, f.name)
    }
    assert different == {
        "temperature", "history", "singleton", "scheduler_tick", "warmup_steps", "minibatches",
        "partial_minibatch", "old_logprobs", "coherence_start",
    }  # fmt: skip


@pytest.mark.parametrize("workflow", ["Voting", "EvalOpt", "OrchWorkers", "Single"])
@pytest.mark.parametrize("routing", ["IP", "SP"])
@pytest.mark.parametrize("size", ["0.6B", "1.7B", "4B"])
@pytest.mark.parametrize("task", ["Math", "Code"])
def test_every_cell_of_the_paper_resolves(
    workflow: str, routing: str, size: str, task: str
) -> None:
    config = preset(f"{workflow}-{routing}-{size}-{task}")
    assert config.model == f"Qwen/Qwen3-{size}"
    assert config.routing == {"IP": "isolated", "SP": "shared"}[routing]
    assert (config.task, config.split) == (
        "dapo-math" if task == "Math" else "deepcoder",
        "paper",
    )
    if task == "Code":
        assert config.max_prompt_tokens == (4096 if workflow == "Single" else 10240)
        assert config.max_response_tokens == 2048
    # the paper's numbers: 64 problems x 8 rollouts, 512 rows an update, LoRA 64/32, lr 2e-5
    assert (config.problems_per_step, config.samples, config.rows_per_update) == (64, 8, 512)
    assert (config.lora_rank, config.lora_alpha, config.learning_rate) == (64, 32, 2e-5)
    assert (config.clip_low, config.clip_high, config.dual_clip) == (0.2, 0.28, 3.0)
    assert (config.temperature, config.warmup_steps, config.weight_decay) == (0.7, 15, 0.01)


@pytest.mark.parametrize("workflow", ["Voting", "EvalOpt", "OrchWorkers", "Single"])
@pytest.mark.parametrize("routing", ["IP", "SP"])
@pytest.mark.parametrize("task", ["Math", "Code"])
def test_every_cell_has_an_embedded_counterpart(workflow: str, routing: str, task: str) -> None:
    config, paper = (
        preset(f"{workflow}-{routing}-tiny-{task}"),
        preset(f"{workflow}-{routing}-4B-Math"),
    )
    assert (config.workflow, config.routing) == (paper.workflow, paper.routing)
    assert (config.model, config.task) == {
        "Math": ("tiny", "arithmetic"), "Code": ("tiny-code", "programs"),
    }[task]  # fmt: skip
    assert config.out == Path(f"runs/{workflow}-{routing}-tiny-{task}")
    # The paper's maths voting compares each voter with itself, its code voting all of them.
    assert config.group_by == ("role" if task == "Code" else paper.group_by)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("Voting-XP-1.7B-Math", "is unknown; expected clean, faithful"),
        ("nonsense", "or a cell of the paper such as Voting-IP-1.7B-Math"),
    ],
)
def test_an_unknown_preset_lists_what_there_is(name: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        preset(name)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "clean"),
        (["--model", "tiny-1m"], "clean"),
        (["--model=smollm2-135m"], "smollm2"),
        (["--task", "programs"], "programs"),
        (["--model", "tiny-code"], "programs"),
        (["--model", "smollm2-135m", "--task", "programs"], "smollm2"),
        (["--model", "Qwen/Qwen3-0.6B", "--task", "programs"], "clean"),
    ],
)
def test_a_model_or_task_brings_its_preset(arguments: list[str], expected: str) -> None:
    assert preset_for(arguments) == expected
    assert expected in PRESETS


def test_a_word_that_is_no_cell_is_told() -> None:
    with pytest.raises(ValueError, match=r"is no cell; expected e\.g\. Voting-IP-1.7B-Math"):
        cell("Voting")


def test_warm_up_by_step_and_by_update() -> None:
    """Four ticks: 1/4 2/4 3/4 1 1 …; counted by policy it begins at 0, as in the paper's code."""
    by_step = warmup(TrainConfig(warmup_steps=4))
    assert [by_step(tick) for tick in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    by_update = warmup(TrainConfig(warmup_steps=4, scheduler_tick="policy"))
    assert [by_update(tick) for tick in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert warmup(TrainConfig())(0) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_missing_device_is_told() -> None:
    with pytest.raises(ValueError, match="torch sees no CUDA device; use --device cpu"):
        pick_device("cuda")
    with pytest.raises(ValueError, match=r"use --device cpu$"):
        pick_device("cuda:99")
    assert pick_device("auto") == torch.device("cpu")


def test_adapters_depend_on_the_seed_and_differ_between_policies(char_model: Path) -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        language = load_language_model(
            TrainConfig(model=str(char_model), seed=seed, device="cpu"), ["one", "two"]
        )
        return {
            n: p.detach().clone() for n, p in language.model.named_parameters() if "lora_A" in n
        }

    first, again, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    for name in first:
        if ".one." in name:
            assert not torch.equal(first[name], first[name.replace(".one.", ".two.")])


@pytest.mark.parametrize("name", ["default", "keys", "forward", "training"])
def test_a_policy_name_that_peft_cannot_keep_is_refused(char_model: Path, name: str) -> None:
    """PEFT saves 'default' to another place than every other name; the others are attributes."""
    with pytest.raises(ValueError, match=f"policy name '{name}' is reserved; choose another"):
        load_language_model(TrainConfig(model=str(char_model), device="cpu"), [name])


@pytest.mark.parametrize("name", ["0", "layers", "q_proj", "model", "lora_A"])
def test_a_policy_named_like_a_part_of_the_model_is_refused(char_model: Path, name: str) -> None:
    """PEFT left its layers out of the other policies' files: generator=0,aggregator=1 saved half
    of each adapter, and a resumed run went on with other weights."""
    with pytest.raises(ValueError, match=f"policy name '{name}' is a part of the model"):
        load_language_model(TrainConfig(model=str(char_model), device="cpu"), ["lead", name])


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("code_workers", 0, "--code-workers is 0; expected 1 or more"),
        ("code_seconds", 0.0, "--code-seconds is 0.0; expected more than 0"),
        ("code_seconds", math.inf, "--code-seconds is inf; expected a finite number"),
        ("learning_rate", math.inf, "--learning-rate is inf; expected a finite number"),
    ],
)
def test_numbers_that_nothing_can_run_with_are_refused(
    option: str, value: float, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        TrainConfig(**{option: value})  # type: ignore[arg-type]


class Session:
    """A hub that answers with one status, or not at all."""

    def __init__(self, status: int | None) -> None:
        self.status = status
        self.asked = 0

    def head(self, url: str, **options: object) -> Any:
        self.asked += 1
        if self.status is None:
            raise ConnectionError("no network")
        return SimpleNamespace(status_code=self.status)


@pytest.mark.parametrize(("status", "answers"), [(None, False), (503, False), (200, True)])
def test_the_hub_is_asked_once_about_a_model(
    monkeypatch: pytest.MonkeyPatch, status: int | None, answers: bool
) -> None:
    session = Session(status)
    monkeypatch.setattr(models, "get_session", lambda: session)
    models.hub_answers.cache_clear()
    for _ in range(3):
        _, options = models.reachable("nobody/nothing")
        assert options.get("local_files_only", False) is not answers
    assert session.asked == 1
    models.hub_answers.cache_clear()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("smollm2", "did you mean smollm2-135m?"),
        ("tiny-2m", "did you mean tiny-"),
        ("qwen3-1.7b", "did you mean Qwen/Qwen3-1.7B?"),
        ("nosuch", "hub cache"),
    ],
)
def test_a_mistyped_model_is_told_at_once_with_a_near_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, told: str
) -> None:
    monkeypatch.setattr(models, "get_session", lambda: Session(None))
    models.hub_answers.cache_clear()
    started = time.perf_counter()
    with pytest.raises(ValueError, match=f"--model {name}: cannot be loaded") as error:
        load_tokenizer(name)
    assert told in str(error.value)
    assert time.perf_counter() - started < 5
    assert "Retry" not in caplog.text
    models.hub_answers.cache_clear()
