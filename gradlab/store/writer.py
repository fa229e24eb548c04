"""Write a run: append records to the journal, commit them in whole chunks to the Zarr store.

A row goes to the chunk buffers in RAM and to the journal (microseconds, safe from a kill). A flush
writes the chunks that hold new rows whole, and commits each group by one atomic write of its
`zarr.json`; then the journal is emptied. See `gradlab.store.disk` for the files.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType

import numpy as np

from gradlab.records import EvalRecord, RateRecord, RunMeta, StepRecord, UpdateRecord
from gradlab.store.disk import (
    PARTIAL,
    Array,
    Document,
    StoreError,
    chunk_name,
    encode_chunk,
    journal_path,
    put,
    put_document,
    read_document,
    read_rows,
    sync_directory,
)
from gradlab.store.documents import (
    GroupState,
    encode_labels,
    group_metadata,
    plain_group,
    read_group,
    row_dtype,
)
from gradlab.store.identity import (
    check_meta,
    check_same_labels,
    check_same_run,
    read_root,
    root_attributes,
)
from gradlab.store.journal import Entry, Journal, replay
from gradlab.store.journal import read as read_journal
from gradlab.store.packing import fill_evaluation, fill_rate, fill_training
from gradlab.store.schema import GroupSpec, groups

Record = UpdateRecord | StepRecord | EvalRecord | RateRecord

FLUSH_ROWS = 64
"""Rows of one group in RAM that start a flush."""
FLUSH_SECONDS = 10.0
"""Age of the last flush at which the next row starts one."""
RETRY_SECONDS = (1.0, 60.0)
"""First and longest pause after a failed write; doubles in between."""


class RunStore:
    """A run's store, open for its one writer.

    Example:
        >>> with RunStore.create(Path("runs/a/run.zarr"), meta) as store:
        ...     store.append(UpdateRecord("shared", step=1, gram_BAA=gram, metrics=metrics))
        ...     store.append(StepRecord(step=1, wall_time=time.time(), run=run, roles=roles))
        ...     store.flush()  # before a checkpoint; otherwise it flushes by itself
    """

    def __init__(
        self, path: Path, meta: RunMeta, journal: Journal, states: Sequence[GroupState]
    ) -> None:
        """Not for callers: `create` or `resume` a store."""
        self.path = path
        self.meta = meta
        self._journal = journal
        self._durable = journal.durable
        self._groups = [_Group(path, number, state) for number, state in enumerate(states)]
        self._by_path = {group.spec.path: group for group in self._groups}
        self._closed = False
        self._journal_is_whole = True
        self._last_flush = time.monotonic()
        self._retry_at = -np.inf
        self._pause = RETRY_SECONDS[0]
        self._warned = False

    @classmethod
    def create(cls, path: Path | str, meta: RunMeta, *, durable: bool = False) -> RunStore:
        """Create the store of a new run; `path` must not exist.

        With `durable`, rows and commits also survive a power loss (an fsync per row and flush).
        """
        path = Path(path)
        check_meta(meta)
        attributes = {**root_attributes(meta), **_writer_attributes(), "created": time.time()}
        if path.exists():
            raise StoreError(_exists(path))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            journal = Journal(journal_path(path), durable=durable)
            try:
                if path.exists():  # another process was faster
                    raise StoreError(_exists(path))
                journal.clear()  # rows of a store that somebody deleted
                _lay_out(path, groups(meta), attributes)
                if durable:
                    sync_directory(path.parent)
            except BaseException:
                shutil.rmtree(_draft(path), ignore_errors=True)
                journal.close()
                raise
        except OSError as error:
            raise StoreError(
                f"cannot create the run store {path} ({error.strerror}); "
                f"choose a directory you may write to, with space on its disk"
            ) from error
        return cls(path, meta, journal, [read_group(path, spec) for spec in groups(meta)])

    @classmethod
    def resume(
        cls,
        path: Path | str,
        after_step: int,
        meta: RunMeta | None = None,
        *,
        durable: bool = False,
    ) -> RunStore:
        """Open an existing store to append after `after_step`; later rows are cut off.

        Rows that only the journal holds are recovered first. `meta`, where given, must describe
        the same run: workflow, task, model, roles, routing, policies and problems.
        """
        path = Path(path)
        try:
            return cls._resume(path, after_step, meta, durable)
        except OSError as error:
            raise StoreError(
                f"cannot continue the run store {path} ({error.strerror}); nothing is lost: make "
                f"room and make it writable, or copy the run to where you may write"
            ) from error

    @classmethod
    def _resume(cls, path: Path, after_step: int, meta: RunMeta | None, durable: bool) -> RunStore:
        read_root(path)
        journal = Journal(journal_path(path), holder=_holder(path), durable=durable)
        try:
            stored, attributes = read_root(path)  # again: the last writer may just have closed
            if meta is not None:
                check_same_run(path, stored, meta)
            states = [read_group(path, spec) for spec in groups(stored)]
            for state, spec in zip(states, groups(stored), strict=True):
                check_same_labels(path, state.spec, spec)
            # First of all: a consolidated root would hide every later commit from readers.
            attributes = {**attributes, **_writer_attributes()}
            put_document(path, plain_group(attributes), durable)
            store = cls(path, stored, journal, states)
            entries = list(read_journal(journal_path(path)))
            for group in store._groups:
                group.recover(entries, after_step, durable)
            journal.clear()
        except BaseException:
            journal.close()
            raise
        last = max(0, *(group.last_step for group in store._groups))
        if last < after_step:
            warnings.warn(
                f"{path} ends at step {last}, the run resumes after step {after_step}: "
                f"the steps between are missing from the record",
                RuntimeWarning,
                stacklevel=3,
            )
        for group in store._groups:
            group.remove_garbage()
        return store

    def append(self, record: Record) -> None:
        """Add one record; it is safe from a kill when this returns, and committed by a flush.

        A record that does not fit the run is a `ValueError` and leaves the store as it was. A
        write error does not stop training: the rows stay in RAM, a warning tells once, writing is
        tried again with growing pauses, and an explicit `flush` raises.
        """
        if self._closed:
            raise StoreError(f"{self.path} is closed; resume it with RunStore.resume")
        group, fill = self._destination(record)
        group.check_step(record.step)
        row = group.empty_row()
        with np.errstate(over="ignore", invalid="ignore"):  # a float64 beyond float32 becomes inf
            fill(row)
        group.add(row, record.step)
        self._write_journal(group, row)
        now = time.monotonic()
        is_late = now - self._last_flush >= FLUSH_SECONDS
        if group.is_full or is_late or not self._journal_is_whole:
            self._flush_quietly(now)

    def flush(self) -> None:
        """Commit every appended row; readers see them. Raises `OSError` if the disk refuses."""
        try:
            for group in self._groups:
                group.write(self._durable)
            self._journal.clear()
        except OSError as error:
            error.add_note(f"{self.path}: the rows are kept in memory; free space and flush again")
            raise
        self._journal_is_whole = True
        self._last_flush = time.monotonic()
        self._retry_at, self._pause, self._warned = -np.inf, RETRY_SECONDS[0], False

    def close(self) -> None:
        """Commit, give every array its final shape, mark the run as closed, release the lock."""
        if self._closed:
            return
        self.flush()
        metadata: dict[str, Document] = {}
        for parent in _parents([group.spec for group in self._groups]):
            metadata[parent] = plain_group({}, {})
        for group in self._groups:
            metadata |= group.finalize(self._durable)
        attributes = {**read_document(self.path)["attributes"], "closed": True}
        put_document(self.path, plain_group(attributes, metadata), self._durable)
        self._journal.close()
        self._closed = True

    def __enter__(self) -> RunStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close; where the disk refuses, what was journaled is left to the next `resume`."""
        try:
            self.close()
        except OSError as refusal:
            self._journal.close()
            self._closed = True
            if error is None:
                raise
            error.add_note(f"{self.path}: could not be closed ({refusal})")

    def _destination(self, record: Record) -> tuple[_Group, Callable[[Array], None]]:
        """The group of a record, and how it fills a row of it."""
        match record:
            case UpdateRecord():
                group = self._by_path.get(f"updates/{record.policy}")
                if group is None:
                    raise StoreError(
                        f"update of policy '{record.policy}' at step {record.step}: this run has "
                        f"the policies {[policy.name for policy in self.meta.policies]}"
                    )
                return group, partial(fill_training, spec=group.spec, record=record)
            case StepRecord():
                group = self._by_path["train"]
                return group, partial(fill_training, spec=group.spec, record=record)
            case EvalRecord():
                group = self._by_path.get("eval")
                if group is None:
                    raise StoreError(
                        f"evaluation at step {record.step}: the run was created without held-out "
                        f"problems; name them in RunMeta.problems"
                    )
                return group, partial(fill_evaluation, spec=group.spec, record=record)
            case RateRecord():
                group = self._by_path.get("rates")
                if group is None:
                    raise StoreError(
                        f"accuracy at step {record.step}: the run was created for evaluations by "
                        f"problem; set RunMeta.rates where only rates are known"
                    )
                return group, partial(fill_rate, spec=group.spec, record=record)

    def _write_journal(self, group: _Group, row: Array) -> None:
        if not self._journal_is_whole:
            return  # a row is missing in it: what follows could not be replayed
        entry = Entry(group.number, group.generation, group.length - 1, row.tobytes())
        try:
            self._journal.append(entry)
        except OSError as error:
            self._journal_is_whole = False
            self._warn(error)

    def _flush_quietly(self, now: float) -> None:
        if now < self._retry_at:
            return
        try:
            self.flush()
        except OSError as error:
            self._retry_at = now + self._pause
            self._pause = min(2 * self._pause, RETRY_SECONDS[1])
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{self.path}: cannot write ({error.strerror}); the rows are kept in memory and "
                f"writing is tried again: free space on the disk before the process ends",
                RuntimeWarning,
                stacklevel=4,
            )


class _Group:
    """One group of an open store: its buffers in RAM and its commit point on disk."""

    def __init__(self, path: Path, number: int, state: GroupState) -> None:
        self.number = number
        self.spec = state.spec
        self.directory = path / state.spec.path
        self.generation = state.generation
        self.committed = state.committed
        self.length = state.committed
        """Rows appended; those from `committed` on are only in RAM and in the journal."""
        self.last_step = -1
        self.chunk_rows = state.chunk_rows
        self._chunks: dict[str, dict[int, Array]] = {a.name: {} for a in self.spec.arrays}
        """By array and chunk index: every chunk that a row >= committed falls into."""
        self._document = read_document(self.directory)
        self._dtype = row_dtype(self.spec)
        self._empty = np.zeros((), self._dtype)
        for array in self.spec.arrays:
            self._empty[array.name] = array.fill
        self._full = min(FLUSH_ROWS, *self.chunk_rows.values())

    @property
    def is_full(self) -> bool:
        return self.length - self.committed >= self._full

    def check_step(self, step: int) -> None:
        """Rows are in the order of steps; only updates may share one."""
        earliest = self.last_step if self.spec.row == "update" else self.last_step + 1
        if step < earliest:
            raise StoreError(
                f"{self.directory}: row of step {step} after step {self.last_step}, expected step "
                f"{earliest} or later; to go back, resume the store with after_step"
            )

    def empty_row(self) -> Array:
        """A row in which nothing was measured."""
        return self._empty.copy()

    def add(self, row: Array, step: int) -> None:
        """Put a row into the chunk buffers."""
        for array in self.spec.arrays:
            index, offset = divmod(self.length, self.chunk_rows[array.name])
            self._chunk(array.name, index)[offset] = row[array.name]
        self.length += 1
        self.last_step = step

    def write(self, durable: bool) -> None:
        """Write the chunks with new rows, then commit them."""
        if self.length == self.committed:
            return
        for array in self.spec.arrays:
            rows = self.chunk_rows[array.name]
            for index in range(self.committed // rows, -(-self.length // rows)):
                name = chunk_name(index, len(array.dims))
                data = encode_chunk(self._chunks[array.name][index])
                put(self.directory / array.name / name, data, durable)
        self._commit(self.length, self.generation, durable)
        for name, chunks in self._chunks.items():
            for index in [i for i in chunks if (i + 1) * self.chunk_rows[name] <= self.committed]:
                del chunks[index]

    def recover(self, entries: Sequence[Entry], after_step: int, durable: bool) -> None:
        """Take the journal's rows in, cut off what is later than `after_step`, commit the rest.

        Every kill in here leaves either the state before or the state after: rows that are cut
        off leave with the commit that starts a new generation, and with it their journal.
        """
        tail = replay(entries, self.number, self.generation, self.committed, self._dtype)
        step_spec = next(array for array in self.spec.arrays if array.name == "step")
        steps = read_rows(
            self.directory / "step", step_spec, (), self.chunk_rows["step"], 0, self.committed
        )
        steps = np.concatenate([steps, tail["step"]])
        kept = int(np.searchsorted(steps, after_step, side="right"))
        if kept < len(steps):
            self.generation += 1
        on_disk, tail = min(kept, self.committed), tail[: max(kept - self.committed, 0)]
        for array in self.spec.arrays:  # the chunk that the next row falls into
            rows = self.chunk_rows[array.name]
            index, offset = divmod(on_disk, rows)
            if offset:
                self._chunk(array.name, index)[:offset] = read_rows(
                    self.directory / array.name,
                    array,
                    self.spec.row_shape(array),
                    rows,
                    index * rows,
                    on_disk,
                )
        if kept < self.committed:
            self._commit(kept, self.generation, durable)
        self.length = on_disk
        self.last_step = int(steps[on_disk - 1]) if on_disk else -1
        for row in tail:
            self.add(row, int(row["step"]))
        if len(tail):
            self.write(durable)
        elif kept < len(steps) and kept == self.committed:
            self._commit(kept, self.generation, durable)

    def remove_garbage(self) -> None:
        """Delete chunks past the end and files that a kill left half-written."""
        for leftover in self.directory.glob(f"**/*{PARTIAL}"):
            leftover.unlink(missing_ok=True)
        metadata = self._document["consolidated_metadata"]["metadata"]
        for array in self.spec.arrays:
            put_document(self.directory / array.name, metadata[array.name])
            end = -(-self.committed // self.chunk_rows[array.name])
            for chunk in self.directory.joinpath(array.name).glob("c.*"):
                if int(chunk.name.split(".")[1]) >= end:
                    chunk.unlink()

    def finalize(self, durable: bool) -> dict[str, Document]:
        """Give each array's own document its shape; the documents of the group by path."""
        metadata = self._document["consolidated_metadata"]["metadata"]
        for array in self.spec.arrays:
            put_document(self.directory / array.name, metadata[array.name], durable)
        nodes = {f"{self.spec.path}/{name}": document for name, document in metadata.items()}
        return {self.spec.path: plain_group(self._document["attributes"], {}), **nodes}

    def _chunk(self, name: str, index: int) -> Array:
        chunk = self._chunks[name].get(index)
        if chunk is None:
            rows = self.chunk_rows[name]
            chunk = np.repeat(self._empty[name][np.newaxis], rows, axis=0)
            self._chunks[name][index] = chunk
        return chunk

    def _commit(self, length: int, generation: int, durable: bool) -> None:
        for array in self.spec.arrays:
            self._document["consolidated_metadata"]["metadata"][array.name]["shape"][0] = length
        self._document["attributes"] |= {
            "committed": length,
            "generation": generation,
            "updated": time.time(),
        }
        put_document(self.directory, self._document, durable)
        self.committed, self.generation = length, generation


def _exists(path: Path) -> str:
    return (
        f"{path} exists; continue it with RunStore.resume (gradlab train --resume), "
        f"or choose another directory"
    )


def _lay_out(path: Path, specs: Sequence[GroupSpec], attributes: Document) -> None:
    """Create all documents and coordinates under a temporary name, then rename: all or nothing."""
    draft = _draft(path)
    shutil.rmtree(draft, ignore_errors=True)
    for spec in specs:
        directory = draft / spec.path
        metadata = group_metadata(spec, 0)
        for name, document in metadata.items():
            (directory / name).mkdir(parents=True)
            put_document(directory / name, document)
        for dim, labels in spec.labels.items():
            put(directory / dim / chunk_name(0, 1), encode_labels(labels))
        put_document(directory, plain_group({"committed": 0, "generation": 1}, metadata))
    for parent in _parents(specs):
        put_document(draft / parent, plain_group({}))
    put_document(draft, plain_group(attributes))
    draft.rename(path)


def _draft(path: Path) -> Path:
    return path.with_name(path.name + PARTIAL)


def _parents(specs: Sequence[GroupSpec]) -> list[str]:
    """Groups that only hold other groups."""
    return sorted({spec.path.rpartition("/")[0] for spec in specs} - {""})


def _writer_attributes() -> Document:
    return {"closed": False, "writer": f"process {os.getpid()} on {socket.gethostname()}"}


def _holder(path: Path) -> str:
    """Who said last that it writes the store; '' if it cannot be read."""
    try:
        return str(read_document(path)["attributes"].get("writer", ""))
    except StoreError:
        return ""
