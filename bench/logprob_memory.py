"""Measure peak memory and CPU time of log-probs with gradient over a large vocabulary.

    python bench/logprob_memory.py [--tokens 256 1024] [--vocabulary 151936] [--hidden 512]

A random Qwen3 of two layers with one LoRA adapter: one forward and backward of the policy's
log-probs, with logits as a whole and by chunks, each in a process of its own. Memory is the peak of
the process above what it held before the forward; loss and gradients of the two are compared.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from gradlab.records import Agent
from trainers.batches import response_logprobs, to_batch
from trainers.episodes import Turn
from trainers.models.language import LanguageModel, head_of
from trainers.models.sampling import SamplingOptions

ROOT = Path(__file__).resolve().parent.parent
PROMPT, RESPONSE = 8, 64


def make(
    tokens: int, vocabulary: int, hidden: int, *, is_whole: bool, device: str = "cpu",
    dtype: str = "float32",
) -> Callable[[], Tensor]:  # fmt: skip
    """The policy's mean log-prob on response tokens of random rows, with a graph to its adapter."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=2 * hidden,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=hidden // 4,
        tie_word_embeddings=True,
    )  # fmt: skip
    base = Qwen3ForCausalLM(config).to(device, getattr(torch, dtype))
    head = head_of(base)
    assert head is not None
    lora = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM",
                      init_lora_weights=False)  # fmt: skip
    language = LanguageModel(
        get_peft_model(base, lora), None, None, torch.device(device),  # type: ignore[arg-type]
        SamplingOptions(1.0, RESPONSE, 1, (1,), 0), 4096, head,
    )  # fmt: skip
    if is_whole:
        language = replace(language, head=None)
    rng = torch.Generator().manual_seed(1)
    rows = []
    for _ in range(tokens // RESPONSE):
        ids = tuple(torch.randint(vocabulary, (PROMPT + RESPONSE,), generator=rng).tolist())
        rows.append(
            Turn(
                Agent("a"), "p", 0, 0, "answer", "", ids[:PROMPT], "", ids[PROMPT:],
                (0.0,) * RESPONSE, True, False, None, None,
            )
        )  # fmt: skip
    batch = to_batch(rows, language)

    def loss() -> Tensor:
        logprob_BT, _ = response_logprobs(language, batch)
        return logprob_BT.mean()

    loss.parameters = list(language.model.parameters())  # type: ignore[attr-defined]
    return loss


def measure(tokens: int, vocabulary: int, hidden: int, *, is_whole: bool) -> dict[str, Any]:
    """MiB, CPU seconds, loss and gradient norms of one forward and backward."""
    torch.set_num_threads(1)
    loss_of = make(tokens, vocabulary, hidden, is_whole=is_whole)
    held, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    loss = loss_of()
    loss.backward()  # type: ignore[no-untyped-call]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"mib": (peak - held) / 1024, "seconds": time.process_time() - started,
            "loss": loss.item(), "gradients": gradients_of(loss_of)}  # fmt: skip


def gradients_of(loss: Any) -> list[float]:
    """Norms of the gradients of the adapter behind a loss of `make`."""
    return [p.grad.norm().item() for p in loss.parameters if p.grad is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--only", choices=["whole", "chunks"])
    given = parser.parse_args()
    if given.only:
        is_whole = given.only == "whole"
        found = measure(given.tokens[0], given.vocabulary, given.hidden, is_whole=is_whole)
        print(json.dumps(found))
        return
    print("| response tokens | whole: MiB, s | chunks: MiB, s | loss off by | gradients off by |\n"
          "|---|---|---|---|---|")  # fmt: skip
    for tokens in given.tokens:
        both = [again(given, tokens, way) for way in ("whole", "chunks")]
        whole, chunks = both
        off = max(abs(a - b) / a for a, b in zip(*(one["gradients"] for one in both), strict=True))
        print(
            f"| {tokens:,} | {whole['mib']:,.0f}, {whole['seconds']:.1f} | "
            f"{chunks['mib']:,.0f}, {chunks['seconds']:.1f} | "
            f"{abs(1 - chunks['loss'] / whole['loss']):.1g} | {off:.1g} |",
            flush=True,
        )


def again(given: argparse.Namespace, tokens: int, way: str) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--only", way, "--tokens", str(tokens),
               "--vocabulary", str(given.vocabulary), "--hidden", str(given.hidden)]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
