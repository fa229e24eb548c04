"""Say whether the steps of a policy were too long by their own measure, although none was longer.

A rate that never changed has no onset, and moves nothing else at a moment either. What can be held
against it is the length of its steps: of the weights, of the importance ratios, of the way away
from the reference. A rate is a suspect if the way was long in itself, or two other signs agree. An
early collapse leaves no time before it: there the steps of the fall are looked at, and the way,
which a collapse makes long whatever its cause, counts only beside another sign.

Legend: T steps, U updates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from analysis.cliff.fall import Fall
from analysis.series.schedule import Schedule
from analysis.signals import aligned, learners
from gradlab.store.run import Run

MAX_RELATIVE = 0.02
"""Length of an update over that of the weights: at 1 in 50 the weights are replaced within a few
tens of updates that agree; adapters that train well here make steps of 1 in 200."""
MAX_RATIO_SPREAD = 0.3
"""Standard deviation of the importance ratio: half of the tokens are beyond a clip range of 0.2."""
MAX_CLIPPED = 0.2
"""Share of tokens that the clip takes out: a working clip touches a few percent."""
MAX_SPEED = 0.01
"""Nats per token and step away from the reference: ten times what good runs of a few hundred steps
do; the distance has to reach `MIN_DISTANCE` as well."""
MIN_DISTANCE = 0.5
"""Nats per token: every token is e^0.5 times less likely to the reference."""


@dataclass(frozen=True)
class TooLarge:
    """A policy whose constant rate made long steps before the fall."""

    policy: str
    evidence: tuple[str, ...]


def too_large(run: Run, drop: Fall) -> tuple[TooLarge, ...]:
    """Policies whose rate had long been the same before the fall, and whose steps were long."""
    if drop.onset is None:
        return ()
    is_early = drop.kind == "early collapse"
    until = drop.end_step if is_early else drop.onset.upper
    found = []
    for policy in run.policies:
        if not _held(run, policy.name, until):
            continue
        signs = _signs(run, policy.name, until)
        roles = [role for role in learners(run) if run.policy_of(role).name == policy.name]
        away = [sign for role in roles if (sign := _away(run, role, until))]
        if len(signs) > 1 or (away and (signs or not is_early)):
            found.append(TooLarge(policy.name, (*away, *signs)))
    return tuple(found)


def _held(run: Run, policy: str, first_low: int) -> bool:
    """Was the rate what it had been for half of the time until then?"""
    signal = run.update_metric("learning_rate", policy)
    value_U = np.asarray(signal.value_T, dtype=np.float64)
    path = Schedule.of(signal.step_T, value_U)
    pieces = [piece for piece in path.pieces if piece.first < first_low]
    if not pieces or pieces[-1].shape != "constant" or pieces[-1].start <= 0:
        return False
    return 2 * (min(pieces[-1].last, first_low) - pieces[-1].first) >= first_low - pieces[0].first


def _signs(run: Run, policy: str, first_low: int) -> list[str]:
    """What speaks for steps that were too long, but for the way that they led."""
    signs = []
    length, weight = (
        np.asarray(run.update_metric(name, policy).value_T, dtype=np.float64)
        for name in ("update_norm", "weight_norm")
    )
    before_U = run.update_metric("update_norm", policy).step_T < first_low
    if len(length) == len(weight) == len(before_U):
        relative = _median(
            length[before_U] / np.where(weight[before_U] > 0, weight[before_U], math.nan)
        )
        if relative > MAX_RELATIVE:
            signs.append(f"updates of {100 * relative:.1f} % of the weights' length")
    roles = [role for role in learners(run) if run.policy_of(role).name == policy]
    before_T = run.steps < first_low
    for role in roles:
        spread = _median(aligned(run.steps, run.ledger("ratio_std", role))[before_T])
        if spread > MAX_RATIO_SPREAD:
            signs.append(f"importance ratios of {role} spread by {spread:.2g}")
        clipped = _median(aligned(run.steps, run.ledger("clip_fraction", role))[before_T])
        if clipped > MAX_CLIPPED:
            signs.append(f"{100 * clipped:.0f} % of the tokens of {role} clipped")
    return signs


def _away(run: Run, role: str, first_low: int) -> str:
    """A sentence on the speed away from the reference, if it was beyond `MAX_SPEED`."""
    kl_T = aligned(run.steps, run.ledger("kl", role))
    known = np.isfinite(kl_T) & (run.steps < first_low)
    if known.sum() < 5:
        return ""
    step_T, kl_T = run.steps[known], kl_T[known]
    num = max(3, len(kl_T) // 10)
    distance = float(np.median(kl_T[-num:]) - np.median(kl_T[:num]))
    speed = distance / max(float(step_T[-1] - step_T[0]), 1.0)
    if distance < MIN_DISTANCE or speed < MAX_SPEED:
        return ""
    return (
        f"KL of {role} grew by {distance:.2g} nats per token in {int(step_T[-1] - step_T[0])} steps"
    )


def _median(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else math.nan
