"""Keep where a run logged values that are not finite: NaN that was logged is information."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gradlab.interop.logs.history import History

SHOWN = 6


def not_finite(history: History) -> dict[str, dict[str, int]]:
    """By metric: the first and the last step at which it was not finite, at how many it was, and
    at how many it was logged. Metrics that always were finite are left out."""
    found = {}
    for name, value_T in history.metrics.items():
        logged_T = history.is_logged.get(name, np.isfinite(value_T))
        wrong = history.step_T[logged_T & ~np.isfinite(value_T)]
        if len(wrong):
            found[name] = {
                "first": int(wrong[0]),
                "last": int(wrong[-1]),
                "count": len(wrong),
                "logged": int(logged_T.sum()),
            }
    return found


def told_not_finite(found: Mapping[str, Mapping[str, int]]) -> list[str]:
    """The same in words, those with the same steps together."""
    by_steps: dict[tuple[int, ...], list[str]] = {}
    for name, where in found.items():
        key = (where["first"], where["last"], where["count"], where["logged"])
        by_steps.setdefault(key, []).append(name)
    notes = []
    for (first, last, count, logged), names in by_steps.items():
        shown = ", ".join(names[:SHOWN])
        shown += f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        verb = "is" if len(names) == 1 else "are"
        at = f"at step {first}" if count == 1 else f"at {count} steps from {first} to {last}"
        notes.append(f"{shown} {verb} not finite {at}, of {logged} logged")
    return notes
