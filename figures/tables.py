"""Write the numbers behind a figure as CSV."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

CellValue = str | int | float


@dataclass(frozen=True)
class Table:
    """Columns and rows; NaN is an empty field."""

    columns: tuple[str, ...]
    rows: list[tuple[CellValue, ...]]

    def write(self, path: Path) -> None:
        """Write with every digit: reading a number back gives the same float."""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(self.columns)
            writer.writerows([_plain(value) for value in row] for row in self.rows)


def _plain(value: CellValue) -> str:
    if isinstance(value, float):
        return repr(float(value)) if math.isfinite(value) else ""
    return str(value)
