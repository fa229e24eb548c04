"""Say sizes and durations in the unit that suits them."""

from __future__ import annotations

GIB = 1 << 30


def size(num_bytes: float) -> str:
    """In the unit that suits it."""
    for unit, name in ((GIB, "GiB"), (1 << 20, "MiB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:,.1f} {name}"
    return f"{num_bytes / 1024:,.1f} KiB"


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
