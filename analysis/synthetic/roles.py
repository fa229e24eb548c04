"""Make what roles do, step by step: entropy, KL, lengths, rewards, words.

Legend: T steps, K signature buckets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from analysis.synthetic.accuracy import accuracy_curve, autoregressive
from analysis.synthetic.gradients import World
from analysis.synthetic.planted import Capture, Cliff, Shift
from gradlab.arrays import Floats
from gradlab.records import (
    SIGNATURE_BUCKETS,
    EvalRecord,
    RoleEvaluation,
    RoleLedger,
    RunLedger,
    StepRecord,
)

LEVELS: Mapping[str, float] = {
    "entropy": 0.6,
    "kl": 0.02,
    "ratio_std": 0.05,
    "clip_fraction": 0.01,
    "length_mean": 120.0,
    "truncated": 0.02,
    "parse_failures": 0.03,
    "reward_std": 0.4,
    "zero_variance_groups": 0.3,
    "logprob_gap": 0.004,
}
"""Typical values of the ledger's signals."""


class Ledgers:
    """What the roles did, step by step."""

    def __init__(
        self,
        rng: np.random.Generator,
        agents: Mapping[str, int],
        steps: int,
        cliff: Cliff | None,
        capture: Capture | None,
        shifts: tuple[Shift, ...],
    ) -> None:
        self.rng, self.agents, self.capture = rng, agents, capture
        time_T = np.arange(steps + 1)
        self.accuracy_T = accuracy_curve(time_T, steps, cliff)
        self.series: dict[tuple[str, str], Floats] = {}
        for role in agents:
            for signal, level in LEVELS.items():
                path = level * np.exp(0.08 * autoregressive(steps + 1, 0.4, rng))
                for shift in shifts:
                    if (shift.signal, shift.role) == (signal, role):
                        rise = np.clip((time_T - shift.step + 1) / max(shift.ramp, 1), 0.0, 1.0)
                        path = path * shift.factor**rise
                self.series[role, signal] = path
        for shift in shifts:
            if shift.signal == "learning_rate":  # every policy's
                continue
            if shift.role not in agents or shift.signal not in LEVELS:
                raise ValueError(
                    f"{shift}: expected a role of {list(agents)} and a signal of {list(LEVELS)}"
                )
        self.words = {role: rng.dirichlet(np.full(SIGNATURE_BUCKETS, 0.3)) for role in agents}

    def record(self, step: int, world: World) -> StepRecord:
        solved = float(self.accuracy_T[step])
        roles = {}
        for role, num in self.agents.items():
            own = {signal: float(self.series[role, signal][step]) for signal in LEVELS}
            policy = world.meta.routing[role]
            solved_own = float(np.clip(solved + 0.03 * self.rng.standard_normal(), 0, 1))
            measured = {
                "episodes": 64.0,
                "turns": 64.0 * num,
                "prompt_tokens": 64.0 * num * 80,
                "response_tokens": 64.0 * num * own["length_mean"],
                "optimizer_steps": float(world.num_updates[policy]),
                "loss_weight": world.weight[role],
                "reward_mean": solved_own,
                "own_accuracy": solved_own,
                "outcome_accuracy": solved,
                "advantage_std": 1.0,
                "singleton_groups": 0.0,
                "all_right_groups": own["zero_variance_groups"] * solved,
                "all_wrong_groups": own["zero_variance_groups"] * (1 - solved),
                "inflation": 1.0,
                "perplexity": math.exp(own["entropy"]),
                "length_p95": 1.8 * own["length_mean"],
                **own,
            }
            roles[role] = RoleLedger(**measured)
        return StepRecord(
            step,
            1.7e9 + 2.0 * step,
            RunLedger(
                accuracy=solved,
                reward_mean=solved,
                episodes=64.0,
                failed_episodes=0.0,
                tokens=float(sum(r.prompt_tokens + r.response_tokens for r in roles.values())),
                rollout_seconds=1.2,
                train_seconds=0.7,
                eval_seconds=0.0,
                step_seconds=2.0,
            ),
            roles,
            self._signatures(step),
        )

    def _signatures(self, step: int) -> dict[str, Floats]:
        drawn = {}
        for role, words in self.words.items():
            mixed = words
            if self.capture and role != self.capture.role and step >= self.capture.step:
                pull = 1 - math.exp(-(step - self.capture.step) / 40)
                mixed = (1 - 0.6 * pull) * words + 0.6 * pull * self.words[self.capture.role]
            drawn[role] = self.rng.multinomial(4000, mixed) / 4000.0
        return drawn


def evaluation(
    step: int,
    solved_PS: NDArray[np.uint8],
    rate: float,
    best: float,
    agents: Mapping[str, int],
    cliff: Cliff | None,
) -> EvalRecord:
    roles = {}
    for role in agents:
        falls = cliff is None or cliff.role == role
        own = rate if falls else best
        roles[role] = RoleEvaluation(
            own_accuracy=0.9 * own,
            any_correct=min(1.0, 1.2 * own),
            choice_accuracy=min(1.0, 0.4 + own) if role == "aggregator" else math.nan,
            length_mean=LEVELS["length_mean"],
            length_p95=1.8 * LEVELS["length_mean"],
            truncated=0.02,
            parse_failures=0.03,
        )
    own_RP = np.repeat(solved_PS.mean(axis=1)[None, :], len(agents), axis=0)
    return EvalRecord(step, solved_PS, roles, own_RP)
