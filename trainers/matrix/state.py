"""Say how far every cell is, from what lies on disk: whoever trains it, and wherever."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

from gradlab.alarms import read_alarms
from gradlab.run_directory import STORE, is_trained, is_whole, whole_checkpoints
from gradlab.store.disk import StoreError, put
from gradlab.store.run import open_run
from trainers.matrix.claim import last_owner, owner_of
from trainers.matrix.folder import Folder, Kept

PROGRESS, ENDED, LOG = "progress.json", "ended.json", "log.txt"

Status = Literal["waiting", "running", "interrupted", "failed", "finished"]
How = Literal["failed", "stopped", "killed", "disk"]
"""Why a cell ended: by an error, as it was asked to, with its process or node, or since the disk
takes no more. Only what failed is not gone on with by itself."""


@dataclass(frozen=True)
class Progress:
    """How far a cell is; written by the process that trains it."""

    step: int
    accuracy: float | None
    """Held out, newest; None before it was measured."""
    base: float | None
    """Of the base model."""
    evaluated: int
    """Step of the newest evaluation; -1: none."""
    seconds: float | None
    """Of a step, evaluations included."""
    alarms: int


@dataclass(frozen=True)
class Ended:
    """Why a cell ended before its last step."""

    how: How
    text: str
    """In words, for people."""
    step: int
    at: float
    """When, in seconds since 1970."""


@dataclass(frozen=True)
class State:
    """How far a cell is."""

    name: str
    status: Status
    steps: int
    progress: Progress
    said: str = ""
    """Why it ended, or who trains it."""
    ended_at: float = 0.0

    @property
    def seconds_left(self) -> float | None:
        """None where no step was timed yet."""
        if self.progress.seconds is None:
            return None
        return self.progress.seconds * (self.steps - self.progress.step)


NOTHING = Progress(0, None, None, -1, None, 0)
Record = TypeVar("Record", Progress, Ended)


def write(path: Path, record: Progress | Ended) -> None:
    """Write it, unless the disk takes no more: a table that lags behind must stop no run."""
    with suppress(OSError):
        put(path, json.dumps(asdict(record)).encode())


def read(path: Path, kind: type[Record]) -> Record | None:
    """What `write` wrote, or None."""
    try:
        said: dict[str, Any] = json.loads(path.read_text())
        return kind(**{field.name: said[field.name] for field in fields(kind)})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_finished(cell: Kept) -> bool:
    """Whether a cell got to its last step, evaluation and checkpoint, and closed its store."""
    run = cell.config.out
    if not (is_whole(run, cell.config.steps) and (run / STORE).is_dir()):
        return False
    try:
        return open_run(run).closed
    except StoreError:
        return False


def state_of(folder: Folder, cell: Kept) -> State:
    """How far a cell is now."""
    about, run = folder.about(cell.name), cell.config.out
    steps = cell.config.steps
    progress = read(about / PROGRESS, Progress) or recorded(run)
    if is_finished(cell):
        return State(cell.name, "finished", steps, progress)
    if owner := owner_of(about):
        return State(cell.name, "running", steps, progress, f"by {owner}")
    ended = read(about / ENDED, Ended)
    if not is_trained(run) and ended is None:
        return State(cell.name, "waiting", steps, NOTHING)
    checkpoint = max(whole_checkpoints(run), default=0)
    if ended is not None and ended.how == "failed":
        return State(cell.name, "failed", steps, progress, ended.text, ended.at)
    owner = last_owner(about)
    why = ended.text if ended else f"{owner or 'its process'} is gone"
    said = f"{why}; goes on from step {checkpoint}"
    return State(cell.name, "interrupted", steps, progress, said, ended.at if ended else 0.0)


def recorded(run: Path) -> Progress:
    """How far a run is by its own record: of a cell that something else trained."""
    if not (run / STORE).is_dir():
        return NOTHING
    try:
        found = open_run(run)
        accuracy = found.evaluations().accuracy()
    except (StoreError, ValueError):
        return NOTHING
    steps = found.evaluations().step_E.tolist()
    values = [None if value != value else value for value in accuracy.value_T.tolist()]
    return Progress(
        max(found.steps.tolist(), default=0),
        values[-1] if values else None,
        values[0] if values else None,
        steps[-1] if steps else -1,
        None,
        len(read_alarms(run)),
    )


class Watcher:
    """Looks at all cells again and again; what is finished stays so and is not read anew."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._finished: dict[str, State] = {}

    def look(self) -> dict[str, State]:
        """Every cell of the plan by name, in order."""
        found = {}
        for cell in self.folder.cells:
            if cell.name in self.folder.dropped:
                continue
            state = self._finished.get(cell.name) or state_of(self.folder, cell)
            if state.status == "finished":
                self._finished[cell.name] = state
            found[cell.name] = state
        return found


def note_end(folder: Folder, name: str, how: How, text: str) -> Ended:
    """Keep why a cell ended, where its own process could not say so."""
    progress = read(folder.about(name) / PROGRESS, Progress) or NOTHING
    ended = Ended(how, text, progress.step, time.time())
    with suppress(OSError):
        folder.about(name).mkdir(parents=True, exist_ok=True)
    write(folder.about(name) / ENDED, ended)
    return ended


def counted(states: Mapping[str, State]) -> dict[Status, int]:
    """How many cells there are of each status."""
    order: tuple[Status, ...] = ("finished", "running", "interrupted", "failed", "waiting")
    return {s: sum(state.status == s for state in states.values()) for s in order}


def open_log(path: Path) -> IO[bytes]:
    """What a cell prints goes here; nowhere, where the disk takes no file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "ab")
    except OSError:
        return open(os.devnull, "wb")


def tail(log: Path, size: int = 400) -> str:
    """The end of what a cell printed."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.path.getsize(log) - size))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return " ".join(text.split())
