"""Read options from a TOML file, by the names that they have on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gradlab.option_values import options_of, read_toml


def read_options(kind: type[Any], path: Path) -> dict[str, Any]:
    """The values that a file gives, by field name; `preset` may be among them.

    Raises ValueError for a file that cannot be read, and for what `options_of` refuses.
    """
    return options_of(kind, read_toml(path, f"--config {path}"), f"--config {path}")
