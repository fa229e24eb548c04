"""Say what to change in the words of the trainer that made a run: its own option, with a value.

A remedy is an action; every trainer has its own words for it, or none. Correct the options here.
Left out of a trainer's table: what it has no option for (plain words then), and what is about one
role of several, which none of these trainers sets by role.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from gradlab.store.run import Run

Action = Literal[
    "lower rate",
    "anchor",
    "raise limit",
    "mask cut",
    "more samples",
    "clip",
    "entropy",
    "fewer updates",
    "cap share",
    "own adapter",
    "pay own work",
    "fewer agents",
    "evaluate more",
    "check sync",
    "check updates",
    "repair",
    "read rewarded",
    "other problems",
    "one set",
    "audit",
    "begin again",
]

GRADLAB = "gradlab"

_TRL = {
    "lower rate": "learning_rate={value}",
    "anchor": "beta={value}",
    "raise limit": "max_completion_length={value}",
    "mask cut": "mask_truncated_completions=True",
    "more samples": "num_generations={value}",
    "clip": "max_grad_norm={value}",
    "fewer updates": "num_iterations=1",
}
_VERL = {
    "lower rate": "actor_rollout_ref.actor.optim.lr={value}",
    "anchor": (
        "actor_rollout_ref.actor.use_kl_loss=True actor_rollout_ref.actor.kl_loss_coef={value}"
    ),
    "raise limit": "data.max_response_length={value}",
    "more samples": "actor_rollout_ref.rollout.n={value}",
    "clip": "actor_rollout_ref.actor.grad_clip={value}",
    "entropy": "actor_rollout_ref.actor.entropy_coeff={value}",
    "fewer updates": "actor_rollout_ref.actor.ppo_epochs=1",
}
_SLIME = {
    "lower rate": "--lr {value}",
    "anchor": "--use-kl-loss --kl-loss-coef {value}",
    "raise limit": "--rollout-max-response-len {value}",
    "more samples": "--n-samples-per-prompt {value}",
    "clip": "--clip-grad {value}",
    "entropy": "--entropy-coef {value}",
}
TERMS: dict[str, Mapping[str, str]] = {
    "trl": _TRL,
    "ms-swift": {
        action: f"--{option.replace('=', ' ').replace('True', 'true')}"
        for action, option in _TRL.items()
    },
    "verl": _VERL,
    "rllm": _VERL,
    "openrlhf": {
        "lower rate": "--actor_learning_rate {value}",
        "anchor": "--init_kl_coef {value}",
        "raise limit": "--generate_max_len {value}",
        "more samples": "--n_samples_per_prompt {value}",
        "clip": "--max_norm {value}",
        "entropy": "--entropy_loss_coef {value}",
        "fewer updates": "--max_epochs 1",
    },
    "nemo-rl": {
        "lower rate": "policy.optimizer.kwargs.lr={value}",
        "anchor": "loss_fn.reference_policy_kl_penalty={value}",
        "raise limit": "policy.generation.max_new_tokens={value}",
        "more samples": "grpo.num_generations_per_prompt={value}",
        "clip": "policy.max_grad_norm={value}",
    },
    "slime": _SLIME,
    "miles": _SLIME,
    "open-instruct": {
        "lower rate": "--learning_rate {value}",
        "anchor": "--beta {value}",
        "raise limit": "--response_length {value}",
        "more samples": "--num_samples_per_prompt_rollout {value}",
        "clip": "--max_grad_norm {value}",
    },
}
"""Trainer -> action -> its option."""

PLAIN: dict[Action, str] = {
    "lower rate": "learning rate {value}",
    "anchor": "a KL term against the reference policy, coefficient {value}",
    "raise limit": "longest response {value} tokens",
    "more samples": "{value} answers per problem",
    "clip": "clip the gradient's norm at {value}",
    "entropy": "an entropy bonus, coefficient {value}",
    "fewer updates": "one update on every batch of answers",
    "cap share": "weigh {role}'s loss down until its share of the gradient is {value}",
    "own adapter": "a policy of its own for {role}",
    "pay own work": "a reward for what {role} itself got right, beside the outcome",
    "fewer agents": "fewer agents that share a prompt",
    "evaluate more": "evaluate on {value} as many problems, or as often",
    "check sync": "compare the log-probs of sampler and trainer right after a sync of the weights",
    "check updates": "look for what is frozen, masked or rounded away: see the finding's evidence",
    "repair": "see the finding, and the warnings in the training log",
    "read rewarded": "read responses that earned most and check by hand whether they are right",
    "other problems": "leave out problems that are always solved or never",
    "audit": "run gradlab audit at the step that the finding names",
    "one set": "the same problems in the same order from the first step to the last",
}
"""Where a trainer has no option for an action, or is not known. 'mask cut' has no plain words."""
UNKNOWN_VALUE: dict[Action, str] = {
    "lower rate": "half of what it is",
    "anchor": "0.05, or twice what it is if that is more",
    "raise limit": "twice what it is",
    "more samples": "twice what it is",
    "clip": "0.5, or half of what it is if that is less",
    "entropy": "0.001, or twice what it is if that is more",
    "cap share": "that of its loss",
    "evaluate more": "twice",
}
"""Values where the run does not say what is in force."""

SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("verl", ("actor/pg_loss", "actor/grad_norm", "critic/rewards/mean", "critic/score/mean")),
    ("slime", ("rollout/raw_reward", "train/pg_loss", "train/ppo_kl")),
    ("openrlhf", ("response_length", "kl", "policy_loss")),
    ("open-instruct", ("objective/kl_avg", "val/sequence_lengths", "objective/verifiable_reward")),
    ("trl", ("completions/mean_length", "completion_length", "reward_std", "clip_ratio")),
)
"""Metrics that only one trainer names so; looked at where an import did not say which it was."""


def trainer_of(run: Run) -> str:
    """The trainer that made a run: 'gradlab', a key of `TERMS`, or 'unknown'."""
    config = run.meta.config
    said = str(config.get("trainer", "")).lower()
    if said and said != "unknown":
        return said
    if run.meta.workflow == "trl":  # recorded by gradlab's callback inside TRL
        return "trl"
    if "imported" not in config:  # recorded by a probe, in our trainer or in a loop of one's own
        # An option of `gradlab train` that no other trainer has, or what is made up here.
        is_ours = "problems_per_step" in config or run.meta.workflow == "synthetic"
        return GRADLAB if is_ours else "unknown"
    columns = config["imported"].get("columns", {})
    names = {str(name).removeprefix("train/") for name in columns} | set(map(str, columns))
    for trainer, signs in SIGNS:
        if sum(any(name.startswith(sign) for name in names) for sign in signs) >= 2:
            return trainer
    return "trl" if "trainer-state" in run.meta.workflow else "unknown"


def phrase(run: Run, action: Action, role: str, rate: float) -> str:
    """What to change in another trainer's run; '' where its trainer has no words for it.

    `rate`: the learning rate in force when things went wrong.
    """
    option = TERMS.get(trainer_of(run), {}).get(action)
    if option is None:
        plain = PLAIN.get(action, "")
        value = _value(run, action, rate, "") or UNKNOWN_VALUE.get(action, "")
        return plain.format(value=value, role=role)
    if "{value}" not in option:
        return option
    key = option.replace("{value}", "").rstrip("= ").split(" ")[-1]
    value = _value(run, action, rate, key.lstrip("-"))
    return option.format(value=value) if value else f"{key}: {UNKNOWN_VALUE[action]}"


def _value(run: Run, action: Action, rate: float, key: str) -> str:
    """A value that is a change for the better, '' where the run does not say what there is now.

    `key`: what the trainer calls it, in the run's configuration if that was recorded.
    """
    now = _number(run.meta.config.get(key))
    if action == "lower rate":
        now = rate if math.isfinite(rate) else now
        return f"{now / 2:.2g}" if math.isfinite(now) else ""
    if action == "raise limit" and not math.isfinite(now):
        now = limit_of(run)
    if not math.isfinite(now):
        return ""
    values: dict[Action, str] = {
        "anchor": f"{max(0.05, 2 * now):g}",
        "raise limit": f"{2 * now:.0f}",
        "more samples": f"{2 * now:.0f}",
        "clip": f"{min(0.5, now / 2) if now > 0 else 0.5:g}",
        "entropy": f"{max(0.001, 2 * now):g}",
    }
    return values.get(action, "")


def limit_of(run: Run) -> float:
    """The longest response that was let through: the mean length where nearly all were cut."""
    for role in run.roles:
        cut, length = run.ledger("truncated", role), run.ledger("length_mean", role)
        cut_T = np.asarray(cut.value_T, dtype=np.float64)
        length_T = np.asarray(length.value_T, dtype=np.float64)
        if len(cut_T) == len(length_T) and (all_cut_T := cut_T >= 0.99).any():
            return float(np.round(np.nanmax(length_T[all_cut_T])))
    return math.nan


def _number(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else math.nan
