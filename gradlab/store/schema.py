"""List every array of a run store: name, dimensions, dtype, unit and meaning.

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
from typing import Any, Literal

from gradlab.records import (
    SIGNATURE_BUCKETS,
    PolicyMeta,
    RoleEvaluation,
    RoleLedger,
    RowStatistics,
    RunLedger,
    RunMeta,
    UpdateMetrics,
    names,
)

SCHEMA = "gradlab.run"
SCHEMA_VERSION = "1.3"

Dtype = Literal["int64", "float64", "float32", "float16", "uint8"]


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


def train_group(meta: RunMeta) -> GroupSpec:
    return GroupSpec(
        "train",
        "step",
        (
            ArraySpec("step", ("step",), "int64", "step", "training step, starting at 1"),
            ArraySpec("wall_time", ("step",), "float64", "s", "end of the step, since the epoch"),
            ArraySpec("run", ("step", "run_metric"), "float32", "see metric", "run ledger"),
            ArraySpec(
                "roles", ("step", "role", "role_metric"), "float32", "see metric", "role ledger"
            ),
            ArraySpec(
                "signature",
                ("step", "role", "bucket"),
                "float32",
                "1",
                "share of the role's response tokens per hash bucket",
            ),
            *_components(meta),
        ),
        {
            "run_metric": names(RunLedger),
            "role": meta.roles,
            "role_metric": names(RoleLedger),
            "bucket": tuple(str(bucket) for bucket in range(SIGNATURE_BUCKETS)),
            **({"reward_component": meta.reward_components} if meta.reward_components else {}),
        },
    )


def _components(meta: RunMeta) -> tuple[ArraySpec, ...]:
    """What a run has only if its reward is a sum of named components."""
    if not meta.reward_components:
        return ()
    return (
        ArraySpec(
            "reward_components",
            ("step", "role", "reward_component"),
            "float32",
            "reward",
            "mean over the role's turns of each component of the reward, which is their sum",
            "1.3",
        ),
    )


def updates_group(policy: PolicyMeta) -> GroupSpec:
    agents = tuple(str(agent) for agent in policy.agents)
    pair = ("update", "agent", "agent2")
    sketched, buckets = _optional(policy)
    return GroupSpec(
        f"updates/{policy.name}",
        "update",
        (
            ArraySpec("step", ("update",), "int64", "step", "training step of the update"),
            ArraySpec(
                "gram",
                ("update", "block", "agent", "agent2"),
                "float32",
                "loss^2",
                "<g_a, g_b> per parameter block, before clipping",
            ),
            ArraySpec("update_gram", pair, "float64", "1", "<d_a, d_b> of the optimizer step"),
            ArraySpec("transfer", pair, "float64", "loss", "<g_a, d_b>"),
            ArraySpec(
                "history",
                pair,
                "float64",
                "loss^2",
                "<g_a, m_b>, m_b the agent's part of the first moment before the update",
                "1.1",
            ),
            ArraySpec(
                "moment_gram", pair, "float64", "loss^2", "<m_a, m_b> before the update", "1.1"
            ),
            ArraySpec(
                "factor",
                ("update", "agent"),
                "float64",
                "1",
                "by what the trainer multiplied g_a before the optimizer used it; NaN: by nothing",
                "1.2",
            ),
            ArraySpec(
                "metrics", ("update", "update_metric"), "float32", "see metric", "update scalars"
            ),
            ArraySpec(
                "rows",
                ("update", "role", "row_metric"),
                "float32",
                "see metric",
                "row statistics per role over the rows of the step so far",
            ),
            *sketched,
        ),
        {
            "block": policy.blocks,
            "agent": agents,
            "agent2": agents,
            "update_metric": names(UpdateMetrics),
            "role": tuple(dict.fromkeys(agent.role for agent in policy.agents)),
            "row_metric": names(RowStatistics),
            **buckets,
        },
    )


def _optional(policy: PolicyMeta) -> tuple[tuple[ArraySpec, ...], dict[str, tuple[str, ...]]]:
    """The arrays that a policy has only if they were asked for, and their own dimension."""
    gram = ArraySpec(
        "effective_gram",
        ("update", "agent", "agent2"),
        "float64",
        "loss^2",
        "estimated <W_a, W_b> of gradients with respect to the effective weights",
        "1.1",
    )
    grams = (gram,) if policy.effective else ()
    if not policy.sketch_buckets:
        return grams, {}
    meaning = {
        "sketch": "sketch of g_a / ||g_a||: buckets i mod K of signed elements i",
        "update_sketch": "sketch of d_a / ||d_a||, d_a the agent's part of the optimizer step",
    }
    if policy.effective:
        meaning["effective_sketch"] = "sketch of W_a / ||W_a||, the projections of the step"
    dims = ("update", "agent", "sketch_bucket")
    arrays = tuple(
        ArraySpec(name, dims, "float16", "1", text, "1.1") for name, text in meaning.items()
    )
    return (*grams, *arrays), {"sketch_bucket": tuple(map(str, range(policy.sketch_buckets)))}


def eval_group(meta: RunMeta) -> GroupSpec:
    return GroupSpec(
        "eval",
        "eval",
        (
            ArraySpec("step", ("eval",), "int64", "step", "training steps done before"),
            ArraySpec(
                "correct",
                ("eval", "problem", "sample"),
                "uint8",
                "1",
                "1 solved, 0 not, 255 missing",
            ),
            ArraySpec(
                "roles", ("eval", "role", "eval_metric"), "float32", "see metric", "role evaluation"
            ),
            ArraySpec(
                "role_correct",
                ("eval", "role", "problem"),
                "float32",
                "1",
                "mean own correctness of the role's turns on the problem",
            ),
        ),
        {
            "problem": meta.problems,
            "sample": tuple(str(sample) for sample in range(meta.eval_samples)),
            "role": meta.roles,
            "eval_metric": names(RoleEvaluation),
        },
    )


def groups(meta: RunMeta) -> tuple[GroupSpec, ...]:
    """Every group of a run's store. `eval` is absent when the run has no held-out problems."""
    updates = tuple(updates_group(policy) for policy in meta.policies)
    evaluations = (eval_group(meta),) if meta.problems else ()
    rates = (rates_group(meta),) if meta.rates else ()
    return (train_group(meta), *updates, *evaluations, *rates)


def rates_group(meta: RunMeta) -> GroupSpec:
    """Evaluations of which only the rate is known: no problem can be compared with itself."""
    return GroupSpec(
        "rates",
        "eval",
        (
            ArraySpec("step", ("eval",), "int64", "step", "training steps done before", "1.2"),
            ArraySpec("accuracy", ("eval",), "float64", "1", "share of answers right", "1.2"),
            ArraySpec(
                "answers", ("eval",), "float64", "count", "graded answers; NaN: unknown", "1.2"
            ),
            ArraySpec(
                "roles",
                ("eval", "role", "eval_metric"),
                "float32",
                "see metric",
                "role evaluation",
                "1.2",
            ),
        ),
        {"role": meta.roles, "eval_metric": names(RoleEvaluation)},
    )


METRIC_RECORDS: dict[str, type[Any]] = {
    "run_metric": RunLedger,
    "role_metric": RoleLedger,
    "update_metric": UpdateMetrics,
    "row_metric": RowStatistics,
    "eval_metric": RoleEvaluation,
}
"""Which record type declares the metrics of a metric dimension."""
