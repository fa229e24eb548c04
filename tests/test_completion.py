"""Completion as a shell asks for it: real bash, and zsh where there is one."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import termios
from pathlib import Path

import pytest

from gradlab.commands import main as cli
from trainers.presets import PRESETS
from trainers.tasks.sources.catalogue import SOURCES

Output = pytest.CaptureFixture[str]


@pytest.fixture
def script(tmp_path: Path, capsys: Output) -> Path:
    assert cli.main(["completion", "bash"]) == 0
    (tmp_path / "gradlab.bash").write_text(capsys.readouterr().out)
    return tmp_path / "gradlab.bash"


def offered(script: Path, *words: str) -> list[str]:
    """What bash would offer for the last word."""
    program = (
        'set -u; source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        '_gradlab; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", program, "_", str(script), *words],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tr"], ["train"]),
        (["--v"], ["--version"]),
        (["completion", ""], ["bash", "zsh"]),
        (["train", "--dt"], ["--dtype"]),
        (["train", "--dtype", ""], ["float32", "bfloat16", "float64"]),
        (["train", "--dtype", "b"], ["bfloat16"]),
        (["train", "--dtype", "=", "b"], ["bfloat16"]),
        (["train", "--dtype", "="], ["float32", "bfloat16", "float64"]),
        (["train", "--dtype=b"], ["--dtype=bfloat16"]),  # where = parts no words
        (["train", "--routing", "a"], ["agents"]),
        (["train", "--steps", "3", "--no-n"], ["--no-normalize-std"]),
        (["train", "--sketch-buckets", ""], ["0", "4093", "16381"]),
        (["train", "--preset", ""], list(PRESETS)),
        (["train", "--task", ""], list(SOURCES)),
        (["replay", "runs/a", "--w"], ["--with"]),
        (["matrix", "paper-t"], ["paper-tiny"]),
        (["matrix", "sharing", "--on", ""], ["here", "ray", "slurm"]),
        (["import", "x.log", "--kind", "c"], ["console", "csv"]),
        (["train", "--out", "ru"], []),
        (["diagnose", "ru"], []),
        (["nothing", "--"], []),
    ],
)
def test_bash_offers(words: list[str], expected: list[str], script: Path) -> None:
    assert offered(script, "gradlab", *words) == expected


def test_bash_offers_every_command(script: Path) -> None:
    assert {*cli.COMMANDS} <= {*offered(script, "gradlab", "")}


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_bash_offers_what_help_names(command: str, script: Path, capsys: Output) -> None:
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    named = {
        found for line in lines for found in re.findall(r"^[│ ] ?(?:-h, )?(--[a-z][\w-]*)", line)
    }  # at the start of its line in a box
    assert {*offered(script, "gradlab", command, "--")} == named


def test_names_of_files_are_the_shell_s_own(script: Path) -> None:
    program = f"source {script}; complete -p gradlab"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "complete -o default -F _gradlab gradlab"


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
def test_zsh_takes_it(tmp_path: Path, capsys: Output) -> None:
    assert cli.main(["completion", "zsh"]) == 0
    (tmp_path / "gradlab.zsh").write_text(capsys.readouterr().out)
    program = (
        f"autoload -U compinit && compinit -u -d {tmp_path}/dump; source {tmp_path}/gradlab.zsh; "
        "print $_comps[gradlab]; emulate -L ksh; COMP_WORDS=(gradlab train --dtype b); "
        "COMP_CWORD=3; _gradlab; print -l $COMPREPLY"
    )
    done = subprocess.run(["zsh", "-f", "-c", program], capture_output=True, text=True, check=True)
    first, *words = done.stdout.splitlines()
    assert "_bash_complete" in first
    assert words == ["bfloat16"]


class Terminal:
    """A shell that believes that somebody types."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.screen = ""
        self.process, self.terminal = pty.fork()
        if self.process == 0:
            os.chdir(folder)
            kept = {"PATH": os.environ["PATH"], "TERM": "dumb", "HOME": str(folder), "PS1": "> "}
            os.execvpe(command[0], command, kept)
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))

    def type(self, text: str, until: str) -> str:
        """The screen since then, once `until` is on it."""
        self.screen = ""
        os.write(self.terminal, text.encode())
        while until not in self.screen:
            ready, _, _ = select.select([self.terminal], [], [], 20)
            assert ready, f"after {text!r} there is no {until!r} in {self.screen!r}"
            said = os.read(self.terminal, 65536).decode(errors="replace")
            self.screen += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said)
        return self.screen

    def close(self) -> None:
        os.close(self.terminal)
        os.waitpid(self.process, 0)


@pytest.mark.parametrize(
    "command",
    [
        ["bash", "--norc", "--noprofile", "-i"],
        pytest.param(
            ["zsh", "-f", "-i"],
            marks=pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh"),
        ),
    ],
    ids=lambda command: command[0],
)
def test_who_types_gets_the_rest_of_the_word(
    command: list[str], tmp_path: Path, capsys: Output
) -> None:
    """Of a command, an option, its value after a blank and after =, and a file."""
    assert cli.main(["completion", command[0]]) == 0
    (tmp_path / "gradlab.sh").write_text(capsys.readouterr().out)
    (tmp_path / "problems.jsonl").touch()
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    shell = Terminal(command, tmp_path)
    try:
        # The answer is another text than what is typed, which the terminal shows, too.
        shell.type("source ./gradlab.sh && echo is$((40 + 2))read\n", "is42read")
        for typed, rest in (
            ("gradlab tra\t", "gradlab train "),
            ("gradlab train --work\t", "gradlab train --work"),
            ("flow\t", "flow"),
            (" vo\t", "voting "),
            ("--dtype=b\t", "--dtype=bfloat16"),
            (" --data prob\t", "problems.jsonl "),
            ("--data=prob\t", "--data=problems.jsonl"),
            (" --out runs/\t", "runs/mine/"),
            (" --no-norm\t", "--no-normalize-std "),
        ):
            shell.type(typed, rest)
    finally:
        shell.close()
