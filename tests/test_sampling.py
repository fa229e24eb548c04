"""Sampled responses and their log-probabilities against teacher forcing and the softmax itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import AutoModelForCausalLM

from trainers.models.draws import from_own_numbers
from trainers.models.sampling import Sample, SamplingOptions, left_padded, sample

OPTIONS = SamplingOptions(
    temperature=0.8, max_tokens=12, max_rows=64, end_ids=(1, *range(40, 55)), pad_id=0
)
PROMPTS = [(5, 6, 7), (9, 4), (5, 6, 7), (8,), (30, 31, 32, 33, 34, 35, 36), (9, 4)]


@pytest.fixture(scope="module")
def model(char_model: Path) -> torch.nn.Module:
    """The random model with a peaked head, so that greedy and unlikely tokens are far apart."""
    loaded = AutoModelForCausalLM.from_pretrained(char_model).eval()
    with torch.no_grad():
        loaded.model.norm.weight.mul_(8)
    return loaded


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def forced_logprobs(
    model: torch.nn.Module, prompt: Sequence[int], response: Sequence[int], temperature: float
) -> torch.Tensor:
    """Log-probabilities of a response from one forward over the whole sequence, unpadded."""
    logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0].double() / temperature
    start = len(prompt) - 1
    steps = torch.arange(len(response))
    return logits.log_softmax(-1)[start + steps, torch.tensor(response)]


def assert_forced(model: torch.nn.Module, prompts: Sequence, found: Sequence[Sample]) -> None:
    for prompt, response in zip(prompts, found, strict=True):
        truth = forced_logprobs(model, prompt, response.ids, OPTIONS.temperature)
        np.testing.assert_allclose(response.logprobs, truth.numpy(), atol=2e-5)


def test_logprobs_equal_a_teacher_forced_forward(model: torch.nn.Module) -> None:
    """Left padding, the shared prefill, the cache and the shrinking batch change no probability."""
    prompts = PROMPTS * 8
    found = sample(model, prompts, OPTIONS, rng())
    lengths = {len(response.ids) for response in found}
    assert len(lengths) > 3, "all rows ended together: nothing left the batch"
    assert_forced(model, prompts, found)


def test_chunks_of_few_rows_give_right_logprobs_too(model: torch.nn.Module) -> None:
    prompts = PROMPTS * 3
    found = sample(model, prompts, replace(OPTIONS, max_rows=4), rng())
    assert_forced(model, prompts, found)


def test_responses_come_back_in_the_order_asked(model: torch.nn.Module) -> None:
    """At a temperature near 0 every prompt has one response, whatever stands next to it."""
    cold = replace(OPTIONS, temperature=1e-3)
    together = sample(model, PROMPTS, cold, rng())
    alone = [sample(model, [prompt], cold, rng())[0] for prompt in PROMPTS]
    assert [response.ids for response in together] == [response.ids for response in alone]
    assert len({response.ids for response in together}) > 1


def test_a_cold_sample_is_the_greedy_decoding(model: torch.nn.Module) -> None:
    prompt = [5, 6, 7]
    expected: list[int] = []
    with torch.no_grad():
        while len(expected) < OPTIONS.max_tokens and not set(expected) & set(OPTIONS.end_ids):
            logits = model(input_ids=torch.tensor([[*prompt, *expected]])).logits[0, -1]
            expected.append(int(logits.argmax()))
    found = sample(model, [tuple(prompt)], replace(OPTIONS, temperature=1e-3), rng())
    assert list(found[0].ids) == expected


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_first_tokens_follow_the_softmax(model: torch.nn.Module, temperature: float) -> None:
    """Chi-square over the tokens expected at least 5 times, the others pooled; fixed seed."""
    num = 4000
    options = replace(OPTIONS, temperature=temperature, max_tokens=1, max_rows=1000)
    found = sample(model, [(5, 6, 7)] * num, options, rng(1))
    counts = Counter(response.ids[0] for response in found)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1].double()
    share_V = (logits / temperature).softmax(0).numpy()
    often = np.flatnonzero(share_V * num >= 5)
    assert len(often) >= 5
    observed = [counts[int(token)] for token in often]
    observed.append(num - sum(observed))
    expected = [*(share_V[often] * num), (1 - share_V[often].sum()) * num]
    if expected[-1] < 5:
        observed[-2:] = [sum(observed[-2:])]
        expected[-2:] = [sum(expected[-2:])]
    p_value = stats.chisquare(observed, expected).pvalue
    assert p_value > 0.001


def test_samples_of_one_prompt_are_independent(model: torch.nn.Module) -> None:
    found = sample(model, [(5, 6, 7)] * 30, OPTIONS, rng())
    assert len({response.ids for response in found}) > 20


def test_a_response_ends_with_an_end_token_or_is_truncated(model: torch.nn.Module) -> None:
    found = sample(model, PROMPTS * 20, OPTIONS, rng())
    ended = [response for response in found if not response.truncated]
    cut = [response for response in found if response.truncated]
    assert ended
    assert cut
    for response in ended:
        assert response.ids[-1] in OPTIONS.end_ids
    for response in cut:
        assert len(response.ids) == OPTIONS.max_tokens
        assert response.ids[-1] not in OPTIONS.end_ids
    for response in found:
        assert not set(response.ids[:-1]) & set(OPTIONS.end_ids), "went on after the end"
        assert len(response.ids) == len(response.logprobs)


def test_ending_with_the_last_allowed_token_is_not_truncation(model: torch.nn.Module) -> None:
    everything_ends = replace(OPTIONS, max_tokens=1, end_ids=tuple(range(99)))
    assert not any(
        response.truncated for response in sample(model, PROMPTS, everything_ends, rng())
    )


def test_the_same_generator_state_draws_the_same(model: torch.nn.Module) -> None:
    first, again, other = (sample(model, PROMPTS, OPTIONS, rng(seed)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_sampling_leaves_torchs_own_generator_alone(model: torch.nn.Module) -> None:
    before = torch.get_rng_state()
    sample(model, PROMPTS, OPTIONS, rng())
    assert torch.equal(before, torch.get_rng_state())


def test_an_output_that_is_not_a_number_is_told(char_model: Path) -> None:
    broken = AutoModelForCausalLM.from_pretrained(char_model).eval()
    broken.model.norm.weight.data[0] = float("nan")
    with pytest.raises(FloatingPointError, match="response token 0 is not finite"):
        sample(broken, PROMPTS, OPTIONS, rng())


def test_left_padding() -> None:
    ids, mask = left_padded([(5,), (6, 7, 8)], 0, "cpu")
    assert ids.tolist() == [[0, 0, 5], [6, 7, 8]]
    assert mask.tolist() == [[0, 0, 1], [1, 1, 1]]


def keys(rows: Sequence[int]) -> list[tuple[int, ...]]:
    return [(7, row) for row in rows]


def test_a_row_with_numbers_of_its_own_says_the_same_in_any_company(
    model: torch.nn.Module,
) -> None:
    """All at once, in chunks, in another order or alone: the same tokens."""
    prompts = PROMPTS * 4
    rows = [*range(len(prompts))]
    together = sample(model, prompts, OPTIONS, rng(), keys(rows))
    assert_forced(model, prompts, together)
    few = sample(model, prompts, replace(OPTIONS, max_rows=5), rng(3), keys(rows))
    mixed = sample(model, prompts[::-1], OPTIONS, rng(), keys(rows[::-1]))[::-1]
    alone = [
        sample(model, [prompt], OPTIONS, rng(), keys([row]))[0]
        for prompt, row in zip(prompts, rows, strict=True)
    ]
    said = [response.ids for response in together]
    assert len(set(said)) > 12
    for others in (few, mixed, alone):
        assert [response.ids for response in others] == said
    others = sample(model, prompts, OPTIONS, rng(), [(8, row) for row in rows])
    assert [response.ids for response in others] != said


def test_numbers_of_its_own_draw_from_the_distribution() -> None:
    """20,000 draws against the softmax by a chi-square test; tokens without probability never."""
    probability = torch.tensor([0.0, 0.1, 0.0, 0.5, 0.25, 0.15, 0.0], dtype=torch.float32)
    num = 20_000
    draw = from_own_numbers([(3, row) for row in range(num // 4)], 4, torch.device("cpu"))
    every = torch.arange(num // 4)
    drawn = torch.cat([draw(probability.expand(num // 4, -1), every, t) for t in range(4)])
    counts = torch.bincount(drawn.flatten(), minlength=7).numpy()
    assert not counts[[0, 2, 6]].any()
    possible = probability.numpy() > 0
    expected = probability.numpy()[possible].astype(np.float64)
    assert stats.chisquare(counts[possible], expected / expected.sum() * num).pvalue > 1e-3
