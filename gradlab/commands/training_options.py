"""Read the options of `gradlab train` onto what a preset, a file or a run gives them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, make_dataclass
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Generic, get_args, get_origin, get_type_hints

import tyro

from gradlab.commands.parsing import Options, check_paths, explained_fields

GROUPS = {
    "run": "out", "model": "model", "task": "task", "workflow": "workflow",
    "sampling": "problems_per_step", "credit": "reward", "loss": "clip_low", "updates": "updates",
    "measurement": "alarm",
}  # fmt: skip
"""What options are about -> the first of them, in the order of the configuration's fields."""


@dataclass(frozen=True)
class Training(Generic[Options]):
    """What `gradlab train` was asked for."""

    config: Options
    """Without `kept`."""
    kept: dict[str, Any]
    """Pairs of the default for options that were not given."""
    dry_run: bool
    source: Path
    """Of --from; where it was not given, without meaning."""
    at: int


@dataclass(frozen=True)
class Beside:
    """Options that say where the values of the others come from."""

    preset: str
    """Values that the options replace."""
    config: Path | None = None
    """TOML file of options, by the names they have here; [kl-coefficient] and the like are tables
    of roles. What is given on the command line comes before it, and it before a preset."""
    like: Path | None = None
    """Run whose options are taken, but for --out, in place of a preset."""
    source: Annotated[Path, tyro.conf.arg(name="from")] = Path("none")
    """Begin a new run at a checkpoint of this one (--at), with its options but for those that are
    given. It is not changed."""
    at: int = 0
    """With --from: the newest checkpoint up to this step is the beginning, and steps are counted on
    from there; 0 trains from the beginning."""
    dry_run: bool = False
    """Print data, model, policies, tokens, memory, time and disk, and train nothing. Status 2 where
    the problems of the task are not there."""


def parse_training(
    kind: type[Options],
    values: dict[str, Any],
    preset: str,
    presets: Sequence[str],
    arguments: Sequence[str],
) -> Training[Options]:
    """The options of `gradlab train`: `values` but for what is given."""
    preset_help = (
        f"Values that the options below replace: {', '.join(presets)}, or a cell of the paper such "
        "as Voting-IP-1.7B-Math. Without it clean, or what goes with --model smollm2-135m, "
        "--model tiny-code or --task programs."
    )
    beside = [
        (
            field.name,
            Annotated[hint, tyro.conf.arg(help=preset_help)] if field.name == "preset" else hint,
        )
        for field, hint in explained_fields(Beside)
    ]
    groups = dict(grouped(kind))
    options = make_dataclass("TrainOptions", [*beside, *groups.items()], frozen=True)
    # tyro takes pairs only where there are none yet: those of the default are put back below.
    pairs = {name: value for name, value in values.items() if isinstance(value, dict)}
    empty: dict[str, Any] = {name: {} for name in pairs}
    start = {
        name: group(**{field: (values | empty)[field] for field in group.__annotations__})
        for name, group in groups.items()
    }
    parsed = tyro.cli(
        options,
        prog="gradlab train",
        description=(
            "Train a multi-agent workflow with reinforcement learning, gradients measured by agent."
        ),
        default=options(**vars(Beside(preset)), **start),
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
    )
    check_paths(vars(parsed) | vars(parsed.run) | vars(parsed.task))
    kept = {name: value for name, value in pairs.items() if not is_given(name, arguments)}
    found = {
        name: value for group in groups for name, value in vars(getattr(parsed, group)).items()
    }
    return Training(kind(**found), kept, parsed.dry_run, parsed.source, parsed.at)


def grouped(kind: type[Any]) -> Iterator[tuple[str, type[Any]]]:
    """Dataclasses of the options that are about one thing, by its name: a box of `--help` each."""
    firsts = {first: group for group, first in GROUPS.items()}
    members: dict[str, list[tuple[str, Any]]] = {}
    group = ""
    for field, hint in explained_fields(kind):
        group = firsts.get(field.name, group)
        members.setdefault(group, []).append((field.name, hint))
    for name, fields in members.items():
        yield name, make_dataclass(name.capitalize(), fields, frozen=True)


def is_given(name: str, arguments: Sequence[str]) -> bool:
    """Whether an option is among the arguments, written with - or _."""
    flags = {f"--{name}", f"--{name.replace('_', '-')}"}
    return any(argument.partition("=")[0] in flags for argument in arguments)


def check_pairs(kind: type[Any], arguments: Sequence[str]) -> None:
    """Say what is wrong with the words of an option that takes pairs."""
    hints = {name: hint for name, hint in get_type_hints(kind).items() if get_origin(hint) is dict}
    for name, hint in hints.items():
        option = f"--{name.replace('_', '-')}"
        is_number = get_args(hint)[1] is float
        for place, argument in enumerate(arguments):
            if argument not in (option, f"--{name}"):
                continue
            rest = arguments[place + 1 :]
            words = list(takewhile(lambda word: not word.startswith("--"), rest))
            names = words[::2]
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise ValueError(f"{option} names '{twice}' twice; expected it once")
            if not words or len(words) % 2 or (is_number and not all(map(_is_number, words[1::2]))):
                expected = "a role and a number" if is_number else "a name and a value"
                example = "aggregator 0.5" if is_number else "min_digits 2"
                raise ValueError(
                    f"{option} was given '{' '.join(words)}'; expected pairs of {expected}, as in "
                    f"{option} {example}"
                )


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
