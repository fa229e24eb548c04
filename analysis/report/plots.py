"""Draw the plots of a diagnosis page as SVG text; matplotlib is imported on first use.

Legend: T steps, E evaluations.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from analysis.cliff.accuracy import AccuracySeries, rates_alone, wilson
from analysis.detectors.role_capture import CAPTURE
from analysis.findings import HELD_OUT, Diagnosis, Onset, SignalVerdict
from analysis.report.shared import fall_of
from analysis.signals import Measured, aligned, learners, routed
from gradlab.arrays import Floats
from gradlab.palette import role_color
from gradlab.store.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


MAX_POINTS = 800
"""Points of a line; longer series are averaged, a page has to stay small."""

INK, SOFT, GRID, FALL = "#1d2433", "#5b6475", "#e8ebf1", "#c2410c"
BLUE = "#0072B2"
STYLE: dict[str, Any] = {
    "font.size": 11,
    "font.family": "DejaVu Sans",
    "svg.fonttype": "none",
    "svg.hashsalt": "gradlab",
    "axes.edgecolor": "#b6bdca",
    "axes.labelcolor": SOFT,
    "axes.titlecolor": INK,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.solid_capstyle": "round",
}


def accuracy_svg(diagnosis: Diagnosis, run: Run) -> str:
    """The outcome that was judged: base, best level, level at the end and the onset.

    Evaluations have their sampling interval, where the number of answers is known.
    """
    accuracy, outcome = diagnosis.accuracy, diagnosis.accuracy.outcome
    scale = 1 if outcome.endswith("reward") else 100
    with _figure(9.6, 3.6) as (figure, svg):
        axes = figure.subplots()
        if outcome == HELD_OUT:
            _evaluations(axes, run)
            known = run.evaluations().step_E
        else:
            known = run.steps
            _line(axes, known, scale * training_outcome(run, outcome), BLUE)
        is_base = not len(known) or int(known[0]) == 0
        axes.axhline(scale * accuracy.base, color=SOFT, lw=1, ls=(0, (2, 3)))
        _label(axes, scale * accuracy.base, "base" if is_base else "first", SOFT)
        axes.axhline(scale * accuracy.peak, color="#0f766e", lw=1, ls=(0, (5, 3)))
        _label(axes, scale * accuracy.peak, "best level", "#0f766e")
        fall = fall_of(diagnosis)
        if fall and fall.onset:
            _mark(axes, fall.onset, "fall begins")
            axes.axhline(scale * accuracy.terminal, color=FALL, lw=1, ls=(0, (5, 3)))
            if accuracy.peak - accuracy.terminal > 0.05 < abs(accuracy.base - accuracy.terminal):
                _label(axes, scale * accuracy.terminal, "at the end", FALL)
        axes.set_ylabel(f"{outcome} (%)" if scale == 100 else outcome)
        axes.set_xlabel("training step")
        axes.margins(x=0.015)
        if scale == 100:
            bottom, top = axes.get_ylim()
            axes.set_ylim(max(0.0, bottom), min(100.0, top + 4))
    return svg[0]


def _evaluations(axes: Axes, run: Run) -> None:
    """Held-out accuracy in percent, its interval beside it."""
    series, alone = AccuracySeries.of(run), rates_alone(run)
    axes.plot(alone.step_T, 100 * alone.value_T, color=BLUE, lw=2, marker="o", ms=3.5)
    low_E, high_E = wilson(series.correct_T, series.trials_T)
    axes.fill_between(series.step_T, 100 * low_E, 100 * high_E, color=BLUE, alpha=0.13, lw=0)
    axes.plot(series.step_T, 100 * series.rate_T, color=BLUE, lw=2, marker="o", ms=3.5)


def training_outcome(run: Run, outcome: str) -> Floats:
    """[T] what stands in for held-out accuracy; the mean over roles where a run has no own."""
    name = "reward_mean" if outcome.endswith("reward") else "accuracy"
    of_run = aligned(run.steps, run.run_metric(name))
    if np.isfinite(of_run).any():
        return of_run
    of_role = "reward_mean" if outcome.endswith("reward") else "outcome_accuracy"
    values = np.array([aligned(run.steps, run.ledger(of_role, role)) for role in run.roles])
    known = np.isfinite(values)
    total = np.where(known, values, 0.0).sum(axis=0)
    mean: Floats = np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), math.nan)
    return mean


def moved_svg(
    diagnosis: Diagnosis, run: Run, signals: list[Measured], chosen: list[SignalVerdict]
) -> str:
    """The chosen signals above one another, on the steps of the run."""
    by_key = {signal.key: signal for signal in signals}
    fall = fall_of(diagnosis)
    with _figure(9.6, 0.5 + 1.75 * len(chosen)) as (figure, svg):
        all_axes = figure.subplots(len(chosen), 1, sharex=True, squeeze=False)[:, 0]
        for axes, verdict in zip(all_axes, chosen, strict=True):
            signal = by_key[verdict.key]
            color = role_color(signal.subject, run.roles) if signal.subject in run.roles else INK
            _line(axes, run.steps, signal.value_T, color)
            if signal.kind.scale == "log" and np.nanmin(signal.value_T) > 0:
                _log_axis(axes)
            if fall and fall.onset:
                _mark(axes, fall.onset, "")
            if verdict.onset:
                axes.axvline(verdict.onset.step, color=color, lw=1.2, ls=(0, (4, 2)))
            unit = f" ({verdict.unit})" if verdict.unit not in ("1", "") else ""
            order = f": {verdict.order}" if fall else ""
            axes.set_title(f"{verdict.title}{unit}{order}")
            axes.margins(x=0.015)
        all_axes[-1].set_xlabel("training step")
    return svg[0]


def roles_svg(diagnosis: Diagnosis, run: Run) -> str:
    """Gradient norm and share of the step mass per role, with the share of the loss dashed."""
    trained = learners(run)
    policy_of = routed(run)
    policies = list(policy_of.values())
    shared = [role for role, policy in policy_of.items() if policies.count(policy) > 1]
    with _figure(9.6, 3.3) as (figure, svg):
        panels = figure.subplots(1, 2 if shared else 1, squeeze=False)[0]
        for role in trained:
            _line(
                panels[0],
                run.steps,
                aligned(run.steps, run.norm(role)),
                role_color(role, run.roles),
                role,
            )
        _log_axis(panels[0])
        panels[0].set_title("gradient norm before clipping")
        if shared:
            shares = run.step_mass("share")
            for role in shared:
                color = role_color(role, run.roles)
                _line(panels[1], run.steps, 100 * aligned(run.steps, shares[role]), color, role)
                weight_T = aligned(run.steps, run.ledger("loss_weight", role))
                panels[1].plot(run.steps, 100 * weight_T, color=color, lw=1.2, ls=(0, (3, 3)))
            panels[1].set_ylim(0, 100)
            panels[1].set_title("share of the step mass (%)")
        for axes in panels:
            for finding in diagnosis.of_kind(CAPTURE.name):
                if finding.onset:
                    color = role_color(finding.subject, run.roles)
                    axes.axvline(finding.onset.step, color=color, lw=1.3, ls="--")
            for finding in diagnosis.drops:
                if finding.onset:
                    _mark(axes, finding.onset, "")
            axes.set_xlabel("training step")
            axes.margins(x=0.015)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=max(len(labels), 1))
    return svg[0]


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Figure, list[str]]]:
    """A figure without pyplot's global state; its SVG text is in the list afterwards."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    svg: list[str] = []
    with rc_context(cast(Any, STYLE)):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, svg
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    svg.append(re.sub(r"^.*?(?=<svg)", "", text, flags=re.DOTALL))


def _line(
    axes: Axes, step_T: NDArray[np.int64], value_T: Floats, color: str, label: str | None = None
) -> None:
    """The series faintly, its running median on top."""
    step, value = _thinned(step_T.astype(np.float64), value_T)
    axes.plot(step, value, color=color, lw=0.8, alpha=0.35)
    window = max(3, len(value) // 40)
    if len(value) <= 2 * window:
        axes.plot(step, value, color=color, lw=1.8, label=label)
        return
    padded = np.concatenate([np.full(window, math.nan), value, np.full(window, math.nan)])
    around = np.lib.stride_tricks.sliding_window_view(padded, 2 * window + 1)
    known = np.isfinite(around).any(axis=1)
    median = np.full(len(value), math.nan)
    median[known] = np.nanmedian(around[known], axis=1)
    axes.plot(step, median, color=color, lw=1.9, label=label)


def _thinned(step_T: Floats, value_T: Floats) -> tuple[Floats, Floats]:
    size = math.ceil(len(step_T) / MAX_POINTS)
    if size <= 1:
        return step_T, value_T
    starts = np.arange(0, len(step_T), size)
    count = np.diff(np.append(starts, len(step_T)))
    return np.add.reduceat(step_T, starts) / count, np.add.reduceat(value_T, starts) / count


def _log_axis(axes: Axes) -> None:
    """Logarithmic, with plain numbers: ticks such as 0.05 say more than powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    span = high / low
    few = (1.0,) if span > 3000 else (1.0, 3.0) if span > 300 else (1.0, 2.0, 5.0)
    subs = few if span > 3 else tuple(range(1, 10))
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _mark(axes: Axes, onset: Onset, text: str) -> None:
    """The interval of an onset as a band."""
    axes.axvspan(onset.lower, onset.upper, color=FALL, alpha=0.13, lw=0)
    if text:
        axes.text(
            (onset.lower + onset.upper) / 2,
            1.0,
            text,
            color=FALL,
            ha="center",
            va="bottom",
            fontsize=10.5,
            transform=axes.get_xaxis_transform(),
        )


def _label(axes: Axes, y: float, text: str, color: str) -> None:
    """A name for a horizontal line, to the right of the axes."""
    axes.text(
        1.01,
        y,
        text,
        color=color,
        va="center",
        fontsize=10,
        transform=axes.get_yaxis_transform(),
    )
