"""Have an engine train every cell that is not finished, and show how far they are."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Protocol

from trainers.matrix.engine import Engine
from trainers.matrix.folder import Folder
from trainers.matrix.state import State, Status, Watcher, is_finished, note_end

GIB = 1 << 30
OPEN: tuple[Status, ...] = ("waiting", "interrupted")


class Board(Protocol):
    """Where people see how far the cells are."""

    def show(self, states: Mapping[str, State]) -> None:
        """The cells as they are now."""

    def note(self, text: str) -> None:
        """Something to know."""


class Runner:
    """Starts cells as there is room for them, each at most once.

    A cell that fails or is killed is not tried again before somebody runs the matrix again; those
    of another runner are left to it, and taken over if it dies.
    """

    def __init__(
        self,
        folder: Folder,
        engine: Engine,
        board: Board,
        *,
        retry_failed: bool = False,
        spare_disk: float = 0.0,
        every: float = 1.0,
    ) -> None:
        """`spare_disk`: GiB; no cell begins while less is free. `every`: seconds between looks."""
        self.folder = folder
        self.engine = engine
        self.board = board
        self.every = every
        self.spare_disk = spare_disk
        self.watcher = Watcher(folder)
        self._again: frozenset[str] = frozenset()
        self._retry = retry_failed
        self._tried: set[str] = set()
        self._is_full = False

    def run(self) -> dict[str, State]:
        """Train until nothing is left to begin or to wait for; how every cell ended."""
        states = self.watcher.look()
        # What ended before may go on; what ends from now on is told and left.
        self._again = frozenset(
            name for name, state in states.items()
            if state.status == "interrupted" or (self._retry and state.status == "failed")
        )  # fmt: skip
        with closing(self.engine):
            try:
                while self._turn(states):
                    time.sleep(self.every)
                    states = self._look()
            except KeyboardInterrupt:
                self._stop()
                raise
        states = self._look()
        self.board.show(states)
        return states

    def _turn(self, states: Mapping[str, State]) -> bool:
        """Begin what can begin; whether there is anything to wait for."""
        todo = self.todo(states)
        room = self.engine.free() if todo else 0
        if room > 0 and self._has_disk():
            for name in todo[:room]:
                self._tried.add(name)
                self.engine.start(name)
            states = self._look()
        self.board.show(states)
        is_stuck = bool(todo) and self._is_full
        if is_stuck and not self.engine.busy:
            return False
        is_running = any(state.status == "running" for state in states.values())
        return bool(self.engine.busy) or is_running or bool(todo)

    def todo(self, states: Mapping[str, State]) -> list[str]:
        """Cells that this runner may begin, in order."""
        return [
            name
            for name, state in states.items()
            if name not in self._tried
            if name in self._again or state.status in OPEN
            if state.status not in ("running", "finished")
            if name in self._again or not state.ended_at
        ]

    def _look(self) -> dict[str, State]:
        for ended in self.engine.ended():
            if ended.how is not None and not is_finished(self.folder.cell(ended.name)):
                note_end(self.folder, ended.name, ended.how, ended.text)
            if ended.was_taken:  # should its owner die, this runner may go on with it
                self._tried.discard(ended.name)
        return self.watcher.look()

    def _has_disk(self) -> bool:
        free = shutil.disk_usage(self.folder.out).free / GIB
        was, self._is_full = self._is_full, free < self.spare_disk
        if self._is_full and not was:
            self.board.note(
                f"{free:.2f} GiB are free at {self.folder.out}, less than --spare-disk "
                f"{self.spare_disk:g}: no cell begins before there is room"
            )
        return not self._is_full

    def _stop(self) -> None:
        """Have every cell save and end; a second Ctrl-C ends them where they are."""
        if not self.engine.busy:
            return
        self.board.note(
            f"stopping: {', '.join(self.engine.busy)} will finish the step in hand and save; "
            "Ctrl-C again ends at once"
        )
        self.engine.stop(now=False)
        try:
            self._wait()
        except KeyboardInterrupt:
            self.engine.stop(now=True)
            self._wait()

    def _wait(self) -> None:
        while self.engine.busy:
            time.sleep(min(self.every, 0.2))
            self.board.show(self._look())


def last_words(states: Mapping[str, State], say: Callable[[str], None]) -> bool:
    """Say what is not finished, and how to go on; whether everything is."""
    failed = [state for state in states.values() if state.status == "failed"]
    rest = [state for state in states.values() if state.status not in ("finished", "failed")]
    for state in failed:
        say(f"failed: {state.name}: {state.said}")
    for state in rest:
        if state.status == "interrupted":
            say(f"interrupted: {state.name}: {state.said}")
    if rest:
        cells = "cell is" if len(rest) == 1 else "cells are"
        say(f"{len(rest)} {cells} left; the same command goes on")
    if failed:
        cells, them = ("cell", "it") if len(failed) == 1 else ("cells", "them")
        say(f"{len(failed)} {cells} failed; --retry-failed tries {them} again")
    return not failed and not rest


def unfinished(states: Mapping[str, State], retry_failed: bool) -> Sequence[str]:
    """Cells that an array of tasks has to take."""
    return [
        name for name, state in states.items()
        if state.status in OPEN or (retry_failed and state.status == "failed")
    ]  # fmt: skip
