"""A constant rate is held against the length of its own steps, also where no time was before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from stores import store_of

from analysis.cliff.fall import Fall
from analysis.cliff.fall import Kind as FallKind
from analysis.explain.constant_rate import too_large
from analysis.findings import Onset
from gradlab.store.run import Run

STEPS = 40


def run_of(path: Path, *, length: float, kl_per_step: float) -> Run:
    """Updates of `length` on weights of 10 at one rate; KL grows from the first step on."""
    every = np.ones(STEPS)
    return store_of(
        path,
        roles={"agent": {"kl": kl_per_step * np.arange(STEPS)}},
        updates={
            "learning_rate": 6e-3 * every,
            "update_norm": length * every,
            "weight_norm": 10.0 * every,
        },
    )


@pytest.mark.parametrize(
    ("kind", "length", "kl_per_step", "evidence"),
    [
        ("early collapse", 0.5, 0.2, ["KL of agent grew", "updates of 5.0 %"]),
        # A collapse makes the way long whatever its cause, and one sign alone is none.
        ("early collapse", 0.1, 0.2, []),
        ("early collapse", 0.5, 0.001, []),
        # Four steps before the fall tell no speed; one sign is left.
        ("", 0.5, 0.2, []),
    ],
)
def test_an_early_collapse_is_judged_by_the_steps_of_the_fall(
    tmp_path: Path, kind: FallKind, length: float, kl_per_step: float, evidence: list[str]
) -> None:
    run = run_of(tmp_path, length=length, kl_per_step=kl_per_step)
    drop = Fall("cliff", 10, onset=Onset(0, 0, 4), end_step=20, kind=kind)
    found = [words for one in too_large(run, drop) for words in one.evidence]
    assert len(found) == len(evidence)
    assert all(told.startswith(begin) for told, begin in zip(found, evidence, strict=True))


def test_a_later_fall_is_judged_by_the_way_before_it(tmp_path: Path) -> None:
    run = run_of(tmp_path, length=0.1, kl_per_step=0.05)
    late = Fall("cliff", 10, onset=Onset(30, 28, 32), end_step=36)
    [found] = too_large(run, late)
    assert found.policy == "shared"
    assert found.evidence == ("KL of agent grew by 1.4 nats per token in 30 steps",)
    assert too_large(run, Fall("none", 10)) == ()
