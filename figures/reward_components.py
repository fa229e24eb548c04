"""Draw what the reward of every role is the sum of, a line per component."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from figures.cells import COLUMNS, identity, split, titles
from figures.style import (
    FAINT,
    INK,
    PALE,
    ROLE_MARKS,
    Dash,
    few_ticks,
    footnote,
    legend,
    paper,
    running_median,
    small_multiples,
    title,
)
from figures.tables import Table
from gradlab.arrays import Floats
from gradlab.palette import FALLBACK_COLORS
from gradlab.store.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class RewardComponentsFigure:
    """One panel per run and role: the mean of every component over the role's turns, and in grey
    their sum, the reward."""

    name: str = "reward_components"
    per_page: int = 4

    def missing(self, run: Run) -> str | None:
        """Why the run has nothing to show; None if it has."""
        if not run.meta.reward_components:
            return "the reward has no named components"
        return None if _roles(run) else "no step was recorded"

    def draw(self, runs: Sequence[Run], among: Sequence[Run] | None = None) -> Figure:
        """The panels of `runs`, a page of `among`."""
        shown, absent = split(self.name, runs, self.missing)
        everyone = [run for run in among or runs if self.missing(run) is None]
        looks = _looks(everyone)
        panels_of = [(run, role) for run in shown for role in _roles(run)]
        of_run = dict(zip(shown, titles(shown, among=everyone), strict=True))
        names = [
            role if len(everyone) == 1 else f"{role} · {of_run[run]}" for run, role in panels_of
        ]
        here = [name for name in looks if any(name in run.meta.reward_components for run in shown)]
        with paper():
            head = 0.13 + 0.12 * math.ceil((len(here) + 1) / 3)
            figure, panels = small_multiples(names, "mean reward", head=head)
            for axes, (run, role), name in zip(panels, panels_of, names, strict=True):
                self._panel(axes, run, role, looks)
                title(axes, name, is_wide=len(names) == 1)
            handles = [_handle(name, *looks[name]) for name in here]
            legend(figure, [*handles, _handle("sum", PALE, "solid", 2.2)], columns=3)
            footnote(figure, absent)
            return figure

    def table(self, runs: Sequence[Run]) -> Table:
        """One row per run, role, component and step."""
        rows = [
            (*identity(run), role, name, int(step), float(value))
            for run in runs
            if self.missing(run) is None
            for role in _roles(run)
            for name, signal in run.reward_components(role).items()
            for step, value in zip(signal.step_T, signal.value_T, strict=True)
        ]
        return Table((*COLUMNS, "role", "component", "step", "mean"), list(rows))

    def _panel(self, axes: Axes, run: Run, role: str, looks: dict[str, tuple[str, Dash]]) -> None:
        window = max(1, len(run.steps) // 40)
        marker = "o" if len(run.steps) == 1 else None  # of one step there is no line
        components = run.reward_components(role)
        parts_CT = np.array([signal.value_T for signal in components.values()])
        sum_T = np.where(np.isfinite(parts_CT).all(axis=0), np.nansum(parts_CT, axis=0), np.nan)
        middle_T = running_median(sum_T, window)
        axes.plot(run.steps, middle_T, color=PALE, linewidth=2.2, marker=marker, markersize=5)
        for name, signal in components.items():
            color, dash = looks[name]
            value_T: Floats = np.asarray(signal.value_T, dtype=np.float64)
            if window > 1:
                axes.plot(run.steps, value_T, color=color, linewidth=0.4, alpha=0.3)
            middle_T = running_median(value_T, window)
            axes.plot(run.steps, middle_T, color=color, linestyle=dash, marker=marker)
        axes.axhline(0, color=INK, linewidth=0.3, zorder=0)
        few_ticks(axes, run.steps)


def _roles(run: Run) -> list[str]:
    """Roles of which some component was measured."""
    return [
        role
        for role in run.roles
        if any(np.isfinite(s.value_T).any() for s in run.reward_components(role).values())
    ]


def _looks(runs: Sequence[Run]) -> dict[str, tuple[str, Dash]]:
    """Component -> colour and dash, the same on every page."""
    names = dict.fromkeys(name for run in runs for name in run.meta.reward_components)
    colors = [color for color in FALLBACK_COLORS if color != FAINT]
    dashes = [dash for dash, _ in ROLE_MARKS.values()]
    return dict(zip(names, zip(cycle(colors), cycle(dashes), strict=False), strict=False))


def _handle(name: str, color: str, dash: Dash, width: float = 1.1) -> object:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=color, linestyle=dash, linewidth=width, label=name)
