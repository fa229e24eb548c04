"""What the processes of one run do together: deal problems and rows, gather, add up, agree.

One process does all of it alone, and nothing is communicated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from gradlab.ledger import RoleTally
from gradlab.probe.ranks.distributed import pack, room_for, unpack
from trainers.config import TrainConfig
from trainers.episodes import Episode, Turn
from trainers.policies import Policy, TrainingError
from trainers.ranks.launch import Launch
from trainers.tasks.problem import Problem

Item = TypeVar("Item")
SUMS = (
    "tokens", "entropy", "ratio", "ratio_squared", "clipped", "weight", "compared_turns",
    "compared_tokens",
)  # fmt: skip
"""What a tally adds up over rows."""
MEANS = ("kl", "logprob_gap")
"""Its means over the compared tokens. The rest of it every rank knows."""


class Agreed:
    """An error that every rank raises at the same point: none has to tell the others."""


class InStep(Protocol):
    """What makes the passes of a model happen on all ranks at once."""

    def before_backward(self) -> None:
        """Wait for everybody's."""

    def drain(self) -> None:
        """Take part in the others' passes until nobody has one."""


@dataclass(frozen=True)
class Peers:
    """The processes that train one run, and which of them this is."""

    launch: Launch = field(default_factory=Launch)
    lockstep: list[InStep] = field(default_factory=list)
    """Of the base model whose layers are divided between the ranks, if it is."""

    @property
    def rank(self) -> int:
        return self.launch.rank

    @property
    def size(self) -> int:
        return self.launch.size

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    # Whoever does it for all.

    def first(self, act: Callable[[], Item]) -> Item:
        """What `act` returns on rank 0, which alone calls it; everybody has it afterwards."""
        if self.size == 1:
            return act()
        self._meet()
        said = [act() if self.is_first else None]
        dist.broadcast_object_list(said, src=0)
        return said[0]  # type: ignore[return-value]  # rank 0's

    def gathered(self, mine: Item) -> list[Item]:
        """What every rank has, by rank."""
        if self.size == 1:
            return [mine]
        self._meet()
        everybody: list[Any] = [None] * self.size
        dist.all_gather_object(everybody, mine)
        return everybody

    def _meet(self) -> None:
        """Come to a point where no rank is in the middle of a pass."""
        for lockstep in self.lockstep:
            lockstep.drain()

    # A step's problems and rows.

    def play(
        self, problems: Sequence[Problem], play: Callable[[list[Problem]], list[Episode]]
    ) -> list[Episode]:
        """The episodes of all problems in their order, each played by one of the ranks."""
        mine = play([*problems[self.rank :: self.size]])
        if self.size == 1:
            return mine
        by_rank = self.gathered(mine)
        by_problem: dict[str, list[Episode]] = {problem.id: [] for problem in problems}
        for episodes in by_rank:
            for episode in episodes:
                by_problem[episode.problem.id].append(episode)
        return [episode for episodes in by_problem.values() for episode in episodes]

    def share(self, rows: Sequence[Turn]) -> list[Turn]:
        """This rank's rows: as many tokens as the others', to within a row."""
        return [rows[i] for i in self._dealt(rows)]

    def spread(self, rows: Sequence[Turn], act: Callable[[list[Turn]], list[Turn]]) -> list[Turn]:
        """What `act` makes of all rows, in their order, each done by one of the ranks."""
        places = self._dealt(rows)
        made: dict[int, Turn] = {}
        for part in self.gathered([*zip(places, act([rows[i] for i in places]), strict=True)]):
            made |= part
        return [made[i] for i in range(len(rows))]

    def _dealt(self, rows: Sequence[Turn]) -> Sequence[int]:
        if self.size == 1:
            return range(len(rows))
        by_length = sorted(range(len(rows)), key=lambda i: rows[i].tokens)
        return by_length[self.rank :: self.size]

    # An update.

    def backward(self, loss: Tensor) -> None:
        """The backward of a micro-batch of this rank."""
        for lockstep in self.lockstep:
            lockstep.before_backward()
        loss.backward()  # type: ignore[no-untyped-call]

    def reduce(self, policy: Policy) -> None:
        """Add up the policy's gradients over the ranks, the agents' with them, in one message."""
        if self.size == 1:
            return
        self._meet()
        if policy.probe is not None:
            policy.probe.reduce()
            return
        first = policy.parameters[0]
        room = torch.zeros(room_for(policy.parameters), dtype=first.dtype, device=first.device)
        pack(policy.parameters, room)
        dist.all_reduce(room)
        unpack(room, policy.parameters)

    def add_up(self, tallies: Mapping[str, RoleTally]) -> None:
        """Make each rank's sums over its rows those over all."""
        if self.size == 1:
            return
        by_rank = self.gathered(dict(tallies))
        for role, tally in tallies.items():
            parts = [found[role] for found in by_rank]
            for name in SUMS:
                setattr(tally, name, sum(getattr(part, name) for part in parts))
            for name in MEANS:
                known = [part for part in parts if part.compared_tokens]
                total = sum(getattr(part, name) * part.compared_tokens for part in known)
                setattr(tally, name, total / tally.compared_tokens if known else math.nan)

    # What must be the same everywhere.

    def total(self, count: int) -> int:
        return sum(self.gathered(count))

    def most(self, number: int) -> int:
        """The largest of the ranks' numbers, so that all act on what one was told."""
        return max(self.gathered(number))

    def check_same_weights(self, policies: Mapping[str, Policy], step: int) -> None:
        """Raise TrainingError for ranks whose weights have drifted apart."""
        if self.size == 1:
            return
        by_rank = self.gathered({name: fingerprint(p.parameters) for name, p in policies.items()})
        for rank, prints in enumerate(by_rank):
            bad = [name for name in prints if prints[name] != by_rank[0][name]]
            if bad:
                raise TrainingError(
                    f"step {step}, policy '{bad[0]}': rank {rank} has other weights than rank 0, "
                    "although all ranks took the same step: a device or a library computes "
                    "otherwise there. Continue from the last checkpoint on machines that are alike"
                )


ALONE = Peers()
"""One process."""


def fingerprint(tensors: Sequence[Tensor]) -> int:
    """A number that tells whether tensors are the same bit for bit."""
    whole, bits_of = 0, {2: torch.int16, 4: torch.int32, 8: torch.int64}
    for number, tensor in enumerate(tensors, 1):
        flat = tensor.detach().contiguous().view(-1)
        bits = flat.view(bits_of[flat.element_size()]).to(torch.int64)
        # Weighed by place, so that an exchange of two values shows.
        place = torch.arange(len(bits), device=bits.device) % 8191 + number
        whole = (whole * 31 + int((bits * place).sum())) % 2**63
    return whole


def with_draws(config: TrainConfig, size: int) -> TrainConfig:
    """The configuration with --draws as it is for that many processes.

    Raises ValueError for one stream of numbers that several processes cannot share.
    """
    # Runs of before there was a choice are resumed with 'auto': one process drew for them.
    is_of_one = config.draws == "batch" or (config.draws == "auto" and config.resume)
    if size > 1 and is_of_one:
        where = f"{config.out} was begun with it" if config.resume else "--draws batch is set"
        how = (
            f"Continue it in one process, or begin a new run where it is: torchrun … -m gradlab "
            f"train --from {config.out} --at STEP --draws problem --out NEW"
            if config.resume
            else "Leave it out, or give --draws problem"
        )
        raise ValueError(
            f"{size} processes cannot draw from the one stream of numbers of --draws batch, and "
            f"{where}. {how}"
        )
    if config.draws == "auto":
        return replace(config, draws="problem" if size > 1 else "batch")
    return config


def check_dealing(config: TrainConfig, size: int) -> None:
    """Raise ValueError for more processes than problems."""
    if size > config.problems_per_step:
        raise ValueError(
            f"{size} processes and --problems-per-step {config.problems_per_step}: a problem is "
            f"played by one process; start at most {config.problems_per_step}, or raise "
            "--problems-per-step"
        )
