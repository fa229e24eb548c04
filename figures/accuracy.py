"""Draw held-out accuracy over training, with base, peak, end and the drop that was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.cliff.accuracy import wilson
from analysis.findings import Diagnosis
from figures.cells import COLUMNS, diagnosed, identity, split, titles
from figures.style import (
    FAINT,
    INK,
    PALE,
    YELLOW,
    few_ticks,
    footnote,
    legend,
    paper,
    small_multiples,
    title,
)
from figures.tables import Table
from gradlab.store.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHORT = {"cliff": "cliff", "fall": "fall", "decay": "decay", "swings": "swings, ends"}


@dataclass(frozen=True)
class AccuracyFigure:
    """One panel per run; base, peak and end are the diagnosis' numbers."""

    name: str = "accuracy"
    per_page: int = 12
    z: float = 1.96
    """Half width of the binomial band, in standard errors (Wilson)."""

    def missing(self, run: Run) -> str | None:
        """Why the run has nothing to show; None if it has."""
        accuracy_E = np.asarray(run.evaluations().accuracy().value_T, dtype=np.float64)
        return None if np.isfinite(accuracy_E).any() else "no evaluations"

    def draw(self, runs: Sequence[Run], among: Sequence[Run] | None = None) -> Figure:
        """The panels of `runs`, a page of `among`."""
        shown, absent = split(self.name, runs, self.missing)
        names = titles(shown, among=among or runs)
        with paper():
            figure, panels = small_multiples(
                names, "held-out accuracy (%)", head=0.45, has_verdicts=True
            )
            for axes, run, name in zip(panels, shown, names, strict=True):
                self._panel(axes, run)
                title(axes, name, _verdict(diagnosed(run)), is_wide=len(shown) == 1)
            has_drop = any(_onset(diagnosed(run)) for run in shown)
            has_band = any(run.evaluations().num_samples_E().any() for run in shown)
            legend(figure, _handles(has_drop=has_drop, has_band=has_band), columns=3)
            footnote(figure, absent)
            return figure

    def table(self, runs: Sequence[Run]) -> Table:
        """One row per evaluation; the diagnosis' numbers of the run stand in each."""
        columns = ("step", "accuracy", "lower", "upper", "correct", "answers")
        judged = ("base", "peak", "peak_step", "terminal", "status", "onset", "onset_lower")
        rows = []
        for run in runs:
            if self.missing(run):
                continue
            evaluations = run.evaluations()
            correct_E, num_E = evaluations.num_correct_E(), evaluations.num_samples_E()
            accuracy_E = np.asarray(evaluations.accuracy().value_T, dtype=np.float64)
            lower_E, upper_E = wilson(correct_E.astype(float), num_E.astype(float), self.z)
            diagnosis = diagnosed(run)
            summary, onset = diagnosis.accuracy, _onset(diagnosis)
            verdict = (
                *(summary.base, summary.peak, summary.peak_step, summary.terminal),
                diagnosis.status,
                *((onset.step, onset.lower, onset.upper) if onset else ("", "", "")),
            )
            rows += [
                (
                    *identity(run),
                    *(int(step), float(accuracy), float(lower), float(upper)),
                    *(int(correct), int(num)),
                    *verdict,
                )
                for step, accuracy, lower, upper, correct, num in zip(
                    evaluations.step_E, accuracy_E, lower_E, upper_E, correct_E, num_E, strict=True
                )
            ]
        return Table((*COLUMNS, *columns, *judged, "onset_upper"), rows)

    def _panel(self, axes: Axes, run: Run) -> None:
        evaluations = run.evaluations()
        accuracy_E = np.asarray(evaluations.accuracy().value_T, dtype=np.float64)
        known = np.isfinite(accuracy_E)
        step_E, rate_E = evaluations.step_E[known], 100 * accuracy_E[known]
        correct_E = evaluations.num_correct_E()[known].astype(float)
        num_E = evaluations.num_samples_E()[known].astype(float)
        lower_E, upper_E = wilson(correct_E, num_E, self.z)  # NaN, no band, for a number unknown
        diagnosis = diagnosed(run)
        summary, onset = diagnosis.accuracy, _onset(diagnosis)
        if onset:
            axes.axvspan(onset.lower, onset.upper, color=YELLOW, alpha=0.55, linewidth=0)
            axes.axvline(onset.step, color=INK, linewidth=0.7, linestyle=(0, (1, 1.5)))
        axes.axhline(100 * summary.base, color=FAINT, linewidth=0.8, linestyle=(0, (5, 2)))
        axes.fill_between(step_E, 100 * lower_E, 100 * upper_E, color=PALE, alpha=0.6, linewidth=0)
        dot = "o" if len(step_E) <= 30 else None
        axes.plot(step_E, rate_E, color=INK, linewidth=0.9, marker=dot, markersize=1.5)
        mark: dict[str, Any] = {
            "linestyle": "none",
            "color": "white",
            "markersize": 5,
            "markeredgecolor": INK,
            "zorder": 5,
        }
        axes.plot([summary.peak_step], [100 * summary.peak], marker="^", **mark)
        axes.plot([step_E[-1]], [100 * summary.terminal], marker="s", **mark)
        few_ticks(axes, step_E)


def _onset(diagnosis: Diagnosis) -> Any:
    drops = diagnosis.drops
    return drops[0].onset if drops else None


def _verdict(diagnosis: Diagnosis) -> str:
    drops = diagnosis.drops
    if drops:
        onset = f" after step {drops[0].onset.step}" if drops[0].onset else ""
        return f"{SHORT[drops[0].kind]} −{100 * drops[0].strength:.0f} pts{onset}"
    if diagnosis.status == "not judged" and not diagnosis.accuracy.num_samples:
        return "not judged (number of answers unknown)"
    if diagnosis.status == "not judged":
        return f"not judged ({diagnosis.accuracy.num_evaluations} evaluations)"
    if diagnosis.status == "unfinished":
        return "no drop found, unfinished"
    return "no drop found" if diagnosis.status == "healthy" else diagnosis.status


def _handles(*, has_drop: bool, has_band: bool) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    mark: dict[str, Any] = {
        "linestyle": "none",
        "color": "white",
        "markeredgecolor": INK,
        "markersize": 5,
    }
    handles = [
        Line2D([], [], color=INK, linewidth=0.9, label="accuracy"),
        *([Patch(color=PALE, label="95 % binomial")] if has_band else []),
        Line2D([], [], color=FAINT, linewidth=0.8, linestyle=(0, (5, 2)), label="base"),
        Line2D([], [], marker="^", label="peak level", **mark),
        Line2D([], [], marker="s", label="end level", **mark),
    ]
    onset = Patch(facecolor=YELLOW, alpha=0.55, label="onset of drop")
    return [*handles, onset] if has_drop else handles
