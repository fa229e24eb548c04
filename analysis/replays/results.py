"""Read what repeated runs said: RUN/replays/*/result.json, written by whoever repeated them.

A result is a JSON object with

    suspect     {"kind": "capture", "subject": "generator"}: the cause that was put to the test
    change      what was changed in the repeats, e.g. "--kl-coefficient generator 0.05"
    verdict     "confirmed": the control fell again and the changed run lost at most half as much;
                "not confirmed": both fell; "not reproduced": the control did not fall;
                "undecided": too few repeats
    difference, lower, upper
                final accuracy of the changed runs minus the controls', with its interval; optional
    p_value     optional
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradlab.run_directory import results_of_replays

VERDICTS = ("confirmed", "not confirmed", "not reproduced", "undecided")


@dataclass(frozen=True)
class Replayed:
    """One finished replay."""

    kind: str
    subject: str
    change: str
    verdict: str
    difference: float | None
    lower: float | None
    upper: float | None

    @property
    def confirms(self) -> bool:
        return self.verdict == "confirmed"

    @property
    def is_open(self) -> bool:
        """It says nothing about the suspect."""
        return self.verdict in ("not reproduced", "undecided")

    @property
    def sentence(self) -> str:
        """What the replay showed."""
        size = ""
        if self.difference is not None:
            size = f": {100 * self.difference:+.0f} points"
            if self.lower is not None and self.upper is not None:
                size += f" ({100 * self.lower:.0f} to {100 * self.upper:.0f})"
        return f"replayed with {self.change.removeprefix('--with ')}: {self.verdict}{size}"

    @property
    def upgrade(self) -> str:
        """What a replay that decided adds to a verdict."""
        word = "Confirmed" if self.confirms else "Refuted"
        size = ""
        if self.difference is not None:
            size = f"{100 * self.difference:+.0f} points"
            if self.lower is not None and self.upper is not None:
                size += f", {100 * self.lower:.0f} to {100 * self.upper:.0f}"
            size = f" ({size})"
        if self.confirms:
            return f"{word} by replay: {self.change} alters where accuracy ends{size}."
        return (
            f"{word} by replay: {self.change} gives back less than half of the fall, or 5 points "
            f"where there was none{size}."
        )


def read_replays(run: Path) -> tuple[Replayed, ...]:
    """Every finished replay of a run directory, by name; unreadable results are an error."""
    return tuple(_read(path) for path in results_of_replays(run))


def _read(path: Path) -> Replayed:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path}: is not JSON ({error}); remove the folder, or repeat the replay"
        ) from error
    content = content if isinstance(content, dict) else {}
    suspect = content.get("suspect") or {}
    verdict = content.get("verdict")
    if verdict not in VERDICTS:
        raise ValueError(
            f"{path}: verdict is {verdict!r}, expected one of {list(VERDICTS)}; remove the folder, "
            "or repeat the replay"
        )
    return Replayed(
        str(suspect.get("kind", "")),
        str(suspect.get("subject", "")),
        str(content.get("change", "one thing changed")),
        verdict,
        content.get("difference"),
        content.get("lower"),
        content.get("upper"),
    )
