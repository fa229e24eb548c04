"""Whatever goes wrong between trainer and engine: the wave is asked again, or the run says why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SmallConfig, make_qwen3
from engine_stand_in import StandIn

from gradlab import open_run
from gradlab.commands.parsing import gather
from trainers.config import TrainConfig
from trainers.engines.canary import Gap, gap_of, own_rounding
from trainers.engines.choose import check_sampler, open_sampler
from trainers.engines.engine import EngineLost, Request
from trainers.engines.sampler import EngineSampler, dealt, seeds_of
from trainers.engines.server import LOOK_EVERY, Server, read_sample
from trainers.models.language import load_language_models
from trainers.models.sampler import Sample, Speaker
from trainers.models.tiny import build_tokenizer
from trainers.policies import TrainingError, adapter_parameters
from trainers.training import task_of, train
from trainers.watch.progress import Progress


@pytest.fixture(scope="session")
def engine_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with heads that an engine takes."""
    directory = tmp_path_factory.mktemp("models") / "wide"
    tokenizer = build_tokenizer()
    model = make_qwen3(
        seed=3, dtype=torch.float32, vocab_size=len(tokenizer), eos_token_id=1, bos_token_id=None,
        head_dim=32, num_attention_heads=2, num_hidden_layers=1,
    )  # fmt: skip
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(autouse=True)
def _few_canaries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is random, and speaks alike on all prompts."""
    monkeypatch.setattr("trainers.engines.choose.CANARIES", 3)


@pytest.fixture
def server(engine_model: Path) -> Iterator[StandIn]:
    stand_in = StandIn(engine_model)
    yield stand_in
    stand_in.stop()


@pytest.fixture
def config_for(
    small_config: SmallConfig, tmp_path: Path, engine_model: Path
) -> Callable[..., TrainConfig]:
    def make(*servers: StandIn, **settings: object) -> TrainConfig:
        engine = {
            "sampler": "vllm-server",
            "sampler_url": tuple(server.url for server in servers),
            "sampler_directory": tmp_path / "adapters",
            "sampler_seconds": 5.0,
            "model": str(engine_model),
            "max_prompt_tokens": 100,
            "max_response_tokens": 4,
            "problems_per_step": 2,
            "samples": 2,
            "eval_problems": 2,
        }
        return small_config(**{**engine, **settings})

    return make


@pytest.fixture
def opening() -> Iterator[Callable[[TrainConfig], Opened]]:
    """Open samplers that are closed in the end."""
    with ExitStack() as stack:

        def opened(config: TrainConfig) -> Opened:
            made = Opened(config)
            stack.callback(made.sampler.close)
            return made

        yield opened


class Opened:
    """A sampler with the policies that it publishes."""

    def __init__(self, config: TrainConfig) -> None:
        self.languages = load_language_models(config)
        [self.language] = self.languages.values()
        sampler = open_sampler(config, self.languages, task_of(config), config.build_workflow())
        assert isinstance(sampler, EngineSampler)
        self.sampler, self.config = sampler, config
        for number, policy in enumerate(config.policies):
            self.train(policy, number)
            sampler.publish(policy, 0)
        self.speakers = {s.policy: s for s in config.speakers().values()}

    def train(self, policy: str, seed: int) -> None:
        """Move the policy's weights."""
        torch.manual_seed(100 + seed)
        for value in adapter_parameters(self.language.model, policy).values():
            value.data += 0.2 * torch.randn_like(value)

    def ask(self, count: int = 3, key: tuple[int, ...] = (1, 2)) -> dict[str, list[Sample]]:
        wave = {
            speaker: [tuple(range(5, 9 + place)) for place in range(count)]
            for speaker in self.speakers.values()
        }
        return {s.policy: said for s, said in self.sampler.ask(wave, key).items()}


Opening = Callable[[TrainConfig], Opened]


def test_every_response_is_drawn_and_scored_by_the_weights_of_its_policy(
    server: StandIn, config_for: Callable[..., TrainConfig], opening: Opening
) -> None:
    """Against the trainer's own model, written out; three policies in one call."""
    opened = opening(
        config_for(server, freeze=("worker",), workflow="orchestrator_workers", temperature=0.7)
    )
    said = opened.ask()
    assert set(said) == {"orchestrator", "synthesizer", ""}
    server.rows.clear()
    assert opened.ask() == said, "the same key draws the same"
    assert opened.ask(key=(1, 3)) != said
    for policy, samples in said.items():
        with opened.language.speaking(policy) as model, torch.no_grad():
            for place, sample in enumerate(samples):
                prompt = list(range(5, 9 + place))
                logits = model(input_ids=torch.tensor([[*prompt, *sample.ids]])).logits[0]
                logprobs = (logits[len(prompt) - 1 : -1] / 0.7).log_softmax(-1)
                expected = [float(logprobs[i, token]) for i, token in enumerate(sample.ids)]
                assert sample.logprobs == pytest.approx(expected, abs=2e-5)
    # The stand-in's bodies: names by policy, the base model for the frozen role, seeds apart.
    names = {row["model"].partition("-")[0] for row in server.rows}
    assert names == {"orchestrator@0", "synthesizer@0", "base"}
    assert len({row["seed"] for row in server.rows}) == len(server.rows)
    assert all(row["ignore_eos"] and row["top_p"] == 1 and row["top_k"] == 0 for row in server.rows)


def test_a_version_has_a_name_of_its_own_and_the_old_one_goes(
    server: StandIn, config_for: Callable[..., TrainConfig], opening: Opening, tmp_path: Path
) -> None:
    opened = opening(config_for(server))
    before = opened.ask()
    assert len(server.adapters) == 2
    assert len(list((tmp_path / "adapters").glob("*/*"))) == 2
    opened.train("generator", 7)
    opened.sampler.publish("generator", 17)
    after = opened.ask()
    assert after["aggregator"] == before["aggregator"]
    assert after["generator"] != before["generator"]
    assert [name.partition("-")[0] for name in server.loads] == [
        "generator@0", "aggregator@0", "generator@17",
    ]  # fmt: skip
    assert [name.partition("-")[0] for name in server.unloads] == ["generator@0"]
    assert {path.name for path in (tmp_path / "adapters").glob("*/*")} == set(server.adapters)
    opened.ask()
    assert len(server.loads) == 3, "what has not changed is not loaded again"
    opened.sampler.close()
    assert not server.adapters
    assert not list((tmp_path / "adapters").glob("*"))


def test_stale_swapped_and_poisoned_adapters_stop_the_run(
    server: StandIn, config_for: Callable[..., TrainConfig], opening: Opening
) -> None:
    opened = opening(config_for(server))
    opened.ask()
    assert all(gap.largest < 1e-5 for gap in opened.sampler.gaps.values())
    server.stale = True
    opened.train("aggregator", 5)
    opened.sampler.publish("aggregator", 4)
    told = (
        r"policy 'aggregator', version 4: .* does not speak with the weights that are trained.* "
        r"the largest may be 0\.0001"
    )
    with pytest.raises(TrainingError, match=told):
        opened.ask()
    server.stale, server.swapped = False, {"generator": "aggregator", "aggregator": "generator"}
    server.restart()
    with pytest.raises(TrainingError, match="policy 'aggregator'"):
        opened.ask()  # the generator's is alone when it is loaded, the aggregator gets it
    server.swapped, server.poisoned = {}, True
    server.restart()
    with pytest.raises(
        TrainingError, match=r"response of aggregator@4.* answers 400: Out of range"
    ):
        opened.ask()


def test_a_server_of_another_model_or_of_unscaled_logprobs_is_found(
    engine_model: Path, config_for: Callable[..., TrainConfig], opening: Opening, tmp_path: Path
) -> None:
    other = make_qwen3(seed=4, dtype=torch.float32, vocab_size=99, head_dim=32,
                       num_attention_heads=2, num_hidden_layers=1)  # fmt: skip
    other.save_pretrained(tmp_path / "other")
    wrong = StandIn(tmp_path / "other")
    with pytest.raises(TrainingError, match=r"the base model: .* does not speak"):
        opening(config_for(wrong, freeze=("aggregator",))).ask()
    wrong.stop()
    raw = StandIn(engine_model)
    raw.raw = True
    with pytest.raises(TrainingError, match="policy 'generator', version 0"):
        opening(config_for(raw, temperature=0.7)).ask()
    raw.stop()


@pytest.mark.parametrize("failure", ["short", "evicted", "restarted", "error", "hung"])
def test_a_wave_that_fails_is_asked_again_with_the_same_numbers(
    failure: str,
    server: StandIn,
    config_for: Callable[..., TrainConfig],
    opening: Opening,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trainers.engines.server.LOOK_EVERY", 0.05)
    opened = opening(config_for(server, sampler_seconds=1.0 if failure == "hung" else 5.0))
    expected = opened.ask()
    names = set(server.adapters)
    match failure:
        case "short":
            server.short = 2
        case "evicted":
            server.evict_after = 2
        case "restarted":
            server.restart_next = True
        case "error":
            server.failing = [(500, "EngineCore encountered an issue: out of memory")]
        case "hung":
            server.hanging, server.hang_seconds = 1, 1.5
    assert opened.ask() == expected
    assert len(server.adapters) == 2
    assert not names & set(server.adapters), "all were published anew, under new names"


def test_what_does_not_pass_stops_the_run_with_words(
    server: StandIn,
    config_for: Callable[..., TrainConfig],
    opening: Opening,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trainers.engines.server.LOOK_EVERY", 0.05)
    opened = opening(config_for(server, sampler_seconds=0.3))
    server.failing = [(500, "out of memory")] * 100
    with pytest.raises(TrainingError, match=r"500: out of memory; asked 3 times.*--resume"):
        opened.ask()
    server.failing, server.max_rank = [], 2
    with pytest.raises(
        TrainingError, match=r"asked to load .*rank 4 is greater than max_lora_rank"
    ):
        opened.ask()
    server.max_rank = 512
    opened.ask()
    server.stop()
    with pytest.raises(TrainingError, match=r"did not come back in 0\.3 s"):
        opened.ask()
    opened.sampler.close()
    server.start()


def test_an_absent_or_wrong_server_is_refused_before_anything_is_written(
    server: StandIn, config_for: Callable[..., TrainConfig], quiet: Progress
) -> None:
    config = config_for(server)
    server.info = {
        "lora_config": {"max_lora_rank": 8, "max_loras": 1},
        "model_config": {"dtype": "torch.bfloat16", "logprobs_mode": "raw_logprobs"},
    }
    told = (
        r"--max-loras 1, the run needs 2; with --logprobs-mode raw_logprobs, .*; with --dtype "
        r"bfloat16, the run needs float32"
    )
    with pytest.raises(ValueError, match=told):
        train(config, quiet)
    server.info, server.max_model_len = None, 50
    with pytest.raises(ValueError, match=r"takes 50 tokens .* the run needs 104"):
        train(config, quiet)
    server.stop()
    with pytest.raises(ValueError, match=r"cannot be reached.*gradlab serve RUN_OR_CONFIG"):
        train(config, quiet)
    assert not config.out.exists()
    server.start()


def test_a_run_whose_server_fails_in_mid_step_records_what_one_without_failure_does(
    server: StandIn, config_for: Callable[..., TrainConfig], quiet: Progress, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("trainers.engines.server.LOOK_EVERY", 0.05)
    plain = train(config_for(server, out=tmp_path / "plain"), quiet)
    server.evict_after = 60
    failing = train(config_for(server, out=tmp_path / "failing"), quiet)
    assert any(name.startswith("generator@0") for name in server.unloads)
    one, other = open_run(plain), open_run(failing)
    assert other.steps.tolist() == [1, 2]
    gram, again = one.gram("generator").gram_UBAA, other.gram("generator").gram_UBAA
    assert gram.shape == again.shape
    assert abs(gram - again).max() == 0
    assert (one.evaluations().accuracy().value_T == other.evaluations().accuracy().value_T).all()
    assert not server.adapters, "closed, it holds nothing of them"


def test_a_resumed_run_asks_for_the_same_and_clears_what_its_earlier_life_left(
    server: StandIn, config_for: Callable[..., TrainConfig], quiet: Progress, tmp_path: Path
) -> None:
    whole = train(config_for(server, out=tmp_path / "whole", steps=2, checkpoint_every=1), quiet)
    wanted = drawn(server)
    config = config_for(server, out=tmp_path / "cut", steps=2, checkpoint_every=1)
    server.rows.clear()
    real = server.unload
    server.unload = lambda body: (200, "ignored")  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainers.training.learn", _failing_at(2))
        with pytest.raises(TrainingError, match="planted"):
            train(config, quiet)
    assert server.adapters, "killed, it would have left them"
    left = set(server.adapters)
    server.unload = real  # type: ignore[method-assign]
    server.rows.clear()
    moved = replace(config, resume=True, sampler="transformers", sampler_url=(server.url,))
    train(moved, quiet)
    assert not left & set(server.adapters)
    again = drawn(server)
    # Step 2 and the evaluation after it; the step's wave of generators was asked before the cut.
    assert again
    assert again <= wanted
    one, other = open_run(whole), open_run(config.out)
    assert abs(one.gram("generator").gram_UBAA - other.gram("generator").gram_UBAA).max() == 0


def drawn(server: StandIn) -> set[tuple[tuple[int, ...], int]]:
    """Prompt and seed of what was asked, without the canaries."""
    return {(tuple(row["prompt"]), row["seed"]) for row in server.rows if row["seed"] > 8}


def _failing_at(step: int) -> Callable[..., object]:
    from trainers.learn import learn

    def fail(*given: Any) -> object:
        if given[4] == step:
            raise TrainingError("planted")
        return learn(*given)

    return fail


def test_several_servers_share_the_requests_and_each_is_proven(
    server: StandIn, engine_model: Path, config_for: Callable[..., TrainConfig], opening: Opening
) -> None:
    other = StandIn(engine_model)
    opened = opening(config_for(server, other))
    alone = opening(config_for(server)).ask(count=6)
    server.rows.clear()
    other.rows.clear()
    said = opened.ask(count=6)
    assert said == alone, "a seed's numbers do not depend on who is asked"
    drawn = [[row for row in s.rows if row["seed"] > 8] for s in (server, other)]
    assert [len(rows) for rows in drawn] == [6, 6]
    assert {name for name, _ in opened.sampler.gaps} == {server.url, other.url}
    other.stale = True
    opened.train("generator", 3)
    opened.sampler.publish("generator", 1)
    with pytest.raises(TrainingError, match=rf"policy 'generator', version 1: {other.url}"):
        opened.ask()
    other.stop()


def test_an_engine_on_the_same_gpu_sleeps_while_policies_learn(
    server: StandIn, config_for: Callable[..., TrainConfig], opening: Opening, quiet: Progress
) -> None:
    opened = opening(config_for(server))
    opened.sampler.settings = replace(opened.sampler.settings, can_sleep=True)
    opened.ask()
    opened.sampler.rest()
    assert server.sleeps == ["/sleep?level=1"]
    loads, rows = len(server.loads), len(server.rows)
    opened.ask()
    assert server.sleeps == ["/sleep?level=1", "/wake_up"]
    assert len(server.loads) > loads, "after a sleep all is proven anew"
    assert len(server.rows) > rows
    with pytest.raises(ValueError, match="an engine on a CPU cannot sleep"):
        train(config_for(server, sampler_sleep=True), quiet)


def test_gaps_are_judged_by_what_rounding_explains() -> None:
    """float32 by its largest, bfloat16 by its mean: single tokens are off by .09 there."""

    def judged(gaps: list[float], dtype: torch.dtype, temperature: float = 1.0) -> Gap:
        return gap_of(gaps, dtype, temperature, None)

    exact = judged([1e-6, 9e-5], torch.float32)
    assert (exact.measure, exact.limit, exact.is_right) == ("largest", 1e-4, True)
    assert not judged([1e-6, 2e-4], torch.float32).is_right
    assert judged([1e-6, 2e-4], torch.float32, 0.1).is_right, "logits are divided by it"
    rough = judged([0.09, *[0.001] * 30], torch.bfloat16)
    assert (rough.measure, rough.is_right) == ("mean", True)
    assert not judged([0.03] * 30, torch.bfloat16).is_right
    assert not judged([0.0, float("nan")], torch.float32).is_right
    assert not judged([], torch.float32).is_right
    # A deep model is off by more: twice what it is off by itself is granted, and no more.
    deep = judged([0.04] * 10, torch.bfloat16)
    assert gap_of([0.07] * 10, torch.bfloat16, 1.0, deep).is_right
    assert not gap_of([0.09] * 10, torch.bfloat16, 1.0, deep).is_right


def test_a_model_is_off_by_its_own_rounding(small_config: SmallConfig) -> None:
    """By nothing that matters in float32; in bfloat16 by what its 8 bits leave of a logit."""
    prompts = [(2, 75, 20 + place, 3) for place in range(6)]
    gaps = {}
    for dtype in ("float32", "bfloat16"):
        [language] = load_language_models(small_config(dtype=dtype)).values()
        gaps[dtype] = own_rounding(language, prompts)
    assert 0 < gaps["float32"].value < 1e-5
    assert 1e-4 < gaps["bfloat16"].value < 0.05


def test_seeds_depend_on_the_key_alone_and_equal_prompts_go_to_one_engine() -> None:
    here, there = ([(1, 2, 0, wave, slot) for slot in range(50)] for wave in (3, 4))
    assert seeds_of(here)[:3] == seeds_of(here[:3])
    assert len({*seeds_of(here), *seeds_of(there)}) == 100
    large = [(1 << 20, 2, (5 << 32) + slot) for slot in range(100)]  # problems have 64 bits
    assert len({*seeds_of(large), *seeds_of([(1 << 20, 2, slot) for slot in range(100)])}) == 200
    assert all(0 <= seed < 1 << 63 for seed in seeds_of(large))
    a, b, c = ("p", (1,)), ("p", (2,)), ("q", (1,))
    assert dealt([a, b, a, c, a], 2) == [[0, 2, 4], [1, 3]]
    assert dealt([a], 3) == [[0], [], []]


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ({}, "without tokens"),
        ({"token_ids": None, "logprobs": {"token_logprobs": []}}, "without tokens"),
        ({"token_ids": [5, 1], "logprobs": {"token_logprobs": [-1.0]}}, "2 tokens with 1"),
        ({"token_ids": [], "logprobs": {"token_logprobs": []}}, "0 tokens"),
        ({"token_ids": [5, 5], "logprobs": {"token_logprobs": [-1.0, -1.0]}}, "do not end"),
        ({"token_ids": [5, 1, 5], "logprobs": {"token_logprobs": [-1.0] * 3}}, "do not end"),
        ({"token_ids": [5] * 4, "logprobs": {"token_logprobs": [-1.0] * 4}}, "4 tokens"),
    ],
)
def test_an_answer_that_is_not_the_response_is_told(choice: dict[str, object], reason: str) -> None:
    request = Request("a@1", (3,), 1.0, 3, (1,), 0)
    with pytest.raises(EngineLost, match=reason):
        read_sample({"choices": [choice]}, request, "server")


def test_end_tokens_and_truncation_are_ours() -> None:
    request = Request("a@1", (3,), 1.0, 3, (1, 4), 0)

    def answer(ids: list[int]) -> Sample:
        choice = {"token_ids": ids, "logprobs": {"token_logprobs": [-1.0] * len(ids)}}
        return read_sample({"choices": [choice]}, request, "server")

    assert not answer([5, 4]).truncated
    assert not answer([5, 5, 1]).truncated
    assert answer([5, 5, 5]).truncated


def test_contradictory_options_are_refused(small_config: SmallConfig) -> None:
    url = ("http://127.0.0.1:8000",)
    for settings, reason in (
        ({"sampler": "vllm-server"}, "expected --sampler vllm-server and the address"),
        ({"sampler_url": url}, "expected --sampler vllm-server and the address"),
        ({"sampler": "vllm-server", "sampler_url": ("localhost:80",)}, "such as http"),
        ({"sampler": "vllm-server", "sampler_url": url * 2}, "twice"),
        ({"sampler": "vllm-server", "sampler_url": url, "lora_rank": 600}, "at most 512"),
        (
            {
                "sampler": "vllm-server",
                "sampler_url": url,
                "policy_model": {"generator": "tiny-1m"},
            },
            "serves one base model",
        ),
        ({"sampler_memory": 1.5}, "at most 1"),
        ({"sampler_seconds": 0}, "more than 0"),
    ):
        with pytest.raises(ValueError, match=reason):
            small_config(**settings)
    assert Server("https://one.example:1", 1).name == "https://one.example:1"
    assert LOOK_EVERY < 10
    assert Speaker("a", "m") < Speaker("b", "m")


def test_several_servers_are_named_one_by_one_or_together() -> None:
    for words in (
        ["--sampler-url", "http://a:1", "--steps", "3", "--sampler-url=http://b:2"],
        ["--sampler_url", "http://a:1", "http://b:2", "--steps", "3"],
    ):
        assert gather(words, "--sampler-url") == [
            "--steps", "3", "--sampler-url", "http://a:1", "http://b:2",
        ]  # fmt: skip
    assert gather(["--steps", "3"], "--sampler-url") == ["--steps", "3"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampler": "vllm"}, "--sampler vllm and 2 processes"),
        (
            {
                "sampler": "vllm-server", "sampler_url": ("http://127.0.0.1:1",),
                "sampler_sleep": True,
            },
            "--sampler-sleep and 2 processes",
        ),
    ],
)  # fmt: skip
def test_engines_that_processes_cannot_share_are_refused(
    options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        check_sampler(TrainConfig(**options), 2)


def test_an_engine_takes_no_float64() -> None:
    with pytest.raises(ValueError, match="takes float32 or bfloat16"):
        TrainConfig(sampler="vllm", dtype="float64")
