"""Draw what a healthy RL run leaves in its ledger, step by step, and plant a cause or its wake.

Trends are hyperbolas of the step, noise has heavy tails and memory, counts are counted: groups
without spread, cut responses and parse failures are drawn from their probabilities, so that they
follow from accuracy and length as they do in a run.

Legend: T steps, Q prompts of a step. Lengths in tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.special import ndtr
from world_paths import Float64Array, Rng, wander

GROUP = 8
"""Responses to a prompt, compared with each other."""
LIMIT_NORM = 1.0
"""Gradients are clipped to it."""


@dataclass(frozen=True)
class Design:
    """What is set before a run begins, and how noisy it will be."""

    steps: int
    schedule: str
    """'constant', 'warm-up', 'linear decay' or 'cosine decay'."""
    peak_rate: float
    warmup: int
    dtype: str
    prompts_T: Float64Array
    """[T] prompts of a step; another batch size from some step on, perhaps."""
    norm_noise: float
    """Standard deviation of a log gradient norm, of a t distribution with 3 degrees of freedom."""
    memory: float
    """Share of the noise's variance that is slow."""
    window: int
    """Steps over which the slow part is averaged."""
    trend: float
    """Strength of the trends: 1 is ordinary (entropy to a third, lengths doubled), 0 is none."""
    transient: float
    """By what factor norms start too high."""


@dataclass
class RoleSignals:
    """One role's series before they are measured; causes and wakes change them in place."""

    entropy_T: Float64Array
    length_T: Float64Array
    """Mean length the role would write without a limit."""
    spread: float
    """Standard deviation of the log length."""
    limit_T: Float64Array
    """Response limit in tokens."""
    kl_T: Float64Array
    parse_T: Float64Array
    """Probability that a response is not understood."""
    gap_T: Float64Array
    norm_T: Float64Array
    rate_T: Float64Array
    reference_rate: float
    noise_ratio_T: Float64Array
    drift_T: Float64Array
    """How far the role's tokens have moved from its first histogram to its last, 0 to 1."""
    turns_T: Float64Array
    measured: dict[str, Float64Array] = field(default_factory=dict)
    """Series by ledger field, once `measure` was called."""


def drift(x_T: Float64Array, bend: float) -> Float64Array:
    """[T] 0 to 1, fast at first for bend > 0, late for bend between -1 and 0: a hyperbola."""
    return np.asarray(x_T * (1.0 + bend) / (1.0 + bend * x_T), dtype=np.float64)


def ramp(step_T: Float64Array, start: float, width: float) -> Float64Array:
    """[T] 0 until `start`, 1 from `start + width` on, rounded at both corners."""
    u_T = np.clip((step_T - start) / max(width, 1.0), 0.0, 1.0)
    return np.asarray(u_T * u_T * (3.0 - 2.0 * u_T), dtype=np.float64)


def noise(num: int, memory: float, window: int, rng: Rng, tails: bool = False) -> Float64Array:
    """[T] unit noise; `memory` of its variance is a moving average, tails are those of t(3)."""
    fast_T = rng.standard_t(3, num) / np.sqrt(3.0) if tails else rng.normal(size=num)
    slow_T = np.convolve(rng.normal(size=num + window - 1), np.ones(window), "valid")
    slow_T = slow_T / np.sqrt(window)
    return np.asarray(np.sqrt(1.0 - memory) * fast_T + np.sqrt(memory) * slow_T, dtype=np.float64)


def rates(design: Design) -> Float64Array:
    """[T] learning rate by the schedule."""
    step_T = np.arange(1.0, design.steps + 1.0)
    up_T = np.minimum(step_T / max(design.warmup, 1), 1.0)
    left_T = np.clip((design.steps - step_T) / max(design.steps - design.warmup, 1), 0.0, 1.0)
    match design.schedule:
        case "constant":
            shape_T = np.ones(design.steps)
        case "warm-up":
            shape_T = up_T
        case "linear decay":
            shape_T = up_T * left_T
        case "cosine decay":
            shape_T = up_T * 0.5 * (1.0 - np.cos(np.pi * left_T))
        case _:
            raise ValueError(f"schedule is '{design.schedule}'; expected one of docs/training.md")
    return design.peak_rate * shape_T


def outcomes(accuracy_T: Float64Array, design: Design, rng: Rng) -> dict[str, Float64Array]:
    """Rewards of the step's groups and what follows from them: the same for every role.

    Prompts are of beta-distributed difficulty around the accuracy in training.
    """
    num = design.steps
    most = int(design.prompts_T.max())
    total = rng.uniform(1.2, 2.5)
    mean_T = np.clip(accuracy_T, 0.01, 0.99)[:, None]
    chance_TQ = rng.beta(mean_T * total, (1.0 - mean_T) * total, (num, most))
    right_TQ = rng.binomial(GROUP, chance_TQ).astype(np.float64)
    right_TQ[np.arange(most) >= design.prompts_T[:, None]] = np.nan
    share_T = np.nanmean(right_TQ, axis=1) / GROUP
    is_flat_TQ = np.where(np.isnan(right_TQ), np.nan, (right_TQ == 0) | (right_TQ == GROUP))
    flat_T = np.nanmean(is_flat_TQ, axis=1)
    all_right_T = np.nansum(right_TQ == GROUP, axis=1) / design.prompts_T
    return {
        "reward_mean": share_T,
        "reward_std": np.sqrt(share_T * (1.0 - share_T)),
        "outcome_accuracy": share_T,
        "zero_variance_groups": flat_T,
        "all_right_groups": all_right_T,
        "all_wrong_groups": np.clip(flat_T - all_right_T, 0.0, 1.0),
        "advantage_std": np.sqrt((1.0 - flat_T) * (GROUP - 1) / GROUP),
    }


def healthy_role(
    design: Design, length: float, agents: int, flat_T: Float64Array, rng: Rng
) -> RoleSignals:
    """A role of a run in which nothing happens but learning."""
    num = design.steps
    x_T = np.linspace(0.0, 1.0, num)

    def trend(ratio: float) -> Float64Array:
        """[T] from 1 to `ratio` (at strength 1), along a bend of its own."""
        return np.asarray((ratio**design.trend) ** drift(x_T, rng.uniform(-0.4, 5.0)))

    def lasting(sd: float, tails: bool = False) -> Float64Array:
        """[T] noise, on a slow swell that no run is without."""
        swell_T = wander(num, rng.uniform(0.0, 0.6) * sd, rng)
        return np.exp(sd * noise(num, design.memory, design.window, rng, tails) + swell_T)

    batch_T = np.sqrt(design.prompts_T[0] / design.prompts_T)  # what averaging more prompts does
    # Gradients come from groups with spread, and norms start high while the moments fill.
    settled_T = 1.0 + (design.transient - 1.0) / (1.0 + (np.arange(num) / 3.0) ** 2)
    norm_T = 10.0 ** rng.uniform(-1.3, -0.3) * settled_T * batch_T
    norm_T = norm_T * np.sqrt(1.0 - flat_T) * trend(rng.uniform(0.8, 2.2))
    spread = rng.uniform(0.3, 0.45)
    length_T = length * trend(rng.uniform(1.2, 2.1)) * lasting(rng.uniform(0.015, 0.05))
    rounding = 1.1e-5 if design.dtype == "float32" else rng.uniform(0.004, 0.012)
    rate_T = rates(design)
    return RoleSignals(
        entropy_T=rng.uniform(0.25, 0.6)
        * trend(rng.uniform(0.28, 0.6))
        * lasting(rng.uniform(0.02, 0.07)),
        length_T=length_T,
        spread=spread,
        limit_T=np.full(num, np.ceil(length_T.max() * np.exp(rng.uniform(2.2, 2.8) * spread))),
        kl_T=rng.uniform(0.01, 0.08)
        * drift(x_T, rng.uniform(-0.3, 3.0)) ** rng.uniform(0.7, 1.2)
        * lasting(rng.uniform(0.08, 0.35), tails=True),
        parse_T=rng.uniform(0.02, 0.12) * trend(rng.uniform(0.1, 0.5)),
        gap_T=rounding * lasting(0.08),
        norm_T=norm_T * lasting(design.norm_noise, tails=True),
        rate_T=rate_T,
        reference_rate=design.peak_rate,
        noise_ratio_T=lasting(0.1),
        drift_T=rng.uniform(0.1, 0.35) * design.trend * drift(x_T, rng.uniform(-0.4, 3.0)),
        turns_T=agents * GROUP * design.prompts_T,
    )


def measure(signals: RoleSignals, won: Mapping[str, Float64Array], rng: Rng) -> None:
    """Fill in the role's ledger: counts are drawn, lengths end at the limit."""
    turns_T, spread = signals.turns_T, signals.spread
    log_T = np.log(signals.length_T) - 0.5 * spread**2
    far_T = (np.log(signals.limit_T) - log_T) / spread
    cut_T = 1.0 - ndtr(far_T)
    mean_T = signals.length_T * ndtr(far_T - spread) + signals.limit_T * cut_T
    moved_T = signals.rate_T / signals.reference_rate
    own_T = np.clip(won["outcome_accuracy"] - 0.02 + 0.02 * rng.normal(size=turns_T.size), 0, 1)
    episodes_T = turns_T / turns_T.min() * GROUP
    signals.measured = {
        **won,
        "own_accuracy": own_T,
        "episodes": episodes_T,
        "turns": turns_T,
        "prompt_tokens": turns_T * 180.0,
        "response_tokens": np.rint(turns_T * mean_T),
        "learning_rate": signals.rate_T,
        "singleton_groups": np.zeros_like(turns_T),
        "entropy": signals.entropy_T,
        "perplexity": np.exp(signals.entropy_T * 0.95),
        "kl": signals.kl_T,
        "clip_fraction": 0.004 * moved_T * signals.noise_ratio_T**2,
        "ratio_std": np.hypot(0.004, 0.02 * moved_T) * signals.noise_ratio_T,
        "length_mean": mean_T,
        "length_p95": np.minimum(np.exp(log_T + 1.645 * spread), signals.limit_T),
        "truncated": rng.binomial(turns_T.astype(np.int64), cut_T) / turns_T,
        "parse_failures": rng.binomial(turns_T.astype(np.int64), signals.parse_T) / turns_T,
        "logprob_gap": signals.gap_T,
    }


# --- causes: one recorded signal of one role or policy changes at a known step -----------------


def plant(
    cause: str, roles: Mapping[str, RoleSignals], subject: str, start: float, rng: Rng
) -> None:
    """Let `cause` begin at step `start` in role `subject`, or in all of `roles` for a policy's."""
    step_T = np.arange(1.0, roles[subject].entropy_T.size + 1.0)

    def grown(factor: float, width: float) -> Float64Array:
        return np.asarray(factor ** ramp(step_T, start, width))

    one = roles[subject]
    match cause:
        case "learning rate":
            factor_T = np.where(step_T > start, rng.uniform(4.0, 10.0), 1.0)
            for signals in roles.values():
                signals.rate_T = signals.rate_T * factor_T
        case "rollout gap":
            goal = rng.uniform(0.06, 0.3)
            one.gap_T = one.gap_T * grown(goal / float(np.median(one.gap_T)), rng.uniform(1, 10))
        case "length":
            one.length_T = one.length_T * grown(rng.uniform(2.2, 3.5), rng.uniform(4, 15))
        case "entropy":
            one.entropy_T = one.entropy_T * grown(rng.uniform(0.1, 0.25), rng.uniform(3, 12))
        case "KL":
            one.kl_T = one.kl_T * grown(rng.uniform(20.0, 60.0), rng.uniform(8, 15))
        case "truncation":
            after = int(start)
            lower = np.exp(np.log(one.length_T[after]) - 0.5 * one.spread**2)
            one.limit_T = np.where(step_T > start, np.ceil(lower), one.limit_T)
        case "share":
            one.norm_T = one.norm_T * grown(rng.uniform(5.0, 9.0), rng.uniform(3, 12))
        case "norm":
            factor_T = grown(rng.uniform(8.0, 25.0), rng.uniform(1, 6))
            for signals in roles.values():
                signals.norm_T = signals.norm_T * factor_T
        case _:
            raise ValueError(f"cause is '{cause}'; expected one of {', '.join(CAUSES)}")


CAUSES: dict[str, tuple[str, ...]] = {
    "learning rate": ("learning rate", "update", "ratio", "clip"),
    "rollout gap": ("gap", "log-prob", "sampler"),
    "length": ("length", "truncat", "cut", "limit", "token"),
    "entropy": ("entropy", "perplexity"),
    "KL": ("kl",),
    # Answers that are cut cannot be read: a breakdown is the same thing under another name.
    "truncation": ("truncat", "cut", "limit", "length", "token", "breakdown"),
    "share": ("share", "mass", "capture", "norm", "spike", "gradient", "pull", "takeover"),
    "norm": ("norm", "spike", "gradient", "mass", "clip", "explo"),
}
"""Cause -> parts of the names under which it can be named: with it, what follows by arithmetic."""
NEEDS_SHARED = ("share",)
OF_A_POLICY = ("learning rate", "norm")


def wake(
    roles: Mapping[str, RoleSignals], onset: float, cause: str, subject: str, rng: Rng
) -> None:
    """What a fall drags along: some signals move with it or after it, by up to 30 steps."""
    for name, signals in roles.items():
        step_T = np.arange(1.0, signals.entropy_T.size + 1.0)

        def later(factor: float, step_T: Float64Array = step_T) -> Float64Array:
            moved_T = ramp(step_T, onset + rng.uniform(1.0, 30.0), rng.uniform(5.0, 40.0))
            return np.asarray(factor**moved_T)

        def is_free(*causes: str, name: str = name) -> bool:
            return rng.uniform() < 0.5 and not (cause in causes and name == subject)

        if is_free("entropy"):
            signals.entropy_T = signals.entropy_T * later(rng.choice([0.5, 1.6, 2.2]))
        if is_free("length", "truncation"):
            signals.length_T = signals.length_T * later(rng.choice([0.6, 0.75, 1.4, 1.7]))
        if is_free("KL"):
            signals.kl_T = signals.kl_T * later(rng.uniform(2.0, 10.0))
        if is_free():
            gone_T = ramp(step_T, onset + rng.uniform(1.0, 30.0), rng.uniform(5.0, 40.0))
            signals.parse_T = signals.parse_T + rng.uniform(0.05, 0.3) * gone_T
        if is_free():
            signals.drift_T = signals.drift_T + 0.3 * (later(2.0) - 1.0)
