"""Make problems with a dataset of reasoning-gym: `rg:chain_sum`, `rg:gsm_symbolic`, a hundred more.

They are made in a process with a fixed hash seed, since some generators iterate over sets.
"""

from __future__ import annotations

import importlib.util
import json
from typing import Any

from trainers.grading.pool import GradingPool
from trainers.tasks.problem import Pool, Problem, Wanted

SIZE = 1000
"""Training problems, without the option size."""
SPARE = 4
"""Times as many held-out problems are made as are wanted: small datasets repeat themselves."""
GENERATION_SECONDS = 3600


def load_reasoning(wanted: Wanted) -> Pool:
    """Train and held-out problems of different generator seeds, without a question in common.

    Options are those of the dataset's configuration, and `size`, the number of training problems.
    """
    if importlib.util.find_spec("reasoning_gym") is None:
        raise ValueError(
            f"task '{wanted.task}' needs reasoning-gym, which is not installed; "
            "pip install 'gradlab[reasoning]' (needs a C compiler)"
        )
    options = dict(wanted.options)
    size = options.pop("size", SIZE)
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"--task-options size {size}: expected a number of problems, 1 or more")
    with GradingPool(processes=1) as pool:
        spare = SPARE * wanted.heldout  # what repeats a question is left out
        many = _generate(pool, wanted, 2 * wanted.seed + 1, spare, options)
        heldout = _unique(many)[: wanted.heldout]
        train = _unique(_generate(pool, wanted, 2 * wanted.seed, size, options))
    seen = {problem.question for problem in heldout}
    return Pool(tuple(p for p in train if p.question not in seen), heldout=tuple(heldout))


def _unique(problems: list[Problem]) -> list[Problem]:
    """Without repeated questions: small datasets run out of them."""
    return [*{problem.question: problem for problem in reversed(problems)}.values()][::-1]


def _generate(
    pool: GradingPool, wanted: Wanted, seed: int, size: int, options: dict[str, Any]
) -> list[Problem]:
    name = wanted.task.removeprefix("rg:")
    request = {
        "generate": {"dataset": name, "size": size, "seed": seed, "options": options},
        "cpu_seconds": GENERATION_SECONDS,
    }
    [reply] = pool([request])
    if "entries" not in reply:
        given = f" with options {options}" if options else ""
        raise ValueError(
            f"task '{wanted.task}'{given}: reasoning-gym says {reply['reason']}; expected the name "
            "of one of its datasets, and options of its configuration"
        )
    return [
        Problem(
            f"{name}-{seed}-{index}",
            "math",
            entry["question"],
            entry["answer"],
            "reasoning",
            entry=json.dumps({"dataset": name, "options": options, "entry": entry["entry"]}),
        )
        for index, entry in enumerate(reply["entries"])
    ]
