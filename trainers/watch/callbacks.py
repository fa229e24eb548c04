"""Tell others of a run while it trains: loggers, dashboards, people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gradlab.records import EvalRecord, StepRecord


class Callback:
    """Told of steps, evaluations and checkpoints once the run directory holds them.

    Methods that are not written anew do nothing. What they raise stops the run as any error does;
    it can be continued from its last checkpoint.

    Example:
        >>> class Logger(Callback):
        ...     def on_evaluation(self, record):
        ...         print(record.step, (record.correct_PS == 1).mean())
        >>> train(config, callbacks=[Logger()])
    """

    def on_step(self, record: StepRecord) -> None:
        """A training step was recorded."""

    def on_evaluation(self, record: EvalRecord) -> None:
        """An evaluation was recorded: of the base model, then after the step that it follows."""

    def on_checkpoint(self, path: Path) -> None:
        """A checkpoint was written to this folder."""


class Callbacks(Callback):
    """Several, told in their order.

    Raises ValueError for what is no callback, before a run begins.
    """

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        for callback in callbacks:
            if not isinstance(callback, Callback):
                raise ValueError(
                    f"callbacks holds {callback!r}; expected objects of classes that inherit from "
                    "trainers.Callback"
                )
        self.callbacks = tuple(callbacks)

    def on_step(self, record: StepRecord) -> None:
        for callback in self.callbacks:
            callback.on_step(record)

    def on_evaluation(self, record: EvalRecord) -> None:
        for callback in self.callbacks:
            callback.on_evaluation(record)

    def on_checkpoint(self, path: Path) -> None:
        for callback in self.callbacks:
            callback.on_checkpoint(path)
