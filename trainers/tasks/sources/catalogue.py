"""List the problem sources by task name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from gradlab.own_parts import is_own
from trainers.tasks.problem import Pool, Problem, Wanted
from trainers.tasks.sources import code, maths, user
from trainers.tasks.sources.embedded import arithmetic, programs
from trainers.tasks.sources.files import Place, Row, find_files, read_rows
from trainers.tasks.sources.own import load_own
from trainers.tasks.sources.reasoning import load_reasoning

Source = Callable[[Wanted], Pool]


def load(place: Place, read: Callable[[Row], Problem], wanted: Wanted) -> Pool:
    """Every row of the files, each a problem."""
    files = find_files(place, wanted.data)
    return Pool(tuple(map(read, read_rows(place, files))), files=tuple(files))


SOURCES: dict[str, Source] = {
    "arithmetic": lambda wanted: Pool(tuple(arithmetic(wanted.difficulty))),
    "programs": lambda wanted: Pool(tuple(programs())),
    "gsm8k": partial(load, maths.GSM8K, maths.read_gsm8k),
    "math": partial(load, maths.MATH, maths.read_math),
    "aime": partial(load, maths.AIME, maths.read_aime),
    "dapo-math": maths.load_dapo,
    "deepscaler": partial(load, maths.DEEPSCALER, maths.read_deepscaler),
    "humaneval": code.load_humaneval,
    "mbpp": code.load_mbpp,
    "deepcoder": code.load_deepcoder,
    "livecodebench": partial(load, code.LIVECODEBENCH, code.read_livecodebench),
    "file": partial(load, user.FILE, user.read_problem),
}


GENERATED = frozenset({"arithmetic", "programs"})
"""Tasks whose problems are made here, like those of reasoning-gym."""


def find_source(task: str) -> Source:
    """The source of a task.

    Raises ValueError for an unknown task, listing the known ones.
    """
    if task.startswith("rg:"):
        return load_reasoning
    if is_own(task):
        return load_own
    if task not in SOURCES:
        raise ValueError(
            f"task '{task}' is unknown; expected one of {', '.join(SOURCES)}, rg:NAME for a "
            "dataset of reasoning-gym, or one of your own as FILE.py:NAME or package.module:NAME"
        )
    return SOURCES[task]
