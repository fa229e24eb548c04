"""Checkpoints: PEFT's own loader reads them, half-written ones do not count."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import SmallConfig
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from gradlab.run_directory import checkpoint_path
from trainers.config import TrainConfig
from trainers.models.language import LanguageModel, load_language_model
from trainers.policies import Policy, adapter_parameters, build_policies
from trainers.rundir.checkpoint import last_checkpoint, load_checkpoint, save_checkpoint
from trainers.tasks.sources.embedded import arithmetic


def build(config: TrainConfig) -> tuple[LanguageModel, dict[str, Policy]]:
    names = list(dict.fromkeys(config.policy_by_role().values()))
    language = load_language_model(config, names)
    return language, build_policies(language, config, config.build_workflow().agents)


@pytest.fixture
def config(small_config: SmallConfig, char_model: Path) -> TrainConfig:
    return small_config(model=str(char_model), warmup_steps=4)


def step_once(language: LanguageModel, policy: Policy, seed: int) -> None:
    """Move a policy by an arbitrary gradient."""
    language.activate(policy.name)
    draw = torch.Generator().manual_seed(seed)
    for parameter in policy.parameters:
        parameter.grad = torch.randn(parameter.shape, generator=draw)
    policy.optimizer.step()
    policy.optimizer.zero_grad()
    policy.schedule.step()


@pytest.fixture
def trained(config: TrainConfig) -> tuple[LanguageModel, dict[str, Policy]]:
    language, policies = build(replace(config, probe="off"))
    for number, policy in enumerate(policies.values()):
        step_once(language, policy, number)
    return language, policies


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=torch.tensor([[5, 9, 30, 31]])).logits
    return found


def test_peft_loads_an_adapter_to_the_same_logits(
    trained: tuple[LanguageModel, dict[str, Policy]], config: TrainConfig, tmp_path: Path
) -> None:
    language, policies = trained
    path = save_checkpoint(tmp_path, 12, language, policies)
    assert path == tmp_path / "checkpoints" / "step-000012"
    base = AutoModelForCausalLM.from_pretrained(config.model)
    plain = logits(base)
    for name in policies:
        fresh = AutoModelForCausalLM.from_pretrained(config.model)
        loaded = PeftModel.from_pretrained(fresh, path / name)
        language.activate(name)
        expected = logits(language.model)
        torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=0)
        assert (expected - plain).abs().max() > 1e-4, "the adapter does nothing: a weak test"


def test_everything_comes_back(
    trained: tuple[LanguageModel, dict[str, Policy]], config: TrainConfig, tmp_path: Path
) -> None:
    language, policies = trained
    save_checkpoint(tmp_path, 1, language, policies)
    other_language, other = build(replace(config, probe="off", seed=5))
    load_checkpoint(tmp_path, 1, other_language, other)
    for name, policy in policies.items():
        # one more step moves both alike: moments, step counts and learning rate came back too
        step_once(language, policy, 9)
        step_once(other_language, other[name], 9)
        for mine, theirs in zip(policy.parameters, other[name].parameters, strict=True):
            assert torch.equal(mine, theirs)
        assert policy.learning_rate == other[name].learning_rate == pytest.approx(3 / 4 * 1e-3)


def test_a_checkpoint_is_whole_or_does_not_count(
    trained: tuple[LanguageModel, dict[str, Policy]], tmp_path: Path
) -> None:
    language, policies = trained
    assert last_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, 3, language, policies)
    save_checkpoint(tmp_path, 10, language, policies)
    assert last_checkpoint(tmp_path) == 10
    checkpoint_path(tmp_path, 10).rename(tmp_path / "checkpoints" / ".step-000010.partial")
    assert last_checkpoint(tmp_path) == 3
    checkpoint_path(tmp_path, 20).mkdir()  # without its last file
    assert last_checkpoint(tmp_path) == 3
    save_checkpoint(tmp_path, 10, language, policies)  # over the leftovers
    assert last_checkpoint(tmp_path) == 10


def test_a_checkpoint_replaces_one_of_the_same_step(
    trained: tuple[LanguageModel, dict[str, Policy]], tmp_path: Path
) -> None:
    language, policies = trained
    save_checkpoint(tmp_path, 3, language, policies)
    step_once(language, policies["generator"], 1)
    save_checkpoint(tmp_path, 3, language, policies)
    before = [p.detach().clone() for p in policies["generator"].parameters]
    step_once(language, policies["generator"], 2)
    load_checkpoint(tmp_path, 3, language, policies)
    after = policies["generator"].parameters
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_checkpoint_of_another_routing_is_refused(
    trained: tuple[LanguageModel, dict[str, Policy]], config: TrainConfig, tmp_path: Path
) -> None:
    language, policies = trained
    save_checkpoint(tmp_path, 1, language, policies)
    other_language, other = build(replace(config, routing="shared"))
    with pytest.raises(ValueError, match=r"has no policy 'shared'; .*--routing"):
        load_checkpoint(tmp_path, 1, other_language, other)


def test_policies_share_no_parameter_and_train_only_their_own(
    trained: tuple[LanguageModel, dict[str, Policy]],
) -> None:
    language, policies = trained
    owned = [id(p) for policy in policies.values() for p in policy.parameters]
    assert len(owned) == len(set(owned))
    before = [p.detach().clone() for p in policies["aggregator"].parameters]
    step_once(language, policies["generator"], 3)
    after = policies["aggregator"].parameters
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_policy_names_that_contain_each_other_are_told_apart(
    config: TrainConfig,
) -> None:
    """'gen' is a part of 'gen2': a search by substring would mix their adapters."""
    language, policies = build(replace(config, routing="generator=gen,aggregator=gen2"))
    mine = set(adapter_parameters(language.model, "gen"))
    theirs = set(adapter_parameters(language.model, "gen2"))
    assert mine
    assert len(mine) == len(theirs)
    assert not mine & theirs
    assert len(policies["gen"].parameters) == len(mine)


def test_a_local_directory_loads_as_any_model_does(config: TrainConfig) -> None:
    language, _ = build(config)
    assert type(language.prompts).__name__ == "CompactPrompts"
    tokenizer = AutoTokenizer.from_pretrained(config.model)
    text = "g12+30"
    chat = language.prompts.generate(arithmetic(2)[20])
    assert language.decode(language.encode(chat), keep_special=True).startswith("<user>g")
    assert tokenizer.decode(tokenizer.encode(text)) == text
