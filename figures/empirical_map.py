"""Draw what training did to every cell of the experiment: peak gain over base, and drop after.

Best level minus last level is above zero on any noisy run, flat ones included: a drop is printed
only where the test found one, and then as the size that the test fitted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.cliff.accuracy import wilson
from analysis.findings import Diagnosis
from figures.accuracy import AccuracyFigure
from figures.cells import COLUMNS, cell_of, diagnosed, identity, order, split, titles
from figures.style import FAINT, INK, PALE, TINY, blank, footnote, legend, paper, shortened
from figures.tables import Table
from gradlab.store.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NOTE = (
    "Drop: as fitted, where the test found one; n.s.: none beyond noise; –: not judged. Peak gain: "
    "the best of several noisy levels, so a few points above zero on a flat run."
)


@dataclass(frozen=True)
class Outcome:
    """What training did to one run's held-out accuracy; differences in points."""

    run: Run
    base: float
    peak_gain: float
    terminal_gain: float
    is_judged: bool
    drop: float
    """As the test fitted it; NaN where it found none."""
    base_lower: float
    """95 % binomial interval of the base evaluation, relative to it."""
    base_upper: float


@dataclass(frozen=True)
class EmpiricalMap:
    """One line per run, under its workflow: where accuracy went, and the two numbers as a map."""

    name: str = "empirical_map"
    per_page: int = 48
    z: float = 1.96
    """Half width of the base's binomial interval, in standard errors (Wilson)."""

    def missing(self, run: Run) -> str | None:
        """Why the run has nothing to show; None if it has."""
        return AccuracyFigure().missing(run)

    def draw(self, runs: Sequence[Run], among: Sequence[Run] | None = None) -> Figure:
        """All runs, sorted by cell; a page of `among`."""
        shown, absent = split(self.name, sorted(runs, key=order), self.missing)
        with paper():
            outcomes = [self.outcome(run) for run in shown]
            names = titles(shown, among=among or runs, without=("workflow",))
            heights: list[float] = []
            heads: dict[float, str] = {}
            at = 0.0
            for index, run in enumerate(shown):
                workflow = cell_of(run).workflow
                if index == 0 or workflow != cell_of(shown[index - 1]).workflow:
                    heads[at] = workflow
                    at += 1.0
                heights.append(at)
                at += 1.0
            figure = blank(1.1 + 0.15 * at)
            left, right = figure.subplots(
                1, 2, sharey=True, gridspec_kw={"width_ratios": [1.0, 0.55]}
            )
            self._lines(left, outcomes, heights)
            self._cells(right, outcomes, heights)
            left.set_yticks(
                [*heads, *heights], [*heads.values(), *(shortened(name, 34) for name in names)]
            )
            for tick, place in zip(left.get_yticklabels(), [*heads, *heights], strict=True):
                tick.set_weight("bold" if place in heads else "normal")
            left.set_ylim(at - 0.4, -0.6)
            legend(figure, _handles(), columns=4)
            footnote(figure, f"{NOTE} {absent}".rstrip())
            return figure

    def table(self, runs: Sequence[Run]) -> Table:
        """One row per run; shares, not points."""
        columns = ("base", "peak", "peak_step", "terminal", "peak_gain", "drop", "status")
        rows: list[tuple[str | int | float, ...]] = []
        for run in sorted(runs, key=order):
            judged = diagnosed(run)
            summary = judged.accuracy
            gain = summary.peak - summary.base
            rows.append(
                (
                    *identity(run),
                    *(summary.base, summary.peak, summary.peak_step, summary.terminal),
                    *(gain, _drop(judged), judged.status),
                )
            )
        return Table((*COLUMNS, *columns), rows)

    def outcome(self, run: Run) -> Outcome:
        """The run's numbers in points, from its diagnosis."""
        judged = diagnosed(run)
        summary = judged.accuracy
        num = float(summary.num_samples)
        lower, upper = wilson(np.array([summary.base * num]), np.array([num]), self.z)
        return Outcome(
            run,
            100 * summary.base,
            100 * (summary.peak - summary.base),
            100 * (summary.terminal - summary.base),
            judged.status != "not judged",
            100 * _drop(judged),
            100 * (float(lower[0]) - summary.base),
            100 * (float(upper[0]) - summary.base),
        )

    def _lines(self, axes: Axes, outcomes: list[Outcome], heights: list[float]) -> None:
        axes.axvline(0, color=FAINT, linewidth=0.6)
        for outcome, y in zip(outcomes, heights, strict=True):
            width = outcome.base_upper - outcome.base_lower
            if np.isfinite(width):  # the number of answers is known
                axes.barh(y, width, 0.7, outcome.base_lower, color=PALE, alpha=0.7, linewidth=0)
            ends = [outcome.terminal_gain, outcome.peak_gain]
            axes.plot(ends, [y, y], color=INK, linewidth=0.8)
            axes.plot(outcome.peak_gain, y, "^", color=INK, mfc="white", ms=4, mew=0.7)
            face = INK if np.isfinite(outcome.drop) else "white"
            axes.plot(outcome.terminal_gain, y, "s", color=INK, mfc=face, ms=3.4, mew=0.7)
        axes.use_sticky_edges = False
        axes.margins(x=0.08)
        axes.set_xlabel("accuracy − base (points)")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)

    def _cells(self, axes: Axes, outcomes: list[Outcome], heights: list[float]) -> None:
        """Gain and drop as a map: blue is better, red is worse, one scale for both."""
        from matplotlib import colormaps
        from matplotlib.patches import Rectangle

        changes = [(outcome.peak_gain, -outcome.drop) for outcome in outcomes]
        top = max([10.0, *(abs(x) for pair in changes for x in pair if np.isfinite(x))])
        for y, outcome, pair in zip(heights, outcomes, changes, strict=True):
            for x, change in enumerate(pair):
                if not np.isfinite(change):
                    absent = "n.s." if outcome.is_judged else "–"
                    axes.text(x, y, absent, ha="center", va="center", size=TINY, color=FAINT)
                    continue
                shade = colormaps["RdBu"](0.5 + 0.5 * change / top)
                axes.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, color=shade, lw=0))
                ink = "white" if abs(change) > 0.6 * top else INK
                text = f"{change:+.0f}".replace("-", "−") if abs(change) >= 0.5 else "0"
                axes.text(x, y, text, ha="center", va="center", size=TINY, color=ink)
        axes.set_xlim(-0.5, 1.5)
        axes.set_xticks([0, 1], ["peak\ngain", "final\ndrop"])
        axes.tick_params(length=0, labelleft=False)
        for side in axes.spines.values():
            side.set_visible(False)


def _drop(judged: Diagnosis) -> float:
    """Share that the run lost according to the test; NaN where it found no drop."""
    drops = judged.drops
    return drops[0].strength if drops else math.nan


def _handles() -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    mark: dict[str, Any] = {"linestyle": "none", "color": INK, "mew": 0.7}
    return [
        Line2D([], [], marker="^", mfc="white", ms=4, label="peak", **mark),
        Line2D([], [], marker="s", mfc="white", ms=3.4, label="end", **mark),
        Line2D([], [], marker="s", ms=3.4, label="end, after a drop", **mark),
        Patch(color=PALE, alpha=0.7, label="base, 95 %"),
    ]
