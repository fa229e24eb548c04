"""A remedy fits what was found: its direction, its step, its size."""

from __future__ import annotations

import pytest

from analysis.findings import Onset, SignalVerdict
from analysis.remedies import BAD_WHEN_LOWER, BY_SIGNAL, remedies_for
from analysis.signals import KIND


def candidate(kind: str, before: float, after: float) -> SignalVerdict:
    return SignalVerdict(
        f"{kind}:generator",
        KIND[kind].title,
        "generator",
        "1",
        "precedes",
        before,
        after,
        5.0,
        Onset(10, 9, 11),
        5.0,
        1.0,
        9.0,
        True,
        False,
        "",
    )


@pytest.mark.parametrize("kind", list(BY_SIGNAL))
def test_remedy_is_only_given_for_the_change_that_it_undoes(kind: str) -> None:
    worse, better = (0.4, 0.1) if kind in BAD_WHEN_LOWER else (0.1, 0.4)
    assert len(remedies_for((), (candidate(kind, worse, better),), 1e-3)) == 1
    assert remedies_for((), (candidate(kind, better, worse),), 1e-3) == ()
