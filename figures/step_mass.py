"""Draw each role's share of a step, three ways: by norm, by pull, by the optimizer's step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from analysis.signals import learners, routed
from figures.cells import COLUMNS, all_roles, has_gradients, identity, split, titles
from figures.norms import roles_of
from figures.style import (
    FAINT,
    blank,
    few_ticks,
    footnote,
    legend,
    note,
    paper,
    role_handle,
    role_line,
    role_style,
    row_title,
)
from figures.tables import Table
from gradlab.store.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Measure = Literal["share", "pull", "update"]
PANELS: tuple[tuple[Measure, str], ...] = (
    ("share", "norm share"),
    ("pull", "pull"),
    ("update", "update share"),
)


@dataclass(frozen=True)
class StepMassFigure:
    """One row per run; roles that have a policy to themselves are left out: their share is 1."""

    name: str = "step_mass"
    per_page: int = 6

    def missing(self, run: Run) -> str | None:
        """Why the run has nothing to show; None if it has."""
        if not has_gradients(run):
            return "no gradients recorded"
        if not _competing(run) and len(routed(run)) < len(learners(run)):
            return "no two roles share a policy with all their agents"
        if not _competing(run):
            return "every role has a policy to itself: its share is 1"
        return None

    def draw(self, runs: Sequence[Run], among: Sequence[Run] | None = None) -> Figure:
        """The rows of `runs`, a page of `among`."""
        shown, absent = split(self.name, runs, self.missing)
        with paper():
            roles = [role for role in roles_of(shown) if any(role in _competing(r) for r in shown)]
            everybody = all_roles(among or runs)
            figure = blank(0.75 + (1.1 if len(shown) == 1 else 0.95) * len(shown))
            grid = figure.subplots(len(shown), 3, sharey="col", squeeze=False)
            names = titles(shown, among=among or runs)
            for index, (run, name) in enumerate(zip(shown, names, strict=True)):
                self._row(list(grid[index]), run, everybody)
                row_title(grid[index][0], name, has_column_heads=index == 0)
            for axes, (_, head) in zip(grid[0], PANELS, strict=True):
                axes.set_title(head)
            self._limits(list(grid[0]), shown)
            grid[-1][1].set_xlabel("training step")
            legend(figure, [*(role_handle(role, everybody) for role in roles), _null()], columns=3)
            footnote(figure, absent)
            return figure

    def table(self, runs: Sequence[Run]) -> Table:
        """One row per run, role and step; shares are within the role's policies."""
        rows: list[tuple[str | int | float, ...]] = []
        for run in runs:
            by_measure = [run.step_mass(measure) for measure, _ in PANELS]
            for role in learners(run):
                weight = run.ledger("loss_weight", role)
                null = dict(zip(weight.step_T.tolist(), weight.value_T.tolist(), strict=True))
                signals = [masses[role] for masses in by_measure]
                rows += [
                    (
                        *(*identity(run), role, ", ".join(run.meta.policies_of(role)), step),
                        *(float(signal.value_T[t]) for signal in signals),
                        null.get(step, float("nan")),
                    )
                    for t, step in enumerate(signals[0].step_T.tolist())
                ]
        columns = ("role", "policy", "step", *(measure for measure, _ in PANELS), "loss_weight")
        return Table((*COLUMNS, *columns), rows)

    def _row(self, panels: list[Axes], run: Run, everybody: Sequence[str]) -> None:
        for axes, (measure, _) in zip(panels, PANELS, strict=True):
            masses = run.step_mass(measure)
            roles = [role for role in _competing(run) if np.isfinite(masses[role].value_T).any()]
            if not roles:
                note(axes, "not recorded")
            for role in roles:
                weight = run.ledger("loss_weight", role)
                style = role_style(role, everybody)
                axes.plot(weight.step_T, weight.value_T, color=style.color, lw=0.7, ls=(0, (1, 1)))
                value_T = np.asarray(masses[role].value_T, dtype=np.float64)
                role_line(axes, role, masses[role].step_T, value_T, everybody, 2.2)
            few_ticks(axes, run.steps, 3)

    def _limits(self, panels: list[Axes], runs: Sequence[Run]) -> None:
        """Shares fill 0 to 1; a pull may leave it, but one wild step must not set the scale."""
        from matplotlib.ticker import MaxNLocator

        for axes, (measure, _) in zip(panels, PANELS, strict=True):
            everything = [
                np.asarray(signal.value_T, dtype=np.float64)
                for run in runs
                for role, signal in run.step_mass(measure).items()
                if role in _competing(run)
            ]
            value = np.concatenate(everything) if everything else np.zeros(0)
            value = value[np.isfinite(value)]
            low, high = np.quantile(value, [0.01, 0.99]) if len(value) else (0.0, 1.0)
            axes.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
            axes.set_ylim(min(-0.03, float(low) - 0.05), max(1.03, float(high) + 0.05))


def _competing(run: Run) -> list[str]:
    """Roles that share their policy with another role."""
    policy_of = routed(run)
    times = Counter(policy_of.values())
    return [role for role, policy in policy_of.items() if times[policy] > 1]


def _null() -> object:
    from matplotlib.lines import Line2D

    return Line2D(
        [], [], color=FAINT, linewidth=0.7, linestyle=(0, (1, 1)), label="loss weight (null)"
    )
