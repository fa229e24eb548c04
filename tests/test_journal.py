"""The journal gives back exactly what was appended, wherever it was cut."""

import os
from pathlib import Path

import numpy as np
import pytest

from gradlab.store.disk import StoreError
from gradlab.store.journal import Entry, Journal, read, replay

ENTRIES = [
    Entry(group, 1, row, bytes([row]) * (8 * (group + 1))) for row in (0, 1) for group in (0, 1)
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.zarr.journal"


def write(path: Path, entries: list[Entry]) -> bytes:
    journal = Journal(path)
    for entry in entries:
        journal.append(entry)
    journal.close()
    return path.read_bytes()


def test_reads_back_what_was_appended_also_while_it_is_written(path: Path) -> None:
    journal = Journal(path)
    for count, entry in enumerate(ENTRIES, start=1):
        journal.append(entry)
        assert list(read(path)) == ENTRIES[:count]
    journal.clear()
    assert list(read(path)) == []
    journal.close()
    assert not path.exists()  # nothing in it
    assert list(read(path)) == []


def test_every_cut_leaves_the_whole_records_before_it(path: Path) -> None:
    data = write(path, ENTRIES)
    ends = []
    for count in range(1, len(ENTRIES) + 1):
        path.unlink()
        ends.append(len(write(path, ENTRIES[:count])))
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        whole = sum(end <= cut for end in ends)
        assert list(read(path)) == ENTRIES[:whole]


def test_every_flipped_byte_ends_the_reading_before_its_record(path: Path) -> None:
    data = write(path, ENTRIES)
    size = len(data)
    for position in range(size):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x40]) + data[position + 1 :])
        found = list(read(path))
        assert found == ENTRIES[: len(found)]
        assert len(found) < len(ENTRIES)


def test_a_second_writer_is_refused_and_may_come_after_the_first(path: Path) -> None:
    first = Journal(path)
    with pytest.raises(StoreError, match="being written by another process \\(process 7\\)"):
        Journal(path, holder="process 7")
    first.close()
    Journal(path).close()


def test_a_forked_child_does_not_keep_the_lock(path: Path) -> None:
    journal = Journal(path)
    wait, release = os.pipe()
    child = os.fork()
    if child == 0:  # a data loader's worker that outlives the trainer
        os.close(release)
        os.read(wait, 1)
        os._exit(0)
    journal.close()
    Journal(path).close()
    os.close(release)
    os.waitpid(child, 0)
    os.close(wait)


def test_replay_takes_only_rows_that_continue_the_committed_ones() -> None:
    def entry(group: int, generation: int, row: int) -> Entry:
        return Entry(group, generation, row, np.int64(10 * generation + row).tobytes())

    entries = [
        entry(0, 1, 4),  # committed already
        entry(1, 1, 5),  # of another group
        entry(0, 2, 5),
        entry(0, 1, 5),  # of a generation that was cut off
        entry(0, 2, 6),
        entry(0, 2, 8),  # after a gap
    ]
    rows = replay(entries, 0, 2, 5, np.dtype([("step", "<i8")]))
    assert rows["step"].tolist() == [25, 26]
