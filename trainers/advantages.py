"""Turn the rewards of a policy's turns into advantages, by name or by a function of one's own.

Legend: n turns of one policy in one step, K turns of one group. An estimator takes reward_n and the
number of each turn's group, and gives advantage_n: those that look at one group only are lifted by
`by_group`, those that look at the whole batch need no more. Another estimator is a function here,
a line in `estimators` and one in `gradlab.baselines`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradlab.arrays import Floats
from gradlab.baselines import BY_GROUP
from gradlab.own_parts import (
    Part,
    PartError,
    failed_at,
    file_of,
    in_words,
    is_own,
    load_part,
    num_required,
    where_of,
)

OfGroup = Callable[[Floats], Floats]
Estimator = Callable[[Floats, NDArray[np.int64]], Floats]

EPSILON = 1e-6
"""Added to the standard deviation, as in verl."""


def grpo(reward_K: Floats) -> Floats:
    """A_i = (r_i - mean(r)) / (std(r) + 1e-6), std with ddof 1 (arXiv 2402.03300, 4.1.2)."""
    centred: Floats = reward_K - reward_K.mean()
    return np.asarray(centred / (reward_K.std(ddof=1) + EPSILON))


def dr_grpo(reward_K: Floats) -> Floats:
    """A_i = r_i - mean(r): without std, easy and hard problems weigh alike (arXiv 2503.20783)."""
    centred: Floats = reward_K - reward_K.mean()
    return centred


def rloo(reward_K: Floats) -> Floats:
    """A_i = r_i - 1 / (K - 1) sum_{j != i} r_j: leave one out (arXiv 2402.14740, equation 8)."""
    others = (reward_K.sum() - reward_K) / (len(reward_K) - 1)
    return np.asarray(reward_K - others)


def reinforce(reward_n: Floats, group_n: NDArray[np.int64]) -> Floats:
    """A_i = r_i: no baseline (Williams 1992)."""
    return reward_n.copy()


def reinforce_plus_plus(reward_n: Floats, group_n: NDArray[np.int64]) -> Floats:
    """A_i = (r_i - mean(r)) / (std(r) + 1e-6) over the whole batch, std with ddof 0.

    arXiv 2501.03262, equation 9, without the KL in the reward: --kl-coefficient is in the loss. The
    batch is what one policy trains on in a step.
    """
    return np.asarray((reward_n - reward_n.mean()) / (reward_n.std() + EPSILON))


def reinforce_plus_plus_baseline(reward_n: Floats, group_n: NDArray[np.int64]) -> Floats:
    """B_i = r_i - mean(r of its group), then A_i = (B_i - mean(B)) / (std(B) + 1e-6) over all.

    arXiv 2501.03262, section 3.2: the group gives the baseline, the batch the scale.
    """
    return reinforce_plus_plus(by_group(dr_grpo, "zero")(reward_n, group_n), group_n)


def lite_ppo(reward_n: Floats, group_n: NDArray[np.int64]) -> Floats:
    """A_i = (r_i - mean(r of its group)) / (std(r) + 1e-6), std over the batch with ddof 0.

    arXiv 2508.08221, section 5: the group gives the baseline, the spread of all rewards the scale.
    """
    return np.asarray(by_group(dr_grpo, "zero")(reward_n, group_n) / (reward_n.std() + EPSILON))


def by_group(of_group: OfGroup, singleton: str) -> Estimator:
    """An estimator that looks at one group at a time.

    A group of one has nothing to be compared with: 0, or its raw reward with `singleton='reward'`.
    """

    def estimate(reward_n: Floats, group_n: NDArray[np.int64]) -> Floats:
        advantage_n = np.zeros(len(reward_n))
        for group in dict.fromkeys(group_n.tolist()):
            members = np.flatnonzero(group_n == group)
            if len(members) > 1:
                advantage_n[members] = of_group(reward_n[members])
            elif singleton == "reward":
                advantage_n[members] = reward_n[members]
        return advantage_n

    return estimate


def estimators(singleton: str) -> dict[str, Estimator]:
    """Every estimator by its name in --advantage."""
    return {
        "grpo": by_group(grpo, singleton),
        "dr-grpo": by_group(dr_grpo, singleton),
        "rloo": by_group(rloo, singleton),
        "reinforce": reinforce,
        "reinforce++": reinforce_plus_plus,
        "reinforce++-baseline": reinforce_plus_plus_baseline,
        "lite-ppo": lite_ppo,
    }


def find_estimator(name: str, *, singleton: str, normalize_std: bool = True) -> Estimator:
    """The estimator of a name; `grpo` without `normalize_std` is `dr-grpo`.

    Raises ValueError for one that is not there, listing what is.
    """
    if is_own(name):
        part = load_part("--advantage", name, is_estimator, EXPECTED)
        return own_estimator(part, singleton)
    known = estimators(singleton)
    if name not in known:
        raise ValueError(
            f"--advantage {name} is unknown; expected one of {', '.join(known)}, or "
            "one of your own as FILE.py:NAME or package.module:NAME"
        )
    if singleton == "reward" and name not in BY_GROUP:
        raise ValueError(
            f"--singleton reward is for estimators by group ({', '.join(BY_GROUP)}); --advantage "
            f"{name} does not ask what a group of one gets; expected --singleton zero"
        )
    if normalize_std:
        return known[name]
    if name not in ("grpo", "dr-grpo"):
        raise ValueError(
            f"--no-normalize-std is GRPO without its standard deviation, and --advantage {name} "
            "has none to leave out; expected one of the two options"
        )
    return known["dr-grpo"]


EXPECTED = "a function of the rewards of a group, or of (rewards, group numbers) of the whole batch"


def is_estimator(value: Any) -> bool:
    """Whether it is a function of one array or of two."""
    return inspect.isfunction(value) and num_required(value) in (1, 2)


def own_estimator(part: Part, singleton: str) -> Estimator:
    """An estimator of one's own, its result checked."""
    function = part.value

    def of_group(reward_K: Floats) -> Floats:
        return _shaped(np.asarray(function(reward_K), dtype=np.float64), reward_K, part)

    inner = by_group(of_group, singleton) if num_required(function) == 1 else function

    def estimate(reward_n: Floats, group_n: NDArray[np.int64]) -> Floats:
        try:
            advantage_n = np.asarray(inner(reward_n.copy(), group_n.copy()), dtype=np.float64)
        except PartError:
            raise
        except Exception as error:  # whatever a function of one's own raises
            raise PartError(
                f"{failed_at(error, file_of(function))}: --advantage {part.name} raised "
                f"{in_words(error)}; expected an array as long as its rewards"
            ) from error
        return _shaped(advantage_n, reward_n, part)

    return estimate


def _shaped(advantage_n: Floats, reward_n: Floats, part: Part) -> Floats:
    """The advantages; raises PartError unless there is a finite one for every reward."""
    if advantage_n.shape != reward_n.shape or not np.isfinite(advantage_n).all():
        bad = int((~np.isfinite(advantage_n)).sum())
        got = f"shape {advantage_n.shape}" + (f", {bad} not finite" if bad else "")
        raise PartError(
            f"{where_of(part.value)}: --advantage {part.name} gave {got} for {len(reward_n)} "
            "rewards; expected one finite number for each"
        )
    return advantage_n
