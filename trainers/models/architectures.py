"""Know the shapes of the paper's models, so that a dry run needs no download.

Numbers are those of the models' public config.json files.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig, Qwen3Config

_QWEN3: dict[str, dict[str, int]] = {
    "Qwen/Qwen3-0.6B": {
        "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
        "num_attention_heads": 16,
    },
    "Qwen/Qwen3-1.7B": {
        "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
        "num_attention_heads": 16,
    },
    "Qwen/Qwen3-4B": {
        "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
        "num_attention_heads": 32,
    },
}  # fmt: skip
KNOWN = tuple(_QWEN3)


def qwen3(name: str, **changes: Any) -> Qwen3Config:
    """The configuration of a Qwen3 dense model, e.g. 'Qwen/Qwen3-1.7B'; `changes` make it smaller.

    Raises KeyError for a model that is not listed.
    """
    settings: dict[str, Any] = {
        "vocab_size": 151936,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    }
    return Qwen3Config(**(settings | _QWEN3[name] | changes))


def architecture(name: str, where: str, **options: Any) -> PretrainedConfig:
    """Shapes of a model without its weights: from its files, or known by name."""
    found: PretrainedConfig
    try:
        found = AutoConfig.from_pretrained(where, **options | {"local_files_only": True})
    except OSError:
        if name in _QWEN3:  # nothing to download: that would be all of the answer
            return qwen3(name)
        if options.get("local_files_only"):
            raise
        found = AutoConfig.from_pretrained(where, **options)
    return found
