"""Measure the diagnosis on a second world: runs written to resemble real ones, not the detectors.

    python bench/second_world.py --runs 100 --jobs 8
    python bench/second_world.py --only falling-runs --runs 20

Writes bench/results/second_world.md. Seeds are fixed: the same code gives the same tables. Nothing
that draws runs (`world_paths`, `world_families`, `world_curves`, `world_signals`, `world_stores`,
`world_runs`) shares a formula with `analysis`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from world_tables import SECTIONS, Settings

HEAD = (
    "# The diagnosis on a second world\n\n`python bench/second_world.py`, or `--only` some tables; "
    "seeds are fixed. In brackets: 95 % Wilson intervals.\n"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    names = [section[0] for section in SECTIONS]
    parser.add_argument("--runs", type=int, default=20, help="series or runs per cell")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=names, choices=names, help="tables")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "second_world.md"
    )
    options = parser.parse_args()
    settings = Settings(options.runs, options.jobs, options.seed)
    for name, title, caption, header, rows in SECTIONS:
        if name not in options.only:
            continue
        started = time.monotonic()
        lines = [f"## {title}", "", f"{caption} {options.runs} per cell, seed {options.seed}.", ""]
        lines += ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        print(*lines, sep="\n", flush=True)
        for row in rows(settings):
            lines.append("| " + " | ".join(row) + " |")
            print(lines[-1], flush=True)
        print(f"{title}: {time.monotonic() - started:.0f} s\n", flush=True)
        replace_section(options.out, title, "\n".join(lines) + "\n")


def replace_section(path: Path, title: str, section: str) -> None:
    """Put a table in the place of the one with its title; the others stay."""
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    kept = {part.split("\n", 1)[0]: "## " + part.rstrip() + "\n" for part in old.split("\n## ")[1:]}
    kept[title] = section
    body = [kept[one[1]] for one in SECTIONS if one[1] in kept]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join((HEAD, *body)), encoding="utf-8")


if __name__ == "__main__":
    main()
