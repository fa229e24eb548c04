"""Prove that an engine speaks with the trainer's weights: both score the same few responses.

An adapter that is stale, swapped or was never applied shows in nothing else: responses are fluent,
rewards plausible, and the gradients are somebody else's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trainers.engines.engine import Engine, Request
from trainers.models.language import LanguageModel
from trainers.models.sampler import Sample, Speaker
from trainers.models.sampling import sample

LONGEST = 16
"""Tokens of a canary's response."""
LEAST_FLOAT32 = 1e-4
"""Nats of any token that are always granted in float32: thirty times what real engines show."""
LEAST_MEAN = 0.01
"""Nats per token that are always granted in bfloat16. Its mean is judged, since single tokens are
off by more than a wrong adapter costs on average."""
GRANTED = 2.0
"""Times the model's own rounding, which grows with its depth: in bfloat16 .005 nats per token on an
embedded model of 3 layers, .044 on SmolLM2's 30, where a real engine shows .003 and .045."""


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
    longest: int,
    rounding: Gap,
) -> Gap:
    """Let the engine answer `prompts` with `adapter`, and the trainer score what it said.

    `longest`: tokens of prompt and response that the engine takes; `rounding`: of the model itself.
    Raises EngineLost and EngineRefused.
    """
    said = engine.draw(
        [
            Request(
                adapter, prompt, speaker.temperature, min(LONGEST, longest - len(prompt)),
                language.sampling.end_ids, seed,
            )
            for seed, prompt in enumerate(prompts)
        ]
    )  # fmt: skip
    gaps = gaps_of(language, speaker, prompts, said)
    return gap_of(gaps, dtype_of(language), speaker.temperature, rounding)


def own_rounding(language: LanguageModel, prompts: Sequence[tuple[int, ...]]) -> Gap:
    """How far the base model is from itself when every rounding comes out otherwise.

    It draws in a batch with a cache, and scores that row by row with every number of the embeddings
    moved by its last bit: alike kernels would round alike, and an engine has others.
    """
    rng = torch.Generator(language.device).manual_seed(0)
    options = replace(language.sampling, temperature=1.0, max_tokens=LONGEST)
    with language.speaking("") as model:
        said = sample(model, prompts, options, rng)
        hook = model.get_input_embeddings().register_forward_hook(_last_bits)
        try:
            gaps = gaps_of(language, Speaker("", ""), prompts, said)
        finally:
            hook.remove()
    return gap_of(gaps, dtype_of(language), 1.0, None)


def _last_bits(module: object, inputs: object, output: Tensor) -> Tensor:
    """Every number a little larger or smaller, in turns."""
    sign = torch.ones_like(output, dtype=torch.float32)
    sign[..., ::2] = -1
    factor = 1 + sign * torch.finfo(output.dtype).eps
    return (output.double() * factor).to(output.dtype)


def gaps_of(
    language: LanguageModel,
    speaker: Speaker,
    prompts: Sequence[tuple[int, ...]],
    said: Sequence[Sample],
) -> list[float]:
    """Of every token that was said, between its log-prob and the trainer's."""
    gaps: list[float] = []
    with language.speaking(speaker.policy) as model:
        for prompt, one in zip(prompts, said, strict=True):
            own = scored(model, prompt, one, speaker.temperature, language.device)
            gaps += [abs(a - b) for a, b in zip(own, one.logprobs, strict=True)]
    return gaps


def dtype_of(language: LanguageModel) -> torch.dtype:
    """Of the base model's weights."""
    found: torch.dtype = next(language.model.parameters()).dtype
    return found


def gap_of(
    gaps: Sequence[float], dtype: torch.dtype, temperature: float, rounding: Gap | None
) -> Gap:
    """Judge gaps by what rounding explains in this dtype, and in this model."""
    is_exact = dtype == torch.float32
    limit = LEAST_FLOAT32 if is_exact else LEAST_MEAN
    if rounding is not None:
        limit = max(limit, GRANTED * rounding.value)
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
    response: Sample,
    temperature: float,
    device: torch.device,
) -> list[float]:
    """Log-probability of each token of a response, without padding, cache or batch."""
    assert callable(model)
    ids = torch.tensor([[*prompt, *response.ids]], device=device)
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    logprobs = torch.log_softmax(logits.float() / temperature, dim=-1)
    target = torch.tensor(response.ids, device=device)
    found: list[float] = logprobs.gather(1, target[:, None])[:, 0].tolist()
    return found
