"""What makes no sense is refused before anything is written: what, expected, got."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradlab.commands import main as cli

Output = pytest.CaptureFixture[str]
LONG = "x" * 300
HUGE = "100000000000000000000"  # 1e20


def told(words: list[str], output: Output) -> str:
    """The one line that a command is refused with."""
    assert cli.main(words) == 2
    error = output.readouterr().err
    assert "Traceback" not in error
    assert "[Errno" not in error
    return " ".join(error.replace("│", " ").split())


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (
            "--role-weight aggregator inf",
            ["--role-weight of aggregator is inf; expected 0 or more"],
        ),
        ("--role-weight aggregator nan", ["--role-weight of aggregator is nan; expected"]),
        ("--role-weight aggregator 1e308", ["is 1e+308; expected 0 or more, at most 1e+06"]),
        ("--kl-coefficient aggregator inf", ["--kl-coefficient of aggregator is inf; expected"]),
        ("--role-clip aggregator inf", ["--role-clip of aggregator is inf; expected more than 0"]),
        ("--kl-coefficient", ["--kl-coefficient was given ''; expected pairs of a role and"]),
        ("--role-weight --steps 3", ["--role-weight was given ''; expected pairs"]),
        ("--kl-coefficient generator 1 generator 2", ["names 'generator' twice; expected it once"]),
        ("--temperature 1e308", ["--temperature is 1e+308; expected at most 1,000"]),
        ("--temperature nan", ["--temperature is nan; expected more than 0"]),
        ("--temperature 1e-300", ["--temperature is 1e-300; expected 0.0001 or more"]),
        ("--weight-decay 1e308", ["--weight-decay is 1e+308; expected at most 1,000,000"]),
        ("--weight-decay nan", ["--weight-decay is nan"]),
        ("--weight-decay 2000", ["--weight-decay is 2000 with --learning-rate 0.001; expected a"]),
        ("--learning-rate 1e308", ["--learning-rate is 1e+308; expected at most 10"]),
        ("--learning-rate nan", ["--learning-rate is nan; expected more than 0"]),
        ("--clip-norm 1e308", ["--clip-norm is 1e+308; expected at most 1,000,000"]),
        ("--entropy-coefficient 1e308", ["--entropy-coefficient is 1e+308; expected at most"]),
        (f"--steps {HUGE}", ["--steps is 1e+20; expected at most 1,000,000,000"]),
        (f"--problems-per-step {HUGE}", ["--problems-per-step is 1e+20; expected at most"]),
        (f"--rows-per-update {HUGE}", ["--rows-per-update is 1e+20; expected at most"]),
        (f"--samples {HUGE}", ["--samples is 1e+20; expected at most 1,000,000"]),
        (f"--max-response-tokens {HUGE}", ["--max-response-tokens is 1e+20; expected at most"]),
        (f"--micro-tokens {HUGE}", ["--micro-tokens is 1e+20; expected at most"]),
        (f"--lora-rank {HUGE}", ["--lora-rank is 1e+20; expected at most 65,536"]),
        (f"--lora-alpha {HUGE}", ["--lora-alpha is 1e+20; expected at most"]),
        (f"--threads {HUGE}", ["--threads is 1e+20; expected at most 4,096"]),
        (f"--seed {HUGE}", ["--seed is 1e+20; expected at most"]),
        ("--seed -1", ["--seed is -1; expected 0 or more"]),
        ("--replay-seed -1", ["--replay-seed is -1; expected 0 or more"]),
        (f"--code-workers {HUGE}", ["--code-workers is 1e+20; expected at most"]),
        ("--data afile", ["--data afile is given, and the problems of task 'arithmetic' are"]),
        ("--data afile --task programs", ["problems of task 'programs' are generated"]),
        ("--data afile --task rg:chain_sum", ["problems of task 'rg:chain_sum' are generated"]),
        ("--device cuda:99", ["--device cuda:99: torch sees"]),
        ("--out /dev/null", ["--out /dev/null is a file; expected a directory to create"]),
        ("--out afile", ["--out afile is a file; expected a directory to create"]),
        ("--out afile/below/it", ["--out afile/below/it:", "afile is a file; expected a folder"]),
        (f"--out {LONG}", ["--out holds 'xxxxxxxxxxxxxxxxxxxx…', of 300 bytes; expected a path"]),
        (f"--out runs/{LONG}/a", ["--out holds 'xxxx", "parts of at most 255"]),
        (f"--out {'/'.join(['y' * 200] * 30)}", ["of 6029 bytes; expected a path of at most 4096"]),
        (f"--task file --data {LONG}", ["--data holds 'xxx", "of 300 bytes"]),
        (f"--config {LONG}", ["--config xxx", "cannot be read: File name too long"]),
        ("--steps 3 --steps 4", ["--steps is given 2 times; expected it once"]),
        ("--dry-run --dry-run", ["--dry-run is given 2 times; expected it once"]),
        ("--mix 0.3", ["--mix is given and would do nothing: expected --reward mix with it"]),
        (
            "--fixed-updates 3",
            ["--fixed-updates is given and would do nothing: expected --updates"],
        ),
        ("--workers 2", ["--workers is given", "expected --workflow orchestrator_workers with it"]),
        (
            "--workflow solo --votes 2",
            ["--votes is given", "expected --workflow voting or majority with it"],
        ),
        ("--rounds 2", ["--rounds is given", "expected --workflow evaluator_optimizer with it"]),
        ("--task programs --difficulty 3", ["--difficulty is given", "--task arithmetic with it"]),
        ("--keep-state-every 5", ["--keep-state-every is given", "expected --keep-states with it"]),
        ("--coherence-window 5", ["--coherence-window is given", "--coherence-damping or --role-"]),
        ("--resume --steps 5", ["--resume continues a run as it was configured", "not --steps"]),
        (
            "--from afile --at 1 --like afile --out o",
            ["--from afile and --like afile each set all"],
        ),
    ],
)
def test_train_refuses(
    options: str,
    parts: list[str],
    tmp_path: Path,
    capsys: Output,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("afile").touch()
    error = told(["train", *options.split()], capsys)
    for part in parts:
        assert part in error, error
    assert [path.name for path in tmp_path.iterdir()] == ["afile"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("refusals") / "run"
    words = (
        f"train --out {out} --steps 2 --checkpoint-every 1 --eval-every 1 --problems-per-step 2 "
        "--samples 2 --eval-problems 4 --threads 1 --lora-rank 2 --device cpu"
    )
    assert cli.main(words.split()) == 0
    return out


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("diagnose RUN --no-page --page p.html", ["--no-page writes no page, and --page p.html"]),
        ("diagnose RUN --page .", ["--page . is a folder; expected the file to write"]),
        ("diagnose RUN --page no/p.html", ["--page no/p.html: there is no folder no"]),
        (f"diagnose RUN --page {LONG}", ["--page holds 'xxx", "of 300 bytes"]),
        (f"diagnose {LONG}", ["--run holds 'xxx", "of 300 bytes"]),
        ("diagnose RUN --until -1", ["--until is -1; expected a training step"]),
        (
            "replay RUN --with lr:0.5 --from 1 --seeds 1000000",
            ["--seeds is 1000000; expected 1 to"],
        ),
        ("replay RUN --with lr:0.5 --from 1 --seeds 0", ["--seeds is 0; expected 1 to 100"]),
        (f"replay RUN --with lr:0.5 --from 1 --steps {HUGE}", ["--steps is 1e+20; expected at"]),
        (f"replay RUN --with lr:0.5 --from 1 --name {LONG}", ["--name has 300 characters (xxx"]),
        ("replay RUN --with lr:0.5 --with lr:0.5 --from 1", ["--with lr:0.5 is given 2 times"]),
        ("figures RUN --out afile", ["afile is a file; expected a folder to write"]),
        (f"figures RUN --out {LONG}", ["--out holds 'xxx", "of 300 bytes"]),
        ("show RUN --step -1", ["no episodes of step -1; there are 2, from 1 to 2"]),
        ("show RUN --step 1 --sample 0 --problem none", ["none"]),
        ("show RUN --step 1 --step 2", ["--step is given 2 times"]),
        ("demo --out afile", ["--out afile", "is a file; expected a folder"]),
        (f"demo --out {LONG}", ["--out holds 'xxx", "of 300 bytes"]),
        (f"import afile --out {LONG}", ["--out holds 'xxx", "of 300 bytes"]),
        ("import afile afile --out o", ["afile is given 2 times; expected each source once"]),
        (f"audit {LONG}", ["--run holds 'xxx", "of 300 bytes"]),
        (f"prompts --votes {HUGE}", ["--votes is 1", "expected 1 to 16"]),
    ],
)
def test_commands_refuse(
    words: str,
    parts: list[str],
    run: Path,
    tmp_path: Path,
    capsys: Output,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("afile").touch()
    before = {*run.rglob("*")}
    error = told([str(run) if word == "RUN" else word for word in words.split()], capsys)
    for part in parts:
        assert part in error, error
    assert [path.name for path in tmp_path.iterdir()] == ["afile"]
    assert {*run.rglob("*")} == before
