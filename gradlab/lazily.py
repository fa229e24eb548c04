"""Give a package names that are loaded when they are asked for: reading a run loads no torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazily(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package; `homes`: name -> module that defines it."""

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(
                f"module '{package}' has no attribute '{name}'; it gives {', '.join(homes)}, and "
                "its modules by their own names"
            )
        value = getattr(import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)  # asked once
        return value

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return load, listed
