"""Propose the replay that would convict or acquit the first suspect of a diagnosis.

One thing is changed, the one that takes away what the suspect is accused of and as little else as
possible: a captured policy gets a cap on the capturing role's share of the mass, not an anchor,
which would hold the role in every respect.
"""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import dataclass

import numpy as np

from analysis.detectors.shape import Replay
from analysis.detectors.table import KINDS
from analysis.explain.commands import checkpoint_before, run_directory
from analysis.findings import Cause, Diagnosis
from analysis.report.shared import fall_of
from gradlab.store.run import Run

STILL_OPEN = ("preceded by", "consistent with")


SEEDS = 3
"""Per arm: fewer give no verdict."""
AFTER = 2
"""Evaluations after the one at which most of the fall has happened."""
MOST = 0.75
"""Share of the fall."""


@dataclass(frozen=True)
class Proposal:
    """A replay worth its time."""

    kind: str
    subject: str
    """Role; '' for a change that holds for all."""
    change: str
    """As `gradlab replay --with` takes it."""
    why: str
    at_most: tuple[int, int]
    """Latest step of the checkpoint to begin with: before the suspect, if there is one; else before
    the drop."""
    until: int
    """Step at which most of the drop has happened and was evaluated a few times."""


def propose(run: Run, diagnosis: Diagnosis) -> Proposal:
    """The cheapest decisive replay: of the first suspect that can be tested by one change.

    Raises ValueError for a run without a drop, or with nothing left to test.
    """
    fall = fall_of(diagnosis)
    if fall is None or fall.onset is None:
        raise ValueError(
            f"{diagnosis.name}: there is no drop to explain ({diagnosis.status}); replay what you "
            "like with: gradlab replay RUN --from STEP --with …"
        )
    onset, until = fall.onset, settled(run, diagnosis)
    tested = []
    for cause in diagnosis.causes:
        change = change_for(cause, run)
        if change and cause.words in STILL_OPEN:
            why = f"accuracy fell after {cause.name} (step {cause.onset.step}): {cause.words}"
            at_most = min(cause.onset.lower, onset.lower), onset.lower
            return Proposal(cause.kind, subject_of(cause, change), change, why, at_most, until)
        if cause.words not in STILL_OPEN:
            tested.append(cause)
    if tested:
        raise ValueError(
            f"{diagnosis.name}: {tested[0].name} is {tested[0].words}; the other suspects have no "
            "single change that would test them. Repeat with more seeds: gradlab replay"
        )
    why = "no suspect was found; steps that are too long leave the fewest traces"
    if diagnosis.causes:
        why = (
            f"no single change takes away {diagnosis.causes[0].name}; steps that are too long "
            "leave the fewest traces"
        )
    return Proposal("step length", "", "lr:0.5", why, (onset.lower, onset.lower), until)


def settled(run: Run, diagnosis: Diagnosis) -> int:
    """Step of the second evaluation after most of the fall, or the last one."""
    fall, accuracy = fall_of(diagnosis), diagnosis.accuracy
    steps = run.evaluations().step_E
    assert fall is not None
    assert fall.onset is not None
    if not len(steps):  # it fell in training: nothing was evaluated
        return int(run.steps[-1])
    low = accuracy.peak - MOST * (accuracy.peak - accuracy.terminal)
    rates = run.evaluations().accuracy().value_T
    late = np.flatnonzero((steps > fall.onset.step) & (rates <= low))
    first = int(late[0]) if len(late) else len(steps) - 1
    return int(steps[min(first + AFTER, len(steps) - 1)])


def start_of(run: Run, found: Proposal) -> int | None:
    """Step of the checkpoint that the replay begins with; None where no early one is left."""
    folder = run_directory(run)
    return (checkpoint_before(folder, *found.at_most) or None) if folder else None


def announced(run: Run, found: Proposal) -> str:
    """What `gradlab diagnose RUN --confirm` does, in a sentence; '' where it cannot."""
    start, config = start_of(run, found), run.meta.config
    if start is None or start >= found.until:
        return ""
    own = config.get("replay_seed")
    first = int(config.get("seed", 0) if own is None else own)
    seeds = ", ".join(str(first + i) for i in range(SEEDS))
    folder = run_directory(run)
    step = np.nanmedian(run.run_metric("step_seconds").value_T)
    spent = run.run_metric("eval_seconds").value_T
    seconds = float(step + np.nansum(spent) / max(len(spent), 1))
    total = 2 * SEEDS * (found.until - start) * seconds
    how_long = f"{max(total, 1):.0f} s" if total < 120 else f"{total / 60:.0f} min"
    pace = f", about {how_long} at the run's own pace" if math.isfinite(total) else ""
    return (
        f"gradlab diagnose {shlex.quote(str(folder))} --confirm trains steps {start + 1} to "
        f"{found.until} {2 * SEEDS} times, from the checkpoint of step {start}: with seeds {seeds} "
        f"as the run was, and with each of them once more with {meaning(found.change)}{pace}. "
        f"Why that: {found.why}. It then compares where accuracy ends, and diagnoses again."
    )


def meaning(change: str) -> str:
    """A change in words."""
    name, role = without_value(change).partition(":")[::2]
    value = re.split(r"[:=]", change)[-1]
    words = {
        "lr": f"{value} times the learning rate, at every step",
        "entropy": f"an entropy bonus of {value}",
        "clip": f"gradients clipped at {value}",
        "max-share": f"{role}'s share of the gradient capped at {value}",
        "kl-anchor": f"a KL anchor of {value} on {role}",
    }
    return f"{words[name]} (--with {change})" if name in words else f"--with {change}"


def suspect_of(run: Run, diagnosis: Diagnosis, changes: tuple[str, ...]) -> dict[str, str]:
    """Kind and subject of the suspect that a replay with these changes tests; '' if of none.

    One that changes less than would be proposed, or the other way, acquits nobody.
    """
    for cause in diagnosis.causes if len(changes) == 1 else ():
        change = change_for(cause, run)
        if change and is_as_strong(changes[0], change):
            return {"kind": cause.kind, "subject": subject_of(cause, change)}
    return {"kind": "", "subject": ""}


def subject_of(cause: Cause, change: str) -> str:
    """The role that a change is about; '' for one that holds for all."""
    return cause.subject if "=" in change else ""


def is_as_strong(change: str, proposed: str) -> bool:
    """Whether a change is the proposed one, or more of it."""
    name = without_value(proposed)
    if without_value(change) != name:
        return False
    value, needed = (float(re.split(r"[:=]", text)[-1]) for text in (change, proposed))
    return value >= needed if name.startswith(("kl-anchor", "entropy")) else value <= needed


def without_value(change: str) -> str:
    """'kl-anchor:aggregator' of 'kl-anchor:aggregator=0.05', 'lr' of 'lr:0.5' and of 'lr=0.5'."""
    return re.split(r"[:=][^:=]*$", change)[0]


def change_for(cause: Cause, run: Run) -> str | None:
    """What takes away the suspect, or None where no single option does."""
    config, role = run.meta.config, cause.subject
    if cause.kind in ("learning_rate", "update_norm"):
        return "lr:0.5"
    replay = KINDS[cause.kind].replay if cause.kind in KINDS else BY_SIGNAL.get(cause.kind, "")
    if replay == "entropy":
        return f"entropy:{max(0.001, 2 * float(config.get('entropy_coefficient', 0.0))):g}"
    if replay == "clip":
        limit = float(config.get("clip_norm", 0.0)) or np.inf
        return f"clip:{min(0.5, limit / 2):g}"
    if role not in run.roles:
        return None
    if replay == "cap share":
        num_roles = len({a.role for policy in run.policies_of(role) for a in policy.agents})
        return f"max-share:{role}={1 / num_roles:.2g}" if num_roles > 1 else None
    if replay == "anchor":
        given = dict(config.get("kl_coefficient") or {})
        return f"kl-anchor:{role}={max(0.05, 2 * float(given.get(role, 0.0))):g}"
    return None


BY_SIGNAL: dict[str, Replay] = {
    "entropy": "entropy",
    "grad_norm": "clip",
    **dict.fromkeys(("share", "pull", "update"), "cap share"),
    **dict.fromkeys(("kl", "drift", "length_mean", "truncated", "parse_failures"), "anchor"),
}
"""Kind of signal -> the change that takes it away; of a finding, its `Kind` says so."""
