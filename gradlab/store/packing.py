"""Fill the row of a group from a record, refusing a record that does not fit the run.

Metrics go where the store's own labels say: an older store that is resumed lacks the newer ones.
"""

from __future__ import annotations

import numpy as np

from gradlab.records import EvalRecord, RateRecord, StepRecord, UpdateRecord, values_of
from gradlab.store.disk import Array, StoreError
from gradlab.store.schema import GroupSpec


def fill_update(row: Array, spec: GroupSpec, record: UpdateRecord) -> None:
    where = f"update of policy '{record.policy}' at step {record.step}"
    row["step"] = record.step
    _put(row, "gram", record.gram_BAA, spec, where)
    optional = {
        "update_gram": record.update_gram_AA,
        "transfer": record.transfer_AA,
        "history": record.history_AA,
        "moment_gram": record.moment_gram_AA,
        "sketch": record.sketch_AK,
        "update_sketch": record.update_sketch_AK,
        "effective_gram": record.effective_gram_AA,
        "effective_sketch": record.effective_sketch_AK,
        "factor": record.factor_A,
    }
    for name, value in optional.items():
        if value is not None:
            _put(row, name, value, spec, where)
    row["metrics"] = values_of(record.metrics, spec.labels["update_metric"])
    for role, statistics in record.row_statistics.items():
        row["rows"][_index(spec, "role", role, where)] = values_of(
            statistics, spec.labels["row_metric"]
        )


def fill_step(row: Array, spec: GroupSpec, record: StepRecord) -> None:
    where = f"step {record.step}"
    row["step"] = record.step
    row["wall_time"] = record.wall_time
    row["run"] = values_of(record.run, spec.labels["run_metric"])
    for role, ledger in record.roles.items():
        row["roles"][_index(spec, "role", role, where)] = values_of(
            ledger, spec.labels["role_metric"]
        )
    for role, signature in record.signatures.items():
        index = _index(spec, "role", role, where)
        expected = row["signature"][index].shape
        if np.shape(signature) != expected:
            raise StoreError(
                f"{where}: signature of role '{role}' has shape {np.shape(signature)}, "
                f"expected {expected}: one share per bucket"
            )
        row["signature"][index] = signature
    for role, components in record.components.items():
        index = _index(spec, "role", role, where)
        for name, value in components.items():
            row["reward_components"][index, _index(spec, "reward_component", name, where)] = value


def fill_evaluation(row: Array, spec: GroupSpec, record: EvalRecord) -> None:
    where = f"evaluation at step {record.step}"
    row["step"] = record.step
    if np.asarray(record.correct_PS).dtype.kind not in "bu":
        raise StoreError(
            f"{where}: correct_PS is {np.asarray(record.correct_PS).dtype}, expected uint8: "
            f"1 solved, 0 not, 255 missing"
        )
    _put(row, "correct", record.correct_PS, spec, where)
    _put(row, "role_correct", record.role_correct_RP, spec, where)
    for role, evaluation in record.roles.items():
        row["roles"][_index(spec, "role", role, where)] = values_of(
            evaluation, spec.labels["eval_metric"]
        )


def fill_rate(row: Array, spec: GroupSpec, record: RateRecord) -> None:
    where = f"evaluation at step {record.step}"
    if not 0 <= record.accuracy <= 1:
        raise StoreError(
            f"{where}: accuracy is {record.accuracy}, expected a share between 0 and 1 "
            f"(a percentage divided by 100)"
        )
    if record.answers <= 0:
        raise StoreError(
            f"{where}: {record.answers:g} answers; expected 1 or more, or NaN if it is not known"
        )
    row["step"] = record.step
    row["accuracy"] = record.accuracy
    row["answers"] = record.answers
    for role, evaluation in record.roles.items():
        row["roles"][_index(spec, "role", role, where)] = values_of(
            evaluation, spec.labels["eval_metric"]
        )


def _put(row: Array, name: str, value: Array, spec: GroupSpec, where: str) -> None:
    array = next((array for array in spec.arrays if array.name == name), None)
    if array is None:
        raise StoreError(
            f"{where}: the run was created without '{name}'; say in PolicyMeta that it is measured"
        )
    expected = spec.row_shape(array)
    if np.shape(value) != expected:
        dims = ", ".join(f"{dim} {len(spec.labels[dim])}" for dim in array.dims[1:])
        raise StoreError(
            f"{where}: {name} has shape {np.shape(value)}, expected {expected} ({dims}), "
            f"as the run was created"
        )
    row[name] = value


def _index(spec: GroupSpec, dim: str, label: str, where: str) -> int:
    if label not in spec.labels[dim]:
        raise StoreError(
            f"{where}: {dim} '{label}' is not in '{spec.path}'; "
            f"it was created with {list(spec.labels[dim])}"
        )
    return spec.labels[dim].index(label)
