"""Two base models in one run: each policy on its own, prompts in its own tokens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SmallConfig, make_qwen3
from peft import PeftModel
from test_exactness import assert_close, flat, twin_step
from test_train import adapters, assert_same_runs, assert_same_states, assert_same_tensors
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from analysis.diagnosis import diagnose
from analysis.report.page import write_page
from figures.cells import cell_of
from figures.make import make_figures
from gradlab.records import Agent, PolicyMeta, RunMeta, UpdateRecord, routing_table
from gradlab.store.run import open_run
from trainers.config import TrainConfig
from trainers.episodes import trained_turns
from trainers.inspect.audit import audit_run
from trainers.judge import Judge
from trainers.learn import learn
from trainers.models.language import load_language_models
from trainers.models.local_sampler import LocalSampler
from trainers.models.tiny import build_tokenizer
from trainers.policies import build_policies
from trainers.preview.dryrun import dry_run
from trainers.preview.estimates import plan
from trainers.preview.times import CARD
from trainers.replay.begin import begin
from trainers.replay.fork import policy_origins
from trainers.rollout import rollout
from trainers.tasks.sources.embedded import arithmetic
from trainers.training import other_models, train
from trainers.watch.progress import Progress

TWO = {"policy_model": {"aggregator": "tiny-1m"}}


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 2 layers with the characters of the tiny models under other numbers."""
    directory = tmp_path_factory.mktemp("models") / "reversed"
    tokenizer = build_tokenizer()
    special = len(tokenizer.all_special_ids)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    names = [name for name, _ in vocabulary]
    order = [*names[:special], *reversed(names[special:])]
    tokenizer.save_pretrained(directory)
    content = json.loads((directory / "tokenizer.json").read_text())
    content["model"]["vocab"] = {name: number for number, name in enumerate(order)}
    (directory / "tokenizer.json").write_text(json.dumps(content))
    model = make_qwen3(seed=5, dtype=torch.float32, vocab_size=len(names), eos_token_id=1)
    model.save_pretrained(directory)
    return directory


def test_every_speaker_reads_its_own_tokens(small_config: SmallConfig, other_model: Path) -> None:
    config = small_config(policy_model={"aggregator": str(other_model)})
    assert config.models == ("tiny", str(other_model))
    languages = load_language_models(config)
    assert sorted(languages["tiny"].model.peft_config) == ["generator"]
    assert sorted(languages[str(other_model)].model.peft_config) == ["aggregator"]
    assert isinstance(languages["tiny"].tokenizer, PreTrainedTokenizerFast)
    problems = arithmetic(2)[1000:1003]
    episodes = rollout(
        LocalSampler(languages), config.build_workflow(), config.speakers(), problems, 2, (0,),
        Judge(),
    )  # fmt: skip
    for turn in trained_turns(episodes):
        model = "tiny" if turn.agent.role == "generator" else str(other_model)
        other = str(other_model) if model == "tiny" else "tiny"
        for ids, text in ((turn.prompt_ids, turn.prompt), (turn.response_ids, turn.response)):
            keep = text is turn.prompt
            assert languages[model].decode(ids, keep_special=keep) == text
        assert languages[other].decode(turn.prompt_ids, keep_special=True) != turn.prompt
    # What the generators said reaches the aggregator as text.
    said = [turn.response for turn in episodes[0].turns[:3]]
    assert " ".join(said) in episodes[0].turns[3].prompt


def test_gradients_of_two_models_equal_one_backward_per_agent(small_config: SmallConfig) -> None:
    config = small_config(**TWO, routing="agents", rows_per_update=24, micro_tokens=500)
    config = replace(config, policy_model={"generator-1": "tiny-1m", "aggregator": "tiny-1m"})
    languages, twins = load_language_models(config), load_language_models(config)
    for found in (languages, twins):
        draw = torch.Generator().manual_seed(7)
        for language in found.values():
            language.model.double()
            for name, parameter in language.model.named_parameters():
                if "lora_B" in name:
                    noise = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
                    parameter.data += 0.01 * noise
    policies = build_policies(languages, config)
    twin_policies = build_policies(twins, replace(config, probe="off"))
    problems = arithmetic(2)[1000:1004]
    episodes = rollout(
        LocalSampler(languages), config.build_workflow(), config.speakers(), problems, 6, (3,),
        Judge(),
    )  # fmt: skip
    draws = np.random.default_rng(11)
    turns = [replace(t, advantage=draws.normal()) for t in trained_turns(episodes)]
    for name, policy in policies.items():
        mine = [turn for turn in turns if turn.agent in policy.agents]
        records: list[UpdateRecord] = []
        assert policy.probe is not None
        policy.probe.send_to(records.append)
        learn(policy.language, policy, mine, config, step=1)
        twin = twin_policies[name]
        truth = twin_step(twin.language, twin, mine, config, step=1)
        assert len(records) == len(truth) > 0
        for record, one in zip(records, truth, strict=True):
            gram = one.gradient_AP @ one.gradient_AP.T
            assert_close(record.gram_BAA.sum(0), gram, f"policy {name}, Gram")
        moved = flat(policy.parameters) - flat(twin.parameters)
        assert moved.norm() < 1e-9 * flat(twin.parameters).norm()


def test_a_run_with_two_models_trains_resumes_audits_and_is_read(
    small_config: SmallConfig, quiet: Progress, tmp_path: Path
) -> None:
    config = small_config(**TWO, steps=4, checkpoint_every=2)
    whole = train(replace(config, out=tmp_path / "whole"), quiet)
    half = train(replace(config, out=tmp_path / "half", steps=2), quiet)
    resumed = train(replace(config, out=half, resume=True, extend_to=4), quiet)
    assert_same_tensors(adapters(whole, 4), adapters(resumed, 4))
    assert_same_states(whole, resumed, 4)

    done, audits = audit_run(whole)
    assert done == 5
    assert {audit.policy for audit in audits} == {"generator", "aggregator"}
    assert all(audit.is_right for audit in audits)

    run = open_run(whole)
    assert (run.meta.model, dict(run.meta.models)) == ("tiny", {"aggregator": "tiny-1m"})
    assert run.meta.all_models == ("tiny", "tiny-1m")
    assert run.policy_of("aggregator").num_parameters > run.policy_of("generator").num_parameters
    assert (run.ledger("logprob_gap", "aggregator").value_T < 1e-4).all()
    assert "tiny + tiny-1m" in str(cell_of(run))
    written = write_page(diagnose(run), run, tmp_path / "page.html").read_text()
    assert "tiny, aggregator with tiny-1m" in written
    assert make_figures([whole], tmp_path / "figures")

    again = replace(config, out=tmp_path / "again")
    begin(whole, 2, again)
    train(replace(again, resume=True), quiet)
    assert_same_tensors(adapters(whole, 4), adapters(again.out, 4))
    with pytest.raises(ValueError, match=r"--policy-model is \{\}, and .* was trained with"):
        begin(whole, 2, replace(config, policy_model={}, out=tmp_path / "other"))


def test_runs_with_two_models_repeat_themselves(
    small_config: SmallConfig, quiet: Progress, tmp_path: Path
) -> None:
    """Store and episodes, bit for bit, one adapter per agent."""
    config = small_config(**TWO, steps=3, eval_every=1, checkpoint_every=1, routing="agents")
    whole = train(replace(config, out=tmp_path / "whole"), quiet)
    again = train(replace(config, out=tmp_path / "again"), quiet)
    assert_same_runs(whole, again)


def test_a_frozen_role_may_speak_with_a_model_of_its_own(
    small_config: SmallConfig, quiet: Progress
) -> None:
    config = small_config(freeze=("aggregator",), **TWO)
    assert config.speakers()[Agent("aggregator")].model == "tiny-1m"
    languages = load_language_models(config)
    assert not isinstance(languages["tiny-1m"].model, PeftModel), "nothing was put around it"
    run = open_run(train(config, quiet))
    assert dict(run.meta.models) == {"aggregator": "tiny-1m"}
    assert run.meta.all_models == ("tiny", "tiny-1m")
    assert [policy.name for policy in run.policies] == ["generator"]


@pytest.mark.parametrize(
    ("settings", "models"),
    [
        (  # agents of a frozen role that several policies would have
            {
                "routing": "generator[0]=a,generator[1]=b,aggregator=c",
                "policy_model": {"b": "tiny-1m"},
                "freeze": ("generator",),
            },
            {"generator[0]": "tiny", "generator[1]": "tiny-1m"},
        ),
        (  # a frozen role that is called as another's policy is
            {
                "routing": "generator=aggregator,aggregator=z",
                "policy_model": {"z": "tiny-1m"},
                "freeze": ("aggregator",),
            },
            {"aggregator[0]": "tiny-1m"},
        ),
        (  # alike, and of --model: nothing to record
            {"routing": "generator=a,aggregator=b", "freeze": ("generator",)},
            {},
        ),
    ],
)
def test_models_of_frozen_roles_are_recorded_by_agent_where_the_role_does_not_say(
    settings: dict[str, Any], models: dict[str, str]
) -> None:
    config = TrainConfig(votes=2, **settings)
    assert other_models(config) == models
    agents = config.build_workflow().agents
    meta = RunMeta(
        run_id="a", workflow="voting", task="arithmetic", model=config.model,
        roles=("generator", "aggregator"), routing=routing_table(config.policy_by_agent()),
        frozen=config.freeze, models=models,
        policies=tuple(
            PolicyMeta(name, tuple(a for a, p in config.policy_by_agent().items() if p == name),
                       ("all",), 10)
            for name in config.policies
        ),
    )  # fmt: skip
    assert set(meta.all_models) == {config.model_of(agent) for agent in agents}


def test_the_plan_counts_both_models(small_config: SmallConfig) -> None:
    config = small_config(**TWO)
    one, other = small_config(), small_config(model="tiny-1m")
    one, both, other = (plan(asked, speed=CARD) for asked in (one, config, other))
    assert both.model == "tiny + tiny-1m"
    assert both.parameters == one.parameters + other.parameters
    assert both.memory.weights == one.memory.weights + other.memory.weights
    assert both.memory.activations == max(one.memory.activations, other.memory.activations)
    assert one.times.step < both.times.step < other.times.step
    lines: list[str] = []
    dry_run(config, lines.append)
    assert any(line.startswith("model       tiny + tiny-1m: ") for line in lines)


def test_models_that_cannot_be_together_are_refused(
    small_config: SmallConfig, tmp_path: Path, char_model: Path
) -> None:
    with pytest.raises(ValueError, match="--policy-model gives policy 'judge' the model 'tiny'; e"):
        small_config(policy_model={"judge": "tiny"})
    shared = small_config(routing="shared")
    with pytest.raises(ValueError, match="would begin as 'shared', an adapter of tiny, on tiny-1m"):
        policy_origins(shared, small_config(**TWO), None)
    chat = tmp_path / "chat"
    tokenizer = build_tokenizer()
    tokenizer.init_kwargs.pop("prompt_style")
    tokenizer.save_pretrained(chat)
    AutoModelForCausalLM.from_pretrained(char_model).save_pretrained(chat)
    config: TrainConfig = small_config(policy_model={"aggregator": str(chat)})
    with pytest.raises(
        ValueError, match=r"tiny answers prompts of a few characters, .*chat chats;"
    ):
        load_language_models(config)
