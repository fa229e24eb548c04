"""From a configuration to a run directory: training of multi-agent workflows."""

from typing import TYPE_CHECKING

from gradlab.lazily import lazily

__all__ = ["Callback", "TrainConfig", "train"]

if TYPE_CHECKING:
    from trainers.callbacks import Callback
    from trainers.config import TrainConfig
    from trainers.training import train
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "Callback": "trainers.callbacks",
            "train": "trainers.training",
            "TrainConfig": "trainers.config",
        },
    )
