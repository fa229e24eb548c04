"""Captured gradients against one `autograd.grad` per agent."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import peft
import pytest
import torch
from conftest import make_llama, make_qwen3
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import GPT2Config, GPT2LMHeadModel

from gradlab.probe.capture.tags import runs_of
from gradlab.probe.layout import block_of, lay_out
from gradlab.probe.measures.exact_sums import inner_products
from gradlab.probe.probe import Probe, attach
from gradlab.records import Agent

AGENTS = (Agent("generator", 0), Agent("generator", 1), Agent("aggregator"))


@dataclass(frozen=True)
class Batch:
    """Padded rows with a weight each, as a policy gradient has them."""

    ids_BT: Tensor
    mask_BT: Tensor
    weight_B: Tensor
    agent_B: Tensor

    def part(self, rows: Sequence[int]) -> Batch:
        index = torch.tensor(rows)
        return Batch(
            self.ids_BT[index], self.mask_BT[index], self.weight_B[index], self.agent_B[index]
        )


def make_batch(agents: Sequence[int], seed: int = 1, dtype: torch.dtype = torch.float64) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    num_rows, num_tokens = len(agents), 9
    ids = torch.randint(1, 40, (num_rows, num_tokens), generator=generator)
    lengths = torch.randint(3, num_tokens + 1, (num_rows,), generator=generator)
    mask = (torch.arange(num_tokens) < lengths[:, None]).long()
    weight = torch.randn(num_rows, generator=generator, dtype=dtype)
    return Batch(ids * mask, mask, weight, torch.tensor(agents))


def row_losses(model: nn.Module, batch: Batch) -> Tensor:
    """[rows] weighted negative log-likelihood, mean over the row's own tokens."""
    logits = model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT, use_cache=False).logits[
        :, :-1
    ]
    target, mask = batch.ids_BT[:, 1:], batch.mask_BT[:, 1:].to(logits.dtype)
    nll = -logits.log_softmax(-1).gather(-1, target[..., None])[..., 0]
    return (nll * mask).sum(1) / mask.sum(1) * batch.weight_B


def twin(model: nn.Module, batch: Batch, num_agents: int = 3) -> dict[str, Tensor]:
    """{parameter: [A, size]}: one backward per agent through one forward."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    losses = row_losses(model, batch)
    found: dict[str, list[Tensor]] = {name: [] for name in trained}
    for agent in range(num_agents):
        gradients = torch.autograd.grad(
            losses[batch.agent_B == agent].sum(), [*trained.values()], retain_graph=True
        )
        for name, gradient in zip(trained, gradients, strict=True):
            found[name].append(gradient.flatten())
    return {name: torch.stack(parts) for name, parts in found.items()}


def twin_gram(gradients: dict[str, Tensor], blocks: Sequence[str]) -> np.ndarray:
    grams = []
    for block in blocks:
        flat = torch.cat([g for name, g in gradients.items() if block_of(name) == block], dim=1)
        grams.append((flat.double() @ flat.double().T).numpy())
    return np.stack(grams)


def assert_same_gram(probe: Probe, expected_BAA: np.ndarray, tolerance: float) -> None:
    assert probe.last is not None
    found = probe.last.gram_BAA
    scale = np.sqrt(np.einsum("baa->ba", expected_BAA))
    error = np.abs(found - expected_BAA) / (scale[:, :, None] * scale[:, None, :] + 1e-300)
    assert error.max() < tolerance


def lora(model: nn.Module, rank: int = 4, dropout: float = 0.0) -> nn.Module:
    """The model with a LoRA adapter whose B is not zero, so that A has gradients too."""
    wrapped = peft.get_peft_model(
        model, peft.LoraConfig(r=rank, target_modules="all-linear", lora_dropout=dropout)
    )
    generator = torch.Generator().manual_seed(2)
    for name, p in wrapped.named_parameters():
        if "lora_B" in name:
            p.data.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    return wrapped.to(next(model.parameters()).dtype)


def watch(model: nn.Module) -> tuple[Probe, torch.optim.Optimizer]:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    return attach(model, optimizer, agents=AGENTS), optimizer


def checkpoint_layers(model: nn.Module, is_reentrant: bool) -> None:
    """Recompute every decoder layer in the backward, as transformers does it."""
    for layer in model.modules():
        if type(layer).__name__.endswith("DecoderLayer"):
            layer.forward = partial(checkpointed, layer.forward, is_reentrant)


def checkpointed(
    forward: Callable[..., Tensor], is_reentrant: bool, hidden: Tensor, **rest: object
) -> Tensor:
    return checkpoint(partial(forward, **rest), hidden, use_reentrant=is_reentrant)


def same_layer_twice() -> nn.Module:
    model = make_qwen3()
    model.model.layers[1] = model.model.layers[0]
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "qwen3 full, tied": make_qwen3,
    "llama full, biases": make_llama,
    "qwen3 lora": lambda: lora(make_qwen3()),
    "llama lora": lambda: lora(make_llama()),
    "one layer used twice": same_layer_twice,
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("agents", [(0, 0, 1, 1, 1, 2), (2, 0, 1, 0, 2, 1, 0, 2)])
def test_gram_equals_one_backward_per_agent(name: str, agents: tuple[int, ...]) -> None:
    model, batch = MODELS[name](), make_batch(agents)
    gradients = twin(model, batch)
    probe, optimizer = watch(model)
    probe.tag(batch.agent_B)
    row_losses(model, batch).sum().backward()
    optimizer.step()
    assert_same_gram(probe, twin_gram(gradients, probe.blocks), 1e-10)
    assert probe.last_check is not None
    assert probe.last_check.residual < 1e-12
    assert probe.last_check.coverage == 1.0


@pytest.mark.parametrize("name", ["qwen3 full, tied", "llama lora"])
def test_gram_in_float32(name: str) -> None:
    model, batch = MODELS[name]().float(), make_batch((0, 1, 2, 0, 1, 2), dtype=torch.float32)
    gradients = twin(model, batch)
    probe, optimizer = watch(model)
    probe.tag(batch.agent_B)
    row_losses(model, batch).sum().backward()
    optimizer.step()
    assert_same_gram(probe, twin_gram(gradients, probe.blocks), 1e-5)
    assert probe.last_check is not None
    assert probe.last_check.residual < 1e-5


def test_gram_in_bfloat16_within_its_rounding() -> None:
    model, batch = lora(make_qwen3()), make_batch((0, 1, 2, 0, 1, 2))
    exact = twin_gram(twin(model, batch), watch(copy.deepcopy(model))[0].blocks)
    rounded = copy.deepcopy(model).bfloat16()
    probe, optimizer = watch(rounded)
    probe.tag(batch.agent_B)
    row_losses(rounded, batch).sum().backward()
    optimizer.step()
    assert probe.last is not None
    assert probe.last.metrics.residual < 1e-2
    total = exact.sum(0)
    assert np.abs(probe.last.gram_BAA.sum(0) - total).max() < 0.1 * np.abs(total).max()


@pytest.mark.parametrize("is_backward_inside", [True, False])
def test_autocast(is_backward_inside: bool) -> None:
    model, batch = lora(make_qwen3()).float(), make_batch((0, 1, 2, 0, 1, 2), dtype=torch.float32)
    probe, optimizer = watch(model)
    probe.tag(batch.agent_B)
    with torch.autocast("cpu", torch.bfloat16):
        loss = row_losses(model, batch).sum()
        if is_backward_inside:
            loss.backward()
    if not is_backward_inside:
        loss.backward()
    optimizer.step()
    assert probe.last_check is not None
    assert probe.last_check.residual < 1e-2
    assert probe.last_check.tolerance >= 1e-2
    assert probe._instrument.capture.failures == {}


def test_position_embeddings_shared_by_all_rows_are_named() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=40, n_positions=16, n_embd=12, n_layer=1, n_head=2)
    ).double()
    batch = make_batch((0, 1, 2, 0))
    gradients = twin(model.eval(), batch)
    probe, optimizer = watch(model)
    probe.tag(batch.agent_B)
    row_losses(model, batch).sum().backward()
    with pytest.warns(UserWarning, match=r"Not explained: transformer\.wpe\.weight: either"):
        optimizer.step()
    assert probe.last is not None
    found = dict(zip(probe.blocks, probe.last.gram_BAA, strict=True))
    blocks = [block for block in probe.blocks if block != "embeddings"]
    expected = twin_gram(gradients, blocks)
    for block, gram_AA in zip(blocks, expected, strict=True):
        np.testing.assert_allclose(found[block], gram_AA, atol=1e-10 * np.abs(gram_AA).max())


def test_accumulated_backwards_add_up() -> None:
    model, batch = lora(make_qwen3()), make_batch((0, 1, 2, 0, 1, 2, 0))
    gradients = twin(model, batch)
    probe, optimizer = watch(model)
    for rows in ([0, 1, 2], [3, 4], [5, 6]):
        part = batch.part(rows)
        probe.tag(part.agent_B)
        row_losses(model, part).sum().backward()
    optimizer.step()
    assert_same_gram(probe, twin_gram(gradients, probe.blocks), 1e-10)


def test_several_forwards_before_one_backward() -> None:
    model, batch = lora(make_qwen3()), make_batch((0, 1, 2, 0))
    gradients = twin(model, batch)
    probe, optimizer = watch(model)
    losses = []
    for rows in ([0, 1], [2, 3]):
        probe.tag(batch.part(rows).agent_B)
        losses.append(row_losses(model, batch.part(rows)).sum())
    probe.untag()
    torch.stack(losses).sum().backward()
    optimizer.step()
    assert_same_gram(probe, twin_gram(gradients, probe.blocks), 1e-10)


@pytest.mark.parametrize("is_reentrant", [True, False])
@pytest.mark.parametrize("is_lora", [True, False])
def test_activation_checkpointing(is_reentrant: bool, is_lora: bool) -> None:
    model, batch = make_qwen3(), make_batch((0, 1, 2, 0, 1, 2))
    if is_lora:
        model = lora(model)
    gradients = twin(model, batch)
    model.train()
    model.enable_input_require_grads()
    checkpoint_layers(model, is_reentrant)
    probe, optimizer = watch(model)
    for rows in ([0, 1, 2], [3, 4, 5]):
        part = batch.part(rows)
        probe.tag(part.agent_B)
        loss = row_losses(model, part).sum()
        probe.untag()  # recomputation happens in the backward and still belongs to these rows
        loss.backward()
    optimizer.step()
    assert_same_gram(probe, twin_gram(gradients, probe.blocks), 1e-10)


def test_reentrant_recomputation_of_several_forwards_is_refused_not_guessed() -> None:
    model, batch = lora(make_qwen3()), make_batch((0, 1, 2, 0))
    model.train()
    model.enable_input_require_grads()
    checkpoint_layers(model, is_reentrant=True)
    probe, optimizer = watch(model)
    losses = []
    for rows in ([0, 1], [2, 3]):
        probe.tag(batch.part(rows).agent_B)
        losses.append(row_losses(model, batch.part(rows)).sum())
    torch.stack(losses).sum().backward()
    with pytest.warns(UserWarning, match="several tagged forwards before one backward"):
        optimizer.step()


def test_dropout_sees_the_same_random_numbers() -> None:
    model = lora(make_qwen3(attention_dropout=0.2), dropout=0.3).train()
    batch = make_batch((0, 1, 2, 0, 1, 2))
    torch.manual_seed(5)
    gradients = twin(model, batch)
    after_twin = torch.get_rng_state()
    probe, optimizer = watch(model)
    torch.manual_seed(5)
    probe.tag(batch.agent_B)
    row_losses(model, batch).sum().backward()
    optimizer.step()
    assert torch.equal(torch.get_rng_state(), after_twin)
    assert_same_gram(probe, twin_gram(gradients, probe.blocks), 1e-10)


@pytest.mark.parametrize("is_lora", [True, False])
def test_token_tags_split_a_packed_row(is_lora: bool) -> None:
    """Three segments that cannot see each other, packed into one row, against three rows."""
    model = lora(make_qwen3()) if is_lora else make_qwen3()
    generator = torch.Generator().manual_seed(3)
    ids_BT = torch.randint(1, 40, (3, 4), generator=generator)
    whole = Batch(ids_BT, torch.ones_like(ids_BT), torch.randn(3).double(), torch.arange(3))
    gradients = twin(model, whole)
    probe, optimizer = watch(model)
    blocked = torch.block_diag(*[torch.ones(4, 4).tril()] * 3).bool()[None, None]
    probe.tag(torch.arange(3).repeat_interleave(4)[None])
    logits = model(
        input_ids=ids_BT.reshape(1, 12),
        attention_mask=torch.zeros(1, 1, 12, 12).double().masked_fill(~blocked, -1e9),
        position_ids=torch.arange(4).repeat(3)[None],
        use_cache=False,
    ).logits.view(3, 4, 40)[:, :-1]
    nll = -logits.log_softmax(-1).gather(-1, ids_BT[:, 1:, None])[..., 0].mean(1)
    (nll * whole.weight_B).sum().backward()
    optimizer.step()
    assert_same_gram(probe, twin_gram(gradients, probe.blocks), 1e-10)


class Odd(nn.Module):
    """A leaf without a rule of its own: several parameters, keyword input, not a known layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(5, dtype=torch.float64))
        self.power = nn.Parameter(torch.full((), 1.5, dtype=torch.float64))

    def forward(self, x: Tensor, *, shift: Tensor) -> Tensor:
        return (x.abs() + 1) ** self.power * self.scale + shift


class OddModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 5, dtype=torch.float64)
        self.odd = Odd()
        self.norm = nn.LayerNorm(5, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.odd(self.first(x), shift=x[..., :1]))


@pytest.mark.parametrize("has_prompts", [True, False])
def test_any_leaf_module_is_covered_by_running_it_again(has_prompts: bool) -> None:
    model, agent_B = OddModel(), torch.tensor([0, 1, 2, 1, 0])
    x, target = torch.randn(5, 4).double(), torch.randn(5, 5).double()
    parameters = dict(model.named_parameters())
    losses = ((model(x) - target) ** 2).sum(1)
    rows = [
        torch.cat([g.flatten() for g in gs])
        for gs in (
            torch.autograd.grad(loss, [*parameters.values()], retain_graph=True) for loss in losses
        )
    ]
    flat = torch.stack(rows)
    expected = torch.stack([flat[agent_B == agent].sum(0) for agent in range(3)])
    probe, optimizer = watch(model)
    probe.tag(agent_B, prompts=range(5) if has_prompts else None)
    ((model(x) - target) ** 2).sum().backward()
    optimizer.step()
    assert probe.last is not None
    np.testing.assert_allclose(probe.last.gram_BAA.sum(0), (expected @ expected.T).numpy(), 1e-10)
    if has_prompts:
        generators = [0, 1, 3, 4]
        total = (flat[generators] ** 2).sum(1).mean()
        assert probe.last.row_statistics["generator"].total == pytest.approx(float(total))


@pytest.mark.parametrize("shape", [(16, 48), (48, 16)])
@pytest.mark.parametrize("agents", [[0, 0, 1, 1, 2, 2], [0, 1, 1, 2, 2, 2], [0, 0, 2, 2, 2, 2]])
def test_products_are_those_of_each_agent_to_the_bit_in_every_update(
    agents: list[int], shape: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(*shape, bias=False)
    probe, optimizer = watch(layer)
    for scale in (1.0, -3.0):  # the second update writes where the first one's gradients are
        x, out = scale * torch.randn(6, 5, shape[0]), torch.randn(6, 5, shape[1])
        probe.tag(torch.tensor(agents))
        (layer(x) * out).sum().backward()
        expected = torch.zeros(3, shape[1] * shape[0])
        for agent in set(agents):
            own = [row for row, a in enumerate(agents) if a == agent]
            product = out[own].flatten(0, 1).T @ x[own].flatten(0, 1)
            expected[agent] = product.flatten()
        assert torch.equal(probe._instrument.capture.gradient_AP, expected)
        optimizer.step()
        optimizer.zero_grad()


def test_parameters_without_a_gradient_in_an_update_have_none_of_the_last_one() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    probe, optimizer = watch(model)
    x = torch.randn(3, 3).double()
    probe.tag(torch.tensor([0, 1, 2]))
    model(x).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    probe.tag(torch.tensor([0, 1, 1]))
    model[0](x).square().sum().backward()
    gradient_AP = probe._instrument.capture.gradient_AP
    assert not gradient_AP[:, 16:].any(), "nothing went through the second layer"
    assert not gradient_AP[2].any(), "the third agent has no rows"
    assert gradient_AP[:2, :16].any(1).all()


class Shifts(nn.Module):
    """Autograd gives both parameters the same tensor as their gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(3, 4, dtype=torch.float64))
        self.second = nn.Parameter(torch.zeros(3, 4, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.first + self.second)


def test_sketched_rows_leave_a_gradient_alone_that_parameters_share() -> None:
    model, x = Shifts(), torch.randn(4, 3, 4).double()
    probe, optimizer = watch(model)
    probe.tag(torch.tensor([0, 1, 2, 0]), prompts=range(4))
    (model(x) * x).sum().backward()
    # d/d(first) of row r is x_r, and so is d/d(second): twice the inner products of the x.
    own_AP = torch.stack([x[0] + x[3], x[1], x[2]]).flatten(1)
    expected = 2 * own_AP @ own_AP.T
    optimizer.step()
    assert probe.last is not None
    np.testing.assert_allclose(probe.last.gram_BAA.sum(0), expected.numpy(), 1e-10)


@pytest.mark.parametrize(
    "name", ["qwen3 full, tied", "llama full, biases", "qwen3 lora", "one layer used twice"]
)
def test_row_norms_are_exact_and_rows_add_up_to_agents(name: str) -> None:
    model, batch = MODELS[name](), make_batch((0, 1, 2, 0, 1, 2))
    gradients = twin(model, batch)
    own = twin(model, Batch(batch.ids_BT, batch.mask_BT, batch.weight_B, torch.arange(6)), 6)
    norm2_R = torch.cat([*own.values()], dim=1).square().sum(1)
    probe, optimizer = watch(model)
    expected_BAA = twin_gram(gradients, probe.blocks)
    for rows in ([0, 1, 2, 3], [4, 5]):
        part = batch.part(rows)
        probe.tag(part.agent_B, prompts=[row % 2 for row in rows], samples=[0] * len(rows))
        row_losses(model, part).sum().backward()
    optimizer.step()
    assert_same_gram(probe, expected_BAA, 1e-10)
    assert probe.last is not None
    statistics = probe.last.row_statistics["aggregator"]
    assert statistics.rows == 2
    assert statistics.total == pytest.approx(float(norm2_R[batch.agent_B == 2].mean()), rel=1e-10)
    assert statistics.top_row == pytest.approx(
        float(norm2_R[batch.agent_B == 2].max() / norm2_R[batch.agent_B == 2].sum()), rel=1e-10
    )


def test_sketched_inner_products_are_unbiased() -> None:
    model, batch = lora(make_qwen3()), make_batch((0, 1, 0, 1))
    own = twin(model, Batch(batch.ids_BT, batch.mask_BT, batch.weight_B, torch.arange(4)), 4)
    flat = torch.cat([*own.values()], dim=1)
    expected = flat @ flat.T
    probe, optimizer = watch(model)
    found = []
    for step in range(200):
        probe.step = step  # a new projection
        probe.tag(batch.agent_B, prompts=[0, 0, 1, 1])
        row_losses(model, batch).sum().backward()
        sketch = probe._instrument.rowbook.batches[0].sketch_nK
        found.append(sketch @ sketch.T)
        optimizer.step()
        optimizer.zero_grad()
    inner = torch.stack(found)
    error = (inner.mean(0) - expected).abs() / (inner.std(0) / 200**0.5 + 1e-300)
    assert float(error.max()) < 4.5
    # Variance of a sign-sum sketch with K buckets is about 2 ||g||^4 / K on the diagonal.
    spread = inner.std(0).diagonal() / expected.diagonal()
    assert float(spread.max()) < 3 * (2 / 257) ** 0.5


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_tags_and_any_split_into_micro_batches_give_the_same_gram(data: st.DataObject) -> None:
    agents = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=7))
    cuts = data.draw(st.lists(st.integers(0, len(agents)), max_size=3))
    is_rows = data.draw(st.booleans())
    model, batch = lora(make_qwen3()), make_batch(agents, seed=data.draw(st.integers(0, 99)))
    gradients = twin(model, batch)
    probe, optimizer = watch(model)
    bounds = sorted({0, *cuts, len(agents)})
    for lo, hi in pairwise(bounds):
        part = batch.part(range(lo, hi))
        probe.tag(part.agent_B, prompts=range(lo, hi) if is_rows else None)
        row_losses(model, part).sum().backward()
    optimizer.step()
    expected = twin_gram(gradients, probe.blocks)
    assert probe.last is not None
    np.testing.assert_allclose(probe.last.gram_BAA, expected, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize("has_prompts", [True, False])
@pytest.mark.parametrize("is_lora", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_probed_run_is_bitwise_the_unprobed_run(
    dtype: torch.dtype, is_lora: bool, has_prompts: bool
) -> None:
    start = make_qwen3(dtype=dtype, attention_dropout=0.1).train()
    if is_lora:
        start = lora(start, dropout=0.1).train()
    batch = make_batch((0, 1, 2, 0, 1, 2), dtype=dtype)

    def train(is_probed: bool) -> tuple[list[Tensor], list[Tensor]]:
        model = copy.deepcopy(start)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-2)
        probe = attach(model, optimizer, agents=AGENTS) if is_probed else None
        torch.manual_seed(0)
        seen = []
        for _ in range(4):
            for rows in ([0, 1, 2], [3, 4, 5]):
                part = batch.part(rows)
                if probe is not None:
                    probe.tag(part.agent_B, prompts=[0, 0, 1] if has_prompts else None)
                row_losses(model, part).sum().backward()
            nn.utils.clip_grad_norm_(trained, 0.1)
            seen += [p.grad.clone() for p in trained if p.grad is not None]
            optimizer.step()
            optimizer.zero_grad()
        return seen, trained

    for plain, probed in zip(train(False), train(True), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(plain, probed, strict=True))


@pytest.mark.parametrize("keeps_graph", [True, False])
def test_a_loss_kept_for_logging_pins_no_activations(keeps_graph: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    probe, _ = watch(model)
    probe.tag([AGENTS[0]] * 3)
    calls = []
    for site, _module in probe._instrument.capture.sites:
        site.rule = lambda target, site, call, tensors, gradient: calls.append(call)
    loss = model(torch.randn(3, 4)).sum()
    loss.backward(retain_graph=keeps_graph)
    assert [bool(call.tickets) for call in calls] == [keeps_graph] * 2


def test_a_graph_that_is_kept_counts_every_backward() -> None:
    model, batch = lora(make_qwen3()), make_batch((0, 1, 2))
    expected = {name: 2 * g for name, g in twin(model, batch).items()}
    probe, optimizer = watch(model)
    probe.tag(batch.agent_B)
    loss = row_losses(model, batch).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    optimizer.step()
    assert_same_gram(probe, twin_gram(expected, probe.blocks), 1e-10)


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("model.embed_tokens.weight", "embeddings"),
        ("model.layers.0.self_attn.q_norm.weight", "layers.0.attention"),
        ("model.layers.11.mlp.up_proj.weight", "layers.11.mlp"),
        ("model.layers.2.post_attention_layernorm.weight", "layers.2.norm"),
        ("base_model.model.model.layers.3.self_attn.q_proj.lora_A.x.weight", "layers.3.attention"),
        ("transformer.h.1.attn.c_attn.weight", "layers.1.attention"),
        ("transformer.h.1.ln_1.weight", "layers.1.norm"),
        ("model.norm.weight", "other"),
        ("lm_head.weight", "head"),
        ("base_model.model.lm_head.lora_A.default.weight", "head"),
        ("0.weight", "other"),
    ],
)
def test_blocks_by_name(name: str, block: str) -> None:
    assert block_of(name) == block


def test_blocks_are_slices_in_layer_order() -> None:
    layout = lay_out(dict(make_llama(num_hidden_layers=11).named_parameters()))
    names = [name for name, _, _ in layout.blocks]
    assert names[0] == "embeddings"
    assert names.index("layers.2.attention") < names.index("layers.10.attention")
    assert names[-2:] == ["other", "head"]
    stops = [stop for _, _, stop in layout.blocks]
    assert [start for _, start, _ in layout.blocks] == [0, *stops[:-1]]
    assert stops[-1] == layout.num_parameters


def test_inner_products_of_millions_of_float32_keep_their_digits() -> None:
    generator = torch.Generator().manual_seed(0)
    size = 3_000_001
    spread = torch.exp(3 * torch.randn(size // 1000 + 1, generator=generator))
    left, right = (
        torch.randn(3, size, generator=generator) * spread.repeat_interleave(1000)[:size]
        for _ in range(2)
    )
    exact = left.double() @ right.double().T
    norms = left.double().norm(dim=1)[:, None] * right.double().norm(dim=1)
    assert float(((inner_products(left, right) - exact) / norms).abs().max()) < 1e-6


def test_read_outs_of_a_million_float32_parameters_keep_their_digits() -> None:
    torch.manual_seed(0)
    model, exact = nn.Linear(1500, 1000), nn.Linear(1500, 1000).double()
    exact.load_state_dict(model.state_dict())
    x, weight = torch.randn(6, 1500).exp(), torch.randn(6)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    probe = attach(model, optimizer, agents=AGENTS)
    probe.tag(torch.tensor([0, 0, 1, 1, 2, 2]))
    (model(x).tanh().sum(1) * weight).sum().backward()
    optimizer.step()
    gradients = []
    for rows in ([0, 1], [2, 3], [4, 5]):
        loss = (exact(x[rows].double()).tanh().sum(1) * weight[rows]).sum()
        parts = torch.autograd.grad(loss, [*exact.parameters()])
        gradients.append(torch.cat([part.flatten() for part in parts]))
    flat = torch.stack(gradients)
    assert probe.last is not None
    assert_same_gram(probe, (flat @ flat.T).numpy()[None], 1e-5)
    metrics = probe.last.metrics
    assert metrics.residual < 1e-6
    assert metrics.clip_factor == pytest.approx(1, abs=1e-6)
    assert metrics.grad_norm == pytest.approx(float(flat.sum(0).norm()), rel=1e-5)
    assert metrics.update_norm == pytest.approx(1e-3 * float(flat.sum(0).norm()), rel=1e-5)


def test_runs_leave_nobody_out_but_nobody() -> None:
    assert runs_of([0, 0, -1, 2, 2, 0]) == [(0, 0, 2), (2, 3, 5), (0, 5, 6)]
