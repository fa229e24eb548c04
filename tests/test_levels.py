"""Signals that leave their level are found at their step, wander and small changes are not."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t

from analysis.cliff.accuracy import AccuracySeries
from analysis.cliff.fall import Fall
from analysis.detectors.frozen import StillRule, share_interval
from analysis.detectors.levels import ENTROPY_COLLAPSE, KL_DRIFT, LENGTH_BLOW_UP, LEVEL_RULES
from analysis.detectors.shape import Context
from analysis.detectors.spikes import SpikeRule, _log_density
from analysis.findings import Onset
from analysis.signals import KIND
from analysis.synthetic.runs import Shift, Spike, autoregressive, synthetic_run
from gradlab.records import (
    Agent,
    PolicyMeta,
    RunLedger,
    RunMeta,
    StepRecord,
    UpdateMetrics,
    UpdateRecord,
)
from gradlab.store.run import open_run
from gradlab.store.writer import RunStore


def path(
    level: float, factor: float, seed: int, *, sd: float = 0.1, memory: float = 0.5
) -> np.ndarray:
    rng = np.random.default_rng(seed)
    noise = np.exp(sd * autoregressive(200, memory, rng))
    return level * noise * np.where(np.arange(200) >= 120, factor, 1.0)


@pytest.mark.parametrize("seed", range(4))
def test_collapse_is_found_at_its_step_with_its_interval(seed: int) -> None:
    change = ENTROPY_COLLAPSE.measure(path(0.6, 0.3, seed))
    assert change is not None
    assert change.p_value < 0.01
    assert change.lower <= 119 <= change.upper
    assert change.size_lower <= math.log(0.3) <= change.size_upper


def test_what_stays_or_wanders_or_changes_for_the_better_is_not_flagged() -> None:
    for seed in range(6):
        assert ENTROPY_COLLAPSE.measure(path(0.6, 1.0, seed)) is None
        assert ENTROPY_COLLAPSE.measure(path(0.3, 1.0, seed, sd=0.35, memory=0.9)) is None
        assert ENTROPY_COLLAPSE.measure(path(0.2, 3.0, seed)) is None  # it rises
        assert ENTROPY_COLLAPSE.measure(path(3.0, 0.3, seed)) is None  # not below 0.3 nats
        assert LENGTH_BLOW_UP.measure(path(100.0, 1.3, seed)) is None  # not half as long again


def test_gaps_and_short_series_are_not_judged() -> None:
    value_T = path(0.02, 8.0, 0)
    assert KL_DRIFT.measure(value_T) is not None
    assert KL_DRIFT.measure(value_T[:20]) is None
    value_T[::3] = np.nan
    assert KL_DRIFT.measure(value_T) is not None
    value_T[10:190] = np.nan
    assert KL_DRIFT.measure(value_T) is None


def test_rules_name_signals_that_exist() -> None:
    assert len({rule.kind for rule in LEVEL_RULES}) == len(LEVEL_RULES)
    assert {rule.signal for rule in LEVEL_RULES} <= set(KIND)


def test_findings_of_a_run_name_role_and_interval(tmp_path: Path) -> None:
    run = open_run(
        synthetic_run(
            tmp_path / "run",
            steps=100,
            evals=0,
            problems=0,
            shifts=(Shift("length_mean", "aggregator", 60, 2.5),),
        )
    )
    (finding,) = LENGTH_BLOW_UP(run)
    assert (finding.kind, finding.subject) == ("length blow-up", "aggregator")
    assert finding.onset is not None
    assert finding.onset.lower <= 60 <= finding.onset.upper
    assert finding.lower is not None
    assert finding.upper is not None
    assert finding.lower < 2.5 < finding.upper
    assert LENGTH_BLOW_UP.num_tested(run) == 2


def test_spike_is_found_at_its_step_and_a_change_of_level_is_none(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    norm_T = np.exp(0.3 * autoregressive(300, 0.8, rng))
    assert SpikeRule().measure(norm_T) is None
    spiked = norm_T.copy()
    spiked[[40, 200]] *= [15.0, 30.0]
    found = SpikeRule().measure(spiked)
    assert found is not None
    assert found.index.tolist() == [200, 40]
    assert found.p_value < 0.01
    stepped = norm_T * np.where(np.arange(300) >= 150, 30.0, 1.0)
    assert SpikeRule().measure(stepped) is None
    run = synthetic_run(
        tmp_path / "run", steps=80, evals=0, problems=0, spikes=(Spike("generator", 50, 40.0),)
    )
    judged = SpikeRule().judge(Context(open_run(run)))
    assert judged.findings == ()
    [mentioned] = judged.observed
    assert mentioned.what.startswith("harm of a gradient spike of generator at step 50")


@pytest.mark.parametrize(("fell", "is_found"), [(90, True), (160, False), (30, False)])
def test_spike_is_a_finding_where_accuracy_fell_after_it(
    tmp_path: Path, fell: int, is_found: bool
) -> None:
    run = synthetic_run(
        tmp_path, steps=200, evals=0, problems=0, spikes=(Spike("generator", 50, 40.0),)
    )
    drop = Fall("cliff", 20, onset=Onset(fell, fell, fell + 10))
    opened = open_run(run)
    judged = SpikeRule().judge(Context(opened, given=(AccuracySeries.of(opened), drop)))
    found = judged.findings
    assert (len(found), len(judged.observed)) == (int(is_found), int(not is_found))
    if is_found:
        assert found[0].onset == Onset(50, 50, 50)


def test_gradients_of_rounding_alone_make_no_spike_of_the_others() -> None:
    """Where no group has reward spread, what is left of a gradient is 1e-17 of it."""
    norm_T = np.exp(0.3 * np.random.default_rng(1).standard_normal(300))
    assert SpikeRule().measure(norm_T) is None
    norm_T[200:240] = 1e-17 * norm_T[200:240]
    norm_T[220] *= 1e17
    assert SpikeRule().measure(norm_T) is None


def test_norms_with_heavy_tails_are_no_spikes() -> None:
    """Of the null t(5), a fixed t(8) flags a fifth and t(3) two thirds; nominal is 5 %."""
    for degrees, most in ((5, 4), (3, 6)):
        flagged = 0
        for seed in range(60):
            rng = np.random.default_rng(seed)
            flagged += SpikeRule().measure(np.exp(0.3 * rng.standard_t(degrees, 300))) is not None
        assert flagged <= most


def test_tails_and_scale_are_recovered_beside_spikes() -> None:
    rule, rng = SpikeRule(), np.random.default_rng(0)
    residual_T = 0.3 * rng.standard_t(4, 5000)
    residual_T[:50] = 9.0
    degrees, scale = rule._fit_tails(residual_T)
    assert 3.5 <= degrees <= 5
    assert scale == pytest.approx(0.3, rel=0.05)
    assert _log_density(residual_T, 3.5) == pytest.approx(t.logpdf(residual_T, 3.5))


@pytest.mark.parametrize(("moved", "is_found"), [(0.0, True), (1e-12, True), (1e-5, False)])
def test_adapter_that_does_not_move_is_found(tmp_path: Path, moved: float, is_found: bool) -> None:
    meta = RunMeta.of_policies("a", [PolicyMeta("p", (Agent("judge"),), ("all",), 10)])
    with RunStore.create(tmp_path / "run.zarr", meta) as store:
        for step in range(1, 21):
            metrics = UpdateMetrics(
                learning_rate=1e-3, update_norm=moved, weight_norm=1.0, grad_norm=0.1
            )
            store.append(UpdateRecord("p", step, np.eye(1)[None], metrics=metrics))
            store.append(StepRecord(step, 0.0, RunLedger(), {}))
    found = StillRule()(open_run(tmp_path))
    assert [finding.kind for finding in found] == (["still adapter"] if is_found else [])
    if found:
        assert found[0].lower == pytest.approx(share_interval(20, 20)[0])
        assert any("not zero" in sentence for sentence in found[0].evidence)


def test_score_interval_by_hand() -> None:
    # z = 1.96, 8 of 10: (0.8 + 0.19208) / 1.38416 -+ 1.96 sqrt(0.016 + 0.009604) / 1.38416.
    assert share_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-3)
    assert share_interval(0, 0) == (0.0, 1.0)
