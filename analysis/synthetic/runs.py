"""Make runs whose truth is known: healthy ones, planted failures, and innocent look-alikes.

Nothing is written that was not measured on something: every Gram matrix comes from random gradient
vectors with the planted covariance, every accuracy from problems with difficulties and samples.

Legend: N agents of a role, X prompts, K samples per prompt, D dimensions, P problems, S samples,
T steps, E evaluations.

Example:
    >>> synthetic_run("out/fallen", cliff=Cliff(step=300, drop=0.2), seed=1)
    PosixPath('out/fallen/run.zarr')
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from analysis.synthetic.accuracy import accuracy_curve, autoregressive, evaluation_matrix
from analysis.synthetic.gradients import BLOCKS, DIMENSIONS, World, row_gradients, statistics_of
from analysis.synthetic.planted import Capture, Cliff, Rows, Shift, Spike
from analysis.synthetic.roles import Ledgers, evaluation
from gradlab.records import Agent, PolicyMeta, RunMeta
from gradlab.run_directory import STORE
from gradlab.store.writer import RunStore

__all__ = [
    "Capture",
    "Cliff",
    "Rows",
    "Shift",
    "Spike",
    "accuracy_curve",
    "autoregressive",
    "evaluation_matrix",
    "row_gradients",
    "statistics_of",
    "synthetic_run",
]

VOTING: Mapping[str, int] = {"generator": 3, "aggregator": 1}


def synthetic_run(
    path: Path | str,
    *,
    steps: int = 500,
    evals: int = 51,
    problems: int = 100,
    samples: int = 1,
    agents: Mapping[str, int] = VOTING,
    routing: Literal["shared", "isolated"] | Mapping[str, str] = "shared",
    updates_by: Literal["samples", "fixed"] = "samples",
    cliff: Cliff | None = None,
    capture: Capture | None = None,
    amplification: Mapping[str, float] | None = None,
    shifts: tuple[Shift, ...] = (),
    spikes: tuple[Spike, ...] = (),
    mass: Mapping[str, float] | None = None,
    noise: float = 0.25,
    memory: float = 0.5,
    wander: float = 0.0,
    planned: int | None = None,
    row_statistics: bool = True,
    close: bool = True,
    seed: int = 0,
) -> Path:
    """Write a run store into the directory `path`; returns the store.

    `amplification` is the ICC of each role's agents, `mass` the length of a role's gradient
    relative to its share of the loss, `noise` the standard deviation of log gradient norms and
    `memory` their lag-1 correlation, `wander` the standard deviation of the true accuracy's logit,
    `planned` the steps that the configuration asks for (default: those that are made). 500 steps
    take about a second, and a third of that without `row_statistics`, which amplification needs.
    """
    rng = np.random.default_rng(seed)
    planned = steps if planned is None else planned
    meta = _meta(Path(path).name, agents, routing, problems, samples, seed, planned)
    meta = replace(meta, config={**meta.config, "row_statistics": int(row_statistics)})
    rows = {role: Rows(prompt=(amplification or {}).get(role, 0.0)) for role in agents}
    step_E = np.unique(np.linspace(0, steps, evals).round().astype(np.int64))
    rate_E = accuracy_curve(step_E, steps, cliff)
    solved_EPS = evaluation_matrix(rate_E, problems, samples, rng, wander=wander)
    world = World(rng, meta, agents, rows, updates_by, mass or {}, noise, memory, steps)
    world.has_rows = row_statistics
    world.plant(capture, spikes, shifts)
    ledgers = Ledgers(rng, agents, steps, cliff, capture, shifts)
    Path(path).mkdir(parents=True, exist_ok=True)
    store_path = Path(path) / STORE
    with_evals = dict(zip([int(step) for step in step_E], range(len(step_E)), strict=True))
    store = RunStore.create(store_path, meta)
    for step in range(steps + 1):
        if step:
            for record in world.updates(step):
                store.append(record)
            store.append(ledgers.record(step, world))
        if step in with_evals and problems:
            index = with_evals[step]
            store.append(
                evaluation(step, solved_EPS[index], rate_E[index], rate_E.max(), agents, cliff)
            )
    if close:
        store.close()
    else:
        store.flush()
    return store_path


def _meta(
    name: str,
    agents: Mapping[str, int],
    routing: Literal["shared", "isolated"] | Mapping[str, str],
    problems: int,
    samples: int,
    seed: int,
    planned: int,
) -> RunMeta:
    if routing == "shared":
        route = dict.fromkeys(agents, "shared")
    elif routing == "isolated":
        route = {role: role for role in agents}
    else:
        route = dict(routing)
    players: dict[str, list[Agent]] = {}
    for role, num in agents.items():
        players.setdefault(route[role], []).extend(Agent(role, n) for n in range(num))
    policies = tuple(
        PolicyMeta(policy, tuple(team), BLOCKS, DIMENSIONS) for policy, team in players.items()
    )
    return RunMeta.of_policies(
        name,
        policies,
        workflow="synthetic",
        task="synthetic",
        model="none",
        roles=tuple(agents),
        problems=tuple(f"problem-{number}" for number in range(problems)),
        eval_samples=samples,
        config={"seed": seed, "steps": planned, "routing": str(routing), "agents": dict(agents)},
    )
