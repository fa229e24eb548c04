"""Turn the values of an imported run into the records of its store, in the order of steps.

Legend: T steps, A agents of a policy (one per role: nobody logs gradients of single agents).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradlab.arrays import Floats
from gradlab.interop.logs.history import History
from gradlab.interop.logs.naming.heldout import is_held_out
from gradlab.interop.logs.naming.targets import Target
from gradlab.records import (
    PolicyMeta,
    RateRecord,
    RoleEvaluation,
    RoleLedger,
    RunLedger,
    RunMeta,
    StepRecord,
    UpdateMetrics,
    UpdateRecord,
    names,
)
from gradlab.store.writer import Record


def records_of(
    meta: RunMeta,
    history: History,
    fields: Mapping[Target, Floats],
    answers_T: Floats,
    trained: set[int],
) -> list[Record]:
    """Everything in the order of steps: updates, then the step, then its evaluation."""
    records: list[Record] = []
    accuracy_T = fields.get(Target("Evaluation", "accuracy"))
    for t, step in enumerate(history.step_T.tolist()):
        row = {target: float(value_T[t]) for target, value_T in fields.items()}
        if step in trained:
            records += [
                update for policy in meta.policies if (update := _update(policy, step, row))
            ]
            run = RunLedger(**_of(row, "RunLedger", (), names(RunLedger)))
            ledgers = {
                role: RoleLedger(**_of(row, "RoleLedger", (role,), names(RoleLedger)))
                for role in meta.roles
            }
            records.append(StepRecord(step, float(history.wall_time_T[t]), run, ledgers))
        if accuracy_T is not None and math.isfinite(accuracy_T[t]):
            judged = {
                role: RoleEvaluation(**_of(row, "RoleEvaluation", (role,), names(RoleEvaluation)))
                for role in meta.roles
            }
            accuracy = min(max(float(accuracy_T[t]), 0.0), 1.0)
            records.append(RateRecord(step, accuracy, float(answers_T[t]), judged))
    return records


def trained_in(history: History, taken: Mapping[str, tuple[Target, ...]]) -> NDArray[np.bool_]:
    """[T] whether a step trained: evaluations of the base model are logged as steps, too."""
    trained_T = np.zeros(len(history.step_T), dtype=np.bool_)
    evaluations = {
        name
        for name, targets in taken.items()
        if all(target.kind in ("Evaluation", "RoleEvaluation") for target in targets)
    }
    for name, is_T in history.is_logged.items():
        if not is_held_out(name) and name not in evaluations:
            trained_T |= is_T
    return trained_T if trained_T.any() else np.ones(len(history.step_T), dtype=np.bool_)


def _of(
    row: Mapping[Target, float], kind: Any, subject: tuple[str, ...], fields: Sequence[str]
) -> dict[str, float]:
    """The fields of one record that the step has."""
    return {name: row[key] for name in fields if (key := Target(kind, name, subject)) in row}


def _update(policy: PolicyMeta, step: int, row: Mapping[Target, float]) -> UpdateRecord | None:
    """The update of a policy, as far as it is known: norms on the diagonal, cosines beside it."""
    metrics = _of(row, "UpdateMetrics", (policy.name,), names(UpdateMetrics))
    roles = [agent.role for agent in policy.agents]
    norm_A = np.array([row.get(Target("Gradient", "norm", (role,)), math.nan) for role in roles])
    gram_AA = np.full((len(roles), len(roles)), math.nan)
    for a, first in enumerate(roles):
        for b, second in enumerate(roles):
            keys = [
                Target("Gradient", "cosine", pair) for pair in ((first, second), (second, first))
            ]
            cosine = next((row[key] for key in keys if key in row), math.nan)
            gram_AA[a, b] = norm_A[a] * norm_A[b] * (1.0 if a == b else cosine)
    if all(math.isnan(value) for value in (*metrics.values(), *norm_A.tolist())):
        return None
    return UpdateRecord(policy.name, step, gram_AA[None], metrics=UpdateMetrics(**metrics))
