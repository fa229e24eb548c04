"""Draw how gradients align: between agents over the whole run, and between roles over training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.signals import aligned, routed
from figures.cells import COLUMNS, all_roles, has_gradients, identity, split, titles
from figures.style import (
    FAINT,
    INK,
    PALE,
    TINY,
    blank,
    few_ticks,
    footnote,
    legend,
    paper,
    role_style,
    row_title,
    running_median,
)
from figures.tables import Table
from gradlab.arrays import Floats
from gradlab.records import Agent
from gradlab.store.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SEPARATE = "separate spaces"


@dataclass(frozen=True)
class Pair:
    """Two roles, or the siblings of one (`second` is None)."""

    first: str
    second: str | None

    def __str__(self) -> str:
        return f"{self.first} × {self.second}" if self.second else f"{self.first} siblings"


@dataclass(frozen=True)
class CosineFigure:
    """One row per run: mean cosine of every two agents; cosine of siblings and of roles per step.

    Gradients of different policies live in different spaces: their cells stay grey.
    """

    name: str = "cosine"
    per_page: int = 5
    max_numbered: int = 6
    """Agents up to which the cells carry numbers."""

    def missing(self, run: Run) -> str | None:
        """Why the run has nothing to show; None if it has."""
        if not has_gradients(run):
            return "no gradients recorded"
        if not pairs_of(run):
            return "one agent per policy: nothing to compare"
        if not any(np.isfinite(series(run, pair)[1]).any() for pair in pairs_of(run)):
            return "norms without angles"
        return None

    def draw(self, runs: Sequence[Run], among: Sequence[Run] | None = None) -> Figure:
        """The rows of `runs`, a page of `among`."""
        shown, absent = split(self.name, runs, self.missing)
        with paper():
            pairs = list(dict.fromkeys(pair for run in shown for pair in pairs_of(run)))
            figure = blank(0.75 + 0.12 * math.ceil((len(pairs) + 1) / 2) + 1.35 * len(shown))
            grid = figure.subplots(
                len(shown), 2, squeeze=False, gridspec_kw={"width_ratios": [1, 1.25]}
            )
            tables = [matrix(run) for run in shown]
            top = _strongest(tables)
            names, everybody = titles(shown, among=among or runs), all_roles(among or runs)
            for (left, right), run, name, table in zip(grid, shown, names, tables, strict=True):
                row_title(right, name, has_column_heads=False)
                image = self._matrix(left, run, table, top, everybody)
                self._over_time(right, run, everybody)
            self._limits(list(grid[:, 1]), shown)
            grid[-1][1].set_xlabel("training step")
            digit = 10.0 ** math.floor(math.log10(top))
            mark = digit * math.floor(top / digit)
            bar = figure.colorbar(
                image,
                ax=list(grid[:, 0]),
                location="bottom",
                aspect=14,
                shrink=0.8,
                pad=0.02,
                ticks=[-mark, 0, mark],
                format="{x:g}",
            )
            bar.set_label("cosine, mean over the run", size=TINY)
            bar.outline.set_visible(False)
            handles = [_handle(pair, everybody) for pair in pairs]
            if any(len(run.policies) > 1 for run in shown):
                handles.append(_apart())
            legend(figure, handles, columns=2)
            footnote(figure, absent)
            return figure

    def table(self, runs: Sequence[Run]) -> Table:
        """Rows 'agents' (mean over the run) and rows of siblings and role pairs per step."""
        rows: list[tuple[str | int | float, ...]] = []
        for run in runs:
            agents = agents_of(run)
            value_AA = matrix(run)
            for a, b in combinations(range(len(agents)), 2):
                is_apart = run.meta.policy_of(agents[a]) != run.meta.policy_of(agents[b])
                kind = SEPARATE if is_apart else "agents, mean over the run"
                names = (str(agents[a]), str(agents[b]))
                rows.append((*identity(run), kind, *names, "", float(value_AA[a, b])))
            for pair in pairs_of(run):
                step_T, value_T = series(run, pair)
                kind = "roles" if pair.second else "siblings, mean of pairs"
                names = (pair.first, pair.second or pair.first)
                rows += [
                    (*identity(run), kind, *names, int(step), float(value))
                    for step, value in zip(step_T, value_T, strict=True)
                ]
        return Table((*COLUMNS, "kind", "first", "second", "step", "cosine"), rows)

    def _matrix(
        self, axes: Axes, run: Run, value_AA: Floats, top: float, everybody: Sequence[str]
    ) -> Any:
        agents = agents_of(run)
        shown = value_AA.copy()
        np.fill_diagonal(shown, np.nan)
        axes.set_facecolor(PALE)
        axes.set_anchor("NE")
        image = axes.imshow(shown, cmap="RdBu", vmin=-top, vmax=top, aspect="equal")
        for side in axes.spines.values():
            side.set_visible(False)
        axes.set_xticks([])
        axes.set_yticks(range(len(agents)), [_label(run, agent) for agent in agents])
        axes.tick_params(left=False)
        for tick, agent in zip(axes.get_yticklabels(), agents, strict=True):
            tick.set_color(role_style(agent.role, everybody).color)
        for edge in range(1, len(agents)):
            is_border = agents[edge].role != agents[edge - 1].role
            width = 1.6 if is_border else 0.4
            axes.axhline(edge - 0.5, color="white", linewidth=width)
            axes.axvline(edge - 0.5, color="white", linewidth=width)
        for a, b in np.ndindex(*shown.shape):
            if a == b:
                axes.add_patch(_square(a, "white"))
            elif np.isfinite(shown[a, b]) and len(agents) <= self.max_numbered:
                ink = "white" if abs(shown[a, b]) > 0.6 * top else INK
                axes.text(
                    b, a, _short(float(shown[a, b])), ha="center", va="center", size=5.5, color=ink
                )
        return image

    def _over_time(self, axes: Axes, run: Run, everybody: Sequence[str]) -> None:
        axes.axhline(0, color=FAINT, linewidth=0.5)
        for pair in pairs_of(run):
            step_T, value_T = series(run, pair)
            color = role_style(pair.first, everybody).color
            axes.plot(step_T, value_T, color=color, lw=0.4, alpha=0.2)
            axes.plot(step_T, _middle(value_T), **_line(pair, len(step_T), everybody))
        axes.set_ylabel("cosine")
        few_ticks(axes, run.steps)

    def _limits(self, panels: list[Axes], runs: list[Run]) -> None:
        """One scale for all runs: every median is inside, one wild step does not set it."""
        extremes = [0.0]
        for run in runs:
            for pair in pairs_of(run):
                value_T = series(run, pair)[1]
                known = value_T[np.isfinite(value_T)]
                if len(known):
                    middle_T = _middle(value_T)
                    extremes += [float(np.nanmin(middle_T)), float(np.nanmax(middle_T))]
                    extremes += np.quantile(known, [0.01, 0.99]).tolist()
        low, high = min(extremes), max(extremes)
        pad = 0.08 * max(high - low, 0.1)
        for axes in panels:
            axes.set_ylim(max(-1.03, low - pad), min(1.03, high + pad))


def agents_of(run: Run) -> list[Agent]:
    """All agents, role by role."""
    return [agent for role in run.roles for agent in run.agents(role)]


def pairs_of(run: Run) -> list[Pair]:
    """Roles with siblings in one policy, and pairs of roles that share a policy."""
    policy_of = routed(run)
    siblings = [Pair(role, None) for role in run.roles if siblings_of(run, role)]
    return siblings + [
        Pair(a, b) for a, b in combinations(policy_of, 2) if policy_of[a] == policy_of[b]
    ]


def series(run: Run, pair: Pair) -> tuple[Any, Floats]:
    """Steps and cosine per step; of siblings the mean over their pairs."""
    if pair.second:
        signal = run.cosine(pair.first, pair.second)
        return signal.step_T, np.asarray(signal.value_T, dtype=np.float64)
    signals = [run.cosine(a, b) for a, b in siblings_of(run, pair.first)]
    if len(run.policies_of(pair.first)) > 1:  # each updated in steps of its own
        return run.steps, _mean(np.array([aligned(run.steps, signal) for signal in signals]))
    return signals[0].step_T, _mean(np.array([signal.value_T for signal in signals]))


def siblings_of(run: Run, role: str) -> list[tuple[Agent, Agent]]:
    """Pairs of the role's agents that train the same policy."""
    pairs = combinations(run.agents(role), 2)
    return [(a, b) for a, b in pairs if run.meta.policy_of(a) == run.meta.policy_of(b)]


def matrix(run: Run) -> Floats:
    """[A, A] cosine of every two agents, mean over steps; NaN across policies."""
    agents = agents_of(run)
    value_AA = np.full((len(agents), len(agents)), np.nan)
    np.fill_diagonal(value_AA, 1.0)
    for a, b in combinations(range(len(agents)), 2):
        if run.meta.policy_of(agents[a]) == run.meta.policy_of(agents[b]):
            value_T = np.asarray(run.cosine(agents[a], agents[b]).value_T, dtype=np.float64)
            value_AA[a, b] = value_AA[b, a] = _mean(value_T[:, None])[0] if len(value_T) else np.nan
    return value_AA


def _short(cosine: float) -> str:
    """'.07', '−.12', '0'."""
    return f"{cosine:.2f}".replace("0.", ".").replace("-", "−") if abs(cosine) >= 0.005 else "0"


def _strongest(tables: list[Floats]) -> float:
    """Largest absolute cosine between two agents of the runs; at least 0.1."""
    apart = [table[~np.eye(len(table), dtype=bool)] for table in tables]
    return max([0.1, *(float(np.abs(x[np.isfinite(x)]).max(initial=0.0)) for x in apart)])


def _middle(value_T: Floats) -> Floats:
    return running_median(value_T, max(1, len(value_T) // 40))


def _mean(value_XT: Floats) -> Floats:
    """Mean of the finite values along the first axis; NaN without any."""
    known = np.isfinite(value_XT)
    num = known.sum(axis=0)
    total = np.where(known, value_XT, 0.0).sum(axis=0)
    return np.asarray(np.where(num > 0, total / np.maximum(num, 1), np.nan), dtype=np.float64)


def _label(run: Run, agent: Agent) -> str:
    if len(run.agents(agent.role)) == 1:
        return agent.role
    return f"{agent.role} 0" if agent.number == 0 else str(agent.number)


def _line(pair: Pair, num_steps: int, everybody: Sequence[str]) -> dict[str, Any]:
    """Siblings in the role's own line; two roles in dashes of both colours."""
    first = role_style(pair.first, everybody)
    every = (0, max(1, num_steps // 6))
    if pair.second is None:
        return {
            "color": first.color,
            "linestyle": first.dash,
            "marker": first.marker,
            "markevery": every,
        }
    second = role_style(pair.second, everybody)
    return {
        "color": first.color,
        "gapcolor": second.color,
        "linestyle": (0, (3, 3)),
        "marker": first.marker,
        "markerfacecolor": second.color,
        "markevery": every,
    }


def _handle(pair: Pair, everybody: Sequence[str]) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], label=str(pair), **_line(pair, 6, everybody))


def _apart() -> Any:
    from matplotlib.patches import Patch

    return Patch(color=PALE, label=SEPARATE)


def _square(index: int, color: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((index - 0.5, index - 0.5), 1, 1, facecolor=color, edgecolor="none")
