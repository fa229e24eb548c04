"""Turn a run into a diagnosis: did it fall, since when, what moved before, what to change."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import numpy as np

from analysis.cliff.accuracy import AccuracySeries, outcome_of
from analysis.cliff.fall import Fall
from analysis.cliff.same_problems import ChangedSetRule
from analysis.cliff.scan import FEW
from analysis.detect import Detectors, detect
from analysis.detectors.shape import Context
from analysis.detectors.table import KINDS
from analysis.explain.agreement import agreed
from analysis.explain.commands import checkpoint_before, run_directory
from analysis.explain.constant_rate import too_large
from analysis.explain.remedies import remedies
from analysis.explain.separation import separation
from analysis.explain.suspects import Storyteller
from analysis.explain.verdict import candidates, confidence, unfinished, verdict
from analysis.findings import DROPS, Accuracy, Cause, Diagnosis, Finding, SignalVerdict, Status
from analysis.not_judged import unjudged
from analysis.replays.results import read_replays
from analysis.signals import collect
from gradlab.run_directory import run_name
from gradlab.store.run import Run


def diagnose(run: Run, detectors: Detectors | None = None) -> Diagnosis:
    """Judge a whole run; up to 2 s for 500 steps and 50 evaluations.

    Example:
        >>> diagnose(open_run("runs/voting-shared")).verdict
        'No fall: held-out accuracy went from ...'
    """
    detectors = detectors or Detectors()
    _check_order(run)
    series = outcome_of(run)
    drop = detectors.cliff.measure(series)
    drop = _comparable(series, drop, detectors)
    found = detect(Context(run, given=(series, drop)), detectors.rules)
    findings = found.findings
    broken, capture = found.of_kind("role breakdown"), found.of_kind("capture")
    signals = collect(run)
    verdicts = agreed(tuple(detectors.order(signals, run.steps, drop)), findings)
    # Replays are of the whole run, and say nothing about a part of it.
    replays = read_replays(run.path.resolve().parent) if run.until is None else ()
    causes = Storyteller(max_lead=detectors.order.max_lead)(
        drop,
        findings,
        verdicts,
        {role: names[0] for role in run.roles if len(names := run.meta.policies_of(role)) == 1},
        replays,
        too_large(run, drop),
    )
    return Diagnosis(
        run.meta.run_id,
        _name(run),
        _status(drop, broken, is_finished=not unfinished(run)),
        verdict(run, drop, findings, replays),
        confidence(drop, capture, replays),
        _accuracy(series, drop),
        findings,
        verdicts,
        candidates(drop, causes),
        causes,
        _explanation(run, drop, findings, causes, verdicts),
        remedies(run, findings, verdicts, causes),
        (
            *unjudged(run, drop, signals, detectors),
            *found.not_judged,
        ),
        _settings(detectors),
    )


def _comparable(series: AccuracySeries, drop: Fall, detectors: Detectors) -> Fall:
    """The fall, unless the evaluation set changed where it began: then nothing was compared."""
    if drop.onset is None or series.solved_TP is None:
        return drop
    last = int(np.searchsorted(series.step_T, drop.onset.step))
    if detectors.rule(ChangedSetRule).around(series, last) is None:
        return drop
    return replace(drop, shape="changed set", onset=None, changed_after=last)


def _explanation(
    run: Run,
    drop: Fall,
    findings: tuple[Finding, ...],
    causes: tuple[Cause, ...],
    verdicts: tuple[SignalVerdict, ...],
) -> str:
    """How far the evidence on suspects goes."""
    if drop.onset is None:
        return ""
    folder = run_directory(run)
    can_replay = folder is not None and checkpoint_before(folder, drop.onset.lower) > 0
    said = separation(causes, verdicts, can_replay=can_replay)
    beside = [(KINDS[f.kind].beside_fall, f) for f in findings if f.kind in KINDS]
    first = [words for words, f in beside if words and _is_near(f, drop)]
    return " ".join((*dict.fromkeys(first), said))


def _is_near(finding: Finding, drop: Fall) -> bool:
    """Do the two begin within the width of the fall of one another?"""
    if finding.onset is None or drop.onset is None:
        return False
    reach = max(drop.width_steps, drop.onset.upper - drop.onset.lower)
    return abs(finding.onset.step - drop.onset.step) <= reach


def _settings(detectors: Detectors) -> dict[str, float | int | str]:
    """The thresholds that matter most."""
    return {
        "drop: alpha": detectors.cliff.alpha,
        "drop: smallest reported": detectors.cliff.min_drop,
        **{name: value for rule in detectors.rules for name, value in rule.thresholds().items()},
        "order: probability": detectors.order.min_probability,
        "order: longest lead (steps)": detectors.order.max_lead,
    }


def _status(drop: Fall, broken: list[Finding], *, is_finished: bool) -> Status:
    if broken and drop.shape not in DROPS:
        return "role breakdown"
    if drop.shape == "changed set":
        return "not judged"
    if drop.shape in ("none", "too few evaluations"):
        if drop.num_evaluations < FEW:
            return "not judged"
        return "healthy" if is_finished else "unfinished"
    if drop.shape == "never learned" and not is_finished:
        return "unfinished"
    return cast(Status, drop.shape)


def _accuracy(series: AccuracySeries, drop: Fall) -> Accuracy:
    """The numbers of the fall test: what the page, figures, CSV and JSON show is what it judged."""
    num_problems = 0 if series.solved_TP is None else series.solved_TP.shape[1]
    scale = drop.high_value - drop.low_value
    return Accuracy(
        drop.num_evaluations,
        num_problems,
        0 if drop.is_assumed or not len(series) else int(series.trials_T[-1]),
        drop.value(drop.base),
        drop.value(drop.top),
        drop.top_step,
        drop.value(drop.bottom),
        scale * drop.detectable_drop,
        drop.outcome,
        drop.window,
        drop.end_window,
        scale * drop.drop,
        scale * drop.drop_lower,
        scale * drop.drop_upper,
        drop.width_steps,
        drop.width_share if drop.onset else math.nan,
        drop.progress if drop.onset else "",
        drop.kind if drop.onset else "",
        len(drop.swings),
        scale * max((swing.size for swing in drop.swings), default=math.nan),
        scale * drop.wander,
        drop.is_assumed,
    )


def _check_order(run: Run) -> None:
    """Refuse a store whose rows another program put out of order: every signal would be wrong."""
    groups = {"train": (run.steps, True), "eval": (run.evaluations().step_E, True)}
    for policy in run.policies:
        step_U = run.update_metric("rows", policy.name).step_T
        groups[f"updates/{policy.name}"] = (step_U, False)
    for name, (step, is_strict) in groups.items():
        wrong = np.flatnonzero(np.diff(step) < int(is_strict))
        if len(wrong):
            first = int(wrong[0])
            raise ValueError(
                f"{run.path / name}: step {int(step[first + 1])} comes after step "
                f"{int(step[first])}, expected rows in the order of steps; gradlab writes no such "
                f"store: write it again with gradlab.store.writer.RunStore, or import its source "
                f"with "
                f"gradlab import"
            )


def _name(run: Run) -> str:
    """Of the run's directory, or of a store on its own."""
    return run_name(run.path.resolve())
