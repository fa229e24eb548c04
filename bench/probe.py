"""Time a probed training step against an unprobed one, and write the table.

    python bench/probe.py [--rounds 15] [--models 1M 33M 110M] [--write]

One thread, process CPU time. The variants take turns in one process (a round is one step of each),
so that whatever else the machine does hits all of them; the ratio is the median over rounds of
variant / plain. A step is forward, backward, clip and AdamW, LoRA r16 on all linear layers, or all
parameters where it says full.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import peft
import torch
import transformers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from gradlab.probe import attach
from gradlab.records import Agent, Mode

AGENTS = (Agent("generator", 0), Agent("generator", 1), Agent("generator", 2), Agent("aggregator"))
RESULT = Path(__file__).parent / "results" / "probe.md"


@dataclass(frozen=True)
class Size:
    """A model and the batch it is trained on."""

    hidden: int
    layers: int
    vocabulary: int
    rows: int
    tokens: int
    is_full: bool = False
    """Train every parameter, in place of LoRA."""


SIZES = {
    "1M": Size(128, 4, 512, 32, 64),
    "33M": Size(512, 8, 8192, 8, 128),
    "110M": Size(768, 12, 16384, 8, 128),
    "33M, 4 x tokens": Size(512, 8, 8192, 32, 128),
    "8M full": Size(256, 8, 4096, 8, 128, is_full=True),
}


def make_model(size: Size) -> nn.Module:
    """A random Llama, with LoRA of rank 16 on every linear layer unless it is trained in full."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.hidden * 11 // 4,
        num_hidden_layers=size.layers,
        num_attention_heads=size.hidden // 64,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    if size.is_full:
        return model
    return peft.get_peft_model(model, peft.LoraConfig(r=16, target_modules="all-linear"))


def row_losses(model: nn.Module, ids: Tensor, weight: Tensor) -> Tensor:
    logits = model(input_ids=ids).logits[:, :-1]
    target = ids[:, 1:]
    losses = nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
    return losses.view(target.shape).mean(1) * weight


def make_step(size: Size, variant: str, model: nn.Module) -> Callable[[], None]:
    """One training step of a variant."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, size.vocabulary, (size.rows, size.tokens), generator=generator)
    weight = torch.randn(size.rows, generator=generator)
    agent_B = torch.arange(size.rows) * len(AGENTS) // size.rows
    prompt_B = torch.arange(size.rows) % max(size.rows // len(AGENTS), 1)

    if variant == "a backward per agent":

        def alternative() -> None:
            losses = row_losses(model, ids, weight)
            parts = []
            for agent in range(len(AGENTS)):
                loss = losses[agent_B == agent].sum()
                gradients = torch.autograd.grad(loss, trained, retain_graph=True)
                parts.append(torch.cat([g.flatten() for g in gradients]))
            flat_AP = torch.stack(parts)
            flat_AP @ flat_AP.T
            start = 0
            total = flat_AP.sum(0)
            for p in trained:
                p.grad = total[start : start + p.numel()].view_as(p)
                start += p.numel()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()

        return alternative

    mode: Mode = "exact"
    if variant.startswith(("fused", "sketch")):
        mode = "fused" if variant.startswith("fused") else "sketch"
    probe = None if variant == "plain" else attach(model, optimizer, agents=AGENTS, mode=mode)

    def step() -> None:
        if probe is not None:
            with_rows = variant.endswith("row statistics")
            probe.tag(agent_B, prompts=prompt_B if with_rows else None)
        row_losses(model, ids, weight).sum().backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


VARIANTS = (
    "plain",
    "exact",
    "exact + row statistics",
    "fused",
    "fused + row statistics",
    "sketch",
    "a backward per agent",
)


def measure(name: str, rounds: int, variants: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    """{variant: (median seconds of a step, median ratio to plain)}."""
    size = SIZES[name]
    model = make_model(size)
    steps = {v: make_step(size, v, copy.deepcopy(model)) for v in variants}
    for step in steps.values():
        step()
        step()
    seconds: dict[str, list[float]] = {v: [] for v in variants}
    for turn in range(rounds):
        order = variants if turn % 2 else tuple(reversed(variants))
        for variant in order:
            start = time.process_time()
            steps[variant]()
            seconds[variant].append(time.process_time() - start)
    return {
        v: (
            statistics.median(seconds[v]),
            statistics.median(
                [own / plain for own, plain in zip(seconds[v], seconds["plain"], strict=True)]
            ),
        )
        for v in variants
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--models", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS[1:], default=VARIANTS[1:])
    parser.add_argument("--write", action="store_true", help=f"write {RESULT}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "| model | batch | step | s per step | ratio to plain |",
        "|---|---|---|---|---|",
    ]
    print(*lines, sep="\n")
    for name in options.models:
        asked = [v for v in options.variants if SIZES[name].is_full or v != "sketch"]
        found = measure(name, options.rounds, ("plain", *asked))
        for variant, (seconds, ratio) in found.items():
            batch = f"{SIZES[name].rows} x {SIZES[name].tokens}"
            lines.append(f"| {name} | {batch} | {variant} | {seconds:.3f} | {ratio:.3f} |")
            print(lines[-1], flush=True)
    if options.write:
        head = [
            "# What the probe costs",
            "",
            f"`python bench/probe.py --rounds {options.rounds} --write`: LoRA r16 on all linear "
            f"layers (full: all parameters), {len(AGENTS)} agents, one thread, process CPU time, "
            "variants interleaved in one process, median ratio over rounds.",
            "",
            f"{platform.platform()}, {cpu_name()}, {os.cpu_count()} cores, load average "
            f"{os.getloadavg()[0]:.1f} (above 1, other work shares the caches); "
            f"Python {platform.python_version()}, torch {torch.__version__}, "
            f"transformers {transformers.__version__}, peft {peft.__version__}.",
            "",
        ]
        RESULT.write_text("\n".join([*head, *lines, ""]))


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0].split(":")[1].strip() if names else platform.machine()


if __name__ == "__main__":
    main()
