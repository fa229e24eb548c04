"""Check on a GPU, in one call: the probe's cost, launches, memory and exactness, and sampling.

    python bench/gpu.py --write                          # on a CUDA device, about ten minutes
    python bench/gpu.py --device cpu --shrink 16 --rounds 1    # the same code on small shapes

Random weights in the shapes of Qwen3-0.6B, 1.7B and 4B, bfloat16 with float32 adapters of rank 64
on every linear layer, 4 agents. A step is forward, backward, clip and AdamW on rows x tokens;
variants take turns in one process, the ratio is the median over rounds. Launches are kernels of one
step, peak memory is torch's. Exactness: Grams against one backward per agent on the same device.
The tests marked `gpu` run first.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import peft
import torch
from models import copy_of, machine, row_losses
from sampling import ways
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM

from gradlab.probe.probe import Probe, attach
from gradlab.records import Agent, Mode
from trainers.models.architectures import KNOWN, qwen3

RESULT = Path(__file__).parent / "results" / "gpu.md"
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

    def model(self, name: str) -> nn.Module:
        """A random Qwen3 with adapters that are random too, so that no gradient is zero."""
        full = qwen3(name)
        config = qwen3(
            name,
            hidden_size=full.hidden_size // self.shrink,
            intermediate_size=full.intermediate_size // self.shrink,
            num_hidden_layers=max(2, full.num_hidden_layers // self.shrink),
            vocab_size=full.vocab_size // self.shrink,
            eos_token_id=1,
            bos_token_id=1,
        )
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shrink", type=int, default=1, help="divide all sizes by this")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--models", nargs="+", choices=KNOWN, default=list(KNOWN))
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT}")
    options = parser.parse_args()
    place = Place(
        torch.device(options.device), options.shrink, options.rows,
        options.tokens // options.shrink, 64 // options.shrink,
    )  # fmt: skip
    if place.device.type == "cuda":
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"],
            check=True,
            cwd=Path(__file__).parent.parent,
        )
    name = torch.cuda.get_device_name() if place.device.type == "cuda" else "CPU"
    lines = [
        f"{name}, {options.rows} rows x {place.tokens} tokens, rank {place.rank}.",
        machine(("torch", "transformers", "peft")),
        "",
        "| model | step | ms | ratio to plain | launches | step's peak GiB |",
        "|---|---|---|---|---|---|",
    ]
    for model in options.models:
        lines += costs(place, model, options.rounds)
        print(*lines[-len(VARIANTS) :], sep="\n", flush=True)
    lines += ["", "| model | largest Gram error, exact | fused |", "|---|---|---|"]
    lines += [exactness(place, model) for model in options.models]
    lines += ["", "| model | tokens/s | generate | ratio |", "|---|---|---|---|"]
    lines += [sampling(place, model) for model in options.models]
    print(*lines[5 + len(VARIANTS) * len(options.models) :], sep="\n")
    if options.write:
        RESULT.write_text("\n".join(["# On a GPU", "", *lines, ""]))


if __name__ == "__main__":
    main()
