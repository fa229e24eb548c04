"""Train one cell in this process: own it, go on where it was, and keep why it ended."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from gradlab.alarms import read_alarms
from gradlab.records import EvalRecord, StepRecord
from gradlab.run_directory import is_trained
from trainers.config import TrainConfig
from trainers.matrix.claim import Taken, claimed
from trainers.matrix.engine import DISK, FAILED, FINISHED, TAKEN
from trainers.matrix.folder import Folder, Kept
from trainers.matrix.state import (
    ENDED,
    NOTHING,
    PROGRESS,
    Ended,
    How,
    Progress,
    is_finished,
    read,
    recorded,
    write,
)
from trainers.training import REFUSALS
from trainers.watch.callbacks import Callback

RECENT = 5
"""Steps over which a step's time is averaged."""

Train = Callable[[TrainConfig, Sequence[Callback]], object]
"""Trains, telling the callbacks."""


class Teller(Callback):
    """Keeps how far a cell is where the tables look."""

    def __init__(self, folder: Folder, cell: Kept) -> None:
        self._path = folder.about(cell.name) / PROGRESS
        self._run = cell.config.out
        before = read(self._path, Progress) or recorded(self._run)
        self._progress = replace(before, seconds=None) if is_trained(self._run) else NOTHING
        self._times: list[float] = []

    def on_step(self, record: StepRecord) -> None:
        self._times = [*self._times, time.monotonic()][-RECENT - 1 :]
        passed = len(self._times) - 1
        seconds = (self._times[-1] - self._times[0]) / passed if passed else None
        self._write(replace(self._progress, step=record.step, seconds=seconds))

    def on_evaluation(self, record: EvalRecord) -> None:
        known = record.correct_PS[record.correct_PS != 255]
        accuracy = float(known.mean()) if known.size else None
        base = accuracy if record.step == 0 else self._progress.base
        self._write(
            replace(
                self._progress, accuracy=accuracy, base=base, evaluated=record.step,
                alarms=len(read_alarms(self._run)),
            )
        )  # fmt: skip

    def _write(self, progress: Progress) -> None:
        self._progress = progress
        write(self._path, progress)


def train_cell(folder: Folder, cell: Kept, train: Train, *, threads: int = 0) -> int:
    """Train a cell to its end, from wherever it is; its exit status.

    `threads`: of torch, unless the plan says. What goes wrong is printed, and kept in ended.json.
    """
    about = folder.about(cell.name)
    try:
        with claimed(about):
            if is_finished(cell):
                return FINISHED
            with suppress(FileNotFoundError):
                (about / ENDED).unlink()
            return _train(folder, cell, train, threads)
    except Taken as taken:
        print(taken, file=sys.stderr)
        return TAKEN
    except OSError as error:
        if not is_refusal(error):
            raise
        print(f"cannot write to {about}: {error}", file=sys.stderr)
        return DISK


def _train(folder: Folder, cell: Kept, train: Train, threads: int) -> int:
    config = replace(cell.config, threads=cell.config.threads or threads)
    teller = Teller(folder, cell)
    try:
        train(replace(config, resume=is_trained(config.out)), [teller])
    except KeyboardInterrupt as stop:
        number = getattr(stop, "number", 2)
        _end(folder, cell, "stopped", str(stop).partition(";")[0] or "stopped")
        return 128 + int(number)
    except Exception as error:
        traceback.print_exc()
        if is_refusal(error):
            _end(folder, cell, "disk", f"{error}")
            return DISK
        _end(folder, cell, "failed", f"{type(error).__name__}: {error}")
        return FAILED
    return FINISHED


def is_refusal(error: BaseException | None) -> bool:
    """Whether a disk that takes no more is behind an error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in REFUSALS:
            return True
        error = error.__cause__ or error.__context__
    return False


def _end(folder: Folder, cell: Kept, how: How, text: str) -> None:
    step = (read(folder.about(cell.name) / PROGRESS, Progress) or NOTHING).step
    write(folder.about(cell.name) / ENDED, Ended(how, text, step, time.time()))
