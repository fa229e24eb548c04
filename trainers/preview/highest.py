"""Say up to which value every numeric option makes sense, and refuse what lies above."""

from __future__ import annotations

from typing import Any

COUNT, PER_STEP, TOKENS = 10**9, 10**6, 10**7

HIGHEST: dict[str, float] = {
    # A run that long is none; larger numbers are slips of the finger, or overflow on their way.
    **dict.fromkeys(
        ("steps", "extend_to", "eval_every", "checkpoint_every", "row_statistics"), COUNT
    ),
    **dict.fromkeys(("keep_states", "keep_state_every", "warmup_steps"), COUNT),
    **dict.fromkeys(("problems_per_step", "samples", "rollout_rows", "rows_per_update"), PER_STEP),
    **dict.fromkeys(("fixed_updates", "coherence_window", "eval_problems"), PER_STEP),
    **dict.fromkeys(("eval_samples", "lora_alpha"), PER_STEP),
    **dict.fromkeys(("max_prompt_tokens", "max_response_tokens"), TOKENS),
    "micro_tokens": COUNT,
    "lora_rank": 65_536,
    "threads": 4096,
    "code_workers": 4096,
    **dict.fromkeys(("code_seconds", "sampler_seconds"), 86_400),
    "sampler_memory": 1,
    "code_memory_mb": 2**24,
    # torch takes 64 bits, of which seeds of adapters are multiples.
    **dict.fromkeys(("seed", "replay_seed", "problem_seed"), 10**15),
    # Above, logits are all but equal and log-probs no longer tell tokens apart in float32.
    "temperature": 1000,
    # AdamW moves a weight by about the learning rate: weights are far below 1.
    "learning_rate": 10,
    "weight_decay": 10**6,
    **dict.fromkeys(("clip_high", "dual_clip", "clip_norm", "entropy_coefficient"), 10**6),
    "rollout_correction_cap": 10**6,
}
"""Option -> the highest value taken."""

ROLE_VALUE = 1e6
"""The highest value of a role in --role-weight and its like."""

LOWEST_TEMPERATURE = 1e-4
"""Below, logits divided by it overflow."""


def check_highest(config: Any) -> None:
    """Raise ValueError for a number that is too large for its option."""
    for name, high in HIGHEST.items():
        value = getattr(config, name)
        flag = f"--{name.replace('_', '-')}"
        if value is not None and value > high:
            raise ValueError(f"{flag} is {value:g}; expected at most {high:,}")
        if value is not None and name.endswith("seed") and value < 0:
            raise ValueError(f"{flag} is {value}; expected 0 or more")
    if config.temperature < LOWEST_TEMPERATURE:
        raise ValueError(
            f"--temperature is {config.temperature:g}; expected {LOWEST_TEMPERATURE:g} or more: "
            "0.01 all but always takes the likeliest token"
        )
    if config.learning_rate * config.weight_decay >= 1:
        raise ValueError(
            f"--weight-decay is {config.weight_decay:g} with --learning-rate "
            f"{config.learning_rate:g}; expected a product below 1: every update multiplies the "
            "weights by 1 minus it"
        )
