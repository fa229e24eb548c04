"""From a configuration to a run directory: training of multi-agent workflows."""

from typing import TYPE_CHECKING

from gradlab.lazily import lazily

__all__ = ["Callback", "TrainConfig", "train"]

if TYPE_CHECKING:
    from trainers.config import TrainConfig
    from trainers.training import train
    from trainers.watch.callbacks import Callback
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "Callback": "trainers.watch.callbacks",
            "train": "trainers.training",
            "TrainConfig": "trainers.config",
        },
    )
