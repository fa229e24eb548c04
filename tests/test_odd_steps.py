"""Steps as trainers make them: untagged, scaled, called off, with parts that were frozen."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from test_probe import AGENTS, ROWS, Small, batch, loss_of, setup, step
from torch import Tensor, nn

from gradlab.probe.probe import attach
from gradlab.records import Mode


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


@pytest.mark.parametrize("is_repaired", [False, True])
def test_a_step_that_is_nobodys_does_not_spoil_the_parts_of_later_steps(is_repaired: bool) -> None:
    """Without a tag; or with NaN captured, which the trainer replaces before it steps."""
    model, optimizer, probe = setup()
    step(model, optimizer, probe)
    if is_repaired:
        probe.tag(ROWS)
    (loss_of(model, batch()) * (math.nan if is_repaired else 1)).backward()
    if is_repaired:
        for p in model.parameters():
            p.grad = torch.ones_like(p)
    with pytest.warns(UserWarning, match="unexplained"):
        optimizer.step()
    optimizer.zero_grad()
    record = step(model, optimizer, probe)
    assert record.update_gram_AA is not None
    assert np.isfinite(record.update_gram_AA).all()
    assert 0 < record.metrics.update_norm < math.inf


@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize("is_unscaled_first", [False, True])
def test_the_split_is_of_the_step_under_a_grad_scaler(
    is_fused: bool, is_unscaled_first: bool
) -> None:
    """A fused optimizer is given scaled gradients, and is called where the others are not."""
    model = Small()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0, fused=is_fused)
    probe = attach(model, optimizer, agents=AGENTS)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    for number in range(5):
        overflows, before, scale = number == 2, flat(model), scaler.get_scale()
        x = batch(seed=number)
        plain = torch.autograd.grad(loss_of(model, x), [*model.parameters()])
        probe.tag(ROWS)
        loss = loss_of(model, x) * (math.inf if overflows else 1.0)
        scaler.scale(loss).backward()
        if is_unscaled_first:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert probe.num_updates == (number + 1 if number < 2 else number)
        if overflows:
            assert torch.equal(flat(model), before)
            continue
        assert probe.last is not None
        metrics, norm = probe.last.metrics, float(torch.cat([g.flatten() for g in plain]).norm())
        assert metrics.update_norm == pytest.approx(float((flat(model) - before).norm()), rel=1e-5)
        clipping = min(1.0, 0.1 / norm) if is_unscaled_first else 1.0
        assert metrics.clip_factor * scale == pytest.approx(clipping, rel=1e-4)
        assert metrics.grad_norm / scale == pytest.approx(norm, rel=1e-4)


def test_a_parameter_that_is_trained_only_later_is_missed() -> None:
    """Frozen when the probe was attached: it has no part in any Gram, and that must be told."""
    model = Small()
    model.body.requires_grad_(False)
    critic = nn.Linear(4, 1)  # of another model in the same optimizer: none of the policy's
    optimizer = torch.optim.AdamW([*model.parameters(), *critic.parameters()], lr=1e-2)
    probe = attach(model, optimizer, agents=AGENTS)
    (critic(batch()) ** 2).sum().backward()
    assert step(model, optimizer, probe).metrics.coverage == 1
    model.body.requires_grad_(True)
    probe.tag(ROWS)
    loss_of(model, batch()).backward()
    norms = [float(p.grad.norm()) for p in model.parameters() if p.grad is not None]
    with pytest.warns(UserWarning, match=r"body\.weight.*no gradient.*when the probe was attached"):
        optimizer.step()
    assert probe.last is not None
    missing = math.hypot(*norms[:2]) / math.hypot(*norms)
    assert probe.last.metrics.residual == pytest.approx(missing, rel=1e-5)
    assert probe.last.metrics.coverage == pytest.approx(12 / 32)


def test_a_group_that_is_held_still_leaves_the_coherence_of_the_others() -> None:
    model = Small()
    held = {"params": [*model.body.parameters()], "lr": 0.0}
    optimizer = torch.optim.AdamW([held, {"params": [*model.head.parameters()], "lr": 1e-2}])
    record = step(model, optimizer, attach(model, optimizer, agents=AGENTS))
    assert record.metrics.step_coherence == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("mode", ["exact", "sketch", "streaming"])
def test_a_gradient_that_was_put_to_zero_is_not_one_that_was_missed(mode: Mode) -> None:
    """What `zero_grad(set_to_none=False)` leaves of a layer that an update does not use."""
    model = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    probe = attach(model, optimizer, agents=AGENTS, mode=mode)
    for layer in model:
        probe.tag(ROWS)
        (layer(batch()) ** 2).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        assert probe.last is not None
        assert probe.last.metrics.coverage == 1
    (model[0](batch()) ** 2).sum().backward()
    with pytest.warns(UserWarning, match="Not explained: 0"):
        optimizer.step()
    assert probe.last.metrics.coverage == 0


def test_an_advantage_that_is_not_a_number_has_no_sign() -> None:
    """Neither is the row without advantage, nor is a split by sign complete without it."""
    model, optimizer, probe = setup()
    probe.tag(ROWS, prompts=[0, 0, 1, 1], advantages=[math.nan, 1.0, 2.0, -3.0])
    loss_of(model, batch()).backward()
    optimizer.step()
    assert probe.last is not None
    assert math.isnan(probe.last.row_statistics["generator"].positive)
    assert probe.last.row_statistics["aggregator"].positive > 0


def test_a_store_that_cannot_be_made_leaves_no_hooks(tmp_path: Path) -> None:
    model = Small()
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match="exists"):
        attach(model, optimizer, agents=AGENTS, record=_store_at(tmp_path), mode="fused")
    assert not model._forward_pre_hooks
    assert not any(module._forward_hooks or "forward" in vars(module) for module in model.modules())
    assert not optimizer._optimizer_step_pre_hooks


def _store_at(folder: Path) -> Path:
    model = Small()
    path = folder / "run.zarr"
    attach(model, torch.optim.AdamW(model.parameters()), agents=AGENTS, record=path).close()
    return path


def test_a_resumed_probe_checks_what_it_is_attached_to() -> None:
    model, optimizer, probe = setup()
    step(model, optimizer, probe)
    other, _, resumed = setup()
    resumed.load_state_dict(probe.state_dict())
    other.head = nn.Linear(4, 3, bias=False)
    resumed.tag(ROWS)
    with pytest.raises(ValueError, match="the model computes with another"):
        other(batch())


def test_gradients_that_were_cut_one_by_one_are_told() -> None:
    """Clipping by value is no common factor: what the agents' parts add up to is not used."""
    model, optimizer, probe = setup()
    probe.tag(ROWS)
    loss_of(model, batch()).backward()
    nn.utils.clip_grad_value_(model.parameters(), 0.1)
    with pytest.warns(UserWarning, match="clip_grad_value_"):
        optimizer.step()


def test_a_forgotten_tag_is_told_after_a_gradient_that_was_not_a_number() -> None:
    model, optimizer, probe = setup()
    probe.tag(ROWS)
    (loss_of(model, batch()) * math.nan).backward()
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.warns(UserWarning, match="not a number"):
        optimizer.step()
    optimizer.zero_grad()
    model.load_state_dict(kept)
    loss_of(model, batch()).backward()
    with pytest.warns(UserWarning, match="call probe.tag"):
        optimizer.step()
    assert "worst inf" in probe.report()


def test_a_skipped_step_is_seen_where_a_weight_escapes_the_probe() -> None:
    """The gradient of a fused head is complete before the first one that is captured."""
    model, optimizer, probe = setup()
    model.is_fused = True
    with pytest.warns(UserWarning, match=r"head\.weight"):
        whole = step(model, optimizer, probe).gram_BAA
    model, optimizer, probe = setup()
    model.is_fused = True
    probe.tag(ROWS)
    (loss_of(model, batch()) * 1000).backward()
    optimizer.zero_grad()  # called off
    with pytest.warns(UserWarning, match=r"head\.weight"):
        record = step(model, optimizer, probe)
    np.testing.assert_allclose(record.gram_BAA, whole, rtol=1e-6)


def test_what_a_module_counts_is_counted_once() -> None:
    """A module without a rule is run again in the backward; its running statistics are not."""
    kept = []
    for is_watched in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if is_watched:
            attach(model, optimizer, agents=AGENTS).tag(ROWS)
        loss_of(model, batch()).backward()
        kept.append(model.state_dict())
    for name, expected in kept[0].items():
        assert torch.equal(kept[1][name], expected), name


@pytest.mark.parametrize("mode", ["exact", "sketch", "streaming"])
def test_what_is_recorded_is_of_the_loss_without_its_scale(mode: Mode) -> None:
    """A GradScaler doubles its scale every so often; the series would jump with it."""
    records = []
    for scale in (1.0, 1024.0):
        model = Small()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        probe = attach(model, optimizer, agents=AGENTS, mode=mode, effective=True)
        for number in range(2):
            probe.tag(ROWS, prompts=[0, 0, 1, 1], advantages=[1, -1, 1, -1])
            (loss_of(model, batch(seed=number)) * scale).backward()
            for p in model.parameters():
                assert p.grad is not None
                p.grad.div_(scale)
            probe.loss_scale = scale
            optimizer.step()
            optimizer.zero_grad()
        assert probe.last is not None
        records.append(probe.last)
    one, other = records
    arrays = ("gram_BAA", "transfer_AA", "history_AA", "effective_gram_AA", "update_gram_AA")
    for name in arrays:
        if getattr(one, name) is not None:
            np.testing.assert_allclose(getattr(other, name), getattr(one, name), rtol=1e-5)
    for mine, theirs in (
        (one.metrics, other.metrics),
        (one.row_statistics["generator"], other.row_statistics["generator"]),
    ):
        expected, found = asdict(mine), asdict(theirs)
        for name in expected.keys() - {"residual", "probe_seconds"}:
            assert found[name] == pytest.approx(expected[name], rel=1e-4, nan_ok=True), name


def test_labels_with_fractions_are_refused() -> None:
    _, _, probe = setup()
    with pytest.raises(ValueError, match=r"agent indices are torch\.float32 with fractions"):
        probe.tag(torch.tensor([0.0, 1.5]))
    with pytest.raises(ValueError, match=r"prompts are torch\.float32 with fractions"):
        probe.tag(ROWS, prompts=torch.tensor([0.2, 0.7, 1.2, 1.7]))


def test_an_input_by_keyword_is_told() -> None:
    model = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    probe = attach(model, optimizer, agents=AGENTS)
    probe.tag(ROWS)
    (model(input=batch()) ** 2).sum().backward()
    with pytest.warns(UserWarning, match="got its input by keyword"):
        optimizer.step()


def test_a_skipped_step_takes_its_factors_along() -> None:
    model, optimizer, probe = setup()
    probe.tag(ROWS)
    loss_of(model, batch()).backward()
    probe.reweight({"generator": 0.25})
    optimizer.zero_grad()  # called off
    record = step(model, optimizer, probe)
    assert record.factor_A is None
    assert record.metrics.residual < 1e-6


@pytest.mark.parametrize(
    ("index", "expected"), [(torch.tensor([0, 1, -1, 2]), 3), (torch.zeros(4, 5).long(), 4)]
)
def test_rows_are_counted_as_rows_after_a_skipped_step(index: Tensor, expected: int) -> None:
    """Not as tokens, where those are tagged, nor with the rows of nobody."""
    model, optimizer, probe = setup()
    owned = (index >= 0).float()[..., None]
    for _ in range(2):
        optimizer.zero_grad()
        probe.tag(index)
        (owned * model(torch.randn(*index.shape, 4)) ** 2).sum().backward()
    optimizer.step()
    assert probe.last is not None
    assert probe.last.metrics.rows == expected
