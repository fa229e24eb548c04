"""Say how far the evidence on the suspects of a fall goes, and which run would take it further."""

from __future__ import annotations

from analysis.detectors.table import KINDS
from analysis.explain.signal_words import told_later, told_order, told_outcomes
from analysis.explain.suspects import parts_of
from analysis.findings import Cause, SignalVerdict


def separation(
    causes: tuple[Cause, ...],
    signals: tuple[SignalVerdict, ...] = (),
    *,
    can_replay: bool = True,
) -> str:
    """A few sentences on how far the evidence goes, what else moved before or with the fall, and
    the run that would take it further.

    `can_replay`: whether the run has a checkpoint to repeat it from.
    """
    confirmed = [cause.name for cause in causes if cause.words == "confirmed by replay"]
    refuted = [cause.name for cause in causes if cause.words == "contradicted by replay"]
    first = [cause for cause in causes if cause.words in ("preceded by", "consistent with")]
    spoken_for = tuple(_signals_of(cause) for cause in causes)
    also, outcomes = told_order(signals, spoken_for), told_outcomes(signals, spoken_for)
    if confirmed:
        return f"Confirmed by replay: {', '.join(confirmed)}."
    if refuted and not first:
        nothing = _nothing_leads(also, outcomes, signals, is_else=True)
        return f"Refuted by replay: {', '.join(refuted)}. {nothing}"
    if not first:
        return _nothing_leads(also, outcomes, signals, is_else=False)
    name, how = first[0].name, " (gradlab diagnose RUN --confirm)" if can_replay else ""
    since = min(cause.onset.lower for cause in first)
    before = f"from before step {since}" if since > 0 else "from the beginning"
    if len(first) > 1:
        more = f" (nor from {len(first) - 2} more)" if len(first) > 2 else ""
        moved = "moved before the drop" if first[1].place == "before" else "are told by it alike"
        if first[1].place == "with":
            moved = "changed with the drop"
        return (
            f"Cannot separate {name} from {first[1].name}{more}: both {moved}. "
            f"{also + ' ' if also else ''}"
            f"The run that would: repeat {before} with {name} alone taken away{how}."
        )
    to_do = f"To confirm: repeat {before} with that alone taken away{how}."
    if first[0].kind in KINDS and not KINDS[first[0].kind].has_option:
        to_do = "No option takes that away: look at what is paid there, then train on from before."
    if first[0].place == "throughout":
        return (
            "Nothing that was recorded leads it as a cause would. The drop is consistent with "
            f"{name}: {'; '.join(first[0].evidence)}. {also + ' ' if also else ''}"
            f"To confirm: repeat {before} with half of it{how}."
        )
    if first[0].place == "with":
        return (
            f"The drop is consistent with {name}, which changed with the fall: nothing that was "
            f"recorded leads it as a cause would. {also + ' ' if also else ''}{to_do}"
        )
    if also or outcomes:
        beside = " ".join(part for part in (also, outcomes) if part)
        return f"The drop is preceded by {name} ({first[0].when}). {beside} {to_do}"
    return (
        f"The drop is preceded by {name} ({first[0].when}) and nothing else that was recorded. "
        f"{to_do}"
    )


def _nothing_leads(
    also: str, outcomes: str, signals: tuple[SignalVerdict, ...], *, is_else: bool
) -> str:
    if not signals:
        return "Nothing was recorded beside it for long enough to say what moved first."
    what = "Nothing else that was recorded" if is_else else "Nothing that was recorded"
    later = told_later(signals)
    if also or outcomes:
        said = f"{what} was seen to move before the drop as a cause would."
        return " ".join(part for part in (said, outcomes, also, later) if part)
    said = f"{what} moved before or with the drop: an unrecorded cause, or chance."
    return f"{said} {later}" if later else said


def _signals_of(cause: Cause) -> tuple[frozenset[str], str]:
    """Kinds of signal, and the subject, that a suspect speaks for."""
    return frozenset(parts_of(cause)), cause.subject
