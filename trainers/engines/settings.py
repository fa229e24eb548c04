"""Say how an engine has to be started to answer a run: lengths, adapters, ranks, dtype."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from trainers.config import TrainConfig

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Largest ranks that vLLM can be started with."""
HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head sizes that vLLM's attention on a CPU takes. Others are not refused: the engine starts, and
dies of the first request."""
GIB = 1 << 30
LARGEST_CPU_CACHE = 16
"""GiB of keys and values on a CPU."""


@dataclass(frozen=True)
class EngineSettings:
    """What an engine must be started with."""

    dtype: str
    max_model_len: int
    """Longest prompt and response together, in tokens."""
    max_loras: int
    """Adapters that answer side by side."""
    max_lora_rank: int
    """As vLLM takes it; 0: nothing is trained."""
    max_num_seqs: int
    """Responses that are drawn at once."""
    memory_share: float
    """Of a GPU's memory."""
    can_sleep: bool
    on_cpu: bool
    cache_gib: int
    """Of keys and values, on a CPU."""

    def arguments(self) -> dict[str, Any]:
        """Of `vllm.LLM`; with dashes, of vLLM's server."""
        arguments: dict[str, Any] = {
            "dtype": self.dtype,
            "max_model_len": self.max_model_len,
            "max_num_seqs": self.max_num_seqs,
            "enable_lora": True,
            "max_loras": self.max_loras,
            # A new version is loaded and proven before the old one goes.
            "max_cpu_loras": 2 * self.max_loras,
            "max_lora_rank": self.max_lora_rank,
            "enable_prefix_caching": True,
            # Its own default leaves the temperature out of log-probs.
            "logprobs_mode": "processed_logprobs",
            # A model's own file would set top_p and top_k.
            "generation_config": "vllm",
        }
        if self.on_cpu:
            # A seeded request whose prompt is cut into chunks ends the engine on a CPU.
            arguments["enable_chunked_prefill"] = False
            arguments["max_num_batched_tokens"] = max(self.max_model_len, self.max_num_seqs, 4096)
        else:
            arguments["gpu_memory_utilization"] = self.memory_share
            if self.can_sleep:
                arguments["enable_sleep_mode"] = True
        return arguments

    def flags(self) -> list[str]:
        """The arguments as vLLM's server takes them."""
        flags = []
        for name, value in self.arguments().items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                flags.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                flags += [f"--{flag}", str(value)]
        return flags

    def environment(self) -> dict[str, str]:
        """Variables that an engine reads when it starts."""
        found = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        if self.on_cpu:
            found |= {
                "VLLM_CPU_KVCACHE_SPACE": str(self.cache_gib),
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            }
        return found


def settings_of(config: TrainConfig, shapes: Any, *, on_cpu: bool) -> EngineSettings:
    """What a configuration needs; `shapes`: the architecture of its base model."""
    longest = max(speaker.max_tokens for speaker in config.speakers().values())
    length = config.max_prompt_tokens + longest
    rows = config.rollout_rows
    return EngineSettings(
        dtype=config.dtype,
        max_model_len=length,
        max_loras=len(config.policies),
        max_lora_rank=engine_rank(max(map(config.lora_rank_of, config.policies))),
        max_num_seqs=rows,
        memory_share=config.sampler_memory,
        can_sleep=config.sampler_sleep,
        on_cpu=on_cpu,
        cache_gib=min(
            max(1, math.ceil(rows * length * token_bytes(shapes, config.dtype) / GIB)),
            LARGEST_CPU_CACHE,
        ),
    )


def engine_rank(rank: int) -> int:
    """The smallest rank that an engine can be started with and an adapter of `rank` fits into."""
    return next(allowed for allowed in RANKS if allowed >= rank)


def head_size(shapes: Any) -> int:
    return int(
        getattr(shapes, "head_dim", None) or shapes.hidden_size // shapes.num_attention_heads
    )


def engine_head_size(size: int) -> int:
    """The smallest head size that an engine takes and heads of `size` fit into; 0: none."""
    return next((allowed for allowed in HEAD_SIZES if allowed >= size), 0)


def token_bytes(shapes: Any, dtype: str) -> int:
    """Keys and values of one token, all layers, as an engine keeps them."""
    heads = getattr(shapes, "num_key_value_heads", None) or shapes.num_attention_heads
    width = engine_head_size(head_size(shapes)) or head_size(shapes)
    element = {"float32": 4, "bfloat16": 2}[dtype]
    return int(shapes.num_hidden_layers * 2 * heads * width * element)
