"""Measure the probe on a device: its cost, launches, memory and exactness, and our own sampling.

Random weights in the shapes of Qwen3, bfloat16 with float32 adapters on every linear layer, 4
agents. A step is forward, backward, clip and AdamW on rows x tokens; variants take turns in one
process, the ratio is the median over rounds. Launches are kernels of one step, peak memory is
torch's. Exactness: Grams against one backward per agent on the same device.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import peft
import torch
from models import copy_of, row_losses
from sampling import ways
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM

from gradlab.probe.probe import Probe, attach
from gradlab.records import Agent, Mode
from trainers.models.architectures import qwen3

AGENTS = (Agent("generator", 0), Agent("generator", 1), Agent("generator", 2), Agent("aggregator"))
VARIANTS = ("plain", "exact", "exact + row statistics", "fused")


@dataclass(frozen=True)
class Place:
    """Where and how large."""

    device: torch.device
    shrink: int
    rows: int
    tokens: int
    rank: int

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def shapes(self, name: str) -> Any:
        full = qwen3(name)
        return qwen3(
            name,
            hidden_size=full.hidden_size // self.shrink,
            intermediate_size=full.intermediate_size // self.shrink,
            num_hidden_layers=max(2, full.num_hidden_layers // self.shrink),
            vocab_size=full.vocab_size // self.shrink,
            eos_token_id=1,
            bos_token_id=1,
        )

    def model(self, name: str) -> nn.Module:
        """A random Qwen3 with adapters that are random too, so that no gradient is zero."""
        config = self.shapes(name)
        torch.manual_seed(0)
        with self.device:
            base = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
        lora = peft.LoraConfig(
            r=self.rank, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
        )
        return peft.get_peft_model(base, lora).to(self.device).train()

    def batch(self, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids, loss weights and agents of the rows."""
        draw = torch.Generator().manual_seed(0)
        ids = torch.randint(0, vocabulary, (self.rows, self.tokens), generator=draw)
        weight = torch.randn(self.rows, generator=draw)
        agent = torch.arange(self.rows) * len(AGENTS) // self.rows
        return ids.to(self.device), weight.to(self.device), agent


def make_step(
    place: Place, model: nn.Module, variant: str
) -> tuple[Callable[[], None], Probe | None]:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    ids, weight, agent = place.batch(model.config.vocab_size)  # type: ignore[union-attr,arg-type]
    prompts = (torch.arange(place.rows) % max(1, place.rows // len(AGENTS))).tolist()
    mode: Mode = "fused" if variant == "fused" else "exact"
    probe = None
    if variant != "plain":
        probe = attach(model, optimizer, agents=AGENTS, mode=mode)

    def step() -> None:
        if probe is not None:
            probe.tag(agent, prompts=prompts if variant.endswith("statistics") else None)
        row_losses(model, ids, weight).sum().backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step, probe


def costs(place: Place, name: str, rounds: int) -> list[str]:
    """Rows of the table: seconds, ratio, kernels and memory of every variant."""
    base = place.model(name)
    steps = {}
    for variant in VARIANTS:
        steps[variant], probe = make_step(place, copy_of(base), variant)
        for _ in range(2):
            steps[variant]()
        if probe is not None and probe.last_check is not None:
            assert probe.last_check.residual <= probe.last_check.tolerance, (name, variant)
            assert probe.last_check.coverage == 1, (name, variant)
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for turn in range(rounds):
        for variant in VARIANTS if turn % 2 else reversed(VARIANTS):
            place.synchronize()
            started = time.perf_counter()
            steps[variant]()
            place.synchronize()
            seconds[variant].append(time.perf_counter() - started)
    rows = []
    for variant in VARIANTS:
        ratio = statistics.median(
            [own / plain for own, plain in zip(seconds[variant], seconds["plain"], strict=True)]
        )
        rows.append(
            f"| {name} | {variant} | {1e3 * statistics.median(seconds[variant]):.1f} | {ratio:.3f} "
            f"| {launches(place, steps[variant])} | {peak_gib(place, steps[variant])} |"
        )
    return rows


def launches(place: Place, step: Callable[[], None]) -> str:
    """Kernels of one step."""
    if place.device.type != "cuda":
        return "-"
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        step()
        place.synchronize()
    return f"{sum(e.count for e in found.key_averages() if 'LaunchKernel' in e.key):,}"


def peak_gib(place: Place, step: Callable[[], None]) -> str:
    """Memory of one step above what all variants hold."""
    if place.device.type != "cuda":
        return "-"
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    place.synchronize()
    return f"{(torch.cuda.max_memory_allocated() - before) / (1 << 30):.2f}"


def exactness(place: Place, name: str) -> str:
    """Grams of both modes against one backward per agent."""
    base, found = place.model(name), []
    ids, weight, agent = place.batch(base.config.vocab_size)  # type: ignore[union-attr,arg-type]
    trained = [p for p in base.parameters() if p.requires_grad]
    parts = []
    for number in range(len(AGENTS)):
        mask = (agent == number).to(place.device)
        loss = (row_losses(base, ids, weight) * mask).sum()
        parts.append(torch.cat([g.flatten().double() for g in torch.autograd.grad(loss, trained)]))
    flat_AP = torch.stack(parts)
    expected = (flat_AP @ flat_AP.T).cpu().numpy()
    norms = np.sqrt(np.diag(expected))
    for mode in ("exact", "fused"):
        step, probe = make_step(place, copy_of(base), mode)
        step()
        assert probe is not None
        assert probe.last is not None
        error = np.abs(probe.last.gram_BAA.sum(0) - expected) / np.outer(norms, norms)
        assert error.max() < 2e-2, f"{name}, {mode}: {error.max():.1e}"
        found.append(f"{mode} {error.max():.1e}, residual {probe.last.metrics.residual:.1e}")
    return f"| {name} | {' | '.join(found)} |"


def sampling(place: Place, name: str) -> str:
    """Tokens per second on a ragged wave, beside `generate`."""
    model = place.model(name).eval()
    vocabulary: int = model.config.vocab_size  # type: ignore[union-attr,assignment]
    draw = np.random.default_rng(0)
    prompts = [
        tuple(draw.integers(2, vocabulary, int(draw.integers(32, 129))).tolist()) for _ in range(8)
    ]
    prompts = [prompt for prompt in prompts for _ in range(8)]
    most = 256 if place.shrink == 1 else 16
    found = ways(model, prompts, most, mean_response=64, rows=64)

    speeds: dict[str, list[float]] = {"gradlab": [], "generate": []}
    for turn in range(4):
        for way in speeds:
            place.synchronize()
            started = time.perf_counter()
            tokens = found[way]()
            place.synchronize()
            if turn:
                speeds[way].append(tokens / (time.perf_counter() - started))
    own, other = (statistics.median(speed) for speed in speeds.values())
    return f"| {name} | {own:,.0f} | {other:,.0f} | {own / other:.2f} |"
