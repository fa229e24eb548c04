"""Send a probe's records where they are wanted: to a function, a store, or a store of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from gradlab.records import RunLedger, RunMeta, StepRecord, UpdateRecord

if TYPE_CHECKING:
    from gradlab.store.writer import RunStore


class Recorder(Protocol):
    """Whatever takes records one by one, e.g. `gradlab.store.writer.RunStore`."""

    def append(self, record: UpdateRecord) -> None: ...


Record = Callable[[UpdateRecord], None] | Recorder | str | Path | None


class Recording:
    """Where records go."""

    def __init__(self, record: Record, make_meta: Callable[[str], RunMeta]) -> None:
        """`make_meta`: metadata of a run with the given id, for a store that has to be created."""
        self._store: RunStore | None = None
        self._last_step: int | None = None
        self.emit: Callable[[UpdateRecord], None]
        if record is None:
            self.emit = lambda record: None
        elif isinstance(record, str | Path):
            from gradlab.store.writer import (
                RunStore,  # zarr is slow to import, not every probe stores
            )

            path = Path(record)
            self._store = RunStore.create(path, make_meta(path.stem))
            self.emit = self._append_with_step
        elif callable(record):
            self.emit = record
        else:
            self.emit = record.append

    def close(self) -> None:
        """Close the store, if it was created here."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def _append_with_step(self, record: UpdateRecord) -> None:
        """Into a store of its own, to which no trainer appends the steps."""
        assert self._store is not None
        if record.step != self._last_step:
            self._last_step = record.step
            self._store.append(StepRecord(record.step, time.time(), RunLedger(), {}))
        self._store.append(record)
