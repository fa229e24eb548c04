"""Say what memory an engine takes beside the trainer, and whether a shared device holds both."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from trainers.config import TrainConfig
from trainers.engines.settings import settings_of, token_bytes


@dataclass(frozen=True)
class EngineMemory:
    """Bytes of an engine."""

    weights: int
    adapters: int
    """Slots of the largest rank, one per policy, in the dtype of the weights."""
    cache: int
    """Keys and values of `rows` responses, prompts typical and responses at the limit."""
    rows: int
    """Responses that are wanted at once: --rollout-rows."""
    longest: int
    """Keys and values of one response, prompt and response at their limits."""

    @property
    def needed(self) -> int:
        return self.weights + self.adapters + self.cache

    def rows_in(self, num_bytes: float) -> int:
        """How many responses at the limit so much memory holds at once, `rows` at most."""
        return min(self.rows, int((num_bytes - self.needed + self.cache) * self.rows / self.cache))

    def starts_in(self, num_bytes: float) -> bool:
        return self.needed - self.cache + self.longest <= num_bytes


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
        config.rollout_rows,
        settings.max_model_len * token_bytes(shapes, config.dtype),
    )


def told_of_engine(
    config: TrainConfig, engine: EngineMemory, trainer: int, idle: int, device: float
) -> Iterator[str]:
    """What a dry run says; `trainer` and `idle`: bytes of the trainer while it learns, and while
    responses are drawn; `device`: bytes of the device, inf where nobody counts them."""
    yield (
        f"engine      about {_gib(engine.needed)}: weights {_gib(engine.weights)}, adapters "
        f"{_gib(engine.adapters)}, keys and values of {config.rollout_rows} responses "
        f"{_gib(engine.cache)}; {_where(config)}"
    )
    if config.sampler == "vllm" and device < math.inf:
        yield from _on_one_device(config, engine, trainer, idle, device)


def _where(config: TrainConfig) -> str:
    if config.sampler == "vllm-server":
        return "in its server, not counted in memory above"
    when = "while responses are drawn" if config.sampler_sleep else "all the time"
    share = f"{config.sampler_memory:.0%}"
    return f"beside memory above, {when}; of a GPU it takes {share} whatever it needs"


def _on_one_device(
    config: TrainConfig, engine: EngineMemory, trainer: int, idle: int, device: float
) -> Iterator[str]:
    taken = config.sampler_memory * device
    together = max(trainer, idle + taken) if config.sampler_sleep else trainer + taken
    yield (
        f"one device  about {_gib(together)} of {_gib(device)}: {_gib(taken)} of the engine, room "
        f"for {max(0, engine.rows_in(taken)):,} responses at their limit at once, and the trainer, "
        f"{_gib(idle)} while responses are drawn, {_gib(trainer)} in updates"
        f"{', when the engine sleeps' if config.sampler_sleep else ''}"
    )
    if not engine.starts_in(taken):
        yield (
            f"warning     --sampler-memory {config.sampler_memory:g} is {_gib(taken)} of "
            f"{_gib(device)}, too little for the engine's weights and one response at "
            "--max-prompt-tokens and --max-response-tokens: it will refuse to start"
        )
    if together > device:
        other = "" if config.sampler_sleep else ", or --sampler-sleep"
        yield (
            f"warning     trainer and engine together take {_gib(together)} of {_gib(device)}; "
            f"expected a lower --sampler-memory{other}"
        )


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / (1 << 30):,.1f} GiB"
