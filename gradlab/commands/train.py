"""gradlab train: a configuration from options and preset, then train."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradlab.commands.configuration import read_options
from gradlab.commands.idle import check_idle
from gradlab.commands.note import note
from gradlab.commands.parsing import gather, split_pairs, take_option
from gradlab.commands.training_options import check_pairs, is_given, parse_training

if TYPE_CHECKING:
    from trainers.config import TrainConfig
    from trainers.ranks.peers import Peers


def train(arguments: Sequence[str]) -> int:
    """Train with instrumentation on."""
    from trainers.ranks.launch import launched

    launch = launched()
    if launch.size == 1 or {"-h", "--help"} & set(arguments):
        return _train(arguments) if launch.rank == 0 else 0
    from trainers.ranks.joining import joined

    with joined(take_option(arguments, "--device")[1] or "auto") as peers:
        return _train(arguments, peers)


def _train(arguments: Sequence[str], peers: Peers | None = None) -> int:
    """`peers`: the processes that train together, where there are several."""
    from trainers.config import TrainConfig
    from trainers.presets import PRESETS

    if "--resume" in arguments:
        refuse_other_options(arguments)
    arguments = gather(split_pairs(TrainConfig, arguments), "--sampler-url")
    check_pairs(TrainConfig, arguments)
    _, source = take_option(arguments, "--from")
    _check_source(arguments, source)
    base = base_of(arguments)
    is_first = peers is None or peers.is_first
    with silent(not is_first):
        parsed = parse_training(TrainConfig, base.values, base.preset, list(PRESETS), arguments)
    config = parsed.config
    if base.origin is not None:
        from trainers.replay.begin import check_fits

        check_fits(parsed.source, base.origin, config)
    config = replace(config, **parsed.kept)
    check_idle(config, base.given | {name for name in vars(config) if is_given(name, arguments)})
    if parsed.dry_run and not is_first:
        return 0
    if parsed.dry_run:
        from trainers.preview.dryrun import dry_run

        if base.origin is not None:
            from trainers.replay.begin import starting_step

            first = starting_step(parsed.source, parsed.at, config.steps)
            print(f"from        {source}, step {first}: what follows is about the steps after it")
            config = replace(config, steps=config.steps - first)
        dry_run(config)
        return 0
    from analysis.online import Online
    from trainers.rundir.directory import check_free
    from trainers.training import Interrupted
    from trainers.training import train as run_training

    if not config.resume and is_first:
        check_free(config.out)  # before a model is loaded, which may take minutes
    if base.origin is not None:
        from trainers.ranks.peers import ALONE, with_draws
        from trainers.replay.begin import begin

        peers = peers or ALONE
        config = with_draws(config, peers.size)
        told = peers.first(lambda: begin(parsed.source, parsed.at, config))
        if is_first:
            note(f"{config.out} {told}")
        config = replace(config, resume=True)
    try:
        out = run_training(config, watch=Online())
    except Interrupted as stop:
        if is_first:
            print(f"\ngradlab train: {stop}", file=sys.stderr)
        return 128 + stop.number
    if is_first:
        print(f"done. Next: gradlab diagnose {out}")
    return 0


@contextlib.contextmanager
def silent(is_silent: bool) -> Iterator[None]:
    """What is written to the terminal inside is lost, where another process writes the same."""
    with contextlib.ExitStack() as undo:
        if is_silent:
            nowhere = undo.enter_context(open(os.devnull, "w"))
            undo.enter_context(contextlib.redirect_stdout(nowhere))
            undo.enter_context(contextlib.redirect_stderr(nowhere))
        yield


@dataclass(frozen=True)
class Base:
    """What the options are before those of the command line."""

    values: dict[str, Any]
    preset: str
    """Empty where the values are those of a run."""
    origin: TrainConfig | None
    """Of the run of --from."""
    given: frozenset[str]
    """Fields that --config names."""


def base_of(arguments: Sequence[str]) -> Base:
    """Options of the preset, or of the run of --from or --like, under those of --config."""
    from trainers.config import TrainConfig
    from trainers.presets import preset

    _, source = take_option(arguments, "--from")
    _, like = take_option(arguments, "--like")
    _, name = take_option(arguments, "--preset")
    _, file = take_option(arguments, "--config")
    given = read_options(TrainConfig, Path(file)) if file is not None else {}
    written = given.pop("preset", None)
    beside = {
        "--from": source, "--like": like, "--preset": name,
        f"'preset' in {file}": None if name else written,
    }  # fmt: skip
    bases = [f"{option} {value}" for option, value in beside.items() if value is not None]
    if len(bases) > 1:
        raise ValueError(
            f"{' and '.join(bases)} each set all options; give one of them, and single options "
            "beside it"
        )
    if source is not None:
        from trainers.rundir.directory import config_of

        origin = config_of(Path(source))
        return Base(vars(origin) | given, "", origin, frozenset(given))
    if like is not None:
        from trainers.rundir.directory import config_of

        new = TrainConfig()
        where = {"out": new.out, "extend_to": new.extend_to}
        return Base(vars(config_of(Path(like))) | where | given, "", None, frozenset(given))
    name = name or written or preset_for(arguments, given)
    return Base(vars(preset(name)) | given, name, None, frozenset(given))


def _check_source(arguments: Sequence[str], source: str | None) -> None:
    """Say what --from needs."""
    _, at = take_option(arguments, "--at")
    if {"-h", "--help"} & set(arguments):
        return
    if source is None:
        if at is not None:
            raise ValueError(f"--at {at} is a step of a run; expected --from RUN with it")
        return
    if at is None:
        from trainers.replay.begin import there

        raise ValueError(f"--from {source} needs --at STEP: {there(Path(source))}, or 0")
    if take_option(arguments, "--out")[1] is None:
        raise ValueError(
            f"--from {source} begins a new run; expected --out with the directory to write it to"
        )


RESUMABLE = (
    "--resume", "--out", "--extend-to", "--device", "--threads", "--sampler-url", "--shard-base",
)  # fmt: skip


def refuse_other_options(arguments: Sequence[str]) -> None:
    """A resumed run keeps its configuration; ignoring what was asked for would mislead."""
    given = [a.partition("=")[0] for a in arguments if a.startswith("--")]
    refused = [option for option in given if option not in RESUMABLE and option != "--help"]
    if refused:
        raise ValueError(
            f"--resume continues a run as it was configured; it takes {', '.join(RESUMABLE[1:])}, "
            f"not {', '.join(refused)}. Start a new run to change them"
        )


def preset_for(arguments: Sequence[str], given: Mapping[str, Any] | None = None) -> str:
    """The preset that goes with the model or the task that is asked for, here or in a file."""
    from trainers.presets import fitting

    written = given or {}
    model = take_option(arguments, "--model")[1] or written.get("model")
    task = take_option(arguments, "--task")[1] or written.get("task")
    return fitting(model, task)
