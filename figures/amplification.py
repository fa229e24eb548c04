"""Draw what the parallel agents of a role share, and how far they walk, against their number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import stdtrit

from analysis.detectors.amplification import AmplificationTest, Components, path_length
from analysis.signals import aligned, routed
from figures.cells import COLUMNS, all_roles, identity, split
from figures.style import FAINT, INK, blank, footnote, legend, note, paper, role_style
from figures.tables import Table
from gradlab.arrays import Floats
from gradlab.store.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = (
    ("signal", "common direction"),
    ("prompt", "shared prompt"),
    ("episode", "shared episode"),
    ("deff", "design effect"),
    ("updates", "optimizer steps"),
    ("path", "path length"),
)
"""Quantity and title of each panel."""


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; NaN bounds when the run cannot say."""

    value: float
    lower: float = math.nan
    upper: float = math.nan


@dataclass(frozen=True)
class Point:
    """One role of one run."""

    run: Run
    role: str
    num_agents: int
    estimates: dict[str, Estimate]
    """By quantity; absent when not measured."""


@dataclass(frozen=True)
class AmplificationFigure:
    """Six panels over N, one point per role and run; bars are 95 % intervals over steps.

    Shares are of a row's gradient energy, pooled over steps like in the diagnosis; optimizer steps
    and path length are per training step, relative to the run's one-agent roles.
    """

    name: str = "amplification"
    per_page: int = 1000
    min_steps: int = 10
    """Steps with row statistics below which shares are not shown: the diagnosis' own limit."""
    block: int = 5
    """Neighbouring steps averaged before an interval, since they are alike."""

    def missing(self, run: Run) -> str | None:
        """Why the run has nothing to show; None if it has."""
        parallel = [role for role in routed(run) if len(run.agents(role)) > 1]
        if not parallel:
            has_siblings = any(len(run.agents(role)) > 1 for role in run.roles)
            if has_siblings:
                return "parallel agents have policies of their own: their gradients have no angle"
            return "one agent per role: nothing is parallel"
        if any(point.estimates for point in self.points(run) if point.num_agents > 1):
            return None
        return f"fewer than {self.min_steps} steps with row statistics"

    def draw(self, runs: Sequence[Run], among: Sequence[Run] | None = None) -> Figure:
        """All runs in the same panels."""
        shown, absent = split(self.name, runs, self.missing)
        with paper():
            everybody = all_roles(among or runs)
            points = [point for run in shown for point in self.points(run)]
            figure = blank(3.0)
            grid = figure.subplots(2, 3)
            for axes in grid[0, 1:]:
                axes.sharey(grid[0, 0])
                axes.tick_params(labelleft=False)
            for axes, (quantity, head) in zip(grid.ravel(), PANELS, strict=True):
                axes.set_title(head)
                self._panel(axes, points, quantity, everybody)
            grid[0, 0].set_ylabel("% of row energy")
            grid[1, 0].set_ylabel("DEFF")
            grid[1, 1].set_ylabel("× one-agent role")
            grid[1, 1].set_xlabel("agents N of the role")
            legend(figure, _handles(points, everybody), columns=3)
            footnote(figure, absent)
            return figure

    def table(self, runs: Sequence[Run]) -> Table:
        """One row per run, role and quantity; shares and ratios, not percent."""
        rows = [
            (
                *(*identity(run), point.role, point.num_agents, quantity),
                *(estimate.value, estimate.lower, estimate.upper),
            )
            for run in runs
            for point in self.points(run)
            for quantity, estimate in point.estimates.items()
        ]
        columns = ("role", "agents", "quantity", "value", "lower", "upper")
        return Table((*COLUMNS, *columns), list(rows))

    def points(self, run: Run) -> list[Point]:
        """Every trained role of the run, with what could be measured."""
        return [
            Point(
                run,
                role,
                len(run.agents(role)),
                {**self._shares(run, role), **self._paths(run, role)},
            )
            for role in routed(run)
        ]

    def _shares(self, run: Run, role: str) -> dict[str, Estimate]:
        def read(name: str) -> Floats:
            return aligned(run.steps, run.row_statistic(name, role))

        total, signal, prompt, episode = map(read, ("total", "signal", "prompt", "episode"))
        num_agents = len(run.agents(role))
        known = (total > 0) & np.isfinite(signal)
        if num_agents > 1:
            known &= np.isfinite(prompt)
        if known.sum() < self.min_steps:
            return {}
        measured = {"signal": self._mean(signal[known] / total[known])}
        if num_agents > 1:
            measured["prompt"] = self._mean(prompt[known] / total[known])
            if np.isfinite(episode[known]).all():
                measured["episode"] = self._mean(episode[known] / total[known])
            test = AmplificationTest(min_steps=self.min_steps, block=self.block)
            parts = Components(total, signal, prompt, episode, read("crosscov"))
            coherence = test.measure(parts, num_agents)
            if coherence:
                measured["deff"] = Estimate(
                    coherence.deff, coherence.deff_lower, coherence.deff_upper
                )
        return measured

    def _paths(self, run: Run, role: str) -> dict[str, Estimate]:
        single = [other for other in run.roles if len(run.agents(other)) == 1]
        if not single or len(run.agents(role)) == 1:
            return {}
        measured = {}
        for quantity in ("updates", "path"):
            mine = _steps(run, role, quantity)
            theirs = np.mean([_steps(run, other, quantity) for other in single], axis=0)
            known = np.isfinite(mine) & np.isfinite(theirs)
            if known.any() and theirs[known].sum() > 0:
                measured[quantity] = self._ratio(mine[known], theirs[known])
        return measured

    def _mean(self, value_T: Floats) -> Estimate:
        return self._ratio(value_T, np.ones(len(value_T)))

    def _ratio(self, above_T: Floats, below_T: Floats) -> Estimate:
        """Ratio of sums, with a jackknife over blocks of steps."""
        value = float(above_T.sum() / below_T.sum())
        num_blocks = len(above_T) // self.block
        if num_blocks < 2:
            return Estimate(value)
        starts = np.arange(num_blocks) * self.block  # the last block takes the remainder
        above_B = np.add.reduceat(above_T, starts)
        below_B = np.add.reduceat(below_T, starts)
        without = (above_T.sum() - above_B) / (below_T.sum() - below_B)
        variance = (num_blocks - 1) / num_blocks * float(((without - without.mean()) ** 2).sum())
        half = float(stdtrit(num_blocks - 1, 0.975)) * math.sqrt(variance)
        return Estimate(value, value - half, value + half)

    def _panel(
        self, axes: Axes, points: list[Point], quantity: str, everybody: Sequence[str]
    ) -> None:
        shown = [point for point in points if quantity in point.estimates]
        scale = 100.0 if quantity in ("signal", "prompt", "episode") else 1.0
        sizes = sorted({point.num_agents for point in points})
        gap = float(min(np.diff(sizes))) if len(sizes) > 1 else 1.5
        if not shown:
            note(axes, "not measured")
        else:
            reference = 0.0 if scale == 100.0 else 1.0
            axes.axhline(reference, color=FAINT, linewidth=0.5)
            axes.set_xlim(sizes[0] - 0.45 * gap, sizes[-1] + 0.45 * gap)
            axes.set_xticks(sizes)
        if shown and quantity == "deff":
            many = np.array([1.0, sizes[-1] + 0.45 * gap])
            axes.plot(many, many, color=FAINT, linewidth=0.6, linestyle=(0, (4, 2)), zorder=0)
        for point in shown:
            peers = [p for p in shown if p.num_agents == point.num_agents]
            peers.sort(key=lambda peer: (peer.role, _is_alone(peer)))
            spread = min(0.6, 0.08 * (len(peers) - 1)) * gap
            shift = spread * (peers.index(point) / max(len(peers) - 1, 1) - 0.5)
            estimate, style = point.estimates[quantity], role_style(point.role, everybody)
            x, y = point.num_agents + shift, scale * estimate.value
            if math.isfinite(estimate.lower):
                bar = (scale * estimate.lower, scale * estimate.upper)
                axes.plot([x, x], bar, color=style.color, linewidth=0.8, solid_capstyle="butt")
            face = "white" if _is_alone(point) else style.color
            axes.plot([x], [y], style.marker, color=style.color, mfc=face, ms=3.2, mew=0.7)
        low, high = axes.get_ylim()
        if shown and scale == 1.0:
            axes.set_ylim(min(low, 0.8), max(high, 1.2))


def _is_alone(point: Point) -> bool:
    """The role has a policy to itself."""
    policy_of = routed(point.run)
    return list(policy_of.values()).count(policy_of[point.role]) == 1


def _steps(run: Run, role: str, quantity: str) -> Floats:
    if quantity == "path":
        return path_length(run, role)
    return aligned(run.steps, run.ledger("optimizer_steps", role))


def _handles(points: list[Point], everybody: Sequence[str]) -> list[Any]:
    from matplotlib.lines import Line2D

    roles = list(dict.fromkeys(point.role for point in points if point.estimates))
    handles = [
        Line2D([], [], ls="none", marker=style.marker, color=style.color)
        for style in (role_style(role, everybody) for role in roles)
    ]
    for handle, role in zip(handles, roles, strict=True):
        handle.set_label(role)
    filled = Line2D([], [], ls="none", marker="o", color=INK, label="shared policy")
    hollow = Line2D([], [], ls="none", marker="o", color=INK, mfc="white", label="own policy")
    limit = Line2D([], [], color=FAINT, lw=0.6, ls=(0, (4, 2)), label="DEFF = N")
    alone = {_is_alone(point) for point in points if point.estimates}
    return [
        *handles,
        *([filled] if False in alone else []),
        *([hollow] if True in alone else []),
        limit,
    ]
