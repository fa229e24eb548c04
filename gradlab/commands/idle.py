"""Refuse options that would do nothing beside the others: whoever gives one expects an effect."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainers.config import TrainConfig


def check_idle(config: TrainConfig, given: Collection[str]) -> None:
    """Raise ValueError for an option among `given` (fields) that the run would not look at."""
    is_damped = config.coherence_damping > 0 or any(config.role_damping.values())
    is_engine = config.sampler != "transformers"
    needs = {
        "votes": ("--workflow voting or majority", "votes" in config.build_workflow().options),
        "rounds": ("--workflow evaluator_optimizer", config.workflow == "evaluator_optimizer"),
        "workers": ("--workflow orchestrator_workers", config.workflow == "orchestrator_workers"),
        "difficulty": ("--task arithmetic", config.task == "arithmetic"),
        "mix": ("--reward mix", config.reward == "mix"),
        "fixed_updates": ("--updates fixed", config.updates == "fixed"),
        "keep_state_every": ("--keep-states", config.keep_states > 0),
        "coherence_window": ("--coherence-damping or --role-damping", is_damped),
        "coherence_start": ("--coherence-damping or --role-damping", is_damped),
        "sampler_merge": ("--sampler transformers", not is_engine),
        "sampler_directory": ("--sampler vllm-server", is_engine),
        "sampler_seconds": ("--sampler vllm-server", is_engine),
        "sampler_memory": ("--sampler vllm-server", is_engine),
        "sampler_sleep": ("--sampler vllm-server", is_engine),
    }
    for name, (other, is_used) in needs.items():
        if name in given and not is_used:
            raise ValueError(
                f"--{name.replace('_', '-')} is given and would do nothing: expected {other} with "
                "it, or neither"
            )
