"""Read what torchrun or accelerate says about this process: which of how many it is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """This process among those that were started together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among the processes of this machine."""
    local_size: int = 1

    @property
    def is_one_machine(self) -> bool:
        return self.local_size == self.size


def launched(environment: Mapping[str, str] = os.environ) -> Launch:
    """What the launcher put into the environment; one process alone without it.

    Raises ValueError for variables that contradict each other.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    given = {name: environment[name] for name in names if environment.get(name)}
    if int(given.get("WORLD_SIZE", "1")) == 1 or "RANK" not in given:
        # Schedulers set some of them for their own ends.
        return Launch()
    size, rank = int(given["WORLD_SIZE"]), int(given["RANK"])
    local_size = int(given.get("LOCAL_WORLD_SIZE", size))
    local_rank = int(given.get("LOCAL_RANK", rank % local_size))
    if not 0 <= rank < size or not 0 <= local_rank < local_size <= size:
        told = ", ".join(f"{name}={value}" for name, value in given.items())
        raise ValueError(
            f"the environment says {told}; expected ranks from 0 to one below their number. Start "
            "the processes with: torchrun --nproc-per-node N -m gradlab train …"
        )
    return Launch(rank, size, local_rank, local_size)
