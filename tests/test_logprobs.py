"""Log-probs by chunks of tokens are those of whole logits, and so are their gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SmallConfig, make_turn
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM

import trainers.batches
from gradlab.records import Agent
from trainers.batches import FrozenHead, reference_logprobs, response_logprobs, to_batch
from trainers.episodes import Turn
from trainers.models.language import LanguageModel, head_of, load_language_model

Made = tuple[Tensor, Tensor, Tensor | None, Tensor]


def plain(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, heat: Any) -> Any:
    """Log-probs and entropies of whole logits, by autograd."""
    logprobs = torch.log_softmax(torch.nn.functional.linear(hidden, weight, bias) / heat, dim=-1)
    chosen = logprobs[torch.arange(len(target)), target]
    return chosen, -(logprobs.exp() * logprobs).sum(-1)


def made(dtype: torch.dtype, has_bias: bool = False) -> Made:
    rng = torch.Generator().manual_seed(5)
    hidden = torch.randn(23, 16, generator=rng).to(dtype).requires_grad_()
    weight = torch.randn(97, 16, generator=rng).to(dtype)
    bias = torch.randn(97, generator=rng).to(dtype) if has_bias else None
    return hidden, weight, bias, torch.randint(97, (23,), generator=rng)


@pytest.mark.parametrize("entropy_grad", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("by_row", [False, True])
def test_chunks_give_the_numbers_and_gradients_of_whole_logits(
    monkeypatch: pytest.MonkeyPatch, entropy_grad: bool, has_bias: bool, by_row: bool
) -> None:
    monkeypatch.setattr(trainers.batches, "CHUNK_LOGITS", 4 * 97)  # 6 chunks, the last of 3
    hidden, weight, bias, target = made(torch.float64, has_bias)
    heat = torch.linspace(0.5, 2, 23, dtype=torch.float64)[:, None] if by_row else 0.7
    upstream = torch.linspace(-1, 3, 23, dtype=torch.float64)

    def gradient(logprob: Tensor, entropy: Tensor) -> Tensor:
        total = (logprob * upstream).sum()
        if entropy_grad:
            total = total + (entropy * upstream.flip(0)).sum()
        return torch.autograd.grad(total, hidden)[0]

    found = FrozenHead.apply(hidden, weight, bias, target, heat, entropy_grad)
    expected = plain(hidden, weight, bias, target, heat)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
    assert found[1].requires_grad is entropy_grad
    torch.testing.assert_close(gradient(*found), gradient(*expected), rtol=0, atol=1e-12)


def test_half_precision_is_as_near_to_the_truth_as_whole_logits() -> None:
    """bfloat16 weights: the same roundings as by autograd, none added to."""
    hidden, weight, _, target = made(torch.bfloat16)
    exact = plain(hidden.double(), weight.double(), None, target, 1.0)[0]
    whole = torch.log_softmax((hidden @ weight.T).float(), -1)[torch.arange(23), target]
    mine, _ = FrozenHead.apply(hidden, weight, None, target, 1.0, False)
    assert (mine - exact).abs().max() <= (whole - exact).abs().max() + 1e-6
    [slope] = torch.autograd.grad(mine.sum(), hidden)
    [truth] = torch.autograd.grad(exact.sum(), hidden)
    [usual] = torch.autograd.grad(whole.sum(), hidden)
    assert (slope - truth).abs().max() <= 2 * (usual - truth).abs().max()


Rows = Callable[[LanguageModel], list[Turn]]


@pytest.fixture
def rows() -> list[Turn]:
    """Of three lengths, at two temperatures."""
    ids: Sequence[tuple[tuple[int, ...], tuple[int, ...]]] = [
        ((5, 6, 7), (8, 9, 1)), ((4,), (5, 5, 6, 7, 1)), ((9, 8, 7, 6), (1,)),
    ]  # fmt: skip
    return [
        make_turn(
            Agent("generator", i), prompt_ids=prompt, response_ids=response,
            logprobs=(0.0,) * len(response), temperature=1.0 + i / 2,
        )
        for i, (prompt, response) in enumerate(ids)
    ]  # fmt: skip


def test_a_model_asked_for_hidden_states_says_what_it_says_with_logits(
    small_config: SmallConfig, char_model: Path, rows: list[Turn]
) -> None:
    language = load_language_model(small_config(model=str(char_model)), ["shared"])
    assert language.head is not None
    batch = to_batch(rows, language)
    with torch.no_grad():
        chunked = response_logprobs(language, batch)
        whole = response_logprobs(replace(language, head=None), batch)
        for mine, theirs in zip(chunked, whole, strict=True):
            torch.testing.assert_close(mine, theirs)
            assert (mine[~batch.is_token_BT] == 0).all()
        logits = language.model(input_ids=torch.tensor([[4, 5, 5, 6, 7]])).logits[0]
        alone = torch.log_softmax(logits / 1.5, -1)[torch.arange(5), torch.tensor([5, 5, 6, 7, 1])]
    torch.testing.assert_close(chunked[0][1], alone)
    torch.testing.assert_close(reference_logprobs(language, batch), chunked[0])  # B of LoRA is 0


def test_a_model_that_caps_its_logits_keeps_its_own_way() -> None:
    settings: dict[str, Any] = {
        "vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    }  # fmt: skip
    torch.manual_seed(0)
    capped = Gemma2ForCausalLM(Gemma2Config(**settings, final_logit_softcapping=0.05))
    assert head_of(capped) is None
    free = Gemma2ForCausalLM(Gemma2Config(**settings, final_logit_softcapping=None))
    assert head_of(free) is free.lm_head
