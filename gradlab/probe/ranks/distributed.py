"""Share what the ranks of a data-parallel group captured: one reduction per update.

Every rank captures its own rows under the whole weights, also where parameters are sharded. The
loss that is optimized is the mean over ranks, or their sum where the trainer says so; the agents'
gradients are joined likewise and equal those of one process with all rows. With one process,
nothing here communicates.

Legend: A agents, P measured parameters (elements), S slots (parameters), W ranks, n rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor, Shard


@dataclass(frozen=True)
class Shared:
    """What all ranks know of an update after the reduction."""

    attributed: frozenset[int]
    """Slots to which some rank attributed a gradient."""
    has_gradient: bool
    num_rows: int
    loss: float
    """Mean or sum over ranks."""
    is_low_precision: bool
    rows_norm2: float
    """Sum of the squared norms of the rows, as each rank weighs its own."""
    sketched_rows_W: tuple[int, ...]
    """Rows with a sketch, by rank."""


Losses = Literal["mean", "sum"]


class Ranks:
    """The processes that train one policy together on different rows."""

    def __init__(self, group: ProcessGroup | None = None, losses: Losses = "mean") -> None:
        """All processes if `group` is None; no others if torch.distributed is not running.

        `losses`: what of the ranks' losses is optimized.
        """
        is_running = dist.is_available() and dist.is_initialized()
        self.group = group
        self.size = dist.get_world_size(group) if is_running else 1
        self.rank = dist.get_rank(group) if is_running else 0
        self.is_sum = losses == "sum"
        self.scale = 1.0 if self.is_sum else 1 / self.size
        """Of each rank's gradients in those of all."""
        if self.rank < 0:
            raise ValueError(
                "attach: this process is not in the process group that it was given; attach on "
                "the ranks that train the policy only"
            )

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def is_current(self) -> bool:
        """Whether this is still all processes, if all was meant."""
        is_running = dist.is_available() and dist.is_initialized()
        return self.group is not None or self.size == (dist.get_world_size() if is_running else 1)

    @property
    def num_extras(self) -> int:
        """Floats that travel behind the gradients, beside one per slot."""
        return 5 + self.size

    def agree(self, what: str, mine: Any) -> None:
        """Refuse ranks that differ: their collectives would mix unrelated numbers, or hang."""
        if self.size == 1:
            return
        everybody: list[Any] = [None] * self.size
        dist.all_gather_object(everybody, mine, group=self.group)
        for rank, theirs in enumerate(everybody):
            if theirs != everybody[0]:
                raise ValueError(
                    f"attach: rank {rank} has {what} {theirs}, rank 0 has {everybody[0]}; every "
                    "rank of a policy has to attach with the same agents to the same parameters "
                    "(give group= if these ranks do not train together)"
                )

    def share(
        self,
        buffer: Tensor,
        num_gradients: int,
        mine: Shared,
        optimized: Sequence[Tensor] = (),
    ) -> Shared:
        """Join `buffer` over the ranks in place, and what goes with it.

        `buffer`: the gradients [A * P], then room for a flag per slot and `num_extras` floats, then
        for the gradients of `optimized` and a flag of each. These parameters get the gradients of
        all ranks; one that has none on any rank keeps none.
        """
        if self.size == 1:
            return mine
        whole = buffer
        buffer = whole[: len(whole) - room_for(optimized)]
        num_slots = len(buffer) - num_gradients - self.num_extras
        extras = torch.zeros(num_slots + self.num_extras, dtype=buffer.dtype)
        extras[[*mine.attributed]] = 1
        extras[num_slots : num_slots + 5] = torch.tensor(
            [mine.has_gradient, mine.num_rows, mine.loss, mine.is_low_precision, mine.rows_norm2],
            dtype=buffer.dtype,
        )
        extras[num_slots + 5 + self.rank] = mine.sketched_rows_W[0]
        buffer[num_gradients:] = extras.to(buffer.device)
        pack(optimized, whole[len(buffer) :])
        dist.all_reduce(whole, group=self.group)
        unpack(whole[len(buffer) :], optimized)
        sums = buffer[num_gradients:].to(torch.float64, copy=True)
        buffer.mul_(self.scale)
        flags, rest = sums[:num_slots], sums[num_slots:]
        has_gradient, num_rows, loss, is_low, rows_norm2, *sketched = rest.tolist()
        return Shared(
            frozenset(flags.nonzero().flatten().tolist()),
            has_gradient > 0,
            round(num_rows),
            loss * self.scale,
            is_low > 0,
            rows_norm2 * self.scale**2,
            tuple(round(count) for count in sketched),
        )

    def join(self, buffer: Tensor) -> None:
        """Join gradients over the ranks in place."""
        if self.size > 1:
            dist.all_reduce(buffer, group=self.group)
            buffer.mul_(self.scale)

    def gather_rows(
        self, floats_nM: Tensor, labels_nL: Tensor, rows_W: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """The float64 values and int64 labels of all ranks' rows, in the order of ranks."""
        if self.size == 1:
            return floats_nM, labels_nL
        # One message: labels are integers of 64 bits, more than a float64 holds.
        mine = torch.cat([floats_nM.view(torch.int64), labels_nL.to(floats_nM.device)], dim=1)
        room = mine.new_zeros(max(rows_W), mine.shape[1])
        room[: len(mine)] = mine
        rooms = [torch.empty_like(room) for _ in rows_W]
        dist.all_gather(rooms, room, group=self.group)
        together = torch.cat([room[:n] for room, n in zip(rooms, rows_W, strict=True)])
        width = floats_nM.shape[1]
        return together[:, :width].contiguous().view(torch.float64), together[:, width:]


def room_for(parameters: Sequence[Tensor]) -> int:
    """Floats that the gradients of parameters take, with a flag for each."""
    return sum(parameter.numel() + 1 for parameter in parameters)


def pack(parameters: Sequence[Tensor], room: Tensor) -> None:
    """Put the gradients into `room`, zeros where there is none, and which there are behind them."""
    start, num = 0, len(parameters)
    for i, parameter in enumerate(parameters):
        stop, gradient = start + parameter.numel(), parameter.grad
        if gradient is None:
            room[start:stop] = 0
        else:
            room[start:stop] = gradient.reshape(-1)
        room[len(room) - num + i] = float(gradient is not None)
        start = stop


def unpack(room: Tensor, parameters: Sequence[Tensor]) -> None:
    """Give the parameters the gradients that `room` holds after the ranks' were added."""
    if not parameters:
        return
    start, is_there = 0, (room[-len(parameters) :] > 0).tolist()
    for parameter, has_gradient in zip(parameters, is_there, strict=True):
        stop = start + parameter.numel()
        if has_gradient:
            gradient = room[start:stop].view(parameter.shape).to(parameter.dtype, copy=True)
            if parameter.grad is None:
                parameter.grad = gradient
            else:
                parameter.grad.copy_(gradient)
        start = stop


@dataclass(frozen=True)
class Piece:
    """What this rank holds of a tensor that is sharded over a group."""

    mine: Tensor
    """[sizes_W[rank]] a stretch of the elements."""
    shape: torch.Size
    """Of the whole tensor."""
    stride: tuple[int, ...]
    sizes_W: tuple[int, ...]
    """Elements per rank, in the order in which they are joined."""
    group: ProcessGroup | None
    """None: this rank holds all of it."""


def piece_of(tensor: DTensor) -> Piece:
    """The piece of a tensor that is sharded along its first dimension over all ranks of a mesh."""
    mesh, whole = tensor.device_mesh, tensor.shape
    sizes_W = tuple(local_size(tensor, rank, mesh.size()) for rank in range(mesh.size()))
    stride = torch.empty(whole, device="meta").stride()
    mine = tensor.to_local().reshape(-1).to(mesh.device_type)  # offloaded shards travel there
    return Piece(mine, whole, stride, sizes_W, mesh.get_group())


def in_full(tensors: Sequence[Tensor | Piece]) -> list[Tensor]:
    """Sharded tensors whole, by one gather per group for all of them; any others as they are."""
    whole: dict[int, Tensor] = {}
    by_group: dict[ProcessGroup | None, dict[int, Piece]] = {}
    for i, tensor in enumerate(tensors):
        if isinstance(tensor, DTensor):
            if tensor.device_mesh.ndim > 1 or tensor.placements != (Shard(0),):
                whole[i] = tensor.full_tensor()
                continue
            tensor = piece_of(tensor)
        if isinstance(tensor, Piece):
            by_group.setdefault(tensor.group, {})[i] = tensor
        else:
            whole[i] = tensor
    for group, pieces in by_group.items():
        whole |= zip(pieces, joined([*pieces.values()], group), strict=True)
    return [whole[i] for i in range(len(tensors))]


def joined(pieces: Sequence[Piece], group: ProcessGroup | None) -> list[Tensor]:
    """The whole tensors of pieces over one group."""
    if group is None:
        return [piece.mine.as_strided(piece.shape, piece.stride) for piece in pieces]
    mine = torch.cat([piece.mine for piece in pieces])
    sizes_W = [[*sizes] for sizes in zip(*(piece.sizes_W for piece in pieces), strict=True)]
    room = mine.new_zeros(max(sum(sizes) for sizes in sizes_W))
    room[: len(mine)] = mine
    rooms = [torch.empty_like(room) for _ in sizes_W]
    dist.all_gather(rooms, room, group=group)
    parts_W = [
        torch.split(room[: sum(sizes)], sizes) for room, sizes in zip(rooms, sizes_W, strict=True)
    ]
    return [
        torch.cat(parts).as_strided(piece.shape, piece.stride)
        for piece, *parts in zip(pieces, *parts_W, strict=True)
    ]


def local_size(tensor: Tensor, rank: int, num_ranks: int) -> int:
    """Elements of a tensor sharded along its first dimension that one rank holds."""
    length = tensor.shape[0]
    chunk = -(-length // num_ranks)  # as torch.chunk
    rows = max(0, min(chunk, length - rank * chunk))
    return rows * (tensor.numel() // max(length, 1))


def unwrap(model: nn.Module) -> nn.Module:
    """The module in a DDP wrapper; any other as it is."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        inner: nn.Module = model.module
        return inner
    return model
