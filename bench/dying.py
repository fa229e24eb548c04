"""Run `gradlab train` in a process that says on a pipe what it does, and dies where it is told to.

For `bench/kill.py`. The process is forked from this one, which has torch loaded, and its functions
are wrapped there: the product itself knows nothing of it.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import trainers.evaluate
import trainers.training
from gradlab.commands import main as cli
from gradlab.records import StepRecord, UpdateRecord
from gradlab.run_directory import CONFIG
from gradlab.store.writer import Record, RunStore

CHANGES = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.truncate"}
"""Audit events that change files; opening one to write does too, and writing to the journal."""


@dataclass(frozen=True)
class Kill:
    """When an attempt dies."""

    phase: str
    entry: int
    """At the n-th time the phase is entered."""
    delay: float
    """Seconds after it; sent from outside."""
    change: int = 0
    """Not 0: by its own hand, right before the n-th change of files in the phase, instead."""


@dataclass
class Heard:
    """What an attempt said before it died."""

    phase: str = "rest"
    appended: list[tuple[str, int]] = field(default_factory=list)
    """Group and step of every row whose append had returned."""
    entries: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
    """Longest stay in each phase."""
    status: int = 0


class Teller:
    """Says on a pipe which phase training is in, and dies where it is told to."""

    def __init__(self, pipe: int, out: Path, kill: Kill | None) -> None:
        self.pipe, self.out, self.kill = pipe, str(out), kill
        self.stack = ["rest"]
        self.changed = 0
        sys.addaudithook(self.audit)

    def say(self, *words: object) -> None:
        os.write(self.pipe, (" ".join(map(str, words)) + "\n").encode())

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.stack.append(name)
        self.say("in", name)
        yield
        self.stack.pop()
        self.say("in", self.stack[-1])

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" and event not in CHANGES:
            return
        if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            return
        # A journal is emptied by its descriptor, which names no path.
        is_mine = isinstance(arguments[0], int) or str(arguments[0]).startswith(self.out)
        if is_mine and self.is_last_change():
            os.kill(os.getpid(), signal.SIGKILL)

    def is_last_change(self) -> bool:
        """Count a change of files; whether this is the one to die at."""
        self.say("change", self.stack[-1])
        if self.kill and self.kill.change and self.kill.phase == self.stack[-1]:
            self.changed += 1
            return self.changed == self.kill.change
        return False

    def cut_writes(self) -> None:
        """Die in the middle of a write to the journal."""
        plain = os.pwrite

        def told(descriptor: int, data: memoryview, offset: int) -> int:
            if self.is_last_change():
                plain(descriptor, data[: len(data) // 2], offset)
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(descriptor, data, offset)

        setattr(os, "pwrite", told)  # noqa: B010

    def wrap(self, owner: Any, attribute: str, phase: str) -> None:
        plain = getattr(owner, attribute)

        @functools.wraps(plain)
        def told(*arguments: Any, **options: Any) -> Any:
            with self.phase(phase):
                return plain(*arguments, **options)

        setattr(owner, attribute, told)

    def wrap_append(self) -> None:
        plain = RunStore.append

        def told(store: RunStore, record: Record) -> None:
            with self.phase("append"):
                plain(store, record)
            self.say("row", group_of(record), record.step)

        setattr(RunStore, "append", told)  # noqa: B010  # it is assigned to a method


def group_of(record: Record) -> str:
    """The group of a store that holds a record."""
    if isinstance(record, UpdateRecord):
        return f"updates/{record.policy}"
    return "train" if isinstance(record, StepRecord) else "eval"


def attempt(out: Path, options: list[str], pipe: int, kill: Kill | None) -> int:
    """In a child: the command, with its phases told on the pipe; its exit status."""
    log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    teller = Teller(pipe, out, kill)
    teller.cut_writes()
    teller.wrap(trainers.training, "open_run_for_training", "start")
    teller.wrap(trainers.training, "_open_store", "open")
    teller.wrap(trainers.training, "learn", "learn")
    teller.wrap(trainers.training, "rollout", "rollout")
    teller.wrap(trainers.evaluate, "rollout", "evaluation")
    teller.wrap(trainers.training, "save_episodes", "episodes")
    teller.wrap(torch.Tensor, "backward", "backward")
    teller.wrap(RunStore, "flush", "flush")
    teller.wrap(RunStore, "close", "close")
    teller.wrap(trainers.training, "save_checkpoint", "checkpoint")
    teller.wrap_append()
    is_begun = (out / CONFIG).exists()
    given = ["--resume"] if is_begun else options
    return cli.main(["train", *given, "--out", str(out)])


def forked(out: Path, options: list[str], kill: Kill | None) -> Heard:
    """Let an attempt run, kill it where `kill` says, and return what it said."""
    said, tell = os.pipe()
    child = os.fork()
    if child == 0:
        status = 70
        try:
            os.close(said)
            status = attempt(out, options, tell, kill)
        finally:
            sys.stdout.flush()
            os._exit(status)
    os.close(tell)
    heard = Heard()
    entered = time.perf_counter()
    with os.fdopen(said, "r") as pipe:
        if kill and kill.phase == "rest" and kill.entry == 1 and not kill.change:
            time.sleep(kill.delay)
            os.kill(child, signal.SIGKILL)
        for line in pipe:
            what, name, *rest = line.split()
            if what == "row":
                heard.appended.append((name, int(rest[0])))
            elif what == "change":
                heard.changes[name] += 1
            else:
                now = time.perf_counter()
                longest = max(heard.seconds.get(heard.phase, 0.0), now - entered)
                heard.seconds[heard.phase], entered, heard.phase = longest, now, name
                heard.entries[name] += 1
                if (
                    kill
                    and not kill.change
                    and (name, heard.entries[name])
                    == (
                        kill.phase,
                        kill.entry,
                    )
                ):
                    time.sleep(kill.delay)
                    os.kill(child, signal.SIGKILL)
    _, heard.status = os.waitpid(child, 0)
    return heard
