"""Put a diagnosis into words: the verdict, how sure it is, and the candidates for a cause."""

from __future__ import annotations

import numpy as np

from analysis.cliff.fall import Fall
from analysis.cliff.fall_words import (
    certainty,
    changed_set,
    elsewhere,
    how_it_fell,
    last_low,
    may_be_large,
    no_fall,
    small_loss,
    what_fell,
)
from analysis.detectors.breakdown import BREAKDOWN
from analysis.detectors.role_capture import CAPTURE
from analysis.explain.order import UNRECORDED
from analysis.findings import DROPS, HELD_OUT, Cause, Finding
from analysis.replays.results import Replayed
from gradlab.store.run import Run

TRAINED_ON = (
    " No held-out evaluation says so: this is {outcome}, on the problems that the run trains on, "
    "which change from step to step."
)


def unfinished(run: Run) -> str:
    """A sentence on a run that did not reach its end, or is not known to have; '' otherwise.

    The planned steps are the trainer's `config["steps"]`: the one entry of a configuration that is
    looked at, and only if it is a positive whole number, since stores of other trainers lack it.
    """
    last = int(run.steps[-1]) if len(run.steps) else 0
    if run.until is not None:
        return f"Looked at up to step {last} only; the store holds later steps."
    steps = run.meta.config.get("steps")
    planned = steps if isinstance(steps, int) and not isinstance(steps, bool) else 0
    if len(run.steps) > 2 and last < planned < last + int(np.median(np.diff(run.steps))):
        planned = last  # the next row of a log with a row every few steps was not due
    if run.closed:
        return f"The run stopped at {last} of {planned} steps." if last < planned else ""
    reached = f"{last} of {planned} steps" if planned else f"step {last}"
    return (
        f"The run is at {reached} and its store is open: it is still being written, or was killed."
    )


def verdict(
    run: Run,
    drop: Fall,
    findings: tuple[Finding, ...],
    replays: tuple[Replayed, ...] = (),
) -> str:
    """A few sentences, what matters most first; that the run did not end is among them."""
    also = [replay.upgrade for replay in replays if not replay.is_open]
    said, until = outcome_in_words(drop), unfinished(run)
    if until and drop.shape in DROPS:
        also.append(until)
    elif until:
        said = f"{until} Until then: {said}"
    also += [
        f"{finding.subject} {'may have ' if finding.confidence == 'low' else ''}captured policy "
        f"'{run.policy_of(finding.subject).name}' from step {finding.onset.step}."
        for finding in findings
        if finding.onset and finding.kind == CAPTURE.name
    ]
    broken = sorted(
        (finding.onset.step, finding.subject)
        for finding in findings
        if finding.onset and finding.kind == BREAKDOWN.name
    )
    if broken:
        names = ", ".join(f"{role} (from step {step})" for step, role in broken)
        also.append(f"Broken down, by format or length: {names}.")
    return " ".join((said, *also))


def outcome_in_words(drop: Fall) -> str:
    """How the run ended, whatever made it end so."""
    if drop.num_evaluations == 0:
        return (
            "Nothing to judge by: the run has no evaluations, and no accuracy or reward of its "
            "training steps."
        )
    if drop.shape == "too few evaluations":
        return f"One evaluation ({drop.level(drop.base)}) shows no course: two are needed."
    if drop.shape in DROPS:
        said = f"{what_fell(drop)} {how_it_fell(drop)} {elsewhere(drop)}"
    elif drop.shape == "changed set":
        said = changed_set(drop)
    elif drop.shape == "small loss":
        said = small_loss(drop)
    elif drop.shape == "last evaluation low":
        said = last_low(drop)
    else:
        said = no_fall(drop)
    if drop.outcome != HELD_OUT:
        said += TRAINED_ON.format(outcome=drop.outcome)
    return said


def confidence(
    drop: Fall,
    capture: list[Finding],
    replays: tuple[Replayed, ...] = (),
) -> str:
    """How sure the drop and the captures are, in words."""
    parts = []
    if drop.shape in DROPS:
        how = "certain" if certainty(drop) == "high" else "likely"
        parts.append(f"{how} that it ended lower (p = {drop.p_value:.3f})")
        if not any(replay.confirms for replay in replays):
            parts.append("why is another question: what moved before is an order in time, no cause")
    elif drop.shape == "small loss":
        size = " that may be a small one" if may_be_large(drop) else ", but a small one"
        parts.append(f"a loss{size} (p = {drop.p_value:.3f})")
    elif drop.shape == "changed set":
        parts.append("none: accuracies on different problems cannot be compared")
    elif drop.shape == "last evaluation low":
        parts.append("low: one evaluation shows it")
    elif drop.num_evaluations > 1:
        points = "evaluations" if drop.outcome == HELD_OUT else "points"
        parts.append(
            f"nothing beyond noise was lost (p = {drop.p_value:.2f}, {drop.num_evaluations} "
            f"{points})"
        )
    parts += [
        f"{finding.confidence} on the capture by {finding.subject}"
        for finding in capture
        if finding.kind == CAPTURE.name
    ]
    return "; ".join(parts) or "none: nothing could be judged on accuracy"


def candidates(drop: Fall, causes: tuple[Cause, ...]) -> tuple[str, ...]:
    """Suspects with the words that their evidence allows, and always the unrecorded."""
    if drop.onset is None:
        return ()
    found = [f"{cause.words} {cause.name} ({cause.where})" for cause in causes]
    return (*found, UNRECORDED)
