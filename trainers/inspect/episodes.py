"""Print what every agent said in the episodes of one step."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gradlab.run_directory import CONFIG, Said, beginning, episodes_path, steps_of_episodes
from trainers.rundir.transcripts import read_episodes


def show_episodes(
    run: Path,
    step: int,
    *,
    problem: str | None = None,
    sample: int | None = None,
    is_evaluation: bool = False,
    console: Console | None = None,
) -> None:
    """Print the episodes of one problem, or the list of the step's problems.

    Raises ValueError when the run has no such step or problem, listing what there is.
    """
    console = console or Console()
    if not run.is_dir():
        raise ValueError(f"there is no folder {run}; expected the directory of a run")
    kind: Said = "eval" if is_evaluation else "step"
    path = episodes_path(run, kind, step)
    if not path.is_file():
        raise ValueError(f"{run} has no episodes of {kind} {step}; {_available(run, kind)}")
    by_problem: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for episode in read_episodes(path):
        by_problem[episode["problem"]].append(episode)
    if problem is None:
        if begun := _beginning(run):
            console.print(escape(begun))
        if frozen := _config(run).get("freeze"):
            console.print(escape(f"{', '.join(frozen)}: frozen, said by the base model"))
        _list_problems(by_problem, console)
        return
    if problem not in by_problem:
        raise ValueError(
            f"{kind} {step} has no problem '{problem}'; it has {', '.join(sorted(by_problem))}"
        )
    samples = [episode["sample"] for episode in by_problem[problem]]
    if sample is not None and sample not in samples:
        raise ValueError(
            f"problem '{problem}' of {kind} {step} has no sample {sample}; there are "
            f"{', '.join(map(str, samples))}"
        )
    frozen = _config(run).get("freeze", ())
    for episode in by_problem[problem]:
        if sample is None or episode["sample"] == sample:
            _print_episode(episode, console, frozen)


def _beginning(run: Path) -> str:
    """Where a run that continues another one began; '' for others."""
    origin = _about(run).get("from")
    return f"{run} {beginning(origin)}" if origin else ""


def _about(run: Path) -> dict[str, Any]:
    """config.json of the run; empty where there is none."""
    path = run / CONFIG
    about: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return about


def _config(run: Path) -> dict[str, Any]:
    """The run's options; none where it has no config.json."""
    options: dict[str, Any] = _about(run).get("config", {})
    return options


def _available(run: Path, kind: Said) -> str:
    steps = steps_of_episodes(run, kind)
    if not steps:
        return f"expected a run directory with {kind} episodes in episodes/"
    return f"there are {len(steps)}, from {steps[0]} to {steps[-1]}"


def _list_problems(by_problem: dict[str, list[dict[str, Any]]], console: Console) -> None:
    table = Table("problem", "question", "reference", "solved", box=None)
    for name, episodes in sorted(by_problem.items()):
        solved = sum(episode["outcome"] for episode in episodes)
        table.add_row(
            escape(name),
            escape(shortened(episodes[0]["question"])),
            escape(shortened(episodes[0]["reference"])),
            f"{solved}/{len(episodes)}",
        )
    console.print(table)
    console.print("Give one with --problem.")


def shortened(text: str) -> str:
    """The beginning of a text, on one line: a reference may be a whole program."""
    return text.replace("\n", " ")[:60]


def _print_episode(episode: dict[str, Any], console: Console, frozen: Collection[str] = ()) -> None:
    outcome = "[green]solved[/green]" if episode["outcome"] else "[red]not solved[/red]"
    grade = f", graded {episode['grade']:.2f}" if "grade" in episode else ""
    console.rule(f"{escape(episode['problem'])}, sample {episode['sample']}: {outcome}{grade}")
    console.print(escape(episode["question"]))
    console.print(
        f"reference {escape(episode['reference'])}, answer {escape(str(episode['answer']))}"
    )
    if episode["failure"]:
        console.print(f"[red]given up: {escape(episode['failure'])}[/red]")
    for turn in episode["turns"]:
        facts = [f"{turn['tokens']} tokens"]
        if turn["own_correct"] is not None:
            facts.append("right" if turn["own_correct"] else "wrong")
        if turn["role"] in frozen:
            facts.append("frozen")
        elif turn["reward"] is not None:
            parts = ", ".join(f"{k} {v:.2f}" for k, v in turn.get("components", {}).items())
            facts.append(f"reward {turn['reward']:.2f}" + (f" ({parts})" if parts else ""))
            facts.append(f"advantage {turn['advantage']:+.2f}")
        facts += [name for name, on in (("not parsed", not turn["parse_ok"]),
                                        ("cut", turn["truncated"])) if on]  # fmt: skip
        name = escape(f"{turn['role']}[{turn['number']}]")
        console.print(f"\n[bold]{name}[/bold], round {turn['round'] + 1}: {', '.join(facts)}")
        console.print(escape(turn["prompt"]), style="dim")
        console.print(escape(turn["response"]))
