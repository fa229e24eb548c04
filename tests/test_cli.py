"""The commands as a user types them: fast help, errors of one line, exit status 2."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from gradlab.commands import main as cli
from gradlab.commands.demo import is_finished

Output = pytest.CaptureFixture[str]


def modules_after(*arguments: str) -> set[str]:
    """Top-level modules loaded by a command in a fresh interpreter."""
    program = (
        "import sys, contextlib, io\n"
        "from gradlab.commands.main import main\n"
        f"with contextlib.redirect_stdout(io.StringIO()): assert main({list(arguments)!r}) == 0\n"
        "print(*{name.partition('.')[0] for name in sys.modules})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"], ["--version"]])
def test_help_and_version_load_nothing_heavy(arguments: list[str]) -> None:
    loaded = modules_after(*arguments)
    assert "gradlab" in loaded
    assert not loaded & {"torch", "transformers", "peft", "zarr", "xarray", "matplotlib", "scipy"}


def test_help_names_every_command(capsys: Output) -> None:
    assert cli.main([]) == 0
    text = capsys.readouterr().out
    for command in cli.COMMANDS:
        assert f"  {command}" in text
    assert "GRADLAB_TRACEBACK" in text


def test_version(capsys: Output) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"gradlab {importlib.metadata.version('gradlab')}"


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_every_command_explains_its_options(command: str, capsys: Output) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: gradlab {command}" in text
    if command == "train":
        assert "Learning rate of AdamW" in text, "docstrings of fields are the help"
        assert "Voting-IP-1.7B-Math" in text
        lines = [line.strip("│ ") for line in text.splitlines()]
        for option in ("--preset STR", "--dry-run"):
            assert any(line.startswith(option) for line in lines), "in a box, as all options"


def test_help_breaks_no_line_in_mid_sentence(
    capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Line breaks of docstrings are not those of a terminal."""
    monkeypatch.setenv("COLUMNS", "100")
    for command in ("train", "replay", "prompts"):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        # A line with room for the first word of the next one, and no end of a sentence, was broken.
        lines = [line[1:-1] for line in capsys.readouterr().out.splitlines() if line[:1] == "│"]
        for line, following in itertools.pairwise(lines):
            words, start = following.split(), len(line) - len(line.lstrip())
            is_text = start > 10 and following.startswith(" " * start) and words
            if is_text and not line.rstrip().endswith((".", ")", ":")):
                assert len(line.rstrip()) + 1 + len(words[0]) > len(line) - 1, (line, following)


def test_a_misspelt_preset_or_dry_run_is_found(capsys: Output) -> None:
    for wrong, right in (("--prest", "--preset"), ("--dryrun", "--dry-run")):
        with pytest.raises(SystemExit) as stop:
            cli.main(["train", wrong, "clean"])
        assert stop.value.code == 2
        assert right in capsys.readouterr().err


def assert_told(output: Output, *parts: str) -> None:
    """The error is short, starts with the command, and holds what is expected; no traceback."""
    error = output.readouterr().err
    assert error.startswith("gradlab")
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1, error
    for part in parts:
        assert part in error, error


def test_an_unknown_command_lists_the_commands(capsys: Output) -> None:
    assert cli.main(["trian"]) == 2
    assert_told(
        capsys,
        "no command 'trian'",
        "train, matrix, diagnose, figures, show, prompts, audit, replay, serve, import, demo, "
        "completion",
    )


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--task", "chess"], ["task 'chess' is unknown; expected one of arithmetic"]),
        (["--model", "./nowhere"], ["--model ./nowhere: cannot be loaded", "local directory"]),
        (["--task", "gsm8k", "--data", "none.jsonl"], ["no file none.jsonl"]),
        (["--preset", "fast"], ["--preset 'fast' is unknown; expected clean, faithful"]),
        (["--preset"], ["--preset needs a value"]),
        (["--resume", "--out", "nowhere"], ["nowhere holds no config.json"]),
        (["--resume", "--preset", "clean"], ["--resume continues a run as it was", "not --preset"]),
        (
            ["--kl-coefficient", "aggregator"],
            ["--kl-coefficient was given 'aggregator'; expected pairs of a role and a number"],
        ),
        (
            ["--role-weight", "aggregator", "x"],
            ["--role-weight was given 'aggregator x'; expected"],
        ),
        (["--task-options", "size"], ["--task-options was given 'size'", "min_digits 2"]),
        (["--steps", "0"], ["--steps is 0; expected 1 or more"]),
        (["--routing", "isloated"], ["cannot read 'isloated'; expected 'shared', 'isolated'"]),
        (["--routing", "judge=a,generator=b"], ["names role 'judge'; the workflow has generator"]),
        (["--kl-coefficient", "judge", "0.1"], ["names role 'judge'; workflow voting has"]),
        (["--device", "tpu"], ["--device is 'tpu'; expected cpu, cuda, cuda:1, …, or auto"]),
    ],
)
def test_train_tells_what_is_wrong(
    options: list[str],
    parts: list[str],
    capsys: Output,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    device = [] if "--device" in options else ["--device", "cpu"]
    assert cli.main(["train", *device, *options]) == 2
    assert_told(capsys, "gradlab train: ", *parts)
    assert list(tmp_path.iterdir()) == [], "a run that cannot begin leaves nothing behind"


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--dtype", "float8"], "--dtype"),
        (["--stepz", "3"], "--stepz"),
        (["--steps", "many"], "--steps"),
    ],
)
def test_an_option_that_cannot_be_parsed_exits_with_2(
    options: list[str], part: str, capsys: Output
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", *options])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert part in " ".join(error.replace("│", " ").split()), error


def test_the_traceback_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADLAB_TRACEBACK", "1")
    with pytest.raises(ValueError, match="is unknown"):
        cli.main(["train", "--task", "chess"])


@pytest.mark.parametrize(
    ("command", "options"),
    [("diagnose", []), ("figures", []), ("show", ["--step", "1"])],
)
def test_a_path_without_a_run_is_told(
    command: str, options: list[str], capsys: Output, tmp_path: Path
) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        out = ["--out", str(tmp_path / "figures")] if command == "figures" else []
        assert cli.main([command, str(path), *options, *out]) == 2
        assert_told(capsys, f"gradlab {command}: ", str(path))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, made by the command itself."""
    out = tmp_path_factory.mktemp("cli") / "run"
    options = {
        "--out": out, "--steps": 2, "--eval-every": 1, "--problems-per-step": 2, "--samples": 2,
        "--eval-problems": 4, "--threads": 1, "--lora-rank": 2, "--device": "cpu",
        "--kl-coefficient": "aggregator 0.01",
    }  # fmt: skip
    words = [word for pair in options.items() for part in pair for word in str(part).split()]
    assert cli.main(["train", *words]) == 0
    return out


def test_train_says_what_comes_next(run: Path, capsys: Output) -> None:
    assert cli.main(["train", "--resume", "--out", str(run)]) == 0
    assert f"Next: gradlab diagnose {run}" in capsys.readouterr().out


def test_an_existing_run_is_refused_in_one_line(run: Path, capsys: Output) -> None:
    assert cli.main(["train", "--out", str(run)]) == 2
    assert_told(capsys, "holds a run; nothing was overwritten", "--resume")


def test_show_lists_and_prints(run: Path, capsys: Output) -> None:
    assert cli.main(["show", str(run), "--step", "1"]) == 0
    listed = capsys.readouterr().out
    problem = next(line.split()[0] for line in listed.splitlines() if line.startswith(" sum-"))
    assert cli.main(["show", str(run), "--step", "1", "--problem", problem]) == 0
    text = capsys.readouterr().out
    assert "generator[0], round 1" in text
    assert "advantage" in text
    assert cli.main(["show", str(run), "--step", "2", "--eval"]) == 0
    assert cli.main(["show", str(run), "--step", "5"]) == 2
    assert_told(capsys, "gradlab show: ", "there are 2, from 1 to 2")


def test_the_demo_keeps_finished_runs_and_continues_others(run: Path, tmp_path: Path) -> None:
    """A run that was stopped by Ctrl-C has a closed store too, but not all of its steps."""
    assert is_finished(run, 2)
    assert not is_finished(run, 60)
    assert not is_finished(tmp_path / "nowhere", 2)


def test_a_diagnosis_of_a_short_run_says_what_is_missing(run: Path, capsys: Output) -> None:
    assert cli.main(["diagnose", str(run), "--json", "--no-page"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"]
    assert not (run / "report.html").exists()
    assert cli.main(["diagnose", str(run)]) == 0
    assert (run / "report.html").is_file()
    assert "page: " in capsys.readouterr().err


def test_an_interrupt_is_no_traceback(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt("stopped after step 3; continue with: gradlab train --resume")

    monkeypatch.setitem(cli.COMMANDS, "train", interrupted)
    assert cli.main(["train"]) == 130
    assert "continue with" in capsys.readouterr().err


def test_figures_come_as_pdf_png_and_csv(run: Path, capsys: Output, tmp_path: Path) -> None:
    assert cli.main(["figures", str(run), "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(path.stat().st_size > 0 for path in files)
    pdf, png, csv = (
        {path.stem for path in files if path.suffix == suffix}
        for suffix in (".pdf", ".png", ".csv")
    )
    assert pdf == png != set()
    assert pdf <= csv, "every figure comes with its numbers"


def test_the_exit_status_reaches_the_shell() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gradlab", "show", "/nowhere", "--step", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("gradlab show: ")
