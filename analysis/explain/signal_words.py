"""Put what a signal did into words: an event with its date, a steady change without one."""

from __future__ import annotations

from typing import Literal

from analysis.findings import Onset, SignalVerdict

TrendShape = Literal["", "settled", "late", "start"]
"""Throughout; done in the first half; done in the second half; done within the first points."""
ACCURACY = ("own_accuracy", "reward_mean")
"""The fall itself, in training."""
MAX_NAMED = 4
"""Signals in a sentence."""


def quantity(value: float, unit: str) -> str:
    """A number with its unit, where it has one."""
    return f"{value:.3g}" if unit in ("", "1") else f"{value:.3g} {unit}"


def told_event(before: float, after: float, unit: str, onset: Onset) -> str:
    way = "rose" if after > before else "fell"
    return f"{way} from {before:.3g} to {quantity(after, unit)} at {onset}"


def told_trend(before: float, after: float, unit: str, shape: TrendShape) -> str:
    way = "rose" if after > before else "fell"
    when = {
        "": "throughout",
        "settled": "in the first half and settled",
        "late": "steadily, mostly in the second half",
        "start": "from the first steps on",
    }[shape]
    return f"{way} {when}, {before:.3g} to {quantity(after, unit)}, no date"


def listed(names: list[str]) -> str:
    """The first few names, and how many more."""
    if len(names) <= MAX_NAMED:
        return ", ".join(names)
    return f"{', '.join(names[:MAX_NAMED])} and {len(names) - MAX_NAMED} more"


def named(verdict: SignalVerdict) -> str:
    """A signal with its direction and its place beside the fall."""
    way = "up" if verdict.after > verdict.before else "down"
    return f"{verdict.title} {way} ({verdict.when})" if verdict.when else f"{verdict.title} {way}"


def told_order(
    signals: tuple[SignalVerdict, ...], spoken_for: tuple[tuple[frozenset[str], str], ...]
) -> str:
    """What else moved before or with the fall, in order, settings first; then what only follows
    from rewards; then what went its way all along. '' if nothing did."""
    others = [
        v
        for v in signals
        if v.change != "none"
        and v.kind not in ACCURACY
        and not any(v.kind in kinds and subject in v.subject for kinds, subject in spoken_for)
    ]
    dated = sorted(
        (v for v in others if v.order in ("precedes", "coincides") and v.onset is not None),
        key=lambda v: (
            v.order != "precedes",
            v.change != "schedule",
            v.onset.step if v.onset else 0,
        ),
    )
    before = [v for v in dated if v.order == "precedes" and not v.is_outcome]
    beside = [v for v in dated if v.order == "coincides" and not v.is_outcome]
    arithmetic = [v for v in dated if v.is_outcome]
    steady = [v for v in others if v.change == "trend"]
    parts = []
    if before:
        parts.append(f"Moved before it as well: {listed([named(v) for v in before])}.")
    if beside:
        parts.append(f"Began with it: {listed([_told_way(v) for v in beside])}.")
    if arithmetic:
        names = listed([_told_way(v) for v in arithmetic])
        parts.append(f"Follows from the rewards: {names}.")
    if steady:
        parts.append(f"Went its way all along: {listed([_told_way(v) for v in steady])}.")
    return " ".join(parts)


def _told_way(verdict: SignalVerdict) -> str:
    way = "up" if verdict.after > verdict.before else "down"
    at = f" (step {verdict.onset.step})" if verdict.onset is not None else ""
    return f"{verdict.title} {way}{at}"
