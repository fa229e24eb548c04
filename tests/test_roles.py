"""Frozen roles stay the base model, and agents with adapters of their own are told apart."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SmallConfig
from test_train import adapters, assert_same_states, assert_same_tensors
from transformers import AutoModelForCausalLM

from analysis.diagnosis import diagnose
from analysis.signals import collect, learners, routed
from figures.make import make_figures
from gradlab.ledger import RoleTally, joined
from gradlab.records import Agent, PolicyMeta, RunMeta, routing_table
from gradlab.run_directory import checkpoint_path
from gradlab.store.run import open_run
from trainers.config import TrainConfig
from trainers.inspect.audit import audit_run
from trainers.inspect.episodes import show_episodes
from trainers.models.language import load_language_model, locate
from trainers.models.local_sampler import LocalSampler, rng
from trainers.models.sampler import Speaker
from trainers.models.sampling import sample
from trainers.preview.dryrun import dry_run
from trainers.replay.fork import policy_origins
from trainers.training import train
from trainers.watch.progress import Progress

ORCHESTRATOR = {"workflow": "orchestrator_workers", "workers": 2, "problems_per_step": 2}
LEARNED = ("entropy", "kl", "logprob_gap", "loss_weight", "clip_fraction")


def base_model(config: TrainConfig) -> Any:
    """As it is on disk, without any adapter."""
    return AutoModelForCausalLM.from_pretrained(locate(config.model)[0], dtype=torch.float32)


def test_a_frozen_role_says_what_the_base_model_says(small_config: SmallConfig) -> None:
    """Bit for bit, and also after the adapters have moved: against the model without adapters."""
    config = small_config(routing="shared", freeze=("generator",))
    language = load_language_model(config, config.policies)
    for name, parameter in language.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    # Weights that require gradients are multiplied in another order, as matrices are folded.
    base = base_model(config).eval().requires_grad_(False)
    prompts = [(5, 9, 30, 31), (5, 9, 30, 32, 33)] * 4
    expected = sample(base, prompts, language.sampling, rng(torch.device("cpu"), 7))
    sampler = LocalSampler({config.model: language})
    short, long = config.speakers()[Agent("generator", 1)], Speaker("shared", config.model)
    assert sampler.ask({short: prompts}, (7,)) == {short: expected}
    assert sampler.ask({long: prompts}, (7,)) != {long: expected}, "a weak test"
    assert all(not p.requires_grad or "lora" in n for n, p in language.model.named_parameters())


@pytest.mark.parametrize("routing", ["shared", "isolated"])
def test_a_frozen_role_costs_nothing_and_the_run_says_so(
    small_config: SmallConfig, quiet: Progress, tmp_path: Path, routing: str
) -> None:
    config = small_config(**ORCHESTRATOR, routing=routing, freeze=("worker",), samples=6)
    plain = load_language_model(config, config.policies).model
    before = {n: p.clone() for n, p in plain.named_parameters() if "lora_" not in n}
    out = train(config, quiet)
    run = open_run(out)
    assert run.meta.frozen == ("worker",)
    assert "worker" not in run.meta.routing
    assert run.agents("worker") == ()
    assert learners(run) == ("orchestrator", "synthesizer")
    for policy in run.policies:
        assert all(agent.role != "worker" for agent in policy.agents)
    assert sorted(p.name for p in checkpoint_path(out, 2).iterdir() if p.is_dir()) == sorted(
        config.policies
    )
    # Its turns are counted, and nothing of training is measured of it.
    assert (run.ledger("turns", "worker").value_T > 0).all()
    assert (run.ledger("optimizer_steps", "worker").value_T == 0).all()
    for name in LEARNED:
        assert np.isnan(run.ledger(name, "worker").value_T).all(), name
    assert np.isfinite(run.ledger("loss_weight", "synthesizer").value_T).all()
    with pytest.raises(ValueError, match="'worker' is frozen: it speaks with the base model"):
        run.norm("worker")
    # The base model is what it was on disk.
    base = base_model(config).state_dict()
    for name, value in before.items():
        short = name.removeprefix("base_model.model.").replace(".base_layer", "")
        assert torch.equal(value, base[short]), name


def test_frozen_runs_resume_audit_diagnose_and_draw(
    small_config: SmallConfig, quiet: Progress, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(**ORCHESTRATOR, freeze=("orchestrator",), steps=4, eval_every=1)
    whole = train(replace(config, out=tmp_path / "whole"), quiet)
    half = train(replace(config, out=tmp_path / "half", steps=2), quiet)
    resumed = train(replace(config, out=half, resume=True, extend_to=4), quiet)
    assert_same_tensors(adapters(whole, 4), adapters(resumed, 4))
    assert_same_states(whole, resumed, 4)

    _, audits = audit_run(whole)
    assert {audit.policy for audit in audits} == {"worker", "synthesizer"}
    assert all(audit.is_right for audit in audits)

    run = open_run(whole)
    signals = {signal.key for signal in collect(run)}
    assert "reward_mean:orchestrator" in signals
    assert not signals & {
        f"{kind}:orchestrator" for kind in ("grad_norm", "kl", "entropy", "zero_variance_groups")
    }
    diagnosis = diagnose(run)
    questions = {open_.what for open_ in diagnosis.not_judged if "orchestrator" in open_.what}
    assert questions <= {"orchestrator: output drift"}, "which is of four steps too few"
    made = make_figures([whole], tmp_path / "figures")
    assert made

    show_episodes(whole, 1)
    assert "orchestrator: frozen, said by the base model" in capsys.readouterr().out
    lines: list[str] = []
    dry_run(config, lines.append)
    assert any(line.startswith("frozen      orchestrator: the base model, ") for line in lines)
    assert not any(line.startswith("policy      orchestrator") for line in lines)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"freeze": ("judge",)}, "--freeze names role 'judge'; workflow voting has generator, "),
        ({"freeze": ("generator", "aggregator")}, "names all roles of voting: nothing would be"),
        (
            {"freeze": ("generator",), "kl_coefficient": {"generator": 0.1}},
            "--kl-coefficient names role 'generator', which is frozen",
        ),
        (
            {"freeze": ("generator",), "routing": "shared", "max_share": {"aggregator": 0.5}},
            "--max-share names aggregator, alone in policy 'shared'",
        ),
    ],
)
def test_freezing_that_makes_no_sense_is_refused(
    small_config: SmallConfig, settings: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        small_config(**settings)


def test_roles_to_freeze_are_given_with_commas_or_spaces(small_config: SmallConfig) -> None:
    three = {"workflow": "orchestrator_workers", "routing": "synthesizer=a"}
    assert small_config(**three, freeze=("worker,orchestrator",)).freeze == (
        "worker",
        "orchestrator",
    )
    assert small_config(**three, freeze=("worker", "orchestrator")).policies == ("a",)


@pytest.mark.parametrize("routing", ["agents", "generator[0]=a,generator=b,aggregator=a"])
def test_runs_routed_by_agent_resume_audit_and_read_back(
    small_config: SmallConfig, quiet: Progress, tmp_path: Path, routing: str
) -> None:
    config = small_config(routing=routing, steps=3, eval_every=1)
    whole = train(replace(config, out=tmp_path / "whole"), quiet)
    half = train(replace(config, out=tmp_path / "half", steps=1), quiet)
    resumed = train(replace(config, out=half, resume=True, extend_to=3), quiet)
    assert_same_tensors(adapters(whole, 3), adapters(resumed, 3))
    assert_same_states(whole, resumed, 3)

    _, audits = audit_run(whole)
    assert {audit.policy for audit in audits} == set(config.policies)
    assert all(audit.is_right for audit in audits)

    run = open_run(whole)
    agents = [Agent("generator", i) for i in range(3)]
    assert run.agents("generator") == tuple(
        sorted(agents, key=lambda a: (config.policies.index(config.policy_by_agent()[a]), a))
    )
    for agent in agents:
        assert run.policy_for(agent).name == config.policy_by_agent()[agent]
    with pytest.raises(ValueError, match="agents of 'generator' train several policies"):
        run.policy_of("generator")
    # ||g||^2 of the role is the sum over its policies; updates are pooled by step.
    norms = []
    for policy in run.policies_of("generator"):
        mine = [agent for agent in policy.agents if agent.role == "generator"]
        gram = run.gram(policy.name)
        place = [gram.agents.index(agent) for agent in mine]
        own_U = gram.gram_UBAA.sum(1)[:, place][:, :, place].sum((1, 2))
        norms.append([np.sqrt(own_U[gram.step_U == step]).mean() for step in run.steps])
    expected = np.sqrt((np.array(norms) ** 2).sum(0))
    np.testing.assert_allclose(run.norm("generator").value_T, expected, rtol=1e-6)
    weights = [run.ledger("loss_weight", role).value_T for role in run.roles]
    assert ((np.array(weights) > 0) & (np.array(weights) <= 1)).all()
    assert routed(run) == {"aggregator": config.policy_by_agent()[Agent("aggregator")]}
    assert diagnose(run).status
    assert make_figures([whole], tmp_path / "figures")


def test_agents_of_one_role_learn_apart(
    small_config: SmallConfig, quiet: Progress, tmp_path: Path
) -> None:
    out = train(small_config(routing="agents", out=tmp_path / "a"), quiet)
    weights = adapters(out, 2)
    by_policy = {
        name: torch.cat([w.flatten() for key, w in weights.items() if key.startswith(f"{name}/")])
        for name in ("generator-0", "generator-1", "generator-2", "aggregator")
    }
    for one, other in itertools.combinations(by_policy.values(), 2):
        assert not torch.equal(one, other)


def test_routing_is_kept_by_role_where_it_can_be() -> None:
    a, b, c = Agent("solver", 0), Agent("solver", 1), Agent("judge")
    assert routing_table({a: "x", b: "x", c: "y"}) == {"solver": "x", "judge": "y"}
    assert routing_table({a: "x", b: "y", c: "y"}) == {
        "solver[0]": "x",
        "solver[1]": "y",
        "judge": "y",
    }
    policies = [PolicyMeta("x", (a,), ("all",), 1), PolicyMeta("y", (b, c), ("all",), 1)]
    meta = RunMeta.of_policies("run", policies)
    assert meta.roles == ("solver", "judge")
    assert meta.policies_of("solver") == ("x", "y")
    assert (meta.policy_of(b), meta.policy_of(c)) == ("y", "y")
    with pytest.raises(ValueError, match="role 'critic' has no policy"):
        RunMeta.of_policies("run", policies, roles=("solver", "judge", "critic"))
    frozen = RunMeta.of_policies(
        "run", policies, roles=("solver", "judge", "critic"), frozen=("critic",)
    )
    assert frozen.policies_of("critic") == ()


def test_tallies_of_a_role_are_joined_over_its_policies() -> None:
    one = RoleTally(10, 5, 10, 11, 1, 0.5, 2, 0.1, 0.01)
    other = RoleTally(30, 9, 31, 33, 2, 0.25, 1, 0.3, 0.03)
    # means by tokens: kl (10 x .1 + 30 x .3) / 40 = .25, gap (.1 + .9) / 40 = .025
    found = joined([one, other])
    assert found == RoleTally(40, 14, 41, 44, 3, 0.75, 3, pytest.approx(0.25), pytest.approx(0.025))
    assert joined([one]) is one


def test_policies_begin_where_their_agents_were(small_config: SmallConfig) -> None:
    shared, agents = small_config(routing="shared"), small_config(routing="agents")
    names = ["generator-0", "generator-1", "generator-2", "aggregator"]
    assert policy_origins(shared, agents, None) == dict.fromkeys(names, "shared")
    with pytest.raises(ValueError, match=r"would join .*generator-0.* merge:generator\[0\]"):
        policy_origins(agents, shared, None)
    assert policy_origins(agents, shared, "generator[1]") == {"shared": "generator-1"}
    frozen = small_config(routing="isolated", freeze=("generator",))
    with pytest.raises(ValueError, match="'generator' of generator has no adapter in the run"):
        policy_origins(frozen, small_config(routing="isolated"), None)
    assert policy_origins(small_config(), frozen, None) == {"aggregator": "aggregator"}
    # More agents than the run had begin as the others of their role.
    assert policy_origins(small_config(), small_config(votes=5), None) == {
        "generator": "generator",
        "aggregator": "aggregator",
    }
