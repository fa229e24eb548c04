"""What the text and the page of a diagnosis share: the fall, signals shown, colours, numbers."""

from __future__ import annotations

import math

import numpy as np

from analysis.findings import DROPS, Accuracy, Diagnosis, Finding, SignalVerdict
from gradlab.palette import GREY, role_color

FALLS: tuple[str, ...] = (
    *DROPS, "cliff", "fall", "decay", "small loss", "slow decay", "unresolved drop",
)  # fmt: skip
"""Kinds of finding that say that accuracy fell, in all versions of the diagnosis."""


def fall_of(diagnosis: Diagnosis) -> Finding | None:
    """The finding that says that accuracy fell, with its onset."""
    return next((f for f in diagnosis.findings if f.kind in FALLS and f.onset), None)


HELD_OUT = "held-out accuracy"


def outcome_of(accuracy: Accuracy) -> str:
    """What the run was judged by: held-out accuracy, or what stands in for it."""
    return str(getattr(accuracy, "outcome", HELD_OUT))


def moved(diagnosis: Diagnosis) -> list[SignalVerdict]:
    """Signals that changed, without accuracy in other words."""
    return [v for v in diagnosis.signals if v.onset and not v.is_outcome]


def color_of(finding: Finding) -> str:
    """The role's; red for a drop; grey for a policy."""
    if finding.kind in FALLS:
        return "#c2410c"
    return GREY if finding.kind == "instrumentation" else role_color(finding.subject)


def number(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.1e}"
    return f"{float(np.format_float_positional(value, 3, fractional=False)):g}"
