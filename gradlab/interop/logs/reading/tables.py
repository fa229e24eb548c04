"""Read logged metrics out of tables: CSV, JSON lines, wandb exports, TRL's trainer_state.json."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradlab.interop.logs.history import Part, Row
from gradlab.interop.logs.reading.numbers import number
from gradlab.interop.logs.reading.stacked import Choice, one_run
from gradlab.interop.logs.reading.steps import (
    STEP_COLUMNS,
    Located,
    Record,
    missing,
    short,
    stepped,
)
from gradlab.interop.logs.reading.texts import whole

BOOKKEEPING = {"epoch", "train/epoch", "training/epoch", "total_flos", "train/total_flos"}
ROW_COUNTERS = {"index", "unnamed: 0", "row_index"}
"""What pandas calls the column of its row numbers."""
LONG = ({"tag", "metric", "name", "key", "variable", "metric_name"}, {"value", "metric_value"})
"""Columns of a table with one row per value."""
RANGE = re.compile(r"__(?:MIN|MAX)$")
"""What wandb's page adds to the columns of a panel: the ends of its smoothing."""


def read_csv(path: Path, step: str | None = None, choice: Choice | None = None) -> Part:
    """A table with a header, one row per step; or what wandb's page exports of a panel."""
    with io.StringIO(whole(path), newline="") as file:
        head = file.readline()
        delimiter = max(",;\t", key=head.count)
        file.seek(0)
        table = csv.reader(file, delimiter=delimiter)
        columns = next(table, [])
        if len(columns) < 2:
            raise ValueError(
                f"{path}: the first line has {len(columns)} columns, expected a header with a step "
                f"column and at least one metric, separated by commas, semicolons or tabs"
            )
        if [name.strip().lower() for name in columns] == ["wall time", "step", "value"]:
            columns = ["wall_time", "step", _tag_of(path)]
        twice = [name for name, times in Counter(columns).items() if name and times > 1]
        if twice:
            raise ValueError(
                f"{path}: the header names {', '.join(map(repr, twice))} more than once; "
                f"rename the columns"
            )
        records: list[Located] = []
        for line, cells in enumerate(table, start=2):
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) > len(columns):
                raise ValueError(
                    f"{path}, row {line}: {len(cells)} cells under {len(columns)} columns; "
                    f"quote cells that hold a '{delimiter}'"
                )
            records.append((f"row {line}", dict(zip(columns, cells, strict=False))))
    choice = choice or Choice()
    records = _widened(records)
    columns = [*dict.fromkeys(name for _, record in records for name in record)]
    is_panel = any(RANGE.search(name) for name in columns)
    names, notes = _panel_names(path, columns, choice.run if is_panel else None)
    choice.used.extend([path.name] * is_panel)
    renamed: list[Located] = [
        (where, {names[name]: cell for name, cell in cells.items() if name in names})
        for where, cells in records
    ]
    if not is_panel:
        renamed, chosen = one_run(path, renamed, step, choice)
        notes += chosen
    return part_of(path, renamed, step, notes, has_decimal_comma=delimiter == ";")


def read_jsonl(path: Path, step: str | None = None, choice: Choice | None = None) -> Part:
    """One JSON object per line: `run.scan_history()` of wandb, its wandb-history.jsonl, verl's file
    logger ({"step": 1, "data": {…}}), ROLL's with "metrics", or any other with a step in each."""
    records: list[tuple[str, Record]] = []
    notes = []
    lines = whole(path).splitlines()
    for at, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if at == len(lines) and records:
                notes.append(f"{path.name}: the last line is cut off; not taken")
                break
            raise ValueError(
                f"{path}, line {at}: not JSON ({error.msg} at column {error.colno}); expected "
                f"one object per line, such as run.scan_history() of wandb gives"
            ) from error
        if not isinstance(record, dict):
            raise ValueError(
                f"{path}, line {at}: a {type(record).__name__}, expected an object such as "
                f'{{"_step": 12, "actor/grad_norm": 0.53}}'
            )
        inner = next(
            (record[key] for key in ("data", "metrics") if set(record) == {"step", key}), 0
        )
        if isinstance(inner, dict):
            record = {**inner, "step": record["step"]}
        records.append((f"line {at}", record))
    records, chosen = one_run(path, records, step, choice or Choice())
    return part_of(path, records, step, [*notes, *chosen])


def read_trainer_state(path: Path, step: str | None = None, choice: Choice | None = None) -> Part:
    """The log of a Hugging Face trainer: trainer_state.json, or its `log_history` on its own."""
    try:
        document = json.loads(whole(path))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: not JSON ({error.msg} in line {error.lineno}): was it cut off while it was "
            f"written? Take the one of an earlier checkpoint"
        ) from error
    history = document.get("log_history") if isinstance(document, dict) else document
    if isinstance(document, dict) and history is None:
        history = _by_column(path, document)
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise ValueError(
            f"{path}: expected an object with the list 'log_history' as trainers save it, or that "
            f"list; got {_sort_of(document)}"
        )
    records = [(f"log_history[{i}]", entry) for i, entry in enumerate(history)]
    planned = document.get("max_steps") if isinstance(document, dict) else None
    records, notes = one_run(path, records, step, choice or Choice())
    is_known = isinstance(planned, int) and planned > 0
    return part_of(path, records, step, notes, planned if is_known else None)


def _by_column(path: Path, document: Mapping[str, Any]) -> list[Record] | None:
    """Rows of {"loss": {"1": 0.5, …}} or {"step": [1, …], "loss": [0.5, …]}; None of others."""
    columns = {name: value for name, value in document.items() if isinstance(value, dict | list)}
    by_step = {
        name: column
        for name, column in columns.items()
        if isinstance(column, dict) and column and all(step.isdecimal() for step in column)
    }
    if by_step:
        steps = sorted({int(step) for column in by_step.values() for step in column})
        return [
            {"step": at} | {n: c[str(at)] for n, c in by_step.items() if str(at) in c}
            for at in steps
        ]
    lists = {name: value for name, value in columns.items() if isinstance(value, list)}
    if len(lists) > 1 and len({len(value) for value in lists.values()}) == 1:
        return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    if document and not columns and sum(number(v) is not None for v in document.values()) > 1:
        raise ValueError(
            f"{path}: one value of each metric, as in a wandb-summary.json: the last ones, and no "
            f"history; write one JSON line per row of run.scan_history() and import that file"
        )
    return None


def _tag_of(path: Path) -> str:
    """The scalar that TensorBoard's page exported: its name is in that of the file."""
    return path.name.partition("tag-")[2].partition(".csv")[0] or path.stem


def _sort_of(document: Any) -> str:
    if isinstance(document, dict):
        return f"an object with {sorted(document)[:8]}"
    return f"a {type(document).__name__}"


def _widened(records: list[Located]) -> list[Located]:
    """A table with one row per value (step, tag, value) as one with a row per step."""
    names = {name.lower(): name for _, record in records for name in record if name}
    tag, value = (next((names[n] for n in names if n in known), None) for known in LONG)
    others = [n for n in names if names[n] not in (tag, value)]
    kept = {"wall_time", "timestamp", "time", "run", "run_id"}
    steps = [n for n in others if n in STEP_COLUMNS]
    if tag is None or value is None or not steps or set(others) - {*steps, *kept}:
        return records
    wide: dict[tuple[Any, ...], tuple[str, dict[str, Any]]] = {}
    for where, record in records:
        fixed = {
            names[n]: record.get(names[n]) for n in others if not n.endswith(("time", "stamp"))
        }
        row = wide.setdefault(tuple(fixed.values()), (where, fixed))[1]
        row[str(record.get(tag)).strip()] = record.get(value)
    return [*wide.values()]


def _panel_names(
    path: Path, columns: Sequence[str], run: str | None
) -> tuple[dict[str, str], list[str]]:
    """Column -> metric of one run; 'my-run - actor/lr' is how wandb's page names them."""
    named = [name for name in columns if name and not RANGE.search(name)]
    if not any(RANGE.search(name) for name in columns):
        return {name: name.strip() for name in named if name.strip()}, []
    by_run: dict[str, dict[str, str]] = {}
    shared = {}
    for name in named:
        owner, dash, metric = name.rpartition(" - ")
        if dash:
            by_run.setdefault(owner, {})[name] = metric
        else:
            shared[name] = name
    if run is None and len(by_run) > 1:
        raise ValueError(
            f"{path}: an export of {len(by_run)} runs ({', '.join(by_run)}); "
            f"choose one with --run NAME"
        )
    chosen = run or next(iter(by_run))
    if chosen not in by_run:
        raise ValueError(f"{path}: no run '{chosen}'; it holds {', '.join(by_run)}")
    note = (
        f"{path.name}: exported from wandb's page, which thins long runs out; run.scan_history() "
        f"gives every step"
    )
    return {**shared, **by_run[chosen]}, [note]


def part_of(
    path: Path,
    records: Sequence[Located],
    step: str | None,
    notes: Sequence[str],
    planned: int | None = None,
    has_decimal_comma: bool = False,
) -> Part:
    """The rows of a table, each with its step and the numbers in it."""
    if not records:
        raise ValueError(f"{path}: holds no rows; expected one per logged step")
    found = stepped(path, records, step)
    text: dict[str, list[tuple[str, str]]] = {}
    rows: list[Row] = []
    for where, at, record in found.rows:
        values: dict[str, float] = {}
        for name, value in record.items():
            plain = name.lower()
            if plain in BOOKKEEPING | ROW_COUNTERS or name in found.columns or name[0] == "_":
                continue
            if missing(value):
                continue
            parsed = number(value, has_decimal_comma)
            if parsed is None:
                text.setdefault(name, []).append((where, str(value)))
            else:
                values[name] = parsed
        rows.append(Row(at, values, _time(record)))
    rows, filled = _without_filling(rows)
    said = [*notes, *found.notes]
    if filled:
        said.append(
            f"{path.name}: NaN between the numbers of {short(filled)} was taken for empty cells: "
            f"the table has no others, as one that pandas wrote"
        )
    if text:
        said.append(f"{path.name}: not numbers, not taken: {', '.join(_texts(text, len(rows)))}")
    return Part(path.name, rows, said, planned or found.planned)


def _texts(text: Mapping[str, Sequence[tuple[str, str]]], num_rows: int) -> list[str]:
    """Columns of text: 'algorithm ('grpo' throughout)', 'note (2 values, the first in …)'."""
    said = []
    for name, found in sorted(text.items()):
        (where, first), num = found[0], len(found)
        if num == num_rows and len({value for _, value in found}) == 1:
            said.append(f"{name} ({first[:30]!r} throughout)")
        else:
            plural = "s" * (num > 1)
            said.append(f"{name} ({num} value{plural}, the first in {where}: {first[:30]!r})")
    return said


def _without_filling(rows: list[Row]) -> tuple[list[Row], list[str]]:
    """Without the NaN that pandas fills the empty cells of a table with.

    A NaN that was logged is information. It is a filling where every cell of the table is filled,
    most of the metric's are NaN, and numbers come again after them.
    """
    names = dict.fromkeys(name for row in rows for name in row.values)
    if any(len(row.values) < len(names) for row in rows):
        return rows, []
    filled = []
    for name in names:
        is_nan = [math.isnan(row.values[name]) for row in rows]
        if (
            True in is_nan
            and 2 * sum(is_nan) >= len(rows)
            and False in is_nan[is_nan.index(True) :]
        ):
            filled.append(name)
    if not filled:
        return rows, []
    kept = [
        Row(
            row.step,
            {n: v for n, v in row.values.items() if n not in filled or not math.isnan(v)},
            row.wall_time,
        )
        for row in rows
    ]
    return kept, filled


def _time(record: Record) -> float:
    stamp = record.get("_timestamp")
    return float(stamp) if isinstance(stamp, int | float) else math.nan
