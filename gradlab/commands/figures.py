"""gradlab figures: draw the figures of runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from gradlab.commands.note import note
from gradlab.commands.parsing import parse


@dataclass(frozen=True)
class FiguresOptions:
    """Draw the figures of one or many runs, as PDF and PNG with the numbers as CSV."""

    runs: Positional[tuple[Path, ...]]
    """Run directories or .zarr stores."""
    out: Path = Path("figures-out")
    """Directory to write."""


def figures(arguments: Sequence[str]) -> int:
    """Draw the figures of the given runs."""
    options = parse(FiguresOptions, "figures", arguments)
    from figures.make import make_figures

    for path in make_figures(options.runs, options.out, say=note):
        print(path)
    return 0
