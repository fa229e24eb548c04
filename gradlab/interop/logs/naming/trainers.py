"""Tell from the names in a log which trainer made it, so that advice can be given in its words."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

Trainer = Literal[
    "trl", "verl", "rllm", "openrlhf", "nemo-rl", "slime", "ms-swift", "open-instruct", "unknown"
]
SIGNS: tuple[tuple[Trainer, str], ...] = (
    ("ms-swift", r"global_step/max_steps|train_speed\(iter/s\)|memory\(gib\)"),
    ("open-instruct", r"objective/verifiable_\w+|debug/vllm_vs_local_.*|val/stop_rate"),
    (
        "nemo-rl",
        r"(?:train/)?(?:token_mult_prob_error|gen_kl_error|mean_gen_tokens_per_sample|"
        r"js_divergence_error)|timing/train/.*",
    ),
    (
        "slime",
        r"rollout/(?:raw_reward|response_lengths|response_len/.*)|"
        r"(?:train/)?train_rollout_logprob_abs_diff|train/lr-pg_0",
    ),
    ("rllm", r"batch/(?:success|solve_\w+)|val/.+/pass@[1k]|reward/[^/]+/(?:mean|std)"),
    ("verl", r"actor/.*|critic/.*|val-(?:core|aux)/.*|response_length/.*|timing_s/.*"),
    (
        "openrlhf",
        r"(?:train/)?(?:actor_lr|critic_lr|actor_loss|policy_loss|ptx_loss|vllm_kl|"
        r"ppo_clip_ratio|actor_grad_norm)|(?:eval/)?eval_\w+_pass\d+",
    ),
    (
        "trl",
        r"(?:train/)?(?:completions/.*|completion_length|rewards/.*|reward_std|"
        r"frac_reward_zero_std|clip_ratio(?:/.*)?|sampling/.*|objective/.*|train_runtime)",
    ),
)
"""The most telling names first: verl's are in the logs of all that is built on it."""
COMPILED = tuple((name, re.compile(f"^(?:{text})$", re.IGNORECASE)) for name, text in SIGNS)


def trainer_of(names: Iterable[str], kind: str) -> Trainer:
    """The trainer that logs such names; a trainer_state.json is of the trainers that TRL is."""
    names = list(names)
    for trainer, sign in COMPILED:
        if any(sign.match(name) for name in names):
            return trainer
    return "trl" if kind == "trainer-state" else "unknown"
