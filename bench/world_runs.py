"""Write whole runs of the second world as run stores, healthy or fallen, with their truth.

Legend: T steps, E evaluations, A agents of a policy, P problems.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from world_curves import Truth, draw_problems, measure, success_rates, truth_of
from world_families import FAMILIES, HEALTHY, TruePath
from world_paths import Float64Array, Rng
from world_signals import (
    NEEDS_SHARED,
    OF_A_POLICY,
    Design,
    RoleSignals,
    healthy_role,
    outcomes,
    plant,
    wake,
)
from world_signals import measure as measure_role
from world_stores import append_evaluations, append_steps

from gradlab.records import Agent, PolicyMeta, RunMeta
from gradlab.store.writer import RunStore

TEAMS: tuple[tuple[tuple[str, int, float], ...], ...] = (
    (("generator", 3, 700.0), ("aggregator", 1, 160.0)),
    (("generator", 1, 600.0), ("evaluator", 1, 350.0)),
    (("orchestrator", 1, 250.0), ("worker", 3, 450.0), ("synthesizer", 1, 300.0)),
)
"""Roles with their agents and the tokens they write at first."""
FALL_FAMILIES = ("abrupt", "over 5 %", "over 20 %", "cut after 4", "cut after 8")
HEALTHY_FAMILIES = tuple(name for name in HEALTHY if name.startswith("climb"))


@dataclass(frozen=True)
class Scenario:
    """What kind of run to write."""

    name: str
    cause: str = ""
    """One of `CAUSES`; '' and `falls`: nothing that was recorded leads."""
    falls: bool = False
    schedule: str = ""
    """'' draws one."""
    oddity: str = ""
    """'batch doubled', 'batch halved', 'resumed', 'heavy tails', 'transient', 'lasting noise',
    'strong trends' or 'dip'."""


@dataclass(frozen=True)
class RunTruth:
    """What happened in a run."""

    scenario: Scenario
    accuracy: Truth
    subject: str
    """Role, or policy, in which the cause is; '' without one."""
    subjects: tuple[str, ...]
    """Names under which that may be told: the policy and its roles."""
    cause_step: float
    """Last step before the cause begins; NaN without one."""
    eval_every: int
    """Steps between evaluations."""


SCENARIOS: tuple[Scenario, ...] = (
    Scenario("constant rate", schedule="constant"),
    Scenario("warm-up, then constant", schedule="warm-up"),
    Scenario("linear decay", schedule="linear decay"),
    Scenario("cosine decay", schedule="cosine decay"),
    Scenario("strong smooth trends", oddity="strong trends"),
    Scenario("heavy-tailed norms", oddity="heavy tails"),
    Scenario("norms high at first", oddity="transient"),
    Scenario("noise with memory", oddity="lasting noise"),
    Scenario("resumed log", oddity="resumed"),
    Scenario("batch doubled", oddity="batch doubled"),
    Scenario("batch halved", oddity="batch halved"),
    Scenario("dip and recovery", oddity="dip"),
    Scenario("fall: learning rate", "learning rate", True, "constant"),
    Scenario("fall: rollout gap", "rollout gap", True),
    Scenario("fall: length", "length", True),
    Scenario("fall: entropy", "entropy", True),
    Scenario("fall: KL", "KL", True),
    Scenario("fall: truncation", "truncation", True),
    Scenario("fall: share", "share", True),
    Scenario("fall: norm", "norm", True),
    Scenario("fall without a recorded cause", falls=True),
    Scenario("fall under a decaying rate", falls=True, schedule="cosine decay"),
)


def write_run(path: Path, scenario: Scenario, rng: Rng) -> RunTruth:
    """Draw a run and write its store to `path`, which must not exist."""
    steps, eval_every = int(rng.choice([150, 200, 300])), int(rng.choice([5, 10]))
    problems = int(rng.choice([200, 400]))
    lead = rng.uniform(2.5, 4.0) * eval_every + rng.uniform(0.0, 10.0) if scenario.cause else 0.0
    family, curve = _path(scenario, steps // eval_every + 1, steps, lead, rng)
    team = TEAMS[int(rng.integers(len(TEAMS)))]
    is_shared = bool(rng.integers(2)) or scenario.cause in NEEDS_SHARED
    design = _design(scenario, steps, rng)

    eval_step_E = eval_every * np.arange(curve.level_T.size)
    trained_T = _by_step(curve, eval_step_E, steps) + rng.uniform(-0.03, 0.06)
    won = outcomes(trained_T, design, rng)
    roles = {
        role: healthy_role(design, length, agents, won["zero_variance_groups"], rng)
        for role, agents, length in team
    }
    policies = _policies(team, is_shared)
    onset = curve.start * steps
    planted = _Planted("", (), np.nan)
    if scenario.cause:
        planted = _plant(scenario.cause, policies, roles, float(int(onset - lead)), rng)
    if scenario.falls:
        wake(roles, onset, scenario.cause, planted.subject, rng)
    for signals in roles.values():
        measure_role(signals, won, rng)

    set_of = draw_problems(rng)
    rate_EP = success_rates(curve.level_T, problems, set_of, rng)
    noise_E = np.hypot(np.sqrt((rate_EP * (1 - rate_EP)).mean(1) / problems), set_of.jitter)
    correct_EP = measure(curve, rate_EP, noise_E, 1, set_of, rng)
    meta = _meta(curve, design, policies, problems, eval_every, rng)
    kept_T = np.ones(steps, dtype=bool)
    if scenario.oddity == "resumed":  # what was trained again after a kill is missing in the log
        lost = int(rng.integers(steps // 3, 2 * steps // 3))
        kept_T[lost : lost + int(rng.integers(3, 9))] = False
    with RunStore.create(path, meta) as store:
        append_evaluations(store, eval_step_E, correct_EP, roles, rng)
        append_steps(store, meta, roles, won, kept_T, rng)
    truth = truth_of(family, curve, eval_step_E, noise_E)
    return RunTruth(scenario, truth, planted.subject, planted.subjects, planted.step, eval_every)


def _by_step(curve: TruePath, eval_step_E: NDArray[np.int64], steps: int) -> Float64Array:
    """[T] the true accuracy at every step; it does not go down before the fall begins."""
    knot_K, level_K = eval_step_E.astype(np.float64), curve.level_T
    if np.isfinite(curve.start):
        onset = curve.start * eval_step_E[-1]
        at = int(np.searchsorted(knot_K, onset, side="right"))
        knot_K = np.insert(knot_K, at, onset)
        level_K = np.insert(level_K, at, level_K[at - 1])
    return np.interp(np.arange(steps), knot_K, level_K)


@dataclass(frozen=True)
class _Planted:
    subject: str
    subjects: tuple[str, ...]
    step: float


def _plant(
    cause: str,
    policies: tuple[PolicyMeta, ...],
    roles: dict[str, RoleSignals],
    step: float,
    rng: Rng,
) -> _Planted:
    """Let the cause begin in a role, or in a whole policy, chosen by lot."""
    policy = policies[int(rng.integers(len(policies)))]
    members = tuple(dict.fromkeys(agent.role for agent in policy.agents))
    subject = members[int(rng.integers(len(members)))]
    plant(cause, {role: roles[role] for role in members}, subject, step, rng)
    is_policy = cause in OF_A_POLICY
    told = (policy.name, *members) if is_policy or cause in NEEDS_SHARED else (subject,)
    return _Planted(policy.name if is_policy else subject, tuple(dict.fromkeys(told)), step)


def _meta(
    curve: TruePath,
    design: Design,
    policies: tuple[PolicyMeta, ...],
    problems: int,
    eval_every: int,
    rng: Rng,
) -> RunMeta:
    """A run that was stopped while it fell was meant to be longer."""
    is_stopped = curve.progress == "still falling"
    config = {
        "steps": int(1.5 * design.steps) if is_stopped else design.steps,
        "dtype": design.dtype,
        "learning_rate": design.peak_rate,
        "eval_every": eval_every,
    }
    return RunMeta.of_policies(
        f"world-{rng.integers(16**8):08x}",
        policies,
        task="maths",
        problems=tuple(f"problem-{index}" for index in range(problems)),
        config=config,
    )


def _path(scenario: Scenario, num: int, steps: int, lead: float, rng: Rng) -> tuple[str, TruePath]:
    """A true path; a cause begins after the first steps and its fall is larger than noise."""
    families = FALL_FAMILIES if scenario.falls else HEALTHY_FAMILIES
    if scenario.oddity == "dip":
        families = ("dip and recovery",)
    for _ in range(1000):
        family = families[int(rng.integers(len(families)))]
        size = rng.uniform(0.15, 0.28)
        path = FAMILIES[family](rng, num, size, None)
        if not scenario.falls or path.start * steps - lead > 0.25 * steps:
            return family, path
    raise AssertionError("no path whose fall leaves room for its cause")


def _design(scenario: Scenario, steps: int, rng: Rng) -> Design:
    schedules = ("constant", "warm-up", "linear decay", "cosine decay")
    schedule = scenario.schedule or schedules[int(rng.integers(len(schedules)))]
    odd = scenario.oddity
    prompts_T = np.full(steps, float(rng.choice([16, 24, 32])))
    if odd.startswith("batch"):
        changed = int(rng.uniform(0.35, 0.65) * steps)
        prompts_T[changed:] *= 2.0 if odd == "batch doubled" else 0.5
    return Design(
        steps=steps,
        schedule=schedule,
        peak_rate=float(10 ** rng.uniform(-6.0, -4.5)),
        warmup=0 if schedule == "constant" else int(rng.integers(5, 31)),
        dtype="float32" if rng.uniform() < 0.4 else "bfloat16",
        prompts_T=prompts_T,
        norm_noise=rng.uniform(0.35, 0.5) if odd == "heavy tails" else rng.uniform(0.12, 0.3),
        memory=rng.uniform(0.5, 0.8) if odd == "lasting noise" else rng.uniform(0.0, 0.3),
        window=int(rng.integers(12, 31)) if odd == "lasting noise" else int(rng.integers(5, 12)),
        trend=rng.uniform(1.0, 1.3) if odd == "strong trends" else rng.uniform(0.2, 1.0),
        transient=rng.uniform(3.0, 8.0) if odd == "transient" else rng.uniform(1.0, 2.5),
    )


def _policies(team: tuple[tuple[str, int, float], ...], is_shared: bool) -> tuple[PolicyMeta, ...]:
    blocks, size = ("attention", "mlp"), 4_000_000
    by_role = {role: tuple(Agent(role, k) for k in range(number)) for role, number, _ in team}
    if is_shared:
        agents = tuple(agent for group in by_role.values() for agent in group)
        return (PolicyMeta("shared", agents, blocks, size),)
    return tuple(PolicyMeta(role, agents, blocks, size) for role, agents in by_role.items())


def scenario(name: str) -> Scenario:
    """The scenario of a name."""
    found = [one for one in SCENARIOS if one.name == name]
    if not found:
        raise ValueError(f"scenario is '{name}'; expected one of {[one.name for one in SCENARIOS]}")
    return found[0]
