"""Name what lies in the folder of a matrix, and keep the cells of its plan there.

OUT/CELL/                      the run of a cell, as any other
OUT/matrix/plan.toml           the plan as it was last read
OUT/matrix/cells.json          every cell: name, place on each axis, configuration
OUT/matrix/cells/CELL/         what is known beside its run:
    owner-000001.json            who trains it (trainers.matrix.claim)
    progress.json                how far it is
    ended.json                   why it ended before its last step; absent once it goes on
    log.txt                      what it printed
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gradlab.run_directory import is_trained
from gradlab.store.disk import put
from trainers.config import EARLIER, TrainConfig
from trainers.matrix.plan import Plan
from trainers.matrix.product import OWN_FOLDER
from trainers.rundir.directory import changes, config_of

CELLS = "cells.json"
MOST_NAMED = 5
"""Cells that an error lists."""


@dataclass(frozen=True)
class Kept:
    """A cell as the folder remembers it."""

    name: str
    place: Mapping[str, str]
    config: TrainConfig
    """`out` is the directory of its run."""


@dataclass(frozen=True)
class Folder:
    """A matrix on disk."""

    out: Path
    name: str
    """Of the plan."""
    cells: tuple[Kept, ...]
    """In the order in which they came to be known: numbers of array tasks stay what they were."""
    dropped: tuple[str, ...] = ()
    """Cells that an earlier plan had."""

    def cell(self, wanted: str) -> Kept:
        """A cell by its name or its number.

        Raises ValueError for one that there is not.
        """
        for number, cell in enumerate(self.cells):
            if wanted in (cell.name, str(number)):
                return cell
        raise ValueError(
            f"{self.out} has no cell '{wanted}'; it has {len(self.cells)}, numbered from 0, e.g. "
            f"{self.cells[0].name}"
        )

    def about(self, name: str) -> Path:
        """What is known of a cell beside its run."""
        return about(self.out, name)


def about(out: Path, name: str) -> Path:
    return out / OWN_FOLDER / "cells" / name


def open_folder(out: Path) -> Folder:
    """The matrix that was begun in a directory.

    Raises ValueError where there is none, or it cannot be read.
    """
    path = out / OWN_FOLDER / CELLS
    if not path.is_file():
        raise ValueError(
            f"{out} has no {OWN_FOLDER}/{CELLS}; expected the --out of gradlab matrix PLAN"
        )
    try:
        said = json.loads(path.read_text())
        cells = [
            Kept(row["name"], row["place"], _config(row["config"], out / row["name"]))
            for row in said["cells"]
        ]
        listed = set(said["plan"]["cells"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged or of a later version ({error}); run gradlab matrix PLAN --out "
            f"{out} again to write it anew"
        ) from error
    return Folder(
        out, said["plan"]["name"], tuple(cells),
        tuple(cell.name for cell in cells if cell.name not in listed),
    )  # fmt: skip


def _config(stored: Mapping[str, Any], out: Path) -> TrainConfig:
    data = Path(stored["data"]) if stored.get("data") else None
    return TrainConfig(**{**EARLIER, **stored, "data": data, "out": out})


def begin(plan: Plan, out: Path) -> Folder:
    """Keep the plan's cells in `out`, beside those that an earlier plan put there.

    Raises ValueError where the plan would change a cell that has begun, or `out` is something else.
    """
    before: tuple[Kept, ...] = ()
    if (out / OWN_FOLDER / CELLS).is_file():
        before = open_folder(out).cells
    elif out.exists() and (not out.is_dir() or is_trained(out)):
        what = "a run" if out.is_dir() else "a file"
        raise ValueError(f"--out {out} is {what}; expected a folder for the runs of a matrix")
    check_unchanged(plan, out)
    new = {
        cell.name: Kept(cell.name, cell.place, replace(cell.config, out=out / cell.name))
        for cell in plan.cells
    }
    kept = [new.pop(cell.name, cell) for cell in before] + list(new.values())
    (out / OWN_FOLDER).mkdir(parents=True, exist_ok=True)
    _write(out, plan, kept)
    return open_folder(out)


def check_unchanged(plan: Plan, out: Path) -> None:
    """Raise ValueError for cells that were begun with other options than the plan has now."""
    changed: list[str] = []
    for cell in plan.cells:
        run = out / cell.name
        if not is_trained(run):
            continue
        different = changes(config_of(run), replace(cell.config, out=run))
        if different:
            said = ", ".join(
                f"--{name.replace('_', '-')} {old} then, {new} now"
                for name, (old, new) in different.items()
            )
            changed.append(f"{cell.name} ({said})")
    if changed:
        more = f" and {len(changed) - MOST_NAMED} more" if len(changed) > MOST_NAMED else ""
        raise ValueError(
            f"the plan has changed for cells that were begun in {out}: "
            f"{'; '.join(changed[:MOST_NAMED])}{more}. Take the change back, give another --out, "
            "or move their directories away to train them anew"
        )


def _write(out: Path, plan: Plan, cells: Sequence[Kept]) -> None:
    said = {
        "schema": 1,
        "plan": {
            "name": plan.name, "about": plan.about, "cells": [cell.name for cell in plan.cells],
        },
        "cells": [
            {"name": cell.name, "place": dict(cell.place),
             "config": {**cell.config.to_json(), "out": cell.name}}
            for cell in cells
        ],
    }  # fmt: skip
    put(out / OWN_FOLDER / "plan.toml", plan.text.encode())
    put(out / OWN_FOLDER / CELLS, (json.dumps(said, indent=1) + "\n").encode())
