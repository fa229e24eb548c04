"""Write small stores out of plain series, as a trainer or an importer would have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradlab.records import (
    Agent,
    EvalRecord,
    PolicyMeta,
    RateRecord,
    RoleEvaluation,
    RoleLedger,
    RunLedger,
    RunMeta,
    StepRecord,
    UpdateMetrics,
    UpdateRecord,
)
from gradlab.store.run import Run, open_run
from gradlab.store.writer import RunStore

Series = Sequence[float] | np.ndarray[Any, Any]


def store_of(
    path: Path,
    *,
    roles: Mapping[str, Mapping[str, Series]],
    run: Mapping[str, Series] | None = None,
    updates: Mapping[str, Series] | None = None,
    rates: Mapping[int, float] | None = None,
    answers: float = math.nan,
    solved: Mapping[int, Series] | None = None,
    judged: Mapping[str, Mapping[str, Series]] | None = None,
    config: Mapping[str, Any] | None = None,
    mode: str = "imported",
) -> Run:
    """A closed run of one policy with a step per value. `roles`, `run`, `updates`: field -> series.

    Evaluations are `rates` (step -> accuracy) with `answers` each, or `solved` (step -> 0 and 1 by
    problem); `judged`: role -> field of `RoleEvaluation` -> value per evaluation.
    """
    rates, solved, judged = rates or {}, solved or {}, judged or {}
    policy = PolicyMeta("shared", tuple(Agent(role) for role in roles), ("all",), 1, mode)  # type: ignore[arg-type]
    meta = RunMeta.of_policies(
        "made",
        [policy],
        rates=bool(rates),
        problems=tuple(f"p{i}" for i in range(len(next(iter(solved.values()), ())))),
        config=dict(config or {}),
    )
    series = [*(run or {}).values(), *(updates or {}).values()]
    series += [value for fields in roles.values() for value in fields.values()]
    evaluated = sorted({*rates, *solved})

    def evaluation(step: int) -> dict[str, RoleEvaluation]:
        at = evaluated.index(step)
        return {
            role: RoleEvaluation(**{name: float(value[at]) for name, value in fields.items()})
            for role, fields in judged.items()
        }

    with RunStore.create(path / "run.zarr", meta) as store:
        for step in range(max(map(len, series), default=0) + 1):
            if step:
                fields = {name: float(value[step - 1]) for name, value in (updates or {}).items()}
                norm = fields.get("grad_norm", math.nan)
                gram = np.full((1, len(roles), len(roles)), math.nan)
                if len(roles) == 1:
                    gram[0, 0, 0] = norm**2
                if fields:
                    store.append(
                        UpdateRecord("shared", step, gram, metrics=UpdateMetrics(**fields))
                    )
                ledger = {name: float(value[step - 1]) for name, value in (run or {}).items()}
                spoke = {
                    role: RoleLedger(**{n: float(value[step - 1]) for n, value in given.items()})
                    for role, given in roles.items()
                }
                store.append(StepRecord(step, 1e9, RunLedger(**ledger), spoke))
            if step in rates:
                store.append(RateRecord(step, rates[step], answers, evaluation(step)))
            if step in solved:
                correct = np.asarray(solved[step], dtype=np.uint8)[:, None]
                own = np.full((len(roles), len(correct)), math.nan)
                store.append(EvalRecord(step, correct, evaluation(step), own))
    return open_run(path)
