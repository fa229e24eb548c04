"""The commands, from train to demo. The one file that looks up the layers.

Everything heavy is imported inside the command that needs it: `gradlab --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gradlab.commands.options import (
    AuditOptions,
    DemoOptions,
    DiagnoseOptions,
    FiguresOptions,
    ImportOptions,
    PromptsOptions,
    ReplayOptions,
    ShowOptions,
)
from gradlab.commands.parsing import check_pairs, parse, parse_training, take_option

if TYPE_CHECKING:
    from analysis.findings import Diagnosis
    from gradlab.store.run import Run
    from trainers.replay.arms import ReplayPlan


def train(arguments: Sequence[str]) -> int:
    """Train with instrumentation on."""
    from trainers.config import TrainConfig
    from trainers.presets import PRESETS, preset

    if "--resume" in arguments:
        _refuse_other_options(arguments)
    check_pairs(TrainConfig, arguments)
    _, name = take_option(arguments, "--preset")
    _, source = take_option(arguments, "--from")
    _check_source(arguments, source, name)
    if source is None:
        name = name or _preset_for(arguments)
        default = preset(name)
    else:
        from trainers.replay.begin import begin, check_fits, config_of, starting_step

        default = config_of(Path(source))
    parsed = parse_training(TrainConfig, default, name or "", list(PRESETS), arguments)
    config = parsed.config
    if source is not None:
        check_fits(parsed.source, default, config)
    config = replace(config, **parsed.kept)
    if parsed.dry_run:
        from trainers.preview.dryrun import dry_run

        if source is not None:
            first = starting_step(parsed.source, parsed.at, config.steps)
            print(f"from        {source}, step {first}: what follows is about the steps after it")
            config = replace(config, steps=config.steps - first)
        dry_run(config)
        return 0
    from analysis.online import Online
    from trainers.training import Interrupted
    from trainers.training import train as run_training

    if source is not None:
        _note(f"{config.out} {begin(parsed.source, parsed.at, config)}")
        config = replace(config, resume=True)
    try:
        out = run_training(config, watch=Online())
    except Interrupted as stop:
        print(f"\ngradlab train: {stop}", file=sys.stderr)
        return 128 + stop.number
    print(f"done. Next: gradlab diagnose {out}")
    return 0


def _check_source(arguments: Sequence[str], source: str | None, preset: str | None) -> None:
    """Say what --from needs, and what it does not go with."""
    _, at = take_option(arguments, "--at")
    if {"-h", "--help"} & set(arguments):
        return
    if source is None:
        if at is not None:
            raise ValueError(f"--at {at} is a step of a run; expected --from RUN with it")
        return
    if preset is not None:
        raise ValueError(
            f"--from {source} takes the options of that run, and --preset {preset} would replace "
            "them all; give one of the two, and single options beside --from"
        )
    if at is None:
        from trainers.replay.begin import there

        raise ValueError(f"--from {source} needs --at STEP: {there(Path(source))}, or 0")
    if take_option(arguments, "--out")[1] is None:
        raise ValueError(
            f"--from {source} begins a new run; expected --out with the directory to write it to"
        )


def diagnose(arguments: Sequence[str]) -> int:
    """Say why a run fell, or that it did not."""
    options = parse(DiagnoseOptions, "diagnose", arguments)
    # Before numpy: its matrices are small here, and threads that wait cost ten times the work.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from rich.console import Console

    from analysis.diagnosis import diagnose as run_diagnosis
    from analysis.report.page import write_page
    from analysis.report.terminal import print_text
    from gradlab.store.run import open_run

    if options.until is not None and options.until < 0:
        raise ValueError(f"--until is {options.until}; expected a training step, 0 or more")
    if options.until is not None and options.confirm:
        raise ValueError("--until looks at a part of the run; expected it without --confirm")
    run = open_run(options.run, until=options.until)
    if options.until is not None:
        steps = open_run(options.run).steps
        last = int(steps[-1]) if len(steps) else 0
        if options.until >= last:
            _note(f"--until {options.until}: the run ends at step {last}; all of it is looked at")
    diagnosis = run_diagnosis(run)
    refused: ValueError | None = None
    if options.confirm:
        try:
            _confirm(options.run, run, diagnosis)
            diagnosis = run_diagnosis(run)
        except ValueError as error:  # the diagnosis was asked for, too
            refused = error
    if options.json:
        print(diagnosis.to_json())
    else:
        print_text(diagnosis, Console())
    if not options.no_page:
        page = options.page or _default_page(options.run, options.until)
        if not page.parent.is_dir():
            raise ValueError(f"--page {page}: there is no folder {page.parent}")
        write_page(diagnosis, run, page)
        print(f"page: {page}", file=sys.stderr)
    if refused is not None:
        raise ValueError(f"--confirm: {refused}")
    return 0


def _default_page(run: Path, until: int | None) -> Path:
    """Beside the store; that of a part of the run is not that of the run."""
    part = "" if until is None else f"-until-{until}"
    if run.suffix == ".zarr":
        return run.with_name(f"{run.stem}{part}.html")
    return run / f"report{part}.html"


def figures(arguments: Sequence[str]) -> int:
    """Draw the figures of the given runs."""
    options = parse(FiguresOptions, "figures", arguments)
    from figures.make import make_figures

    for path in make_figures(options.runs, options.out, say=_note):
        print(path)
    return 0


def show(arguments: Sequence[str]) -> int:
    """Print what every agent said."""
    options = parse(ShowOptions, "show", arguments)
    from trainers.inspect.episodes import show_episodes

    show_episodes(
        options.run,
        options.step,
        problem=options.problem,
        sample=options.sample,
        is_evaluation=options.eval,
    )
    return 0


def audit(arguments: Sequence[str]) -> int:
    """Check that every agent's gradient is that of its own rows."""
    options = parse(AuditOptions, "audit", arguments)
    from trainers.inspect.audit import audit_run

    step, audits = audit_run(options.run)
    print(
        f"{options.run}: one update from the checkpoint of step {step - 1}, on the problems of "
        f"step {step}"
    )
    for found in audits:
        print(f"\npolicy {found.policy}\n{found}")
    return 0 if all(found.is_right for found in audits) else 1


def replay(arguments: Sequence[str]) -> int:
    """Repeat a run from a checkpoint with one thing changed."""
    options = parse(ReplayOptions, "replay", arguments)
    from analysis.diagnosis import diagnose as run_diagnosis
    from analysis.replays.propose import suspect_of
    from gradlab.store.run import open_run
    from trainers.replay.arms import make_plan
    from trainers.replay.begin import config_of
    from trainers.replay.changes import listed

    if options.changes == ("help",):
        print(listed())
        return 0
    config_of(options.run)  # refuses what is no run
    run = open_run(options.run)
    diagnosis = run_diagnosis(run)
    plan = make_plan(
        options.run,
        options.changes,
        at_most=_first_step(diagnosis, options.start),
        steps=options.steps,
        num_seeds=options.seeds,
        name=options.name,
    )
    suspect = suspect_of(run, diagnosis, options.changes)
    _run_replay(plan, suspect, is_dry=options.dry_run)
    return 0


def _first_step(diagnosis: Diagnosis, start: str) -> int:
    """The step that --from names."""
    from analysis.findings import DROPS

    if start != "before-onset":
        if not start.isdecimal():
            raise ValueError(f"--from is '{start}'; expected before-onset or a step")
        return int(start)
    onsets = {
        finding.kind: finding.onset.lower
        for finding in reversed(diagnosis.findings)
        if finding.onset
    }
    for kinds in (DROPS, ("role breakdown", "capture")):
        found = [onsets[kind] for kind in kinds if kind in onsets]
        if found:
            return min(found)
    raise ValueError(
        f"--from before-onset: {diagnosis.name} shows no drop or breakdown; give a step"
    )


def _confirm(path: Path, run: Run, diagnosis: Diagnosis) -> None:
    """Run the replay that the diagnosis asks for."""
    from analysis.explain.commands import run_directory
    from analysis.replays.propose import SEEDS, announced, propose, start_of
    from trainers.replay.arms import make_plan, starting_step

    found = propose(run, diagnosis)
    path = run_directory(run) or path
    start = start_of(run, found) or starting_step(path, found.at_most[1])
    _note(announced(run, found))
    plan = make_plan(
        path, (found.change,), at_most=start, steps=found.until - start, num_seeds=SEEDS
    )
    _run_replay(plan, {"kind": found.kind, "subject": found.subject})


def _run_replay(plan: ReplayPlan, suspect: dict[str, str], *, is_dry: bool = False) -> None:
    """Train the arms of a replay, compare them and write result.json; reports to stderr."""
    from rich.console import Console

    from analysis.replays.compare import RESULT, compare, described, write_result
    from gradlab.store.run import open_run
    from trainers.replay.arms import run_arms
    from trainers.watch.progress import Progress

    original = open_run(plan.run)
    for line in described(original, plan.name, plan.start, plan.end, plan.changes, plan.seeds):
        _note(line)
    if is_dry:
        return
    runs: dict[str, list[Run]] = {"control": [], "changed": []}
    for arm, _, out in run_arms(plan, lambda: Progress(Console(stderr=True))):
        runs[arm].append(open_run(out))
    result = compare(original, runs["control"], runs["changed"], plan.start)
    change = " ".join(f"--with {change}" for change in plan.changes)
    about = {"suspect": suspect, "change": change, "plan": plan.to_json()}
    write_result(plan.out / RESULT, result, about)
    for line in result.lines():
        _note(line)
    _note(f"written: {plan.out / RESULT}")


def prompts(arguments: Sequence[str]) -> int:
    """Print what every role is asked, as the model sees it."""
    options = parse(PromptsOptions, "prompts", arguments)
    from trainers.config import TrainConfig
    from trainers.preview.prompts import show_prompts

    given = {name: value for name, value in vars(options).items() if name != "kind"}
    show_prompts(TrainConfig(**given), options.kind)
    return 0


def _pairs(option: str, text: str | None) -> dict[str, str]:
    """'a=b,c=d' as a mapping."""
    pairs = [pair.partition("=") for pair in text.split(",")] if text else []
    if not all(equals and name.strip() for name, equals, _ in pairs):
        raise ValueError(f"{option} is '{text}'; expected name=value,name=value")
    return {name.strip(): value.strip() for name, _, value in pairs}


def import_log(arguments: Sequence[str]) -> int:
    """Turn another trainer's log into a run."""
    options = parse(ImportOptions, "import", arguments)
    from gradlab.interop.logs.importing import import_run
    from gradlab.interop.logs.told import told

    routing: str | dict[str, str] | None = options.routing
    if options.routing is not None and "=" in options.routing:
        routing = _pairs("--routing", options.routing)
    about = {key: getattr(options, key) for key in ("workflow", "task", "model")}
    imported = import_run(
        options.sources,
        options.out,
        kind=options.kind,
        column_map=options.map,
        step=options.step,
        run=options.run,
        where=_pairs("--where", options.where),
        roles=tuple(role.strip() for role in (options.roles or "").split(",") if role.strip()),
        routing=routing,
        accuracy=options.accuracy,
        eval_size=options.eval_size,
        about={key: value for key, value in about.items() if value is not None},
    )
    for line in told(imported):
        print(line)
    return 0


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
    runs: dict[str, Path] = {}
    for name, config in configs.items():
        runs[name] = options.out / name
        if _is_finished(runs[name], config.steps):
            console.print(f"[bold]{runs[name]}[/bold]: finished before, kept", soft_wrap=True)
            continue
        resume = (runs[name] / "config.json").exists()
        run_training(replace(config, out=runs[name], resume=resume))
    console.rule("What was found")
    for path in runs.values():
        run = open_run(path)
        diagnosis = run_diagnosis(run)
        write_page(diagnosis, run, path / "report.html")
        console.print(f"[bold]{path}[/bold]: {diagnosis.verdict}", soft_wrap=True)
        console.print(f"  page: {path / 'report.html'}", soft_wrap=True)
    written = make_figures(list(runs.values()), options.out / "figures")
    console.print(f"{len(written)} files of figures in {options.out / 'figures'}", soft_wrap=True)
    console.print(f"Next: gradlab diagnose {runs['cliff']}", soft_wrap=True)
    return 0


def _is_finished(run: Path, steps: int) -> bool:
    """Whether a run got to its last step; its store is closed after Ctrl-C and errors as well."""
    from gradlab.store.run import open_run

    # The last checkpoint is written after the last step and the last evaluation.
    checkpoint = run / "checkpoints" / f"step-{steps:06d}" / "checkpoint.json"
    return checkpoint.is_file() and open_run(run).closed


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train,
    "diagnose": diagnose,
    "figures": figures,
    "show": show,
    "prompts": prompts,
    "audit": audit,
    "replay": replay,
    "import": import_log,
    "demo": demo,
}


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
        return COMMANDS[given[0]](given[1:])
    except KeyboardInterrupt as stop:
        print(f"\ngradlab {given[0]}: {str(stop) or 'stopped'}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except (ValueError, RuntimeError, OSError) as error:
        # Messages are written for the user; a traceback in front of them would hide them.
        if os.environ.get("GRADLAB_TRACEBACK"):
            raise
        return _fail(f"gradlab {given[0]}: {error}")


def _note(message: str) -> None:
    print(message, file=sys.stderr)


def _fail(message: str) -> int:
    print(message, file=sys.stderr)
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


RESUMABLE = ("--resume", "--out", "--extend-to", "--device", "--threads")


def _refuse_other_options(arguments: Sequence[str]) -> None:
    """A resumed run keeps its configuration; ignoring what was asked for would mislead."""
    given = [a.partition("=")[0] for a in arguments if a.startswith("--")]
    refused = [option for option in given if option not in RESUMABLE and option != "--help"]
    if refused:
        raise ValueError(
            f"--resume continues a run as it was configured; it takes {', '.join(RESUMABLE[1:])}, "
            f"not {', '.join(refused)}. Start a new run to change them"
        )


def _preset_for(arguments: Sequence[str]) -> str:
    """The preset that goes with the model or the task that is asked for."""
    _, model = take_option(arguments, "--model")
    _, task = take_option(arguments, "--task")
    if model == "smollm2-135m":
        return "smollm2"
    if model == "tiny-code" or (model is None and task == "programs"):
        return "programs"
    return "clean"


if __name__ == "__main__":
    sys.exit(main())
