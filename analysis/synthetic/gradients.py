"""Make gradients with planted covariance, and the optimizer steps that they lead to.

Legend: N agents of a role, X prompts, K samples per prompt, D dimensions, T steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from analysis.synthetic.accuracy import autoregressive
from analysis.synthetic.planted import Capture, Rows, Shift, Spike
from gradlab.arrays import Floats
from gradlab.probe.measures.row_statistics import row_statistics
from gradlab.records import PolicyMeta, RowStatistics, RunMeta, UpdateMetrics, UpdateRecord

DIMENSIONS, PROMPTS, SAMPLES = 32, 12, 2
BLOCKS = ("layers.0.attention", "layers.0.mlp")


def row_gradients(
    rows: Rows,
    num_agents: int,
    rng: np.random.Generator,
    *,
    prompts: int = PROMPTS,
    samples: int = SAMPLES,
    dimensions: int = DIMENSIONS,
) -> Floats:
    """[N, X, K, D] row gradients of mean energy 1 with the planted components."""
    left = 1.0 - rows.signal - rows.prompt - rows.within - rows.episode
    if left < 0:
        raise ValueError(f"row_gradients: the components of {rows} sum to more than 1")

    def part(share: float, *shape: int) -> Floats:
        drawn: Floats = rng.standard_normal((*shape, dimensions)) * math.sqrt(share / dimensions)
        return drawn

    direction = np.ones(dimensions) * math.sqrt(rows.signal / dimensions)
    return (
        direction
        + part(rows.prompt, 1, prompts, 1)
        + part(rows.within, num_agents, prompts, 1)
        + part(rows.episode, 1, prompts, samples)
        + part(left, num_agents, prompts, samples)
    )


def statistics_of(gradient_NXKD: Floats) -> RowStatistics:
    """What the probe would record of these rows."""
    agent_R, prompt_R, sample_R = (
        index.reshape(-1) for index in np.indices(gradient_NXKD.shape[:3])
    )
    row_RD = gradient_NXKD.reshape(len(agent_R), -1)
    return row_statistics(row_RD, (row_RD**2).sum(axis=1), agent_R, prompt_R, sample_R)


class World:
    """Gradients and optimizer of every policy, step by step."""

    def __init__(
        self,
        rng: np.random.Generator,
        meta: RunMeta,
        agents: Mapping[str, int],
        rows: Mapping[str, Rows],
        updates_by: str,
        mass: Mapping[str, float],
        noise: float,
        memory: float,
        steps: int,
    ) -> None:
        self.has_rows = True
        self.rng, self.meta, self.agents, self.rows = rng, meta, agents, rows
        self.rate_T = np.full(steps + 1, 1e-3)
        self.weight = {
            role: num / sum(agents[r] for r in agents if meta.routing[r] == meta.routing[role])
            for role, num in agents.items()
        }
        self.num_updates = {
            policy.name: max(
                1,
                sum(agents[r] for r in agents if meta.routing[r] == policy.name)
                if updates_by == "samples" and len(meta.policies) > 1
                else 1,
            )
            for policy in meta.policies
        }
        time_T = np.arange(steps + 1)
        self.length = {}
        for role in agents:
            log_length = noise * autoregressive(steps + 1, memory, rng) - 0.5 * time_T / steps
            self.length[role] = self.weight[role] * mass.get(role, 1.0) * np.exp(log_length)
        self.second_moment = {policy.name: np.zeros(DIMENSIONS) for policy in meta.policies}
        self.place = {policy.name: np.zeros(DIMENSIONS) for policy in meta.policies}
        self.count = dict.fromkeys(self.num_updates, 0)

    def plant(
        self, capture: Capture | None, spikes: tuple[Spike, ...], shifts: tuple[Shift, ...]
    ) -> None:
        """Change the lengths of gradients, and the learning rate."""
        time_T = np.arange(len(self.rate_T))

        def rise_T(step: int, ramp: int) -> Floats:
            risen: Floats = np.clip((time_T - step + 1) / max(ramp, 1), 0.0, 1.0)
            return risen

        if capture:
            self.length[capture.role] *= capture.factor ** rise_T(capture.step, capture.ramp)
        for spike in spikes:
            self.length[spike.role][spike.step : spike.step + spike.length] *= spike.factor
        for shift in shifts:
            if shift.signal == "learning_rate":
                self.rate_T *= shift.factor ** rise_T(shift.step, shift.ramp)

    def updates(self, step: int) -> list[UpdateRecord]:
        """The records of every policy's updates in one step."""
        gradients = {
            role: row_gradients(self.rows[role], num, self.rng)
            * self.length[role][step]
            / self._typical(role)
            for role, num in self.agents.items()
        }
        statistics = {
            role: statistics_of(gradient * num) if self.has_rows else RowStatistics()
            for (role, gradient), num in zip(gradients.items(), self.agents.values(), strict=True)
        }
        records = []
        for policy in self.meta.policies:
            num_updates = self.num_updates[policy.name]
            for number in range(num_updates):
                vector_AD = np.stack(
                    [
                        gradients[agent.role][agent.number, number::num_updates].mean(axis=(0, 1))
                        for agent in policy.agents
                    ]
                )
                records.append(self._record(policy, step, vector_AD, statistics))
        return records

    def _typical(self, role: str) -> float:
        """Expected length of the role's gradient at scale 1, from the components."""
        rows, num = self.rows[role], self.agents[role]
        left = 1.0 - rows.signal - rows.prompt - rows.within - rows.episode
        num_updates = self.num_updates[self.meta.routing[role]]
        prompts = PROMPTS / num_updates
        own = num * (rows.within / prompts + left / (prompts * SAMPLES))
        shared = rows.signal + rows.prompt / prompts + rows.episode / (prompts * SAMPLES)
        return math.sqrt(num**2 * shared + own)

    def _record(
        self,
        policy: PolicyMeta,
        step: int,
        vector_AD: Floats,
        statistics: Mapping[str, RowStatistics],
    ) -> UpdateRecord:
        total_D = vector_AD.sum(axis=0)
        moment_D = self.second_moment[policy.name]
        moment_D += 0.05 * (total_D**2 - moment_D)
        self.count[policy.name] += 1
        correction = 1 - 0.95 ** self.count[policy.name]
        part_AD = -self.rate_T[step] * vector_AD / (np.sqrt(moment_D / correction) + 1e-8)
        self.place[policy.name] += part_AD.sum(axis=0)
        by_block = np.split(vector_AD, len(BLOCKS), axis=1)
        norm = float(np.linalg.norm(total_D))
        roles = {agent.role for agent in policy.agents}
        return UpdateRecord(
            policy.name,
            step,
            np.stack([block @ block.T for block in by_block]),
            metrics=UpdateMetrics(
                learning_rate=float(self.rate_T[step]),
                grad_norm=norm,
                clip_factor=min(1.0, 1.0 / max(norm, 1e-9)),
                residual=1e-6 * float(self.rng.uniform(0.5, 1.5)),
                coverage=1.0,
                update_norm=float(np.linalg.norm(part_AD.sum(axis=0))),
                decay_norm=0.0,
                distance=float(np.linalg.norm(self.place[policy.name])),
                loss=0.01 * float(self.rng.standard_normal()),
                rows=float(len(policy.agents) * PROMPTS * SAMPLES),
                probe_seconds=0.001,
            ),
            update_gram_AA=part_AD @ part_AD.T,
            transfer_AA=vector_AD @ part_AD.T,
            row_statistics={role: statistics[role] for role in roles},
        )
