"""Keep one run of a table that holds several below each other; refuse to mix them.

A run that was resumed goes on from a step of its middle. Runs that were written below each other
begin again, and a column tells them apart: its values are what `--run` chooses among.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gradlab.interop.logs.history import Part, contradicts
from gradlab.interop.logs.reading.numbers import fraction, number
from gradlab.interop.logs.reading.steps import (
    OF_PLANNED,
    OWN,
    STEP_COLUMNS,
    Located,
    missing,
    short,
)

NAMES = (
    "run_id",
    "run",
    "run_name",
    "wandb_id",
    "experiment",
    "experiment_name",
    "exp",
    "exp_name",
    "trial",
    "job_id",
    "job",
    "seed",
    "group",
    "variant",
    "method",
    "algorithm",
    "algo",
    "model",
    "condition",
    "config",
    "name",
)
"""Columns that tell runs apart, the surest first; the last piece of a name, in lower case."""


@dataclass(frozen=True)
class Choice:
    """Which run of several somebody asked for."""

    run: str | None = None
    where: Mapping[str, str] = field(default_factory=dict)
    """Column -> value of the rows to take."""
    used: list[str] = field(default_factory=list)
    """Where `run` chose something; a list since it is filled while files are read."""


def one_run(
    path: Path, records: Sequence[Located], step: str | None, choice: Choice
) -> tuple[list[Located], list[str]]:
    """The rows of one run, and what was left out; an error that names the runs to choose."""
    kept = list(records)
    notes: list[str] = []
    for column, value in choice.where.items():
        kept = _with_value(path, kept, column, value)
        notes.append(f"{path.name}: {len(kept)} of {len(records)} rows have {column}={value}")
    if choice.run is not None:
        chosen = _column_of(path, kept, step, choice.run)
        if chosen is not None:
            num = len(kept)
            kept = _with_value(path, kept, chosen, choice.run)
            notes.append(f"{path.name}: {len(kept)} of {num} rows are of {chosen}={choice.run}")
            choice.used.append(path.name)
    if (stacked := _stacked(kept, step)) is not None:
        values = _values(kept, stacked)
        raise ValueError(
            f"{path}: '{stacked}' has {len(values)} values ({short(values)}), and the step begins "
            f"again with each: they are not one run; choose one with --run, such as --run "
            f"{values[0]} (or --where {stacked}={values[0]})"
        )
    return _one_of_equal(path, kept, step, choice, notes)


def _one_of_equal(
    path: Path, records: list[Located], step: str | None, choice: Choice, notes: list[str]
) -> tuple[list[Located], list[str]]:
    """The same where no column tells the runs apart: they begin and end at the same steps."""
    pieces = _pieces(records, step)
    spans = {(piece[0][0], piece[-1][0]) for piece in pieces}
    if len(pieces) < 2 or len(spans) > 1 or min(map(len, pieces)) < 3:
        return records, notes
    numbers = [str(i) for i in range(1, len(pieces) + 1)]
    if choice.run in numbers:
        choice.used.append(path.name)
        chosen = pieces[int(choice.run) - 1]
        notes.append(f"{path.name}: run {choice.run} of the {len(pieces)} below each other")
        return [record for _, record in chosen], notes
    first, last = next(iter(spans))
    raise ValueError(
        f"{path}: {len(pieces)} times steps {first} to {last} below each other, and no column "
        f"tells these runs apart; choose one with --run 1 to --run {len(pieces)}"
    )


def _pieces(records: Sequence[Located], step: str | None) -> list[list[tuple[int, Located]]]:
    """The rows with their steps, cut where the step goes back."""
    column = _step_of(records, step)
    pieces: list[list[tuple[int, Located]]] = []
    last = math.inf
    for located in records:
        at = None if column is None else number(located[1].get(column))
        if at is None or not math.isfinite(at):
            continue
        if at < last:
            pieces.append([])
        pieces[-1].append((int(at), located))
        last = at
    return pieces


def _step_of(records: Sequence[Located], step: str | None) -> str | None:
    names = dict.fromkeys(name for _, record in records for name in record)
    if step is not None:
        return step if step in names else None
    by_lower = {name.lower(): name for name in reversed([*names])}
    return next((by_lower[known] for known in STEP_COLUMNS if known in by_lower), None)


def _stacked(records: Sequence[Located], step: str | None) -> str | None:
    """The column whose values are runs of their own; None if the rows are of one run."""
    at = _step_of(records, step)
    if at is None:
        return None
    names = dict.fromkeys(name for _, record in records for name in record)
    known = sorted((n for n in names if _rank(n) < len(NAMES)), key=_rank)
    texts = [n for n in names if n not in known and _is_text(records, n)]
    for column in (*known, *texts):
        if column != at and _begins_again(records, at, column, must_differ=column in texts):
            return column
    return None


def _rank(name: str) -> int:
    last = name.lower().rpartition("/")[2]
    return NAMES.index(last) if last in NAMES else len(NAMES)


def _is_text(records: Sequence[Located], column: str) -> bool:
    """Whether a column holds words, in all rows; '12/60' counts steps."""
    if column.startswith("_") or column.lower() in OF_PLANNED or OWN.match(column):
        return False
    values = [record.get(column) for _, record in records]
    return all(
        isinstance(v, str) and not missing(v) and number(v) is None and fraction(v) is None
        for v in values
    )


def _begins_again(records: Sequence[Located], at: str, column: str, must_differ: bool) -> bool:
    """Whether two values of the column begin at the same early step, and go on from there."""
    steps: dict[str, list[float]] = {}
    rows: dict[tuple[float, str], list[Located]] = {}
    for located in records:
        value, step = located[1].get(column), number(located[1].get(at))
        if missing(value) or step is None or not math.isfinite(step):
            continue
        steps.setdefault(str(value), []).append(step)
        rows.setdefault((step, str(value)), []).append(located)
    # A column that is new in every row (a text, a time) tells no runs apart.
    long = {value: known for value, known in steps.items() if len(set(known)) > 1}
    if len(long) < 2 or 2 * len(long) > sum(map(len, long.values())):
        return False
    first = min(map(min, long.values()))
    span = max(map(max, long.values())) - first
    again = [value for value, known in long.items() if min(known) <= first + 0.1 * span]
    if len(again) < 2:
        return False
    return not must_differ or _differ(rows, again)


def _differ(rows: Mapping[tuple[float, str], Sequence[Located]], values: Sequence[str]) -> bool:
    """Whether rows of the same step give a metric another number under another value."""
    for (step, value), mine in rows.items():
        for other in values:
            for _, one in rows.get((step, other), ()) if other != value else ():
                for _, record in mine:
                    both = [(number(record.get(n)), number(one.get(n))) for n in record]
                    if any(a is not None and b is not None and a != b for a, b in both):
                        return True
    return False


def _values(records: Sequence[Located], column: str) -> list[str]:
    found = (record.get(column) for _, record in records)
    return [*dict.fromkeys(str(value) for value in found if not missing(value))]


def _column_of(path: Path, records: Sequence[Located], step: str | None, run: str) -> str | None:
    """The column that `--run` names a value of; an error that lists the runs if none has it."""
    names = dict.fromkeys(name for _, record in records for name in record)
    known = sorted((n for n in names if _rank(n) < len(NAMES)), key=_rank)
    texts = [n for n in names if n not in known and _is_text(records, n)]
    for column in (*known, *texts):
        values = _values(records, column)
        if run in values and len(values) > 1:
            return column
    if (stacked := _stacked(records, step)) is not None:
        raise ValueError(
            f"{path}: no run '{run}'; '{stacked}' has {short(_values(records, stacked))}"
        )
    return None


def _with_value(path: Path, records: Sequence[Located], column: str, value: str) -> list[Located]:
    kept = [located for located in records if str(located[1].get(column)) == value]
    if kept:
        return kept
    names = [*dict.fromkeys(name for _, record in records for name in record)]
    if column not in names:
        raise ValueError(f"{path}: no column '{column}' to choose rows by; it has {short(names)}")
    raise ValueError(
        f"{path}: no row has {column}={value}; it has {short(_values(records, column))}"
    )


def one_part(parts: Sequence[Part], choice: Choice) -> list[Part]:
    """The files of one run; an error that names them where they are runs of their own."""
    if choice.run is not None and not choice.used:
        chosen = [part for part in parts if choice.run in (part.where, Path(part.where).stem)]
        if not chosen:
            raise ValueError(
                f"--run {choice.run}: there is no such run; what was given holds "
                f"{'one run' if len(parts) == 1 else short([part.where for part in parts])}"
            )
        return chosen
    for i, one in enumerate(parts):
        apart = [one.where, *(p.where for p in parts[i + 1 :] if _are_apart(one, p))]
        if len(apart) > 1:
            raise ValueError(
                f"{', '.join(apart)} all begin at step {min(row.step for row in one.rows)} and log "
                f"other values: runs of their own, or a start from scratch; give the files of one, "
                f"or choose with --run, such as --run {apart[-1]}"
            )
    return list(parts)


def _are_apart(one: Part, other: Part) -> bool:
    """Two files that begin at the same step and give metrics of the same step other values."""
    if not one.rows or not other.rows:
        return False
    if min(row.step for row in one.rows) != min(row.step for row in other.rows):
        return False
    rows = {row.step: row for row in one.rows}
    differ = [row.step in rows and contradicts(rows[row.step], row) for row in other.rows]
    return sum(differ) > 1
