"""Read the dictionaries of metrics that TRL, unsloth, ms-swift and others print to the console.

`{'loss': 0.1, 'grad_norm': 0.5, …}` stands somewhere beside a progress bar, torn by whatever else
was printed meanwhile. Its step is in it, before it ('step 12: {…}'), on the bar, or is counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gradlab.interop.logs.history import Part
from gradlab.interop.logs.reading.cut import Cut, told_cuts
from gradlab.interop.logs.reading.numbers import number
from gradlab.interop.logs.reading.steps import has_step
from gradlab.interop.logs.reading.tables import part_of
from gradlab.interop.logs.reading.texts import Line, lines

BAR = re.compile(
    r"(?:[A-Za-z][\w ./()\-]*:\s*)?\d{1,3}%\|[^|]*\|\s*(\d+)/(\d+)\s*\[[^\]{}]*(?:\]|(?=\{)|$)"
)
START = re.compile(r"\{\s*['\"][A-Za-z_]")
KEY = re.compile(r"""(?P<q>['"])(?P<key>[^'"{}\s]+)(?P=q)\s*:\s*""")
VALUE = r"""'[^']*'|"[^"]*"|[A-Za-z_][\w.]*\([^()]*\)|\[[^\[\]]*\]|\{[^{}]*\}|[^,{}\[\]()'"]+"""
PAIR = re.compile(rf"{KEY.pattern}(?P<value>{VALUE})\s*(?P<end>,\s*\}}?|\}})", re.VERBOSE)
BEFORE = re.compile(
    r"(?:step|iter|iteration|rollout|eval|episode)\s*[:=#]?\s*(\d+)\s*[:,-]?\s*$", re.I
)
METRIC = re.compile(
    r"(?:^|[/_])(?:\w*loss|rewards?|grad_norm|lr|learning_rate|kl|entropy|acc|accuracy|scores?|"
    r"completion_length|mean_length|train_runtime|eval_runtime|raw_reward)(?:$|[/_])",
    re.IGNORECASE,
)
PATIENCE = 4
"""Lines after the one that a dictionary begins in, in which it may end."""
SUMMARY = "train_runtime"
"""In what a trainer prints last."""


@dataclass(frozen=True)
class Printed:
    """One dictionary."""

    line: int
    values: Mapping[str, Any]
    before: int | None
    """The step that stands before it."""
    bars: Mapping[int, int]
    """Progress bars beside it: length -> position."""

    @property
    def is_training(self) -> bool:
        """It tells of a training step; else of an evaluation or of the run."""
        names = [name for name in self.values if name != "epoch"]
        is_evaluation = all(name.lower().startswith(("eval", "val", "test")) for name in names)
        return SUMMARY not in self.values and not is_evaluation


@dataclass
class _Reading:
    """What was read so far."""

    found: list[Printed] = field(default_factory=list)
    bars: dict[int, int] = field(default_factory=dict)
    before: int | None = None
    open: str | None = None
    """A dictionary that has not ended yet."""
    opened_in: int = 0
    torn: int = 0
    """Dictionaries that something was printed into."""
    cuts: list[Cut] = field(default_factory=list)


def has_dictionaries(text: str) -> bool:
    """Whether a text holds a dictionary of metrics."""
    reading = _Reading()
    for line, piece in enumerate(BAR.sub("", text).replace("\r", "\n").split("\n")):
        _feed(reading, piece, line)
        _end_of_line(reading, Line(piece), line)
        if reading.found:
            return True
    return False


def read_dictionaries(path: Path, step: str | None = None) -> Part | None:
    """All dictionaries of metrics of one log; None if there are none."""
    reading = _Reading()
    last = 0
    for last, line in enumerate(lines(path), start=1):
        place = 0
        for bar in BAR.finditer(line.text):
            # The blanks before a bar are its own.
            _feed(reading, line.text[place : bar.start()].rstrip(), last)
            reading.bars[int(bar[2])] = int(bar[1])
            place = bar.end()
        _feed(reading, line.text[place:], last)
        _end_of_line(reading, line, last)
    if reading.open is not None:
        _give_up(reading, last)
    if not any(printed.is_training for printed in reading.found):
        return None
    notes = []
    if reading.torn:
        notes.append(
            f"{path.name}: {reading.torn} of {len(reading.found)} dictionaries are torn by other "
            f"output; what stood at the tear was not taken"
        )
    steps, planned, told = _steps(reading.found)
    notes += [f"{path.name}: {note}" for note in told]
    records = [
        (
            f"line {printed.line}",
            printed.values if at is None else {"step": at, **printed.values},
        )
        for printed, at in zip(reading.found, steps, strict=True)
    ]
    lost: dict[str, list[int]] = {}
    for cut in reading.cuts:
        if cut.name:
            lost.setdefault(cut.name.strip("'\""), []).append(cut.step)
    notes += told_cuts(path.name, reading.cuts, lost)
    part = part_of(path, records, step, notes, planned)
    return Part(part.where, part.rows, part.notes, part.planned, tuple(lost))


def _feed(reading: _Reading, text: str, line: int) -> None:
    """Read on, from one progress bar to the next."""
    while text:
        if reading.open is None:
            start = START.search(text)
            if start is None:
                return
            found = BEFORE.search(text[: start.start()])
            reading.before = int(found[1]) if found else None
            reading.open, text, reading.opened_in = "", text[start.start() :], line
        text, reading.open = reading.open + text, None
        values, torn, end = _parsed(text)
        if end is None:
            again = START.search(text, 1)
            if again is None or values is None:
                reading.open = text
                return
            torn, end = torn + 1, again.start()
        _keep(reading, values, torn, line)
        text = text[end:]


def _parsed(text: str) -> tuple[dict[str, Any], int, int | None]:
    """Pairs of a dictionary, how many were torn, and where it ends: None if it does not."""
    values: dict[str, Any] = {}
    torn, place = 0, 1
    while True:
        while place < len(text) and text[place] in " \n\t":
            place += 1
        pair = PAIR.match(text, place)
        if pair is None:
            closing = text[place : place + 1] == "}"
            if closing:
                return values, torn, place + 1
            pair = PAIR.search(text, place + 1)
            new = START.search(text, place)
            if pair is None or (new is not None and new.start() < pair.start()):
                return values, torn, None
            torn += 1
        values[pair["key"]] = pair["value"].strip().strip("'\"")
        place = pair.end()
        if pair["end"].endswith("}"):
            return values, torn, place


def _end_of_line(reading: _Reading, line: Line, at: int) -> None:
    if reading.open is None:
        return
    if line.is_cut:
        values, _, _ = _parsed(reading.open)
        step = next(reversed([p.before or 0 for p in reading.found]), 0)
        tail = reading.open.rpartition(",")[2].strip().strip("'\"")
        reading.cuts.append(Cut(step, frozenset(values), tail))
        reading.open = None
        _keep(reading, values, 0, at)
    elif at - reading.opened_in >= PATIENCE:
        _give_up(reading, at)


def _give_up(reading: _Reading, line: int) -> None:
    assert reading.open is not None
    values, torn, _ = _parsed(reading.open)
    reading.open = None
    _keep(reading, values, torn + 1, line)


def _keep(reading: _Reading, values: dict[str, Any], torn: int, line: int) -> None:
    """Keep what is a dictionary of metrics: settings and samples are printed as such, too."""
    numbers = [name for name, value in values.items() if number(value) is not None]
    is_told = any(METRIC.search(name) for name in numbers)
    if reading.before is not None:  # 'eval 12: {'eval/aime': 0.3}'
        is_told = is_told or any(name.startswith("eval/") for name in numbers)
    if 2 * len(numbers) < len(values) or not is_told:
        return
    reading.torn += bool(torn)
    reading.found.append(Printed(line, values, reading.before, dict(reading.bars)))


def _steps(found: Sequence[Printed]) -> tuple[list[int | None], int | None, list[str]]:
    """The step of each dictionary (None: it holds one), the steps planned, and how it is known."""
    training = [printed for printed in found if printed.is_training]
    within = sum(has_step(printed.values) for printed in training)
    before = sum(printed.before is not None for printed in training)
    if 2 * within >= len(training) and within >= before:
        return [None] * len(found), None, []
    if 2 * before >= len(training):
        return _carried(found, lambda printed: printed.before), None, []
    planned = _bar_of_training(training)
    if planned is not None:
        steps = _carried(found, lambda printed: printed.bars.get(planned))
        lag = _lag(training, planned)
        note = f"the step of each row is that of the progress bar beside it (of {planned})"
        if lag:
            note += f", which begins at 0 and so is {lag} behind"
        return [at if at is None else at + lag for at in steps], planned, [note]
    return _counted(found, training)


def _bar_of_training(training: Sequence[Printed]) -> int | None:
    """Length of the bar that goes on from row to row; there are bars of other things, too."""
    fitting: dict[int, int] = {}
    for length in sorted({length for printed in training for length in printed.bars}):
        known = [printed.bars[length] for printed in training if length in printed.bars]
        moves = np.diff(known)
        if 10 * len(known) >= 9 * len(training) and np.mean(moves != 0) >= 0.9:
            fitting[length] = len(known)
    return max(fitting, key=lambda length: (fitting[length], length), default=None)


def _lag(training: Sequence[Printed], length: int) -> int:
    """A bar that stands at 0 beside the first row is moved on after the row was printed."""
    known = [printed.bars[length] for printed in training if length in printed.bars]
    if known[0] != 0 or len(known) < 2:
        return 0
    return max(int(np.median(np.diff(known))), 0)


def _carried(
    found: Sequence[Printed], step_of: Callable[[Printed], int | None]
) -> list[int | None]:
    """Steps where known, else that of the training row before: evaluations come after it."""
    steps: list[int | None] = []
    last = 0
    for printed in found:
        at = step_of(printed)
        last = last if at is None else at
        steps.append(last)
    return steps


def _counted(
    found: Sequence[Printed], training: Sequence[Printed]
) -> tuple[list[int | None], int | None, list[str]]:
    """Rows numbered from 1, or as far apart as the length of a finished run says."""
    is_finished = SUMMARY in found[-1].values
    lengths = [length for length in found[-1].bars if length % len(training) == 0]
    planned = max(lengths, default=None) if is_finished else None
    stride = planned // len(training) if planned else 1
    steps: list[int | None] = []
    count = 0
    for printed in found:
        count += printed.is_training
        steps.append(count * stride)
    note = "no step stands in or beside its rows: they were counted, the first is step 1"
    if planned and stride > 1:
        note = (
            f"no step stands in or beside its rows: the {len(training)} rows of a finished run of "
            f"{planned} steps were counted, {stride} steps apart"
        )
    return steps, planned, [note]
