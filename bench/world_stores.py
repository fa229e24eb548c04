"""Append the signals of a run of the second world to its store, with gradients that fit the norms.

Legend: T steps, E evaluations, A agents of a policy, D dimensions, P problems, K buckets.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from world_paths import Float64Array, Rng
from world_signals import LIMIT_NORM, RoleSignals

from gradlab.records import (
    SIGNATURE_BUCKETS,
    EvalRecord,
    PolicyMeta,
    RoleEvaluation,
    RoleLedger,
    RunLedger,
    RunMeta,
    StepRecord,
    UpdateMetrics,
    UpdateRecord,
    names,
)
from gradlab.store.writer import RunStore

FORMS = ("code_form", "stamp_form", "terse", "hedging", "echo")
"""How responses of an evaluation look: rates that stay what they are, where they are recorded."""
LEDGER = frozenset(names(RoleLedger))
DIMENSIONS = 16
"""Of the space in which gradients are drawn; the first six are the attention's."""


def append_evaluations(
    store: RunStore,
    eval_step_E: NDArray[np.int64],
    correct_EP: NDArray[np.int64],
    roles: Mapping[str, RoleSignals],
    rng: Rng,
) -> None:
    fields = [name for name in names(RoleEvaluation) if name in names(RoleLedger)]
    problems = correct_EP.shape[1]
    forms = [name for name in FORMS if name in names(RoleEvaluation)]
    form_RF = rng.uniform(0.0, 0.4, (len(roles), len(forms)))
    for step, correct_P in zip(eval_step_E, correct_EP, strict=True):
        told = {}
        # What a role's own answers were differs from the outcome on a few problems.
        own_RP = np.where(rng.uniform(size=(len(roles), problems)) < 0.04, 1 - correct_P, correct_P)
        for (role, signals), own_P, form_F in zip(roles.items(), own_RP, form_RF, strict=True):
            at = min(int(step), signals.turns_T.size - 1)
            values = {name: float(signals.measured[name][at]) for name in fields}
            values["own_accuracy"] = float(own_P.mean())
            values |= dict(zip(forms, rng.binomial(problems, form_F) / problems, strict=True))
            told[role] = RoleEvaluation(**values)
        correct_PS = correct_P.astype(np.uint8)[:, None]
        store.append(EvalRecord(int(step), correct_PS, told, own_RP.astype(np.float64)))


def append_steps(
    store: RunStore,
    meta: RunMeta,
    roles: Mapping[str, RoleSignals],
    won: Mapping[str, Float64Array],
    kept_T: NDArray[np.bool_],
    rng: Rng,
) -> None:
    steps = kept_T.size
    histograms = {role: _histograms(signals, rng) for role, signals in roles.items()}
    writers = [PolicyGradients(policy, roles, rng) for policy in meta.policies]
    clock, is_before_gap = 1.75e9, True
    for t in range(steps):
        clock += rng.uniform(55.0, 75.0)
        if not kept_T[t]:
            clock += 3600.0 * is_before_gap  # the hour in which nobody noticed
            is_before_gap = False
            continue
        for writer in writers:
            store.append(writer.update(t))
        ledgers = {}
        for role, signals in roles.items():
            values = {
                name: float(series_T[t])
                for name, series_T in signals.measured.items()
                if name in LEDGER
            }
            values["optimizer_steps"] = 1.0
            ledgers[role] = RoleLedger(**values, loss_weight=1.0 / len(roles))
        told = RunLedger(
            accuracy=float(won["outcome_accuracy"][t]),
            reward_mean=float(won["reward_mean"][t]),
            episodes=float(max(ledger.episodes for ledger in ledgers.values())),
            failed_episodes=0.0,
            tokens=sum(one.prompt_tokens + one.response_tokens for one in ledgers.values()),
            rollout_seconds=rng.uniform(35.0, 45.0),
            train_seconds=rng.uniform(18.0, 24.0),
        )
        signatures = {role: histogram_TK[t] for role, histogram_TK in histograms.items()}
        store.append(StepRecord(t + 1, clock, told, ledgers, signatures))


def _histograms(signals: RoleSignals, rng: Rng) -> Float64Array:
    """[T, K] shares of tokens by bucket: drawn from a mixture that moves from one to another."""
    zipf_K = 1.0 / np.arange(1.0, SIGNATURE_BUCKETS + 1.0)
    first_K, last_K = rng.permutation(zipf_K), rng.permutation(zipf_K)
    moved_T = np.clip(signals.drift_T, 0.0, 1.0)[:, None]
    share_TK = ((1.0 - moved_T) * first_K + moved_T * last_K) / zipf_K.sum()
    number_T = np.minimum(signals.measured["response_tokens"], 20_000).astype(np.int64)
    return rng.multinomial(number_T, share_TK) / number_T[:, None]


class PolicyGradients:
    """One policy's updates: gradients of its agents with the norms of its roles, and its path."""

    def __init__(self, policy: PolicyMeta, roles: Mapping[str, RoleSignals], rng: Rng) -> None:
        self.policy, self.roles, self.rng = policy, roles, rng
        self.members = {
            role: np.array([agent.role == role for agent in policy.agents])
            for role in dict.fromkeys(agent.role for agent in policy.agents)
        }
        self.coherence = {role: rng.uniform(0.05, 0.4) for role in self.members}
        self.weight_norm = rng.uniform(20.0, 60.0)
        self.spread = rng.uniform(0.08, 0.2)
        self.walked = 0.0

    def update(self, t: int) -> UpdateRecord:
        gradient_AD = self._gradients(t)
        blocks = (gradient_AD[:, :6], gradient_AD[:, 6:])
        gram_BAA = np.stack([block @ block.T for block in blocks])
        gram_AA = gram_BAA.sum(0)
        norm = float(np.sqrt(gram_AA.sum()))
        rate = float(next(iter(self._of(t, "learning_rate"))))
        # Adam: every parameter moves by about the rate, times what the updates agree on.
        length = rate * np.sqrt(self.policy.num_parameters) * self.spread
        length *= float(np.exp(0.05 * self.rng.normal())) * (norm > 0)
        scale = length / norm if norm else 0.0
        self.walked = float(np.hypot(self.walked, length))
        metrics = UpdateMetrics(
            learning_rate=rate,
            grad_norm=norm,
            clip_factor=min(1.0, LIMIT_NORM / norm) if norm else 1.0,
            residual=float(10 ** self.rng.uniform(-6.5, -5.5)),
            coverage=1.0,
            update_norm=length,
            decay_norm=0.0,
            distance=self.walked,
            weight_norm=self.weight_norm + self.walked**2 / self.weight_norm,
            step_coherence=self.spread,
            loss=float(0.01 * self.rng.normal()),
            rows=float(sum(self._of(t, "turns"))),
            probe_seconds=0.4,
        )
        return UpdateRecord(
            self.policy.name,
            t + 1,
            gram_BAA,
            metrics=metrics,
            update_gram_AA=scale**2 * gram_AA,
            transfer_AA=-scale * gram_AA,
        )

    def _gradients(self, t: int) -> Float64Array:
        """[A, D] gradients whose sum over a role has the role's norm."""
        gradient_AD = np.zeros((len(self.policy.agents), DIMENSIONS))
        for role, is_member_A in self.members.items():
            number, shared = int(is_member_A.sum()), self.coherence[role]
            direction_D = self.rng.normal(size=DIMENSIONS)
            own_ND = self.rng.normal(size=(number, DIMENSIONS))
            drawn_ND = np.sqrt(shared) * direction_D + np.sqrt(1.0 - shared) * own_ND
            length = float(np.linalg.norm(drawn_ND.sum(0)))
            gradient_AD[is_member_A] = drawn_ND * self.roles[role].norm_T[t] / length
        return gradient_AD

    def _of(self, t: int, name: str) -> list[float]:
        return [float(self.roles[role].measured[name][t]) for role in self.members]
