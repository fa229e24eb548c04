"""The policy loss against numbers worked out by hand and a plain autograd twin."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import SmallConfig, make_row, make_turn
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradlab.ledger import RoleTally
from gradlab.records import Agent
from trainers.batches import kl_k3, response_logprobs, to_batch
from trainers.config import TrainConfig
from trainers.episodes import Turn
from trainers.learn import batch_loss, policy_loss, token_weights
from trainers.models.language import LanguageModel, load_language_model

AGGREGATIONS = ("sequence_mean_token_mean", "token_mean", "sequence_sum")


def token_loss(config: TrainConfig, ratio: float, advantage: float) -> tuple[float, bool]:
    logprob = torch.tensor([[math.log(ratio)]], dtype=torch.float64)
    out = policy_loss(logprob, torch.zeros(1, 1), torch.tensor([advantage]).double(), config)
    assert out.ratio_BT.item() == pytest.approx(ratio)
    return out.loss_BT.item(), bool(out.is_clipped_BT.item())


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "is_clipped"),
    [
        # loss = max(-A r, -A clip(r, 0.8, 1.28)); for A < 0 at most -3 A
        (1.0, 2.0, -2.0, False),
        (1.2, 2.0, -2.4, False),  # inside
        (1.5, 2.0, -2.56, True),  # -2 * 1.28
        (0.5, 2.0, -1.0, False),  # pessimistic: not clipped, -2 * 0.5 > -2 * 0.8
        (1.5, -1.0, 1.5, False),  # pessimistic
        (0.5, -1.0, 0.8, True),  # 1 * 0.8
        (2.9, -1.0, 2.9, False),
        (5.0, -1.0, 3.0, True),  # dual clip
        (5.0, 1.0, -1.28, True),  # dual clip is for negative advantages alone
        (7.0, 0.0, 0.0, False),
    ],
)
def test_clip_and_dual_clip(
    small_config: SmallConfig, ratio: float, advantage: float, loss: float, is_clipped: bool
) -> None:
    found, flag = token_loss(small_config(), ratio, advantage)
    assert found == pytest.approx(loss, abs=1e-12)
    assert flag == is_clipped


def test_dual_clip_can_be_switched_off(small_config: SmallConfig) -> None:
    assert token_loss(small_config(dual_clip=0), 5.0, -1.0) == (pytest.approx(5.0), False)


def test_a_clipped_token_has_no_gradient(small_config: SmallConfig) -> None:
    """Rows: inside (gradient -A r = -1.1), clipped above, dual clipped."""
    logprob = torch.tensor([[1.1], [1.5], [5.0]]).log().double().requires_grad_()
    advantage = torch.tensor([1.0, 1.0, -1.0]).double()
    policy_loss(logprob, torch.zeros(3, 1), advantage, small_config()).loss_BT.sum().backward()
    assert logprob.grad is not None
    torch.testing.assert_close(logprob.grad[:, 0], torch.tensor([-1.1, 0, 0]).double())


def test_an_absurd_ratio_stays_finite(small_config: SmallConfig) -> None:
    out = policy_loss(
        torch.zeros(1, 1), torch.full((1, 1), -1e6), torch.tensor([-1.0]), small_config()
    )
    assert out.loss_BT.item() == 3.0
    assert torch.isfinite(out.ratio_BT).all()


def test_k3_by_hand() -> None:
    """Reference 2x as likely: d = ln 2, k3 = 2 - ln 2 - 1 = 0.30685; equal: 0; half: 1/2+ln2-1."""
    policy = torch.tensor([[0.0, 0.0, 0.0]]).double()
    reference = torch.tensor([[math.log(2), 0.0, math.log(0.5)]]).double()
    expected = torch.tensor([[1 - math.log(2), 0.0, math.log(2) - 0.5]]).double()
    torch.testing.assert_close(kl_k3(policy, reference), expected)


def test_k3_is_unbiased_for_the_divergence() -> None:
    """E_p[k3] = sum p (q/p - log(q/p) - 1) = 1 + KL(p || q) - 1 for two full distributions."""
    p, q = torch.tensor([0.7, 0.2, 0.1]).double(), torch.tensor([0.3, 0.3, 0.4]).double()
    expectation = (p * kl_k3(p.log()[None], q.log()[None])[0]).sum()
    torch.testing.assert_close(expectation, (p * (p / q).log()).sum())


def test_token_weights_by_hand() -> None:
    """Rows of 2 and 6 tokens."""
    for aggregation, expected in (
        ("sequence_mean_token_mean", [1 / 4, 1 / 12]),  # 1 / (2 rows * length)
        ("token_mean", [1 / 8, 1 / 8]),  # 1 / 8 tokens
        ("sequence_sum", [1 / 2, 1 / 2]),  # 1 / 2 rows
    ):
        np.testing.assert_allclose(token_weights([2, 6], aggregation), expected)


def test_a_partial_minibatch_divided_by_the_full_size_weighs_less() -> None:
    """2 rows of a mini-batch of 8: a quarter of the weight, under every aggregation."""
    for aggregation in AGGREGATIONS:
        np.testing.assert_allclose(
            token_weights([2, 6], aggregation, full_rows=8), token_weights([2, 6], aggregation) / 4
        )


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_weights_of_means_sum_to_one(lengths: list[int]) -> None:
    for aggregation in ("sequence_mean_token_mean", "token_mean"):
        total = float(token_weights(lengths, aggregation) @ np.array(lengths))
        assert total == pytest.approx(1)


# The loss of a batch, on a real (small, random) model.


def make_rows(num: int = 7) -> list[Turn]:
    """Rows of different lengths by different agents, with old log-probs near the model's."""
    draw = np.random.default_rng(5)
    rows = []
    for i in range(num):
        agent = Agent("aggregator") if i % 3 == 2 else Agent("generator", i % 3)
        prompt, response = (
            tuple(int(t) for t in draw.integers(4, 99, size)) for size in (3 + i, 2 + i % 4)
        )
        turn = make_turn(
            agent,
            prompt_ids=prompt,
            response_ids=response,
            logprobs=tuple(draw.normal(-4.5, 0.5, len(response))),
        )
        rows.append(make_row(turn, problem=f"p{i % 2}", advantage=float(draw.normal())))
    return rows


def load(config: TrainConfig) -> LanguageModel:
    language = load_language_model(config, ["shared"])
    language.model.double()
    draw = torch.Generator().manual_seed(1)
    for name, parameter in language.model.named_parameters():
        if "lora_B" in name:  # zero at start: half of the gradients would be zero
            parameter.data += 0.05 * torch.randn(
                parameter.shape, generator=draw, dtype=parameter.dtype
            )
    return language


def loss_of(language: LanguageModel, rows: list[Turn], config: TrainConfig, split: int) -> Tensor:
    """The trainer's loss of an update, in micro-batches of `split` rows."""
    weights = token_weights([len(row.response_ids) for row in rows], config.aggregation)
    rows = [replace(row, weight=float(w)) for row, w in zip(rows, weights, strict=True)]
    sums = {role: RoleTally() for role in ("generator", "aggregator")}
    losses = [
        batch_loss(
            language,
            to_batch(rows[start : start + split], language),
            config,
            sums,
        )
        for start in range(0, len(rows), split)
    ]
    return torch.stack(losses).sum()


def twin_loss(language: LanguageModel, rows: list[Turn], config: TrainConfig) -> Tensor:
    """The same loss, row by row and token by token, from the formulas."""
    total = torch.zeros((), dtype=torch.float64)
    num_tokens = sum(len(row.response_ids) for row in rows)
    for turn in rows:
        ids = torch.tensor([[*turn.prompt_ids, *turn.response_ids]])
        everything = language.model(input_ids=ids).logits[0]
        row_loss = torch.zeros((), dtype=torch.float64)
        for t, token in enumerate(turn.response_ids):
            logits = everything[len(turn.prompt_ids) + t - 1] / turn.temperature
            logprobs = logits - logits.logsumexp(0)
            ratio = (logprobs[token] - float(np.float32(turn.logprobs[t]))).exp()
            bounded = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
            surrogate = torch.min(turn.advantage * ratio, turn.advantage * bounded)
            if turn.advantage < 0:
                surrogate = torch.max(surrogate, torch.tensor(turn.advantage * config.dual_clip))
            entropy = -(logprobs.exp() * logprobs).sum()
            row_loss = row_loss - surrogate - config.entropy_coefficient * entropy
            anchor = config.kl_coefficient.get(turn.agent.role, 0.0)
            if anchor:
                with torch.no_grad(), language.model.disable_adapter():
                    base = language.model(input_ids=ids).logits[0, len(turn.prompt_ids) + t - 1]
                    reference = (base / turn.temperature).log_softmax(0)[token]
                difference = reference - logprobs[token]
                row_loss = row_loss + anchor * (difference.exp() - difference - 1)
        total = (
            total
            + {
                "sequence_mean_token_mean": row_loss / len(turn.response_ids) / len(rows),
                "token_mean": row_loss / num_tokens,
                "sequence_sum": row_loss / len(rows),
            }[config.aggregation]
        )
    return total


def gradient(language: LanguageModel, loss: Tensor) -> Tensor:
    parameters = [p for p in language.model.parameters() if p.requires_grad]
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters)])


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_the_batch_loss_is_the_plain_one(
    small_config: SmallConfig, char_model: object, aggregation: str
) -> None:
    """Padding, masks, temperatures by role, clipping, the KL anchor and the entropy bonus together.

    The trainer's softmax is in float32, which bounds the agreement at about 1e-6.
    """
    config = small_config(
        model=str(char_model),
        aggregation=aggregation,
        kl_coefficient={"aggregator": 0.3},
        entropy_coefficient=0.05,
    )
    language, warmth = load(config), {"generator": 0.7, "aggregator": 0.4}
    rows = [replace(row, temperature=warmth[row.agent.role]) for row in make_rows()]
    ours, twin = loss_of(language, rows, config, split=3), twin_loss(language, rows, config)
    assert ours.item() == pytest.approx(twin.item(), rel=2e-6)
    ours_P, twin_P = gradient(language, ours), gradient(language, twin)
    assert ((ours_P - twin_P).norm() / twin_P.norm()).item() < 2e-6


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_splitting_into_micro_batches_changes_nothing(
    small_config: SmallConfig, char_model: object, aggregation: str
) -> None:
    config = small_config(model=str(char_model), aggregation=aggregation)
    language, rows = load(config), make_rows()
    whole = loss_of(language, rows, config, split=7)
    whole_P = gradient(language, whole)
    for split in (1, 2, 4):
        parts = loss_of(language, rows, config, split=split)
        assert parts.item() == pytest.approx(whole.item(), abs=1e-6)  # the terms cancel
        parts_P = gradient(language, parts)
        assert ((parts_P - whole_P).norm() / whole_P.norm()).item() < 1e-6


def test_entropy_and_ratio_sums_are_those_of_the_role(
    small_config: SmallConfig, char_model: object
) -> None:
    config = small_config(model=str(char_model))
    language, rows = load(config), make_rows()
    sums = {role: RoleTally() for role in ("generator", "aggregator")}
    batch = to_batch([replace(row, weight=1.0) for row in rows], language)
    with torch.no_grad():
        batch_loss(language, batch, config, sums)
        logprob_BT, entropy_BT = response_logprobs(language, batch)
    mine = torch.tensor([row.agent.role == "aggregator" for row in rows])
    mask = batch.is_token_BT & mine[:, None]
    assert sums["aggregator"].tokens == int(mask.sum())
    assert sums["aggregator"].entropy == pytest.approx(float(entropy_BT[mask].sum()), rel=1e-5)
    ratio = (logprob_BT - batch.old_BT).exp()[mask]
    assert sums["aggregator"].ratio == pytest.approx(float(ratio.sum()), rel=1e-5)
    assert sums["aggregator"].weight == sums["aggregator"].tokens
