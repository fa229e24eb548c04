"""Options out of files and runs: the command line before the file, the file before the preset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gradlab.commands import main as cli
from gradlab.commands.configuration import read_options
from gradlab.commands.train import base_of
from gradlab.commands.training_options import GROUPS, parse_training
from trainers.config import TrainConfig
from trainers.presets import PRESETS, demo_cliff, smollm2

Output = pytest.CaptureFixture[str]

FILE = """
preset = "demo-cliff"
steps = 7
learning_rate = 1
task = "rg:chain_sum"
equalize = false
code-packages = ["numpy"]
out = "runs/from-file"

[kl-coefficient]
aggregator = 0.05

[task-options]
min_digits = 2
strict = true
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "run.toml").write_text(FILE)
    return tmp_path / "run.toml"


def configured(*words: str) -> TrainConfig:
    base = base_of(words)
    parsed = parse_training(TrainConfig, base.values, base.preset, list(PRESETS), words)
    return TrainConfig(**vars(parsed.config) | parsed.kept)


def test_a_file_gives_every_kind_of_value(file: Path) -> None:
    assert read_options(TrainConfig, file) == {
        "preset": "demo-cliff",
        "steps": 7,
        "learning_rate": 1.0,
        "task": "rg:chain_sum",
        "equalize": False,
        "code_packages": ("numpy",),
        "out": Path("runs/from-file"),
        "kl_coefficient": {"aggregator": 0.05},
        "task_options": {"min_digits": "2", "strict": "true"},
    }


def test_the_command_line_wins_over_the_file_and_the_file_over_the_preset(file: Path) -> None:
    config = configured("--config", str(file), "--steps", "9", "--kl-coefficient", "generator", "1")
    assert config.steps == 9, "the command line"
    assert config.kl_coefficient == {"generator": 1.0}
    assert config.task_options == {"min_digits": "2", "strict": "true"}, "the file"
    assert config.learning_rate == 1.0
    assert config.samples == demo_cliff().samples, "the preset that the file names"
    assert configured(f"--config={file}", "--preset=smollm2").model == smollm2().model


def test_the_model_of_a_file_chooses_its_preset(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('model = "smollm2-135m"\n')
    assert configured("--config", str(tmp_path / "a.toml")) == smollm2()


def test_values_that_go_together_only_with_those_of_the_command_line(tmp_path: Path) -> None:
    """What a file and a preset make without the command line is not judged."""
    (tmp_path / "a.toml").write_text("[kl-coefficient]\nsynthesizer = 0.1\n")
    config = configured("--config", str(tmp_path / "a.toml"), "--workflow", "orchestrator_workers")
    assert config.kl_coefficient == {"synthesizer": 0.1}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("stepz = 3", ["there is no option 'stepz'; the nearest is 'steps'"]),
        ("learning-rat = 3", ["the nearest is 'learning-rate'"]),
        ("xyzzy = 3", ["there is no option 'xyzzy'; gradlab train --help lists them"]),
        ("[run]\nsteps = 3", ["there is no option 'run'; options stand at the top of the file"]),
        ("resume = true", ["'resume' says what to do now; expected --resume on the command line"]),
        ("dry_run = true", ["expected --dry-run on the command line"]),
        ('steps = "3"', ["steps is '3'; expected a whole number"]),
        ("steps = 3.5", ["steps is 3.5; expected a whole number"]),
        ("steps = true", ["steps is True; expected a whole number"]),
        ("equalize = 1", ["equalize is 1; expected true or false"]),
        ("out = 1", ["out is 1; expected a path in quotes"]),
        ('dtype = "float16"', ["dtype is 'float16'; expected one of float32, bfloat16"]),
        ("sketch-buckets = 5", ["sketch-buckets is 5; expected one of 0, 4093, 16381"]),
        ("kl-coefficient = 1", ["kl-coefficient is 1; expected a table of names and values"]),
        ('[role-weight]\naggregator = "x"', ["role-weight.aggregator is 'x'; expected a number"]),
        ("code-packages = 'numpy'", ["code-packages is 'numpy'; expected a list"]),
        ("steps = ", ["is no TOML: Invalid value (at end of document)"]),
        ("lora-rank = 1\nlora_rank = 2", ["'lora-rank' is there twice"]),
        ("steps = 0", ["--steps is 0; expected 1 or more"]),
        ("learning-rate = nan", ["--learning-rate is nan"]),
        ('preset = "fast"', ["--preset 'fast' is unknown; expected clean"]),
    ],
)
def test_what_is_wrong_in_a_file_is_told_before_anything_is_written(
    text: str,
    parts: list[str],
    tmp_path: Path,
    capsys: Output,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "run.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    for more in ([], ["--dry-run"]):
        assert cli.main(["train", "--config", "run.toml", *more]) == 2
        error = capsys.readouterr().err
        assert error.startswith("gradlab train: "), error
        assert len(error.splitlines()) == 1
        for part in parts:
            assert part in error
    assert [path.name for path in tmp_path.iterdir()] == ["run.toml"]


def test_a_file_that_is_not_there_is_told(tmp_path: Path, capsys: Output) -> None:
    for path, reason in ((tmp_path / "none.toml", "No such file"), (tmp_path, "Is a directory")):
        assert cli.main(["train", "--config", str(path)]) == 2
        assert f"--config {path} cannot be read: {reason}" in capsys.readouterr().err
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    assert cli.main(["train", "--config", str(tmp_path / "binary.toml")]) == 2
    assert "it is no UTF-8 text" in capsys.readouterr().err


def run_of(path: Path, **options: Any) -> TrainConfig:
    """The directory of a run, as far as --like reads it."""
    config = TrainConfig(out=path, **options)
    path.mkdir()
    about = {
        "config": config.to_json(),
        "versions": {"gradlab": "0"},
        "data": {"sha256": ""},
        "run_id": "r",
    }
    (path / "config.json").write_text(json.dumps(about))
    return config


def test_like_takes_the_options_of_a_run_but_not_where_it_is(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", steps=7, kl_coefficient={"generator": 0.1}, device="cpu")
    config = configured("--like", str(run.out), "--seed", "3")
    expected = vars(run) | {"out": TrainConfig().out, "seed": 3}
    assert vars(config) == expected
    assert not config.resume


def test_like_with_a_file_and_dry_run(tmp_path: Path, file: Path, capsys: Output) -> None:
    run_of(tmp_path / "run", steps=7, samples=3, problems_per_step=2)
    file.write_text("problems-per-step = 5\nsamples = 4\n")
    words = ["train", "--like", str(tmp_path / "run"), "--config", str(file), "--samples", "6"]
    assert cli.main([*words, "--dry-run", "--device", "cpu"]) == 0
    assert "5 problems x 6 samples" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--like", "run", "--preset", "clean"], ["--like run and --preset clean each set all"]),
        (["--like", "run", "--from", "run", "--at", "0", "--out", "o"], ["--from run and --like"]),
        (["--like", "run", "--config", "a.toml"], ["--like run and 'preset' in a.toml clean"]),
        (["--like", "none"], ["none has no config.json: expected the directory of a run"]),
        (["--resume", "--like", "run"], ["--resume continues a run", "not --like"]),
        (["--resume", "--config", "a.toml"], ["--resume continues a run", "not --config"]),
        (["--config"], ["--config needs a value"]),
        (["--steps", "3", "--steps=4"], ["--steps is given 2 times; expected it once"]),
        (["--lora_rank", "3", "--lora-rank", "4"], ["--lora-rank is given 2 times"]),
    ],
)
def test_what_contradicts_is_refused(
    words: list[str],
    parts: list[str],
    tmp_path: Path,
    capsys: Output,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    run_of(Path("run"))
    Path("a.toml").write_text('preset = "clean"\n')
    assert cli.main(["train", *words]) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in parts), error
    assert {path.name for path in tmp_path.iterdir()} == {"run", "a.toml"}


def test_help_groups_options_by_what_they_are_about(capsys: Output) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    about: dict[str, list[str]] = {}
    for line in capsys.readouterr().out.splitlines():
        words = line.strip("╭─╮│ ").split()
        if words[-1:] == ["options"] and len(words) <= 2:
            about[words[0]] = []
        elif about and words:
            about[[*about][-1]].append(words[0])
    assert [*about] == ["options", *GROUPS]
    for group, option in {
        "options": "--config", "run": "--eval-every", "model": "--lora-rank", "task": "--data",
        "workflow": "--routing", "sampling": "--temperature", "credit": "--group-by",
        "loss": "--kl-coefficient", "updates": "--learning-rate", "measurement": "--probe",
    }.items():  # fmt: skip
        assert option in about[group], (group, option)
