"""See the parameters that FSDP1 flattens and shards as the parameters they were before.

`FullyShardedDataParallel` joins the parameters of a unit into a flat one, cuts that evenly over the
ranks, and hands the modules plain views while they run. What the optimizer holds of a parameter is
then a stretch of its elements, perhaps none (`use_orig_params=True`), or a stretch of the flat one.
Which stretch of whose is on record in the unit's handle; nothing here changes anything in it.

Legend: S parameters, W ranks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from gradlab.probe.ranks.distributed import Piece

WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\."
)


class FlatShard:
    """A parameter of which FSDP1 keeps a stretch on this rank; stands in for it in a layout."""

    def __init__(
        self,
        owner: nn.Parameter,
        shape: torch.Size,
        stride: tuple[int, ...],
        start: int | None,
        sizes_W: tuple[int, ...],
        handle: Any,
    ) -> None:
        """`start`: where the stretch begins in `owner`; None where it is all of it."""
        self.owner = owner
        """What the optimizer holds: the parameter, cut, or the flat one that it is a part of."""
        self.shape = shape
        self.dtype: torch.dtype = owner.dtype
        self.device: torch.device = handle.device
        """Where the model computes, also if FSDP keeps its shards elsewhere."""
        self.group: ProcessGroup | None = handle.process_group if len(sizes_W) > 1 else None
        self.places: list[tuple[nn.Module, str]] = []
        """(module, local name) wherever the parameter is used; several if it is tied."""
        self._stride = stride
        self._start = start
        self._size = sizes_W[handle.rank if len(sizes_W) > 1 else 0]
        self._sizes_W = sizes_W
        # Known of the other ranks' stretches after `refresh`.
        self.has_gradient = False
        self.has_state = False
        self.num_steps = 0

    @property
    def requires_grad(self) -> bool:
        return self.owner.requires_grad

    @property
    def grad(self) -> Piece | None:
        """None where no rank has a gradient."""
        return self.piece(self.owner.grad) if self.has_gradient else None

    def numel(self) -> int:
        return self.shape.numel()

    def detach(self) -> Piece:
        return self.piece(self.owner.detach())

    def piece(self, tensor: Tensor | None) -> Piece:
        """This parameter's part of a tensor that is cut as its owner is; zeros if None."""
        if tensor is None:
            mine = torch.zeros(self._size, dtype=self.dtype, device=self.device)
        else:
            flat = tensor.detach().reshape(-1)
            if self._start is not None:
                flat = flat[self._start : self._start + self._size]
            mine = flat.to(self.device, self.dtype)
        return Piece(mine, self.shape, self._stride, self._sizes_W, self.group)


Parameter = nn.Parameter | FlatShard


def named_parameters(model: nn.Module) -> dict[str, Parameter]:
    """`model.named_parameters()`, with the names and shapes of before it was wrapped."""
    flat: dict[nn.Module, dict[str, FlatShard]] = {}
    hidden: set[int] = set()
    known: set[int] = set()
    for handle in handles_of(model):
        known |= {id(p) for p in (handle.flat_param, *(handle.flat_param._params or ()))}
        if not handle.uses_sharded_strategy and handle._use_orig_params:
            continue  # parameters as they were
        for shard in shards_of(handle):
            for module, local in shard.places:
                flat.setdefault(module, {})[local] = shard
            hidden.add(id(shard.owner))
    if any(getattr(p, "_fsdp_flattened", False) and id(p) not in known for p in model.parameters()):
        raise ValueError(
            f"attach: parameters of this {type(model).__name__} are flattened by FSDP1, and the "
            "wrapper is not among its modules; pass the FullyShardedDataParallel, not what is in it"
        )
    found: dict[str, Parameter] = {}
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        own: dict[str, Parameter] = dict(flat.get(module, {}))
        own |= {k: p for k, p in module.named_parameters(recurse=False) if id(p) not in hidden}
        for local, parameter in own.items():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                found[canonical(f"{prefix}.{local}" if prefix else local)] = parameter
    return found


def canonical(name: str) -> str:
    """A name without the wrappers that FSDP1, checkpointing and torch.compile put in.

    Example:
        >>> canonical("model.layers.0._fsdp_wrapped_module.mlp.up.weight")
        'model.layers.0.mlp.up.weight'
    """
    return WRAPPERS.sub("", name)


def handles_of(model: nn.Module) -> Iterator[Any]:
    """The handle of every flat parameter."""
    for module in model.modules():
        if isinstance(module, FullyShardedDataParallel) and module._handle is not None:
            yield module._handle


def shards_of(handle: Any) -> Iterator[FlatShard]:
    """A stand-in for every parameter of one flat parameter."""
    flat = handle.flat_param
    numels = flat._numels_with_padding
    starts = [
        start
        for start, is_padding in zip(
            accumulate(numels, initial=0), flat._is_padding_mask, strict=False
        )
        if not is_padding
    ]
    num_ranks = handle.world_size if handle.uses_sharded_strategy else 1
    width = flat._sharded_size.numel() if num_ranks > 1 else sum(numels)
    shared: dict[tuple[nn.Module, str], list[tuple[nn.Module, str]]] = {}
    for local, module, _, first_local, first_module, _ in flat._shared_param_infos:
        shared.setdefault((first_module, first_local), []).append((module, local))
    for i, (start, info) in enumerate(zip(starts, flat._param_infos, strict=True)):
        stop = start + flat._numels[i]
        bounds_W = [(max(start, w * width), min(stop, (w + 1) * width)) for w in range(num_ranks)]
        sizes_W = tuple(max(0, hi - lo) for lo, hi in bounds_W)
        rank = handle.rank if num_ranks > 1 else 0
        shard = FlatShard(
            flat._params[i] if handle._use_orig_params else flat,
            flat._shapes[i],
            flat._strides[i],
            None if handle._use_orig_params else max(0, start - rank * width),
            sizes_W,
            handle,
        )
        place = (info.module, info.param_name)
        shard.places += [place, *shared.get(place, [])]
        yield shard


def uses(parameters: Sequence[Parameter]) -> dict[nn.Module, dict[str, int]]:
    """Module -> local name -> index, of the parameters that modules no longer show as theirs."""
    found: dict[nn.Module, dict[str, int]] = {}
    for i, parameter in enumerate(parameters):
        if isinstance(parameter, FlatShard):
            for module, local in parameter.places:
                found.setdefault(module, {})[local] = i
    return found


def refresh(parameters: Iterable[Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Tell every rank which parameters have a gradient and a moment; before the optimizer steps.

    A rank without an element of a parameter cannot know. Cost: a message of 3 S integers.
    """
    by_group: dict[ProcessGroup | None, list[FlatShard]] = {}
    for parameter in parameters:
        if isinstance(parameter, FlatShard):
            by_group.setdefault(parameter.group, []).append(parameter)
    for group, shards in by_group.items():
        known = []
        for shard in shards:
            state = optimizer.state.get(shard.owner, {})
            known.append((shard.owner.grad is not None, is_begun(state), int(state.get("step", 0))))
        known_S3 = torch.tensor(known, dtype=torch.int64, device=shards[0].device)
        if group is not None:
            dist.all_reduce(known_S3, op=dist.ReduceOp.MAX, group=group)
        for shard, (has_gradient, has_state, steps) in zip(shards, known_S3.tolist(), strict=True):
            shard.has_gradient, shard.has_state = bool(has_gradient), bool(has_state)
            shard.num_steps = steps


def is_sharded(parameter: Parameter) -> bool:
    """Whether a rank may hold only a part of it."""
    return isinstance(parameter, FlatShard | DTensor)


# What an optimizer keeps of a parameter.


def owner_of(parameter: Parameter) -> nn.Parameter:
    """What the optimizer knows the parameter as."""
    return parameter.owner if isinstance(parameter, FlatShard) else parameter


def has_state(optimizer: torch.optim.Optimizer, parameter: Parameter) -> bool:
    """Whether the optimizer has a moment of it; asked before a step."""
    if isinstance(parameter, FlatShard):
        return parameter.has_state
    return is_begun(optimizer.state.get(parameter, {}))


def num_steps(optimizer: torch.optim.Optimizer, parameter: Parameter) -> Tensor:
    """Adam's steps on a parameter with a gradient; asked after a step."""
    if isinstance(parameter, FlatShard):
        return torch.tensor(parameter.num_steps + 1)
    count: Tensor = optimizer.state[parameter]["step"]
    return count


def state_of(optimizer: torch.optim.Optimizer, parameter: Parameter, name: str) -> Tensor | Piece:
    """An entry of the optimizer's state that has the parameter's shape."""
    if isinstance(parameter, FlatShard):
        return parameter.piece(optimizer.state.get(parameter.owner, {}).get(name))
    entry: Tensor = optimizer.state[parameter][name]
    return entry


def is_begun(state: Mapping[str, Any]) -> bool:
    """Whether an optimizer's state has a first moment, or SGD's momentum."""
    return state.get("exp_avg", state.get("momentum_buffer")) is not None


def ordinary(parameters: Sequence[Parameter], what: str) -> tuple[nn.Parameter, ...]:
    """The parameters, if this rank holds all of each."""
    whole = tuple(p for p in parameters if isinstance(p, nn.Parameter))
    if len(whole) < len(parameters):
        raise ValueError(
            f"{what}: FullyShardedDataParallel (FSDP1) keeps {len(parameters) - len(whole)} of the "
            f"{len(parameters)} parameters flattened; do this in one process without it"
        )
    return whole


def unsharded(parameters: Sequence[Parameter], what: str) -> tuple[nn.Parameter, ...]:
    """The parameters, if every rank holds all of each."""
    if any(is_sharded(p) for p in parameters):
        raise ValueError(f"{what}: a wrapper shards the parameters, and adds the gradients itself")
    return ordinary(parameters, what)
