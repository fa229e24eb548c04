"""Find where series leave their level: flat, straight line, flat, with the onset's uncertainty.

Legend: T points, N series, C pairs (onset, end of the change), B bootstrap draws.

All pairs are tried for all series in one matrix product: a ramp h rises from 0 to 1 between onset
and end, so the error it removes from a centred series y is (h'y)^2 / h'h.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from gradlab.arrays import Floats


@dataclass(frozen=True)
class Bend:
    """The change of one series; positions are indices into the points it was fitted on."""

    onset: float
    """Last point on the old level."""
    end: float
    before: float
    after: float
    noise: float
    """Residual standard deviation."""
    memory: float
    """Correlation time of the residuals, in points: 1 for white noise, capped at 19."""
    gain: float
    """Squared error of a straight line over that of the ramp: is it a bend at all?"""
    onset_B: Floats
    """Onsets of the bootstrap draws; empty until asked for."""

    @property
    def effect(self) -> float:
        """Change in residual standard deviations, signed."""
        return (self.after - self.before) / max(self.noise, 1e-300)


@lru_cache(maxsize=8)
def _ramps(num_points: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats, Floats]:
    """Onsets, ends, unit ramps [C, T] (centred) and their scale [C]."""
    onset_C, end_C = np.triu_indices(num_points, k=1)
    position_T = np.arange(num_points)
    ramp_CT = np.clip(
        (position_T[None, :] - onset_C[:, None]) / (end_C - onset_C)[:, None], 0.0, 1.0
    )
    ramp_CT -= ramp_CT.mean(axis=1, keepdims=True)
    scale_C = np.sqrt((ramp_CT**2).sum(axis=1))
    return onset_C, end_C, ramp_CT / scale_C[:, None], scale_C


def find_bends(
    value_NT: Floats, rng: np.random.Generator, *, num_draws: int = 0, block: int = 4
) -> list[Bend]:
    """The best ramp of each series; with draws, its onset is bootstrapped by residual blocks."""
    num_series, num_points = value_NT.shape
    if num_points < 4:
        raise ValueError(f"find_bends: got {num_points} points, needs 4 or more")
    onset_C, end_C, unit_CT, scale_C = _ramps(num_points)
    mean_N = value_NT.mean(axis=1)
    centred_NT = value_NT - mean_N[:, None]
    score_CN = unit_CT @ centred_NT.T
    best_N = np.argmax(score_CN**2, axis=0)
    series = np.arange(num_series)
    slope_N = score_CN[best_N, series] / scale_C[best_N]
    curve_NT = score_CN[best_N, series][:, None] * unit_CT[best_N]
    residual_NT = centred_NT - curve_NT
    noise_N = np.sqrt((residual_NT**2).sum(axis=1) / max(num_points - 4, 1))
    time_T = np.arange(num_points) - (num_points - 1) / 2
    line_N = (centred_NT @ time_T) ** 2 / (time_T**2).sum()
    line_sse_N = np.maximum((centred_NT**2).sum(axis=1) - line_N, 0.0)
    ramp_sse_N = np.maximum((residual_NT**2).sum(axis=1), 1e-300)

    bends = []
    for n in range(num_series):
        pair = best_N[n]
        before = float(mean_N[n] + curve_NT[n, 0])
        drawn = np.zeros(0)
        if num_draws:
            again_BT = curve_NT[n] + _resample(residual_NT[n], num_draws, block, rng)
            again_BT -= again_BT.mean(axis=1, keepdims=True)
            drawn = onset_C[np.argmax((unit_CT @ again_BT.T) ** 2, axis=0)].astype(np.float64)
        bends.append(
            Bend(
                float(onset_C[pair]),
                float(end_C[pair]),
                before,
                before + float(slope_N[n]),
                float(noise_N[n]),
                memory_of(residual_NT[n]),
                float(line_sse_N[n] / ramp_sse_N[n]),
                drawn,
            )
        )
    return bends


def memory_of(residual_T: Floats) -> float:
    """(1 + rho) / (1 - rho) with rho the lag-1 correlation."""
    power = float((residual_T**2).sum())
    lag = float((residual_T[1:] * residual_T[:-1]).sum())
    rho = min(max(lag / power, 0.0), 0.9) if power > 0 else 0.0
    return (1.0 + rho) / (1.0 - rho)


def _resample(residual_T: Floats, num_draws: int, block: int, rng: np.random.Generator) -> Floats:
    """[B, T] residuals in blocks from random places (circular), so that their memory is kept."""
    num_points = len(residual_T)
    num_blocks = math.ceil(num_points / block)
    start = rng.integers(0, num_points, (num_draws, num_blocks, 1))
    index = (start + np.arange(block)).reshape(num_draws, -1)[:, :num_points] % num_points
    drawn: Floats = residual_T[index]
    return drawn


def bins(value_T: Floats, stride: int) -> Floats:
    """Means of the finite values of `stride` neighbours; NaN where there is none."""
    if stride == 1:
        return np.asarray(value_T, dtype=np.float64)
    starts = np.arange(0, len(value_T), stride)
    finite = np.isfinite(value_T)
    total = np.add.reduceat(np.where(finite, value_T, 0.0), starts)
    count = np.add.reduceat(finite.astype(np.float64), starts)
    mean: Floats = np.where(count > 0, total / np.maximum(count, 1.0), math.nan)
    return mean


def bridged(value_T: Floats) -> Floats:
    """Gaps bridged by straight lines."""
    known = np.isfinite(value_T)
    point = np.arange(len(value_T))
    filled: Floats = np.interp(point, point[known], value_T[known])
    return filled
