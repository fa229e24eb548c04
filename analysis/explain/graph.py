"""Declare which kinds of signal can explain which, and drop the explained from the candidates."""

from __future__ import annotations

from dataclasses import replace

from analysis.findings import SignalVerdict
from analysis.signals import Measured

PARENTS: dict[str, tuple[str, ...]] = {
    "grad_norm": ("learning_rate", "logprob_gap"),
    "conflict": ("learning_rate",),
    "share": ("grad_norm", "conflict"),
    "pull": ("share", "grad_norm", "conflict"),
    "update": ("share", "grad_norm"),
    "update_norm": ("learning_rate", "grad_norm", "logprob_gap"),
    "kl": ("update_norm", "update", "share", "pull"),
    "ratio_std": ("update_norm", "logprob_gap"),
    "clip_fraction": ("ratio_std",),
    "entropy": ("update_norm", "kl"),
    "drift": ("kl", "update_norm", "share"),
    "length_mean": ("kl", "entropy", "drift"),
    "truncated": ("length_mean",),
    "parse_failures": ("kl", "entropy", "drift", "length_mean", "truncated"),
    "reward_std": ("parse_failures", "entropy", "kl"),
    "zero_variance_groups": ("reward_std", "entropy", "parse_failures"),
}
"""Which kinds of signal can explain a kind, directly. An assumption, declared: it only removes
candidates that an earlier candidate explains, it never adds one."""


def ancestors(kind: str) -> frozenset[str]:
    """Kinds that explain `kind`, directly or through others."""
    found: set[str] = set()
    waiting = list(PARENTS.get(kind, ()))
    while waiting:
        parent = waiting.pop()
        if parent not in found:
            found.add(parent)
            waiting.extend(PARENTS.get(parent, ()))
    return frozenset(found)


def undominated(verdicts: list[tuple[Measured, SignalVerdict]]) -> list[SignalVerdict]:
    """Drop from the candidates those that another candidate of the same policy explains.

    The other one must not have moved later, as far as the two onsets can be told apart; the graph
    has no cycles, so somebody always remains.
    """

    candidates = [(m, v) for m, v in verdicts if v.is_candidate]
    result = []
    for measured, verdict in verdicts:
        explained_by = [
            other.title
            for parent, other in candidates
            if verdict.is_candidate
            and parent.policy == measured.policy
            and parent.kind.name in ancestors(measured.kind.name)
            and other.onset is not None
            and verdict.onset is not None
            and other.onset.lower <= verdict.onset.upper
        ]
        if explained_by:
            note = f"precedes, but {explained_by[0]} moved no later and can explain it"
            verdict = replace(verdict, is_candidate=False, note=note)
        result.append(verdict)
    return result
