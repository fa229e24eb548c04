"""Fill the row of a group from a record, refusing a record that does not fit the run.

Metrics go where the store's own labels say: an older store that is resumed lacks the newer ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from gradlab.records import EvalRecord, Kept, RateRecord, StepRecord, UpdateRecord
from gradlab.store.disk import Array, StoreError
from gradlab.store.schema import RETIRED, GroupSpec


def fill_training(row: Array, spec: GroupSpec, record: StepRecord | UpdateRecord) -> None:
    whose = f"update of policy '{record.policy}' at " if isinstance(record, UpdateRecord) else ""
    _fill(row, spec, record, f"{whose}step {record.step}")


def fill_evaluation(row: Array, spec: GroupSpec, record: EvalRecord) -> None:
    where = f"evaluation at step {record.step}"
    if np.asarray(record.correct_PS).dtype.kind not in "bu":
        raise StoreError(
            f"{where}: correct_PS is {np.asarray(record.correct_PS).dtype}, expected uint8: "
            f"1 solved, 0 not, 255 missing"
        )
    _fill(row, spec, record, where)


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
    _fill(row, spec, record, where)


def _fill(row: Array, spec: GroupSpec, record: Any, where: str) -> None:
    """Put every declared field of a record into its array."""
    for declared in fields(record):
        kept: Kept | None = declared.metadata.get("kept")
        value = getattr(record, declared.name)
        if kept is None or value is None:
            continue
        if isinstance(value, Mapping):
            for label, one in value.items():
                index = _index(spec, kept.dims[0], label, where)
                _put(row, kept, _plain(one, kept, spec, where), spec, where, index)
        else:
            _put(row, kept, _plain(value, kept, spec, where), spec, where)


def _plain(value: Any, kept: Kept, spec: GroupSpec, where: str) -> Any:
    """A record of measured fields as the vector of the metrics that the store has; named values as
    the vector of their labels."""
    if isinstance(value, Mapping):
        vector = np.full(len(spec.labels.get(kept.dims[-1], ())), np.nan)
        for label, one in value.items():
            vector[_index(spec, kept.dims[-1], label, where)] = one
        return vector
    if not is_dataclass(value):
        return value
    retired = RETIRED.get(kept.dims[-1], {})
    metrics = spec.labels[kept.dims[-1]]
    return np.array([np.nan if name in retired else getattr(value, name) for name in metrics])


def _put(
    row: Array, kept: Kept, value: Any, spec: GroupSpec, where: str, index: int | None = None
) -> None:
    """Put a value where it belongs; `index`: it is only of this label of the first dimension."""
    array = next((array for array in spec.arrays if array.name == kept.name), None)
    if array is None:
        if kept.since != "1.0" and not kept.needs:
            return  # an older store that is continued
        raise StoreError(
            f"{where}: the run was created without '{kept.name}'; say in its metadata that it "
            "is measured"
        )
    dims = kept.dims if index is None else kept.dims[1:]
    expected = tuple(len(spec.labels[dim]) for dim in dims)
    if np.shape(value) != expected:
        sizes = ", ".join(f"{dim} {len(spec.labels[dim])}" for dim in dims)
        whose = "" if index is None else f" of {kept.dims[0]} '{spec.labels[kept.dims[0]][index]}'"
        raise StoreError(
            f"{where}: {kept.name}{whose} has shape {np.shape(value)}, expected {expected} "
            f"({sizes}), as the run was created"
        )
    if index is None:
        row[kept.name] = value
    else:
        row[kept.name][index] = value


def _index(spec: GroupSpec, dim: str, label: str, where: str) -> int:
    if label not in spec.labels[dim]:
        raise StoreError(
            f"{where}: {dim} '{label}' is not in '{spec.path}'; "
            f"it was created with {list(spec.labels[dim])}"
        )
    return spec.labels[dim].index(label)
