"""Model the time of a training step from products, memory traffic and calls.

A step is the rollout (prompts in one pass, then one pass per response token) and the updates. Each
takes floating-point work, bytes that are read or written, and calls from Python, at the speeds
of a device. The counts below are of our own code and of transformers'; bench/dryrun_time.py
compares predictions with steps that were trained.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from trainers.config import TrainConfig
from trainers.models.language import pick_device
from trainers.preview.engine_memory import EngineMemory

EFFICIENCY = {"cpu": 0.8, "cuda": 0.5}
"""Share of the rate of one large product that a model's products reach: fitted to steps on a CPU,
where it is 0.9 at 110 M parameters and less below; assumed on a GPU."""
PADDING = 1.15
"""Tokens of micro-batches, padding included, per real one."""
PASSES = 20
"""How often what autograd keeps is written or read, at the speed of a copy."""
LOGIT_PASSES = 8
"""How often logits are, in float32."""
STATE_PASSES = 30
"""How often the optimizer, clipping and the probe read or write each trained parameter."""
CALLS_SAMPLED = 440
"""Small operations that take as long as a layer does in Python, in a pass without gradient,
adapters and cache included."""
CALLS_LEARNED = 1000
"""The same of a micro-batch: forward, backward and probe."""
CALLS_ROW = 200
"""The same of a turn, once when it is drawn and once when it is learned from: rendering, encoding,
reading, judging, recording."""
WEIGHT_PASSES = {"cpu": 2.5, "cuda": 1.25}
"""How much longer a product with few rows reads its weights than a copy does: fitted on a CPU,
assumed on a GPU."""
CACHE_PASSES = 4
"""How often transformers reads or writes the whole key-value cache per token."""
ENGINE_PASS = 0.005
"""Seconds of a pass of an engine on a GPU beside its work, adapters included: assumed."""
ENGINE_ON_CPU = 7
"""How much longer an engine takes than our own sampler on a CPU: 3 to 17 in five settings."""


@dataclass(frozen=True)
class Speed:
    """Of a device."""

    products: float
    """FLOP/s of large products in the run's dtype."""
    memory: float
    """Bytes/s that a copy reads and writes."""
    call: float
    """Seconds from one small operation to the next."""
    held: float
    """Bytes of its memory; inf where nobody counts them."""
    kind: str
    """cpu or cuda, whose work is done while further calls are made."""
    source: str
    """Where the numbers are from, in words."""

    def seconds(self, flops: float, num_bytes: float, calls: float) -> float:
        work = flops / (self.products * EFFICIENCY[self.kind]) + num_bytes / self.memory
        waiting = calls * self.call
        return max(work, waiting) if self.kind == "cuda" else work + waiting


CARD = Speed(989e12, 3.35e12, 3e-6, 79.6 * (1 << 30), "cuda", "an H100 SXM by its data sheet")
"""Planned for where the device is a GPU that is not here."""


@dataclass(frozen=True)
class Load:
    """One base model, and what of a step is done with it."""

    parameters: int
    adapter: float
    """Trained parameters of a policy, in the mean."""
    trained: int
    """Of all policies."""
    layers: int
    kept: int
    """Numbers that autograd keeps of a layer and token."""
    queries: int
    """Width of a layer's queries."""
    keys: int
    vocabulary: int
    element: int
    """Bytes of a weight."""
    prompt: float
    response: float
    longest: int
    """Longest response."""
    turns: Mapping[str, tuple[float, int]]
    """Role -> waves in an episode, and how many of it answer side by side."""
    learned: float
    """Share of its turns whose policy is trained."""
    updates: int

    @property
    def turns_of_episode(self) -> float:
        return sum(waves * parallel for waves, parallel in self.turns.values())

    @property
    def attention(self) -> float:
        """FLOP of scores and values per token of a forward."""
        return 4 * (self.prompt + self.response) / 2 * self.queries * self.layers


@dataclass(frozen=True)
class Times:
    """Seconds."""

    rollout: float
    learning: float
    evaluation: float
    """Of one evaluation."""
    speed: Speed

    @property
    def step(self) -> float:
        return self.rollout + self.learning


def passes(config: TrainConfig, base: int, adapter: float) -> tuple[float, float]:
    """FLOP per token of a forward, and of all that an update takes.

    A product of a forward is 2 FLOP per parameter. The backward takes as much for the gradient of
    its input and, of adapters alone, as much again for that of its weight; the probe repeats that.
    """
    forward = 2.0 * (base + adapter)
    learning = (2 + config.gradient_checkpointing) * forward + 2 * adapter
    again = (config.old_logprobs == "trainer") + any(config.kl_coefficient.values())
    learning += again * forward
    return forward, learning + (2 * adapter if config.probe != "off" else 0)


def times_of(
    config: TrainConfig, loads: list[Load], speed: Speed, engine: EngineMemory | None = None
) -> Times:
    """A step's and an evaluation's, all turns of an episode played."""
    rows = config.rollout_rows
    if engine is not None and config.sampler == "vllm" and speed.held < math.inf:
        rows = max(1, engine.rows_in(config.sampler_memory * speed.held))

    def rollout(problems: int, samples: int) -> float:
        return sum(_rollout(config, load, speed, problems, samples, rows) for load in loads)

    return Times(
        rollout(config.problems_per_step, config.samples),
        sum(_learning(config, load, speed) for load in loads),
        rollout(config.eval_problems, config.eval_samples),
        speed,
    )


def _rollout(
    config: TrainConfig, load: Load, speed: Speed, problems: int, samples: int, at_once: int
) -> float:
    if not load.turns:
        return 0.0
    is_engine, episodes = config.sampler != "transformers", problems * samples
    forward, _ = passes(config, load.parameters, load.adapter)
    tokens = steps = prefilled = 0.0
    for number, (waves, parallel) in enumerate(load.turns.values()):
        rows = episodes * parallel
        # A prompt is read once for all who are asked the same: the first role's samples.
        prefilled += waves * (problems if number == 0 else rows) * load.prompt
        tokens += waves * rows * load.response
        # Transformers goes on till the longest of a batch ends, at the limit if it is large; an
        # engine takes the next prompt.
        batches = max(rows / at_once, 1) if is_engine else math.ceil(rows / at_once)
        steps += waves * batches * (load.response if is_engine else load.longest)
    weights = load.parameters * load.element * WEIGHT_PASSES[speed.kind]
    row_bytes = load.layers * 2 * load.keys * load.element * (load.prompt + load.response / 2)
    cache = tokens * row_bytes * (1 if is_engine else CACHE_PASSES)
    flops = (prefilled + tokens) * (forward + load.attention)
    rendered = episodes * load.turns_of_episode * CALLS_ROW
    calls = steps * load.layers * CALLS_SAMPLED + rendered
    if not is_engine:
        return speed.seconds(flops, steps * weights + cache, calls)
    if speed.kind == "cpu":
        return ENGINE_ON_CPU * speed.seconds(flops, steps * weights + cache, calls)
    return steps * ENGINE_PASS + speed.seconds(flops, steps * weights + cache, rendered)


def _learning(config: TrainConfig, load: Load, speed: Speed) -> float:
    turns = config.problems_per_step * config.samples * load.turns_of_episode * load.learned
    tokens = turns * (load.prompt + load.response) * PADDING
    forward, learning = passes(config, load.parameters, load.adapter)
    attention = load.attention * (learning / forward)
    kept = tokens * load.layers * load.kept * load.element * PASSES
    kept += turns * load.response * load.vocabulary * 4 * LOGIT_PASSES
    state = load.updates * load.trained * 4 * STATE_PASSES
    batches = max(load.updates, tokens / config.micro_tokens)
    calls = batches * load.layers * CALLS_LEARNED + turns * CALLS_ROW
    return speed.seconds(tokens * (learning + attention), kept + state, calls)


def speed_here(config: TrainConfig, seconds: float = 0.3) -> Speed | None:
    """Measure the run's device; None if it is not here."""
    pick_device(config.device, check=False)  # what no run could use is an error
    try:
        device = pick_device(config.device)
    except ValueError:
        return None
    if config.threads:
        torch.set_num_threads(config.threads)
    is_cpu = device.type == "cpu"
    size, length = (1024, 1 << 23) if is_cpu else (8192, 1 << 28)
    dtype: Any = getattr(torch, config.dtype)
    left = torch.randn(size, size, device=device).to(dtype)
    source = torch.ones(length, device=device)
    target, small = torch.empty_like(source), torch.ones(64, 64, device=device)

    def calls() -> None:
        for _ in range(200):
            torch.add(small, small)

    product, copied, called = (
        _fastest(work, device, seconds / 3)
        for work in (lambda: left @ left, lambda: target.copy_(source), calls)
    )
    return Speed(
        2 * size**3 / product, 8 * length / copied, called / 200,
        math.inf if is_cpu else float(torch.cuda.get_device_properties(device).total_memory),
        device.type, "measured here",
    )  # fmt: skip


def _fastest(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """The shortest time of a piece of work, done again and again."""
    best, until = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < until or best == math.inf:
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return best
