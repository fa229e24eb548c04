"""The real engine: every workflow, every failure that was seen, on a CPU.

Run by `make test-vllm`, which sets up vLLM's environment. Servers are started as `gradlab serve`
starts them and shared by the tests of a model.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import SmallConfig

from gradlab import open_run
from gradlab.run_directory import whole_checkpoints
from trainers.config import TrainConfig
from trainers.engines import sampler as sampler_module
from trainers.engines.choose import open_sampler
from trainers.engines.export import write_adapter
from trainers.engines.sampler import EngineSampler
from trainers.engines.serving import Serving, serving
from trainers.models.language import LanguageModel, load_language_models
from trainers.models.sampler import Sample
from trainers.policies import TrainingError, adapter_parameters
from trainers.training import task_of, train
from trainers.watch.progress import Progress

pytestmark = [
    pytest.mark.vllm,
    # vLLM's own, of its imports and of what it leaves to the end of the process.
    pytest.mark.filterwarnings("ignore"),
]
LENGTHS = {"max_prompt_tokens": 400, "max_response_tokens": 12, "rollout_rows": 32}
WORKFLOWS = ("voting", "evaluator_optimizer", "orchestrator_workers")
START_SECONDS = 900.0


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        port: int = asked.getsockname()[1]
        return port


def served(config: TrainConfig, log: Path, port: int = 0) -> AbstractContextManager[Serving]:
    python = Path(sys.executable)
    return serving(config, python, "127.0.0.1", port or free_port(), log, START_SECONDS)


def kill(running: Serving) -> None:
    """As the system does: the server and its engine, at once."""
    os.killpg(running.process.pid, signal.SIGKILL)
    running.process.wait()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server of tiny for three adapters, as the workflow with most roles needs it."""
    config = TrainConfig(
        workflow="orchestrator_workers", lora_rank=4, device="cpu", threads=1, **LENGTHS
    )  # type: ignore[arg-type]
    with served(config, tmp_path_factory.mktemp("tiny") / "log") as running:
        yield running


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    config = TrainConfig(
        workflow="orchestrator_workers", lora_rank=4, device="cpu", threads=1,
        model="smollm2-135m", dtype="bfloat16", **LENGTHS,
    )  # type: ignore[arg-type]  # fmt: skip
    with served(config, tmp_path_factory.mktemp("smollm2") / "log") as running:
        yield running


@pytest.fixture
def engine_config(small_config: SmallConfig) -> Callable[..., TrainConfig]:
    def make(url: str, **settings: object) -> TrainConfig:
        small = {
            "sampler": "vllm-server", "sampler_url": (url,), "problems_per_step": 2, "samples": 2,
            "eval_problems": 2, "sampler_seconds": 300.0, "learning_rate": 3e-3, **LENGTHS,
        }  # fmt: skip
        return small_config(**{**small, **settings})

    return make


Gaps = dict[tuple[str, int], float]


def train_watching(config: TrainConfig, quiet: Progress, measure: str) -> Gaps:
    """Train, and note every gap that was proven, by policy and version."""
    found: Gaps = {}
    real = EngineSampler._prove

    def prove(self: EngineSampler, place: int, policy: str, adapter: str, version: int) -> None:
        real(self, place, policy, adapter, version)
        gap = self.gaps[self.engines[place].name, policy]
        found[policy, version] = getattr(gap, measure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EngineSampler, "_prove", prove)
        train(config, quiet)
    return found


@pytest.mark.parametrize("routing", ["isolated", "shared"])
@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_tiny_is_trained_with_every_version_of_every_policy_proven(
    workflow: str,
    routing: str,
    tiny: Serving,
    engine_config: Callable[..., TrainConfig],
    quiet: Progress,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = engine_config(tiny.url, workflow=workflow, routing=routing, steps=3, eval_every=3)
    gaps = train_watching(config, quiet, "largest")
    assert set(gaps) == {(p, v) for p in config.policies for v in range(4)}
    assert max(gaps.values()) < 2e-5, "a fifth of what is allowed"
    run = open_run(config.out)
    assert run.steps.tolist() == [1, 2, 3]
    with capsys.disabled():
        print(f"\n{workflow} {routing}: {worst(gaps)}")


@pytest.mark.parametrize("routing", ["isolated", "shared"])
@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_smollm2_in_bfloat16_is_trained_with_every_version_proven(
    workflow: str,
    routing: str,
    smollm2: Serving,
    engine_config: Callable[..., TrainConfig],
    quiet: Progress,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = engine_config(
        smollm2.url, workflow=workflow, routing=routing, model="smollm2-135m", dtype="bfloat16",
        problems_per_step=1, steps=2, difficulty=1, max_response_tokens=8, eval_problems=1,
        learning_rate=3e-4,
    )  # fmt: skip
    gaps = train_watching(config, quiet, "mean")
    assert set(gaps) == {(p, v) for p in config.policies for v in range(3)}
    assert max(gaps.values()) < 0.1, "30 layers in bfloat16 are off by .04 from themselves"
    with capsys.disabled():
        print(f"\nSmolLM2 {workflow} {routing}: {worst(gaps)}")


def worst(gaps: Gaps) -> str:
    policies = dict.fromkeys(policy for policy, _ in gaps)
    return ", ".join(f"{p} {max(v for (q, _), v in gaps.items() if q == p):.1e}" for p in policies)


def test_frozen_roles_speak_with_the_base_model(
    tiny: Serving, engine_config: Callable[..., TrainConfig], quiet: Progress
) -> None:
    gaps = train_watching(engine_config(tiny.url, freeze=("generator",)), quiet, "largest")
    assert {policy for policy, _ in gaps} == {"", "aggregator"}
    assert max(gaps.values()) < 2e-5


class Asking:
    """A sampler of two policies whose weights can be moved."""

    def __init__(self, config: TrainConfig) -> None:
        languages = load_language_models(config)
        [self.language] = languages.values()
        opened = open_sampler(config, languages, task_of(config), config.build_workflow())
        assert isinstance(opened, EngineSampler)
        self.sampler, self.config, self.version = opened, config, 0
        self.move()

    def move(self) -> None:
        """About as far as a step of training does."""
        for number, policy in enumerate(self.config.policies):
            torch.manual_seed(10 * self.version + number)
            for value in adapter_parameters(self.language.model, policy).values():
                value.data += 2e-3 * torch.randn_like(value).sign()
            self.sampler.publish(policy, self.version)
        self.version += 1

    def ask(self, count: int = 8) -> dict[str, list[Sample]]:
        chat = self.sampler.chats[0]
        wave = {
            speaker: [self.sampler.encode(speaker, chat)] * count
            for speaker in set(self.config.speakers().values())
        }
        return {s.policy: said for s, said in self.sampler.ask(wave, (3, 1)).items()}


def test_stale_swapped_and_poisoned_adapters_are_caught(
    engine_config: Callable[..., TrainConfig],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Each written in place of the right one, past the trainer; a server of its own, since NaN
    stays in an engine's cache."""
    config = engine_config("http://127.0.0.1:1")
    plain = replace(config, sampler="transformers", sampler_url=())
    with served(plain, tmp_path / "log") as running:
        asking = Asking(replace(config, sampler_url=(running.url,)))
        asking.ask()
        old = tmp_path / "old"
        write_adapter(asking.language, "generator", old)

        def instead(wrong: Callable[[LanguageModel, str, Path], None]) -> None:
            monkeypatch.setattr(sampler_module, "write_adapter", wrong)
            asking.move()

        def stale(language: LanguageModel, policy: str, directory: Path) -> None:
            write_adapter(language, policy, directory)
            if policy == "generator":
                (directory / "adapter_model.safetensors").write_bytes(
                    (old / "adapter_model.safetensors").read_bytes()
                )

        instead(stale)
        with pytest.raises(TrainingError, match="policy 'generator', version 1"):
            asking.ask()

        def swapped(language: LanguageModel, policy: str, directory: Path) -> None:
            other = {"generator": "aggregator", "aggregator": "generator"}[policy]
            write_adapter(language, other, directory)

        instead(swapped)
        with pytest.raises(TrainingError, match="policy 'generator', version 2"):
            asking.ask()
        instead(write_adapter)
        asking.ask()

        def poisoned(language: LanguageModel, policy: str, directory: Path) -> None:
            if policy == "aggregator":
                value = next(iter(adapter_parameters(language.model, policy).values())).data
                kept = value.clone()
                monkeypatch.setattr("trainers.engines.export.not_finite", lambda *_: [])
                value[:] = float("nan")
                write_adapter(language, policy, directory)
                value[:] = kept
            else:
                write_adapter(language, policy, directory)

        instead(poisoned)
        with pytest.raises(TrainingError, match=r"aggregator.*(not JSON compliant|does not speak)"):
            asking.ask()
        asking.sampler.close()


def test_a_server_that_is_killed_in_mid_step_is_waited_for(
    engine_config: Callable[..., TrainConfig],
    quiet: Progress,
    tmp_path: Path,
) -> None:
    """kill -9 while responses are drawn; another at the same address; the same record."""
    port = free_port()
    config = engine_config(
        f"http://127.0.0.1:{port}", steps=2, problems_per_step=4, max_response_tokens=12
    )
    plain = replace(config, sampler="transformers", sampler_url=())
    with ExitStack() as servers:
        first = servers.enter_context(served(plain, tmp_path / "first", port))
        whole = replace(config, out=tmp_path / "whole")
        train(whole, quiet)
        calls = []
        real = EngineSampler._draw

        def draw(self: EngineSampler, *arguments: object) -> object:
            calls.append(0)
            if len(calls) == 4:  # a wave of the first step
                threading.Timer(0.05, restart).start()
            return real(self, *arguments)  # type: ignore[arg-type]

        def restart() -> None:
            kill(first)
            servers.enter_context(served(plain, tmp_path / "second", port))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(EngineSampler, "_draw", draw)
            train(config, quiet)
        assert len(calls) > 4
        same_run(whole.out, config.out)


def test_a_trainer_that_is_killed_is_resumed(
    tiny: Serving, engine_config: Callable[..., TrainConfig], quiet: Progress, tmp_path: Path
) -> None:
    """kill -9 of `gradlab train`; its adapters are still loaded when it is resumed."""
    whole = engine_config(tiny.url, out=tmp_path / "whole", steps=4, checkpoint_every=1)
    train(whole, quiet)
    config = replace(whole, out=tmp_path / "cut")
    options = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in (
            ("steps", 4), ("checkpoint_every", 1), ("eval_every", 2), ("problems_per_step", 2),
            ("samples", 2), ("eval_problems", 2), ("rows_per_update", 32), ("lora_rank", 4),
            ("threads", 1), ("device", "cpu"), ("learning_rate", 3e-3), *LENGTHS.items(),
            ("sampler", "vllm-server"), ("sampler_url", tiny.url), ("sampler_seconds", 300),
            ("out", config.out),
        )
    ]  # fmt: skip
    child = subprocess.Popen([sys.executable, "-m", "gradlab", "train", *options],
                             stdout=subprocess.DEVNULL)  # fmt: skip
    while not whole_checkpoints(config.out) and child.poll() is None:
        time.sleep(0.02)
    child.kill()
    child.wait()
    done = whole_checkpoints(config.out)
    assert done
    assert max(done) < 4, "killed too late to tell"
    left = adapters_of(tiny)
    assert left
    train(replace(config, resume=True), quiet)
    assert not set(left) & set(adapters_of(tiny))
    same_run(whole.out, config.out)


def adapters_of(running: Serving) -> list[str]:
    from trainers.engines.server import Server

    server = Server(running.url, 60)
    try:
        return server.adapters()
    finally:
        server.close()


def same_run(one: Path, other: Path) -> None:
    """The same steps, once each, and the same responses: seeds do not depend on what went wrong.

    Batches differ, and with them rounding; gradients are compared to that.
    """
    first, second = open_run(one), open_run(other)
    assert first.steps.tolist() == second.steps.tolist()
    assert json.loads((one / "config.json").read_text())["config"]["seed"] == 0
    for policy in ("generator", "aggregator"):
        a, b = first.gram(policy).gram_UBAA, second.gram(policy).gram_UBAA
        assert a.shape == b.shape
        assert abs(a - b).max() <= 1e-2 * abs(a).max()


def test_seeds_go_with_more_prompt_tokens_than_a_batch_holds(
    tiny: Serving, engine_config: Callable[..., TrainConfig]
) -> None:
    """Were prompts cut into chunks, seeded requests would end the engine on a CPU."""
    asking = Asking(engine_config(tiny.url, sampler_seconds=600.0))
    rng = torch.Generator().manual_seed(1)
    prompts = [tuple(row) for row in torch.randint(4, 99, (60, 150), generator=rng).tolist()]
    wave = dict.fromkeys(set(asking.config.speakers().values()), prompts)
    assert tiny.settings.arguments()["max_num_batched_tokens"] < 2 * 60 * 150
    said = asking.sampler.ask(wave, (1,))
    assert [len(samples) for samples in said.values()] == [60, 60]
    asking.sampler.close()


def test_an_adapter_of_too_large_a_rank_is_refused_and_the_engine_lives(
    tiny: Serving, engine_config: Callable[..., TrainConfig], quiet: Progress
) -> None:
    with pytest.raises(ValueError, match=r"--max-lora-rank 8, the run needs 32"):
        train(engine_config(tiny.url, lora_rank=32), quiet)
    asking = Asking(engine_config(tiny.url))
    assert len(asking.ask()) == 2
    asking.sampler.close()


def test_an_engine_in_the_process_draws_what_a_server_draws(
    tiny: Serving, engine_config: Callable[..., TrainConfig], quiet: Progress, tmp_path: Path
) -> None:
    """Last: it stays in the process."""
    server = engine_config(tiny.url, out=tmp_path / "server")
    train(server, quiet)
    own = replace(server, sampler="vllm", sampler_url=(), out=tmp_path / "own")
    gaps = train_watching(own, quiet, "largest")
    assert max(gaps.values()) < 2e-5
    same_run(server.out, own.out)
