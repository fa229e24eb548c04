"""Gather every signal of a run that could move before accuracy does, on a scale fit for judging.

Each kind declares how it is read, the scale on which its noise is even (log, logit or linear), and
the smallest change worth a word: with enough steps everything changes significantly.

Legend: T steps, K signature buckets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, xlogy

from gradlab.arrays import Floats
from gradlab.records import Agent, PolicyMeta, Signal
from gradlab.store.run import Run

Scale = Literal["linear", "log", "logit"]
Source = Literal["ledger", "norm", "mass", "policy", "pair", "signature"]

MIN_FINITE = 0.5
"""Smallest share of steps with a value."""


@dataclass(frozen=True)
class SignalKind:
    """One kind of signal: what to call it, how to read it, when a change matters."""

    name: str
    title: str
    source: Source
    scale: Scale
    min_change: float
    """On the scale: log 1.5 means 'times 1.5'."""
    floor: float = 1e-8
    """Smallest value a logarithm sees: below it, the instrument is silent."""
    is_outcome: bool = False
    """Moves with accuracy by definition or by arithmetic, so it explains nothing."""
    is_set: bool = False
    """Set by the configuration, without noise: its changes need no test."""
    suspect: Literal["both", "up", "never"] = "both"
    """The way that can fell a run. Short gradients, little KL and no cuts cannot."""

    def on_scale(self, value_T: Floats) -> Floats:
        """The series where its noise is even."""
        scaled = value_T
        if self.scale == "log":
            scaled = np.log(np.maximum(value_T, self.floor))
        elif self.scale == "logit":
            scaled = logit(np.clip(value_T, 0.005, 0.995))
        return scaled


KINDS: tuple[SignalKind, ...] = (
    SignalKind(
        "learning_rate",
        "learning rate",
        "policy",
        "log",
        math.log(1.5),
        1e-12,
        is_set=True,
        suspect="up",
    ),
    SignalKind(
        "episodes",
        "episodes per step",
        "ledger",
        "log",
        math.log(1.5),
        1.0,
        is_set=True,
        suspect="never",
    ),
    SignalKind(
        "logprob_gap",
        "rollout-trainer log-prob gap",
        "ledger",
        "log",
        math.log(3),
        1e-4,
        suspect="up",
    ),
    SignalKind("grad_norm", "gradient norm", "norm", "log", math.log(1.5), suspect="up"),
    SignalKind("share", "step mass share", "mass", "logit", math.log(2.0)),
    SignalKind("pull", "pull on the policy", "mass", "linear", 0.2),
    SignalKind("update", "share of the optimizer step", "mass", "linear", 0.15),
    SignalKind("conflict", "gradient cosine between roles", "pair", "linear", 0.2),
    SignalKind(
        "update_norm", "optimizer step length", "policy", "log", math.log(1.5), suspect="up"
    ),
    SignalKind("kl", "KL to the reference", "ledger", "log", math.log(2), 1e-4, suspect="up"),
    SignalKind(
        "ratio_std", "importance ratio spread", "ledger", "log", math.log(1.5), 1e-4, suspect="up"
    ),
    SignalKind("clip_fraction", "PPO clip fraction", "ledger", "linear", 0.02, suspect="up"),
    SignalKind("entropy", "token entropy", "ledger", "log", math.log(1.3), 1e-3),
    # Distance from a start only grows: what else moves the output says when.
    SignalKind("drift", "output drift", "signature", "linear", 0.05, suspect="never"),
    SignalKind("length_mean", "response length", "ledger", "log", math.log(1.2), 1.0),
    SignalKind("truncated", "truncated responses", "ledger", "linear", 0.05, suspect="up"),
    SignalKind("parse_failures", "parse failures", "ledger", "linear", 0.05, suspect="up"),
    SignalKind("reward_std", "reward spread", "ledger", "linear", 0.1, 0, True),
    SignalKind("zero_variance_groups", "groups without signal", "ledger", "linear", 0.15, 0, True),
    SignalKind("own_accuracy", "own accuracy in training", "ledger", "linear", 0.05, 0, True),
    SignalKind("reward_mean", "mean reward", "ledger", "linear", 0.05, 0, True),
)
KIND = {kind.name: kind for kind in KINDS}
BY_BATCH = frozenset(
    {"grad_norm", "update_norm", "share", "pull", "update", "conflict", "ratio_std"}
    | {"clip_fraction", "zero_variance_groups", "reward_std"}
)
"""Kinds whose level follows from how many responses a step has."""


@dataclass(frozen=True)
class Measured:
    """One signal of one subject, aligned with the run's steps."""

    kind: SignalKind
    subject: str
    """Role, policy, or 'role, role'."""
    policy: str
    unit: str
    value_T: Floats
    """As recorded, NaN where missing."""

    @property
    def key(self) -> str:
        return f"{self.kind.name}:{self.subject}"

    @property
    def title(self) -> str:
        return f"{self.subject} {self.kind.title}"

    @property
    def is_present(self) -> bool:
        finite = np.isfinite(self.value_T)
        return bool(len(finite) and finite.mean() >= MIN_FINITE)


def collect(run: Run) -> list[Measured]:
    """Every signal of the run, present or not: an absent one is a question left open."""
    return list(_all(run))


def _all(run: Run) -> Iterator[Measured]:
    policy_of, learning = routed(run), learners(run)
    masses = {
        "share": run.step_mass("share"),
        "pull": run.step_mass("pull"),
        "update": run.step_mass("update"),
    }
    for kind in KINDS:
        if kind.source == "policy":
            for policy in run.policies:
                yield _policy_signal(run, kind, policy.name)
            continue
        if kind.source == "pair":
            for first, second in combinations(policy_of, 2):
                if policy_of[first] == policy_of[second]:
                    value_T = aligned(run.steps, run.cosine(first, second))
                    yield Measured(kind, f"{first}, {second}", policy_of[first], "1", value_T)
            continue
        for role in run.roles:
            name = ", ".join(run.meta.policies_of(role))
            if role not in learning and kind.source in ("mass", "norm"):
                continue
            is_shared = role in policy_of and list(policy_of.values()).count(name) > 1
            if (
                role in run.meta.frozen
                and kind.source == "ledger"
                and (
                    kind.name == "zero_variance_groups"
                    or not np.isfinite(run.ledger(kind.name, role).value_T).any()
                )
            ):
                continue  # what is about training is not missed where nothing is trained
            if (
                kind.name == "episodes"
                and not np.isfinite(run.ledger("episodes", role).value_T).any()
            ):
                continue  # other trainers do not log it, and nothing is missed
            if kind.source == "signature":
                yield Measured(kind, role, name, "nats", drift(run.signature(role)))
            elif kind.source != "mass" or is_shared:  # alone in its policy, a role has all of it
                signal = _role_signal(run, kind, role, masses)
                yield Measured(kind, role, name, signal.unit, aligned(run.steps, signal))


def learners(run: Run) -> tuple[str, ...]:
    """Roles with agents in their policies: the others speak, but are not trained."""
    return tuple(role for role in run.roles if run.agents(role))


def routed(run: Run) -> dict[str, str]:
    """Role -> policy, of the roles that learn in one policy.

    Of a role whose agents train several there is no gradient to compare: they live apart.
    """
    found = {role: run.meta.policies_of(role) for role in learners(run)}
    return {role: policies[0] for role, policies in found.items() if len(policies) == 1}


def divided(run: Run) -> dict[str, tuple[PolicyMeta, ...]]:
    """Role -> its policies, of the roles whose agents train several."""
    found = {role: run.policies_of(role) for role in learners(run)}
    return {role: policies for role, policies in found.items() if len(policies) > 1}


def parallel_parts(run: Run) -> list[tuple[str, PolicyMeta]]:
    """Role and policy wherever several agents of the role train the policy together."""
    return [
        (role, policy)
        for role in learners(run)
        for policy in run.policies_of(role)
        if len(part_of(role, policy)) > 1
    ]


def part_of(role: str, policy: PolicyMeta) -> tuple[Agent, ...]:
    """The role's agents that train the policy."""
    return tuple(agent for agent in policy.agents if agent.role == role)


def _role_signal(
    run: Run, kind: SignalKind, role: str, masses: dict[str, dict[str, Signal]]
) -> Signal:
    if kind.source == "mass":
        return masses[kind.name][role]
    return run.norm(role) if kind.source == "norm" else run.ledger(kind.name, role)


def _policy_signal(run: Run, kind: SignalKind, policy: str) -> Measured:
    """An update metric per step: the path (sum over updates) for lengths, else the last value."""
    signal = run.update_metric(kind.name, policy)
    value = np.asarray(signal.value_T, dtype=np.float64)
    value_T = np.full(len(run.steps), math.nan)
    if len(value) and len(run.steps):  # the first step's updates are there before its own row
        row_U = np.searchsorted(run.steps, signal.step_T)
        kept = (row_U < len(run.steps)) & (
            run.steps[np.minimum(row_U, len(run.steps) - 1)] == signal.step_T
        )
        if kind.name == "update_norm":
            has_row = np.bincount(row_U[kept], minlength=len(run.steps)) > 0
            total_T = np.bincount(row_U[kept], value[kept], minlength=len(run.steps))
            value_T[has_row] = total_T[has_row]
        else:
            value_T[row_U[kept]] = value[kept]
    return Measured(kind, policy, policy, signal.unit, value_T)


def aligned(step_T: NDArray[np.int64], signal: Signal) -> Floats:
    """The signal's values on the steps of the run; NaN where it has none."""
    value_T = np.full(len(step_T), math.nan)
    if len(step_T) and len(signal.step_T):
        row = np.minimum(np.searchsorted(step_T, signal.step_T), len(step_T) - 1)
        kept = step_T[row] == signal.step_T
        value_T[row[kept]] = np.asarray(signal.value_T, dtype=np.float64)[kept]
    return value_T


def smoothed(signature_TK: NDArray[np.float32], window: int) -> Floats:
    """[T, K] trailing mean of the recorded histograms; NaN before the first one."""
    histogram_TK = np.asarray(signature_TK, dtype=np.float64)
    recorded_T = np.isfinite(histogram_TK).all(axis=1)
    zero = np.zeros((1, histogram_TK.shape[1]))
    total = np.concatenate([zero, np.cumsum(np.nan_to_num(histogram_TK), axis=0)])
    count = np.concatenate([[0], np.cumsum(recorded_T)])
    stop = np.arange(1, len(histogram_TK) + 1)
    start = np.maximum(stop - window, 0)
    num = (count[stop] - count[start])[:, None]
    mean: Floats = np.where(num > 0, (total[stop] - total[start]) / np.maximum(num, 1), math.nan)
    return mean


def divergence(p_TK: Floats, q_TK: Floats) -> Floats:
    """[T] Jensen-Shannon divergence in nats between histograms, between 0 and log 2."""
    middle_TK = (p_TK + q_TK) / 2
    entropy = [-xlogy(x, x).sum(axis=-1) for x in (middle_TK, p_TK, q_TK)]
    value: Floats = np.maximum(entropy[0] - (entropy[1] + entropy[2]) / 2, 0.0)
    return value


def unscaled(signal: Measured, level: float) -> float:
    """A level on the signal's scale in its own unit, within what was ever recorded."""
    value = level
    if signal.kind.scale == "log":
        value = math.exp(level)
    elif signal.kind.scale == "logit":
        value = float(expit(level))
    return float(np.clip(value, np.nanmin(signal.value_T), np.nanmax(signal.value_T)))


def drift(signature_TK: NDArray[np.float32]) -> Floats:
    """[T] divergence of a role's output from its own in the first tenth of the run; NaN in that
    tenth, from which it can be no distance away."""
    num_steps = len(signature_TK)
    window = max(3, num_steps // 50)
    smooth_TK = smoothed(signature_TK, window)
    num_start = max(window, num_steps // 10)
    start = smooth_TK[:num_start]
    start = start[np.isfinite(start).all(axis=1)]
    if not len(start):
        return np.full(num_steps, math.nan)
    distance_T = divergence(smooth_TK, np.broadcast_to(start.mean(axis=0), smooth_TK.shape))
    distance_T[:num_start] = math.nan
    return distance_T
