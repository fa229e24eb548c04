"""Read scalars from TensorBoard event files with TensorBoard's own reader.

A directory holds one file per start of the run: the files are segments, by the time in their names.
"""

from __future__ import annotations

import math
from pathlib import Path

from gradlab.interop.logs.history import Part, Row
from gradlab.interop.logs.reading.stacked import Choice
from gradlab.interop.logs.reading.steps import short

PATTERN = "*tfevents*"


def event_files(path: Path, choice: Choice | None = None) -> list[Path]:
    """The event files of one run, in the order in which they were begun."""
    if path.is_file():
        return [path]
    found = [file for file in path.rglob(PATTERN) if file.is_file()]
    folders = {str(file.parent.relative_to(path)): file.parent for file in sorted(found)}
    if len(folders) > 1:
        run = choice.run if choice else None
        if choice is None or run not in folders:
            raise ValueError(
                f"{path}: event files in {len(folders)} folders ({short(list(folders))}); each may "
                f"be a run of its own: import the folder of one, or choose it with --run, such as "
                f"--run {next(iter(folders))}"
            )
        choice.used.append(path.name)
        found = [file for file in found if file.parent == folders[run]]
    return sorted(found, key=lambda file: (_begun(file), file.name))


def read_event_files(path: Path, choice: Choice | None = None) -> list[Part]:
    """One part per file; a file that was cut off gives what it held until then."""
    try:
        from tensorboard.backend.event_processing import event_file_loader
        from tensorboard.util import tensor_util
    except ImportError as error:
        raise ValueError(
            f"{path}: event files need TensorBoard's reader ({error}); "
            f"pip install 'gradlab[import]'"
        ) from error
    parts = []
    for file in event_files(path, choice):
        rows = []
        for event in event_file_loader.EventFileLoader(str(file)).Load():
            values = {}
            for value in event.summary.value:
                # The loader turns every old scalar into a tensor; images and texts are not 0-d.
                if value.HasField("tensor") and not value.tensor.tensor_shape.dim:
                    number = tensor_util.make_ndarray(value.tensor)
                    if number.dtype.kind in "fiub":
                        values[value.tag] = float(number)
            if values:
                rows.append(Row(int(event.step), values, float(event.wall_time)))
        if rows:
            parts.append(Part(file.name, sorted_by_tag(rows)))
    if not parts:
        raise ValueError(
            f"{path}: its event files hold no scalars; expected what "
            f"SummaryWriter.add_scalar or a logger of the trainer wrote"
        )
    return parts


def sorted_by_tag(rows: list[Row]) -> list[Row]:
    """Writers log one event per metric, and some write a metric's steps late: gather them by step.

    Sorting is right within a file: a resumed run begins a file of its own.
    """
    steps: dict[int, Row] = {}
    for row in rows:
        known = steps.get(row.step)
        values = row.values if known is None else {**known.values, **row.values}
        time = row.wall_time if known is None else max(known.wall_time, row.wall_time)
        steps[row.step] = Row(row.step, values, time)
    return [steps[step] for step in sorted(steps)]


def _begun(file: Path) -> float:
    """The seconds in 'events.out.tfevents.1700000000.host.pid.0'."""
    for piece in file.name.split("."):
        if piece.isdecimal() and len(piece) >= 9:
            return float(piece)
    return math.inf
