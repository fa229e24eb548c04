"""Turn a run into a diagnosis: did it fall, since when, what moved before, what to change."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from analysis.amplification import AmplificationTest
from analysis.breakdown import BreakdownRule
from analysis.capture import CaptureRule
from analysis.causes import UNRECORDED, OnsetOrder
from analysis.cliff import AccuracySeries, CliffResult, CliffTest
from analysis.findings import (
    Accuracy,
    Diagnosis,
    Finding,
    NotJudged,
    SignalVerdict,
    Status,
    percent,
    points,
)
from analysis.remedies import remedies_for
from analysis.signals import Measured, collect
from gradlab.store import RUN_ZARR, Run

MAX_RESIDUAL = 0.02
"""Of a gradient that its agents do not explain; bfloat16 rounding stays below."""

ROLE_CHECKS = (
    ("own_accuracy", "own accuracy", -1),
    ("any_correct", "any correct turn", -1),
    ("choice_accuracy", "choice given a correct candidate", -1),
    ("false_accept", "wrong solutions accepted", 1),
    ("false_reject", "correct solutions rejected", 1),
    ("parse_failures", "parse failures", 1),
    ("truncated", "truncated responses", 1),
)
"""Shares of `RoleEvaluation`, and the sign in which they get worse."""


@dataclass(frozen=True)
class Detectors:
    """The detectors of a diagnosis, with their thresholds."""

    cliff: CliffTest = field(default_factory=CliffTest)
    capture: CaptureRule = field(default_factory=CaptureRule)
    amplification: AmplificationTest = field(default_factory=AmplificationTest)
    breakdown: BreakdownRule = field(default_factory=BreakdownRule)
    order: OnsetOrder = field(default_factory=OnsetOrder)


def diagnose(run: Run, detectors: Detectors | None = None) -> Diagnosis:
    """Judge a whole run; up to 2 s for 500 steps and 50 evaluations.

    Example:
        >>> diagnose(open_run("runs/voting-shared")).verdict
        'No terminal cliff: ...'
    """
    detectors = detectors or Detectors()
    series = AccuracySeries.of(run)
    drop = detectors.cliff.measure(series)
    capture, unjudged_capture = detectors.capture.judge(run)
    broken = detectors.breakdown(run)
    amplification, unjudged_amplification = detectors.amplification.judge(run)
    drops = [
        replace(finding, evidence=(*_located(run, series, drop), *finding.evidence))
        for finding in detectors.cliff.findings(drop)
    ]
    findings = (*_instrumentation(run), *drops, *broken, *capture, *amplification)
    signals = collect(run)
    verdicts = tuple(detectors.order(signals, run.steps, drop))
    accuracy = _accuracy(series, drop)
    status = _status(drop, broken)
    to_remedy = tuple(
        # More steps for the parallel role is the paper's set-up: no remedy while nothing fails.
        finding
        for finding in findings
        if status != "healthy" or finding.kind != "path amplification"
    )
    return Diagnosis(
        run.meta.run_id,
        run.path.parent.name if run.path.name == RUN_ZARR else run.path.stem,
        status,
        _verdict(run, drop, accuracy, [*broken, *capture]),
        _confidence(drop, drops, capture),
        accuracy,
        findings,
        verdicts,
        _candidates(drop, verdicts, findings),
        remedies_for(to_remedy, verdicts, _learning_rate(run)),
        (
            *_unjudged(run, series, drop, signals, detectors),
            *unjudged_capture,
            *unjudged_amplification,
        ),
        {
            "drop: alpha": detectors.cliff.alpha,
            "drop: smallest reported": detectors.cliff.min_drop,
            "capture: odds ratio": detectors.capture.enter,
            "capture: rise of the odds": detectors.capture.shift_enter,
            "amplification: alpha": detectors.amplification.alpha,
            "amplification: smallest DEFF": detectors.amplification.min_deff,
            "order: probability": detectors.order.min_probability,
            "order: longest lead (steps)": detectors.order.max_lead,
        },
    )


def _status(drop: CliffResult, broken: list[Finding]) -> Status:
    if drop.shape in ("none", "too few evaluations") and broken:
        return "role breakdown"
    if drop.shape == "none":
        return "healthy"
    return "not judged" if drop.shape == "too few evaluations" else drop.shape


def _verdict(run: Run, drop: CliffResult, accuracy: Accuracy, others: list[Finding]) -> str:
    also = " ".join(
        f"{finding.subject} captured policy '{run.policy_of(finding.subject).name}' from "
        f"step {finding.onset.step}."
        if finding.kind == "capture"
        else finding.summary
        for finding in others
        if finding.onset and finding.kind in ("capture", "role breakdown")
    )
    if drop.shape == "too few evaluations":
        num = drop.num_evaluations
        start = f"Too short to judge: {num} evaluation{'' if num == 1 else 's'}, 8 are needed."
    elif drop.shape == "none":
        start = (
            f"No terminal cliff: held-out accuracy went from {percent(accuracy.base)} to "
            f"{percent(accuracy.terminal)}. A fall of {points(accuracy.detectable_drop)} or more "
            "would have been found in 4 of 5 such runs."
        )
    else:
        assert drop.onset is not None
        what = {
            "cliff": "Accuracy fell off a cliff",
            "slow decay": f"Accuracy decayed over {drop.end_step - drop.onset.step} steps",
            "unresolved drop": "Accuracy dropped",
        }[drop.shape]
        start = (
            f"{what}: from {percent(drop.top)} to {percent(drop.bottom)}, beginning between steps "
            f"{drop.onset.lower} and {drop.onset.upper}."
        )
        if drop.only_last:
            start += " Only the last evaluation shows it."
    return f"{start} {also}".strip()


def _confidence(drop: CliffResult, drops: list[Finding], capture: list[Finding]) -> str:
    parts = []
    if drops and drop.onset:
        parts.append(
            f"{drops[0].confidence} that accuracy fell (p = {drop.p_value:.3f}; 95 % interval "
            f"{100 * drop.drop_lower:.0f} to {100 * drop.drop_upper:.0f} points)"
        )
        parts.append("what moved before is an order in time, not a cause")
    elif drop.shape == "none":
        parts.append(
            f"the test for a drop gave p = {drop.p_value:.2f} on {drop.num_evaluations} evaluations"
        )
    parts += [
        f"{finding.confidence} on the capture by {finding.subject}"
        for finding in capture
        if finding.kind == "capture"
    ]
    return "; ".join(parts) or "none: nothing could be judged on accuracy"


def _accuracy(series: AccuracySeries, drop: CliffResult) -> Accuracy:
    if not len(series):
        return Accuracy()
    window = min(max(drop.window, 1), len(series))
    kernel = np.ones(window)
    level = np.convolve(series.correct_T, kernel, "valid") / np.convolve(
        series.trials_T, kernel, "valid"
    )
    best = int(np.argmax(level))
    num_problems = 0 if series.solved_TP is None else series.solved_TP.shape[1]
    return Accuracy(
        len(series),
        num_problems,
        int(series.trials_T[-1]),
        float(series.rate_T[0]),
        float(level[best]),
        int(series.step_T[best + window // 2]),
        float(level[-1]),
        drop.detectable_drop,
    )


def _located(run: Run, series: AccuracySeries, drop: CliffResult) -> list[str]:
    """Where the drop sits: which problems, which role."""
    if drop.onset is None:
        return []
    sentences = []
    before = (series.step_T <= drop.onset.step) & (
        np.arange(len(series)) > np.searchsorted(series.step_T, drop.onset.step) - drop.window
    )
    after = series.step_T >= drop.end_step
    if series.solved_TP is not None:
        first = _column_means(series.solved_TP[before])
        last = _column_means(series.solved_TP[after])
        lost = int(np.sum((first >= 0.5) & (last < 0.5)))
        gained = int(np.sum((first < 0.5) & (last >= 0.5)))
        sentences.append(
            f"of {len(first)} problems, {lost} were mostly solved before and mostly not after, "
            f"{gained} the other way round"
        )
    evaluations = run.evaluations()
    changes = []
    for role in run.roles:
        for name, title, sign in ROLE_CHECKS:
            signal = evaluations.role(name, role)
            value = np.asarray(signal.value_T, dtype=np.float64)
            early = value[np.isin(signal.step_T, series.step_T[before])]
            late = value[np.isin(signal.step_T, series.step_T[after])]
            early, late = early[np.isfinite(early)], late[np.isfinite(late)]
            if len(early) and len(late):
                change = float(late.mean() - early.mean())
                if sign * change >= 0.05:
                    text = f"{role}: {title} {percent(early.mean())} to {percent(late.mean())}"
                    changes.append((abs(change), text))
    sentences += [text for _, text in sorted(changes, reverse=True)[:3]]
    return sentences


def _column_means(
    value_TP: np.ndarray[tuple[int, int], np.dtype[np.float64]],
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """[P] means over evaluations of what was graded; NaN where nothing was."""
    known = np.isfinite(value_TP)
    count = known.sum(axis=0)
    total = np.where(known, value_TP, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), math.nan)


def _learning_rate(run: Run) -> float:
    """The highest that any policy used; NaN if none was recorded."""
    rates = [run.update_metric("learning_rate", policy.name).value_T for policy in run.policies]
    known = np.concatenate(rates)
    known = known[np.isfinite(known)]
    return float(known.max()) if len(known) else math.nan


def _instrumentation(run: Run) -> list[Finding]:
    """Updates that the probe could not explain: reported before anything built on them."""
    findings = []
    for policy in run.policies:
        residual = run.update_metric("residual", policy.name)
        value = np.asarray(residual.value_T, dtype=np.float64)
        bad = np.isfinite(value) & (value > MAX_RESIDUAL)
        coverage = np.asarray(run.update_metric("coverage", policy.name).value_T)
        partial = np.isfinite(coverage) & (coverage < 0.999)
        if not bad.any() and not partial.any():
            continue
        evidence = []
        if bad.any():
            evidence.append(
                f"residual above {MAX_RESIDUAL} in {int(bad.sum())} of {len(value)} updates, "
                f"first at step {int(residual.step_T[bad][0])}"
            )
        if partial.any():
            evidence.append(
                f"as little as {percent(float(coverage[partial].min()))} of the parameters "
                f"attributed in {int(partial.sum())} updates"
            )
        findings.append(
            Finding(
                "instrumentation",
                policy.name,
                f"The gradients of policy '{policy.name}' are not fully explained by its agents; "
                "shares and cosines below are to be read with care.",
                float(value[bad].max()) if bad.any() else float(1 - coverage[partial].min()),
                "relative residual" if bad.any() else "share of parameters",
                "high",
                evidence=tuple(evidence),
            )
        )
    return findings


def _candidates(
    drop: CliffResult, verdicts: tuple[SignalVerdict, ...], findings: tuple[Finding, ...]
) -> tuple[str, ...]:
    """Findings that begin before the drop, undominated signals, and always the unrecorded."""
    if drop.onset is None:
        return ()
    found = [
        f"{_titled(finding)} (from step {finding.onset.step})"
        for finding in findings
        if finding.kind in ("capture", "role breakdown")
        and finding.onset
        and finding.onset.step <= drop.onset.upper
    ]
    found += [
        f"{verdict.title} (moved at step {verdict.onset.step}, {verdict.lead:.0f} steps before)"
        for verdict in verdicts
        if verdict.is_candidate and verdict.onset
    ]
    return (*found, UNRECORDED)


def _titled(finding: Finding) -> str:
    word = "by" if finding.kind == "capture" else "of"
    return f"{finding.kind} {word} {finding.subject}"


def _unjudged(
    run: Run,
    series: AccuracySeries,
    drop: CliffResult,
    signals: list[Measured],
    detectors: Detectors,
) -> list[NotJudged]:
    """What the run does not hold, and how to have it next time."""
    missing = []
    if not len(series):
        missing.append(
            NotJudged(
                "the drop in accuracy",
                "the run has no evaluations",
                "train with held-out problems (--eval-every)",
            )
        )
    elif drop.shape == "too few evaluations":
        needed = detectors.cliff.min_evaluations
        missing.append(
            NotJudged(
                "the drop in accuracy",
                f"{len(series)} evaluations recorded, {needed} needed",
                "train longer or evaluate more often",
            )
        )
    if not run.closed:
        last = f"step {run.steps[-1]}" if len(run.steps) else "its start"
        missing.append(
            NotJudged(
                "the end of the run",
                f"the store was not closed: the run is going on or was killed; judged up to {last}",
                "diagnose again when it is done, or resume it",
            )
        )
    if len(run.steps) < detectors.order.min_steps:
        missing.append(
            NotJudged(
                "what moved first",
                f"{len(run.steps)} steps recorded, {detectors.order.min_steps} needed",
                "train longer",
            )
        )
    absent: dict[str, list[str]] = {}
    for signal in signals:
        if not signal.is_present:
            absent.setdefault(signal.subject, []).append(signal.kind.title)
    for subject, titles in absent.items():
        missing.append(
            NotJudged(
                f"{subject}: {', '.join(titles)}",
                "recorded in fewer than half of the steps",
                "not needed for the verdict on accuracy",
            )
        )
    return missing
