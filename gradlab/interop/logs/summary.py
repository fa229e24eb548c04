"""Tell what an import took, what it left out, and what the run lacks."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import wrap

from gradlab.interop.logs.importing import Imported
from gradlab.interop.logs.naming.matching import NO_FIELD

WIDTH = 100
IN_FULL = 3
"""Metrics of one group that are given by name."""


def told(imported: Imported) -> Iterator[str]:
    """The import in lines of text."""
    meta, matched = imported.meta, imported.matched
    policies = len(meta.policies)
    routing = "one policy" if policies == 1 else f"{policies} policies"
    yield (
        f"{imported.out}: {', '.join(imported.kinds)}, {imported.num_steps} steps, "
        f"{imported.num_evaluations} evaluations, {', '.join(meta.roles)} in {routing}"
    )
    yield f"Taken, {len(matched.taken)} metrics:"
    width = max(map(len, matched.taken))
    for metric, targets in matched.taken.items():
        yield f"  {metric:{width}}  {', '.join(map(str, targets))}"
    reasons = {m: why for m, why in matched.refused.items() if why != NO_FIELD}
    for metric, why in reasons.items():
        yield from _wrapped(f"Not taken: {metric} ({why})")
    without = [m for m, why in matched.refused.items() if why == NO_FIELD]
    if without:
        groups: dict[str, list[str]] = {}
        for name in without:
            groups.setdefault(name.partition("/")[0] if "/" in name else name, []).append(name)
        shown = [
            f"{group}/… ({len(names)})" if len(names) > IN_FULL else ", ".join(names)
            for group, names in groups.items()
        ]
        yield from _wrapped(
            f"Not taken, {len(without)} metrics without a field here: {', '.join(shown)}"
        )
    for note in imported.notes:
        yield from _wrapped(f"Note: {note}.")
    for lack in imported.lacks:
        yield from _wrapped(f"Missing: {lack.what}; needed for {lack.needed_for}.")
    yield f"Next: gradlab diagnose {imported.out}"


def _wrapped(text: str) -> list[str]:
    return wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
