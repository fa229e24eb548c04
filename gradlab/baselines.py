"""Say what each advantage estimator compares a reward with, for those who must not load it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Baseline:
    """What an estimator takes off a reward, and how far it looks."""

    is_of_group: bool
    """The baseline comes from the group: equal rewards of a group give no gradient."""
    is_group_alone: bool
    """It looks at one group at a time, and not at the batch for its scale either."""


BASELINES: dict[str, Baseline] = {
    "grpo": Baseline(True, True),
    "dr-grpo": Baseline(True, True),
    "rloo": Baseline(True, True),
    "reinforce": Baseline(False, False),
    "reinforce++": Baseline(False, False),
    "reinforce++-baseline": Baseline(True, False),
    "lite-ppo": Baseline(True, False),
}
"""By the name in --advantage; nobody knows what an estimator of one's own does."""
CENTRED = tuple(name for name, baseline in BASELINES.items() if baseline.is_of_group)
BY_GROUP = tuple(name for name, baseline in BASELINES.items() if baseline.is_group_alone)
