"""Prove that an engine speaks with the trainer's weights: both score the same few responses.

An adapter that is stale, swapped or was never applied shows in nothing else: responses are fluent,
rewards plausible, and the gradients are somebody else's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trainers.engines.engine import Engine, Request
from trainers.models.language import LanguageModel
from trainers.models.sampler import Sample, Speaker

LONGEST = 16
"""Tokens of a canary's response."""
LARGEST_FLOAT32 = 1e-4
"""Nats of any token that rounding explains in float32: ten times what real engines show."""
LARGEST_MEAN = 0.01
"""Nats per token that rounding explains in bfloat16: three times what real engines show. Single
tokens are off by more than a wrong adapter costs on average."""


@dataclass(frozen=True)
class Gap:
    """How far engine and trainer are apart."""

    tokens: int
    largest: float
    """Nats, of any token."""
    mean: float
    """Nats per token."""
    measure: str
    """Which of the two is judged."""
    limit: float

    @property
    def value(self) -> float:
        return self.largest if self.measure == "largest" else self.mean

    @property
    def is_right(self) -> bool:
        return self.tokens > 0 and self.value <= self.limit  # never true of NaN


def canary(
    engine: Engine,
    adapter: str,
    language: LanguageModel,
    speaker: Speaker,
    prompts: Sequence[tuple[int, ...]],
) -> Gap:
    """Let the engine answer `prompts` with `adapter`, and the trainer score what it said.

    Raises EngineLost and EngineRefused.
    """
    requests = [
        Request(
            adapter, prompt, speaker.temperature, min(speaker.max_tokens, LONGEST),
            language.sampling.end_ids, seed,
        )
        for seed, prompt in enumerate(prompts)
    ]  # fmt: skip
    said = engine.draw(requests)
    gaps: list[float] = []
    with language.speaking(speaker.policy) as model:
        for prompt, sample in zip(prompts, said, strict=True):
            own = scored(model, prompt, sample, speaker.temperature, language.device)
            gaps += [abs(a - b) for a, b in zip(own, sample.logprobs, strict=True)]
    return gap_of(gaps, next(language.model.parameters()).dtype, speaker.temperature)


def gap_of(gaps: Sequence[float], dtype: torch.dtype, temperature: float) -> Gap:
    is_exact = dtype == torch.float32
    limit = LARGEST_FLOAT32 if is_exact else LARGEST_MEAN
    # Logits are divided by the temperature, and their rounding with them.
    limit /= min(1.0, temperature)
    # `max` passes over a NaN that is not the first.
    worst = max(gaps, default=0.0) if all(gap == gap for gap in gaps) else float("nan")
    mean = sum(gaps) / max(len(gaps), 1)
    return Gap(len(gaps), worst, mean, "largest" if is_exact else "mean", limit)


@torch.no_grad()
def scored(
    model: object,
    prompt: Sequence[int],
    sample: Sample,
    temperature: float,
    device: torch.device,
) -> list[float]:
    """Log-probability of each token of a response, without padding, cache or batch."""
    assert callable(model)
    ids = torch.tensor([[*prompt, *sample.ids]], device=device)
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    logprobs = torch.log_softmax(logits.float() / temperature, dim=-1)
    target = torch.tensor(sample.ids, device=device)
    found: list[float] = logprobs.gather(1, target[:, None])[:, 0].tolist()
    return found
