"""Say which checkpoints of a run directory are whole, and which of them can be continued from.

RUN/checkpoints/step-000123/<policy>/       adapter, and trainer_state.pt unless it was dropped
RUN/checkpoints/step-000123/checkpoint.json written last
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

STATE = "trainer_state.pt"
DONE = "checkpoint.json"
"""Written last inside the directory, before it gets its name."""


def checkpoint_path(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:06d}"


def steps_of_checkpoints(run: Path) -> list[int]:
    """Steps of all checkpoints that got their name, in order."""
    names = (path.name.removeprefix("step-") for path in (run / "checkpoints").glob("step-*"))
    return sorted(int(name) for name in names if name.isdecimal())


def whole_checkpoints(run: Path) -> list[int]:
    """Steps of the whole ones, in order."""
    return [s for s in steps_of_checkpoints(run) if (checkpoint_path(run, s) / DONE).is_file()]


def continuable(run: Path) -> list[int]:
    """Steps of the whole ones that still have the optimizer state of every policy, in order."""
    return [
        step
        for step in whole_checkpoints(run)
        if all(
            (path / STATE).is_file()
            for path in checkpoint_path(run, step).iterdir()
            if path.is_dir()
        )
    ]


def beginning(origin: Mapping[str, Any]) -> str:
    """Where a run began that `gradlab train --from` made, in words; `origin` is "from" of its
    config.json."""
    different = [
        f"--{name.replace('_', '-')} {_told(new)} instead of {_told(old)}"
        for name, (old, new) in origin["changed"].items()
    ]
    return (
        f"begins at step {origin['step']} of {origin['path']} (run {origin['run_id']}) with "
        f"{', '.join(different) or 'nothing changed'}"
    )


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key} {item}" for key, item in value.items()) or "none"
    return str(value)
