"""Find out what kind of log a file or folder is, and read it."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from gradlab.interop.logs.history import Part
from gradlab.interop.logs.reading.console import has_metric_lines, read_console
from gradlab.interop.logs.reading.eventfiles import PATTERN, read_event_files
from gradlab.interop.logs.reading.stacked import Choice, one_part
from gradlab.interop.logs.reading.steps import short
from gradlab.interop.logs.reading.tables import read_csv, read_jsonl, read_trainer_state
from gradlab.interop.logs.reading.texts import opened
from gradlab.run_directory import STORE

Kind = Literal["console", "csv", "jsonl", "trainer-state", "tensorboard"]
KINDS: tuple[Kind, ...] = get_args(Kind)
TABLES = ("csv", "jsonl", "trainer-state")

STATE = "trainer_state.json"
WANDB = re.compile(r"^(?:offline-)?run-\d{8}_\d{6}-(\w+)$")
"""Folder of one start of a wandb run."""
SNIFFED = 200_000
"""Characters at the beginning of a log that are looked at; models print much before step 1."""
READABLE = (
    "a console log of verl, rLLM, TRL or ms-swift, a CSV or JSON-lines table, an export of wandb, "
    f"a {STATE} or its checkpoint folder, or TensorBoard event files"
)


def read(
    paths: Sequence[Path],
    kind: Kind | None = None,
    step: str | None = None,
    run: str | None = None,
    where: Mapping[str, str] | None = None,
) -> list[tuple[Kind, Part]]:
    """What the files hold, in the order given. `run` and `where` choose among several runs."""
    choice = Choice(run, where or {})
    parts: list[tuple[Kind, Part]] = []
    for given in paths:
        for path in _inside(given, choice):
            parts += _read(path, kind or kind_of(path), step, choice)
    if choice.where and not any(what in TABLES for what, _ in parts):
        raise ValueError(f"--where chooses rows of a table by their columns; this is {parts[0][0]}")
    kept = one_part([part for _, part in parts], choice)
    return [(what, part) for what, part in parts if any(part is one for one in kept)]


def _read(path: Path, kind: Kind, step: str | None, choice: Choice) -> list[tuple[Kind, Part]]:
    if kind != "tensorboard" and path.is_dir():
        raise ValueError(f"{path}: a folder, and --kind {kind} is a file; give the file")
    if kind == "console":
        return [(kind, read_console(path, step))]
    if kind == "csv":
        return [(kind, read_csv(path, step, choice))]
    if kind == "jsonl":
        return [(kind, read_jsonl(path, step, choice))]
    if kind == "trainer-state":
        return [(kind, read_trainer_state(path, step, choice))]
    return [(kind, part) for part in read_event_files(path, choice)]


def kind_of(path: Path) -> Kind:
    """By name, else by what is in it."""
    name = path.name.lower().removesuffix(".gz")
    if path.is_dir() or "tfevents" in name:
        return "tensorboard"
    if name.endswith(".wandb"):
        raise ValueError(
            f"{path}: wandb's binary transaction log, which only wandb reads; run "
            f"'wandb sync {path.parent}', then write one JSON line per row of "
            f"wandb.Api().run('entity/project/id').scan_history() and import that file"
        )
    if name.endswith((".csv", ".tsv")):
        return "csv"
    if name.endswith(".jsonl"):
        return "jsonl"
    if name.endswith(".json"):
        return "trainer-state"
    with io.TextIOWrapper(opened(path), encoding="utf-8-sig", errors="replace") as file:
        start = file.read(SNIFFED)
        if start.lstrip().startswith(('{"', "{ ")):
            return "jsonl"
        if start.lstrip().startswith("["):
            return "trainer-state" if "{" in start[:200] else _unknown(path)
        while start and not has_metric_lines(start):
            start = file.read(SNIFFED)
    if start:
        return "console"
    return _unknown(path)


def _unknown(path: Path) -> Kind:
    raise ValueError(f"{path}: cannot tell what this is; expected {READABLE}; say so with --kind")


def _inside(path: Path, choice: Choice) -> list[Path]:
    """The files that a folder stands for; folders of event files stand for themselves."""
    if not path.exists():
        raise ValueError(f"no file or folder {path}; expected {READABLE}")
    if path.is_file():
        if path.stat().st_size == 0:
            raise ValueError(f"{path}: is empty; expected {READABLE}")
        return [path]
    if (path / STORE).exists() or path.suffix == ".zarr":
        raise ValueError(f"{path}: is a run store already; use gradlab diagnose {path}")
    if (known := _known(path)) is not None:
        return [known]
    below = {entry.name: known for entry in sorted(path.iterdir()) if entry.is_dir()
             if (known := _known(entry)) is not None}  # fmt: skip
    if below:
        return _of_one_run(path, below, choice)
    inside = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
    raise ValueError(f"{path}: a folder with {inside}; expected {READABLE}")


def _known(path: Path) -> Path | None:
    """The log in a folder whose name says what it is."""
    for name in (STATE, "wandb-history.jsonl", "files/wandb-history.jsonl"):
        if (path / name).is_file():
            return path / name
    states = list(path.glob(f"checkpoint-*/{STATE}"))
    if states:
        return max(states, key=_checkpoint_step)
    if any(path.rglob(PATTERN)):
        return path
    for name in ("output.log", "files/output.log"):
        if (path / name).is_file():
            return path / name
    return None


def _of_one_run(path: Path, below: Mapping[str, Path], choice: Choice) -> list[Path]:
    """Folders of a wandb run that was resumed are its segments; other folders are other runs."""
    runs: dict[str, list[Path]] = {}
    for name, known in below.items():
        found = WANDB.match(name)
        runs.setdefault(found[1] if found else name, []).append(known)
    if choice.run in runs:
        choice.used.append(path.name)
        return runs[choice.run]
    if choice.run is None and len(runs) == 1:
        return next(iter(runs.values()))
    raise ValueError(
        f"{path}: {len(runs)} runs ({short(list(runs))}); choose one with --run, such as --run "
        f"{next(iter(runs))}"
    )


def _checkpoint_step(state: Path) -> int:
    number = state.parent.name.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() else -1
