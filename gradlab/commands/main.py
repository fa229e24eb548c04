"""Dispatch a command line to its command; exit codes and help.

Everything heavy is imported inside the command that needs it: `gradlab --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from gradlab.commands.audit import AuditOptions, audit
from gradlab.commands.completion import CompletionOptions, completion
from gradlab.commands.demo import DemoOptions, demo
from gradlab.commands.diagnose import DiagnoseOptions, diagnose
from gradlab.commands.figures import FiguresOptions, figures
from gradlab.commands.import_log import ImportOptions, import_log
from gradlab.commands.matrix import MatrixOptions, matrix
from gradlab.commands.note import note
from gradlab.commands.parsing import check_once
from gradlab.commands.prompts import PromptsOptions, prompts
from gradlab.commands.replay import ReplayOptions, replay
from gradlab.commands.serve import ServeOptions, serve
from gradlab.commands.show import ShowOptions, show
from gradlab.commands.train import train
from gradlab.shadowed import take_ours


def complete(arguments: Sequence[str]) -> int:
    """Print what bash or zsh needs to complete commands and options."""
    return completion(arguments, OPTIONS)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train,
    "matrix": matrix,
    "diagnose": diagnose,
    "figures": figures,
    "show": show,
    "prompts": prompts,
    "audit": audit,
    "replay": replay,
    "serve": serve,
    "import": import_log,
    "demo": demo,
    "completion": complete,
}

OPTIONS: dict[str, type[Any]] = {
    "matrix": MatrixOptions,
    "diagnose": DiagnoseOptions,
    "figures": FiguresOptions,
    "show": ShowOptions,
    "prompts": PromptsOptions,
    "audit": AuditOptions,
    "replay": ReplayOptions,
    "serve": ServeOptions,
    "import": ImportOptions,
    "demo": DemoOptions,
    "completion": CompletionOptions,
}
"""What each command but train takes; the options of train are a configuration's."""

REPEATABLE = frozenset({"--with", "--sampler-url", "--sbatch"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(given)
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(given: list[str]) -> int:
    if not given or given[0] in {"-h", "--help", "help"}:
        print(_help())
        return 0
    if given[0] == "--version":
        import importlib.metadata

        print(f"gradlab {importlib.metadata.version('gradlab')}")
        return 0
    if given[0] not in COMMANDS:
        return _fail(f"gradlab: no command '{given[0]}'; expected {', '.join(COMMANDS)}")
    try:
        take_ours()
        check_one_process(given[0])
        check_once(given[1:], REPEATABLE)
        return COMMANDS[given[0]](given[1:])
    except KeyboardInterrupt as stop:
        print(f"\ngradlab {given[0]}: {str(stop) or 'stopped'}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        # Messages are written for the user; a traceback in front of them would hide them.
        if os.environ.get("GRADLAB_TRACEBACK"):
            raise
        return _fail(f"gradlab {given[0]}: {error}")


def check_one_process(command: str) -> None:
    """Raise ValueError for a command that several processes would all do."""
    from trainers.ranks.launch import launched

    launch = launched()
    if launch.size > 1 and command != "train":
        raise ValueError(
            f"{launch.size} processes were started, and only train deals its work to them; run "
            f"gradlab {command} in one, without torchrun or accelerate"
        )


def _fail(message: str) -> int:
    note(message)
    return 2


def _help() -> str:
    lines = [f"  {name:10} {command.__doc__}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "gradlab: gradient dynamics of multi-agent LLM reinforcement learning",
            "",
            "usage: gradlab COMMAND [options]        gradlab COMMAND --help",
            "",
            *lines,
            "",
            "Set GRADLAB_TRACEBACK=1 to see the traceback of an error.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
