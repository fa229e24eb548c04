"""Put a diagnosis into words: the verdict, how sure it is, and the candidates for a cause."""

from __future__ import annotations

from analysis.causes import UNRECORDED
from analysis.cliff import CliffResult, Reason
from analysis.findings import Accuracy, Cause, Finding, percent, points
from analysis.replayed import Replayed
from gradlab.store import Run

UNRESOLVED: dict[Reason, str] = {
    "": "",
    "wander": " Cannot tell a fall from wander: it moves about as much by itself elsewhere.",
    "last evaluation": " Cannot tell more: only the last evaluation shows it.",
    "shape": " Cannot tell a cliff from a slow decay: both fit alike.",
}


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
    if run.closed:
        return f"The run stopped at {last} of {planned} steps." if last < planned else ""
    reached = f"{last} of {planned} steps" if planned else f"step {last}"
    return (
        f"The run is at {reached} and its store is open: it is still being written, or was killed."
    )


def verdict(
    run: Run,
    drop: CliffResult,
    accuracy: Accuracy,
    findings: tuple[Finding, ...],
    replays: tuple[Replayed, ...] = (),
) -> str:
    """A few sentences, what matters most first; that the run did not end is among them."""
    also = [replay.upgrade for replay in replays if not replay.is_open]
    also += [sentence for sentence in (unfinished(run),) if sentence and drop.shape != "none"]
    also += [
        f"{finding.subject} {'may have ' if finding.confidence == 'low' else ''}captured policy "
        f"'{run.policy_of(finding.subject).name}' from step {finding.onset.step}."
        for finding in findings
        if finding.onset and finding.kind == "capture"
    ]
    broken = sorted(
        (finding.onset.step, finding.subject)
        for finding in findings
        if finding.onset and finding.kind == "role breakdown"
    )
    if broken:
        names = ", ".join(f"{role} (from step {step})" for step, role in broken)
        also.append(f"Broken down, by format or length: {names}.")
    if drop.shape == "too few evaluations":
        num = drop.num_evaluations
        if num:
            start = f"Too short to judge: {num} evaluation{'' if num == 1 else 's'}, 8 are needed."
        elif accuracy.num_evaluations:
            start = (
                f"A drop cannot be judged: the number of answers behind the "
                f"{accuracy.num_evaluations} accuracies is unknown. They went from "
                f"{percent(accuracy.base)} over {percent(accuracy.peak)} (best level) to "
                f"{percent(accuracy.terminal)} (last level)."
            )
        else:
            start = "Nothing to judge a drop by: the run has no evaluations, 8 are needed."
    elif drop.shape == "none":
        until = f"{unfinished(run)} Until then, no" if unfinished(run) else "No"
        start = (
            f"{until} terminal cliff: held-out accuracy went from {percent(accuracy.base)} to "
            f"{percent(accuracy.terminal)}. A fall of {points(accuracy.detectable_drop)} or more "
            "would have been found in 4 of 5 such runs."
        )
    else:
        assert drop.onset is not None
        duration = drop.end_step - drop.onset.step
        is_sure = all(f.confidence != "low" for f in findings if f.kind == drop.shape)
        sure, unsure = {
            "cliff": ("fell off a cliff", "have fallen off a cliff"),
            "slow decay": (f"decayed over {duration} steps", f"have decayed over {duration} steps"),
            "unresolved drop": ("dropped", "have dropped"),
        }[drop.shape]
        how = sure if is_sure else f"may {unsure}"
        start = (
            f"Accuracy {how}: from {percent(drop.top)} to {percent(drop.bottom)}, beginning "
            f"between steps {drop.onset.lower} and {drop.onset.upper}."
        )
        if drop.bottom < accuracy.base - 0.05:
            start += f" That is below the base model ({percent(accuracy.base)})."
        start += UNRESOLVED[drop.reason]
    return " ".join((start, *also))


def confidence(
    drop: CliffResult,
    drops: list[Finding],
    capture: list[Finding],
    replays: tuple[Replayed, ...] = (),
) -> str:
    """How sure the drop and the captures are, in words."""
    parts = []
    if drops and drop.onset:
        parts.append(
            f"{drops[0].confidence} that accuracy fell (p = {drop.p_value:.3f}; approximate 95 % "
            f"interval {100 * drop.drop_lower:.0f} to {100 * drop.drop_upper:.0f} points)"
        )
        if not any(replay.confirms for replay in replays):
            parts.append("what moved before is an order in time, not a cause")
    elif drop.shape == "none":
        parts.append(
            f"the test for a drop gave p = {drop.p_value:.2f} on {drop.num_evaluations} evaluations"
        )
    parts += [
        f"{finding.confidence} on the capture by {finding.subject}"
        for finding in capture
        if finding.kind == "capture"
    ]
    return "; ".join(parts) or "none: nothing could be judged on accuracy"


def candidates(drop: CliffResult, causes: tuple[Cause, ...]) -> tuple[str, ...]:
    """Suspects with the words that their evidence allows, and always the unrecorded."""
    if drop.onset is None:
        return ()
    found = [f"{cause.words} {cause.name} ({cause.where})" for cause in causes]
    return (*found, UNRECORDED)
