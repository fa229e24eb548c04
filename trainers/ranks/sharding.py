"""Divide the frozen layers of a base model between ranks: each holds a part, and all in turn.

A layer's weights are gathered when it is used and dropped again (FSDP2), so every forward and
backward is a collective: a rank that has more rows, or longer responses, than another cannot go on
alone. All ranks therefore do the same kind of pass at a time, and one that has none of that kind
does an empty one. Adapters, embeddings and the head stay whole everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from trainers.config import TrainConfig
from trainers.models.language import LanguageModel
from trainers.ranks.peers import Peers

NOTHING, LEARN, BACKWARD, LOOK = range(4)
"""What a rank is about to do: a forward that is learned from, its backward, a forward that is not.

The highest that a rank is about to do comes first. So a backward waits until nobody looks, and
meets everywhere the graph of the one forward before it.
"""


def check_sharding(config: TrainConfig, size: int) -> None:
    """Raise ValueError for --shard-base that cannot be."""
    if not config.shard_base:
        return
    if size == 1:
        raise ValueError(
            "--shard-base divides the base model between processes, and there is one; start "
            "several with torchrun --nproc-per-node N -m gradlab train …, or leave it out"
        )
    if len(config.models) > 1:
        raise ValueError(
            f"--shard-base divides one base model, and --policy-model names {len(config.models)}: "
            f"{', '.join(config.models)}; expected one of the two options"
        )


def shard_base(language: LanguageModel, peers: Peers) -> None:
    """Leave this rank its part of the layers' frozen weights, and make ranks go in step."""
    model = language.model
    adapters = {p for name, p in model.named_parameters() if ".lora_" in name}
    mesh = init_device_mesh(language.device.type, (peers.size,))
    for layer in layers_of(model):
        # Said, since the default keeps a layer that stands in no larger one after its forward.
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=adapters)
    model.to(language.device)
    peers.lockstep.append(Lockstep(model, [*adapters], language.device))


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The list of layers that holds most of a model's weights."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ValueError(
            f"--shard-base: {type(model).__name__} keeps its layers in no list that could be "
            "divided; leave the option out"
        )
    return max(lists, key=lambda found: sum(p.numel() for p in found.parameters()))


class Lockstep:
    """Lets a model's passes happen on all ranks at once."""

    def __init__(
        self, model: nn.Module, adapters: list[nn.Parameter], device: torch.device
    ) -> None:
        self._model = model
        self._adapters = adapters
        self._device = device
        self._is_empty = False
        """Whether the pass is one of nobody's rows."""
        self._pending: Tensor | None = None
        """What an empty forward gave, until its backward."""
        model.register_forward_pre_hook(self._before_forward)

    def before_backward(self) -> None:
        """Wait until all ranks that have a graph go backward."""
        self._until(BACKWARD)

    def drain(self) -> None:
        """Take part in what others still do, until nobody does anything."""
        self._until(NOTHING)

    def _before_forward(self, module: nn.Module, arguments: Any) -> None:
        if not self._is_empty:
            self._until(LEARN if torch.is_grad_enabled() else LOOK)

    def _until(self, mine: int) -> None:
        """Do empty passes of what other ranks do first, until it is the turn of `mine`."""
        while (turn := _highest(mine)) != mine:
            with self._empty():
                if turn == BACKWARD:
                    assert self._pending is not None, "a forward comes before every backward"
                    torch.autograd.grad(self._pending, self._learning(), allow_unused=True)
                    self._pending = None
                    continue
                with torch.set_grad_enabled(turn == LEARN):
                    given = self._forward()
                if turn == LEARN:
                    self._pending = given

    def _learning(self) -> list[nn.Parameter]:
        return [p for p in self._adapters if p.requires_grad]

    def _forward(self) -> Tensor:
        ids = torch.zeros((1, 1), dtype=torch.int64, device=self._device)
        given: Tensor = self._model(input_ids=ids, use_cache=False).logits.sum() * 0
        return given

    @contextmanager
    def _empty(self) -> Iterator[None]:
        self._is_empty = True
        try:
            yield
        finally:
            self._is_empty = False


def _highest(mine: int) -> int:
    proposed = torch.tensor([mine])
    dist.all_reduce(proposed, op=dist.ReduceOp.MAX)
    return int(proposed)
