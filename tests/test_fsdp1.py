"""The probe under FSDP1 on two gloo processes: the record of one process with all rows."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_distributed import (
    AGENTS,
    APART,
    MIXED,
    PROMPTS,
    UPDATES,
    Net,
    alone,
    assert_same,
    optimizer_of,
    tokens,
)
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision, ShardingStrategy
from torch.distributed.fsdp.wrap import (
    _or_policy,
    lambda_auto_wrap_policy,
    transformer_auto_wrap_policy,
)

from gradlab.probe.probe import attach
from gradlab.probe.ranks.fsdp1 import canonical
from gradlab.records import Mode, UpdateRecord

pytestmark = pytest.mark.filterwarnings("ignore:.*FSDP.*")

STRATEGIES = ("FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD")


def wrap(model: nn.Module, strategy: str, policy: Any, original: bool) -> FullyShardedDataParallel:
    return FullyShardedDataParallel(
        model,
        auto_wrap_policy=policy,
        sharding_strategy=ShardingStrategy[strategy],
        use_orig_params=original,
        backward_prefetch=None,  # weights are gathered when they are needed, not by luck before
        device_id=torch.device("cpu"),
    )


def is_a_part(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding | nn.LayerNorm)


def clip(model: nn.Module, limit: float, *, is_sharded: bool) -> None:
    """`FullyShardedDataParallel.clip_grad_norm_`, which knows no float64."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm2 = torch.stack(
        [*(g.square().sum() for g in gradients), torch.zeros((), dtype=torch.float64)]
    )
    norm2 = norm2.sum()
    if is_sharded:
        dist.all_reduce(norm2)
    for gradient in gradients:
        gradient.mul_(min(1.0, limit / (float(norm2.sqrt()) + 1e-6)))


def scenario(
    rank: int,
    strategy: str,
    original: bool,
    agents: tuple[int, ...],
    *,
    with_prompts: bool,
    mode: Mode = "exact",
) -> list[UpdateRecord]:
    """Three updates on this rank's rows, the first micro-batch without communication."""
    policy = partial(lambda_auto_wrap_policy, lambda_fn=is_a_part)
    model = wrap(Net(), strategy, policy, original)
    optimizer = optimizer_of(model)
    records: list[UpdateRecord] = []
    probe = attach(model, optimizer, agents=AGENTS, record=records.append, mode=mode)
    rows = [[0, 1, 2], [3, 4, 5]][rank]
    for number in range(1, UPDATES + 1):
        for part in (rows[:-1], rows[-1:]):
            prompts = torch.tensor(PROMPTS)[part] if with_prompts else None
            probe.tag(torch.tensor(agents)[part], prompts=prompts)
            with nullcontext() if part == rows[-1:] else model.no_sync():
                ((model(input_ids=tokens(number)[part]) ** 2).sum() / 3).backward()
        probe.loss = float(number)
        clip(model, 0.01, is_sharded=strategy != "NO_SHARD")
        optimizer.step()
        optimizer.zero_grad()
    return records


def idle(rank: int, original: bool) -> list[UpdateRecord]:
    """Rank 1 has no row of anybody: it takes part with a loss of zero, and never tags."""
    model = wrap(Net(), "FULL_SHARD", None, original)
    optimizer = optimizer_of(model)
    records: list[UpdateRecord] = []
    probe = attach(model, optimizer, agents=AGENTS, record=records.append)
    for number in range(1, UPDATES + 1):
        ids = tokens(number)
        if rank == 0:
            probe.tag(torch.tensor(MIXED), prompts=PROMPTS)
            ((model(input_ids=ids) ** 2).sum() * 2 / len(MIXED)).backward()
            probe.loss = 2.0 * number
        else:
            (model(input_ids=ids[:1]) * 0).sum().backward()
            probe.loss = 0.0
        clip(model, 0.01, is_sharded=True)
        optimizer.step()
        optimizer.zero_grad()
    return records


def refused(rank: int) -> dict[str, str]:
    """What cannot be measured under FSDP1, and the message."""
    model = wrap(Net(), "FULL_SHARD", None, True)
    optimizer = optimizer_of(model)
    errors = {}
    for name, given in (("inside", model.module), ("around", model)):
        try:
            attach(
                given, optimizer, agents=AGENTS, mode="exact" if name == "inside" else "streaming"
            )
        except ValueError as error:
            errors[name] = str(error)
    return errors


def work(rank: int, directory: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{directory / 'rendezvous'}", rank=rank, world_size=2
    )
    results: dict[Any, Any] = {"refused": refused(rank)}
    for original in (True, False):
        results["idle", original] = idle(rank, original)
        for strategy in STRATEGIES:
            key = strategy, original
            results[*key, "mixed"] = scenario(rank, *key, MIXED, with_prompts=True)
            if strategy == "FULL_SHARD":
                results[*key, "apart"] = scenario(rank, *key, APART, with_prompts=False)
                results[*key, "fused"] = scenario(
                    rank, *key, MIXED, with_prompts=False, mode="fused"
                )
    torch.save(results, directory / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What both ranks saw in every scenario; one pair of processes does them all."""
    directory = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, args=(directory,), nprocs=2)
    return [torch.load(directory / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize(
    ("strategy", "how"),
    [
        ("FULL_SHARD", "mixed"),
        ("FULL_SHARD", "apart"),
        ("FULL_SHARD", "fused"),
        ("SHARD_GRAD_OP", "mixed"),
        ("NO_SHARD", "mixed"),
    ],
)
def test_two_ranks_record_what_one_process_with_all_rows_does(
    ranks: list[dict[Any, Any]], strategy: str, original: bool, how: str
) -> None:
    records = ranks[0][strategy, original, how]
    expected = alone(APART if how == "apart" else MIXED, with_prompts=how == "mixed")
    assert len(records) == UPDATES
    for mine, theirs in zip(records, expected, strict=True):
        assert_same(mine, theirs)
    assert ranks[1][strategy, original, how] == []


@pytest.mark.parametrize("original", [True, False])
def test_a_rank_without_tagged_rows_takes_part(ranks: list[dict[Any, Any]], original: bool) -> None:
    for mine, theirs in zip(ranks[0]["idle", original], alone(MIXED), strict=True):
        assert_same(mine, theirs)


def test_what_cannot_be_measured_is_refused(ranks: list[dict[Any, Any]]) -> None:
    for rank in ranks:
        assert "the wrapper is not among" in rank["refused"]["inside"]
        assert "'streaming' runs in one process" in rank["refused"]["around"]


def test_names_are_those_of_before_wrapping() -> None:
    for name in (
        "_fsdp_wrapped_module.model.layers.0._fsdp_wrapped_module.mlp.up.weight",
        "_orig_mod.model.layers.0._checkpoint_wrapped_module._fsdp_wrapped_module.mlp.up.weight",
    ):
        assert canonical(name) == "model.layers.0.mlp.up.weight"
    assert canonical("my_orig_mod.weight") == "my_orig_mod.weight"


# A language model with LoRA, wrapped as verl and accelerate wrap it.


def lora_or_layer(layer: type[nn.Module]) -> Any:
    """verl's policy: a unit per decoder layer, and one per leaf with weights to train."""

    def is_trained_leaf(module: nn.Module) -> bool:
        weight = getattr(module, "weight", None)
        return not [*module.children()] and weight is not None and weight.requires_grad

    leaves = partial(lambda_auto_wrap_policy, lambda_fn=is_trained_leaf)
    layers = partial(transformer_auto_wrap_policy, transformer_layer_cls={layer})
    return partial(_or_policy, policies=[leaves, layers])


def language_updates(rank: int | None, how: str) -> list[UpdateRecord]:
    """Three updates of a LoRA on a small Qwen3, on this rank's rows (None: on all)."""
    from conftest import make_qwen3
    from peft import LoraConfig, get_peft_model
    from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    torch.manual_seed(1)
    inner: Any = get_peft_model(make_qwen3(attn_implementation="eager"), config)
    model: Any = inner.to(torch.float32 if "bfloat16" in how else torch.float64)
    if "checkpointing" in how:
        model.gradient_checkpointing_enable({"use_reentrant": "non" not in how})
        model.enable_input_require_grads()
    model.train()
    if rank is not None:
        layers = partial(transformer_auto_wrap_policy, transformer_layer_cls={Qwen3DecoderLayer})
        half = MixedPrecision(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        model = FullyShardedDataParallel(
            model,
            auto_wrap_policy=lora_or_layer(Qwen3DecoderLayer) if "verl" in how else layers,
            use_orig_params="original" in how,
            mixed_precision=half if "bfloat16" in how else None,
            device_id=torch.device("cpu"),
        )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    records: list[UpdateRecord] = []
    probe = attach(model, optimizer, agents=AGENTS, record=records.append)
    rows = [*range(len(MIXED))] if rank is None else [[0, 1, 2], [3, 4, 5]][rank]
    for number in range(1, UPDATES + 1):
        ids = torch.randint(
            1, 40, (len(MIXED), 9), generator=torch.Generator().manual_seed(number)
        )[rows]
        probe.tag(torch.tensor(MIXED)[rows], prompts=torch.tensor(PROMPTS)[rows])
        with torch.autocast("cpu", torch.bfloat16, enabled="bfloat16" in how):
            logits = model(input_ids=ids).logits[:, :-1].double().log_softmax(-1)
        (-logits.gather(2, ids[:, 1:, None]).sum() / len(rows)).backward()
        clip(model, 1.0, is_sharded=rank is not None)
        optimizer.step()
        optimizer.zero_grad()
    return records


VARIANTS = (
    "verl",
    "verl original",
    "accelerate original",
    "verl original, nonreentrant checkpointing",
    "accelerate original, reentrant checkpointing",
    "verl, bfloat16",
)


def language_work(rank: int, directory: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{directory / 'rendezvous'}", rank=rank, world_size=2
    )
    results = {how: language_updates(rank, how) for how in VARIANTS}
    torch.save(results, directory / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_a_language_model_with_lora_wrapped_as_frameworks_do(tmp_path: Path) -> None:
    mp.spawn(language_work, args=(tmp_path,), nprocs=2)
    results = torch.load(tmp_path / "rank0.pt", weights_only=False)
    expected = language_updates(None, "alone")
    for how in VARIANTS:
        for mine, theirs in zip(results[how], expected, strict=True):
            if "bfloat16" in how:
                assert mine.metrics.residual < 1e-2, how
                assert mine.metrics.coverage == 1, how
            else:
                assert_same(mine, theirs)
