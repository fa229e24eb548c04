"""Notice roles whose shares of the gradient change places from one step to the next."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from analysis.findings import Finding
from analysis.signals import routed
from gradlab.store.run import Run

AROUND = 5
"""Steps before and after that are compared."""
ALIKE = 0.12
"""Largest difference of a role's share from the other one's before, to be called its place."""


ASIDE = "were exchanged: audit first."


def is_exchange(finding: Finding) -> bool:
    """Whether a capture may be no more than exchanged tags."""
    return finding.kind == "capture" and finding.summary.endswith(ASIDE)


def with_exchange(run: Run, capture: Finding) -> Finding:
    """A capture with the check that comes first if two roles' shares changed places at once.

    Training moves shares over many steps. Tags of two roles that were exchanged do it in one, and
    the probe cannot know: it believes what it is told. `gradlab audit` can.
    """
    if capture.onset is None or capture.subject not in run.roles:
        return capture
    policy_of = routed(run)
    policy = policy_of.get(capture.subject)
    shares = run.step_mass("share")
    own = shares[capture.subject]
    at = int(np.searchsorted(own.step_T, capture.onset.step, side="right"))
    for other in run.roles:
        if other == capture.subject or policy_of.get(other) != policy or other not in shares:
            continue
        mine, theirs = (np.asarray(shares[r].value_T) for r in (capture.subject, other))
        if at < AROUND or at + AROUND > len(mine):
            continue
        before = [float(np.nanmedian(v[at - AROUND : at])) for v in (mine, theirs)]
        after = [float(np.nanmedian(v[at : at + AROUND])) for v in (mine, theirs)]
        changed = abs(after[0] - before[1]) <= ALIKE and abs(after[1] - before[0]) <= ALIKE
        if changed and abs(before[0] - before[1]) > 2 * ALIKE:
            step = int(own.step_T[at])
            check = (
                f"the shares of {capture.subject} and {other} changed places in one step, as they "
                f"do when their tags are exchanged: rule that out first with gradlab audit RUN "
                f"--step {step}"
            )
            return replace(
                capture,
                summary=f"{capture.summary} Or the tags of {capture.subject} and {other} {ASIDE}",
                evidence=(check, *capture.evidence),
            )
    return capture
