"""Run the detectors while a run trains, and raise an alarm when what they find lasts.

The detectors are those of `gradlab diagnose`, on the run so far. Looking again and again gives
chance more chances; an alarm therefore takes the same finding in several looks in a row, and every
finding is raised once. A fall beyond doubt, interval and all, is raised at the first look: an alarm
is for before the wreck. How often a healthy run raises one: `bench/online.py`; delay against false
alarms: `bench/alarm_delay.py`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from analysis.cliff.fall import FALLS
from analysis.detectors.table import KINDS
from analysis.diagnosis import diagnose
from analysis.findings import DROPS, Finding
from gradlab.alarms import Alarm, read_alarms
from gradlab.store.run import open_run

SILENT = frozenset(name for name, kind in KINDS.items() if not kind.raises_alarm)
"""Kinds of finding that are no reason to step in."""


def _key(found: Finding | Alarm) -> tuple[str, str]:
    """What is raised once. A fall widens while it goes on, and its name with it: it stays one."""
    return ("fall" if found.kind in DROPS else found.kind, found.subject)


@dataclass
class Online:
    """The alarms of one run; called after every evaluation."""

    looks: int = 2
    """Looks in a row that have to agree."""
    confidences: tuple[str, ...] = ("high", "moderate")
    """Findings that count."""
    beyond_doubt: float = 0.08
    """Lower end of a fall's interval from which one look is enough, as a share."""
    _streak: Counter[tuple[str, str]] = field(default_factory=Counter, init=False)
    _raised: set[tuple[str, str]] | None = field(default=None, init=False)

    def __call__(self, store: Path, step: int, *, until: int | None = None) -> tuple[Alarm, ...]:
        """New alarms of the run in `store` (a .zarr), `step` steps in.

        `until`: look at a longer run as it was after that step.
        """
        if self._raised is None:  # a resumed run was told already
            before = read_alarms(store.parent)
            self._raised = {_key(alarm) for alarm in before}
            self._repeat_looks(store, step)
        found = self._look(store, until)
        alarms = []
        for key, finding in found.items():
            looks = 1 if self._is_beyond_doubt(finding) else self.looks
            if self._streak[key] >= looks and key not in self._raised:
                self._raised.add(key)
                onset = None if finding.onset is None else finding.onset.step
                alarms.append(Alarm(step, finding.kind, finding.subject, finding.summary, onset))
        return tuple(alarms)

    def _look(self, store: Path, until: int | None) -> dict[tuple[str, str], Finding]:
        """What counts by (kind, subject); counts how often in a row it was found."""
        found: dict[tuple[str, str], Finding] = {
            _key(finding): finding
            for finding in diagnose(open_run(store, until=until)).findings
            if finding.kind not in SILENT and finding.confidence in self.confidences
        }
        self._streak = Counter({key: self._streak[key] + 1 for key in found})
        return found

    def _is_beyond_doubt(self, finding: Finding) -> bool:
        return (
            finding.kind in FALLS
            and finding.confidence == "high"
            and finding.lower is not None
            and finding.lower >= self.beyond_doubt
        )

    def _repeat_looks(self, store: Path, step: int) -> None:
        """Look at the evaluations before `step` as the process did that was resumed from: a run
        that was interrupted has its alarms at the same steps."""
        earlier = [int(s) for s in open_run(store).evaluations().step_E if 0 < s < step]
        for before in earlier[len(earlier) - min(self.looks - 1, len(earlier)) :]:
            self._look(store, before)
