"""Compare the arms of a replay: whether the change alters where accuracy ends, and by how much.

Arms of one seed see the same random numbers and problems, so differences are taken within seeds.

interval    three seeds or more: t-interval of the mean difference, its variance that between seeds
            plus that of resampling problems (Satterthwaite's degrees of freedom). Both hold the
            noise of single answers ('Replays' in bench/results/detectors.md). Fewer seeds: problems
            are resampled, and the interval holds for these seeds only.
verdict     confirmed: the interval is above 0, and the difference is at least half of what the
            controls fell. not confirmed: the interval stays below that half. not reproduced: the
            controls did not fall. undecided: everything else, and fewer than three seeds.

Legend: E evaluations, P problems, R seeds, B bootstrap draws.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.special import stdtrit

from analysis.cliff.accuracy import mean_over_samples
from analysis.findings import percent
from gradlab.arrays import Floats
from gradlab.store.disk import put
from gradlab.store.run import Evaluations, Run

ReplayVerdict = Literal["confirmed", "not confirmed", "not reproduced", "undecided"]

WINDOW = 3
"""Last evaluations that are averaged, where there are twice as many: one alone is noisy."""
MIN_SEEDS = 3
MIN_FALL = 0.05
"""Smallest fall of the run that its controls have to show again."""
NUM_DRAWS = 2000


@dataclass(frozen=True)
class Difference:
    """Accuracy of the changed arms minus the controls', over all seeds."""

    step: int
    """Of the evaluation; of the last one where several are averaged."""
    control: float
    changed: float
    difference: float
    lower: float
    upper: float
    """95 % interval."""


@dataclass(frozen=True)
class Reproduction:
    """Whether the control with the run's own seed is the run again."""

    steps: tuple[int, ...]
    """Evaluations of both."""
    is_exact: bool
    """Every answer is graded alike."""
    first_difference: int | None = None
    """Step of the first evaluation that differs."""
    largest: float = 0.0
    """Largest difference in accuracy."""

    def __str__(self) -> str:
        if not self.steps:
            return "the control and the run have no evaluation in common: not checked"
        if self.is_exact:
            return (
                f"the control with the run's own seed gave its {len(self.steps)} evaluations "
                "again, bit for bit"
            )
        return (
            f"the control with the run's own seed differs from the run since step "
            f"{self.first_difference} (by {100 * self.largest:.1f} points at most): another "
            "machine, library or number of threads, or --alarm slow"
        )


@dataclass(frozen=True)
class ReplayResult:
    """What a replay showed."""

    verdict: ReplayVerdict
    final: Difference
    """Of the mean over the last evaluations."""
    per_seed: tuple[float, ...]
    """The same difference by seed."""
    fall: float
    """What the controls lost against the run's level at the start."""
    run_fall: float
    """What the run itself lost in those steps."""
    interval: str
    """How the intervals were made."""
    evaluations: tuple[Difference, ...]
    window: int
    reproduction: Reproduction

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        final = self.final
        size = (
            f"accuracy ended at {percent(final.changed)} instead of {percent(final.control)}: "
            f"{100 * final.difference:+.1f} points ({100 * final.lower:.1f} to "
            f"{100 * final.upper:.1f}; {self.interval})"
        )
        words = {
            "confirmed": f"Confirmed by replay: {size}",
            "not confirmed": f"Refuted by replay: {size}",
            "undecided": f"Cannot tell: {size}",
            "not reproduced": "Cannot tell: the controls did not fall again; " + size,
        }
        return words[self.verdict] + self._share

    def lines(self) -> list[str]:
        """What the replay showed, for people; the verdict last."""
        rows = [
            f"step {d.step:4}: {percent(d.control):>5} as it was, {percent(d.changed):>5} changed, "
            f"{100 * d.difference:+.1f} points ({100 * d.lower:.1f} to {100 * d.upper:.1f})"
            for d in self.evaluations
        ]
        seeds = ", ".join(f"{100 * value:+.1f}" for value in self.per_seed)
        ends = "the last evaluation" if self.window == 1 else f"the last {self.window} evaluations"
        return [
            *rows,
            f"mean of {ends}, by seed: {seeds} points",
            str(self.reproduction),
            self.sentence,
        ]

    @property
    def _share(self) -> str:
        if self.verdict != "confirmed" or self.run_fall < MIN_FALL:
            return "."
        lost = self.fall - self.final.difference
        changed = f"gained {-100 * lost:.0f}" if lost < 0 else f"lost {100 * lost:.0f}"
        return (
            f"; from the checkpoint to step {self.final.step} the controls lost "
            f"{100 * self.fall:.0f} points, the changed runs {changed}."
        )


def described(
    run: Run, name: str, start: int, end: int, changes: Sequence[str], seeds: Sequence[int]
) -> list[str]:
    """A replay in words before it is run, with the time it will take."""
    step = np.nanmedian(run.run_metric("step_seconds").value_T)
    evaluation = run.run_metric("eval_seconds").value_T
    per_step = float(step + np.nansum(evaluation) / max(len(evaluation), 1))
    total = 2 * len(seeds) * (end - start) * per_step
    how_long = f"{total:.0f} s" if total < 120 else f"{total / 60:.0f} min"
    return [
        f"replay {name}: steps {start + 1} to {end} with {', '.join(changes)} and without, seeds "
        f"{', '.join(map(str, seeds))}",
        f"{2 * len(seeds)} arms of {end - start} steps: about {how_long} at the run's own pace "
        f"({per_step:.2g} s a step)",
    ]


def compare(
    original: Run, controls: Sequence[Run], changed: Sequence[Run], start: int
) -> ReplayResult:
    """Compare the arms, one run per seed each, the original's own seed first."""
    before, after = (_evaluated(runs, start) for runs in (controls, changed))
    steps = np.array(sorted(before.keys() & after.keys()))
    if not len(steps):
        raise ValueError(
            f"the arms have no evaluation after step {start}; replay more steps (--steps) than "
            "--eval-every"
        )
    window = min(WINDOW, math.ceil(len(steps) / 2))
    points = [
        difference_of(int(step), before[int(step)], after[int(step)], len(controls))
        for step in steps
    ]
    last = [int(step) for step in steps[-window:]]
    control_RP = np.mean([before[step] for step in last], axis=0)
    changed_RP = np.mean([after[step] for step in last], axis=0)
    final = difference_of(last[-1], control_RP, changed_RP, len(controls))
    level, own = _level(original.evaluations(), start), _evaluated([original], start)
    fall = level - final.control
    common = [own[step] for step in last if step in own]
    run_fall = level - float(np.nanmean(common)) if common else math.nan
    per_seed = np.nanmean(changed_RP - control_RP, axis=1)
    return ReplayResult(
        _verdict(final, len(controls), fall, run_fall),
        final,
        tuple(float(value) for value in per_seed),
        fall,
        run_fall,
        f"95 % t-interval over {len(controls)} seeds, problems resampled"
        if len(controls) >= MIN_SEEDS
        else f"95 % over problems, for {'this seed' if len(controls) == 1 else 'these seeds'} only",
        tuple(points),
        window,
        reproduction(original, controls[0], start),
    )


def _verdict(final: Difference, num_seeds: int, fall: float, run_fall: float) -> ReplayVerdict:
    fell = run_fall >= MIN_FALL
    if fell and fall < run_fall / 2:
        return "not reproduced"
    if num_seeds < MIN_SEEDS or not math.isfinite(final.lower):
        return "undecided"
    # Above 0 is not enough: a change that only slows the fall down is better than nothing, too.
    if final.upper < (fall / 2 if fell else MIN_FALL):
        return "not confirmed"
    is_half = not fell or final.difference >= fall / 2
    return "confirmed" if final.lower > 0 and is_half else "undecided"


def _evaluated(runs: Sequence[Run], start: int) -> dict[int, Floats]:
    """Step -> [R, P] share of samples solved, at evaluations that all runs have after `start`."""
    found: list[dict[int, Floats]] = []
    for run in runs:
        evaluations = run.evaluations()
        solved_EP = mean_over_samples(evaluations.correct_EPS)
        found.append(
            {
                int(step): solved_P
                for step, solved_P in zip(evaluations.step_E, solved_EP, strict=True)
                if step > start
            }
        )
    common = set(found[0]).intersection(*found[1:])
    return {step: np.stack([by_step[step] for by_step in found]) for step in sorted(common)}


def _level(evaluations: Evaluations, start: int) -> float:
    """Accuracy of the run over its last evaluations up to the checkpoint."""
    known = evaluations.step_E <= start
    return float(np.nanmean(evaluations.accuracy().value_T[known][-WINDOW:]))


def difference_of(step: int, control_RP: Floats, changed_RP: Floats, num_seeds: int) -> Difference:
    """Changed minus control with its interval; [R, P] solved shares, seeds and problems paired."""
    difference_RP = changed_RP - control_RP
    mean = float(np.nanmean(difference_RP))
    rng = np.random.default_rng(step)
    num_problems = difference_RP.shape[1]
    draw_BP = rng.integers(num_problems, size=(NUM_DRAWS, num_problems))
    # The same problems in every seed and arm: differences are paired over both.
    mean_B = np.nanmean(np.nanmean(difference_RP, axis=0)[draw_BP], axis=1)
    if num_seeds < MIN_SEEDS:
        lower, upper = np.quantile(mean_B, [0.025, 0.975])
    else:
        of_seeds = np.nanmean(difference_RP, axis=1).var(ddof=1) / num_seeds
        of_problems = mean_B.var()
        variance = of_seeds + of_problems
        # The fewer seeds decide, the wider: 4.3 standard errors if all varies between three seeds.
        parts = of_seeds**2 / (num_seeds - 1) + of_problems**2 / max(num_problems - 1, 1)
        freedom = variance**2 / parts if parts > 0 else math.inf
        half = float(stdtrit(min(freedom, 1e6), 0.975)) * math.sqrt(variance)
        lower, upper = mean - half, mean + half
    return Difference(
        step,
        float(np.nanmean(control_RP)),
        float(np.nanmean(changed_RP)),
        mean,
        float(lower),
        float(upper),
    )


def reproduction(original: Run, control: Run, start: int) -> Reproduction:
    """Compare every graded answer of the run and of its control from the checkpoint on."""
    one, other = original.evaluations(), control.evaluations()
    steps = [int(step) for step in one.step_E if step >= start and step in other.step_E]
    first, largest = None, 0.0
    for step in steps:
        i, j = (int(np.flatnonzero(e.step_E == step)[0]) for e in (one, other))
        same = np.array_equal(one.correct_EPS[i], other.correct_EPS[j], equal_nan=True)
        same &= np.array_equal(one.role_correct_ERP[i], other.role_correct_ERP[j], equal_nan=True)
        if not same:
            first = step if first is None else first
            rates = one.accuracy().value_T[i], other.accuracy().value_T[j]
            largest = max(largest, abs(float(rates[0] - rates[1])))
    return Reproduction(tuple(steps), first is None, first, largest)


def write_result(path: Path, result: ReplayResult, about: dict[str, Any]) -> None:
    """Write result.json: what `analysis.replays.results` reads, `about` the replay, and all
    figures.
    """
    document = {
        **about,
        "verdict": result.verdict,
        "difference": result.final.difference,
        "lower": result.final.lower,
        "upper": result.final.upper,
        "statement": result.sentence,
        **asdict(result),
    }
    put(path, (json.dumps(_plain(document), indent=1, ensure_ascii=False) + "\n").encode())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
