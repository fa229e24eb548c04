"""Draw the gradient norm of every role over training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from analysis.signals import learners
from figures.cells import COLUMNS, all_roles, has_gradients, identity, split, titles
from figures.style import (
    few_ticks,
    footnote,
    legend,
    paper,
    role_handle,
    role_line,
    small_multiples,
    title,
)
from figures.tables import Table
from gradlab.store.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class NormsFigure:
    """One panel per run, norms before clipping on a log axis shared by all panels."""

    name: str = "norms"
    per_page: int = 12

    def missing(self, run: Run) -> str | None:
        """Why the run has nothing to show; None if it has."""
        return None if has_gradients(run) else "no gradients recorded"

    def draw(self, runs: Sequence[Run], among: Sequence[Run] | None = None) -> Figure:
        """The panels of `runs`, a page of `among`."""
        shown, absent = split(self.name, runs, self.missing)
        names, everybody = titles(shown, among=among or runs), all_roles(among or runs)
        with paper():
            roles = roles_of(shown)
            head = 0.13 + 0.12 * math.ceil(len(roles) / 3)
            remarks = [_zeros(run) for run in shown]
            figure, panels = small_multiples(
                names, "gradient norm", head=head, has_verdicts=any(remarks)
            )
            for axes, run, name, remark in zip(panels, shown, names, remarks, strict=True):
                self._panel(axes, run, everybody)
                title(axes, name, remark, is_wide=len(shown) == 1)
            handles = [role_handle(role, everybody) for role in roles]
            legend(figure, handles, columns=min(3, len(roles)))
            footnote(figure, absent)
            return figure

    def table(self, runs: Sequence[Run]) -> Table:
        """One row per run, role and step."""
        rows = [
            (*identity(run), role, int(step), float(value))
            for run in runs
            for role in learners(run)
            for signal in (run.norm(role),)
            for step, value in zip(signal.step_T, signal.value_T, strict=True)
        ]
        return Table((*COLUMNS, "role", "step", "norm"), list(rows))

    def _panel(self, axes: Axes, run: Run, everybody: Sequence[str]) -> None:
        axes.set_yscale("log")
        for role in learners(run):
            signal = run.norm(role)
            value_T = np.asarray(signal.value_T, dtype=np.float64)
            role_line(axes, role, signal.step_T, np.where(value_T > 0, value_T, np.nan), everybody)
        few_ticks(axes, run.steps)


def _zeros(run: Run) -> str | None:
    """What a log axis cannot show: steps without any reward differences have no gradient."""
    num = max(int(np.sum(run.norm(role).value_T == 0)) for role in learners(run))
    return f"no gradient in {num} of {len(run.steps)} steps" if num else None


def roles_of(runs: Sequence[Run]) -> list[str]:
    """All trained roles of the runs, in the order in which they speak."""
    return list(dict.fromkeys(role for run in runs for role in learners(run)))
