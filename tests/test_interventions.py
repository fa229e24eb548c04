"""Interventions: what each does to the gradient, against one backward per agent and by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from conftest import SmallConfig
from hypothesis import given, settings
from hypothesis import strategies as st
from test_exactness import build, flat
from test_train import adapters, assert_same_runs, assert_same_states, assert_same_tensors
from torch.nn import Parameter
from transformers import Qwen3ForCausalLM

from gradlab.ledger import RoleTally
from gradlab.probe.probe import Probe, attach
from gradlab.records import Agent, UpdateRecord
from gradlab.store.run import open_run
from trainers.batches import plan_updates
from trainers.config import TrainConfig
from trainers.episodes import Turn, trained_turns
from trainers.interventions import CoherenceDamping, capping, equalizing, role_factors
from trainers.judge import Judge
from trainers.learn import accumulate, learn
from trainers.presets import preset
from trainers.rollout import rollout
from trainers.tasks.load import load_task
from trainers.training import train
from trainers.watch.progress import Progress


def flat_gradient(parameters: Sequence[Parameter]) -> torch.Tensor:
    return flat([p.grad for p in parameters if p.grad is not None])


# Factors, by hand.


def test_equal_masses_keep_their_sum() -> None:
    # mean of 6, 2, 1 is 3
    assert equalizing({"a": 6.0, "b": 2.0, "c": 1.0}) == {"a": 0.5, "b": 1.5, "c": 3.0}
    # without a gradient a role stays without; mean of 6 and 2 is 4
    assert equalizing({"a": 6.0, "b": 2.0, "c": 0.0}) == {"a": 4 / 6, "b": 2.0}
    # mean 500.5 would take 500: noise is not blown up
    assert equalizing({"a": 1000.0, "b": 1.0}) == {"a": 0.5005, "b": 10.0}


def test_capped_shares() -> None:
    # 8 of 10 is over 1/2: 2 / (2 + 2)
    assert capping({"a": 8.0, "b": 2.0}, {"a": 0.5}) == {"a": 0.25}
    assert capping({"a": 8.0, "b": 2.0}, {"a": 0.8}) == {}
    # a at 1/2 of the total leaves b 3 of 4 + 4: over 0.3 only now. Both bound: c = 1 is a fifth.
    found = capping({"a": 16.0, "b": 3.0, "c": 1.0}, {"a": 0.5, "b": 0.3})
    assert found == pytest.approx({"a": 2.5 / 16, "b": 1.5 / 3})
    # alone in its update: left alone
    assert capping({"a": 8.0, "b": 0.0}, {"a": 0.5}) == {"a": 1.0}
    # 0.3 + 0.3 cannot be met: shares in proportion, 1 to 1
    assert capping({"a": 8.0, "b": 2.0}, {"a": 0.3, "b": 0.3}) == {"a": 0.25, "b": 1.0}


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=5),
    st.lists(st.floats(0.01, 1.0), min_size=5, max_size=5),
)
def test_caps_are_kept_and_nobody_grows(masses: list[float], caps: list[float]) -> None:
    mass = {f"r{i}": value for i, value in enumerate(masses)}
    cap = {role: caps[i] for i, role in enumerate(mass) if i > 0}  # r0 is free
    factors = capping(mass, cap)
    after = {role: factors.get(role, 1.0) * value for role, value in mass.items()}
    total = math.fsum(after.values())
    assert all(0 < factor <= 1 + 1e-12 for factor in factors.values())
    for role, limit in cap.items():
        assert after[role] <= limit * total * (1 + 1e-9)


def test_weights_then_clipping_then_shares(small_config: SmallConfig) -> None:
    config = small_config(
        routing="shared",
        role_weight={"aggregator": 0.5},
        role_clip={"aggregator": 2.0, "generator": 5.0},
        max_share={"aggregator": 0.25},
    )
    # aggregator 8 -> 4 (weight) -> 2 (clip); of 2 + 3 at most a quarter: 1 of 1 + 3.
    found = role_factors({"generator": 3.0, "aggregator": 8.0}, config)
    assert found == pytest.approx({"generator": 1.0, "aggregator": 1 / 8})
    assert role_factors({"generator": 0.0, "aggregator": 0.0}, config) == {}
    assert role_factors({"generator": math.nan, "aggregator": 1.0}, config) == {}


# The gradient that the optimizer sees.


def test_a_reweighted_gradient_is_recorded_as_it_is(
    qwen3: Callable[..., Qwen3ForCausalLM],
) -> None:
    """Factors 0.25, 2 and 1 against one autograd.grad per agent, two Adam steps, with clipping."""
    model, agents = qwen3(), (Agent("a"), Agent("b", 0), Agent("b", 1), Agent("c"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    records: list[UpdateRecord] = []
    probe = attach(model, optimizer, agents=agents, record=records.append)
    parameters = list(model.parameters())
    weight_A = torch.tensor([0.25, 2.0, 2.0, 1.0], dtype=torch.float64)
    draw, moment_AP = torch.Generator().manual_seed(1), torch.zeros(4, 1, dtype=torch.float64)

    def loss_of(row: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = model(input_ids=row[None], labels=row[None]).loss
        return loss

    for number in (1, 2):
        ids = torch.randint(0, 40, (4, 6), generator=draw)
        gradient_AP = torch.stack(
            [
                flat(torch.autograd.grad(loss_of(row), parameters))
                for row in ids
            ]
        )  # fmt: skip
        probe.tag(agents)
        for row, agent in zip(ids, agents, strict=True):
            probe.tag([agent])
            loss_of(row).backward()  # type: ignore[no-untyped-call]
        np.testing.assert_allclose(
            probe.captured_gram(), (gradient_AP @ gradient_AP.T).numpy(), rtol=1e-9, atol=1e-12
        )
        probe.reweight({"a": 0.5})
        probe.reweight({"a": 0.5, "b": 2.0})  # factors multiply
        total_P = weight_A @ gradient_AP
        torch.testing.assert_close(flat_gradient(parameters), total_P, rtol=1e-9, atol=1e-12)
        torch.nn.utils.clip_grad_norm_(parameters, 0.5 * float(total_P.norm()))
        before_P = flat(parameters)
        optimizer.step()
        optimizer.zero_grad()
        record = records[-1]
        assert record.factor_A is not None
        assert record.factor_A.tolist() == weight_A.tolist()
        gram_AA = (gradient_AP @ gradient_AP.T).numpy()
        np.testing.assert_allclose(record.gram_BAA.sum(0), gram_AA, rtol=1e-9, atol=1e-12)
        assert record.metrics.residual < 1e-10
        assert record.metrics.clip_factor == pytest.approx(0.5, rel=1e-5)
        assert record.metrics.grad_norm == pytest.approx(float(total_P.norm()), rel=1e-9)
        moment_AP = 0.9 * moment_AP + 0.1 * 0.5 * weight_A[:, None] * gradient_AP
        moved_P = flat(parameters) - before_P * (1 - 1e-2 * 0.1)
        assert record.update_gram_AA is not None
        assert record.update_gram_AA.sum() == pytest.approx(float(moved_P @ moved_P), rel=1e-8)
        # d_a is m_a by one positive scale per element, so sums over elements have m_a's zeros only;
        # the whole is checked against the step, the parts against Adam's own ratio d / m.
        part_AP = moment_AP * (moved_P / moment_AP.sum(0))
        np.testing.assert_allclose(
            record.update_gram_AA, (part_AP @ part_AP.T).numpy(), rtol=1e-5, atol=1e-10
        )
        assert number == len(records)


def test_a_factor_for_everybody_scales_the_gradient_and_nothing_else() -> None:
    weight = torch.ones(2, 3, dtype=torch.float64)
    model = torch.nn.Linear(3, 2, bias=False).double()
    model.weight.data = weight
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    probe = attach(model, optimizer, agents=[Agent("a"), Agent("b")])
    probe.tag([Agent("a"), Agent("b")])
    model(torch.eye(3, dtype=torch.float64)[:2]).sum().backward()
    probe.reweight({"a": 0.5, "b": 0.5})
    optimizer.step()
    expected = torch.ones(2, 3) - torch.tensor([[0.5, 0.5, 0.0]] * 2)
    assert torch.equal(model.weight.data, expected.double())
    assert probe.last is not None
    assert probe.last.metrics.clip_factor == 1.0
    np.testing.assert_array_equal(probe.last.gram_BAA.sum(0), 2 * np.eye(2))


def small_probe(mode: str = "exact") -> Probe:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    return attach(model, optimizer, agents=[Agent("a")], mode=mode)  # type: ignore[arg-type]


def test_reweighting_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="has no role 'z'; its roles are \\['a'\\]"):
        small_probe().reweight({"z": 1.0})
    with pytest.raises(ValueError, match=r"factor of 'a' is -1.0; expected 0 or more"):
        small_probe().reweight({"a": -1.0})
    with pytest.raises(ValueError, match="nothing was captured for this update"):
        small_probe().reweight({"a": 0.5})
    with pytest.raises(ValueError, match="mode 'sketch' does not keep the agents' gradients"):
        small_probe("sketch").reweight({"a": 0.5})


# Training.

SETTING: dict[str, object] = {
    "routing": "shared",
    "samples": 6,
    "rows_per_update": 200,
    "clip_norm": 0.0,
}


def first_update(config: TrainConfig) -> tuple[torch.Tensor, torch.Tensor, UpdateRecord]:
    """[A, P] gradients of each agent alone, the [P] gradient the optimizer got, and the record."""
    language, policies = build(config)
    policy = policies["shared"]
    task = load_task("arithmetic", heldout=1, seed=config.seed)
    played = config.build_workflow(), config.policy_by_role(), task.train[:4]
    episodes = rollout(language, *played, config.samples, (3,), Judge())
    draw = np.random.default_rng(11)
    rows = [replace(row, advantage=draw.normal()) for row in trained_turns(episodes)]
    plain = replace(config, probe="off", max_share={}, equalize=False, role_clip={}, role_weight={})
    gradient_AP = gradients_alone(plain, rows)
    records: list[UpdateRecord] = []
    seen: list[torch.Tensor] = []
    assert policy.probe is not None
    policy.probe.send_to(records.append)
    policy.optimizer.register_step_pre_hook(
        lambda *_: seen.append(flat_gradient(policy.parameters))
    )
    learn(language, policy, rows, config, step=1)
    assert len(records) == 1
    return gradient_AP, seen[0], records[0]


def gradients_alone(config: TrainConfig, rows: list[Turn]) -> torch.Tensor:
    """[A, P] one backward per agent, everybody else's rows at weight zero."""
    language, policies = build(config)
    policy = policies["shared"]
    language.activate("shared")
    language.model.train()
    (update,) = plan_updates(rows, config, (config.seed, 1, *b"shared"))
    found = []
    for agent in policy.agents:
        sums = {role: RoleTally() for role in policy.roles}
        order = {problem: i for i, problem in enumerate(dict.fromkeys(r.problem for r in rows))}
        accumulate(language, policy, update, order, config, 1, sums, only=agent)
        found.append(flat_gradient(policy.parameters))
        policy.optimizer.zero_grad()
    return torch.stack(found)


def of_roles(gradient_AP: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return gradient_AP[:3].sum(0), gradient_AP[3]


def test_equalized_roles_have_the_same_mass(small_config: SmallConfig) -> None:
    gradient_AP, found_P, record = first_update(small_config(**SETTING, equalize=True))
    generator_P, aggregator_P = of_roles(gradient_AP)
    mean = (generator_P.norm() + aggregator_P.norm()) / 2
    expected_P = mean * (generator_P / generator_P.norm() + aggregator_P / aggregator_P.norm())
    torch.testing.assert_close(found_P, expected_P, rtol=1e-7, atol=1e-12)
    assert record.metrics.residual < 1e-10
    gram_AA = (gradient_AP @ gradient_AP.T).numpy()
    np.testing.assert_allclose(record.gram_BAA.sum(0), gram_AA, rtol=1e-7, atol=1e-15)


def test_a_capped_role_has_its_share_and_no_more(small_config: SmallConfig) -> None:
    config = small_config(**SETTING, max_share={"generator": 0.2})
    gradient_AP, found_P, record = first_update(config)
    generator_P, aggregator_P = of_roles(gradient_AP)
    assert generator_P.norm() > 0.25 * aggregator_P.norm(), "a cap that does not bind: a weak test"
    part_P = found_P - aggregator_P  # the aggregator's part is left alone
    assert float(part_P.norm() / (part_P.norm() + aggregator_P.norm())) == pytest.approx(0.2)
    assert float(part_P @ generator_P / part_P.norm() / generator_P.norm()) == pytest.approx(1)
    assert record.factor_A is not None
    assert record.factor_A[3] == 1
    assert record.factor_A[:3] == pytest.approx([float(part_P.norm() / generator_P.norm())] * 3)


def test_a_role_is_clipped_by_itself_and_another_is_left_out(small_config: SmallConfig) -> None:
    plain_AP, plain_P, record = first_update(small_config(**SETTING))
    assert record.factor_A is None
    generator_P, aggregator_P = of_roles(plain_AP)
    limit = 0.5 * float(generator_P.norm())
    _, clipped_P, _ = first_update(small_config(**SETTING, role_clip={"generator": limit}))
    torch.testing.assert_close(clipped_P, 0.5 * generator_P + aggregator_P, rtol=1e-7, atol=1e-12)
    _, without_P, _ = first_update(small_config(**SETTING, role_weight={"aggregator": 0.0}))
    torch.testing.assert_close(without_P, plain_P - aggregator_P, rtol=1e-7, atol=1e-12)


def test_damping_by_hand() -> None:
    """window 2: the mean keeps a half. Strength 0.5."""
    parameter = Parameter(torch.zeros(2, dtype=torch.float64))
    damping = CoherenceDamping([parameter], 0.5, 2)

    def factor(*gradient: float) -> float:
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        return damping.factor()

    assert factor(2, 0) == 1.0  # no mean yet
    assert damping.mean_P is not None
    assert damping.mean_P.tolist() == [1, 0]
    assert factor(3, 0) == 0.5  # the same direction: cos 1
    assert damping.mean_P.tolist() == [1.25, 0]  # 1/2 + 1.5/2: fed what was left, not 3
    assert factor(-1, 0) == 1.0  # against it: left alone
    assert damping.mean_P.tolist() == [0.125, 0]
    assert factor(3, 4) == pytest.approx(1 - 0.5 * 0.6)  # cos 3/5
    state = damping.state_dict()
    other = CoherenceDamping([parameter], 0.5, 2)
    other.load_state_dict(state)
    assert other.factor() == damping.factor()


def test_damping_that_starts_at_the_first_gradient_by_hand() -> None:
    """Window 2, strength 0.5: the first gradient is its own mean, so its cosine is 1."""
    parameter = Parameter(torch.zeros(2, dtype=torch.float64))
    damping = CoherenceDamping([parameter], 0.5, 2, "first")

    def factor(*gradient: float) -> float:
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        return damping.factor()

    assert factor(2, 0) == 0.5
    assert damping.mean_P is not None
    assert damping.mean_P.tolist() == [1.5, 0]  # 2/2 + half of the 1 that was left
    assert factor(0, 3) == 1.0  # across it
    assert damping.mean_P.tolist() == [0.75, 1.5]


@pytest.mark.parametrize(("start", "weight"), [("first", 0.925), ("zero", 0.091)])
def test_how_long_the_first_gradient_weighs(start: Literal["first", "zero"], weight: float) -> None:
    """Gradients e_0 to e_10 are orthogonal, so only the first is damped, by its own copy. Share of
    e_0 in the sum of the mean's weights after ten more: (127/128)^10 = .925, or about 1 of 11."""
    parameter = Parameter(torch.zeros(11, dtype=torch.float64))
    damping = CoherenceDamping([parameter], 0.3, 128, start)
    for place in range(11):
        parameter.grad = torch.eye(11, dtype=torch.float64)[place]
        damping.factor()
    assert damping.mean_P is not None
    share = damping.mean_P[0] / damping.mean_P.sum()
    assert float(share) == pytest.approx(weight, abs=0.005)


def test_each_policy_is_damped_by_its_own_roles_weight(
    small_config: SmallConfig, quiet: Progress
) -> None:
    """At the first update of a mean that is its copy, s = 1 - strength, to the letter."""
    config = small_config(
        coherence_damping=0.2, role_damping={"generator": 0.5}, coherence_start="first", steps=1
    )
    run = open_run(train(config, quiet))
    assert run.factors("generator")[0] == pytest.approx(0.5)
    assert run.factors("aggregator")[0] == pytest.approx(0.8)
    assert not preset("clean").role_damping
    assert (preset("clean").coherence_start, preset("faithful").coherence_start) == (
        "zero", "first",
    )  # fmt: skip


def test_damping_without_a_probe_is_the_same(
    small_config: SmallConfig, quiet: Progress, tmp_path: Path
) -> None:
    setting = {"coherence_damping": 0.9, "coherence_window": 8, "steps": 6, "clip_norm": 0.0}
    runs = [
        train(small_config(out=tmp_path / probe, probe=probe, **setting), quiet)
        for probe in ("exact", "off")
    ]
    assert_same_tensors(*(adapters(run, 6) for run in runs))
    run = open_run(runs[0])
    factor_UA = run.factors("generator")
    assert (factor_UA[1:] < 1).any()
    assert (factor_UA == factor_UA[:, :1]).all(), "one factor for the whole policy"
    assert (run.update_metric("residual", "generator").value_T < 1e-5).all()
    # damping is no clipping, of which there is none here
    assert run.update_metric("clip_factor", "generator").value_T == pytest.approx(1, abs=1e-5)


def test_a_resumed_run_continues_its_interventions(
    small_config: SmallConfig, quiet: Progress, tmp_path: Path
) -> None:
    setting = {
        "routing": "shared", "coherence_damping": 0.9, "coherence_window": 4, "equalize": True,
        "rows_per_update": 32, "checkpoint_every": 2,
    }  # fmt: skip
    whole = train(small_config(out=tmp_path / "whole", steps=4, **setting), quiet)
    half = train(small_config(out=tmp_path / "half", steps=2, **setting), quiet)
    train(TrainConfig(out=half, resume=True, extend_to=4, threads=1, device="cpu"), quiet)
    assert_same_states(whole, half, 4)
    assert_same_tensors(adapters(whole, 4), adapters(half, 4))
    assert_same_runs(whole, half)
    assert not (open_run(whole).factors("shared") == 1).all()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_share": {"judge": 0.5}}, "--max-share names role 'judge'"),
        ({"max_share": {"generator": 1.5}}, "is 1.5; expected more than 0, at most 1"),
        ({"max_share": {"generator": 0.5}}, "alone in policy 'generator'"),
        ({"equalize": True}, "no policy has two roles"),
        ({"routing": "shared", "equalize": True, "probe": "off"}, "by the probe; it is off"),
        ({"routing": "shared", "equalize": True, "max_share": {"generator": 0.5}}, "give one"),
        ({"role_clip": {"generator": 0.0}}, "is 0.0; expected more than 0"),
        ({"role_weight": {"generator": math.nan}}, "is nan; expected 0 or more"),
        ({"coherence_damping": 1.5}, "expected 0 to 1"),
        ({"role_damping": {"generator": 1.5}}, "is 1.5; expected 0 or more, at most 1"),
        ({"routing": "shared", "role_damping": {"generator": 0.3}}, "damped as a whole"),
    ],
)  # fmt: skip
def test_interventions_that_would_do_nothing_are_refused(
    small_config: SmallConfig, setting: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        small_config(**setting)
