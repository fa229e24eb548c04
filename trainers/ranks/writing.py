"""What stands in on ranks that write nothing: a store that forgets, and rank 0's alarms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from gradlab.alarms import Alarm, Watch
from gradlab.store.writer import Record
from trainers.ranks.peers import Peers


class Nowhere:
    """Takes a run's records and keeps none."""

    def append(self, record: Record) -> None:
        """Rank 0 keeps the same."""

    def flush(self) -> None:
        """Nothing is held."""

    def __enter__(self) -> Nowhere:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing is open."""


def shared_watch(watch: Watch | None, peers: Peers) -> Watch | None:
    """A watch that looks on rank 0 and raises the same alarms everywhere."""
    if watch is None or peers.size == 1:
        return watch

    def look(store: Path, step: int) -> Sequence[Alarm]:
        found: Sequence[Alarm] = ()
        try:
            if peers.is_first:
                found = watch(store, step)
        finally:
            found = peers.first(lambda: found)
        return found

    return look
