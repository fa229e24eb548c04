"""Turn graded answers to an evaluation dataset into evaluation records: a row is a problem.

Legend: P problems, S samples, R roles.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradlab.ledger import mean
from gradlab.records import Agent, EvalRecord, RoleEvaluation


@dataclass(frozen=True)
class Graded:
    """One answer."""

    key: str
    """Of the row of the dataset, see `Columns.key`."""
    role: str
    correct: float
    """0, 1; NaN: not graded."""
    tokens: int
    is_truncated: bool


class HeldOut:
    """The rows of an evaluation dataset."""

    def __init__(self, keys: Sequence[str], samples_per_row: int) -> None:
        self.problems = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        """Key of a row -> its place; equal rows are one problem with more samples."""
        self.num_samples = max(Counter(keys).values(), default=1) * samples_per_row

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"eval[{i}]" for i in range(len(self.problems)))

    def record(self, step: int, answers: Sequence[Graded], agents: Sequence[Agent]) -> EvalRecord:
        """The record of one evaluation; answers beyond the samples of a row are passed over."""
        roles = [*dict.fromkeys(agent.role for agent in agents)]
        correct_PS = np.full((len(self.problems), self.num_samples), 255, dtype=np.uint8)
        filled = np.zeros(len(self.problems), dtype=np.int64)
        kept: list[Graded] = []
        for answer in answers:
            problem = self.problems[answer.key]
            if filled[problem] == self.num_samples:
                continue  # a sampler fills the last batch with rows that came before
            if not math.isnan(answer.correct):
                correct_PS[problem, filled[problem]] = int(answer.correct)
            filled[problem] += 1
            kept.append(answer)
        own: dict[tuple[str, str], list[float]] = defaultdict(list)
        for answer in kept:
            own[answer.role, answer.key].append(answer.correct)
        own_RP = np.full((len(roles), len(self.problems)), np.nan)
        for (role, key), correct in own.items():
            own_RP[roles.index(role), self.problems[key]] = mean(np.array(correct))
        by_role = {role: [a for a in kept if a.role == role] for role in roles}
        evaluated = {role: role_evaluation(mine) for role, mine in by_role.items() if mine}
        return EvalRecord(step, correct_PS, evaluated, own_RP)


def role_evaluation(answers: Sequence[Graded]) -> RoleEvaluation:
    tokens = np.array([answer.tokens for answer in answers])
    return RoleEvaluation(
        own_accuracy=mean(np.array([answer.correct for answer in answers])),
        length_mean=float(tokens.mean()),
        length_p95=float(np.percentile(tokens, 95)),
        truncated=float(np.mean([answer.is_truncated for answer in answers])),
    )
