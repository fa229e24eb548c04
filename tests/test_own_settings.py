"""Settings of one role or policy reach it, and nobody else; a learning rate has one owner."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SmallConfig
from test_train import adapters, assert_same_states, assert_same_tensors

from gradlab.records import Agent
from gradlab.store.run import open_run
from trainers.batches import response_logprobs, to_batch
from trainers.config import TrainConfig
from trainers.episodes import trained_turns
from trainers.inspect.audit import audit_run
from trainers.judge import Judge
from trainers.models.language import load_language_model
from trainers.models.local_sampler import LocalSampler
from trainers.policies import LearningRate, build_policies, rate_state, warmup
from trainers.preview.estimates import plan
from trainers.replay.changes import changed
from trainers.rollout import rollout
from trainers.tasks.sources.embedded import arithmetic
from trainers.training import train
from trainers.watch.progress import Progress

PROBLEMS = arithmetic(2)[1000:1004]


def test_policies_have_the_settings_that_they_were_given(small_config: SmallConfig) -> None:
    config = small_config(
        policy_learning_rate={"aggregator": 5e-4},
        policy_weight_decay={"aggregator": 0.5},
        policy_lora_rank={"aggregator": 2},
        policy_lora_alpha={"aggregator": 3},
    )
    language = load_language_model(config, config.policies)
    policies = build_policies({config.model: language}, config)
    found = {
        name: (p.learning_rate, p.optimizer.param_groups[0]["weight_decay"], p.parameters[0].shape)
        for name, p in policies.items()
    }
    assert found["generator"][:2] == (1e-3, 0.01)
    assert found["aggregator"][:2] == (5e-4, 0.5)
    assert (found["generator"][2][0], found["aggregator"][2][0]) == (4, 2)
    scales = {name: c.lora_alpha / c.r for name, c in language.model.peft_config.items()}
    assert scales == {"generator": 16 / 4, "aggregator": 3 / 2}
    # Three of rank 4 and one of rank 2 in the dry run as in the model.
    sizes = {p.name: p.num_parameters for p in plan(config).policies}
    assert sizes == {n: sum(x.numel() for x in p.parameters) for n, p in policies.items()}
    assert sizes["generator"] == 2 * sizes["aggregator"]


def test_roles_are_sampled_and_trained_at_their_own_temperature(small_config: SmallConfig) -> None:
    """Roles of one policy: the trainer's log-probs are the sampler's, row by row."""
    config = small_config(
        routing="shared", temperature=0.9, role_temperature={"aggregator": 0.2},
        role_max_response_tokens={"generator": 3},
    )  # fmt: skip
    language = load_language_model(config, config.policies)
    episodes = rollout(
        LocalSampler({config.model: language}), config.build_workflow(), config.speakers(),
        PROBLEMS, 3, (4,), Judge(),
    )  # fmt: skip
    turns = trained_turns(episodes)
    assert {(t.agent.role, t.temperature) for t in turns} == {
        ("generator", 0.9),
        ("aggregator", 0.2),
    }
    assert max(len(t.response_ids) for t in turns if t.agent.role == "generator") == 3
    assert max(len(t.response_ids) for t in turns if t.agent.role == "aggregator") > 3
    language.activate("shared")
    language.model.eval()
    batch = to_batch(turns, language)
    with torch.no_grad():
        logprob_BT, _ = response_logprobs(language, batch)
    sampled = torch.tensor([sum(turn.logprobs) for turn in turns])
    found = torch.where(batch.is_token_BT, logprob_BT, 0.0).sum(1)
    torch.testing.assert_close(found, sampled, atol=1e-4, rtol=0)


def test_rows_of_one_temperature_are_divided_by_a_number(small_config: SmallConfig) -> None:
    """And rows of several by theirs: the same as each alone."""
    config = small_config(routing="shared", role_temperature={"aggregator": 0.5})
    language = load_language_model(config, config.policies)
    turns = trained_turns(
        rollout(
            LocalSampler({config.model: language}), config.build_workflow(), config.speakers(),
            PROBLEMS, 1, (4,), Judge(),
        )
    )  # fmt: skip
    both = turns[2:4]  # a generator and the aggregator
    assert to_batch([both[0]], language).temperature == 1.0
    language.activate("shared")
    with torch.no_grad():
        together, _ = response_logprobs(language, to_batch(both, language))
        for row, turn in enumerate(both):
            alone, _ = response_logprobs(language, to_batch([turn], language))
            length = len(turn.response_ids)
            torch.testing.assert_close(together[row, :length], alone[0, :length])


def test_the_learning_rate_has_one_owner() -> None:
    """Worked out by hand: base 2e-3 over 4 steps of warm-up, 1/4 2/4 3/4 1 1."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], lr=1.0)
    rate = LearningRate(optimizer, 2e-3, warmup(TrainConfig(warmup_steps=4)))
    seen = []
    for _ in range(5):
        assert optimizer.param_groups[0]["lr"] == rate.now
        seen.append(rate.now)
        rate.tick()
    assert seen == pytest.approx([0.5e-3, 1e-3, 1.5e-3, 2e-3, 2e-3])
    rate.scale(0.3)
    assert optimizer.param_groups[0]["lr"] == rate.now == pytest.approx(0.6e-3)
    other = LearningRate(torch.optim.AdamW([weight]), 1.0, warmup(TrainConfig(warmup_steps=4)))
    other.load_state_dict(rate.state_dict())
    assert (other.base, other.ticks, other.now) == (rate.base, rate.ticks, rate.now)


def test_checkpoints_of_torchs_schedule_are_read() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], lr=2e-3)
    old = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup(TrainConfig(warmup_steps=4)))
    optimizer.step()
    for _ in range(2):
        old.step()
    assert rate_state(old.state_dict()) == (2e-3, 2)
    new = LearningRate(torch.optim.AdamW([weight]), 1.0, warmup(TrainConfig(warmup_steps=4)))
    new.load_state_dict(old.state_dict())
    assert new.now == old.get_last_lr()[0]


def test_a_run_with_settings_of_its_own_resumes_audits_and_records_them(
    small_config: SmallConfig, quiet: Progress, tmp_path: Path
) -> None:
    config = small_config(
        steps=4, warmup_steps=3, eval_every=2, policy_learning_rate={"aggregator": 5e-4},
        policy_lora_rank={"aggregator": 2}, role_temperature={"aggregator": 0.5},
        policy_weight_decay={"generator": 0.0}, role_max_response_tokens={"aggregator": 4},
    )  # fmt: skip
    whole = train(replace(config, out=tmp_path / "whole"), quiet)
    half = train(replace(config, out=tmp_path / "half", steps=2), quiet)
    resumed = train(replace(config, out=half, resume=True, extend_to=4), quiet)
    assert_same_tensors(adapters(whole, 4), adapters(resumed, 4))
    assert_same_states(whole, resumed, 4)
    assert all(audit.is_right for audit in audit_run(whole)[1])
    run = open_run(whole)
    factor = np.array([1 / 3, 2 / 3, 1, 1])
    for policy, base in (("generator", 1e-3), ("aggregator", 5e-4)):
        signal = run.update_metric("learning_rate", policy)
        by_step = [signal.value_T[signal.step_T == step][-1] for step in run.steps]
        np.testing.assert_allclose(by_step, base * factor, rtol=1e-6)
    assert run.meta.config["policy_learning_rate"] == {"aggregator": 5e-4}
    assert (run.ledger("logprob_gap", "aggregator").value_T < 1e-4).all()
    assert run.ledger("length_mean", "aggregator").value_T.max() <= 4


def test_replays_change_what_is_set_for_one(small_config: SmallConfig) -> None:
    config = small_config(policy_learning_rate={"aggregator": 5e-4})
    slower = changed(config, ["lr:0.5"])
    assert slower.learning_rate_of("generator") == 5e-4
    assert slower.learning_rate_of("aggregator") == 2.5e-4
    colder = changed(config, ["temperature:aggregator=0.2", "policy-lr:generator=1e-4"])
    assert colder.speakers()[Agent("aggregator")].temperature == 0.2
    assert colder.learning_rate_of("generator") == 1e-4


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (
            {"policy_learning_rate": {"judge": 1e-3}},
            "--policy-learning-rate names policy 'judge'; --routing isolated has generator, aggr",
        ),
        ({"policy_learning_rate": {"generator": 0.0}}, "of generator is 0.0; expected more than 0"),
        (
            {"policy_weight_decay": {"generator": float("inf")}},
            "is inf; expected 0 or more, at",
        ),
        ({"policy_lora_rank": {"generator": 0}}, "is 0; expected 1 or more"),
        ({"role_temperature": {"judge": 1.0}}, "--role-temperature names role 'judge'"),
        ({"role_temperature": {"generator": 0.0}}, "of generator is 0.0; expected 0.0001 or more"),
        ({"role_temperature": {"generator": float("nan")}}, "of generator is nan"),
        ({"role_max_response_tokens": {"generator": 0}}, "is 0; expected 1 or more"),
        (
            {"policy_lora_rank": {"generator": 4}, "freeze": ("generator",)},
            "--policy-lora-rank names policy 'generator'; --routing isolated has aggregator",
        ),
    ],
)
def test_settings_of_nobody_are_refused(
    small_config: SmallConfig, settings: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        small_config(**settings)


def test_a_frozen_role_has_a_temperature(small_config: SmallConfig) -> None:
    config = small_config(freeze=("generator",), role_temperature={"generator": 0.3})
    assert config.speakers()[Agent("generator", 2)].temperature == 0.3
