"""Let one process at a time train a cell, on however many machines that share the folder.

Whoever wants a cell creates the next `owner-000003.json` in the cell's folder, which only one can,
and is its owner while it lives: on the same machine while its process does, elsewhere while the
file is touched every few seconds. Nobody ever deletes the newest of these files, so two who take
over from the same dead owner cannot both succeed. An owner that finds a newer file than its own was
taken for dead (its machine slept, its network was away), and ends at once.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

BEAT_SECONDS = 10.0
STALE_SECONDS = 120.0
"""An owner on another machine that was not heard of for so long is dead."""
CLOCK_SECONDS = 60.0
"""When a process began is told by a clock that may be set meanwhile."""
OUSTED = 75
"""Exit status of a process that lost its cell."""


@dataclass(frozen=True)
class Owner:
    """A process that trains a cell, or did."""

    host: str
    machine: str
    """Host, boot and, in a container, its processes' namespace: where `pid` means something."""
    pid: int
    started: float
    """When the process began: another one may get its number later."""
    token: str
    is_over: bool = False
    """Whether it gave the cell back."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Taken(RuntimeError):
    """Another process trains the cell."""


@functools.cache
def machine() -> str:
    """Where process numbers of this process mean something."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(str(os.stat("/proc/self/ns/pid").st_ino))
    return "/".join(parts)


def _numbered(cell: Path) -> dict[int, Path]:
    return {int(path.stem.removeprefix("owner-")): path for path in cell.glob("owner-*.json")}


def owner_of(cell: Path) -> Owner | None:
    """Who trains a cell now; None if nobody does."""
    found = _newest(cell)
    if found is None:
        return None
    _, path, owner = found
    return owner if owner is not None and is_alive(owner, path) else None


def last_owner(cell: Path) -> Owner | None:
    """Who trained a cell last, alive or not."""
    found = _newest(cell)
    return found[2] if found else None


def _newest(cell: Path) -> tuple[int, Path, Owner | None] | None:
    numbered = _numbered(cell)
    if not numbered:
        return None
    number = max(numbered)
    try:
        owner = Owner(**json.loads(numbered[number].read_text()))
    except (OSError, ValueError, TypeError):
        owner = None  # cut by a full disk, or removed this moment
    return number, numbered[number], owner


def is_alive(owner: Owner, path: Path) -> bool:
    """Whether the owner that a file names still trains."""
    if owner.is_over:
        return False
    if owner.machine == machine():
        try:
            process = psutil.Process(owner.pid)
            is_same = abs(process.create_time() - owner.started) < CLOCK_SECONDS
            return is_same and bool(process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False
    try:
        return now_of(path.parent) - path.stat().st_mtime < STALE_SECONDS
    except OSError:
        return False


def now_of(folder: Path) -> float:
    """The time by the clock of the file system, which may be another machine's."""
    clock = folder / f".clock-{platform.node()}-{os.getpid()}"
    try:
        clock.touch()
        now = clock.stat().st_mtime
        clock.unlink()
    except OSError:  # a full or read-only disk
        return time.time()
    return now


@contextmanager
def claimed(cell: Path) -> Iterator[Owner]:
    """Own a cell for as long as the block runs.

    Raises Taken where somebody else does.
    """
    me = Owner(
        platform.node(), machine(), os.getpid(), psutil.Process().create_time(), uuid.uuid4().hex
    )
    path, number = _take(cell, me)
    over = threading.Event()
    beat = threading.Thread(target=_beat, args=(cell, path, number, over), daemon=True)
    beat.start()
    try:
        yield me
    finally:
        over.set()
        beat.join()
        with suppress(OSError):
            _put(path, Owner(**asdict(me) | {"is_over": True}))


def _take(cell: Path, me: Owner) -> tuple[Path, int]:
    cell.mkdir(parents=True, exist_ok=True)
    found = _newest(cell)
    number = 1
    if found is not None:
        last, path, owner = found
        if owner is not None and is_alive(owner, path):
            raise Taken(f"{cell.name} is trained by {owner}")
        number = last + 1
    mine = cell / f"owner-{number:06d}.json"
    draft = cell / f".{me.token}"
    try:
        draft.write_text(json.dumps(asdict(me)))
        os.link(draft, mine)  # fails where the file is there, also on network file systems
    except FileExistsError:
        raise Taken(f"{cell.name} was taken by another process this moment") from None
    finally:
        draft.unlink(missing_ok=True)
    for older, path in _numbered(cell).items():
        if older < number:
            path.unlink(missing_ok=True)
    return mine, number


def _put(path: Path, owner: Owner) -> None:
    draft = path.with_name(f".{owner.token}")
    draft.write_text(json.dumps(asdict(owner)))
    draft.replace(path)


def _beat(cell: Path, path: Path, number: int, over: threading.Event) -> None:
    """Touch the file until told to stop; needs no room on the disk."""
    while not over.wait(BEAT_SECONDS):
        with suppress(OSError):
            os.utime(path)
            if max(_numbered(cell), default=number) > number:
                os._exit(OUSTED)  # nothing more of this process may reach the run's files
