"""Give every figure one look: a paper's column, small type, one colour and line per role.

Colours are Okabe-Ito (`gradlab.palette`); every role also has its own dash and marker, so that a
figure survives grayscale. Figures are made without pyplot: nothing is global, nothing stays open.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from gradlab.arrays import Floats
from gradlab.palette import BLACK, GREY, role_color

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D


COLUMN = 3.35
"""Width of a paper's column, in inches."""
SMALL, TINY = 7.0, 6.0
"""Sizes of labels and of ticks, notes and numbers in cells, in points."""
PALE, INK, FAINT, YELLOW = "#D9D9D9", BLACK, GREY, "#F0E442"
"""Neutral colours and a highlight: none of them is a role's."""

RC: Any = {
    "font.size": SMALL,
    "axes.titlesize": SMALL,
    "axes.labelsize": SMALL,
    "xtick.labelsize": TINY,
    "ytick.labelsize": TINY,
    "legend.fontsize": SMALL,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlepad": 3.0,
    "axes.labelpad": 2.0,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.0,
    "ytick.major.size": 2.0,
    "xtick.minor.size": 1.2,
    "ytick.minor.size": 1.2,
    "xtick.major.pad": 1.5,
    "ytick.major.pad": 1.5,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.0,
    "lines.dash_capstyle": "butt",
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "legend.columnspacing": 1.2,
    "legend.handletextpad": 0.5,
    "legend.borderaxespad": 0.2,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # text stays text
}

Dash = Literal["solid"] | tuple[float, tuple[float, ...]]
ROLE_MARKS: dict[str, tuple[Dash, str]] = {
    "generator": ("solid", "o"),
    "aggregator": ((0.0, (4.0, 1.5)), "s"),
    "evaluator": ((0.0, (1.2, 1.2)), "^"),
    "orchestrator": ((0.0, (5.0, 1.2, 1.2, 1.2)), "D"),
    "worker": ("solid", "v"),
    "synthesizer": ((0.0, (2.5, 1.2)), "P"),
    "solver": ("solid", "X"),
}
"""Dash and marker by role."""
UNKNOWN_ROLES: tuple[tuple[Dash, str], ...] = (
    ((0.0, (3.0, 1.0, 1.0, 1.0, 1.0, 1.0)), "*"),
    ((0.0, (6.0, 2.0)), "h"),
    ((0.0, (1.0, 2.0)), "<"),
    ((0.0, (4.0, 1.0, 1.0, 1.0)), ">"),
    ((0.0, (2.0, 2.0)), "p"),
)
"""Of roles that have no mark of their own: two that share a colour seldom share these, too."""


@dataclass(frozen=True)
class RoleStyle:
    """How a role is drawn, in every figure."""

    color: str
    dash: Dash
    marker: str


def role_style(role: str, among: Iterable[str]) -> RoleStyle:
    """The role's colour, dash and marker among the roles of a figure."""
    unknown = UNKNOWN_ROLES[zlib.crc32(role[::-1].encode()) % len(UNKNOWN_ROLES)]
    dash, marker = ROLE_MARKS.get(role, unknown)
    return RoleStyle(role_color(role, among), dash, marker)


@contextmanager
def paper() -> Iterator[None]:
    """Draw inside with this style alone, whatever the user's matplotlibrc says."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC)
        yield


def blank(height: float) -> Figure:
    """An empty figure of a column's width."""
    from matplotlib.figure import Figure

    return Figure(figsize=(COLUMN, height), layout="constrained")


def small_multiples(
    names: Sequence[str], y_label: str, *, head: float, has_verdicts: bool = False
) -> tuple[Figure, list[Axes]]:
    """One panel per name, two beside each other, over training steps and on the same y axis.

    `head` is the height left for the legend, in inches; `has_verdicts` leaves a line for one.
    """
    num = len(names)
    columns = 1 if num == 1 else 2
    rows = math.ceil(num / columns)
    lines = max(len(title_lines(name, is_wide=num == 1)) for name in names) + has_verdicts
    each = (1.5 if num == 1 else 1.1 if rows <= 3 else 0.9) + 0.11 * lines
    figure = blank(head + rows * each)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    panels = list(grid.ravel())
    for unused in panels[num:]:
        unused.set_axis_off()
    for lowest in panels[max(num - columns, 0) : num]:
        lowest.set_xlabel("training step")
    figure.supylabel(y_label, size=SMALL)
    return figure, panels[:num]


def legend(figure: Figure, handles: Sequence[Any], *, columns: int) -> None:
    """The figure's one legend, above all panels."""
    if handles:
        figure.legend(handles=list(handles), loc="outside upper center", ncols=columns)


def role_handle(role: str, among: Iterable[str]) -> Line2D:
    """The legend entry of a role."""
    from matplotlib.lines import Line2D

    style = role_style(role, among)
    return Line2D([], [], color=style.color, linestyle=style.dash, marker=style.marker, label=role)


def role_line(
    axes: Axes,
    role: str,
    step_T: NDArray[np.int64],
    value_T: Floats,
    among: Iterable[str],
    markersize: float = 3.0,
) -> None:
    """A role's series: raw values faint, running median bold."""
    style = role_style(role, among)
    window = max(1, len(value_T) // 40)
    middle_T = running_median(value_T, window)
    if window > 1:
        axes.plot(step_T, value_T, color=style.color, linewidth=0.4, alpha=0.3)
    axes.plot(
        step_T,
        middle_T,
        color=style.color,
        linestyle=style.dash,
        marker=style.marker,
        markevery=(0, max(1, len(step_T) // 6)),
        markersize=markersize,
    )


def running_median(value_T: Floats, window: int) -> Floats:
    """Median of the finite values within `window` steps on either side; NaN without any."""
    value_T = np.asarray(value_T, dtype=np.float64)
    if window <= 1:
        return value_T
    padded = np.pad(value_T, window, constant_values=np.nan)
    around = np.lib.stride_tricks.sliding_window_view(padded, 2 * window + 1)
    result = np.full(len(value_T), np.nan)
    known = np.isfinite(around).any(axis=1)
    result[known] = np.nanmedian(around[known], axis=1)
    return result


def note(axes: Axes, text: str) -> None:
    """Say in an empty panel what is missing."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", size=TINY, color=FAINT)


def title(axes: Axes, text: str, verdict: str | None = None, *, is_wide: bool = False) -> None:
    """A panel's title: first line bold, then what does not fit it, then a verdict in grey."""
    head, *rest = title_lines(text, is_wide=is_wide)
    lines = [(head, SMALL, INK), *((line, TINY, INK) for line in rest)]
    if verdict is not None:
        lines.append((verdict, TINY, FAINT))
    axes.set_title("\n".join(" " for _ in lines), loc="left")  # the room that they need
    for number, (line, size, color) in enumerate(reversed(lines)):
        written = axes.annotate(
            line,
            (0, 1),
            (0, 3.0 + 7.6 * number),
            xycoords="axes fraction",
            textcoords="offset points",
            size=size,
            color=color,
            weight="bold" if number == len(lines) - 1 else "normal",
        )
        written.set_in_layout(False)


def title_lines(text: str, *, is_wide: bool = False) -> list[str]:
    """Lines of a title, broken between its parts; a part longer than a line loses its middle."""
    first, width = (44, 58) if is_wide else (21, 28)  # bold and regular letters of a panel's width
    lines: list[str] = []
    for whole in text.split(" · "):
        limit = first if len(lines) <= 1 else width
        if lines and len(lines[-1]) + 3 + len(whole) <= limit:
            lines[-1] += f" · {whole}"
        else:
            lines.append(shortened(whole, width if lines else first))
    return lines


def shortened(text: str, width: int) -> str:
    """The text, its longest part cut in the middle when the whole is longer than `width`."""
    surplus = len(text) - width
    if surplus <= 0:
        return text
    parts = text.split(" · ")
    longest = max(range(len(parts)), key=lambda index: len(parts[index]))
    keep = max(len(parts[longest]) - surplus - 1, 2)
    left, right = parts[longest][: keep - keep // 2], parts[longest][-(keep // 2) :]
    parts[longest] = f"{left}…{right}"
    return " · ".join(parts)


def few_ticks(axes: Axes, step_T: NDArray[np.int64], num: int = 4) -> None:
    """All steps on the axis, with at most `num` intervals between round whole ones."""
    from matplotlib.ticker import MaxNLocator

    if len(step_T) == 1:
        axes.set_xlim(step_T[0] - 1, step_T[0] + 1)
        axes.set_xticks([int(step_T[0])])
    else:
        pad = 0.04 * (step_T[-1] - step_T[0])
        axes.set_xlim(step_T[0] - pad, step_T[-1] + pad)
        axes.xaxis.set_major_locator(MaxNLocator(num, integer=True, steps=[1, 2, 2.5, 5, 10]))


def row_title(axes: Axes, text: str, *, has_column_heads: bool) -> None:
    """The title of a row of panels, at the height of `axes`, from the figure's left edge on."""
    lift = 3.0 + (1.25 * SMALL if has_column_heads else 0.0)
    axes.set_title(" \n " if has_column_heads else " ", loc="left")
    written = axes.annotate(
        shortened(text, 52),
        (0.01, 1),
        (0, lift),
        xycoords=("figure fraction", "axes fraction"),
        textcoords="offset points",
        weight="bold",
    )
    written.set_in_layout(False)


def footnote(figure: Figure, text: str) -> None:
    """A line in grey under all panels, such as what is not shown and why."""
    if text:
        figure.supxlabel(fill(text, 72), size=TINY, color=FAINT, style="italic", x=0.01, ha="left")
