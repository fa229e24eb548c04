"""Write what an engine reads: the base model as it expects it, and adapters that are finite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file

from trainers.engines.padding import padded_adapter, padded_shapes, padded_weights
from trainers.engines.settings import engine_head_size, head_size
from trainers.models.language import LanguageModel, load_base, locate
from trainers.policies import TrainingError, not_finite


def check_heads(shapes: Any) -> int:
    """Size of the heads in the engine: the model's own where the engine takes it.

    Raises ValueError where it has to be widened and that is not known of the architecture.
    """
    narrow = head_size(shapes)
    wide = engine_head_size(narrow)
    if wide != narrow:
        padded_shapes(shapes, wide)
    return wide


def export_base(name: str, dtype: str, directory: Path) -> str:
    """Where an engine finds the base model `name`: a directory or hub id.

    Written to `directory` only where an engine could not read what is there: weights in GGUF, and
    heads of a size that it does not take.
    """
    where, options = locate(name)
    model, tokenizer = load_base(name, getattr(torch, dtype))
    narrow, wide = head_size(model.config), check_heads(model.config)
    if not options and wide == narrow:
        return where
    weights = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    if getattr(model.config, "tie_word_embeddings", False):
        weights.pop("lm_head.weight", None)
    shapes = model.config.to_dict()
    if wide != narrow:
        weights, shapes = padded_weights(weights, narrow, wide), padded_shapes(model.config, wide)
    shapes.pop("quantization_config", None)  # of the GGUF file, whose weights are plain now
    shapes |= {"architectures": [type(model).__name__], "dtype": dtype}
    directory.mkdir(parents=True, exist_ok=True)
    save_file(
        {key: value.contiguous().clone() for key, value in weights.items()},
        directory / "model.safetensors",
        metadata={"format": "pt"},
    )
    (directory / "config.json").write_text(json.dumps(shapes, indent=1, default=str) + "\n")
    tokenizer.save_pretrained(directory)
    return str(directory)


def write_adapter(language: LanguageModel, policy: str, directory: Path) -> None:
    """Write a policy's adapter in PEFT's format.

    Raises TrainingError for one that is not finite: NaN would spread to other policies through the
    engine's cache, and the wrong role would be blamed.
    """
    if bad := not_finite(language, policy):
        raise TrainingError(
            f"policy '{policy}': {len(bad)} of its parameters are not finite ({bad[0]}); they were "
            "not given to the engine. Start a new run with a lower --learning-rate: resuming would "
            "repeat this step exactly."
        )
    model = language.model
    weights = {
        key: value.detach().float().cpu().contiguous()
        for key, value in get_peft_model_state_dict(
            model, adapter_name=policy, save_embedding_layers=False
        ).items()
    }
    narrow = head_size(model.config)
    if (wide := engine_head_size(narrow)) != narrow:
        weights = padded_adapter(weights, narrow, wide)
    directory.mkdir(parents=True)
    save_file(weights, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    model.peft_config[policy].save_pretrained(str(directory))
