"""Make small random models whose gradients can be checked against slow, obviously right twins."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

torch.set_num_threads(1)


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
