"""gradlab matrix: train every cell of a plan, here, on a Ray cluster or in a Slurm array."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from gradlab.commands.idle import check_idle
from gradlab.commands.note import note
from gradlab.commands.parsing import parse

if TYPE_CHECKING:
    from trainers.matrix.board import LineBoard, LiveBoard
    from trainers.matrix.engine import Engine
    from trainers.matrix.folder import Folder
    from trainers.matrix.plan import Plan


@dataclass(frozen=True)
class MatrixOptions:
    """Train every cell of an experiment matrix, each an ordinary run in a folder of its own.

    The same command goes on where it was stopped: what is finished is skipped, what was interrupted
    is resumed, what failed stays listed until --retry-failed.
    """

    plan: Positional[str] = ""
    """TOML file of the cells, or the name of a plan that ships (--list)."""
    out: Path | None = None
    """Folder for the runs; default: runs/NAME of the plan."""
    list: bool = False
    """Print the plans that ship."""
    status: Path | None = None
    """Print how far every cell of this folder is, whoever trains it."""
    dry_run: bool = False
    """Add up what the cells take that are not finished: time, memory, disk. Status 2 where the
    problems of a task are not there."""
    at_once: int = 0
    """Cells trained at a time; 0: one here, with --on ray and slurm as many as fit."""
    threads_each: int = 0
    """Threads of a cell; 0: here an equal share of the cores, elsewhere 1."""
    gpus_each: float = 0.0
    """GPUs of a cell with --on ray and slurm. Here, cells take the visible GPUs in turn."""
    on: Literal["here", "ray", "slurm"] = "here"
    """Where: processes of this machine, tasks of a Ray cluster, or an array of Slurm."""
    address: str = ""
    """With --on ray: of a running cluster, e.g. head:6379; without it one is looked for, and else
    begun here."""
    submit: bool = False
    """With --on slurm: submit the script, not only write and print it."""
    sbatch: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """With --on slurm: a line for the head of the script, e.g. --sbatch=--partition=gpu; may be
    given several times."""
    retry_failed: bool = False
    """Whether cells that failed are tried again, from their last checkpoint."""
    spare_disk: float = 1.0
    """GiB; no cell begins while less is free at --out."""
    cell: str = ""
    """Train this one cell of --out, by name or number, in this process."""


def matrix(arguments: Sequence[str]) -> int:
    """Train every cell of an experiment matrix."""
    options = parse(MatrixOptions, "matrix", arguments)
    check_options(options)
    if options.list:
        return list_plans()
    if options.status is not None:
        return print_status(options.status)
    if options.cell:
        return train_one(options)
    if not options.plan:
        raise ValueError(
            "expected a plan: gradlab matrix PLAN.toml, one of gradlab matrix --list, or --status"
        )
    from trainers.matrix.folder import begin
    from trainers.matrix.plan import find_plan, read_plan

    plan = read_plan(find_plan(options.plan))
    check_plan(plan)
    out = options.out or Path("runs") / plan.name
    if options.dry_run:
        return dry_run(plan, out, options)
    folder = begin(plan, out)
    if folder.dropped:
        note(
            f"{len(folder.dropped)} cells of an earlier plan are in {out} and not in this one; "
            f"they are kept and not trained: {', '.join(folder.dropped[:3])}"
        )
    if options.on == "slurm":
        return write_array(folder, options)
    return run_cells(folder, options)


def check_options(options: MatrixOptions) -> None:
    """Raise ValueError for options that do not go together."""
    for name in ("at_once", "threads_each", "gpus_each", "spare_disk"):
        if not getattr(options, name) >= 0:
            raise ValueError(
                f"--{name.replace('_', '-')} is {getattr(options, name)}; expected 0 or more"
            )
    if options.gpus_each and options.on == "here":
        raise ValueError(
            "--gpus-each is for --on ray and slurm; here each cell has one of the GPUs in "
            "CUDA_VISIBLE_DEVICES, in turn"
        )
    if options.address and options.on != "ray":
        raise ValueError(f"--address {options.address} is that of a Ray cluster; add --on ray")
    if (options.submit or options.sbatch) and options.on != "slurm":
        raise ValueError("--submit and --sbatch are about Slurm; add --on slurm")
    if options.on == "slurm" and options.gpus_each != int(options.gpus_each):
        raise ValueError(f"--gpus-each is {options.gpus_each}; Slurm gives whole ones")


def list_plans() -> int:
    from trainers.matrix.plan import read_plan, shipped

    for name, path in shipped().items():
        plan = read_plan(path)
        print(f"{name}: {len(plan.cells)} cells. {' '.join(plan.about.split())}")
    return 0


def check_plan(plan: Plan) -> None:
    """Raise ValueError for what a plan gives and no cell, or not the cell of an axis, looks at."""
    ignored: dict[str, int] = {}
    complaints: dict[str, str] = {}
    for cell in plan.cells:
        try:
            check_idle(cell.config, cell.varied)
        except ValueError as error:
            raise ValueError(
                f"plan {plan.name}, cell {cell.name}: {error}; [[exclude]] the combination"
            ) from error
        for name in cell.given - cell.varied:
            try:
                check_idle(cell.config, {name})
            except ValueError as error:
                ignored[name] = ignored.get(name, 0) + 1
                complaints[name] = str(error)
    for name, count in ignored.items():
        if count == sum(name in cell.given for cell in plan.cells):
            raise ValueError(f"plan {plan.name}: in every cell {complaints[name]}")


def print_status(out: Path) -> int:
    from trainers.matrix.board import plain_table, summary
    from trainers.matrix.folder import open_folder
    from trainers.matrix.state import Watcher

    states = Watcher(open_folder(out)).look()
    for line in plain_table(list(states.values())):
        print(line)
    print(summary(states, 1))
    return 0


def dry_run(plan: Plan, out: Path, options: MatrixOptions) -> int:
    from dataclasses import replace

    from trainers.matrix.estimate import described, kinds_of
    from trainers.matrix.folder import Kept, check_unchanged
    from trainers.matrix.state import is_finished

    check_unchanged(plan, out)
    finished = frozenset(
        cell.name
        for cell in plan.cells
        if is_finished(Kept(cell.name, cell.place, replace(cell.config, out=out / cell.name)))
    )
    kinds = kinds_of(plan.cells)
    for line in described(kinds, finished, max(options.at_once, 1), out):
        print(line)
    return 2 if any(kind.missing for kind in kinds) else 0


def train_one(options: MatrixOptions) -> int:
    """Train a cell in this process; what an engine starts."""
    if options.out is None:
        raise ValueError(f"--cell {options.cell}: expected --out with the folder of the matrix")
    return train_named(options.out, options.cell, options.threads_each, options.retry_failed)


def train_named(out: Path, wanted: str, threads: int, retry_failed: bool) -> int:
    """Train a cell by its name or number; its exit status."""
    from analysis.online import Online
    from trainers.matrix.folder import open_folder
    from trainers.matrix.state import state_of
    from trainers.matrix.work import train_cell
    from trainers.training import train

    folder = open_folder(out)
    cell = folder.cell(wanted)
    state = state_of(folder, cell)
    if state.status == "failed" and not retry_failed:
        raise ValueError(
            f"cell {cell.name} failed before ({state.said}); --retry-failed tries it again"
        )

    def trained(config: Any, callbacks: Any) -> None:
        train(config, watch=Online(), callbacks=callbacks)

    return train_cell(folder, cell, trained, threads=threads)


def write_array(folder: Folder, options: MatrixOptions) -> int:
    from trainers.matrix.run import unfinished
    from trainers.matrix.slurm import Job, submit, write_script
    from trainers.matrix.state import Watcher

    names = unfinished(Watcher(folder).look(), options.retry_failed)
    if not names:
        print("no cell is left for an array: all are finished, running or failed")
        return 0
    job = Job(
        options.threads_each or 1, int(options.gpus_each), options.at_once, options.sbatch,
        options.retry_failed,
    )  # fmt: skip
    path = write_script(folder, names, job)
    print(path.read_text(), end="")
    note(f"written: {path}; {len(names)} tasks")
    if options.submit:
        print(submit(path))
    else:
        note(f"Next: sbatch {path}, or the same command with --submit")
    note(f"Then: gradlab matrix --status {folder.out}")
    return 0


def run_cells(folder: Folder, options: MatrixOptions) -> int:
    from trainers.matrix.run import Runner, last_words

    engine = engine_of(folder, options)
    with closing(board_of(options)) as board, told_to_stop():
        runner = Runner(
            folder, engine, board,
            retry_failed=options.retry_failed, spare_disk=options.spare_disk,
        )  # fmt: skip
        states = runner.run()
    is_whole = last_words(states, note)
    if is_whole:
        print(f"done: all of {len(states)} in {folder.out}")
    return 0 if is_whole else 1


def engine_of(folder: Folder, options: MatrixOptions) -> Engine:
    if options.on == "ray":
        from trainers.matrix.cluster import Cluster

        return Cluster(
            folder, train_named,
            address=options.address, at_once=options.at_once, threads=options.threads_each or 1,
            gpus=options.gpus_each, retry_failed=options.retry_failed,
        )  # fmt: skip
    from trainers.matrix.processes import Processes

    return Processes(folder, max(options.at_once, 1), options.threads_each, options.retry_failed)


def board_of(options: MatrixOptions) -> LiveBoard | LineBoard:
    from rich.console import Console

    from trainers.matrix.board import LineBoard, LiveBoard

    console = Console()
    kind = LiveBoard if console.is_terminal else LineBoard
    return kind(console, options.at_once)


@contextmanager
def told_to_stop() -> Iterator[None]:
    """SIGTERM stops a matrix as Ctrl-C does."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt("stopped; the same command goes on")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        sys.stdout.flush()
