"""Say what memory an engine takes beside the trainer, and whether a shared device holds both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from trainers.config import TrainConfig
from trainers.engines.settings import settings_of, token_bytes
from trainers.models.language import pick_device


@dataclass(frozen=True)
class EngineMemory:
    """Bytes of an engine."""

    weights: int
    adapters: int
    """Slots of the largest rank, one per policy, in the dtype of the weights."""
    cache: int
    """Keys and values of --rollout-rows responses, prompts typical and responses at the limit."""

    @property
    def needed(self) -> int:
        return self.weights + self.adapters + self.cache


def engine_memory(
    config: TrainConfig, shapes: Any, base: int, sizes: Mapping[str, int], longest: int
) -> EngineMemory:
    """What an engine needs; `sizes`: trainable parameters by policy, `longest` prompt in tokens."""
    element = torch.finfo(getattr(torch, config.dtype)).bits // 8
    settings = settings_of(config, shapes, on_cpu=True)
    response = max(speaker.max_tokens for speaker in config.speakers().values())
    slots = (
        size * settings.max_lora_rank / config.lora_rank_of(policy)
        for policy, size in sizes.items()
    )
    return EngineMemory(
        base * element,
        round(max(slots) * len(sizes)) * element,
        config.rollout_rows * (longest + response) * token_bytes(shapes, config.dtype),
    )


def told_of_engine(config: TrainConfig, engine: EngineMemory, trainer: int) -> Iterator[str]:
    """What a dry run says; `trainer`: bytes of the trainer at its peak, without rollout."""
    yield (
        f"engine      about {_gib(engine.needed)}: weights {_gib(engine.weights)}, adapters "
        f"{_gib(engine.adapters)}, keys and values of {config.rollout_rows} responses "
        f"{_gib(engine.cache)}; {_where(config)}"
    )
    try:
        device = pick_device(config.device)
    except ValueError:
        return
    if device.type == "cuda" and config.sampler == "vllm":
        yield from _on_one_device(
            config, engine, trainer, torch.cuda.get_device_properties(device).total_memory
        )


def _where(config: TrainConfig) -> str:
    if config.sampler == "vllm-server":
        return "in its server, not counted in memory above"
    when = "while responses are drawn" if config.sampler_sleep else "all the time"
    share = f"{config.sampler_memory:.0%}"
    return f"beside memory above, {when}; of a GPU it takes {share} whatever it needs"


def _on_one_device(
    config: TrainConfig, engine: EngineMemory, trainer: int, total: int
) -> Iterator[str]:
    taken = config.sampler_memory * total
    if taken < engine.needed:
        yield (
            f"warning     --sampler-memory {config.sampler_memory:g} is {_gib(taken)} of "
            f"{_gib(total)}, less than the engine needs for --rollout-rows {config.rollout_rows}: "
            "it will draw fewer at once, or refuse to start"
        )
    if not config.sampler_sleep and taken + trainer > total:
        yield (
            f"warning     trainer and engine together take {_gib(taken + trainer)} of "
            f"{_gib(total)}; expected a lower --sampler-memory, or --sampler-sleep"
        )


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / (1 << 30):,.1f} GiB"
