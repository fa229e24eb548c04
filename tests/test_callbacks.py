"""Training in three lines, and whoever listens is told once the run directory holds the thing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import SmallConfig

from gradlab import open_run
from gradlab.records import EvalRecord, StepRecord
from trainers import Callback, TrainConfig, train
from trainers.watch.progress import Progress

TOLD = [
    ("evaluation", 0), ("step", 1), ("checkpoint", 1), ("step", 2), ("evaluation", 2),
    ("checkpoint", 2), ("step", 3), ("evaluation", 3), ("checkpoint", 3),
]  # fmt: skip
"""Evaluations at 0, every 2 steps and the end; checkpoints at every step."""


class Listener(Callback):
    """Keeps what it is told, and whether the run directory holds it by then."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.told: list[tuple[str, int]] = []
        self.records: list[StepRecord] = []

    def on_step(self, record: StepRecord) -> None:
        self.told.append(("step", record.step))
        self.records.append(record)

    def on_evaluation(self, record: EvalRecord) -> None:
        self.told.append(("evaluation", record.step))
        assert (self.out / "episodes" / f"eval-{record.step:06d}.jsonl.gz").is_file()

    def on_checkpoint(self, path: Path) -> None:
        self.told.append(("checkpoint", int(path.name.removeprefix("step-"))))
        assert (path / "checkpoint.json").is_file()


def test_three_lines_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"steps": 1, "problems_per_step": 2, "samples": 2, "eval_problems": 4}
    out = train(TrainConfig(out=tmp_path / "run", device="cpu", threads=1, **options))
    assert open_run(out).steps.tolist() == [1]


def test_a_callback_is_told_in_order_of_what_is_recorded(
    small_config: SmallConfig, quiet: Progress
) -> None:
    config = small_config(steps=3, checkpoint_every=1)
    listeners = [Listener(config.out), Listener(config.out), Callback()]
    out = train(config, quiet, callbacks=listeners)
    run = open_run(out)
    for listener in listeners[:2]:
        assert isinstance(listener, Listener)
        assert listener.told == TOLD
        told = [record.run.accuracy for record in listener.records]
        assert told == pytest.approx(run.run_metric("accuracy").value_T.tolist())
        assert listener.records[1].run.eval_seconds > 0, "the record as it is stored"


def test_a_callback_that_raises_stops_a_run_that_can_be_continued(
    small_config: SmallConfig, quiet: Progress
) -> None:
    class Stopping(Callback):
        def on_step(self, record: StepRecord) -> None:
            if record.step == 2:
                raise RuntimeError("the disk of the logger is full")

    config = small_config(steps=3, checkpoint_every=1)
    with pytest.raises(RuntimeError, match="logger is full"):
        train(config, quiet, callbacks=[Stopping()])
    listener = Listener(config.out)
    train(replace(config, resume=True), quiet, callbacks=[listener])
    assert listener.told == TOLD[3:], "from the checkpoint of step 1 on"


def test_what_is_no_callback_is_refused_before_anything_is_written(
    small_config: SmallConfig,
) -> None:
    config = small_config()
    for wrong in (print, Listener):
        with pytest.raises(ValueError, match="expected objects of classes that inherit"):
            train(config, callbacks=[wrong])  # type: ignore[list-item]
    assert not config.out.exists()
