"""The probe on two gloo processes: what they record together equals one process with all rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from gradlab.probe.probe import Probe, attach
from gradlab.probe.ranks.distributed import local_size
from gradlab.records import Agent, Mode, UpdateRecord
from gradlab.store.run import open_run

AGENTS = (Agent("generator", 0), Agent("generator", 1), Agent("judge"))
MIXED = (0, 1, 2, 1, 2, 0)
APART = (0, 0, 1, 2, 1, 2)
"""Rank 0 has rows 0-2, rank 1 rows 3-5: with APART no row of the judge is on rank 0."""
PROMPTS = (0, 0, 1, 0, 1, 1)
UPDATES = 3


class Net(nn.Module):
    """One module per rule, with sizes that two ranks cannot divide evenly."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 5)
        self.up = nn.Linear(5, 7)
        self.norm = nn.LayerNorm(7)
        self.head = nn.Linear(7, 1)
        self.double()

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden: Tensor = self.head(self.norm(self.up(self.embed(input_ids)).tanh()))
        return hidden


def tokens(update: int) -> Tensor:
    generator = torch.Generator().manual_seed(update)
    return torch.randint(0, 11, (len(MIXED), 4), generator=generator)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    probe: Probe,
    number: int,
    rows: list[int],
    agents: tuple[int, ...],
    weight: float,
    *,
    with_prompts: bool,
) -> None:
    """One update in two micro-batches, the first without communication where there is any."""
    ids = tokens(number)
    for is_last, part in ((False, rows[:-1]), (True, rows[-1:])):
        probe.tag(
            torch.tensor(agents)[part],
            prompts=torch.tensor(PROMPTS)[part] if with_prompts else None,
        )
        with silence(model, not is_last):
            ((model(input_ids=ids[part]) ** 2).sum() * weight).backward()
    probe.loss = float(number)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    optimizer.step()
    optimizer.zero_grad()


@contextmanager
def silence(model: nn.Module, is_on: bool) -> Iterator[None]:
    """Accumulate without communication."""
    if isinstance(model, DistributedDataParallel) and is_on:
        with model.no_sync():
            yield
        return
    if hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(not is_on)
    yield


def alone(agents: tuple[int, ...], *, with_prompts: bool = True) -> list[UpdateRecord]:
    """The records of one process with all rows."""
    model = Net()
    optimizer = optimizer_of(model)
    records: list[UpdateRecord] = []
    probe = attach(model, optimizer, agents=AGENTS, record=records.append)
    rows = [*range(len(agents))]
    for number in range(1, UPDATES + 1):
        update(
            model, optimizer, probe, number, rows, agents, 1 / len(rows), with_prompts=with_prompts
        )
    probe.detach()
    return records


# What the two processes do.


def scenario(
    rank: int,
    kind: str,
    agents: tuple[int, ...],
    *,
    with_prompts: bool = True,
    mode: Mode = "exact",
) -> dict[str, Any]:
    """Train on this rank's half of the rows; what its probe emitted, and saw last."""
    model: nn.Module = Net()
    if kind == "ddp":
        model = DistributedDataParallel(model)
    else:
        for part in (model.embed, model.up, model.norm, model.head):
            fully_shard(part)
        fully_shard(model)
    optimizer = optimizer_of(model)
    records: list[UpdateRecord] = []
    probe = attach(model, optimizer, agents=AGENTS, record=records.append, mode=mode)
    rows = [[0, 1, 2], [3, 4, 5]][rank]
    num_reductions: list[int] = []
    for number in range(1, UPDATES + 1):
        with counted_reductions() as count:
            update(model, optimizer, probe, number, rows, agents, 1 / 3, with_prompts=with_prompts)
        num_reductions.append(len(count))
    probe.detach()
    return {"records": records, "last": probe.last, "reductions": num_reductions}


@contextmanager
def counted_reductions() -> Iterator[list[Tensor]]:
    """Python's all_reduce; DDP and FSDP reduce in C++ or by other names."""
    seen: list[Tensor] = []
    original = dist.all_reduce

    def all_reduce(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(tensor)
        return original(tensor, *args, **kwargs)

    dist.all_reduce = all_reduce
    try:
        yield seen
    finally:
        dist.all_reduce = original


def idle(rank: int, directory: Path) -> dict[str, Any]:
    """Rank 1 has no row of anybody: it takes part with a loss of zero, and never tags."""
    model = DistributedDataParallel(Net())
    optimizer = optimizer_of(model)
    records: list[UpdateRecord] = []
    probe = attach(model, optimizer, agents=AGENTS, record=records.append)
    for number in range(1, UPDATES + 1):
        ids = tokens(number)
        if rank == 0:
            probe.tag(torch.tensor(MIXED), prompts=PROMPTS)
            ((model(input_ids=ids) ** 2).sum() * 2 / len(MIXED)).backward()
        else:
            (model(input_ids=ids[:1]) * 0).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()
        optimizer.zero_grad()
    return {"records": records, "last": probe.last}


def stored(rank: int, directory: Path) -> dict[str, Any]:
    """A path as `record` on every rank."""
    model = DistributedDataParallel(Net())
    optimizer = optimizer_of(model)
    probe = attach(model, optimizer, agents=AGENTS, record=directory / "run.zarr")
    update(model, optimizer, probe, 1, [0, 1], MIXED, 0.5, with_prompts=False)
    probe.close()
    return {}


def refused(rank: int, directory: Path) -> dict[str, Any]:
    """Ranks that name different agents."""
    model = Net()
    try:
        attach(model, optimizer_of(model), agents=AGENTS[: 2 + rank])
    except ValueError as error:
        return {"error": str(error)}
    return {}


def on_its_own(rank: int, directory: Path) -> dict[str, Any]:
    """A group of one: ranks that train different policies."""
    groups = [dist.new_group([0]), dist.new_group([1])]
    model = Net()
    optimizer = optimizer_of(model)
    records: list[UpdateRecord] = []
    probe = attach(model, optimizer, agents=AGENTS, record=records.append, group=groups[rank])
    rows = [*range(len(MIXED))]
    if rank == 0:
        for number in range(1, UPDATES + 1):
            update(model, optimizer, probe, number, rows, MIXED, 1 / 6, with_prompts=True)
    return {"records": records}


DEALT = (((0, 1, 2), (3, 4, 5)), ((0, 1, 2, 3, 4, 5), ()), ((5,), (0, 1, 2, 3, 4)))
"""Rows of both ranks in every update; rank 1 has none in the second."""


def added(rank: int | None) -> dict[str, Any]:
    """Rows weighed by the whole batch, no wrapper: the ranks add up their gradients themselves."""
    model = Net()
    nobody = nn.Parameter(torch.ones(3).double())  # gets no gradient: its decay must not start
    optimizer = torch.optim.AdamW([*model.parameters(), nobody], lr=1e-2, weight_decay=0.1)
    records: list[UpdateRecord] = []
    model.register_parameter("nobody", nobody)
    probe = attach(
        model, optimizer, agents=AGENTS, record=records.append, losses="sum", effective=True
    )
    reductions, grams = [], []
    for number, dealt in enumerate(DEALT, 1):
        rows = [*range(len(MIXED))] if rank is None else [*dealt[rank]]
        ids, loss = tokens(number), 0.0
        for row in rows:
            probe.tag(torch.tensor(MIXED)[[row]], prompts=torch.tensor(PROMPTS)[[row]])
            part = (model(input_ids=ids[[row]]) ** 2).sum() / len(MIXED)
            part.backward()
            loss += part.item()
            probe.loss = loss
        with counted_reductions() as count:
            probe.reduce()
        reductions.append(len(count))
        grams.append(probe.captured_gram())
        probe.reweight({"judge": 0.5 * number})
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()
        optimizer.zero_grad()
    probe.detach()
    theta_P = torch.cat([p.detach().flatten() for p in model.parameters()])
    return {"records": records, "reductions": reductions, "grams": grams, "theta_P": theta_P}


def unreduced(rank: int, directory: Path) -> dict[str, Any]:
    """A step that forgets to add the gradients up."""
    model = Net()
    optimizer = optimizer_of(model)
    probe = attach(model, optimizer, agents=AGENTS, losses="sum")
    probe.tag(torch.tensor([0]))
    model(input_ids=tokens(1)[:1]).sum().backward()
    try:
        optimizer.step()
    except ValueError as error:
        return {"error": str(error)}
    return {}


def work(rank: int, directory: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{directory / 'rendezvous'}", rank=rank, world_size=2
    )
    results = {
        "ddp mixed": scenario(rank, "ddp", MIXED),
        "ddp apart": scenario(rank, "ddp", APART, with_prompts=False),
        "ddp fused": scenario(rank, "ddp", MIXED, with_prompts=False, mode="fused"),
        "fsdp2 mixed": scenario(rank, "fsdp2", MIXED),
        "fsdp2 apart": scenario(rank, "fsdp2", APART, with_prompts=False),
        "fsdp2 fused": scenario(rank, "fsdp2", MIXED, with_prompts=False, mode="fused"),
        "idle": idle(rank, directory),
        "stored": stored(rank, directory),
        "refused": refused(rank, directory),
        "added": added(rank),
        "unreduced": unreduced(rank, directory),
        "on its own": on_its_own(rank, directory),
    }
    torch.save(results, directory / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What both ranks saw in every scenario; one pair of processes does them all."""
    directory = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, args=(directory,), nprocs=2)
    results = [torch.load(directory / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]
    return [{**result, "directory": directory} for result in results]


# A language model: PEFT, transformers and checkpointing between the probe and the shards.


def language_updates(rank: int | None, kind: str, mode: Mode = "exact") -> list[UpdateRecord]:
    """Three updates of a LoRA on a small Qwen3, on this rank's rows (None: on all)."""
    from conftest import make_qwen3
    from peft import LoraConfig, get_peft_model

    base = make_qwen3(attn_implementation="eager")
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    torch.manual_seed(1)
    model: Any = get_peft_model(base, config).double()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    model.train()
    inner = model
    if kind == "fsdp2":
        for layer in model.base_model.model.model.layers:
            fully_shard(layer)
        fully_shard(model)
    elif kind == "ddp":
        model = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW([p for p in inner.parameters() if p.requires_grad], lr=1e-2)
    records: list[UpdateRecord] = []
    probe = attach(model, optimizer, agents=AGENTS, record=records.append, mode=mode)
    rows = [*range(len(MIXED))] if rank is None else [[0, 1, 2], [3, 4, 5]][rank]
    for number in range(1, UPDATES + 1):
        ids = torch.randint(
            1, 40, (len(MIXED), 9), generator=torch.Generator().manual_seed(number)
        )[rows]
        probe.tag(torch.tensor(MIXED)[rows], prompts=torch.tensor(PROMPTS)[rows])
        logits = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
        (-logits.gather(2, ids[:, 1:, None]).sum() / len(rows)).backward()
        torch.nn.utils.clip_grad_norm_(inner.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return records


def language_work(rank: int, directory: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{directory / 'rendezvous'}", rank=rank, world_size=2
    )
    results = {
        (kind, mode): language_updates(rank, kind, mode)
        for kind in ("ddp", "fsdp2")
        for mode in ("exact", "fused")
    }
    torch.save(results, directory / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_a_sharded_language_model_with_lora_and_checkpointing(tmp_path: Path) -> None:
    mp.spawn(language_work, args=(tmp_path,), nprocs=2)
    results = torch.load(tmp_path / "rank0.pt", weights_only=False)
    expected = language_updates(None, "alone")
    for records in results.values():
        assert len(records) == UPDATES
        for mine, theirs in zip(records, expected, strict=True):
            assert_same(mine, theirs)


def assert_same(mine: UpdateRecord, expected: UpdateRecord) -> None:
    for name in ("gram_BAA", "update_gram_AA", "transfer_AA"):
        a, b = getattr(mine, name), getattr(expected, name)
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12 * np.abs(b).max(), err_msg=name)
    ours, theirs = asdict(mine.metrics), asdict(expected.metrics)
    assert ours.pop("residual") < 1e-10
    for skipped in ("probe_seconds", "residual"):
        ours.pop(skipped, None)
        theirs.pop(skipped)
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-9, err_msg=name)
    assert mine.row_statistics.keys() == expected.row_statistics.keys()
    for role, statistics in expected.row_statistics.items():
        for name, value in asdict(statistics).items():
            np.testing.assert_allclose(
                getattr(mine.row_statistics[role], name), value, rtol=1e-7, atol=1e-12, err_msg=name
            )


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.parametrize("how", ["mixed", "apart", "fused"])
def test_two_ranks_record_what_one_process_with_all_rows_does(
    ranks: list[dict[str, Any]], kind: str, how: str
) -> None:
    records = ranks[0][f"{kind} {how}"]["records"]
    expected = alone(APART if how == "apart" else MIXED, with_prompts=how == "mixed")
    assert len(records) == UPDATES
    for mine, theirs in zip(records, expected, strict=True):
        assert_same(mine, theirs)


@pytest.mark.parametrize("name", ["ddp mixed", "fsdp2 mixed", "idle"])
def test_only_the_first_rank_emits_and_all_know(ranks: list[dict[str, Any]], name: str) -> None:
    first, second = (rank[name] for rank in ranks)
    assert len(first["records"]) == UPDATES
    assert second["records"] == []
    assert np.array_equal(first["last"].gram_BAA, second["last"].gram_BAA)


def test_ranks_that_add_up_their_gradients_step_as_one_process(
    ranks: list[dict[str, Any]],
) -> None:
    """A rank may have no rows; grams are whole before the step, where roles are weighed."""
    first, second = (rank["added"] for rank in ranks)
    expected = added(None)
    for mine, theirs in zip(first["records"], expected["records"], strict=True):
        assert_same(mine, theirs)
        np.testing.assert_allclose(mine.factor_A, theirs.factor_A)
        gram_AA = theirs.effective_gram_AA
        np.testing.assert_allclose(mine.effective_gram_AA, gram_AA, atol=1e-12 * gram_AA.max())
    for mine, theirs in zip(first["grams"], expected["grams"], strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-12 * theirs.max())
    np.testing.assert_allclose(first["theta_P"], expected["theta_P"], rtol=0, atol=1e-13)
    assert torch.equal(first["theta_P"], second["theta_P"]), "the ranks have drifted apart"
    # One message for the optimizer's and the agents' gradients, one for those of merged weights.
    assert first["reductions"] == second["reductions"] == [2] * len(DEALT)


def test_a_step_without_adding_up_is_refused(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert "call it on every rank" in rank["unreduced"]["error"]


def test_an_update_costs_one_reduction(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["ddp mixed"]["reductions"] == [1] * UPDATES
        assert rank["ddp apart"]["reductions"] == [1] * UPDATES
        assert rank["fsdp2 apart"]["reductions"] == [1] * UPDATES


def test_a_rank_without_tagged_rows_takes_part(ranks: list[dict[str, Any]]) -> None:
    for mine, theirs in zip(ranks[0]["idle"]["records"], alone(MIXED), strict=True):
        assert_same(replace(mine, metrics=replace(mine.metrics, loss=theirs.metrics.loss)), theirs)


def test_one_store_is_written(ranks: list[dict[str, Any]]) -> None:
    run = open_run(ranks[0]["directory"] / "run.zarr")
    assert run.closed
    assert run.update_metric("rows", "shared").value_T.tolist() == [4]


def test_ranks_that_differ_are_refused(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert "rank 1 has agents" in rank["refused"]["error"]


def test_a_group_of_one_measures_its_own_policy(ranks: list[dict[str, Any]]) -> None:
    for mine, theirs in zip(ranks[0]["on its own"]["records"], alone(MIXED), strict=True):
        assert_same(mine, theirs)


def test_shards_are_cut_as_torch_cuts_them() -> None:
    for length in range(1, 9):
        tensor = torch.zeros(length, 3)
        for num_ranks in (2, 3, 4):
            pieces = [piece.numel() for piece in tensor.chunk(num_ranks)]
            pieces += [0] * (num_ranks - len(pieces))
            assert [local_size(tensor, rank, num_ranks) for rank in range(num_ranks)] == pieces
