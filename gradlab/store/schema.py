"""Derive the groups and arrays of a run store from what the records declare.

A store has one group per cadence, because all arrays of a group share one length:

    train/              one row per training step
    updates/<policy>/   one row per optimizer update of that policy
    eval/               one row per evaluation
    rates/              the same where only the share of right answers is known (imported runs)

The first dimension of every array is the group's row dimension. Labels of the other dimensions
(roles, agents, blocks, metric names) are string coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from gradlab.records import (
    SIGNATURE_BUCKETS,
    Dtype,
    EvalRecord,
    PolicyMeta,
    RateRecord,
    RoleEvaluation,
    RoleLedger,
    RowStatistics,
    RunLedger,
    RunMeta,
    StepRecord,
    UpdateMetrics,
    UpdateRecord,
    names,
)

SCHEMA = "gradlab.run"
SCHEMA_VERSION = "1.4"


@dataclass(frozen=True)
class ArraySpec:
    """One array of a group."""

    name: str
    dims: tuple[str, ...]
    """Names of the dimensions, the row dimension first."""
    dtype: Dtype
    unit: str
    meaning: str
    since: str = "1.0"
    """Schema version that introduced it: older stores do without."""

    @property
    def fill(self) -> float | int:
        """The value of a cell that was never written."""
        return {"int64": -1, "uint8": 255}.get(self.dtype, float("nan"))


@dataclass(frozen=True)
class GroupSpec:
    """One group of a store: arrays that grow together."""

    path: str
    row: str
    """Name of the row dimension: 'step', 'update' or 'eval'."""
    arrays: tuple[ArraySpec, ...]
    labels: dict[str, tuple[str, ...]]
    """Coordinates of every dimension but the row dimension."""

    def row_shape(self, array: ArraySpec) -> tuple[int, ...]:
        """Shape of one row of `array`."""
        return tuple(len(self.labels[dim]) for dim in array.dims[1:])


def describe(record: type[Any]) -> dict[str, dict[str, str]]:
    """{metric: {'unit', 'meaning'}} of a record type; kept as attributes beside the array."""
    return {f.name: dict(f.metadata) for f in fields(record) if "unit" in f.metadata}


def arrays_of(
    record: type[Any], row: str, meta: PolicyMeta | RunMeta | None = None
) -> tuple[ArraySpec, ...]:
    """The arrays that keep records of this type; without those that `meta` does not ask for."""
    declared = [f.metadata["kept"] for f in fields(record) if "kept" in f.metadata]
    return tuple(
        ArraySpec(one.name, (row, *one.dims), one.dtype, one.unit, one.meaning, one.since)
        for one in declared
        if all(getattr(meta, setting) for setting in one.needs)
    )


def train_group(meta: RunMeta) -> GroupSpec:
    return GroupSpec(
        "train",
        "step",
        arrays_of(StepRecord, "step", meta),
        {
            "run_metric": names(RunLedger),
            "role": meta.roles,
            "role_metric": names(RoleLedger),
            "bucket": tuple(str(bucket) for bucket in range(SIGNATURE_BUCKETS)),
            **({"reward_component": meta.reward_components} if meta.reward_components else {}),
        },
    )


def updates_group(policy: PolicyMeta) -> GroupSpec:
    agents = tuple(str(agent) for agent in policy.agents)
    labels = {
        "block": policy.blocks,
        "agent": agents,
        "agent2": agents,
        "update_metric": names(UpdateMetrics),
        "role": tuple(dict.fromkeys(agent.role for agent in policy.agents)),
        "row_metric": names(RowStatistics),
    }
    if policy.sketch_buckets:
        labels["sketch_bucket"] = tuple(map(str, range(policy.sketch_buckets)))
    arrays = arrays_of(UpdateRecord, "update", policy)
    return GroupSpec(f"updates/{policy.name}", "update", arrays, labels)


def eval_group(meta: RunMeta) -> GroupSpec:
    return GroupSpec(
        "eval",
        "eval",
        arrays_of(EvalRecord, "eval"),
        {
            "problem": meta.problems,
            "sample": tuple(str(sample) for sample in range(meta.eval_samples)),
            "role": meta.roles,
            "eval_metric": names(RoleEvaluation),
        },
    )


def rates_group(meta: RunMeta) -> GroupSpec:
    """Evaluations of which only the rate is known: no problem can be compared with itself."""
    labels = {"role": meta.roles, "eval_metric": names(RoleEvaluation)}
    return GroupSpec("rates", "eval", arrays_of(RateRecord, "eval"), labels)


def groups(meta: RunMeta) -> tuple[GroupSpec, ...]:
    """Every group of a run's store. `eval` is absent when the run has no held-out problems."""
    updates = tuple(updates_group(policy) for policy in meta.policies)
    evaluations = (eval_group(meta),) if meta.problems else ()
    rates = (rates_group(meta),) if meta.rates else ()
    return (train_group(meta), *updates, *evaluations, *rates)


METRIC_RECORDS: dict[str, type[Any]] = {
    "run_metric": RunLedger,
    "role_metric": RoleLedger,
    "update_metric": UpdateMetrics,
    "row_metric": RowStatistics,
    "eval_metric": RoleEvaluation,
}
"""Which record type declares the metrics of a metric dimension."""

RETIRED: dict[str, dict[str, str]] = {
    "role_metric": {
        "learning_rate": "1.4 keeps it by update: Run.update_metric('learning_rate', POLICY)"
    }
}
"""Metric dimension -> metrics that only older stores have, and where later ones have them.

They are read there as they were; steps that are added have NaN.
"""


def unit_of(dim: str, metric: str) -> str:
    """Of a metric of this version or of an earlier one."""
    return describe(METRIC_RECORDS[dim]).get(metric, {"unit": "1"})["unit"]
