"""Draw the figures of the runs named on the command line: `python -m figures RUN... --out DIR`."""

from __future__ import annotations

import argparse
from pathlib import Path

from figures.make import make_figures


def main() -> None:
    """Parse the command line, write the files, name them."""
    parser = argparse.ArgumentParser(prog="python -m figures", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, or run stores")
    parser.add_argument("--out", type=Path, default=Path("figures-out"), help="where to write")
    chosen = parser.parse_args()
    for path in make_figures(chosen.runs, chosen.out):
        print(path)


if __name__ == "__main__":
    main()
