"""Find what the agents said before and after a drop, on problems that were lost with it.

Read from the `episodes/` of a run directory; a bare store has none.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.findings import Diagnosis
from analysis.report.shared import fall_of
from gradlab.run_directory import episodes_path
from gradlab.store.run import Run

SHOWN = 3
"""Problems on the page."""
LONGEST = 700
"""Characters of a response that are shown."""

Key = tuple[str, int, int]
"""Role, number, and how often that agent had spoken before in the episode."""


@dataclass(frozen=True)
class Said:
    """One response."""

    text: str
    mark: str
    """right, wrong, no format, cut, or nothing where the role cannot be right."""


@dataclass(frozen=True)
class Exchange:
    """What one agent said in its turn, before and after the drop; None: it did not speak."""

    role: str
    title: str
    """e.g. 'generator[0]' or 'evaluator[0], round 2'."""
    before: Said | None
    after: Said | None


@dataclass(frozen=True)
class Lost:
    """One held-out problem that was solved before the drop and is not any more."""

    problem: str
    question: str
    reference: str
    exchanges: tuple[Exchange, ...]
    """The agent that decides first: it speaks last."""


@dataclass(frozen=True)
class Transcripts:
    """Lost problems at two evaluations, before and after the fall."""

    before_step: int
    after_step: int
    num_lost: int
    """Episodes solved at the first evaluation and not at the second."""
    lost: tuple[Lost, ...]


def transcripts(run: Run, diagnosis: Diagnosis) -> Transcripts | None:
    """The last evaluation before the drop against the first after it, on the same problems; None
    without a drop or episodes."""
    steps = around(run, diagnosis)
    if steps is None:
        return None
    folder = run.path.parent  # whatever the store in it is called
    before, after = (read(episodes_path(folder, "eval", step)) for step in steps)
    if not before or not after:
        return None
    lost = [
        key
        for key, episode in before.items()
        if episode["outcome"] and key in after and not after[key]["outcome"]
    ]
    # Those where most turns went wrong come last: a problem that one role lost says more.
    lost.sort(key=lambda key: (num_wrong(after[key]), key))
    shown: dict[str, Lost] = {}
    for key in lost:
        if len(shown) < SHOWN and key[0] not in shown:
            shown[key[0]] = compared(before[key], after[key])
    return Transcripts(*steps, len(lost), tuple(shown.values()))


def around(run: Run, diagnosis: Diagnosis) -> tuple[int, int] | None:
    """Steps of the last evaluation before the fall and of the first after half of it.

    Half: a fall that takes several evaluations is hardly seen in what is said at the first of them.
    """
    fall = fall_of(diagnosis)
    evaluations = run.evaluations()
    if fall is None or fall.onset is None or len(evaluations.step_E) < 2:
        return None
    accuracy, step_E = diagnosis.accuracy, evaluations.step_E
    early_E = step_E[step_E <= fall.onset.step]
    late_E = step_E > fall.onset.step
    if not len(early_E) or not late_E.any():
        return None
    half = (accuracy.peak + accuracy.terminal) / 2
    fallen_E = step_E[late_E & (evaluations.accuracy().value_T <= half)]
    after = int(fallen_E[0]) if len(fallen_E) else int(step_E[late_E][0])
    return int(early_E[-1]), after


def read(path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """(problem, sample) -> episode; empty if the file is not there or cannot be read."""
    found = {}
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                episode = json.loads(line)
                found[str(episode["problem"]), int(episode["sample"])] = episode
    except (OSError, EOFError, ValueError, KeyError):
        return {}  # a page without transcripts is better than none
    return found


def num_wrong(episode: Mapping[str, Any]) -> int:
    return sum(turn["own_correct"] is False for turn in episode["turns"])


def compared(before: Mapping[str, Any], after: Mapping[str, Any]) -> Lost:
    first, last = by_agent(before["turns"]), by_agent(after["turns"])
    keys = [*first, *(key for key in last if key not in first)]
    return Lost(
        str(before["problem"]),
        str(before["question"]),
        str(before["reference"]),
        tuple(
            Exchange(key[0], title_of(key), said(first.get(key)), said(last.get(key)))
            for key in reversed(keys)
        ),
    )


def by_agent(turns: Sequence[Mapping[str, Any]]) -> dict[Key, Mapping[str, Any]]:
    """Turns in the order in which they were spoken."""
    found: dict[Key, Mapping[str, Any]] = {}
    for turn in turns:
        spoken = sum(key[:2] == (turn["role"], turn["number"]) for key in found)
        found[turn["role"], turn["number"], spoken] = turn
    return found


def title_of(key: Key) -> str:
    role, number, spoken = key
    return f"{role}[{number}]" + (f", round {spoken + 1}" if spoken else "")


def said(turn: Mapping[str, Any] | None) -> Said | None:
    if turn is None:
        return None
    text = str(turn["response"])
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]} … ({len(text) - LONGEST} more characters)"
    if turn["truncated"]:
        return Said(text, "cut")
    if not turn["parse_ok"]:
        return Said(text, "no format")
    own = turn["own_correct"]
    return Said(text, "" if own is None else "right" if own else "wrong")
