"""gradlab train: a configuration from options and preset, then train."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gradlab.commands.note import note
from gradlab.commands.parsing import check_pairs, parse_training, split_pairs, take_option


def train(arguments: Sequence[str]) -> int:
    """Train with instrumentation on."""
    from trainers.config import TrainConfig
    from trainers.presets import PRESETS, preset

    if "--resume" in arguments:
        refuse_other_options(arguments)
    arguments = split_pairs(TrainConfig, arguments)
    check_pairs(TrainConfig, arguments)
    _, name = take_option(arguments, "--preset")
    _, source = take_option(arguments, "--from")
    _check_source(arguments, source, name)
    if source is None:
        name = name or preset_for(arguments)
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
        note(f"{config.out} {begin(parsed.source, parsed.at, config)}")
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


RESUMABLE = ("--resume", "--out", "--extend-to", "--device", "--threads")


def refuse_other_options(arguments: Sequence[str]) -> None:
    """A resumed run keeps its configuration; ignoring what was asked for would mislead."""
    given = [a.partition("=")[0] for a in arguments if a.startswith("--")]
    refused = [option for option in given if option not in RESUMABLE and option != "--help"]
    if refused:
        raise ValueError(
            f"--resume continues a run as it was configured; it takes {', '.join(RESUMABLE[1:])}, "
            f"not {', '.join(refused)}. Start a new run to change them"
        )


def preset_for(arguments: Sequence[str]) -> str:
    """The preset that goes with the model or the task that is asked for."""
    _, model = take_option(arguments, "--model")
    _, task = take_option(arguments, "--task")
    if model == "smollm2-135m":
        return "smollm2"
    if model == "tiny-code" or (model is None and task == "programs"):
        return "programs"
    return "clean"
