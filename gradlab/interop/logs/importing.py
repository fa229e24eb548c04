"""Turn what another trainer logged into a run store that can be diagnosed, and say what it lacks.

Legend: T steps.
"""

from __future__ import annotations

import importlib.metadata
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradlab.arrays import Floats
from gradlab.interop.logs.history import History, join
from gradlab.interop.logs.lacking import Lack, granularity, lacks
from gradlab.interop.logs.naming.heldout import held_out
from gradlab.interop.logs.naming.matching import Matched, match
from gradlab.interop.logs.naming.targets import ColumnMap, Target, read_map
from gradlab.interop.logs.naming.trainers import trainer_of
from gradlab.interop.logs.notfinite import not_finite, told_not_finite
from gradlab.interop.logs.reading.sources import Kind, read
from gradlab.interop.logs.to_records import records_of, trained_in
from gradlab.records import Agent, PolicyMeta, RunMeta, StepRecord
from gradlab.run_directory import STORE
from gradlab.store.writer import RunStore

SIZE = re.compile(r"^\s*(\d+)\s*(?:[x*]\s*(\d+))?\s*$")


@dataclass(frozen=True)
class Imported:
    """What became of a log."""

    out: Path
    kinds: tuple[Kind, ...]
    meta: RunMeta
    num_steps: int
    num_evaluations: int
    matched: Matched
    lacks: tuple[Lack, ...]
    notes: tuple[str, ...]


def import_run(
    sources: Sequence[Path | str],
    out: Path | str,
    *,
    kind: Kind | None = None,
    column_map: Path | ColumnMap | None = None,
    step: str | None = None,
    run: str | None = None,
    where: Mapping[str, str] | None = None,
    roles: tuple[str, ...] = (),
    routing: str | Mapping[str, str] | None = None,
    accuracy: str | None = None,
    eval_size: str | None = None,
    about: Mapping[str, str] | None = None,
) -> Imported:
    """Write the run that `sources` logged to `out`/run.zarr; arguments overrule the map file.

    `run` is one of several that the sources hold, `where` chooses the rows of a table by column
    and value. `eval_size` is 'PROBLEMS' or 'PROBLEMSxSAMPLES' of one evaluation; `about` may hold
    workflow, task and model. Nothing is written if anything is wrong.

    Example:
        >>> import_run(["train.log"], "runs/theirs", eval_size="30x8").lacks
    """
    out = Path(out)
    if not sources:
        raise ValueError("no sources given; expected log files, or folders that hold them")
    if (out / STORE).exists():
        raise ValueError(f"{out}: holds a run already; choose another --out, or remove it first")
    given = ColumnMap() if column_map is None else column_map
    if isinstance(given, Path):
        given = read_map(given)
    read_parts = read([Path(source) for source in sources], kind, step or given.step, run, where)
    history = join([part for _, part in read_parts])
    matched = match(
        history, given, roles=roles, routing=routing or given.routing, accuracy=accuracy
    )
    history = matched.history or history
    if not matched.taken:
        raise ValueError(
            f"{', '.join(map(str, sources))}: none of its metrics is known "
            f"({', '.join(sorted(history.metrics)) or 'there are none'}); say with --map which "
            f"column is which field{''.join(f'. {note}' for note in history.notes)}"
        )
    lost = not_finite(history)
    notes = [*history.notes, *matched.notes, *told_not_finite(lost)]
    answers_T = _answers(history, matched, eval_size or given.eval_size, notes)
    trained = history.step_T[trained_in(history, matched.taken)]
    gaps = _gaps(trained, notes)
    history, fields, answers_T = _with_gaps(history, matched.fields, answers_T, gaps)
    evaluated = fields.get(Target("Evaluation", "accuracy"))
    num_evaluations = 0 if evaluated is None else int(np.isfinite(evaluated).sum())
    meta = _meta(
        out, read_parts[0][0], matched, num_evaluations > 0, {**given.about, **(about or {})}
    )
    found = lacks(meta, fields, answers_T, history, matched.taken)
    config = _config(sources, matched, notes, found, history.planned)
    config["trainer"] = trainer_of(history.metrics, read_parts[0][0])
    config |= {"not_finite": lost} if lost else {}
    meta = replace(meta, config=config)
    records = records_of(meta, history, fields, answers_T, {*trained.tolist(), *gaps})
    with RunStore.create(out / STORE, meta) as store:
        for record in records:
            store.append(record)
    return Imported(
        out,
        tuple(dict.fromkeys(kind for kind, _ in read_parts)),
        meta,
        sum(isinstance(record, StepRecord) for record in records),
        num_evaluations,
        matched,
        found,
        tuple(notes),
    )


def _config(
    sources: Sequence[Path | str],
    matched: Matched,
    notes: list[str],
    found: Sequence[Lack],
    planned: int | None,
) -> dict[str, Any]:
    """What the store keeps about where it comes from."""
    config: dict[str, Any] = {
        "imported": {
            "from": [str(source) for source in sources],
            "columns": {m: [str(t) for t in targets] for m, targets in matched.taken.items()},
            "not taken": dict(matched.refused),
            "notes": notes,
        },
        "missing": [{"what": lack.what, "needed for": lack.needed_for} for lack in found],
    }
    return config | ({"steps": planned} if planned else {})


def _answers(history: History, matched: Matched, eval_size: str | None, notes: list[str]) -> Floats:
    """[T] graded answers per evaluation, NaN where nobody says how many."""
    accuracy_T = matched.fields.get(Target("Evaluation", "accuracy"))
    logged_T = matched.fields.get(Target("Evaluation", "answers"))
    num_steps = len(history.step_T)
    if logged_T is not None:
        return np.where(logged_T > 0, logged_T, math.nan)
    if eval_size is None:
        return np.full(num_steps, math.nan)
    found = SIZE.match(eval_size)
    if not found or not int(found[1]) or found[2] == "0":
        raise ValueError(
            f"eval size is '{eval_size}'; expected the number of held-out problems, such as 30, or "
            f"problems x samples, such as 30x8"
        )
    cut = held_out(list(history.lost), None).metric if history.lost else None
    if accuracy_T is None and cut is not None:
        notes.append(f"there are no evaluations: '{cut}' was cut off wherever it was logged")
        return np.full(num_steps, math.nan)
    if accuracy_T is None:
        raise ValueError(
            f"eval size {eval_size} was given, and no metric holds a held-out accuracy; name it "
            f"with --accuracy, or leave the size out. Metrics: {', '.join(sorted(history.metrics))}"
        )
    size = int(found[1]) * int(found[2] or matched.samples)
    rates = accuracy_T[np.isfinite(accuracy_T)]
    if granularity(rates, size) > 0.1:
        notes.append(
            f"the accuracies are no multiples of 1/{size}: is --eval-size {eval_size} right? An "
            f"average over data sets, or printed with few decimals, looks like this, too"
        )
    return np.full(num_steps, float(size))


def _gaps(trained: NDArray[np.int64], notes: list[str]) -> list[int]:
    """Training steps that the log skips; evaluations have a rhythm of their own."""
    distance = np.diff(trained)
    stride = int(np.median(distance)) if len(distance) else 1
    wide = [
        range(before + stride, before + width, stride)
        for before, width in zip(trained[:-1].tolist(), distance.tolist(), strict=True)
        if width > stride
    ]
    # Counted before they are made: between step 0 and 10**9 there are many.
    if not 0 < sum(map(len, wide)) <= max(len(trained), 100):
        return []
    gaps = [step for steps in wide for step in steps]
    notes.append(f"{len(gaps)} steps between {gaps[0]} and {gaps[-1]} are not in the log")
    return gaps


def _with_gaps(
    history: History, fields: Mapping[Target, Floats], answers_T: Floats, gaps: Sequence[int]
) -> tuple[History, dict[Target, Floats], Floats]:
    """With the steps that the log skips, of which nothing is known."""
    step_T = history.step_T
    wide_T = np.union1d(step_T, np.array(gaps, dtype=np.int64))
    at = np.searchsorted(wide_T, step_T)

    def spread(value_T: Floats) -> Floats:
        wide = np.full(len(wide_T), math.nan)
        wide[at] = value_T
        return wide

    def spread_known(is_T: NDArray[np.bool_]) -> NDArray[np.bool_]:
        wide = np.zeros(len(wide_T), dtype=np.bool_)
        wide[at] = is_T
        return wide

    filled = History(
        wide_T,
        {name: spread(value_T) for name, value_T in history.metrics.items()},
        spread(history.wall_time_T),
        history.notes,
        history.planned,
        {name: spread_known(is_T) for name, is_T in history.is_logged.items()},
        history.lost,
    )
    return filled, {t: spread(value_T) for t, value_T in fields.items()}, spread(answers_T)


def _meta(
    out: Path, kind: Kind, matched: Matched, has_rates: bool, about: Mapping[str, str]
) -> RunMeta:
    policies = tuple(
        PolicyMeta(
            name,
            tuple(Agent(role) for role in matched.roles if matched.routing[role] == name),
            ("all",),
            num_parameters=0,
            mode="imported",
        )
        for name in dict.fromkeys(matched.routing.values())
    )
    return RunMeta(
        run_id=out.resolve().name,
        workflow=about.get("workflow", f"imported ({kind})"),
        task=about.get("task", "unknown task"),
        model=about.get("model", "unknown model"),
        roles=matched.roles,
        routing=dict(matched.routing),
        policies=policies,
        rates=has_rates,
        versions={"gradlab": importlib.metadata.version("gradlab")},
    )
