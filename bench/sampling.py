"""Time our rollout sampling against transformers' own on ragged batches with shared prompts.

    python bench/sampling.py [--rounds 5] [--settings "1M, ragged"] [--write]

A batch is what a wave of a workflow is: some prompts of uneven length, each asked several times,
and responses that end at very different lengths (the end tokens have a probability of about 1/mean
at every position, so lengths are geometric). All sample at temperature 1. One thread, process CPU
time, the ways take turns in one process; seconds are divided by the tokens sampled, because the
draws differ. Continuous batching is transformers' `generate_batch`. SmolLM2 carries an adapter that
is merged for the wave, or applied in every forward; TRL's rollout is `generate` with it applied.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models import machine, tabled
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import ContinuousBatchingConfig, GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from trainers.models.language import load_base
from trainers.models.merging import Copies, merged
from trainers.models.sampling import SamplingOptions, sample

ADAPTER = "shared"
RESULT = Path(__file__).parent / "results" / "sampling.md"


@dataclass(frozen=True)
class Setting:
    """A model and a wave."""

    hidden: int
    layers: int
    vocabulary: int
    prompts: int
    samples: int
    prompt_tokens: int
    """Longest prompt; the shortest is a quarter of it."""
    mean_response: int
    max_response: int

    model: str = ""
    """A real model with an adapter in place of a random one of these shapes; responses of equal
    length."""
    rank: int = 16


SETTINGS = {
    "SmolLM2, LoRA": Setting(576, 30, 49152, 2, 8, 48, 24, 24, model="smollm2-135m"),
    "1M, short": Setting(128, 4, 512, 16, 8, 32, 8, 16),
    "1M, ragged": Setting(128, 4, 512, 16, 8, 128, 48, 256),
    "135M, ragged": Setting(576, 30, 8192, 4, 8, 128, 32, 128),
}


def make_model(setting: Setting) -> Any:
    torch.manual_seed(0)
    if setting.model:
        lora = LoraConfig(r=setting.rank, target_modules="all-linear", init_lora_weights=False)
        base, _ = load_base(setting.model, torch.float32)
        return get_peft_model(base, lora, adapter_name=ADAPTER).eval()
    heads = max(2, setting.hidden // 64)
    config = Qwen3Config(
        vocab_size=setting.vocabulary,
        hidden_size=setting.hidden,
        intermediate_size=setting.hidden * 8 // 3 // 8 * 8,
        num_hidden_layers=setting.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 3 if heads % 3 == 0 else heads // 2,
        head_dim=64,
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    return Qwen3ForCausalLM(config).eval()


def make_prompts(setting: Setting) -> list[tuple[int, ...]]:
    draw = np.random.default_rng(0)
    prompts = []
    for _ in range(setting.prompts):
        length = int(draw.integers(setting.prompt_tokens // 4, setting.prompt_tokens + 1))
        prompts.append(tuple(draw.integers(1, setting.vocabulary, length).tolist()))
    return [prompt for prompt in prompts for _ in range(setting.samples)]


Way = Callable[[], int]
"""Samples the wave once; returns the number of response tokens."""


def ways(
    model: Any, prompts: list[tuple[int, ...]], max_response: int, mean_response: int, rows: int
) -> dict[str, Way]:
    """Our sampling in waves of `rows`, and transformers' two ways."""
    # The logits of a random model are nearly flat: this many end tokens give the mean length.
    ends = tuple(range(1, 1 + max(1, model.config.vocab_size // mean_response)))
    if isinstance(model, PeftModel):
        ends = (model.config.vocab_size,)  # never drawn
    device = model.device
    rng = torch.Generator(device).manual_seed(0)
    options = SamplingOptions(1.0, max_response, rows, ends, 0)
    generation = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=max_response,
        eos_token_id=list(ends), pad_token_id=0,
    )  # fmt: skip

    def ours() -> int:
        return sum(len(one.ids) for one in sample(model, prompts, options, rng))

    def generate() -> int:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts])
        mask = (torch.arange(longest) >= longest - torch.tensor([[len(p)] for p in prompts])).long()
        with torch.no_grad():
            out = model.generate(
                ids.to(device), attention_mask=mask.to(device), generation_config=generation
            )
        tokens = out[:, longest:].cpu()
        is_end = torch.isin(tokens, torch.tensor(ends))
        lengths = torch.where(is_end.any(1), is_end.int().argmax(1) + 1, tokens.shape[1])
        return int(lengths.sum())

    # Room for every row at full length; by default it takes what memory is free, to its own cost.
    longest_row = max(map(len, prompts)) + max_response
    pages = ContinuousBatchingConfig(num_blocks=len(prompts) * math.ceil(longest_row / 256) + 8)

    def continuous() -> int:
        found = model.generate_batch(
            [list(p) for p in prompts],
            generation_config=generation,
            continuous_batching_config=pages,
        )
        return sum(len(one.generated_tokens) for one in found.values())

    if isinstance(model, PeftModel):
        copies: Copies = {}

        def with_merged() -> int:
            with merged(model, ADAPTER, copies) as plain:
                return sum(len(one.ids) for one in sample(plain, prompts, options, rng))

        return {"gradlab": with_merged, "gradlab, applied": ours, "generate": generate}
    return {"gradlab": ours, "generate": generate, "continuous batching": continuous}


def measure(name: str, rounds: int) -> list[str]:
    """Rows of the table; a way that does not run says why."""
    setting, failures = SETTINGS[name], dict[str, str]()
    found = ways(
        make_model(setting),
        make_prompts(setting),
        setting.max_response,
        setting.mean_response,
        rows=512,
    )
    seconds: dict[str, list[float]] = {way: [] for way in found}
    for turn in range(rounds + 1):
        for way in [*found] if turn % 2 else [*reversed(found)]:
            if way in failures:
                continue
            started = time.process_time()
            try:
                tokens = found[way]()
            except Exception as error:
                failures[way] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
                continue
            if turn:  # the first is a warm-up
                seconds[way].append((time.process_time() - started) / tokens)
    rows = []
    for way, own in seconds.items():
        if way in failures:
            rows.append(f"| {name} | {way} | - | {failures[way]} |")
            continue
        ratio = statistics.median([g / o for g, o in zip(seconds["generate"], own, strict=True)])
        rows.append(f"| {name} | {way} | {1 / statistics.median(own):,.0f} | {ratio:.2f} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--write", action="store_true", help=f"write {RESULT}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)
    lines = tabled(
        ("wave", "way", "tokens per CPU second", "speed relative to generate"),
        (row for name in options.settings for row in measure(name, options.rounds)),
    )
    if options.write:
        head = [
            "# Sampling a wave",
            "",
            f"`python bench/sampling.py --rounds {options.rounds} --write`: one thread, process "
            "CPU time, ways taking turns in one process, medians.",
            "",
            machine(("torch", "transformers")),
            "",
        ]
        RESULT.write_text("\n".join([*head, *lines, ""]))


if __name__ == "__main__":
    main()
