"""Make small models and runs whose numbers can be checked against slow, obviously right twins."""

from __future__ import annotations

import io
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from gradlab.records import Agent
from trainers.config import TrainConfig
from trainers.episodes import Turn
from trainers.models.tiny import build_tokenizer
from trainers.watch.progress import Progress

torch.set_num_threads(1)

# A busy machine must not decide whether a test passes.
hypothesis_settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
hypothesis_settings.load_profile("untimed")

# A shell starts background jobs with Ctrl-C ignored, children inherit that, and tests that stop
# a child would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def make_qwen3(
    seed: int = 0, dtype: torch.dtype = torch.float64, **settings: object
) -> Qwen3ForCausalLM:
    """A Qwen3 of 2 layers with tied embeddings and random weights."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        **{
            "vocab_size": 40,
            "hidden_size": 24,
            "intermediate_size": 36,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "tie_word_embeddings": True,
            "pad_token_id": 0,
            **settings,
        }
    )
    return Qwen3ForCausalLM(config).to(dtype)


def make_llama(
    seed: int = 0, dtype: torch.dtype = torch.float64, **settings: object
) -> LlamaForCausalLM:
    """A Llama of 2 layers with biases, an untied head and random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            "vocab_size": 40,
            "hidden_size": 24,
            "intermediate_size": 36,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
            "pad_token_id": 0,
            **settings,
        }
    )
    return LlamaForCausalLM(config).to(dtype)


@pytest.fixture
def qwen3() -> Callable[..., Qwen3ForCausalLM]:
    return make_qwen3


@pytest.fixture
def llama() -> Callable[..., LlamaForCausalLM]:
    return make_llama


@pytest.fixture(scope="session")
def char_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a random 2-layer model with the character tokenizer of the tiny models."""
    directory = tmp_path_factory.mktemp("models") / "char"
    tokenizer = build_tokenizer()
    model = make_qwen3(
        seed=3, dtype=torch.float32, vocab_size=len(tokenizer), eos_token_id=1, bos_token_id=None
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


SmallConfig = Callable[..., TrainConfig]


@pytest.fixture
def small_config(tmp_path: Path) -> SmallConfig:
    """Make configurations of runs that take about a second, in a fresh directory each."""

    def make(**settings: object) -> TrainConfig:
        small = {
            "out": tmp_path / "run",
            "steps": 2,
            "eval_every": 2,
            "problems_per_step": 4,
            "samples": 4,
            "eval_problems": 6,
            "rows_per_update": 32,
            "max_response_tokens": 16,
            "lora_rank": 4,
            "threads": 1,
            "device": "cpu",
        }
        return TrainConfig(**{**small, **settings})  # type: ignore[arg-type]

    return make


@pytest.fixture
def quiet() -> Progress:
    """A progress display that writes into the void."""
    return Progress(Console(file=io.StringIO()))


def make_turn(agent: Agent = Agent("generator"), **settings: object) -> Turn:  # noqa: B008
    """A turn of which only the named fields matter."""
    plain = {
        "problem": "p",
        "sample": 0,
        "round": 0,
        "kind": "answer",
        "prompt": "",
        "prompt_ids": (5, 6),
        "response": "",
        "response_ids": (7, 1),
        "logprobs": (-0.5, -0.5),
        "parse_ok": True,
        "truncated": False,
        "own_correct": None,
        "offered_correct": None,
    }
    return Turn(agent=agent, **{**plain, **settings})  # type: ignore[arg-type]


def make_row(
    turn: Turn | None = None,
    *,
    problem: str = "p",
    sample: int = 0,
    outcome: bool = False,
    reward: float = 0.0,
    advantage: float = 0.0,
) -> Turn:
    """A turn with credit of which only the named fields matter."""
    return replace(
        turn or make_turn(),
        problem=problem,
        sample=sample,
        outcome=outcome,
        reward=reward,
        advantage=advantage,
    )
