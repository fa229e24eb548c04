"""Draw every figure of the paper from run stores: PDF, PNG and the numbers behind as CSV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from figures.accuracy import AccuracyFigure
from figures.amplification import AmplificationFigure
from figures.cells import NothingToShowError, order, split
from figures.cosine import CosineFigure
from figures.empirical_map import EmpiricalMap
from figures.norms import NormsFigure
from figures.reward_components import RewardComponentsFigure
from figures.step_mass import StepMassFigure
from figures.style import paper
from figures.tables import Table
from gradlab.store.run import Run, open_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class PaperFigure(Protocol):
    """What every figure of the paper offers."""

    @property
    def name(self) -> str:
        """File name without its ending."""

    @property
    def per_page(self) -> int:
        """Runs on one page."""

    def missing(self, run: Run) -> str | None:
        """Why the run has nothing to show; None if it has."""

    def draw(self, runs: Sequence[Run], among: Sequence[Run] | None = None) -> Figure:
        """The figure of `runs`, a page of `among`."""

    def table(self, runs: Sequence[Run]) -> Table:
        """The numbers behind the figure."""


FIGURES: tuple[PaperFigure, ...] = (
    AccuracyFigure(),
    NormsFigure(),
    StepMassFigure(),
    CosineFigure(),
    AmplificationFigure(),
    EmpiricalMap(),
    RewardComponentsFigure(),
)


def make_figures(
    paths: Sequence[Path | str],
    out: Path | str,
    *,
    figures: Sequence[PaperFigure] = FIGURES,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Write all figures of the runs at `paths` into the folder `out`; returns the files written.

    A figure with nothing to show for any run is skipped; `say` is told why. With more runs than
    fit a page, a figure has several: accuracy.pdf with all of them, accuracy-1.png, accuracy-2.png.

    Example:
        >>> make_figures(["runs/shared", "runs/isolated"], "paper")
    """
    if not paths:
        raise ValueError("no runs given; expected the folders of one or more, such as runs/*")
    runs = sorted((open_run(path) for path in dict.fromkeys(map(Path, paths))), key=order)
    folder_out = Path(out)
    if folder_out.exists() and not folder_out.is_dir():
        raise ValueError(f"{folder_out} is a file; expected a folder to write the figures into")
    folder_out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for figure in figures:
        try:
            shown, absent = split(figure.name, runs, figure.missing)
        except NothingToShowError as nothing:
            say(f"skipped {nothing}")
            continue
        if absent:
            say(f"{figure.name}: {absent}")
        written += _write(figure, runs, shown, folder_out)
    return written


def _write(figure: PaperFigure, runs: Sequence[Run], shown: Sequence[Run], out: Path) -> list[Path]:
    """One PDF with all pages, one PNG per page, one CSV; the last page names what is not shown."""
    from matplotlib.backends.backend_pdf import PdfPages

    pages = [list(shown[i : i + figure.per_page]) for i in range(0, len(shown), figure.per_page)]
    pages[-1] += [run for run in runs if run not in shown]
    pictures = []
    # No date inside: the same store gives the same bytes.
    with paper(), PdfPages(out / f"{figure.name}.pdf", metadata={"CreationDate": None}) as pdf:
        for number, page in enumerate(pages, 1):
            drawn = figure.draw(page, among=runs)
            pdf.savefig(drawn)
            drawn.set_layout_engine("none")  # keep the layout: the PNG is the same picture
            suffix = "" if len(pages) == 1 else f"-{number}"
            pictures.append(out / f"{figure.name}{suffix}.png")
            drawn.savefig(pictures[-1])
    figure.table(runs).write(out / f"{figure.name}.csv")
    return [out / f"{figure.name}.pdf", *pictures, out / f"{figure.name}.csv"]
