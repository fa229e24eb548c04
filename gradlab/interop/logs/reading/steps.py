"""Find the training step of each row of any log: in one column, or in columns of its own.

wandb's `_step` counts calls of `log`. Trainers that log rollouts, updates and evaluations apart
(slime, miles, OpenRLHF) keep a step in each: 'rollout/step', 'train/step', 'eval/step'.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradlab.interop.logs.reading.numbers import fraction, number

STEP_COLUMNS = (
    "training/global_step",
    "training_step",
    "train/global_step",
    "trainer/global_step",
    "global_step",
    "step",
    "checkpoint_step",
    "_step",
)
"""Names under which loggers keep the training step, the surest first; compared in lower case."""
OF_PLANNED = ("global_step/max_steps", "step/max_steps", "steps")
"""ms-swift: '12/60'."""
OWN = re.compile(
    r"^(?P<group>train|training|rollout|update|policy|actor|critic|eval|val|validation|test|perf)"
    r"[/_](?:global_)?step$",
    re.IGNORECASE,
)
"""Step columns of one kind of row."""
UPDATES = ("train", "training", "update", "policy", "actor")

Record = Mapping[str, Any]
Located = tuple[str, Record]
"""Where a row stands, and what is in it."""


@dataclass(frozen=True)
class Stepped:
    """Rows with their training steps."""

    rows: Sequence[tuple[str, int, Record]]
    columns: frozenset[str]
    """Those that hold steps: they are no metrics."""
    notes: Sequence[str] = ()
    planned: int | None = None


def has_step(record: Record) -> bool:
    """Whether a record says which step it is of."""
    known = {*STEP_COLUMNS, *OF_PLANNED}
    return any(name.lower() in known or OWN.match(name) for name in record)


def stepped(path: Path, records: Sequence[Located], step: str | None) -> Stepped:
    """The step of each row; rows without one are left out, and told."""
    records, planned = _without_fractions(records)
    names = [*dict.fromkeys(name for _, record in records for name in record)]
    by_lower = {name.lower(): name for name in reversed(names)}
    found = [by_lower[known] for known in STEP_COLUMNS if known in by_lower]
    own = [name for name in names if OWN.match(name) and name not in found[:1]]
    if step is None and own and (not found or found[0].lower() in ("_step", "train/global_step")):
        family = own + [name for name in found[:1] if OWN.match(name)]
        joined = _joined(path, records, family, found)
        if joined is not None:
            return joined
    columns = _step_columns(path, names, step, found)
    fallback = _agrees([record for _, record in records], columns)
    rows, without = [], []
    for place, record in records:
        column = next((c for c in columns[: 1 + fallback] if not missing(record.get(c))), None)
        if column is None:
            without.append((place, record))
        else:
            rows.append((place, step_number(path, place, column, record[column]), record))
    notes = []
    if without:
        others = [*dict.fromkeys(name for _, record in without for name in record)]
        notes.append(
            f"{path.name}: {len(without)} of {len(records)} rows have no number in the step column "
            f"'{columns[0]}' and were not taken (the first: {without[0][0]}); they have the "
            f"columns {short(others)}: is the step among them, name it with --step"
        )
    if columns[0].lower() == "_step" and own:
        notes.append(
            f"{path.name}: '_step' counts calls of wandb's log, and rows have step columns of "
            f"their own ({', '.join(own)}) that do not fit together; --step NAME chooses one"
        )
    if not rows:
        raise ValueError(
            f"{path}: no row has a number in its step column '{columns[0]}'; name the column with "
            f"--step"
        )
    return Stepped(rows, frozenset({*columns, *own}), notes, planned)


def _without_fractions(records: Sequence[Located]) -> tuple[list[Located], int | None]:
    """'global_step/max_steps': '12/60' as a column 'global_step', and the steps planned."""
    planned = None
    split: list[Located] = []
    for where, record in records:
        at = next((n for n in record if n.lower() in OF_PLANNED and fraction(record[n])), None)
        if at is not None:
            parts = fraction(record[at])
            assert parts is not None
            planned = parts[1]
            rest = {name: value for name, value in record.items() if name != at}
            record = rest if has_step(rest) else {"global_step": parts[0], **rest}
        split.append((where, record))
    return split, planned


def _joined(
    path: Path, records: Sequence[Located], family: Sequence[str], found: Sequence[str]
) -> Stepped | None:
    """Rows joined by the step columns of their own; None where those do not cover the rows."""
    by_group = {OWN.match(name)["group"].lower(): name for name in family}  # type: ignore[index]
    rollout = by_group.get("rollout")
    updates = next((by_group[group] for group in UPDATES if group in by_group), None)
    first = rollout or updates
    if first is None:
        return None
    order = [first, *(name for name in family if name != first)]
    per = _updates_per_rollout(records, rollout, updates)
    placed: list[tuple[str, int, Record]] = []
    without = 0
    recent: int | None = None
    seen: Counter[str] = Counter()
    off: Counter[str] = Counter()
    for place, record in records:
        column = next((name for name in order if not missing(record.get(name))), None)
        if column is None:
            without += any(number(value) is not None for value in record.values())
            continue
        at = step_number(path, place, column, record[column])
        if column == updates and per > 1:
            at //= per
        seen[column] += 1
        if column in (first, updates):
            recent = at
        elif recent is not None and abs(at - recent) > max(2, 0.1 * recent):
            off[column] += 1
        placed.append((place, at, record))
    is_off = any(2 * off[column] > seen[column] for column in seen)
    if is_off or len(placed) < 0.8 * (len(placed) + without):
        return None
    if per > 1 and updates:
        placed = _averaged(placed, updates)
    num = len({at for _, at, _ in placed})
    notes = [f"{path.name}: rows were joined by {', '.join(order)} into {num} steps"]
    if any(name.lower() == "_step" for name in found):
        notes[0] += f"; '_step' counts calls of wandb's log, {len(records)} here"
    if per > 1:
        notes.append(
            f"{path.name}: '{updates}' counts updates, {per} to a step of '{rollout}': what they "
            f"logged was averaged"
        )
    if without:
        notes.append(f"{path.name}: {without} rows with neither of these columns were not taken")
    return Stepped(placed, frozenset({*family, *found}), notes)


def _updates_per_rollout(
    records: Sequence[Located], rollout: str | None, updates: str | None
) -> int:
    """How many updates a rollout gives, where both are numbered on their own."""
    if rollout is None or updates is None:
        return 1
    steps = {
        name: [n for _, r in records if (n := number(r.get(name))) is not None and math.isfinite(n)]
        for name in (rollout, updates)
    }
    if min(map(len, steps.values())) == 0:
        return 1
    per = round((max(steps[updates]) + 1) / (max(steps[rollout]) + 1))
    return max(per, 1)


def _averaged(
    placed: Sequence[tuple[str, int, Record]], updates: str
) -> list[tuple[str, int, Record]]:
    """The updates of one step as one row, where the first of them stands."""
    gathered: dict[int, list[Record]] = {}
    for _, at, record in placed:
        if not missing(record.get(updates)):
            gathered.setdefault(at, []).append(record)
    rows: list[tuple[str, int, Record]] = []
    for place, at, record in placed:
        if missing(record.get(updates)):
            rows.append((place, at, record))
        elif at in gathered:
            parts = gathered.pop(at)
            names = dict.fromkeys(name for part in parts for name in part)
            values = {name: [number(part.get(name)) for part in parts] for name in names}
            means = {
                name: float(np.mean([v for v in known if v is not None]))
                for name, known in values.items()
                if any(v is not None for v in known)
            }
            rows.append((place, at, {**parts[0], **means}))
    return rows


def _step_columns(
    path: Path, names: Sequence[str], step: str | None, found: Sequence[str]
) -> list[str]:
    """The column with the training step, then one that may stand in for it."""
    if step is not None:
        if step not in names:
            raise ValueError(f"{path}: no column '{step}' for the step; it has {short(names)}")
        return [step]
    if not found:
        raise ValueError(
            f"{path}: no column for the training step; expected one of {', '.join(STEP_COLUMNS)}, "
            f"got {short(names)}; name it with --step"
        )
    return list(found)


def _agrees(records: Sequence[Record], columns: Sequence[str]) -> bool:
    """Whether the second step column says the same wherever both speak: then it may stand in."""
    if len(columns) < 2:
        return False
    both = [r for r in records if not any(missing(r.get(c)) for c in columns[:2])]
    return bool(both) and all(number(r[columns[0]]) == number(r[columns[1]]) for r in both)


def missing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def step_number(path: Path, place: str, column: str, value: Any) -> int:
    """A step number; an error that says where it is none."""
    found = number(value)
    if found is None or not math.isfinite(found) or found != int(found) or found < 0:
        raise ValueError(
            f"{path}, {place}: '{column}' is {value!r}, expected a whole step number from 0 up; "
            f"name another column with --step"
        )
    return int(found)


def short(names: Sequence[str]) -> str:
    shown = ", ".join(names[:12])
    return shown if len(names) <= 12 else f"{shown} and {len(names) - 12} more"
