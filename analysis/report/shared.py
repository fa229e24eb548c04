"""What the text and the page of a diagnosis share: the fall, signals shown, colours, numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from analysis.explain.signal_words import DATED, EARLY, LATE
from analysis.findings import DROPS, Diagnosis, Finding, SignalVerdict
from gradlab.palette import GREY, role_color


def fall_of(diagnosis: Diagnosis) -> Finding | None:
    """The finding that says that accuracy fell, with its onset."""
    return next((f for f in diagnosis.findings if f.kind in DROPS and f.onset), None)


def moved(diagnosis: Diagnosis) -> list[SignalVerdict]:
    """Signals that changed, at a moment or all along, without accuracy in other words."""
    return [v for v in diagnosis.signals if v.change != "none" and not v.is_outcome]


def at_step(verdict: SignalVerdict) -> str:
    """When it moved: a step, or that it has none."""
    if verdict.onset is not None:
        return f"{verdict.onset.step}"
    if verdict.change == "trend" and (LATE in verdict.told or EARLY in verdict.told):
        return "late" if LATE in verdict.told else "early"
    if DATED in verdict.told:
        return "see finding"
    return "schedule" if verdict.change == "schedule" else "steadily"


def from_to(verdict: SignalVerdict) -> str:
    """The levels; of a setting without an event, its schedule."""
    if verdict.change == "schedule" and verdict.onset is None and verdict.told:
        return verdict.told
    return f"{number(verdict.before)} → {number(verdict.after)}"


def lead_interval(verdict: SignalVerdict) -> str:
    """90 % interval of the steps by which it leads, where it does; '' else: what begins with the
    fall or after it leads by nothing."""
    if verdict.order != "precedes":
        return ""
    return f"{max(verdict.lead_lower, 0):.0f} to {verdict.lead_upper:.0f}"


def color_of(finding: Finding, among: Iterable[str]) -> str:
    """The role's among those of the run; red for a drop; grey for a policy."""
    if finding.kind in DROPS:
        return "#c2410c"
    return GREY if finding.kind == "instrumentation" else role_color(finding.subject, among)


def number(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.1e}"
    return f"{float(np.format_float_positional(value, 3, fractional=False)):g}"
