"""Make one table row after another on runs whose truth is known; `detectors.py` writes them."""

from __future__ import annotations

import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from scipy.special import expit, ndtri

from analysis.cliff.accuracy import AccuracySeries, mean_over_samples
from analysis.cliff.cliff import FallTest
from analysis.cliff.fall import Fall
from analysis.detectors.amplification import AmplificationTest, Components
from analysis.detectors.breakdown import BreakdownRule
from analysis.detectors.frozen import share_interval
from analysis.detectors.levels import (
    ADVANTAGE_STARVATION,
    ENTROPY_COLLAPSE,
    KL_DRIFT,
    LENGTH_BLOW_UP,
    ROLLOUT_GAP,
    LevelRule,
)
from analysis.detectors.role_capture import CaptureRule
from analysis.detectors.spikes import SpikeRule
from analysis.diagnosis import diagnose
from analysis.explain.order import OnsetOrder
from analysis.findings import DROPS, Finding
from analysis.replays.compare import difference_of
from analysis.signals import KIND, Measured
from analysis.synthetic.runs import (
    Cliff,
    Rows,
    Shift,
    accuracy_curve,
    autoregressive,
    evaluation_matrix,
    row_gradients,
    statistics_of,
    synthetic_run,
)
from analysis.synthetic.scenarios import SCENARIOS
from gradlab.store.run import open_run

EVAL_EVERY = 10


def accuracy_series(
    cliff: Cliff | None, evals: int, problems: int, wander: float, rng: np.random.Generator
) -> AccuracySeries:
    """One run's evaluations, problems known."""
    step_E = np.arange(evals) * EVAL_EVERY
    rate_E = accuracy_curve(step_E, int(step_E[-1]), cliff)
    matrix = evaluation_matrix(rate_E, problems, 1, rng, wander=wander).astype(np.float64)
    correct = matrix.sum(axis=(1, 2))
    return AccuracySeries(
        step_E, correct, np.full(evals, float(problems)), mean_over_samples(matrix)
    )


def planted(name: str, evals: int, rng: np.random.Generator) -> tuple[Cliff | None, float]:
    """The drop and the wander of a named truth; a cliff begins in the second half."""
    last = (evals - 1) * EVAL_EVERY
    middle = int(rng.integers(evals // 3, math.ceil(0.6 * evals))) * EVAL_EVERY
    onset = int(rng.integers(evals // 2, math.ceil(0.85 * evals))) * EVAL_EVERY
    truths: dict[str, tuple[Cliff | None, float]] = {
        "healthy": (None, 0.0),
        "healthy, wander 0.15": (None, 0.15),
        "healthy, wander 0.30": (None, 0.30),
        "dip of 15 that recovers": (Cliff(middle, 0.15, "dip", max(20, last // 10)), 0.0),
        "last evaluation 20 lower": (Cliff(last, 0.20, "last"), 0.0),
        "cliff of 10": (Cliff(onset, 0.10), 0.0),
        "cliff of 20": (Cliff(onset, 0.20), 0.0),
        "cliff of 20, wander 0.15": (Cliff(onset, 0.20), 0.15),
        "cliff of 35": (Cliff(onset, 0.35), 0.0),
        "slow decay of 30": (Cliff(int(0.3 * last), 0.30, "slow decay", int(0.6 * last)), 0.0),
    }
    return truths[name]


TRUTHS = (
    "healthy",
    "healthy, wander 0.15",
    "healthy, wander 0.30",
    "dip of 15 that recovers",
    "last evaluation 20 lower",
    "cliff of 20",
    "slow decay of 30",
    "cliff of 20, wander 0.15",
    "cliff of 10",
)


DESIGNS: tuple[tuple[int, int, tuple[str, ...]], ...] = (
    (51, 100, TRUTHS),
    (13, 100, ("healthy", "healthy, wander 0.30", "cliff of 20", "cliff of 35")),
    (51, 500, ("healthy", "healthy, wander 0.15", "healthy, wander 0.30", "cliff of 10")),
)


def cliff_table(runs: int) -> Iterator[tuple[str, ...]]:
    """Percent of runs by what they are called, and the accuracy of onset and loss."""
    test = FallTest()
    for evals, problems, truths in DESIGNS:
        for truth in truths:
            shapes: Counter[str] = Counter()
            errors, covered, drops, biases = [], [], [], []
            num = planned_runs(runs, is_planted=truth.startswith(("cliff", "slow")))
            for seed in range(num):
                rng = np.random.default_rng(seed)
                cliff, wander = planted(truth, evals, rng)
                result = test.measure(accuracy_series(cliff, evals, problems, wander, rng))
                shapes[result.shape] += 1
                if cliff and cliff.kind == "cliff" and result.onset:
                    last_good = cliff.step - EVAL_EVERY
                    errors.append(abs(result.onset.step - last_good) / EVAL_EVERY)
                    covered.append(result.onset.lower <= last_good <= result.onset.upper)
                    drops.append(result.drop_lower <= cliff.drop <= result.drop_upper)
                    biases.append(result.drop - cliff.drop)
            shown = (
                "none",
                "small loss",
                "last evaluation low",
                "swings",
                "cliff",
                "fall",
                "decay",
            )
            near = sum(error <= 3 for error in errors)
            yield (
                f"{evals}, {problems}",
                truth,
                *(percent(shapes[shape], num) for shape in shown),
                percent(near, len(errors)) if errors else "",
                percent(sum(covered), len(covered)) if errors else "",
                f"{100 * np.mean(biases):+.1f}" if errors else "",
                percent(sum(drops), len(drops)) if errors else "",
            )


def detectable_table(runs: int) -> Iterator[tuple[str, ...]]:
    """Percent of runs in which a drop of the size that healthy ones call detectable is found."""
    test = FallTest()
    for evals, problems in ((13, 100), (21, 200), (51, 100), (51, 500)):
        size = float(
            np.median(
                [
                    test.measure(
                        accuracy_series(None, evals, problems, 0.0, np.random.default_rng(seed))
                    ).detectable_drop
                    for seed in range(min(runs, 50))
                ]
            )
        )
        found = 0
        for seed in range(runs):
            rng = np.random.default_rng(1_000_000 + seed)
            planned, _ = planted("cliff of 20", evals, rng)
            assert planned is not None
            cliff = Cliff(planned.step, size)
            found += test.measure(accuracy_series(cliff, evals, problems, 0.0, rng)).fell
        yield (f"{evals}, {problems}", f"{100 * size:.1f}", percent(found, runs))


def seconds_table(runs: int) -> Iterator[tuple[str, ...]]:
    """Time of a whole diagnosis; the fastest of a few, since the machine has other work."""
    shifts = (Shift("kl", "generator", 270, 4.0), Shift("entropy", "aggregator", 280, 0.5))
    for steps, evals in ((100, 21), (500, 51)):
        with tempfile.TemporaryDirectory() as folder:
            path = synthetic_run(
                Path(folder) / "run",
                steps=steps,
                evals=evals,
                cliff=Cliff(int(0.6 * steps), 0.2),
                shifts=shifts if steps > 280 else (),
            )
            taken = []
            for _ in range(min(runs, 5)):
                started = time.process_time()
                diagnose(open_run(path))
                taken.append(time.process_time() - started)
        yield (f"{steps}, {evals}", f"{min(taken):.1f}")


def capture_table(runs: int) -> Iterator[tuple[str, ...]]:
    """Percent of two-role runs in which one role is said to have captured the policy."""
    rule = CaptureRule()
    truths = {
        "balanced": (1.0, 1.0, 0.5),
        "3 times the tokens": (3.0, 1.0, 0.75),
        "5 times the norm from the start": (5.0, 1.0, 0.5),
        "burst of 10 steps": (1.0, 10.0, 0.5),
        "capture, 4 times": (1.0, 4.0, 0.5),
        "capture, 8 times": (1.0, 8.0, 0.5),
    }
    for steps, sd, memory in ((60, 0.4, 0.5), (300, 0.4, 0.5), (300, 0.7, 0.8), (300, 0.5, 0.95)):
        for truth, (constant, factor, weight) in truths.items():
            flagged, errors, covered = 0, [], []
            is_planted = truth.startswith("capture")
            num = planned_runs(runs, is_planted=is_planted)
            for seed in range(num):
                rng = np.random.default_rng(seed)
                odds = sd * (
                    autoregressive(steps, memory, rng) - autoregressive(steps, memory, rng)
                )
                stop = steps // 2 + 10 if truth.startswith("burst") else steps
                odds[steps // 2 : stop] += math.log(factor)
                share = 1 / (1 + np.exp(-odds - math.log(constant)))
                found = False
                for one, q in ((share, weight), (1 - share, 1 - weight)):
                    takeover = rule.measure(one, np.full(steps, q))
                    if takeover.onset is not None and takeover.p_value <= rule.alpha:
                        found = True
                        errors.append(abs(takeover.onset - steps // 2 + 1))
                        covered.append(
                            takeover.onset_lower <= steps // 2 - 1 <= takeover.onset_upper
                        )
                flagged += found
            yield (
                f"{steps}, {sd}, {memory}",
                truth,
                percent(flagged, num),
                f"{np.median(errors):.0f} / {np.quantile(errors, 0.9):.0f}" if is_planted else "",
                percent(sum(covered), len(covered)) if is_planted else "",
            )


def amplification_table(runs: int) -> Iterator[tuple[str, ...]]:
    """Percent of runs in which three agents are said to repeat one another."""
    test = AmplificationTest()

    def rows(**components: float) -> Callable[[np.random.Generator], np.ndarray]:
        return lambda rng: row_gradients(Rows(**components), 3, rng)

    def random_signs(rng: np.random.Generator) -> np.ndarray:
        line = rng.standard_normal((1, 12, 1, 32))
        return line * rng.choice([-1.0, 1.0], (3, 12, 2, 1))

    truths: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
        "independent agents": rows(),
        "common direction, 30 %": rows(signal=0.3),
        "one line per prompt, random signs": random_signs,
        "ICC 0.02 (DEFF 1.04)": rows(prompt=0.02),
        "ICC 0.10 (DEFF 1.21)": rows(prompt=0.10),
        "ICC 0.30 (DEFF 1.62)": rows(prompt=0.30),
    }
    for steps in (20, 80):
        for truth, draw in truths.items():
            significant = flagged = 0
            deff = []
            for seed in range(runs):
                rng = np.random.default_rng(seed)
                records = [statistics_of(draw(rng)) for _ in range(steps)]
                components = Components(
                    *(
                        np.array([getattr(record, name) for record in records])
                        for name in ("total", "signal", "prompt", "episode", "crosscov")
                    )
                )
                coherence = test.measure(components, 3)
                assert coherence is not None
                significant += coherence.p_value < test.alpha
                flagged += coherence.p_value < test.alpha and coherence.deff >= test.min_deff
                deff.append(coherence.deff)
            yield (
                str(steps),
                truth,
                percent(significant, runs),
                percent(flagged, runs),
                f"{np.mean(deff):.2f} ± {np.std(deff):.2f}",
            )


def order_table(runs: int) -> Iterator[tuple[str, ...]]:
    """Percent of signals of known shape said to precede, coincide with or follow a cliff."""
    steps, onset = 300, 200
    step_T = np.arange(1, steps + 1)

    def jump(at: int) -> Callable[[np.random.Generator], np.ndarray]:
        return lambda rng: 0.2 * autoregressive(steps, 0.5, rng) + 1.0 * (step_T >= at)

    signals: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
        "noise, memory 0.5": lambda rng: autoregressive(steps, 0.5, rng),
        "noise, memory 0.95": lambda rng: autoregressive(steps, 0.95, rng),
        "random walk": lambda rng: np.cumsum(rng.standard_normal(steps)),
        "trend": lambda rng: step_T / 30 + autoregressive(steps, 0.5, rng),
        "jump 40 steps before": jump(onset - 40),
        "jump 20 steps before": jump(onset - 20),
        "jump with the drop": jump(onset - 5),
        "jump 30 steps after": jump(onset + 30),
        "jump 150 steps before": jump(onset - 150),
    }
    test, order = FallTest(), OnsetOrder()
    drops: list[Fall] = []
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        series = accuracy_series(Cliff(onset, 0.25), steps // EVAL_EVERY + 1, 200, 0.0, rng)
        drops.append(test.measure(series))
    for name, draw in signals.items():
        said: Counter[str] = Counter()
        for seed, drop in enumerate(drops):
            value = draw(np.random.default_rng(10_000 + seed))
            signal = Measured(KIND["conflict"], "a, b", "shared", "1", value)
            verdicts = order([signal], step_T, drop)
            said[verdicts[0].order if verdicts else "no evidence"] += 1
        words = ("precedes", "coincides", "follows", "no evidence")
        yield (name, *(percent(said[word], runs) for word in words))


LEVELS: dict[str, tuple[LevelRule, float, float]] = {
    rule.kind: (rule, before, factor)
    for rule, before, factor in (
        (ENTROPY_COLLAPSE, 0.6, 0.3),
        (LENGTH_BLOW_UP, 120.0, 2.0),
        (KL_DRIFT, 0.02, 8.0),
        (ADVANTAGE_STARVATION, 0.35, 2.3),
        (ROLLOUT_GAP, 0.004, 25.0),
    )
}


def level_table(runs: int) -> Iterator[tuple[str, ...]]:
    """Percent of series of one role in which a detector of changed levels fires."""
    steps = 200
    for kind, (rule, level, factor) in LEVELS.items():
        near = level * math.sqrt(factor)  # a level from which wander crosses the limits
        for truth, middle, sd, memory, change in (
            ("steady", level, 0.1, 0.5, 1.0),
            ("wanders, near the limit", near, 0.35, 0.9, 1.0),
            ("jump", level, 0.1, 0.5, factor),
            ("jump, wanders", level, 0.2, 0.9, factor),
        ):
            flagged, errors = 0, []
            num = planned_runs(runs, is_planted=truth.startswith("jump"))
            for seed in range(num):
                rng = np.random.default_rng(seed)
                at = int(rng.integers(60, 160))
                path = middle * np.exp(sd * autoregressive(steps, memory, rng))
                path *= np.where(np.arange(steps) >= at, change, 1.0)
                found = rule.measure(np.minimum(path, 1.0) if level == 0.35 else path)
                flagged += found is not None
                if found and change != 1.0:
                    errors.append(abs(found.onset - at + 1))
            yield (
                kind,
                truth,
                percent(flagged, num),
                f"{np.median(errors):.0f} / {np.quantile(errors, 0.9):.0f}" if errors else "",
            )


def spike_table(runs: int) -> Iterator[tuple[str, ...]]:
    """Percent of series of gradient norms in which a spike is found."""
    rule, steps = SpikeRule(), 300
    noises: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
        "log-normal": lambda rng: 0.3 * rng.standard_normal(steps),
        "log-normal, memory 0.8": lambda rng: 0.3 * autoregressive(steps, 0.8, rng),
        "log t(5)": lambda rng: 0.3 * rng.standard_t(5, steps),
        "log t(3)": lambda rng: 0.3 * rng.standard_t(3, steps),
    }
    for name, draw in noises.items():
        for factor in (1.0, 8.0, 20.0):
            found = 0
            for seed in range(runs):
                rng = np.random.default_rng(seed)
                log_norm = draw(rng)
                at = int(rng.integers(50, 250))
                log_norm[at] += math.log(factor)
                found += rule.measure(np.exp(log_norm)) is not None
            yield (name, f"{factor:g}" if factor > 1 else "none", percent(found, runs))


def breakdown_table(runs: int) -> Iterator[tuple[str, ...]]:
    """Percent of one role's series of failing responses in which it is said to have broken down."""
    rule, steps, rows = BreakdownRule(), 200, 24

    def level(share: float) -> np.ndarray:
        return np.full(steps, math.log(share / (1 - share)))

    truths: dict[str, tuple[float, float, float, int]] = {
        # name: share before, share after, wander of the logit (memory 0.9), steps that it lasts
        "5 %": (0.05, 0.05, 0.0, steps),
        "5 %, wanders": (0.05, 0.05, 0.7, steps),
        "50 %, wanders": (0.5, 0.5, 0.7, steps),
        "70 % from the start": (0.7, 0.7, 0.0, steps),
        "5 to 30 %": (0.05, 0.3, 0.0, steps),
        "5 to 90 % for 15 steps": (0.05, 0.9, 0.0, 15),
        "5 to 60 %": (0.05, 0.6, 0.0, steps),
        "5 to 90 %": (0.05, 0.9, 0.0, steps),
        "5 to 90 %, wanders": (0.05, 0.9, 0.7, steps),
    }
    for truth, (before, after, sd, lasts) in truths.items():
        flagged, errors, covered = 0, [], []
        is_planted = after > before and after >= rule.min_share and lasts == steps
        num = planned_runs(runs, is_planted=is_planted)
        for seed in range(num):
            rng = np.random.default_rng(seed)
            at = int(rng.integers(60, 160))
            logit = level(before) + sd * autoregressive(steps, 0.9, rng)
            logit[at : at + lasts] += level(after)[0] - level(before)[0]
            found = rule.measure(rng.binomial(rows, 1 / (1 + np.exp(-logit))) / rows)
            flagged += found is not None
            if found and is_planted:
                errors.append(abs(found.onset - at + 1))
                covered.append(found.lower <= at - 1 <= found.upper)
        yield (
            truth,
            percent(flagged, num),
            f"{np.median(errors):.0f} / {np.quantile(errors, 0.9):.0f}" if errors else "",
            percent(sum(covered), len(covered)) if errors else "",
        )


def replay_table(runs: int) -> Iterator[tuple[str, ...]]:
    """Percent of replays whose interval holds the true difference, and that lie above 0."""
    for seeds, problems in ((3, 60), (3, 200), (5, 60), (5, 200)):
        for sd in (0.0, 0.3, 1.0):
            for shift in (0.0, 0.5, 2.0):
                truth = _gain(sd, shift)
                held = above = 0
                for seed in range(runs):
                    rng = np.random.default_rng(seed)
                    control, changed = _answers(seeds, problems, sd, shift, rng)
                    found = difference_of(0, control, changed, seeds)
                    held += found.lower <= truth <= found.upper
                    above += found.lower > 0
                yield (
                    f"{seeds}, {problems}",
                    f"{sd:g}",
                    f"{100 * truth:.0f}",
                    percent(held, runs),
                    percent(above, runs),
                )


HARDNESS = 1.5
"""Standard deviation of the problems' difficulties, on the logit."""


def _chances(
    hard_P: np.ndarray, seeds: int, sd: float, shift: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """[R, P] chances of the arms without and with the change: a seed moves each arm by itself."""
    control, changed = sd * rng.standard_normal((2, seeds, 1)) - 1.0
    return expit(control - hard_P), expit(changed + shift - hard_P)


def _gain(sd: float, shift: float) -> float:
    """Of many seeds and problems."""
    hard_P = HARDNESS * ndtri((np.arange(200) + 0.5) / 200)
    control, changed = _chances(hard_P, 20_000, sd, shift, np.random.default_rng(0))
    return float(np.mean(changed - control)) if shift else 0.0


def _answers(
    seeds: int, problems: int, sd: float, shift: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """[R, P] share of three evaluations in which a problem is solved, by arm."""
    hard_P = rng.normal(0.0, HARDNESS, problems)
    control, changed = _chances(hard_P, seeds, sd, shift, rng)
    return rng.binomial(3, control) / 3, rng.binomial(3, changed) / 3


def run_table(runs: int) -> Iterator[tuple[str, ...]]:
    """Whole runs from stores: what is said of accuracy, false findings, causes named."""
    for name, scenario in SCENARIOS.items():
        said: Counter[str] = Counter()
        num = planned_runs(runs, is_planted=bool(scenario.causes))
        false = named = unseparated = 0
        for seed in range(num):
            with tempfile.TemporaryDirectory() as folder:
                made = {"evals": 41, "row_statistics": False, **scenario.settings(200, seed=seed)}
                diagnosis = diagnose(open_run(synthetic_run(Path(folder) / "run", **made)))
            said[diagnosis.status] += 1
            planted_names = {*scenario.causes, *INNOCENT.get(name, ())}
            tested = [f for f in diagnosis.findings if f.p_value and f.kind not in DROPS]
            false += any(title(f) not in planted_names for f in tested)
            first = [cause.name for cause in diagnosis.causes]
            named += first == list(scenario.causes)
            both = set(first[:2]) == set(scenario.causes)
            unseparated += both and diagnosis.separation.startswith("Cannot separate")
        causes = len(scenario.causes)
        yield (
            name,
            *(percent(said[s], num) for s in ("healthy", *DROPS)),
            percent(false, num),
            percent(named, num) if causes == 1 else "",
            percent(unseparated, num) if causes > 1 else "",
        )


INNOCENT: dict[str, tuple[str, ...]] = {
    "capture without harm": ("capture by generator",),
    "advantage starvation, then a cliff": ("advantage starvation of generator",),
}


def title(finding: Finding) -> str:
    """As causes are named."""
    return f"{finding.kind} {'by' if finding.kind == 'capture' else 'of'} {finding.subject}"


def planned_runs(runs: int, *, is_planted: bool) -> int:
    """Runs of a row: rarer for planted failures, which cost more and are found in most of them."""
    return max(runs * SETTINGS["planted"] // 100, 1) if is_planted else runs


SETTINGS = {"planted": 100}
"""Percent of the runs that rows with planted failures have."""


def percent(count: int, total: int) -> str:
    """Percent with its 95 % Wilson interval."""
    if not total:
        return ""
    lower, upper = share_interval(count, total)
    return f"{100 * count / total:.0f} ({100 * lower:.0f}-{100 * upper:.0f})"
