"""Say what a run is warned of while it trains, and keep the warnings beside the run.

Whoever judges (`analysis.online`) and whoever trains (`trainers.training`) meet here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from gradlab.run_directory import ALARMS
from gradlab.store.disk import put


@dataclass(frozen=True)
class Alarm:
    """One warning."""

    step: int
    """Training steps done when it was raised."""
    kind: str
    """Of the finding, e.g. 'cliff'."""
    subject: str
    """Role, policy or 'run'."""
    message: str
    onset: int | None = None
    """Step at which it seems to have begun; None if that is not known."""


Watch = Callable[[Path, int], Sequence[Alarm]]
"""(run store, training steps done) -> new alarms; asked after every evaluation."""


def append_alarms(directory: Path, alarms: Sequence[Alarm]) -> None:
    """Add them to the run directory, one JSON object per line."""
    with (directory / ALARMS).open("ab") as file:
        file.write(_lines(alarms))


def _lines(alarms: Sequence[Alarm]) -> bytes:
    return "".join(
        json.dumps(asdict(alarm), ensure_ascii=False) + "\n" for alarm in alarms
    ).encode()


def read_alarms(directory: Path) -> tuple[Alarm, ...]:
    """What `append_alarms` wrote, oldest first; empty without a file.

    A line that was cut when the run was killed is left out, and so is what only later versions say
    of an alarm.
    """
    path = directory / ALARMS
    if not path.is_file():
        return ()
    found, known = [], {field.name for field in fields(Alarm)}
    # The cut may go through a character.
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            said = json.loads(line)
            found.append(Alarm(**{name: said[name] for name in known & set(said)}))
        except (json.JSONDecodeError, TypeError):
            continue
    return tuple(found)


def drop_alarms(directory: Path, after_step: int) -> None:
    """Forget alarms of steps that a resumed run repeats."""
    if (directory / ALARMS).is_file():
        kept = [alarm for alarm in read_alarms(directory) if alarm.step <= after_step]
        put(directory / ALARMS, _lines(kept))
