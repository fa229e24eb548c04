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
EARLY, LATE = "in the first half and settled", "mostly in the second half"
DATED = "dated by its finding"


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
        "settled": EARLY,
        "late": f"steadily, {LATE}",
        "start": "from the first steps on",
    }[shape]
    return f"{way} {when}, {before:.3g} to {quantity(after, unit)}, no date"


def told_from(before: float, after: float, unit: str, onset: Onset) -> str:
    """A way that bends slowly, whose beginning a finding dates."""
    way = "rose" if after > before else "fell"
    return (
        f"{way} from between steps {onset.lower} and {onset.upper} on, {before:.3g} to "
        f"{quantity(after, unit)}, {DATED}"
    )


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
        if v.change != "none" and v.kind not in ACCURACY and not _is_spoken_for(v, spoken_for)
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
    trends = [v for v in others if v.change == "trend"]
    early = [v for v in trends if EARLY in v.told]
    late = [v for v in trends if LATE in v.told]
    bent = [v for v in trends if DATED in v.told]
    steady = [v for v in trends if v not in early and v not in late and v not in bent]
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
    if bent:
        names = listed([f"{v.title} {v.told.removesuffix(f', {DATED}')}" for v in bent])
        parts.append(f"Bent by degrees, and is {DATED}: {names}.")
    for when, some in ((EARLY, early), (LATE, late)):
        if some:
            names = listed([_told_way(v) for v in some])
            parts.append(f"Changed by degrees, {when}, without a date: {names}.")
    return " ".join(parts)


def told_outcomes(
    signals: tuple[SignalVerdict, ...], spoken_for: tuple[tuple[frozenset[str], str], ...]
) -> str:
    """What fell with held-out accuracy because it is the same fall, seen in training."""
    fell = [
        v
        for v in signals
        if v.kind in ACCURACY
        and v.after < v.before
        and (v.order != "no evidence" or v.change == "trend")
        and not _is_spoken_for(v, spoken_for)
    ]
    names = listed([_told_way(v) for v in fell])
    return f"Fell in training, which is the drop itself: {names}." if fell else ""


def told_later(signals: tuple[SignalVerdict, ...]) -> str:
    """What changed once the fall had begun."""
    later = sorted(
        (
            v
            for v in signals
            if v.order == "follows" and v.onset is not None and v.kind not in ACCURACY
        ),
        key=lambda v: v.onset.step if v.onset else 0,
    )
    return f"Came after it: {listed([_told_way(v) for v in later])}." if later else ""


def _told_way(verdict: SignalVerdict) -> str:
    way = "up" if verdict.after > verdict.before else "down"
    at = f" (step {verdict.onset.step})" if verdict.onset is not None else ""
    return f"{verdict.title} {way}{at}"


def _is_spoken_for(
    verdict: SignalVerdict, spoken_for: tuple[tuple[frozenset[str], str], ...]
) -> bool:
    return any(verdict.kind in kinds and verdict.is_of(subject) for kinds, subject in spoken_for)
