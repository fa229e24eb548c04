"""From a configuration to a run directory: training of multi-agent workflows."""

from typing import TYPE_CHECKING

from gradlab.lazily import lazily

__all__ = ["TrainConfig", "train"]

if TYPE_CHECKING:
    from trainers.config import TrainConfig
    from trainers.training import train
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "train": "trainers.training",
            "TrainConfig": "trainers.config",
        },
    )
