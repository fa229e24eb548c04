"""The probe in a training loop: what it refuses, what it names, what it leaves alone."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from conftest import make_qwen3
from torch import Tensor, nn

from gradlab.probe.probe import Probe, attach
from gradlab.records import Agent, UpdateRecord
from gradlab.store.run import open_run
from gradlab.store.writer import RunStore

GENERATOR, SECOND, AGGREGATOR = Agent("generator", 0), Agent("generator", 1), Agent("aggregator")
AGENTS = (GENERATOR, SECOND, AGGREGATOR)
ROWS = [GENERATOR, SECOND, AGGREGATOR, GENERATOR]


class Small(nn.Module):
    """A linear layer in its module, and a weight that is also used behind its module's back."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3, bias=False)
        self.is_fused = False

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x).tanh()
        if self.is_fused:
            return nn.functional.linear(hidden, self.head.weight)
        out: Tensor = self.head(hidden)
        return out


def batch(num_rows: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(num_rows, 4, generator=torch.Generator().manual_seed(seed))


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    loss: Tensor = (model(x) ** 2).sum()
    return loss


def setup(**settings: object) -> tuple[Small, torch.optim.Optimizer, Probe]:
    model = Small()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return model, optimizer, attach(model, optimizer, agents=AGENTS, **settings)  # type: ignore[arg-type] # forwarded


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, probe: Probe, rows: Sequence[Agent] = ROWS
) -> UpdateRecord:
    probe.tag(rows)
    loss_of(model, batch(len(rows))).backward()
    optimizer.step()
    optimizer.zero_grad()
    assert probe.last is not None
    return probe.last


# Attaching.


def test_agents_must_be_named_once() -> None:
    model = Small()
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match=r"lists generator\[0\] more than once"):
        attach(model, optimizer, agents=[GENERATOR, AGGREGATOR, GENERATOR])
    with pytest.raises(ValueError, match="has no agents"):
        attach(model, optimizer, agents=[])


def test_an_optimizer_of_another_model_is_refused() -> None:
    optimizer = torch.optim.AdamW(Small().parameters())
    with pytest.raises(ValueError, match="none of them one of the given Small"):
        attach(Small(), optimizer, agents=AGENTS)


def test_only_what_the_optimizer_trains_is_measured() -> None:
    model = Small()
    probe = attach(model, torch.optim.AdamW(model.head.parameters()), agents=AGENTS)
    assert probe.meta.num_parameters == 12
    model.body.weight.requires_grad_(False)
    probe = attach(model, torch.optim.AdamW(model.parameters()), agents=AGENTS)
    assert probe.meta.num_parameters == 12 + 4


# Tagging.


def test_an_unknown_agent_is_named_beside_the_known_ones() -> None:
    _, _, probe = setup()
    with pytest.raises(ValueError, match=r"does not know \['judge\[0\]'\].*'aggregator\[0\]'"):
        probe.tag([GENERATOR, Agent("judge")])


@pytest.mark.parametrize(
    ("agents", "message"),
    [
        (torch.tensor([0, 3]), "run from 0 to 3"),
        (torch.tensor([-2, 0]), "run from -2 to 0"),
        (torch.zeros(0), r"expected \(rows,\)"),
        (torch.zeros(1, 2, 3), r"expected \(rows,\)"),
        ([], "expected one per row"),
    ],
)
def test_bad_agent_indices_are_refused(agents: Tensor | list[Agent], message: str) -> None:
    _, _, probe = setup()
    with pytest.raises(ValueError, match=message):
        probe.tag(agents)


def test_tags_of_another_length_fail_at_the_forward() -> None:
    model, _, probe = setup()
    probe.tag(ROWS[:3])
    with pytest.raises(ValueError, match=r"shape \(4, 4\).*agents for shape \(3,\)"):
        model(batch(4))


def test_prompts_and_samples_must_match_the_rows() -> None:
    _, _, probe = setup()
    with pytest.raises(ValueError, match="4 rows have agents, 3 have prompts"):
        probe.tag(ROWS, prompts=[0, 1, 2])
    with pytest.raises(ValueError, match="4 rows have agents, 1 have samples"):
        probe.tag(ROWS, prompts=[0] * 4, samples=[0])
    with pytest.raises(ValueError, match="advantages given without prompts"):
        probe.tag(ROWS, advantages=[1.0] * 4)
    with pytest.raises(ValueError, match="samples given without prompts"):
        probe.tag(ROWS, samples=[0] * 4)
    with pytest.raises(ValueError, match="per token"):
        probe.tag(torch.zeros(2, 3, dtype=torch.int64), prompts=[0, 1])


# The self-check.


def test_a_parameter_used_outside_its_module_is_named() -> None:
    model, optimizer, probe = setup()
    assert step(model, optimizer, probe).metrics.residual < 1e-5
    model.is_fused = True
    with pytest.warns(UserWarning, match=r"step 2: .*Not explained: head\.weight: either"):
        record = step(model, optimizer, probe)
    assert record.metrics.residual > 0.1
    assert record.metrics.coverage == 20 / 32
    assert "not explained by the agents: head.weight" in probe.report()
    with warnings.catch_warnings():  # once is enough
        warnings.simplefilter("error")
        step(model, optimizer, probe)


def test_a_forward_without_tag_shows_as_residual() -> None:
    model, optimizer, probe = setup()
    probe.tag(ROWS)
    loss_of(model, batch()).backward()
    probe.untag()
    loss_of(model, batch(seed=1)).backward()
    with pytest.warns(UserWarning, match="a forward was not tagged"):
        optimizer.step()
    assert probe.last is not None
    assert probe.last.metrics.residual > 1e-3


def test_a_step_never_tagged_says_what_to_call() -> None:
    model, optimizer, probe = setup()
    loss_of(model, batch()).backward()
    with pytest.warns(UserWarning, match=r"call probe\.tag\(agents\) before every training"):
        optimizer.step()
    assert probe.last is not None
    assert probe.last.metrics.residual == 1.0
    assert probe.last.metrics.coverage == 0.0


def test_a_failing_rule_stops_no_training_and_is_named() -> None:
    model, optimizer, probe = setup()

    def broken(*_: object) -> None:
        raise RuntimeError("no such kernel")

    next(site for site, _ in probe._instrument.capture.sites if site.name == "body").rule = broken
    with pytest.warns(UserWarning, match="module 'body' RuntimeError: no such kernel"):
        step(model, optimizer, probe)
    assert "module 'body': RuntimeError" in probe.report()


def test_rows_of_nobody_are_left_out() -> None:
    model, optimizer, probe = setup()
    probe.tag(torch.tensor([0, -1, 2, -1]))
    out = model(batch())
    (out[[0, 2]] ** 2).sum().backward()
    optimizer.step()
    assert probe.last is not None
    assert probe.last.metrics.residual < 1e-5
    assert probe.last.metrics.rows == 2


def test_a_gradient_that_is_not_a_number_is_reported() -> None:
    model, optimizer, probe = setup()
    probe.tag(ROWS)
    (loss_of(model, batch()) * float("nan")).backward()
    with pytest.warns(UserWarning, match="leave nan .* itself is not a number"):
        optimizer.step()


# Around the step.


def test_a_skipped_step_leaves_nothing_behind() -> None:
    for set_to_none in (True, False):
        model, optimizer, probe = setup()
        probe.tag(ROWS, prompts=[0, 0, 0, 1])
        loss_of(model, batch(seed=5)).backward()
        optimizer.zero_grad(set_to_none=set_to_none)  # a non-finite norm, say
        assert probe.last is None
        probe.tag(ROWS, prompts=[0, 0, 0, 1])
        loss_of(model, batch()).backward()
        optimizer.step()
        assert probe.last is not None
        assert probe.last.metrics.residual < 1e-5
        assert probe.last.metrics.rows == 4
        assert probe.last.row_statistics["generator"].rows == 3


def test_a_step_without_gradients_makes_no_record() -> None:
    model, optimizer, probe = setup()
    optimizer.step()
    assert probe.last is None
    probe.tag(ROWS)
    loss_of(model, batch()).backward()
    optimizer.zero_grad()
    optimizer.step()
    assert probe.last is None


def test_rows_without_advantage_are_an_update_like_any_other() -> None:
    model, optimizer, probe = setup()
    step(model, optimizer, probe)
    probe.tag(ROWS, prompts=[0, 0, 0, 1])
    (loss_of(model, batch()) * 0).backward()
    optimizer.step()
    assert probe.last is not None
    assert probe.last.step == 2
    assert probe.last.metrics.residual == 0
    assert probe.last.metrics.grad_norm == 0
    assert probe.last.metrics.update_norm > 0  # momentum
    assert probe.last.row_statistics["generator"].dead_rows == 1


def test_rows_are_split_by_the_sign_of_their_advantage() -> None:
    model, optimizer, probe = setup()
    probe.tag(ROWS, prompts=[0, 0, 1, 1], advantages=[0.5, 0.0, 2.0, -3.0])
    x = batch()
    parts = [
        torch.cat(
            [g.flatten() for g in torch.autograd.grad((model(x)[i] ** 2).sum(), model.parameters())]
        )
        for i in (0, 3)
    ]
    probe.untag()
    probe.tag(ROWS, prompts=[0, 0, 1, 1], advantages=[0.5, 0.0, 2.0, -3.0])
    loss_of(model, x).backward()
    optimizer.step()
    assert probe.last is not None
    found = probe.last.row_statistics["generator"]
    # One row of each sign: norms of single rows are exact, their inner product is sketched.
    assert found.positive == pytest.approx(float(parts[0].norm() ** 2), rel=1e-5)
    assert found.negative == pytest.approx(float(parts[1].norm() ** 2), rel=1e-5)
    assert np.isfinite(found.opposition)
    aggregator = probe.last.row_statistics["aggregator"]
    assert (aggregator.negative, aggregator.opposition) == (0, 0)


def test_without_advantages_there_is_no_split_by_sign() -> None:
    model, optimizer, probe = setup()
    probe.tag(ROWS, prompts=[0, 0, 1, 1])
    loss_of(model, batch()).backward()
    optimizer.step()
    assert probe.last is not None
    assert np.isnan(probe.last.row_statistics["generator"].positive)


def test_a_closure_is_refused() -> None:
    model, optimizer, _ = setup()
    with pytest.raises(ValueError, match="without a closure"):
        optimizer.step(lambda: float(loss_of(model, batch())))


def test_untagged_and_gradient_free_forwards_are_not_captured() -> None:
    model, optimizer, probe = setup()
    alone = step(*setup())
    probe.tag(ROWS)
    with torch.no_grad():
        model(batch(7))  # another shape: a reference or sampling forward
    loss_of(model, batch()).backward()
    probe.untag()
    model(batch(7))
    optimizer.step()
    assert probe.last is not None
    assert np.array_equal(probe.last.gram_BAA, alone.gram_BAA)


def test_steps_count_updates_unless_the_trainer_says_otherwise() -> None:
    model, optimizer, probe = setup()
    assert [step(model, optimizer, probe).step for _ in range(2)] == [1, 2]
    probe.step = 7
    assert [step(model, optimizer, probe).step for _ in range(2)] == [7, 7]


def test_rows_of_a_step_accumulate_over_its_updates() -> None:
    model, optimizer, probe = setup()
    seen = []
    for training_step in (1, 1, 2):
        probe.step, probe.loss = training_step, 2.5
        probe.tag(ROWS, prompts=[0, 0, 0, 1])
        loss_of(model, batch()).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert probe.last is not None
        assert probe.last.metrics.loss == 2.5
        seen.append(probe.last.row_statistics["generator"].rows)
    assert seen == [3, 6, 3]


def test_detached_means_gone() -> None:
    model, optimizer, probe = setup()
    step(model, optimizer, probe)
    probe.detach()
    loss_of(model, batch()).backward()
    optimizer.step()
    assert probe.num_updates == 1
    assert not any(module._forward_hooks for module in model.modules())
    assert not model._forward_pre_hooks


# Where records go.


def test_records_go_to_a_function_or_a_store(tmp_path: Path) -> None:
    seen: list[UpdateRecord] = []
    model, optimizer, probe = setup(record=seen.append)
    step(model, optimizer, probe)
    assert seen == [probe.last]

    model, optimizer, probe = setup(record=tmp_path / "run.zarr")
    records = [step(model, optimizer, probe) for _ in range(3)]
    probe.close()
    run = open_run(tmp_path / "run.zarr")
    assert run.roles == ("generator", "aggregator")
    np.testing.assert_allclose(
        run.gram("shared").gram_UBAA, [r.gram_BAA for r in records], rtol=1e-6
    )
    assert run.policies[0].blocks == probe.blocks

    store = RunStore.create(tmp_path / "other.zarr", run.meta)
    model, optimizer, probe = setup(record=store)
    step(model, optimizer, probe)
    store.close()
    assert len(open_run(tmp_path / "other.zarr").gram("shared").gram_UBAA) == 1


# Several policies on one model.


def test_two_adapters_on_one_model_do_not_see_each_other() -> None:
    def build() -> nn.Module:
        model = peft.get_peft_model(
            make_qwen3(), peft.LoraConfig(r=4, target_modules="all-linear"), "solver"
        )
        model.add_adapter("judge", peft.LoraConfig(r=4, target_modules="all-linear"))
        generator = torch.Generator().manual_seed(1)
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.data = torch.randn(p.shape, generator=generator).double() * 0.1
        return model

    def adapter(model: nn.Module, name: str) -> list[nn.Parameter]:
        return [p for key, p in model.named_parameters() if f".{name}." in key]

    def loss(model: nn.Module, seed: int) -> Tensor:
        ids = torch.randint(1, 40, (3, 6), generator=torch.Generator().manual_seed(seed))
        logits = model(input_ids=ids, use_cache=False).logits
        value: Tensor = logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).mean()
        return value

    agents = {"solver": (GENERATOR, SECOND), "judge": (AGGREGATOR,)}
    tags = {"solver": [GENERATOR, SECOND, GENERATOR], "judge": [AGGREGATOR] * 3}

    def train(both: bool) -> dict[str, list[UpdateRecord]]:
        model, records = build(), {"solver": [], "judge": []}
        names = ("solver", "judge") if both else ("solver",)
        optimizers = {n: torch.optim.AdamW(adapter(model, n), lr=1e-2) for n in names}
        probes = {
            n: attach(model, optimizers[n], agents=agents[n], policy=n, record=records[n].append)
            for n in names
        }
        for training_step in range(3):
            for seed, name in enumerate(names):
                model.set_adapter(name)
                probes[name].tag(tags[name])
                loss(model, 10 * training_step + seed).backward()
                optimizers[name].step()
                optimizers[name].zero_grad()
        return records

    together, alone = train(both=True), train(both=False)
    for one, other in zip(together["solver"], alone["solver"], strict=True):
        assert np.array_equal(one.gram_BAA, other.gram_BAA)
        assert np.array_equal(one.update_gram_AA, other.update_gram_AA)
    assert len(together["judge"]) == 3
    for record in (*together["solver"], *together["judge"]):
        assert record.metrics.residual < 1e-10
        assert record.metrics.coverage == 1.0
    assert together["judge"][0].gram_BAA.shape[1:] == (1, 1)


def test_rows_that_cancel_raise_no_false_alarm() -> None:
    """Two rows of one agent whose gradients are opposite up to 1e-4: what is left is rounding.

    In float32 the sum of the two products loses 4 of its 7 digits, whoever computes it, so the
    residual is far above 1e-5 of what is left, and says nothing about coverage.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    agent = Agent("evaluator")
    probe = attach(model, optimizer, agents=[agent])
    row = torch.randn(1, 7, 64)
    pair = torch.cat([row, row + 1e-5 * torch.randn(1, 7, 64)])
    sign = torch.tensor([1.0, -1.0])[:, None, None]
    probe.tag([agent, agent], prompts=[0, 1])
    (torch.tanh(model(pair)) * sign).sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    assert probe.last is not None
    rows = probe.last.row_statistics["evaluator"]
    assert probe.last.metrics.grad_norm < 1e-3 * np.sqrt(2 * rows.total), "the rows do cancel"
