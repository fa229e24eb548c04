"""Know the metric names of other trainers: which field each belongs to, and which has none.

Names are in lower case and without a leading 'train/'. A metric stands here only where its meaning
is that of the field; what is close and not the same is refused in words.
"""

from __future__ import annotations

import re

RUN = {
    "batch/success": "accuracy",
    "episode/success_rate": "accuracy",
    "objective/verifiable_correct_rate": "accuracy",
    "training/accuracy": "accuracy",
    "train_accuracy": "accuracy",
    "rollout/accuracy": "accuracy",
    "critic/score/mean": "reward_mean",
    "reward": "reward_mean",
    "rollout/raw_reward": "reward_mean",
    "objective/scores": "reward_mean",
    "scores": "reward_mean",
    "episode/reward/mean": "reward_mean",
    "objective/rlhf_reward": "penalized_reward",
    "task_reward/avg": "reward_mean",
    "reward/avg_raw_reward": "reward_mean",
    "reward/all/mean": "reward_mean",
    "reward/mean": "reward_mean",
    "perf/total_num_tokens": "tokens",
    "timing_s/gen": "rollout_seconds",
    "perf/rollout_time": "rollout_seconds",
    "timing/train/generation": "rollout_seconds",
    "timing_s/update_actor": "train_seconds",
    "perf/train_time": "train_seconds",
    "timing/train/policy_training": "train_seconds",
    "timing_s/testing": "eval_seconds",
    "timing_s/step": "step_seconds",
    "perf/step_time": "step_seconds",
    "timing/train/total_step_time": "step_seconds",
    "step_time": "step_seconds",
}
"""Of the run as a whole; verl and rLLM, TRL, slime, NeMo-RL, open-instruct, Dr. MAS."""
WITH_PENALTY = "critic/rewards/mean"
"""verl: the score with the KL penalty inside, where `algorithm.use_kl_in_reward` is on."""
SCORE = "critic/score/mean"
KL_IN_REWARD = "actor/reward_kl_penalty"
ROLE = {
    "training_ppl": "perplexity",
    "pg_clipfrac": "clip_fraction",
    "kl_loss": "kl",
    "reward_kl_penalty": "kl",
    "entropy": "entropy",
    "entropy_loss": "entropy",
}
"""verl, after 'actor/' or 'actor/<role>/'."""
POLICY = {"grad_norm": "grad_norm", "pg_loss": "loss", "lr": "learning_rate"}
ONE_ROLE = {
    # verl
    "response_length/mean": "length_mean",
    "response_length/clip_ratio": "truncated",
    "rollout_corr/training_ppl": "perplexity",
    "critic/score/mean": "reward_mean",
    # rLLM, by role
    "reward/mean": "reward_mean",
    "reward/std": "reward_std",
    # TRL, ms-swift, unsloth, NeMo-RL
    "reward": "reward_mean",
    "reward_std": "reward_std",
    "frac_reward_zero_std": "zero_variance_groups",
    "completions/mean_length": "length_mean",
    "completions/clipped_ratio": "truncated",
    "completion_length": "length_mean",
    "kl": "kl",
    "entropy": "entropy",
    "clip_ratio": "clip_fraction",
    "clip_ratio/region_mean": "clip_fraction",
    "sampling/sampling_logp_difference/mean": "logprob_gap",
    # slime, miles
    "rollout/raw_reward": "reward_mean",
    "rollout/response_lengths": "length_mean",
    "rollout/response_len/mean": "length_mean",
    "rollout/truncated": "truncated",
    "rollout/truncated_ratio": "truncated",
    "train_rollout_logprob_abs_diff": "logprob_gap",
    "kl_loss": "kl",
    "entropy_loss": "entropy",
    "pg_clipfrac": "clip_fraction",
    # OpenRLHF
    "response_length": "length_mean",
    "ppo_clip_ratio": "clip_fraction",
    "truncated": "truncated",
    # AReaL, after 'ppo_actor/' or 'grpo_actor/'
    "task_reward/avg": "reward_mean",
    "update/entropy/avg": "entropy",
    "seq_len/avg": "length_mean",
    "no_eos_ratios/avg": "truncated",
    # prime-rl
    "reward/all/mean": "reward_mean",
    "entropy/mean": "entropy",
    "entropy/all/mean": "entropy",
    "is_truncated/mean": "truncated",
    "is_truncated/all/mean": "truncated",
    # SkyRL
    "reward/avg_raw_reward": "reward_mean",
    "policy/policy_entropy": "entropy",
    "policy/ppo_clip_ratio": "clip_fraction",
    "policy/policy_kl": "kl",
    "generate/avg_num_tokens": "length_mean",
    # ROLL
    "critic/entropy/mean": "entropy",
    "token/response_length/mean": "length_mean",
    # NeMo-RL
    "mean_gen_tokens_per_sample": "length_mean",
    "truncation_rate": "truncated",
    "approx_entropy": "entropy",
    "kl_penalty": "kl",
    # open-instruct and TRL's older trainers
    "objective/scores": "reward_mean",
    "scores": "reward_mean",
    "objective/kl3_avg": "kl",
    "policy/clipfrac_avg": "clip_fraction",
    "policy/entropy_avg": "entropy",
    "val/sequence_lengths": "length_mean",
    "val/stop_rate": "truncated",
    "debug/vllm_vs_local_logprob_diff_mean": "logprob_gap",
}
"""Values over all rows: a role's only where there is no other, or where the name has the role."""
ONE_POLICY = {
    "grad_norm": "grad_norm",
    "loss": "loss",
    "learning_rate": "learning_rate",
    "lr": "learning_rate",
    "lr-pg_0": "learning_rate",
    "actor_lr": "learning_rate",
    "optim/grad_norm": "grad_norm",
    "actor_grad_norm": "grad_norm",
    "policy_loss": "loss",
    "actor_loss": "loss",
    "loss/policy_avg": "loss",
    "update/grad_norm": "grad_norm",
    "update/grad_norm/avg": "grad_norm",
    "update/lr": "learning_rate",
    "update/actor_loss/avg": "loss",
    "optim/lr": "learning_rate",
    "loss/mean": "loss",
    "policy/raw_grad_norm": "grad_norm",
    "policy/policy_loss": "loss",
    "policy/policy_lr": "learning_rate",
    "actor_train/grad_norm": "grad_norm",
}
SCALED = {"val/stop_rate": (-1.0, -1.0)}
"""Metric -> (plus, times): a response that does not stop was cut."""

TO_ROLLOUT = "KL to the rollout policy; the record keeps KL to the reference"
TO_BEFORE = "KL to the policy before the step; the record keeps KL to the reference"
SUMMED = "summed over the tokens of a response; the record keeps it per token"
REFUSED = (
    (r"actor/(?:[^/]+/)?kl|rollout_corr/(?:kl|k3_kl)|vllm_kl|train_rollout_kl", TO_ROLLOUT),
    (r"(?:actor/(?:[^/]+/)?)?ppo_kl|policy/approxkl_avg", TO_BEFORE),
    (
        r"(?:actor/(?:[^/]+/)?|rollout_corr/)ppl_ratio",
        "known: perplexity in training over that in rollout; no field for it",
    ),
    (
        r"(?:actor/(?:[^/]+/)?|rollout_corr/)chi2_(?:token|seq)",
        "known: mean of (ratio - 1)^2 between training and rollout; no field for it",
    ),
    (
        r"rollout_corr/log_ppl_(?:abs_)?diff",
        "a gap of whole responses; the record keeps the gap per token",
    ),
    (r"rollout_corr/(?!training_ppl$).*", "known: training against rollout; no field for it"),
    (
        r"training/rollout_probs_diff_\w+",
        "a difference of probabilities; the record keeps that of log-probabilities, in nats",
    ),
    (r"training/rollout_actor_probs_pearson_corr", "known: training against rollout; no field"),
    (r"rollout/rewards", "normalized within groups; the reward is rollout/raw_reward"),
    (r"rollout/kl", "KL that goes into the reward, 0 where none does; train/kl_loss is taken"),
    (r"objective/(?:kl|kl2|entropy|non_score_reward)", SUMMED),
    (r"mismatch_kl/(?:all/)?mean", TO_ROLLOUT),
    (r"(?:gen_kl_error|policy_kl_error|js_divergence_error)", TO_ROLLOUT),
    (
        r"token_mult_prob_error",
        "mean of exp |gap| over tokens; the record keeps the mean |gap|, in nats",
    ),
    (r"(?:.*[/_])?(?:mean_)?token_acc(?:uracy)?", "accuracy of tokens, not of answers"),
    (
        r"grad_diag/.*contribution_share",
        "known: a share of gradients; the record works shares out from norms and cosines",
    ),
)
"""Known names without a field that means the same."""
REASONS = tuple((re.compile(rf"^(?:{pattern})$"), why) for pattern, why in REFUSED)

ROLE_WORD = re.compile(
    r"^(?:agent|generator|evaluator|voter|aggregator|orchestrator|worker|synthesizer|"
    r"planner|executor|solver|verifier|judge|coder|tester|refiner|reasoner|reviewer|debater|"
    r"proposer|challenger|manager|assistant|retriever|searcher|answerer|summarizer|writer|"
    r"programmer|reflector|meta_thinker|\w+_agent|agent_\w+|policy(?=_?\d))_?\d*$",
    re.IGNORECASE,
)
"""What trainers call players; other words beside a metric are data sets and kinds of reward."""


def refusal(name: str) -> str:
    """Why a known metric has no field; '' for others. `name` is in lower case."""
    return next((why for pattern, why in REASONS if pattern.match(name)), "")
