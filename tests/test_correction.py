"""Corrections for the gap between sampler and trainer, against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import SmallConfig, make_turn
from test_exactness import build

from gradlab.ledger import RoleTally
from gradlab.records import Agent
from trainers.batches import to_batch
from trainers.config import TrainConfig
from trainers.correction import corrected, effective_share, is_cut, weights
from trainers.episodes import Turn, trained_turns
from trainers.judge import Judge
from trainers.learn import learn
from trainers.models.local_sampler import LocalSampler
from trainers.rollout import rollout
from trainers.tasks.load import load_task

LOG2 = math.log(2)


def drawn(ratios: list[float], agent: Agent = Agent("generator"), sample: int = 0) -> Turn:  # noqa: B008
    """A turn whose tokens the trainer gives `ratios` times the sampler's probability."""
    old = np.log(ratios) - 0.5
    return make_turn(
        agent, sample=sample, response_ids=tuple(range(5, 5 + len(ratios))),
        logprobs=(-0.5,) * len(ratios), old_logprobs=old.astype(np.float32),
    )  # fmt: skip


def asking(**options: object) -> TrainConfig:
    return TrainConfig(old_logprobs="trainer", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "level", "expected", "cut"),
    [
        ("tis", "token", [[1.0, 2.0, 0.25], [0.5, 1.5]], 1 / 5),
        ("mis", "token", [[1.0, 0.0, 0.0], [0.5, 1.5]], 2 / 5),
        # products: 1 * 3 * .25 = .75 and .5 * 1.5 = .75
        ("tis", "sequence", [[0.75] * 3, [0.75] * 2], 0.0),
    ],
)
def test_weights_by_token_and_by_sequence(
    kind: str, level: str, expected: list[list[float]], cut: float
) -> None:
    turns = [drawn([1.0, 3.0, 0.25]), drawn([0.5, 1.5], sample=1)]
    # A hair above 2: a weight of just .5 must be inside.
    config = asking(rollout_correction=kind, rollout_correction_level=level)
    config = replace(config, rollout_correction_cap=2.0 + 1e-6)
    tallies = {"generator": RoleTally()}
    found = corrected(turns, config, tallies)
    for turn, values in zip(found, expected, strict=True):
        assert turn.correction is not None
        np.testing.assert_allclose(turn.correction, values, rtol=1e-5)
    assert tallies["generator"].correction_cut == pytest.approx(cut)


def test_a_long_response_is_judged_by_its_product() -> None:
    """Ten tokens, each 10 % likelier for the trainer: 1.1 ** 10 = 2.59, beyond the cap of 2."""
    turn = drawn([1.1] * 10)
    masked, truncated = (
        corrected(
            [turn],
            asking(rollout_correction=kind, rollout_correction_level="sequence"),
            {"generator": RoleTally()},
        )[0].correction
        for kind in ("mis", "tis")
    )
    assert masked is not None
    assert truncated is not None
    assert masked.tolist() == [0.0] * 10
    assert truncated.tolist() == [2.0] * 10


def test_the_effective_sample_size_is_of_each_role_and_of_weights_before_they_are_cut() -> None:
    aggregator = Agent("aggregator")
    # generator: weights 1 and 3: 4^2 / (2 * 10) = .8; aggregator: all alike
    turns = [drawn([1.0, 3.0]), drawn([5.0, 5.0, 5.0], aggregator)]
    tallies = {"generator": RoleTally(), "aggregator": RoleTally()}
    corrected(turns, asking(rollout_correction="mis"), tallies)
    assert tallies["generator"].correction_ess == pytest.approx(0.8)
    assert tallies["aggregator"].correction_ess == pytest.approx(1.0)
    assert tallies["aggregator"].correction_cut == 1.0
    assert effective_share(np.array([800.0, 800.0 + math.log(3)])) == pytest.approx(0.8)


def test_importance_weights_turn_the_samplers_gradient_into_the_trainers() -> None:
    """Over all tokens: sum q * (p / q) * A * grad log p is what the trainer's own samples give."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(6, generator=draw, dtype=torch.float64, requires_grad=True)
    sampler = torch.log_softmax(logits.detach() + 0.3 * torch.randn(6, generator=draw), 0)
    advantage = torch.randn(6, generator=draw, dtype=torch.float64)
    trainer = torch.log_softmax(logits, 0)
    log_ratio = (trainer.detach() - sampler).numpy()
    (expected,) = torch.autograd.grad(
        (trainer.detach().exp() * advantage * trainer).sum(), logits, retain_graph=True
    )
    (plain,) = torch.autograd.grad(
        (sampler.exp() * advantage * trainer).sum(), logits, retain_graph=True
    )
    weight = torch.from_numpy(weights(log_ratio, "tis", 1e6))
    (found,) = torch.autograd.grad((sampler.exp() * weight * advantage * trainer).sum(), logits)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert (plain - expected).norm() > 0.05 * expected.norm()
    assert not is_cut(log_ratio, "mis", 1e6).any()


def played(small_config: SmallConfig, **options: object) -> tuple[TrainConfig, list[Turn]]:
    config = small_config(routing="shared", old_logprobs="trainer", samples=6, **options)
    language = build(config)[0]
    task = load_task("arithmetic", heldout=1, seed=config.seed)
    episodes = rollout(
        LocalSampler({config.model: language}), config.build_workflow(), config.speakers(),
        task.train[:3], config.samples, (3,), Judge(),
    )  # fmt: skip
    draw = np.random.default_rng(11)
    return config, [replace(row, advantage=draw.normal()) for row in trained_turns(episodes)]


def gradient(config: TrainConfig, rows: list[Turn]) -> tuple[torch.Tensor, dict[str, RoleTally]]:
    """Of the policy's first update."""
    language, policies = build(replace(config, probe="off"))
    (policy,) = policies.values()
    kept: list[torch.Tensor] = []

    def keep(*_: object) -> None:
        kept.append(torch.cat([p.grad.flatten() for p in policy.parameters]))  # type: ignore[union-attr]

    policy.optimizer.register_step_pre_hook(keep)
    tallies = learn(language, policy, rows, config, step=1)
    return kept[0], tallies


def test_where_sampler_and_trainer_agree_nothing_changes(small_config: SmallConfig) -> None:
    config, rows = played(small_config)
    plain, _ = gradient(config, rows)
    weighed, tallies = gradient(replace(config, rollout_correction="mis"), rows)
    torch.testing.assert_close(weighed, plain, rtol=1e-4, atol=1e-6)
    assert all(tally.correction_cut == 0 for tally in tallies.values())
    assert all(tally.correction_ess == pytest.approx(1, abs=1e-6) for tally in tallies.values())


def test_tokens_far_off_weigh_nothing(small_config: SmallConfig) -> None:
    """Masked, a response whose sampler was wrong about every token gives no gradient: what is left
    is the gradient of the others, as if its advantage were 0."""
    config, rows = played(small_config, kl_coefficient={})
    wrong = {i for i, row in enumerate(rows) if i % 4 == 0}
    off = [
        replace(row, logprobs=tuple(value - 3.0 for value in row.logprobs)) if i in wrong else row
        for i, row in enumerate(rows)
    ]
    silent = [replace(row, advantage=0.0) if i in wrong else row for i, row in enumerate(rows)]
    with pytest.warns(UserWarning, match="rollout and trainer log-probs differ"):
        masked, tallies = gradient(replace(config, rollout_correction="mis"), off)
    expected, _ = gradient(config, silent)
    torch.testing.assert_close(masked, expected, rtol=1e-4, atol=1e-6)
    assert 0 < tallies["generator"].correction_cut < 1
    batch = to_batch([rows[0]], build(config)[0])
    assert batch.correction_BT.unique().tolist() == [1.0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rollout_correction": "tis"}, "expected --old-logprobs trainer"),
        ({"rollout_correction_cap": 3.0}, "--rollout-correction-cap is 3.0 and"),
        ({"rollout_correction_level": "sequence"}, "expected --rollout-correction tis or mis"),
        (
            {"old_logprobs": "trainer", "rollout_correction": "tis", "rollout_correction_cap": 1.0},
            "--rollout-correction-cap is 1.0; expected more than 1",
        ),
    ],
)
def test_options_that_would_do_nothing_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TrainConfig(**options)  # type: ignore[arg-type]
