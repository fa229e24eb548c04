"""Show how far the cells are: a live table on a terminal, a line per change elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table

from trainers.matrix.state import State, Status, counted
from trainers.preview.words import duration

STYLES: Mapping[Status, str] = {
    "running": "bold", "failed": "red", "interrupted": "yellow", "finished": "green",
    "waiting": "dim",
}  # fmt: skip
LATEST = 5
"""Finished cells that the live table shows."""


class LiveBoard:
    """A table on a terminal: what runs, what went wrong, what finished last."""

    def __init__(self, console: Console, at_once: int) -> None:
        self._console = console
        self._at_once = at_once
        self._finished: list[str] = []
        self._live = Live(console=console, refresh_per_second=2, transient=True)
        self._live.start()

    def show(self, states: Mapping[str, State]) -> None:
        for name, state in states.items():
            if state.status == "finished" and name not in self._finished:
                self._finished.append(name)
        late = self._finished[-LATEST:]
        shown = [
            state for state in states.values()
            if state.status in ("running", "interrupted", "failed") or state.name in late
        ]  # fmt: skip
        room = max(3, self._console.height - 6)
        caption = summary(states, self._at_once)
        if len(shown) > room:
            caption += f"; {len(shown) - room} more rows: gradlab matrix --status"
        self._live.update(table(shown[:room], caption), refresh=True)

    def note(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, highlight=False)

    def close(self) -> None:
        self._live.stop()


class LineBoard:
    """A line for every change: of a status, an evaluation, an alarm."""

    def __init__(self, console: Console, at_once: int) -> None:
        self._console = console
        self._at_once = at_once
        self._seen: dict[str, tuple[Status, int, int]] = {}
        self._counts: dict[Status, int] = {}

    def show(self, states: Mapping[str, State]) -> None:
        for name, state in states.items():
            now = (state.status, state.progress.evaluated, state.progress.alarms)
            before = self._seen.get(name, ("waiting", -1, 0))
            if now != before:
                self.note(line(state))
            self._seen[name] = now
        counts = counted(states)
        if counts["finished"] != self._counts.get("finished"):
            self.note(summary(states, self._at_once))
        self._counts = counts

    def note(self, text: str) -> None:
        clock = time.strftime("%H:%M:%S")
        self._console.print(f"{clock} {text}", soft_wrap=True, highlight=False, markup=False)

    def close(self) -> None:
        """Every line is written at once."""


def columns(state: State) -> tuple[str, str, str, str, str]:
    """Step, accuracy, time left, alarms and what is said, as text."""
    progress = state.progress
    accuracy = "" if progress.accuracy is None else f"{progress.accuracy:.1%}"
    if progress.base is not None and progress.evaluated > 0:
        accuracy = f"{progress.base:.1%} to {accuracy}"
    left = state.seconds_left if state.status == "running" else None
    return (
        "" if state.status == "waiting" else f"{progress.step}/{state.steps}",
        accuracy,
        "" if left is None else duration(left),
        str(progress.alarms) if progress.alarms else "",
        state.said,
    )


def line(state: State) -> str:
    step, accuracy, left, alarms, said = columns(state)
    parts = [
        f"{state.name}: {state.status}",
        f"step {step}" if step else "",
        f"held-out {accuracy}" if accuracy else "",
        f"{left} left" if left else "",
        f"{alarms} alarms" if alarms else "",
        said,
    ]
    return ", ".join(part for part in parts if part)


def table(states: Sequence[State], caption: str) -> Table:
    """A row per cell."""
    found = Table(caption=caption, caption_justify="left", box=None, pad_edge=False)
    for name in ("cell", "status", "step", "accuracy", "left", "alarms", ""):
        found.add_column(name, overflow="fold", no_wrap=name in ("status", "step", "left"))
    for state in states:
        found.add_row(state.name, state.status, *columns(state), style=STYLES[state.status])
    return found


def plain_table(states: Sequence[State]) -> Iterator[str]:
    """The same as lines of text, columns as wide as they need."""
    heads = ("cell", "status", "step", "accuracy", "left", "alarms", "")
    rows = [heads, *((state.name, state.status, *columns(state)) for state in states)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads) - 1)]
    for row in rows:
        padded = [text.ljust(width) for text, width in zip(row, widths, strict=False)]
        yield "  ".join([*padded, row[-1]]).rstrip()


def summary(states: Mapping[str, State], at_once: int) -> str:
    """How many cells are how far, and about how long the rest takes."""
    counts = counted(states)
    said = ", ".join(f"{number} {status}" for status, number in counts.items() if number)
    left = seconds_left(states, max(at_once, counts["running"], 1))
    cells = "1 cell" if len(states) == 1 else f"{len(states)} cells"
    return f"{cells}: {said}" + (f"; about {duration(left)} left" if left else "")


def seconds_left(states: Mapping[str, State], at_once: int) -> float | None:
    """Of all cells; those without a time of their own take a step's mean over those that have one.

    Failed ones are left out. None before any step was timed.
    """
    known = [s.progress.seconds for s in states.values() if s.progress.seconds is not None]
    if not known:
        return None
    mean = sum(known) / len(known)
    total = 0.0
    for state in states.values():
        if state.status not in ("finished", "failed"):
            seconds = state.progress.seconds or mean
            total += seconds * (state.steps - state.progress.step)
    return total / at_once
