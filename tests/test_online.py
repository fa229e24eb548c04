"""Alarms while a run trains: what is raised, kept, done about it, and not raised."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import SmallConfig

from analysis.online import Online
from analysis.synthetic.runs import Cliff, synthetic_run
from gradlab.alarms import Alarm, append_alarms, drop_alarms, read_alarms
from gradlab.run_directory import ALARMS
from gradlab.store.run import open_run
from trainers.learn import TrainingError
from trainers.rundir.checkpoint import last_checkpoint
from trainers.training import train
from trainers.watch.progress import Progress


def looks(tmp_path: Path, online: Online, **run: object) -> list[Alarm]:
    """Alarms of a run that is looked at after every evaluation, as if it were being written."""
    path = synthetic_run(tmp_path / "made.zarr", steps=200, evals=41, **run)  # type: ignore[arg-type]
    alarms: list[Alarm] = []
    for step in open_run(path).evaluations().step_E[1:]:
        alarms += online(path, int(step), until=int(step))
    return alarms


def test_a_cliff_is_raised_once_soon_after_it(tmp_path: Path) -> None:
    alarms = looks(tmp_path, Online(), cliff=Cliff(100, 0.35))
    falls = [alarm for alarm in alarms if alarm.kind == "cliff"]
    assert len(falls) == 1
    assert 100 < falls[0].step <= 140
    assert falls[0].onset is not None
    assert abs(falls[0].onset - 100) <= 15


def test_a_healthy_run_raises_none(tmp_path: Path) -> None:
    assert looks(tmp_path, Online()) == []


def test_alarms_are_kept_cut_lines_left_out_and_repeated_steps_dropped(tmp_path: Path) -> None:
    alarms = [Alarm(10, "cliff", "run", "fell", 5), Alarm(20, "capture", "judge", "took over")]
    append_alarms(tmp_path, alarms[:1])
    append_alarms(tmp_path, alarms[1:])
    with (tmp_path / ALARMS).open("a") as file:
        file.write('{"step": 3')
    assert read_alarms(tmp_path) == tuple(alarms)
    text = (tmp_path / ALARMS).read_text()
    (tmp_path / ALARMS).write_text(text.replace('"step": 10', '"urgency": 2, "step": 10'))
    assert read_alarms(tmp_path) == tuple(alarms), "of a later version, which says more"
    drop_alarms(tmp_path, after_step=15)
    assert read_alarms(tmp_path) == (alarms[0],)
    drop_alarms(tmp_path, after_step=5)
    assert read_alarms(tmp_path) == ()
    drop_alarms(tmp_path / "nowhere", after_step=5)


class Alarming:
    """A watch that raises one alarm after a given step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, store: Path, step: int) -> tuple[Alarm, ...]:
        assert len(open_run(store).evaluations().step_E) == step + 1  # this step's is in it
        return (Alarm(step, "cliff", "run", "It fell.", 1),) if step == self.step else ()


def test_a_resumed_run_has_its_alarms_at_the_same_steps(tmp_path: Path) -> None:
    """Under --alarm slow, an alarm one evaluation later changes every number after it."""
    path = synthetic_run(tmp_path / "run.zarr", evals=21, problems=100, cliff=Cliff(100, 0.35))
    online, first = Online(), None
    steps = [int(step) for step in open_run(path).evaluations().step_E[1:]]
    for step in steps:
        if first := online(path, step, until=step):
            break
    assert first
    assert step > steps[1]
    assert Online()(path, step, until=step) == first
    assert Online()(path, steps[steps.index(step) - 1], until=steps[steps.index(step) - 1]) == ()


@pytest.mark.parametrize("alarm", ["tell", "checkpoint", "slow"])
def test_an_alarm_is_told_marked_and_acted_on(
    small_config: SmallConfig, alarm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(steps=3, eval_every=1, checkpoint_every=3, alarm=alarm)
    train(config, watch=Alarming(2))
    assert "ALARM at step 2: It fell." in capsys.readouterr().out
    assert read_alarms(config.out) == (Alarm(2, "cliff", "run", "It fell.", 1),)
    run = open_run(config.out)
    assert run.run_metric("alarms").value_T.tolist() == [0, 1, 0]
    assert (config.out / "checkpoints" / "step-000002").is_dir() is (alarm != "tell")
    signal = run.update_metric("learning_rate", "generator")
    rate = [signal.value_T[signal.step_T == step][-1] for step in (1, 2, 3)]
    slowed = 0.3 if alarm == "slow" else 1.0
    assert rate == pytest.approx([1e-3, 1e-3, slowed * 1e-3])


def test_stop_ends_after_a_checkpoint_and_can_be_continued(
    small_config: SmallConfig, quiet: Progress
) -> None:
    config = small_config(steps=3, eval_every=1, checkpoint_every=3, alarm="stop")
    with pytest.raises(TrainingError, match=r"stopped after step 2: It fell\. Look: gradlab diag"):
        train(config, quiet, Alarming(2))
    assert last_checkpoint(config.out) == 2
    assert len(open_run(config.out).steps) == 2
    train(replace(config, resume=True), quiet, Alarming(0))
    assert len(open_run(config.out).steps) == 3
    assert len(read_alarms(config.out)) == 1


def test_at_the_last_step_there_is_nothing_to_stop(
    small_config: SmallConfig, quiet: Progress
) -> None:
    config = small_config(steps=1, eval_every=1, alarm="stop")
    train(config, quiet, Alarming(1))
    assert len(read_alarms(config.out)) == 1


def test_a_run_can_be_looked_at_from_its_first_step_on(small_config: SmallConfig) -> None:
    """The step's own row is not there yet when its evaluation is."""
    looked: list[int] = []

    class Looking(Online):
        def __call__(self, store: Path, step: int, **until: int | None) -> tuple[Alarm, ...]:
            found = super().__call__(store, step, **until)
            looked.append(step)
            return found

    train(small_config(steps=2, eval_every=1, alarm="tell"), watch=Looking())
    assert looked == [1, 2]


def test_a_watch_that_fails_is_told_and_the_run_goes_on(
    small_config: SmallConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(store: Path, step: int) -> tuple[Alarm, ...]:
        raise IndexError("no rows")

    config = small_config(steps=2, eval_every=2, alarm="stop")
    train(config, watch=failing)
    assert len(open_run(config.out).steps) == 2
    assert "no look for alarms at step 2: IndexError: no rows" in capsys.readouterr().out


def test_without_a_watch_an_alarm_is_refused(small_config: SmallConfig, quiet: Progress) -> None:
    config = small_config(alarm="tell")
    with pytest.raises(ValueError, match="--alarm tell needs something that judges"):
        train(config, quiet)
    assert not config.out.exists()  # else the corrected command would find a run there


def test_off_costs_no_look(small_config: SmallConfig, quiet: Progress) -> None:
    looked: list[int] = []

    def look(store: Path, step: int) -> tuple[Alarm, ...]:
        looked.append(step)
        return ()

    train(small_config(steps=1), quiet, look)
    assert looked == []


def test_a_line_cut_within_a_character_is_left_out(tmp_path: Path) -> None:
    append_alarms(
        tmp_path, [Alarm(1, "cliff", "run", "fell"), Alarm(2, "cliff", "run", "−5 points")]
    )
    raw = (tmp_path / ALARMS).read_bytes()
    (tmp_path / ALARMS).write_bytes(raw[: raw.index("−".encode()) + 1])
    assert read_alarms(tmp_path) == (Alarm(1, "cliff", "run", "fell"),)
    drop_alarms(tmp_path, after_step=2)
    assert read_alarms(tmp_path) == (Alarm(1, "cliff", "run", "fell"),)


def test_a_file_of_alarms_is_json_lines(tmp_path: Path) -> None:
    append_alarms(tmp_path, [Alarm(1, "cliff", "run", "é")])
    (line,) = (tmp_path / ALARMS).read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["message"] == "é"


def test_alarms_need_neither_torch_nor_detectors() -> None:
    code = "import sys, gradlab.alarms; sys.exit(bool({'torch', 'analysis'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_collapse_of_a_short_run_is_told_at_its_first_low_evaluation(tmp_path: Path) -> None:
    """44 steps, evaluated every 4: what fell at step 8 was once told at 28, too late."""
    for seed in range(3):
        path = synthetic_run(
            tmp_path / f"{seed}.zarr",
            steps=44,
            evals=12,
            problems=200,
            seed=seed,
            cliff=Cliff(8, 0.35),
            row_statistics=False,
        )
        online = Online()
        told = [
            alarm
            for step in open_run(path).evaluations().step_E[1:5]
            for alarm in online(path, int(step), until=int(step))
        ]
        assert [alarm.step for alarm in told][:1] in ([8], [12])
