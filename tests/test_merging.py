"""A policy says with its adapter merged what it says with it applied, and no weight is touched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import SmallConfig
from transformers import GPT2Config, GPT2LMHeadModel

from gradlab.store.run import open_run
from trainers.config import TrainConfig
from trainers.models.language import LanguageModel, add_adapters, load_language_models
from trainers.models.local_sampler import LocalSampler
from trainers.models.merging import merged
from trainers.models.sampler import Sample, Speaker, Wave
from trainers.policies import TrainingError
from trainers.training import train
from trainers.watch.monitor import LARGEST_GAP_FLOAT32
from trainers.watch.progress import Progress

IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 4, 30, 31, 2]])


def taught(languages: dict[str, LanguageModel]) -> dict[str, LanguageModel]:
    """With adapters that are far from what they begin as, which is nothing."""
    draw = torch.Generator().manual_seed(1)
    for language in languages.values():
        for name, parameter in language.model.named_parameters():
            if ".lora_B." in name:
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)
    return languages


def states(languages: dict[str, LanguageModel]) -> dict[str, torch.Tensor]:
    """A copy of every tensor by full name, in their order."""
    return {
        f"{name}: {key}": value.clone()
        for name, language in languages.items()
        for key, value in language.model.state_dict().items()
    }


def assert_untouched(languages: dict[str, LanguageModel], before: dict[str, torch.Tensor]) -> None:
    after = states(languages)
    assert [*after] == [*before]
    assert all(torch.equal(after[key], before[key]) for key in before)


def wave_of(config: TrainConfig, languages: dict[str, LanguageModel], copies: int) -> Wave:
    """Everybody is asked the same few things, in the tokens of the own model."""
    return {
        speaker: [tuple(IDS[0, : 2 + number % 4].tolist()) for number in range(copies)]
        for speaker in dict.fromkeys(config.speakers().values())
    }


@torch.no_grad()
def forced(language: LanguageModel, speaker: Speaker, prompt: Sequence[int], said: Sample) -> float:
    """Largest distance of a response's log-probs from a forward with the adapter applied."""
    ids = torch.tensor([[*prompt, *said.ids]])
    with language.speaking(speaker.policy) as model:
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1] / speaker.temperature
    truth = logits.log_softmax(-1).gather(1, torch.tensor(said.ids)[:, None])[:, 0]
    return float((truth - torch.tensor(said.logprobs)).abs().max())


@pytest.mark.parametrize(
    "settings",
    [
        {"routing": "shared"},
        {"routing": "isolated"},
        {"routing": "isolated", "freeze": ("generator",)},
        {"routing": "isolated", "policy_model": {"aggregator": "tiny-1m"}},
        {"policy_model": {"aggregator": "tiny-1m"}, "freeze": ("aggregator",)},
    ],
)
def test_log_probs_are_the_trainers_and_weights_stay_what_they_are(
    small_config: SmallConfig, settings: dict[str, object]
) -> None:
    config = small_config(**settings)
    languages = taught(load_language_models(config))
    before = states(languages)
    sampler = LocalSampler(languages, merges=True)
    wave = wave_of(config, languages, 2)
    for number in range(4):
        for speaker, responses in sampler.ask(wave, (number,)).items():
            gap = forced(languages[speaker.model], speaker, wave[speaker][0], responses[0])
            assert gap < LARGEST_GAP_FLOAT32, speaker
        assert_untouched(languages, before)
        if number == 1:
            sampler.rest()
            assert not sampler.copies


def test_merging_changes_something_and_only_where_asked(small_config: SmallConfig) -> None:
    """Draws are the same while no rounding decides one; log-probs are not to the last bit."""
    config = small_config(routing="shared")
    languages = taught(load_language_models(config))
    wave = wave_of(config, languages, 20)
    [applied], [with_copies] = (
        LocalSampler(languages, merges).ask(wave, (3,)).values() for merges in (False, True)
    )
    assert [one.ids for one in applied] == [one.ids for one in with_copies]
    assert [one.logprobs for one in applied] != [one.logprobs for one in with_copies]


def test_a_frozen_role_says_the_same_bit_for_bit(small_config: SmallConfig) -> None:
    config = small_config(routing="isolated", freeze=("generator",))
    languages = taught(load_language_models(config))
    base = Speaker("", config.model)
    wave = {base: wave_of(config, languages, 20)[base]}
    plain, without = (LocalSampler(languages, merges).ask(wave, (3,)) for merges in (False, True))
    assert plain == without


def test_new_weights_are_spoken_with_at_once(small_config: SmallConfig) -> None:
    """Also where nobody said that they changed: a copy is made for every wave."""
    config = small_config(routing="shared")
    languages = taught(load_language_models(config))
    sampler, wave = LocalSampler(languages, merges=True), wave_of(config, languages, 4)
    [language] = languages.values()
    sampler.ask(wave, (0,))
    for name, parameter in language.model.named_parameters():
        if ".lora_" in name:
            parameter.data.mul_(1.5)
    for speaker, responses in sampler.ask(wave, (1,)).items():
        for prompt, said in zip(wave[speaker], responses, strict=True):
            assert forced(language, speaker, prompt, said) < LARGEST_GAP_FLOAT32 / 5


def test_an_error_in_mid_wave_leaves_the_weights_what_they_are(small_config: SmallConfig) -> None:
    config = small_config(routing="isolated")
    languages = taught(load_language_models(config))
    [language] = languages.values()
    before, modules = states(languages), [*language.model.modules()]

    def interrupted() -> None:
        with (
            language.speaking("generator") as model,
            merged(model, "generator", {}) as plain,
        ):
            assert "lora" not in str(plain)
            plain(input_ids=IDS)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert_untouched(languages, before)
    assert [*language.model.modules()] == modules
    with language.speaking("generator") as model:
        assert "lora" in str(model)


def test_a_policy_that_is_not_finite_is_named_with_its_parameters(
    small_config: SmallConfig,
) -> None:
    config = small_config(routing="isolated")
    languages = load_language_models(config)
    [language] = languages.values()
    broken = next(
        name for name, _ in language.model.named_parameters() if ".lora_B.aggregator" in name
    )
    language.model.get_parameter(broken).data[0, 0] = float("nan")
    with pytest.raises(TrainingError, match=r"'aggregator'.*1 of its parameters are not finite"):
        LocalSampler(languages, merges=True).ask(wave_of(config, languages, 2), (0,))


def test_bfloat16_would_round_the_adapter_away_and_is_not_merged(
    small_config: SmallConfig,
) -> None:
    config = small_config(routing="shared", dtype="bfloat16")
    [language] = taught(load_language_models(config)).values()
    copies: dict[str, torch.nn.Linear] = {}
    with language.speaking("shared") as model, torch.no_grad():
        applied = model(input_ids=IDS).logits
        with merged(model, "shared", copies) as same:
            assert torch.equal(same(input_ids=IDS).logits, applied)
    assert not copies


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_layers_that_are_no_plain_product_keep_their_adapter(small_config: SmallConfig) -> None:
    """GPT-2 has its weights the other way round, and a head that is not adapted."""
    torch.manual_seed(0)
    shapes = GPT2Config(
        vocab_size=40,
        n_positions=32,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=1,
        eos_token_id=1,
    )
    base = GPT2LMHeadModel(shapes)
    config = small_config(routing="shared")
    model = add_adapters(base, config, ["shared"]).eval()
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    copies: dict[str, torch.nn.Linear] = {}
    with torch.no_grad():
        applied = model(input_ids=IDS).logits
        with merged(model, "shared", copies) as same:
            torch.testing.assert_close(same(input_ids=IDS).logits, applied)
    assert not copies


def test_a_run_learns_the_same_but_for_rounding(
    small_config: SmallConfig, quiet: Progress, tmp_path: Path
) -> None:
    """The same draws, a gap within the limit, and a gradient that hardly differs."""
    config = small_config(steps=1, eval_every=9, problems_per_step=2)
    runs = [
        open_run(train(replace(config, out=tmp_path / str(merges), sampler_merge=merges), quiet))
        for merges in (True, False)
    ]
    for run in runs:
        for role in run.meta.roles:
            assert (run.ledger("logprob_gap", role).value_T < LARGEST_GAP_FLOAT32 / 10).all()
    for policy in runs[0].policies:
        merges, applied = (run.update_metric("grad_norm", policy.name).value_T for run in runs)
        assert merges[0] == pytest.approx(applied[0], rel=1e-4)
