"""An audit finds wrong tags, which the self-check cannot see, and nothing in right ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import SmallConfig, make_qwen3
from test_capture import AGENTS, Batch, checkpoint_layers, lora, make_batch, row_losses
from torch import Tensor, nn

from gradlab.commands import main as cli
from gradlab.probe.probe import Probe, attach
from gradlab.records import Agent, Mode
from trainers.inspect.audit import audit_run
from trainers.training import open_run_for_training, train
from trainers.watch.progress import Progress

TRUTH = torch.tensor([0, 0, 1, 1, 2, 2])


def only(batch: Batch, agent: Agent) -> Tensor:
    """The batch's weights with everybody else's at zero."""
    return batch.weight_B * (batch.agent_B == AGENTS.index(agent))


def weighted(batch: Batch, weight_B: Tensor) -> Batch:
    return Batch(batch.ids_BT, batch.mask_BT, weight_B, batch.agent_B)


def prepare(mode: Mode = "exact", dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Probe]:
    model = lora(make_qwen3()).to(dtype)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    return model, attach(model, optimizer, agents=AGENTS, mode=mode)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("mode", ["exact", "fused"])
def test_right_tags_pass(mode: Mode, dtype: torch.dtype) -> None:
    model, probe = prepare(mode, dtype)
    batch = make_batch(TRUTH.tolist(), dtype=dtype)
    probe.tag(TRUTH)
    row_losses(model, batch).sum().backward()
    found = probe.audit(lambda a: row_losses(model, weighted(batch, only(batch, a))).sum())
    assert found.is_right
    assert found.verdict == "policy 'shared': the tags of all 3 agents are right"
    assert [audit.finding for audit in found.agents] == ["right"] * 3
    assert max(audit.error for audit in found.agents) < (1e-12 if dtype == torch.float64 else 1e-5)


def test_exchanged_tags_are_found_and_named_though_the_residual_is_zero() -> None:
    model, probe = prepare()
    batch = make_batch(TRUTH.tolist())
    probe.tag(torch.tensor([2, 2, 1, 1, 0, 0]))
    row_losses(model, batch).sum().backward()
    found = probe.audit(lambda a: row_losses(model, weighted(batch, only(batch, a))).sum())
    probe._instrument._optimizer.step()
    assert probe.last is not None
    assert probe.last.metrics.residual < 1e-12
    assert not found.is_right
    assert [audit.is_right for audit in found.agents] == [False, True, False]
    assert found.agents[0].finding == "its rows are tagged as aggregator[0]"
    assert found.agents[2].finding == "its rows are tagged as generator[0]"
    assert "wrong for generator[0], aggregator[0]" in str(found)


@pytest.mark.parametrize(
    ("tags", "findings"),
    [
        ([0, 1, 1, 1, 2, 2], ("differs", "differs", "right")),  # one row slipped
        ([0, 0, 1, 1, -1, -1], ("right", "right", "captured nothing")),
        ([0, 0, 1, 1, 1, 1], ("right", "differs", "captured nothing")),
    ],
)
def test_slipped_and_missing_tags(tags: list[int], findings: Sequence[str]) -> None:
    model, probe = prepare()
    batch = make_batch(TRUTH.tolist())
    probe.tag(torch.tensor(tags))
    row_losses(model, batch).sum().backward()
    found = probe.audit(lambda a: row_losses(model, weighted(batch, only(batch, a))).sum())
    for audit, finding in zip(found.agents, findings, strict=True):
        assert audit.finding.startswith(finding)


def test_a_normalisation_that_depends_on_the_rows_is_told_from_wrong_tags() -> None:
    model, probe = prepare()
    batch = make_batch(TRUTH.tolist())
    probe.tag(TRUTH)
    row_losses(model, batch).mean().backward()  # over six rows

    def rerun(agent: Agent) -> Tensor:
        rows = row_losses(model, batch)[batch.agent_B == AGENTS.index(agent)]
        return rows.mean()  # over two

    found = probe.audit(rerun, agents=[AGENTS[1]])
    assert len(found.agents) == 1
    # 2 of 6 rows: a third of the size
    assert found.agents[0].finding.startswith("right direction, 0.3333 times the size")


class Conversation(nn.Module):
    """Tokens that see what came before in their row, whoever wrote it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 4, dtype=torch.float64)
        self.second = nn.Linear(4, 1, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh().cumsum(1))[..., 0]


def test_two_agents_in_one_sequence_are_found_and_reference_mode_gets_them_right() -> None:
    x = torch.randn(2, 6, 4, dtype=torch.float64)
    tags = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 2, 2, 0, 0]])

    def part(model: nn.Module, agent: Agent) -> Tensor:
        loss: Tensor = (model(x) ** 2 * (tags == AGENTS.index(agent))).sum()
        return loss

    model = Conversation()
    probe = attach(model, torch.optim.SGD(model.parameters(), lr=0.0), agents=AGENTS)
    probe.tag(tags)
    (model(x) ** 2).sum().backward()
    found = probe.audit(lambda agent: part(model, agent))
    assert not found.is_right
    assert any("attend to another agent's in one sequence" in a.finding for a in found.agents)

    model = Conversation()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    probe = attach(model, optimizer, agents=AGENTS, mode="reference")
    losses = (model(x) ** 2)[..., None] * nn.functional.one_hot(tags, 3)
    probe.backward({agent: losses[..., a].sum() for a, agent in enumerate(AGENTS)})
    assert probe.audit(lambda agent: part(model, agent)).is_right
    optimizer.step()
    assert probe.last is not None
    assert probe.last.metrics.residual < 1e-12


def test_an_audited_run_is_bitwise_the_run_without() -> None:
    batch, parts = make_batch(TRUTH.tolist()), ([0, 1, 2], [3, 4, 5])

    def train(is_audited: bool) -> tuple[list[Tensor], Probe]:
        model, probe = prepare()
        model.train()
        model.enable_input_require_grads()  # type: ignore[operator] # a method of transformers'
        checkpoint_layers(model, is_reentrant=True)

        def backwards(whole: Batch) -> None:
            for rows in parts:
                part = whole.part(rows)
                probe.tag(part.agent_B, prompts=rows)
                row_losses(model, part).sum().backward()
                probe.loss = 1.0

        for _ in range(2):
            backwards(batch)
            probe.loss = 3.0
            if is_audited:
                found = probe.audit(lambda agent: backwards(weighted(batch, only(batch, agent))))
                assert found.is_right
            probe._instrument._optimizer.step()
            probe._instrument._optimizer.zero_grad()
        return [p.detach() for p in model.parameters() if p.requires_grad], probe

    plain, before = train(False)
    audited, after = train(True)
    assert all(torch.equal(a, b) for a, b in zip(plain, audited, strict=True))
    assert before.last is not None
    assert after.last is not None
    assert (before.last.gram_BAA == after.last.gram_BAA).all()
    assert str(before.last.row_statistics) == str(after.last.row_statistics)  # NaN is not NaN
    assert after.last.metrics.rows == 6
    assert after.last.metrics.loss == 3.0


def test_what_an_audit_refuses() -> None:
    model, probe = prepare()
    batch = make_batch(TRUTH.tolist())
    with pytest.raises(ValueError, match=r"nothing was captured.*before optimizer\.step"):
        probe.audit(lambda _: None)
    probe.tag(TRUTH)
    row_losses(model, batch).sum().backward()
    with pytest.raises(ValueError, match=r"does not know \['judge\[0\]'\]"):
        probe.audit(lambda _: None, agents=[Agent("judge")])
    kept = [p.grad for p in model.parameters()]
    with pytest.raises(ValueError, match="stepped the optimizer"):
        probe.audit(lambda _: probe._instrument._optimizer.step())
    assert all(p.grad is k for p, k in zip(model.parameters(), kept, strict=True))


def test_agents_without_gradient_are_said_not_to_be_compared() -> None:
    model, probe = prepare()
    batch = make_batch(TRUTH.tolist())
    batch = weighted(batch, batch.weight_B * (TRUTH != 1))
    probe.tag(TRUTH)
    row_losses(model, batch).sum().backward()
    found = probe.audit(lambda a: row_losses(model, weighted(batch, only(batch, a))).sum())
    assert found.is_right
    assert found.agents[1].finding == "no gradient either way: nothing to compare"
    assert "2 of 3 agents are right, the others had no gradient" in found.verdict


# Of a run.


@pytest.mark.parametrize("routing", ["shared", "isolated"])
def test_a_run_is_audited_from_its_checkpoint_and_left_alone(
    small_config: SmallConfig, quiet: Progress, capsys: pytest.CaptureFixture[str], routing: str
) -> None:
    out = train(small_config(routing=routing, steps=1, kl_coefficient={"aggregator": 0.1}), quiet)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert cli.main(["audit", str(out)]) == 0
    text = capsys.readouterr().out
    assert "from the checkpoint of step 1, on the problems of step 2" in text
    assert text.count("right\n") >= 4  # three generators and the aggregator
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_wrong_tags_of_a_trainer_are_found(
    small_config: SmallConfig, quiet: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = train(small_config(routing="shared", steps=1), quiet)
    tag = Probe.tag

    def one_row_late(self: Probe, agents: Sequence[Agent], **rest: object) -> None:
        tag(self, [*agents[1:], agents[0]], **rest)  # type: ignore[arg-type] # passed on

    monkeypatch.setattr(Probe, "tag", one_row_late)
    assert cli.main(["audit", str(out)]) == 1
    _, (found,) = audit_run(out)
    assert sum(not audit.is_right for audit in found.agents) >= 2


def test_a_directory_without_run_or_checkpoint(
    small_config: SmallConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["audit", str(tmp_path)]) == 2
    assert "expected the directory of a run trained" in capsys.readouterr().err
    config = small_config()
    open_run_for_training(config).store.close()
    assert cli.main(["audit", str(config.out)]) == 2
    assert "has no checkpoint yet" in capsys.readouterr().err


# Reference mode.


def test_reference_mode_refuses_what_it_cannot_use() -> None:
    model, probe = prepare("reference")
    loss = row_losses(model, make_batch(TRUTH.tolist())).sum()
    with pytest.raises(ValueError, match=r"call\s+probe\.backward"):
        probe.tag(TRUTH)
    with pytest.raises(ValueError, match=r"got losses of \['judge\[0\]'\]"):
        probe.backward({Agent("judge"): loss})
    with pytest.raises(ValueError, match=r"generator\[0\] has shape \(2,\)"):
        probe.backward({AGENTS[0]: torch.ones(2, requires_grad=True)})
    with pytest.raises(ValueError, match="requires_grad=False"):
        probe.backward({AGENTS[0]: torch.ones(())})
    _, exact = prepare()
    with pytest.raises(ValueError, match="splits the ordinary backward"):
        exact.backward({AGENTS[0]: loss})
    with pytest.raises(ValueError, match="mode is 'quick'; expected one of exact, fused, str"):
        prepare("quick")  # type: ignore[arg-type] # a mistake


def test_what_belongs_to_nobody_still_trains() -> None:
    model, probe = prepare("reference")
    batch = make_batch(TRUTH.tolist())
    losses = row_losses(model, batch)
    trained = [p for p in model.parameters() if p.requires_grad]
    expected = torch.autograd.grad(losses.sum(), trained, retain_graph=True)
    probe.backward({AGENTS[0]: losses[:2].sum(), None: losses[2:].sum()})
    for p, gradient in zip(trained, expected, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=0, atol=1e-13)
    with pytest.warns(UserWarning, match="unexplained"):
        probe._instrument._optimizer.step()
