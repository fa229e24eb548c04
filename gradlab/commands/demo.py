"""gradlab demo: train three small runs, diagnose them and draw the figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from gradlab.commands.parsing import parse
from gradlab.commands.side_by_side import num_cores, train_side_by_side
from gradlab.run_directory import is_trained, is_whole, page_path


@dataclass(frozen=True)
class DemoOptions:
    """Train three runs on the embedded model, diagnose them and draw the figures."""

    out: Path = Path("runs/demo")
    """Directory to write; runs that are already finished there are kept."""


def demo(arguments: Sequence[str]) -> int:
    """Train three small runs, diagnose them and draw the figures."""
    options = parse(DemoOptions, "demo", arguments)
    from rich.console import Console

    from analysis.diagnosis import diagnose as run_diagnosis
    from analysis.report.page import write_page
    from figures.make import make_figures
    from gradlab.store.run import open_run
    from trainers.presets import PRESETS
    from trainers.training import train as run_training

    console = Console()
    configs = {
        name.removeprefix("demo-"): make()
        for name, make in PRESETS.items()
        if name.startswith("demo-")
    }
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out {options.out} is a file; expected a folder for the runs")
    runs = {name: options.out / name for name in configs}
    missing = []
    for name, config in configs.items():
        if is_finished(runs[name], config.steps):
            console.print(f"[bold]{runs[name]}[/bold]: finished before, kept", soft_wrap=True)
        else:
            missing.append(name)
    if len(missing) > 1 and num_cores() > 1:
        train_side_by_side(
            {name: train_options(f"demo-{name}", runs[name]) for name in missing},
            partial(console.print, soft_wrap=True, markup=False),
        )
    else:
        for name in missing:
            resume = is_trained(runs[name])
            run_training(replace(configs[name], out=runs[name], resume=resume))
    console.rule("What was found")
    for path in runs.values():
        run = open_run(path)
        diagnosis = run_diagnosis(run)
        write_page(diagnosis, run, page_path(path))
        console.print(f"[bold]{path}[/bold]: {diagnosis.verdict}", soft_wrap=True)
        console.print(f"  page: {page_path(path)}", soft_wrap=True)
    written = make_figures(list(runs.values()), options.out / "figures")
    console.print(f"{len(written)} files of figures in {options.out / 'figures'}", soft_wrap=True)
    console.print(f"Next: gradlab diagnose {runs['cliff']}", soft_wrap=True)
    return 0


def train_options(preset: str, out: Path) -> list[str]:
    """Options of `gradlab train` that train a preset in `out`, or go on with it there."""
    return ["--resume" if is_trained(out) else f"--preset={preset}", f"--out={out}"]


def is_finished(run: Path, steps: int) -> bool:
    """Whether a run got to its last step; its store is closed after Ctrl-C and errors as well."""
    from gradlab.store.run import open_run

    # The last checkpoint is written after the last step and the last evaluation.
    return is_whole(run, steps) and open_run(run).closed
