"""Name the runs of a figure by what differs between them, and diagnose each once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache
from pathlib import PurePath

import numpy as np

from analysis.diagnosis import diagnose
from analysis.findings import Diagnosis
from gradlab.run_directory import run_name
from gradlab.store.run import Run

COLUMNS = ("run", "workflow", "model", "task", "routing")
"""What opens every row of a table of numbers; `identity` fills it."""


@dataclass(frozen=True)
class Cell:
    """The place of a run in the experiment matrix."""

    workflow: str
    model: str
    task: str
    routing: str
    """Last, so that runs which differ in nothing else stand beside each other."""


def cell_of(run: Run) -> Cell:
    """Workflow, model, task and routing of a run, fit for a label."""
    meta = run.meta
    model = " + ".join(PurePath(name).name or name for name in meta.all_models)
    return Cell(meta.workflow.replace("_", "-"), model, meta.task, routing_of(run))


def routing_of(run: Run) -> str:
    """'shared' (one policy), 'isolated' (one per role), 'agents' (one per agent) or 'partial'; and
    which roles are frozen."""
    policies, trained = list(run.meta.routing.values()), len(run.roles) - len(run.meta.frozen)
    num_policies = len(set(policies))
    kind = "shared" if num_policies == 1 else "partial"
    if num_policies == len(policies) > 1:
        kind = "isolated" if len(policies) == trained else "agents"
    return f"{kind}, {', '.join(run.meta.frozen)} frozen" if run.meta.frozen else kind


def folder(run: Run) -> str:
    """The run's folder, as its user named it."""
    return run_name(run.path.resolve())


def identity(run: Run) -> tuple[str, str, str, str, str]:
    """The values of `COLUMNS`."""
    cell = cell_of(run)
    return folder(run), cell.workflow, cell.model, cell.task, cell.routing


def titles(
    runs: Sequence[Run], *, among: Sequence[Run] | None = None, without: Sequence[str] = ()
) -> list[str]:
    """What tells each run from the others: the differing parts of its cell, or its folder.

    `among` is the whole set of which `runs` is a page; `without` leaves parts out that the figure
    shows elsewhere.
    """
    everyone = [cell_of(run) for run in (among or runs)]
    parts = [
        part
        for part in Cell.__dataclass_fields__
        if part not in without
        and (len(everyone) == 1 or len({getattr(cell, part) for cell in everyone}) > 1)
    ]
    times = Counter(everyone)
    named = []
    for run in runs:
        cell = cell_of(run)
        words = [getattr(cell, part) for part in parts]
        if times[cell] > 1 or not words:
            words = [*dict.fromkeys((cell.routing, folder(run)))]
        named.append(" · ".join(words))
    return named


def order(run: Run) -> tuple[str, ...]:
    """Sorting key: by cell, then by folder."""
    return (*astuple(cell_of(run)), folder(run))


class NothingToShowError(ValueError):
    """None of the runs has what a figure shows."""


def split(
    name: str, runs: Sequence[Run], missing: Callable[[Run], str | None]
) -> tuple[list[Run], str]:
    """Runs that the figure `name` can show, and a footnote on the others."""
    reasons = {run: missing(run) for run in runs}
    shown = [run for run in runs if reasons[run] is None]
    if not shown:
        raise NothingToShowError(f"{name}: {_gathered(reasons)}")
    return shown, f"Not shown: {_gathered(reasons)}" if len(shown) < len(runs) else ""


def _gathered(reasons: dict[Run, str | None]) -> str:
    """'a, b (no evaluations); 7 runs (no gradients recorded)'."""
    by_reason: dict[str, list[str]] = {}
    for run, reason in reasons.items():
        if reason is not None:
            by_reason.setdefault(reason, []).append(folder(run))
    return "; ".join(
        f"{', '.join(names) if len(names) <= 3 else f'{len(names)} runs'} ({reason})"
        for reason, names in by_reason.items()
    )


def all_roles(runs: Sequence[Run]) -> tuple[str, ...]:
    """Roles of all these runs: what a figure's colours are told apart among."""
    return tuple(dict.fromkeys(role for run in runs for role in run.roles))


def has_gradients(run: Run) -> bool:
    """At least one update was probed, or the norm of a role was imported."""
    return any(np.isfinite(run.norm(role).value_T).any() for role in run.roles if run.agents(role))


@lru_cache(maxsize=256)
def diagnosed(run: Run) -> Diagnosis:
    """The run's diagnosis; two figures and their tables show the same one."""
    return diagnose(run)
