"""Say what detectors would need and an imported run lacks.

Legend: T steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from gradlab.arrays import Floats
from gradlab.interop.logs.history import History
from gradlab.interop.logs.naming.heldout import is_held_out
from gradlab.interop.logs.naming.targets import Target
from gradlab.records import RunMeta

ENOUGH = 0.5
"""Share of steps that a signal has to be known in, as in the diagnosis."""
LARGEST_SIZE = 5000
"""Of an evaluation, when it is guessed from its accuracies."""
BREAKDOWN = ("truncated", "parse_failures")
SIGNALS = (
    "kl",
    "entropy",
    "length_mean",
    "reward_mean",
    "reward_std",
    "own_accuracy",
    "clip_fraction",
    "ratio_std",
    "zero_variance_groups",
    "logprob_gap",
)


@dataclass(frozen=True)
class Lack:
    """Something that a run does not hold."""

    what: str
    needed_for: str


def lacks(
    meta: RunMeta,
    fields: Mapping[Target, Floats],
    answers_T: Floats,
    history: History,
    taken: Mapping[str, tuple[Target, ...]] | None = None,
) -> tuple[Lack, ...]:
    """Everything that will not be judged, and why."""
    wrong = _not_finite(history, taken or {})
    found = _evaluations(fields, answers_T, history)
    for role in meta.roles:
        is_alone = list(meta.routing.values()).count(meta.routing[role]) == 1
        purpose = "norms" if is_alone else "norms, shares and capture"
        found += _gradients(role, fields, wrong, purpose)
    shared = [
        [agent.role for agent in policy.agents]
        for policy in meta.policies
        if len(policy.agents) > 1
    ]
    for roles in shared:
        pairs = [
            f"{a} and {b}"
            for a, b in combinations(roles, 2)
            if not any(Target("Gradient", "cosine", pair) in fields for pair in ((a, b), (b, a)))
        ]
        if pairs:
            found.append(Lack(f"gradient cosine of {', '.join(pairs)}", "conflict and pull"))
        weights = [r for r in roles if Target("RoleLedger", "loss_weight", (r,)) not in fields]
        if weights:
            found.append(
                Lack(
                    f"share of the loss of {', '.join(weights)}",
                    "capture's null; equal shares are taken instead",
                )
            )
        found.append(Lack("the optimizer's step by role", "each role's share of it"))
    found.append(Lack("gradients of single agents", "amplification"))
    for role in meta.roles:
        found += _ledger(role, fields, wrong)
    return tuple(found)


def _not_finite(history: History, taken: Mapping[str, tuple[Target, ...]]) -> dict[Target, int]:
    """Steps at which a field was logged and is no finite number."""
    return {
        target: int(np.sum(history.is_logged[metric] & ~np.isfinite(history.metrics[metric])))
        for metric, targets in taken.items()
        if metric in history.is_logged
        for target in targets
    }


def _evaluations(
    fields: Mapping[Target, Floats], answers_T: Floats, history: History
) -> list[Lack]:
    accuracy_T = fields.get(Target("Evaluation", "accuracy"))
    verdict = "whether and when accuracy fell"
    if accuracy_T is None or not np.isfinite(accuracy_T).any():
        cut = [name for name in history.lost if is_held_out(name)]
        how = f"'{cut[0]}' was cut off in the log" if cut else "name it with --accuracy"
        return [Lack(f"held-out accuracy ({how})", verdict)]
    known = np.isfinite(accuracy_T)
    if not np.isfinite(answers_T[known]).all():
        size = guessed_size(accuracy_T[known])
        hint = f": they are multiples of 1/{size}, if that is it" if size else ""
        return [
            Lack(f"answers behind each accuracy (--eval-size{hint})", f"intervals, and {verdict}")
        ]
    return [Lack("answers by problem", "which problems were lost, and the noise that they share")]


def _gradients(
    role: str, fields: Mapping[Target, Floats], wrong: Mapping[Target, int], purpose: str
) -> list[Lack]:
    target = Target("Gradient", "norm", (role,))
    norm_T = fields.get(target)
    if norm_T is None:
        return [Lack(f"gradient norm of {role}", purpose)]
    return _thin(f"gradient norm of {role}", norm_T, wrong.get(target, 0), purpose)


def _ledger(role: str, fields: Mapping[Target, Floats], wrong: Mapping[Target, int]) -> list[Lack]:
    found = []
    for names, purpose in ((BREAKDOWN, "role breakdown"), (SIGNALS, "what moved first")):
        absent = [name for name in names if Target("RoleLedger", name, (role,)) not in fields]
        if absent:
            found.append(Lack(f"{role}: {', '.join(absent)}", purpose))
        for name in names:
            target = Target("RoleLedger", name, (role,))
            if target in fields:
                found += _thin(f"{role}: {name}", fields[target], wrong.get(target, 0), purpose)
    return found


def _thin(what: str, value_T: Floats, num_wrong: int, purpose: str) -> list[Lack]:
    """A field that too few steps know; `num_wrong` of the others hold what is not finite."""
    known = int(np.isfinite(value_T).sum())
    if known >= ENOUGH * len(value_T):
        return []
    absent = len(value_T) - known
    why = f" (logged, but not finite, in {num_wrong})" if num_wrong else ""
    return [Lack(f"{what} in {absent} of {len(value_T)} steps{why}", purpose)]


def granularity(rates: Floats, size: int) -> float:
    """How far accuracies are from multiples of 1 / size, in answers; rounding of print allowed."""
    if not len(rates):
        return 0.0
    return float(np.max(np.abs(rates * size - np.rint(rates * size)) - 5e-4 * size).clip(0))


def guessed_size(rates: Floats) -> int | None:
    """The smallest number of answers that all accuracies are shares of, if that is no accident."""
    different = np.unique(rates[(rates > 0) & (rates < 1)])
    if len(different) < 3:
        return None
    for precision in (1e-6, 5.1e-4):
        for size in range(2, LARGEST_SIZE):
            chance = (2 * precision * size) ** len(different) * size
            if chance > 1e-3:
                break
            if np.all(np.abs(different * size - np.rint(different * size)) <= precision * size):
                return size
    return None
