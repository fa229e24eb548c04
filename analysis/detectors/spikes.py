"""Find single updates whose gradient is far out of line with the updates around them.

Healthy runs with heavy-tailed norms have a few such updates, and clipping makes them harmless. So a
spike is a finding where accuracy fell after it, or where spikes go on; else it is mentioned.

Legend: T steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, stdtr, stdtrit

from analysis.cliff.fall import Fall
from analysis.detectors.shape import Context, Detector, Judged, Kind
from analysis.findings import Finding, NotJudged, Onset
from analysis.signals import aligned, learners
from gradlab.arrays import Floats
from gradlab.store.run import Run

DEGREES = (2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 12.0, 20.0)
"""Of freedom, that the tails of log norms may have."""
ROUNDING = 1e-6
"""Share of the usual norm, below which a gradient is none."""


@dataclass(frozen=True)
class Spikes:
    """Steps out of line."""

    index: NDArray[np.int64]
    """Of the steps, the largest first."""
    factor: Floats
    """Norm over the local median, of each."""
    p_values: Floats
    """Of each, corrected for the number of steps."""
    num_steps: int
    """That were asked: those with a norm."""

    @property
    def p_value(self) -> float:
        return float(self.p_values[0])

    def only(self, kept: NDArray[np.bool_]) -> Spikes:
        return replace(
            self, index=self.index[kept], factor=self.factor[kept], p_values=self.p_values[kept]
        )


SPIKE = Kind(
    "gradient spike",
    "gradient norms by role, over at least 30 steps",
    (("clip", "single updates are far longer than their neighbours"),),
    signals=("grad_norm", "update_norm", "share", "update", "pull"),
    dated_by=(),
    replay="clip",
    is_own_test=True,  # not asked of runs that did not fall
    raises_alarm=False,  # it is over when it is found, and every later look finds it again
    term=(
        r"gradient spike",
        "A few updates whose gradient is far longer than that of their neighbours.",
    ),
)


@dataclass(frozen=True)
class SpikeRule(Detector):
    """Thresholds of the rule."""

    kinds: tuple[Kind, ...] = (SPIKE,)
    min_factor: float = 5.0
    """Times the median of the steps around it: clipping at the usual norm removes 4/5 of it."""
    window: int = 21
    """Steps of the running median: longer than a spike, shorter than a trend."""
    max_length: int = 5
    """Steps; a gradient that stays large longer is a change of level, not a spike."""
    max_degrees: float = 8.0
    """Of Student's t that log norms are compared with, fitted to the run's own: norms with heavy
    tails are no spikes. Never lighter tails than this, since a run shows too little of them."""
    slack: float = 0.5
    """Of the log-likelihood, for lighter tails than the likeliest: 200 steps tell little about
    them, and at 0 a clear spike among ordinary norms is missed in every seventh run."""
    max_share: float = 0.02
    """Of the steps that may be spikes, or `max_length` if that is more: the largest residuals,
    which the fit of the tails must not learn from."""
    alpha: float = 0.05
    """Largest p-value after Bonferroni over the steps of the run."""
    harm_alpha: float = 0.01
    """The same of a spike that a fall is held against, over the steps that it is asked in (at most
    `max_lead` before the fall) and the roles. It is asked in runs that fell alone, so that it is a
    test of its own and pays for no other."""
    max_lead: int = 100
    """Steps from a spike to the fall that it may have to do with."""
    lasting: int = 4
    """Spikes that are no accident any more."""
    min_steps: int = 30
    """Below, the spread of ordinary steps is not known."""

    def judge(self, context: Context) -> Judged:
        """One finding per role with spikes that came before a fall or go on, and the others."""
        run, findings, others = context.run, [], []
        for role in learners(run):
            spikes = self.measure(aligned(run.steps, run.norm(role)))
            if spikes is None:
                continue
            near = self._before(spikes, run, context.fall)
            if near is not None:
                asked = f"{self._num_asked(run, context.fall)} steps"
                if len(learners(run)) > 1:
                    asked += f" in each of {len(learners(run))} roles"
                findings.append(self._finding(run, role, near, asked))
            elif len(spikes.index) >= self.lasting:
                asked = f"{spikes.num_steps} steps"
                findings.append(self._finding(run, role, spikes, asked))
            else:
                others.append(_mentioned(run, role, spikes))
        return Judged(tuple(findings), observed=tuple(others))

    def _before(self, spikes: Spikes, run: Run, drop: Fall) -> Spikes | None:
        """Those before a fall that the run's own tails do not explain."""
        if drop.onset is None:
            return None
        lead = drop.onset.step - run.steps[spikes.index]
        share = self._num_asked(run, drop) * len(learners(run)) / spikes.num_steps
        p_values = np.minimum(spikes.p_values * share, 1.0)
        near = (lead > 0) & (lead <= self.max_lead) & (p_values <= self.harm_alpha)
        return replace(spikes, p_values=p_values).only(near) if near.any() else None

    def _num_asked(self, run: Run, drop: Fall) -> int:
        """Steps in which a spike may have to do with the fall."""
        assert drop.onset is not None
        lead_T = drop.onset.step - run.steps
        return int(np.count_nonzero((lead_T > 0) & (lead_T <= self.max_lead)))

    def _finding(self, run: Run, role: str, spikes: Spikes, asked: str) -> Finding:
        step = int(run.steps[spikes.index[0]])
        return Finding(
            "gradient spike",
            role,
            f"Gradient spike of {_told(run, role, spikes)}.",
            float(spikes.factor[0]),
            "times the local median",
            "high" if spikes.p_value <= 0.01 else "moderate",
            Onset(step, step, step),
            spikes.p_value,
            (f"p = {spikes.p_value:.2g}, corrected for {asked}",),
        )

    def measure(self, norm_T: Floats) -> Spikes | None:
        """Spikes of one series of norms; None without any."""
        known = np.flatnonzero(np.isfinite(norm_T) & (norm_T > 0))
        if len(known):  # what is left where rewards have no spread is rounding
            known = known[norm_T[known] > ROUNDING * np.median(norm_T[known])]
        if len(known) < self.min_steps:
            return None
        log_T = np.log(norm_T[known])
        half = self.window // 2
        padded = np.pad(log_T, half, mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
        residual_T = log_T - np.median(windows, axis=1)
        high_T = residual_T >= math.log(self.min_factor)
        if not high_T.any() or not np.median(np.abs(residual_T)) > 0:
            return None
        degrees, scale = self._fit_tails(residual_T)
        p_T = np.minimum(len(log_T) * stdtr(degrees, -residual_T / scale), 1.0)
        kept = [t for t in np.flatnonzero(high_T) if p_T[t] <= self.alpha]
        kept = [t for t in kept if self._is_short(high_T, int(t))]
        if not kept:
            return None
        order = sorted(kept, key=lambda t: -residual_T[t])
        factor = np.exp(residual_T[order])
        return Spikes(known[order], np.asarray(factor), p_T[order], len(log_T))

    def _fit_tails(self, residual_T: Floats) -> tuple[float, float]:
        """Degrees of freedom and scale of ordinary residuals.

        The scale puts the quartiles where they are; the degrees are the most of `DEGREES` that are
        about as likely as the likeliest, with the largest residuals, which may be spikes, censored.
        """
        ordered = np.sort(residual_T)
        censored = max(self.max_length, math.ceil(self.max_share * len(ordered)))
        quartile = float(np.median(np.abs(ordered)))
        kept, limit = ordered[:-censored], ordered[-censored - 1]

        def likelihood(degrees: float) -> float:
            scale = quartile / stdtrit(degrees, 0.75)
            inside = _log_density(kept / scale, degrees).sum() - len(kept) * math.log(scale)
            return float(inside + censored * np.log(stdtr(degrees, -limit / scale)))

        by_degrees = {degrees: likelihood(degrees) for degrees in DEGREES}
        enough = max(by_degrees.values()) - self.slack
        likely = max(degrees for degrees, found in by_degrees.items() if found >= enough)
        degrees = min(likely, self.max_degrees)
        return degrees, quartile / float(stdtrit(degrees, 0.75))

    def _is_short(self, high_T: NDArray[np.bool_], t: int) -> bool:
        start = stop = t
        while start > 0 and high_T[start - 1]:
            start -= 1
        while stop + 1 < len(high_T) and high_T[stop + 1]:
            stop += 1
        return stop - start + 1 <= self.max_length


def _told(run: Run, role: str, spikes: Spikes) -> str:
    step = int(run.steps[spikes.index[0]])
    others = "" if len(spikes.index) == 1 else f" and {len(spikes.index) - 1} more"
    return (
        f"{role} at step {step}{others}: {spikes.factor[0]:.0f} times the norm of the steps around "
        "it"
    )


def _mentioned(run: Run, role: str, spikes: Spikes) -> NotJudged:
    return NotJudged(
        f"harm of a gradient spike of {_told(run, role, spikes)}",
        "no fall of accuracy is known to have come of it; norms with heavy tails have such updates",
        "nothing, if gradients are clipped",
    )


def _log_density(x: Floats, degrees: float) -> Floats:
    """Of Student's t; scipy.stats has it too, and takes a second to import."""
    half = (degrees + 1) / 2
    constant = gammaln(half) - gammaln(degrees / 2) - math.log(degrees * math.pi) / 2
    density: Floats = constant - half * np.log1p(x**2 / degrees)
    return density
