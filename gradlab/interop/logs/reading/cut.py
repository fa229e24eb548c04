"""Say what is missing from a log whose lines were cut off at a fixed length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gradlab.interop.logs.reading.texts import CUT_AT


@dataclass(frozen=True)
class Cut:
    """One metric line that ends where lines are cut."""

    step: int
    names: frozenset[str]
    """Metrics that it holds whole."""
    tail: str
    """What it ends with: a piece of 'name:number' that may go on."""

    @property
    def name(self) -> str | None:
        """The metric that the cut goes through; None where it goes through the name itself."""
        name, colon, _ = self.tail.partition(":")
        return name.strip() if colon and name.strip() else None


def lost_metrics(
    cuts: Sequence[Cut], rows: Sequence[tuple[int, Mapping[str, float]]]
) -> dict[str, list[int]]:
    """Metric -> steps at which the cut took it: it was cut, or lines like this one log it."""
    lost: dict[str, set[int]] = {}
    whole = [frozenset(values) for _, values in rows]
    named = [cut.name for cut in cuts if cut.name]
    for cut in cuts:
        absent = {name for other in whole if cut.names and cut.names < other for name in other}
        if cut.name:
            absent.add(cut.name)
        else:
            absent |= {name for name in named if name.startswith(cut.tail.strip() or "\0")}
        for name in absent - cut.names:
            lost.setdefault(name, set()).add(cut.step)
    return {name: sorted(steps) for name, steps in lost.items()}


def told_cuts(where: str, cuts: Sequence[Cut], lost: Mapping[str, Sequence[int]]) -> list[str]:
    """What the reader of a log with cut lines has to know."""
    if not cuts:
        return []
    what = [
        f"{name} (from step {steps[0]} on, in {len(steps)} of them)"
        for name, steps in sorted(lost.items(), key=lambda item: -len(item[1]))
    ]
    shown = ", ".join(what[:8]) + (f" and {len(what) - 8} more" if len(what) > 8 else "")
    ends = "line ends" if len(cuts) == 1 else "lines end"
    return [
        f"{where}: {len(cuts)} metric {ends} at {CUT_AT} characters, where wandb cuts its "
        f"output.log: a number at the cut is no number. Missing because of it: "
        f"{shown or 'a metric whose name is cut, too'}, and whatever came later in the line; "
        f"run.scan_history() of wandb has them whole"
    ]
