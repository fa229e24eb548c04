"""Say where the probe's time goes: seconds per step of its parts, beside a plain step."""

from __future__ import annotations

import cProfile
import inspect
import pstats
import statistics
import time
from collections.abc import Callable
from typing import Any

from models import Case, copy_of, make_model
from techniques import TECHNIQUES, Job, Step

from gradlab.probe.capture.capture import Capture
from gradlab.probe.capture.fused import FusedLinear
from gradlab.probe.capture.rules import linear
from gradlab.probe.instrument import Instrument
from gradlab.probe.measures.step_split import Moments
from gradlab.probe.probe import Probe

Functions = tuple[Callable[..., Any], ...]

PARTS: dict[str, Functions] = {
    "forward: hooks": (Capture._on_plain_forward, Capture._fused_forward),
    "backward: hooks, products included": (Capture._on_gradient, FusedLinear.backward),
    "... the rule of linear layers": (linear,),
    "before the optimizer's step": (Probe._before_step,),
    "... Grams per block": (Instrument._gram,),
    "... self-check": (Instrument._check,),
    "... norms of the weights": (Moments.before_step, Instrument._weight_norms),
    "after it": (Probe._after_step,),
    "... parts of Adam's step": (Moments.after_step,),
    "... clearing the buffers": (Probe._forget,),
}
"""Part -> functions whose inclusive times it adds up."""

SHARED = (*PARTS,)[:3]
"""Parts in which `fused` also does what a plain step does."""


def seconds_in(profile: cProfile.Profile, wanted: Functions) -> float:
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    codes = [inspect.unwrap(function).__code__ for function in wanted]
    keys = [(code.co_filename, code.co_firstlineno, code.co_name) for code in codes]
    if not any(key in stats for key in keys):
        names = " nor ".join(code.co_qualname for code in codes)
        raise ValueError(f"the profiled steps called neither {names}; mend PARTS of {__file__}")
    return sum(float(stats[key][3]) for key in keys if key in stats)


def profiled(case: Case, modes: tuple[str, ...], num_steps: int) -> list[str]:
    """A table of milliseconds per step; the modes take turns with plain steps."""
    model = make_model(case)
    steps = {v: TECHNIQUES[v](Job.of(case, copy_of(model))) for v in ("plain", *modes)}
    profiles = {mode: cProfile.Profile(time.process_time) for mode in modes}
    seconds: dict[str, list[float]] = {v: [] for v in steps}
    extra: dict[str, list[float]] = {v: [] for v in modes}
    for turn in range(num_steps + 1):
        for variant, step in steps.items():
            found = clock(step, profiles.get(variant) if turn else None)
            if turn:
                seconds[variant].append(found)
        for mode in modes if turn else ():
            extra[mode].append(seconds[mode][-1] - seconds["plain"][-1])
    plain_ms = 1e3 * statistics.median(seconds["plain"])
    lines = [
        f"| ms per step; plain {plain_ms:.0f} | " + " | ".join(modes) + " |",
        "|---|" + "---|" * len(modes),
    ]
    for part, wanted in PARTS.items():
        cells = [
            f"{1e3 * seconds_in(profiles[mode], wanted) / num_steps:.1f}"
            if mode != "fused" or part not in SHARED
            else "in place of the layer's own"
            for mode in modes
        ]
        lines.append(f"| {part} | " + " | ".join(cells) + " |")
    whole = [1e3 * statistics.median(extra[mode]) for mode in modes]
    lines.append("| more than a plain step | " + " | ".join(f"{ms:.0f}" for ms in whole) + " |")
    return lines


def clock(step: Step | Callable[[], object], profile: cProfile.Profile | None) -> float:
    start = time.process_time()
    if profile is not None:
        profile.enable()
    step()
    if profile is not None:
        profile.disable()
    return time.process_time() - start
