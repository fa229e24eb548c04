"""Keep appended rows safe from a kill until they are committed, and keep a second writer out.

The journal is one file beside the store. Each appended row is one `write`: once it returned, the
row survives the death of the process (and a power loss, with `durable`). After a commit the file is
emptied in place; the writer holds a lock on it for as long as it lives.

    record: magic u32, group u16, generation u32, row u64, length u32, payload, crc32 u32

`group` is the position of the group in `gradlab.store.schema.groups`. A row is replayed only if it
continues the committed rows of its group in the same generation, so records left over by a kill
between a commit and the emptying are skipped.
"""

from __future__ import annotations

import fcntl
import os
import struct
import weakref
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradlab.store.disk import Array, StoreError, sync_directory

HEADER = struct.Struct("<IHIQI")
CHECKSUM = struct.Struct("<I")
MAGIC = 0x4C_44_52_47  # "GRDL" on disk


@dataclass(frozen=True)
class Entry:
    """One row in the journal."""

    group: int
    generation: int
    row: int
    """Index of the row in its group."""
    payload: bytes


class Journal:
    """The journal of a store that is being written.

    Example:
        >>> journal = Journal(Path("run.zarr.journal"), holder="process 12 on a-host")
        >>> journal.append(Entry(group=0, generation=1, row=0, payload=b"..."))
        >>> journal.clear()  # after the rows were committed
        >>> journal.close()
    """

    def __init__(self, path: Path, *, holder: str = "", durable: bool = False) -> None:
        """Open and lock; `StoreError` naming `holder` if another writer has the lock."""
        self.path = path
        self.durable = durable
        self._descriptor = _lock(path, holder)
        if durable:
            sync_directory(path.parent)
        self._end = os.fstat(self._descriptor).st_size
        _open_journals.add(self)

    def append(self, entry: Entry) -> None:
        """Write one row; on an `OSError` the file ends with the row before."""
        record = HEADER.pack(MAGIC, entry.group, entry.generation, entry.row, len(entry.payload))
        record += entry.payload
        record += CHECKSUM.pack(zlib.crc32(record))
        try:
            left = memoryview(record)
            while left:
                left = left[
                    os.pwrite(self._descriptor, left, self._end + len(record) - len(left)) :
                ]
            if self.durable:
                os.fsync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, self._end)
            raise
        self._end += len(record)

    def clear(self) -> None:
        """Forget every row: they are all committed."""
        os.ftruncate(self._descriptor, 0)
        self._end = 0

    def close(self) -> None:
        """Give the lock back; the file stays only if it holds rows."""
        if self._descriptor < 0:
            return
        if self._end == 0:
            self.path.unlink(missing_ok=True)  # while locked: nobody else writes to this file
        os.close(self._descriptor)
        self._descriptor = -1
        _open_journals.discard(self)


def read(path: Path) -> Iterator[Entry]:
    """The whole records at the start of a journal; stops at the first cut or damaged one.

    Safe beside a living writer: every record yielded is one that was appended.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    position = 0
    while position + HEADER.size + CHECKSUM.size <= len(data):
        magic, group, generation, row, length = HEADER.unpack_from(data, position)
        end = position + HEADER.size + length
        if magic != MAGIC or end + CHECKSUM.size > len(data):
            return
        if zlib.crc32(data[position:end]) != CHECKSUM.unpack_from(data, end)[0]:
            return
        yield Entry(group, generation, row, data[position + HEADER.size : end])
        position = end + CHECKSUM.size


def replay(
    entries: Sequence[Entry], number: int, generation: int, committed: int, dtype: np.dtype[Any]
) -> Array:
    """The rows of a group that the journal adds to its committed ones, as structured rows."""
    payloads: list[bytes] = []
    for entry in entries:
        continues = entry.row == committed + len(payloads)
        if entry.group == number and entry.generation == generation and continues:
            payloads.append(entry.payload)
    return np.frombuffer(b"".join(payloads), dtype=dtype)


def _lock(path: Path, holder: str) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if not isinstance(error, BlockingIOError):
                raise
            raise StoreError(
                f"{path.with_suffix('')} is being written by another process"
                f"{f' ({holder})' if holder else ''}; a run has one writer: stop that process, "
                f"or choose another directory"
            ) from None
        # A writer that closed between open and flock has deleted the file we hold: take the new.
        try:
            if os.fstat(descriptor).st_ino == os.stat(path).st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)


_open_journals: weakref.WeakSet[Journal] = weakref.WeakSet()


def _release_in_child() -> None:
    """A forked child (a data loader's worker) must neither write nor keep the lock alive."""
    for journal in list(_open_journals):
        os.close(journal._descriptor)
        journal._descriptor = -1


os.register_at_fork(after_in_child=_release_in_child)
