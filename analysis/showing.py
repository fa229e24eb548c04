"""What the text and the page of a diagnosis share: the fall, signals shown, colours, numbers."""

from __future__ import annotations

import math

import numpy as np

from analysis.findings import DROPS, Diagnosis, Finding, SignalVerdict
from gradlab.palette import GREY, role_color


def fall_of(diagnosis: Diagnosis) -> Finding | None:
    """The finding that says that accuracy fell, with its onset."""
    return next((f for f in diagnosis.findings if f.kind in DROPS and f.onset), None)


HELD_OUT = "held-out accuracy"


def moved(diagnosis: Diagnosis) -> list[SignalVerdict]:
    """Signals that changed, without accuracy in other words."""
    return [v for v in diagnosis.signals if v.onset and not v.is_outcome]


def color_of(finding: Finding) -> str:
    """The role's; red for a drop; grey for a policy."""
    if finding.kind in DROPS:
        return "#c2410c"
    return GREY if finding.kind == "instrumentation" else role_color(finding.subject)


def number(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.1e}"
    return f"{float(np.format_float_positional(value, 3, fractional=False)):g}"
