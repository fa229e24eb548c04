"""Read the arrays of one group of a store, at the commit that was current when it was opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradlab.records import names
from gradlab.store.disk import Array, StoreError, read_rows
from gradlab.store.documents import GroupState, read_group
from gradlab.store.schema import METRIC_RECORDS, RETIRED

METRIC_WORDS = {
    "run_metric": "run metric",
    "role_metric": "ledger metric",
    "update_metric": "update metric",
    "row_metric": "row statistic",
    "eval_metric": "evaluation metric",
}


class StoredGroup:
    """One group on disk; rows that only the journal held are its `tail`."""

    def __init__(
        self, path: Path, state: GroupState, tail: Array, until: int | None = None
    ) -> None:
        """`until`: rows of later training steps are left out."""
        self.state = state
        self._until = until
        self._num_rows: int | None = None
        self._path = path
        self._tail = tail
        self._arrays: dict[str, Array] = {}

    def labels(self, dim: str) -> tuple[str, ...]:
        return self.state.spec.labels[dim]

    def has(self, name: str) -> bool:
        """Whether the store has this array: older ones, and measurements that were off, do not."""
        return any(array.name == name for array in self.state.spec.arrays)

    def array(self, name: str) -> Array:
        """All rows of an array; read once, not to be written to."""
        if name not in self._arrays:
            array = self._read(name)[: self.num_rows]
            array.flags.writeable = False
            self._arrays[name] = array
        return self._arrays[name]

    @property
    def num_rows(self) -> int | None:
        """Rows up to `until`; None for all. Steps only ever grow within a store."""
        if self._until is not None and self._num_rows is None:
            self._num_rows = int(np.searchsorted(self._read("step"), self._until, side="right"))
        return self._num_rows

    @property
    def is_cut(self) -> bool:
        """Whether there are rows after `until`."""
        return self.num_rows is not None and self.num_rows < len(self._read("step"))

    def column(self, name: str, *index: int) -> NDArray[np.float64]:
        """One cell of every row."""
        key: tuple[Any, ...] = (slice(None), *index)
        cells: NDArray[np.float64] = self.array(name)[key].astype(np.float64)
        return cells

    def metric(self, array: str, dim: str, name: str, *places: int) -> NDArray[np.float64]:
        """One metric of every row; NaN where the store is too old to have it."""
        known = self.labels(dim)
        if name in known:
            return self.column(array, *places, known.index(name))
        if name in names(METRIC_RECORDS[dim]):
            return np.full(len(self.array("step")), np.nan)
        what = METRIC_WORDS[dim]
        if name in RETIRED.get(dim, {}):
            raise ValueError(f"the run has no {what} '{name}': schema {RETIRED[dim][name]}")
        raise ValueError(f"unknown {what} '{name}'; this run has {list(known)}")

    def _read(self, name: str) -> Array:
        state = self.state
        spec = next(array for array in state.spec.arrays if array.name == name)
        try:
            rows = read_rows(
                self._path / state.spec.path / name,
                spec,
                state.spec.row_shape(spec),
                state.chunk_rows[name],
                0,
                state.committed,
            )
        except StoreError:
            self._check_generation()
            raise
        self._check_generation()
        return np.concatenate([rows, self._tail[name]]) if len(self._tail) else rows

    def _check_generation(self) -> None:
        """Committed rows never change, unless a resume cut rows off: then nothing read holds."""
        now = read_group(self._path, self.state.spec)
        if now.generation != self.state.generation:
            raise StoreError(
                f"{self._path} was resumed from an earlier step while it was being read; "
                f"open it again"
            )
