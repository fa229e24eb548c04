"""Check the measurement before anything is built on it: unexplained gradients, stale rollouts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.detectors.shape import Context, Detector, Judged, Kind
from analysis.findings import Finding, percent
from gradlab.store.run import Run

MAX_RESIDUAL = 0.02
"""Of a gradient that its agents do not explain; bfloat16 rounding stays below."""
MAX_RESIDUAL_FLOAT32 = 1e-4
"""The same where the configuration says float32 or float64: ten times what rounding leaves."""
MAX_UNEXPLAINED = 0.01
"""Share of updates that may exceed it: agents that nearly cancel multiply the rounding."""
MAX_LOGPROB_GAP = 0.05
"""Nats per token between sampler and trainer; two kernels in bfloat16 differ by 0.01 to 0.02."""
MAX_LOGPROB_GAP_FLOAT32 = 1e-4
"""The same where the configuration says float32 or float64: ten times what rounding leaves."""


INSTRUMENTATION = Kind(
    "instrumentation",
    "the probe's residual and coverage, and log-probs of sampler and trainer",
    (("repair", "figures of updates that the measurement does not explain mislead"),),
)


@dataclass(frozen=True)
class MeasurementRule(Detector):
    """Its limits are those of rounding, above."""

    kinds: tuple[Kind, ...] = (INSTRUMENTATION,)

    def judge(self, context: Context) -> Judged:
        """One finding per policy that is not explained, and per role sampled elsewhere."""
        return Judged((*unexplained(context.run), *stale_rollouts(context.run)))


def is_precise(run: Run) -> bool:
    """Whether the run computed in float32 or better, as far as its configuration says."""
    dtype = str(run.meta.config.get("dtype", "")).removeprefix("torch.")
    return dtype in ("float32", "float64", "fp32")


def gap_limit(run: Run) -> float:
    """Nats per token between sampler and trainer that rounding cannot explain."""
    return MAX_LOGPROB_GAP_FLOAT32 if is_precise(run) else MAX_LOGPROB_GAP


def unexplained(run: Run) -> list[Finding]:
    """Updates that the probe could not explain: reported before anything built on them."""
    findings = []
    limit = MAX_RESIDUAL_FLOAT32 if is_precise(run) else MAX_RESIDUAL
    for policy in run.policies:
        residual = run.update_metric("residual", policy.name)
        value = np.asarray(residual.value_T, dtype=np.float64)
        allowed = limit
        if (value > limit).sum() <= MAX_UNEXPLAINED * np.isfinite(value).sum():
            allowed = MAX_RESIDUAL
        bad = value > allowed
        coverage = np.asarray(run.update_metric("coverage", policy.name).value_T)
        partial = np.isfinite(coverage) & (coverage < 0.999)
        if not bad.any() and not partial.any():
            continue
        evidence = []
        if bad.any():
            evidence.append(
                f"residual above {allowed:g} (median {np.nanmedian(value):.1g}) in "
                f"{int(bad.sum())} of {len(value)} updates, "
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
                lower=float(value[bad].min()) if bad.any() else None,
                upper=float(value[bad].max()) if bad.any() else None,
            )
        )
    return findings


def stale_rollouts(run: Run) -> list[Finding]:
    """Roles whose responses were sampled from other weights than those trained, all along."""
    findings = []
    limit = gap_limit(run)
    for role in run.roles:
        signal = run.ledger("logprob_gap", role)
        value = np.asarray(signal.value_T, dtype=np.float64)
        known = np.isfinite(value)
        if not known.any() or not (gap := float(np.median(value[known]))) > limit:
            continue
        lower, upper = median_interval(value[known])
        findings.append(
            Finding(
                "instrumentation",
                role,
                f"The responses of {role} were not sampled from the weights that are trained: "
                f"log-probs of sampler and trainer differ by {gap:.2g} nats per token.",
                gap,
                "nats per token",
                "high",
                evidence=(
                    f"median over {int(known.sum())} steps, before the first update of each; "
                    f"rounding explains {limit:g} at most{_dtype(run)}",
                    "an adapter that never reached the sampler, or other sampling settings than "
                    "the trainer's (temperature, truncation, template), look like this",
                ),
                lower=lower,
                upper=upper,
            )
        )
    return findings


def _dtype(run: Run) -> str:
    return f" in {run.meta.config['dtype']}" if is_precise(run) else ""


def median_interval(value: NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of the median from order statistics: no shape is assumed."""
    ordered = np.sort(value)
    half = 1.96 * math.sqrt(len(ordered)) / 2
    low = max(math.floor(len(ordered) / 2 - half), 0)
    high = min(math.ceil(len(ordered) / 2 + half), len(ordered) - 1)
    return float(ordered[low]), float(ordered[high])
