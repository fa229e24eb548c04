"""Turn a run into a diagnosis: did it fall, since when, what moved before, what to change."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from analysis.accuracy import AccuracySeries, rates_alone
from analysis.cliff import CliffResult
from analysis.constant_rate import too_large
from analysis.detect import Detected, Detectors, detect
from analysis.findings import Accuracy, Cause, Diagnosis, Finding, Remedy, SignalVerdict, Status
from analysis.remedies import remedies_for
from analysis.replayed import read_replays
from analysis.signals import collect
from analysis.story import Storyteller, separation
from analysis.unjudged import unjudged
from analysis.verdict import candidates, confidence, unfinished, verdict
from gradlab.records import Signal
from gradlab.store import RUN_ZARR, Run


def diagnose(run: Run, detectors: Detectors | None = None) -> Diagnosis:
    """Judge a whole run; up to 2 s for 500 steps and 50 evaluations.

    Example:
        >>> diagnose(open_run("runs/voting-shared")).verdict
        'No terminal cliff: ...'
    """
    detectors = detectors or Detectors()
    _check_order(run)
    series = AccuracySeries.of(run)
    drop = detectors.cliff.measure(series)
    found = detect(run, series, drop, detectors)
    drops, findings = found.drops, found.findings
    broken, capture = found.of_kind("role breakdown"), found.of_kind("capture")
    signals = collect(run)
    verdicts = tuple(detectors.order(signals, run.steps, drop))
    # Replays are of the whole run, and say nothing about a part of it.
    replays = read_replays(run.path.resolve().parent) if run.until is None else ()
    causes = Storyteller(max_lead=detectors.order.max_lead)(
        drop,
        findings,
        verdicts,
        {role: run.policy_of(role).name for role in run.roles},
        replays,
        () if drop.onset is None else too_large(run, drop.onset.upper),
    )
    accuracy = _accuracy(run, series, drop)
    return Diagnosis(
        run.meta.run_id,
        _name(run),
        _status(drop, broken, is_finished=not unfinished(run)),
        verdict(run, drop, accuracy, findings, replays),
        confidence(drop, drops, capture, replays),
        accuracy,
        findings,
        verdicts,
        candidates(drop, causes),
        causes,
        _explanation(run, drop, causes, verdicts),
        _remedies(run, found, verdicts, causes),
        (
            *unjudged(run, series, drop, signals, detectors),
            *found.not_judged,
        ),
        _settings(detectors),
    )


def _explanation(
    run: Run,
    drop: CliffResult,
    causes: tuple[Cause, ...],
    verdicts: tuple[SignalVerdict, ...],
) -> str:
    """How far the evidence on suspects goes, on the condition that there was a fall at all."""
    if drop.onset is None:
        return ""
    can_replay = _checkpoint(run.path.resolve().parent, drop.onset.lower) is not None
    words = separation(causes, verdicts, can_replay=can_replay)
    return ("If it is a fall: " if drop.reason == "wander" else "") + words


def _settings(detectors: Detectors) -> dict[str, float | int | str]:
    """The thresholds that matter most."""
    return {
        "drop: alpha": detectors.cliff.alpha,
        "drop: smallest reported": detectors.cliff.min_drop,
        "capture: odds ratio": detectors.capture.enter,
        "capture: rise of the odds": detectors.capture.shift_enter,
        "amplification: alpha": detectors.amplification.alpha,
        "amplification: smallest DEFF": detectors.amplification.min_deff,
        "order: probability": detectors.order.min_probability,
        "order: longest lead (steps)": detectors.order.max_lead,
    }


def _remedies(
    run: Run, found: Detected, verdicts: tuple[SignalVerdict, ...], causes: tuple[Cause, ...]
) -> tuple[Remedy, ...]:
    """What to change, the first suspect first; more steps for the parallel role are the usual
    set-up while nothing fails."""
    failed = (*found.drops, *found.of_kind("role breakdown"))
    to_remedy = tuple(f for f in found.findings if failed or f.kind != "path amplification")
    suspects = [(cause.kind, cause.subject) for cause in causes]
    to_remedy = tuple(sorted(to_remedy, key=lambda f: _rank((f.kind, f.subject), suspects)))
    onsets = [f.onset.step for f in (*failed, *found.of_kind("capture")) if f.onset]
    when = onsets[0] if onsets else None
    checkpoint = None if when is None else _checkpoint(run.path.resolve().parent, when)
    roles = [{agent.role for agent in policy.agents} for policy in run.policies]
    shares = {role: f"{1 / len(together):.2g}" for together in roles for role in together}
    return remedies_for(to_remedy, verdicts, _learning_rate(run, when), checkpoint, shares)


def _rank(one: tuple[str, str], suspects: list[tuple[str, str]]) -> int:
    return suspects.index(one) if one in suspects else len(suspects)


def _status(drop: CliffResult, broken: list[Finding], *, is_finished: bool) -> Status:
    if drop.shape in ("none", "too few evaluations") and broken:
        return "role breakdown"
    if drop.shape == "none":
        return "healthy" if is_finished else "unfinished"
    return "not judged" if drop.shape == "too few evaluations" else drop.shape


def _accuracy(run: Run, series: AccuracySeries, drop: CliffResult) -> Accuracy:
    if not len(series):
        return _unsized(rates_alone(run))
    few = drop.shape == "too few evaluations"  # each for itself: their mean would be no level
    window = 1 if few else min(max(drop.window, 1), len(series))
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


def _unsized(rates: Signal) -> Accuracy:
    """What rates without a number of answers show: levels, and no word on their noise."""
    num = len(rates.step_T)
    if not num:
        return Accuracy()
    window = max(3, math.ceil(0.1 * num)) if num >= 8 else 1
    rate_T = np.asarray(rates.value_T, dtype=np.float64)
    level = np.convolve(rate_T, np.ones(window) / window, "valid")
    best = int(np.argmax(level))
    return Accuracy(
        num,
        base=float(rate_T[0]),
        peak=float(level[best]),
        peak_step=int(rates.step_T[best + window // 2]),
        terminal=float(level[-1]),
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
                f"store: write it again with gradlab.writer.RunStore, or import its source with "
                f"gradlab import"
            )


def _name(run: Run) -> str:
    """Of the run's directory, or of a store on its own."""
    path = run.path.resolve()
    return path.parent.name if path.name == RUN_ZARR else path.stem


def _learning_rate(run: Run, when: int | None) -> float:
    """In force after step `when` (None: at the end), the highest of the policies; NaN if unknown.

    The highest of the whole run would not do: with a schedule, or a rise after the fall, half of it
    may be more than what the run fell at.
    """
    rates = []
    for policy in run.policies:
        signal = run.update_metric("learning_rate", policy.name)
        value = np.asarray(signal.value_T, dtype=np.float64)
        used = np.isfinite(value) & (value > 0)
        if when is not None:
            used &= signal.step_T <= when
        if used.any():
            rates.append(float(value[used][-1]))
    return max(rates, default=math.nan)


def _checkpoint(run: Path, step: int) -> str | None:
    """Name of the newest whole checkpoint from step `step` or before; None if the run has none."""
    steps = {
        int(path.parent.name.removeprefix("step-")): path.parent.name
        for path in (run / "checkpoints").glob("step-*/checkpoint.json")
        if path.parent.name.removeprefix("step-").isdecimal()
    }
    return steps[max(early)] if (early := [at for at in steps if at <= step]) else None
