"""Say what was found: findings, remedies and the diagnosis that gathers them, all JSON-able."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

DROPS: tuple[str, ...] = ("cliff", "fall", "decay", "swings")
"""Kinds that say that accuracy ended lower than it was, since a moment that can be dated."""
Confidence = Literal["high", "moderate", "low"]
Order = Literal["precedes", "coincides", "follows", "no evidence"]
"""The only words a diagnosis uses for a signal beside a drop. A cause needs a replayed run."""

ChangeKind = Literal["none", "event", "trend", "schedule"]
"""What a signal did: nothing worth a word, an event with a date, a smooth way without one, or, for
a setting, what its schedule says."""

Strength = Literal[
    "confirmed by replay", "preceded by", "consistent with", "contradicted by replay"
]
"""The only words for a suspect; only a repeated run confirms or contradicts one."""

Status = Literal[
    "healthy",
    "unfinished",
    "cliff",
    "fall",
    "decay",
    "swings",
    "small loss",
    "last evaluation low",
    "never learned",
    "role breakdown",
    "not judged",
]
"""Cliff, fall and decay are widths: up to a quarter of the run, up to a half, more. 'swings': the
end is the low of one more swing. 'role breakdown': accuracy held, but a role stopped doing its job.
'unfinished': accuracy held as far as the run got, which is not as far as it was meant to get."""


@dataclass(frozen=True)
class Onset:
    """When something began, in training steps."""

    step: int
    lower: int
    upper: int

    def __post_init__(self) -> None:
        if not self.lower <= self.step <= self.upper:
            raise ValueError(
                f"Onset: got step {self.step} in the interval {self.lower} to {self.upper}, "
                "expected lower <= step <= upper; widen the interval where it is made"
            )

    def __str__(self) -> str:
        if self.lower == self.upper:
            return f"step {self.step}"
        return f"step {self.step} ({self.lower} to {self.upper})"


@dataclass(frozen=True)
class Finding:
    """One thing a detector is willing to stand for."""

    kind: str
    """Its name, as in `analysis.detectors.table.KINDS`."""
    subject: str
    """Role, policy or 'run'."""
    summary: str
    """One sentence."""
    strength: float
    unit: str
    """Of `strength`."""
    confidence: Confidence
    onset: Onset | None = None
    """None: no beginning inside the run."""
    p_value: float | None = None
    """None: no test, but then an interval."""
    evidence: tuple[str, ...] = ()
    """Sentences, the strongest first."""
    lower: float | None = None
    """Approximate 95 % interval of `strength`; None where the p-value says it."""
    upper: float | None = None
    p_family: float | None = None
    """The p-value corrected for everything that was tested in the run; see
    `analysis.detectors.multiplicity`.
    """


@dataclass(frozen=True)
class SignalVerdict:
    """One signal of the run, and when it moved relative to the drop in accuracy."""

    key: str
    """Kind of signal and subject, e.g. 'kl:generator'."""
    title: str
    subject: str
    unit: str
    order: Order
    before: float
    """Level before the change (or in the first third, without one)."""
    after: float
    effect: float
    """Size of the change in residual standard deviations, signed."""
    onset: Onset | None
    lead: float
    """Steps from this change to the drop in accuracy; NaN without both."""
    lead_lower: float
    lead_upper: float
    is_candidate: bool
    """Precedes the drop, and no earlier signal of the declared graph explains it."""
    is_outcome: bool
    """Moves with accuracy by definition."""
    note: str
    """Why this order, in a few words."""
    p_value: float = math.nan
    """Of the change against wander, times the number of signals judged; NaN where none was seen, 0
    for a setting, which has no noise."""
    change: ChangeKind = "none"
    told: str = ""
    """What it did, in a few words that need no column beside them; '' for nothing."""

    def is_of(self, subject: str) -> bool:
        """Whether it is about this role, agent or policy, alone or among others."""
        return subject == self.subject or subject in re.split(r"[^\w\[\]-]+", self.subject)

    @property
    def kind(self) -> str:
        """Of signal, as in `analysis.signals.KIND`."""
        return self.key.split(":")[0]

    @property
    def when(self) -> str:
        """Its place beside the fall, in words: no negative number is ever before anything."""
        words = {"coincides": "with the fall", "no evidence": ""}
        if self.order == "precedes":
            return f"{max(self.lead, 0.0):.0f} steps before"
        if self.order == "follows":
            return f"{abs(min(self.lead, 0.0)):.0f} steps after it began"
        return words[self.order]


@dataclass(frozen=True)
class Cause:
    """A suspect for the drop: what moved before it, how surely, and what objects."""

    name: str
    kind: str
    """Of finding or of signal."""
    subject: str
    words: Strength
    onset: Onset
    lead: float
    """Steps from its onset to the drop's."""
    p_value: float
    """Corrected for everything tested."""
    evidence: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    """What does not fit; empty: nothing seen."""
    place: Literal["before", "with", "throughout"] = "before"
    """Where it stands: a suspect leads; a setting may have changed with the fall, or have been what
    it was all along."""

    @property
    def when(self) -> str:
        """Its place beside the fall, in words."""
        words = {"with": "with the fall", "throughout": "throughout"}
        return words.get(self.place, f"{max(self.lead, 0.0):.0f} steps before")

    @property
    def where(self) -> str:
        """The same with its step, where it has one."""
        return self.when if self.place == "throughout" else f"step {self.onset.step}, {self.when}"


@dataclass(frozen=True)
class Remedy:
    """Something to change, and the option of `gradlab train` that changes it."""

    title: str
    reason: str
    option: str


@dataclass(frozen=True)
class NotJudged:
    """A question the run cannot answer."""

    what: str
    why: str
    to_do: str


@dataclass(frozen=True)
class Accuracy:
    """How the run did, in numbers; shares, not percent (rewards: in their own unit)."""

    num_evaluations: int = 0
    num_problems: int = 0
    num_samples: int = 0
    """Graded answers per evaluation; 0: unknown."""
    base: float = math.nan
    """First evaluation."""
    peak: float = math.nan
    """Best level: highest mean of `window` successive evaluations, before the fall if there is one;
    the highest single evaluation is biased."""
    peak_step: int = -1
    """Middle of that stretch."""
    terminal: float = math.nan
    """Last level: mean of the last `end_window` evaluations."""
    detectable_drop: float = math.nan
    """Smallest loss found with 80 % power."""
    outcome: str = "held-out accuracy"
    """What the run is judged by; 'training accuracy' or 'training reward' without evaluations."""
    window: int = 0
    end_window: int = 0
    drop: float = math.nan
    """`peak` - `terminal`."""
    drop_lower: float = math.nan
    """95 % interval of the loss, corrected for the choice of the best level; NaN without one."""
    drop_upper: float = math.nan
    width_steps: int = 0
    """Of the fall: from the last good evaluation to the first on the new level, or to the end."""
    width_share: float = math.nan
    """The same as a share of the run."""
    progress: str = ""
    """'still falling', 'settled', 'coming back', or '' where it cannot be told."""
    kind: str = ""
    """'early collapse', 'two falls', or ''."""
    num_swings: int = 0
    """Losses elsewhere in the run that came back."""
    largest_swing: float = math.nan
    wander: float = math.nan
    """Standard deviation of the true level around its trend, outside the fall."""
    is_noise_assumed: bool = False
    """Taken from how much successive values differ: no number of answers is recorded."""


@dataclass(frozen=True)
class Diagnosis:
    """What all detectors say together."""

    run_id: str
    name: str
    """Of the run's directory."""
    status: Status
    verdict: str
    """The answer in one or two sentences."""
    confidence: str
    """How sure, and of what."""
    accuracy: Accuracy
    findings: tuple[Finding, ...] = ()
    """The drop first, then by strength of evidence."""
    signals: tuple[SignalVerdict, ...] = ()
    """Candidates first, then the other signals that moved, then the rest."""
    candidates: tuple[str, ...] = ()
    """Suspects in words; the last entry is always an unrecorded cause."""
    causes: tuple[Cause, ...] = ()
    """Suspects, the strongest first."""
    separation: str = ""
    """How far the evidence goes, and the run that would take it further."""
    remedies: tuple[Remedy, ...] = ()
    not_judged: tuple[NotJudged, ...] = ()
    settings: dict[str, float | int | str] = field(default_factory=dict)
    """Thresholds used."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; numbers that are not finite become null."""
        plain: dict[str, Any] = _finite(asdict(self))
        return plain

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    @property
    def drops(self) -> tuple[Finding, ...]:
        """What says that accuracy fell."""
        return self.of_kind(*DROPS)

    def of_kind(self, *kinds: str) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.kind in kinds)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def points(share: float) -> str:
    """A difference of shares in percentage points, e.g. '12 points'."""
    value = round(100 * share, 1 if abs(share) < 0.095 else 0)
    return f"{value:g} point{'' if value == 1 else 's'}"


HELD_OUT = "held-out accuracy"
"""What a run is judged by where it can be."""


def level(value: float, outcome: str) -> str:
    """A level of the outcome in words: '58 %', or '0.58' of a reward, which is no share."""
    if outcome != "training reward":
        return percent(value)
    return f"{value:.2f}" if math.isfinite(value) else "unknown"


def percent(share: float) -> str:
    return f"{round(100 * share) + 0:d} %" if math.isfinite(share) else "unknown"
