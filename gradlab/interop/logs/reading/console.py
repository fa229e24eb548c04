"""Read the metrics that trainers print to the console, out of whatever else a log holds."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from gradlab.interop.logs.history import Part, Row
from gradlab.interop.logs.reading.cut import Cut, lost_metrics, told_cuts
from gradlab.interop.logs.reading.dictionaries import has_dictionaries, read_dictionaries
from gradlab.interop.logs.reading.numbers import number_at
from gradlab.interop.logs.reading.texts import ANSI, Line, ends_with_newline, lines

RAY = re.compile(r"^\s*\([\w.:]+ (?:pid=\d+|ip=[^,)]*|, )+[^)]*\)\s?")
STEP = re.compile(r"(?<![\w/])step:\s*(\d+)\s+-\s+")
"""verl: one line per step, 'step:12 - actor/grad_norm:0.53 - batch/success:0.41'."""
HEAD = re.compile(r"^\s*step:\s*(\d+)\s*:?\s*$", re.IGNORECASE)
ITEM = re.compile(r"^\s*-\s*(\S[^:]*):\s*(\S+)\s*$")
"""The same as a list: 'step: 12', then lines '- actor/grad_norm: 0.53'."""
DIGITS = re.compile(r"^[\d.eE+-]+\)?\s*$")
PLANNED = re.compile(r"Training Progress:.*?\|\s*\d+/(\d+)\s*\[")
LIST_PATIENCE = 20
"""Other lines that may stand between the items of a list."""


@dataclass
class _Reading:
    """What was read so far."""

    rows: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    texts: dict[str, set[str]] = field(default_factory=dict)
    """The numbers of a metric as printed; a few are enough."""
    passed_over: int = 0
    first_passed_over: str = ""
    planned: int | None = None
    tail: str = ""
    """The last piece of the metric line before: the line may go on below, even within a number."""
    is_open: bool = False
    """The line before was a metric line: this one may continue it."""
    list_left: int = 0
    """Other lines that the list being read may still skip."""
    cuts: list[Cut] = field(default_factory=list)
    """Metric lines that end where lines are cut off."""


def read_console(path: Path, step: str | None = None) -> Part:
    """The metric lines of one log, in its order; else the dictionaries that it prints."""
    reading = _Reading()
    number = 0
    for number, line in enumerate(lines(path), start=1):
        _take(reading, line, number)
    notes = []
    if reading.is_open and _parsed(reading.tail) and not ends_with_newline(path):
        name = reading.tail.rpartition(":")[0].strip()
        notes.append(f"{path.name}: ends within a line; its last value ('{name}') was not taken")
    elif reading.is_open:
        _end_line(reading, number + 1)
    notes += _without_strangers(path, reading)
    if not reading.rows:
        printed = read_dictionaries(path, step)
        if printed is not None:
            return printed
        raise ValueError(
            f"{path}: none of its {number} lines is a metric line; expected "
            f"'step:12 - actor/grad_norm:0.53 - …' as verl prints it with 'console' among its "
            f"loggers, a line 'step: 12' with lines '- name: value' below, or dictionaries such as "
            f"{{'loss': 0.1, 'grad_norm': 0.5}} as TRL prints them (its trainer_state.json has the "
            f"same, with steps); for a table or a wandb export say --kind csv or --kind jsonl"
        )
    if reading.passed_over:
        notes.append(
            f"{path.name}: {reading.passed_over} pieces of metric lines are no 'name:number' and "
            f"were passed over, the first {reading.first_passed_over}"
        )
    rounded = _rounded_to_nothing(reading)
    if rounded:
        notes.append(
            f"{path.name}: {', '.join(rounded)} printed as 0.000 throughout: too few decimals to "
            f"mean zero; not taken"
        )
    lost = lost_metrics(reading.cuts, reading.rows)
    notes += told_cuts(path.name, reading.cuts, lost)
    rows = [
        Row(step, {name: value for name, value in values.items() if name not in rounded})
        for step, values in reading.rows
    ]
    return Part(path.name, rows, notes, reading.planned, tuple(lost))


def has_metric_lines(text: str) -> bool:
    """Whether the beginning of a file looks like such a log."""
    plain = ANSI.sub("", text).replace("\r", "\n")
    if STEP.search(plain) or any(HEAD.match(RAY.sub("", x)) for x in plain.split("\n")):
        return True
    return has_dictionaries(plain)


def _without_strangers(path: Path, reading: _Reading) -> list[str]:
    """Drop lines that only look like metrics: verl's names have a '/', an agent's 'step:1' not."""
    reading.rows = [(step, values) for step, values in reading.rows if values]
    own = [(step, values) for step, values in reading.rows if any("/" in name for name in values)]
    num = len(reading.rows) - len(own)
    if not own or not num:
        return []
    reading.rows = own
    return [f"{path.name}: {num} lines 'step:N - …' without a name such as 'actor/lr' not taken"]


def _take(reading: _Reading, whole: Line, number: int) -> None:
    line = whole.text
    planned = PLANNED.search(line)
    if planned:
        reading.planned = int(planned[1])
    found = STEP.search(line)
    plain = RAY.sub("", line)
    head = HEAD.match(plain)
    if found:
        _end_line(reading, number)
        reading.rows.append((int(found[1]), {}))
        _take_pieces(reading, line[found.end() :], number)
    elif head:
        _end_line(reading, number)
        reading.rows.append((int(head[1]), {}))
        reading.list_left = LIST_PATIENCE
    elif reading.list_left and (item := ITEM.match(plain)):
        reading.list_left = LIST_PATIENCE
        _take_piece(reading, f"{item[1]}:{item[2]}", number)
    elif reading.is_open and _continues(reading.tail, plain):
        _take_pieces(reading, reading.tail + plain, number)
    else:
        _end_line(reading, number, plain)
        reading.list_left = max(reading.list_left - 1, 0)
    if whole.is_cut and reading.is_open:
        _cut_off(reading)


def _cut_off(reading: _Reading) -> None:
    """The line was cut where it ends: its last piece is no metric, and nothing continues it."""
    step, values = reading.rows[-1]
    reading.cuts.append(Cut(step, frozenset(values), reading.tail))
    reading.tail, reading.is_open = "", False


def _end_line(reading: _Reading, number: int, line: str = "") -> None:
    """The metric line before does not go on: its last piece is whole, unless digits follow."""
    if reading.is_open and _parsed(reading.tail) and DIGITS.match(line):
        _pass_over(reading, f"{reading.tail} before a line '{line.strip()}'", number - 1)
    elif reading.is_open:
        _take_piece(reading, reading.tail, number - 1)
    reading.tail, reading.is_open = "", False


def _continues(tail: str, line: str) -> bool:
    """Long lines are broken anywhere on their way: does this one go on?"""
    pieces = f"{tail}{line}".split(" - ")
    if any(_parsed(piece) is None for piece in pieces[:-1]):
        return False
    # With one piece alone, only an unfinished one is sure to go on.
    return len(pieces) > 1 or (_parsed(tail) is None and _parsed(pieces[0]) is not None)


def _take_pieces(reading: _Reading, text: str, number: int) -> None:
    pieces = text.split(" - ")
    for piece in pieces[:-1]:
        _take_piece(reading, piece, number)
    reading.is_open, reading.tail = True, pieces[-1]


def _take_piece(reading: _Reading, piece: str, number: int) -> None:
    parsed = _parsed(piece)
    if parsed is None:
        _pass_over(reading, piece, number)
        return
    name, text = parsed
    reading.rows[-1][1][name] = float(text)
    texts = reading.texts.setdefault(name, set())
    if len(texts) < 3:
        texts.add(text)


def _parsed(piece: str) -> tuple[str, str] | None:
    """Name and number of 'name:number'; names may hold colons, values may be followed by noise."""
    parts = piece.split(":")
    for i in range(len(parts) - 1, 0, -1):
        name, found = ":".join(parts[:i]).strip(), number_at(":".join(parts[i:]))
        # "tensor(1.5,device='cuda:0')" has a colon of its own.
        is_name = name and " " not in name and "'" not in name
        if found and is_name and name.count("(") == name.count(")"):
            return name, found
    return None


def _pass_over(reading: _Reading, piece: str, number: int) -> None:
    reading.passed_over += 1
    reading.first_passed_over = reading.first_passed_over or f"in line {number}: {piece[:60]!r}"


def _rounded_to_nothing(reading: _Reading) -> list[str]:
    """Learning rates that older versions of verl print with three decimals."""
    return [
        name
        for name, texts in reading.texts.items()
        if name.split("/")[-1] in ("lr", "learning_rate") and texts == {"0.000"}
    ]
