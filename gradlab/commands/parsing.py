"""Read command lines into dataclasses, with their fields' docstrings as help."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, get_args, get_origin, get_type_hints

import tyro

Options = TypeVar("Options")


def take_option(arguments: Sequence[str], option: str) -> tuple[list[str], str | None]:
    """Remove `option VALUE` or `option=VALUE` from the arguments and return the value."""
    rest, value = list(arguments), None
    for i, argument in enumerate(rest):
        if argument.startswith(f"{option}="):
            value = argument.partition("=")[2]
            del rest[i]
            break
        if argument == option:
            if i + 1 == len(rest):
                raise ValueError(f"{option} needs a value")
            value = rest[i + 1]
            del rest[i : i + 2]
            break
    return rest, value


def parse(kind: type[Options], command: str, arguments: Sequence[str]) -> Options:
    return tyro.cli(
        explained(kind),
        prog=f"gradlab {command}",
        description=inspect.cleandoc(kind.__doc__ or ""),
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def explained(kind: type[Options]) -> type[Options]:
    """The dataclass with its fields' docstrings as help: tyro keeps the breaks of their lines."""
    [tree] = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    texts = {
        field.target.id: " ".join(text.value.value.split())
        for field, text in pairwise(tree.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        if isinstance(text.value.value, str)
    }
    hints = get_type_hints(kind, include_extras=True)
    changed = [
        (
            field.name,
            Annotated[hints[field.name], tyro.conf.arg(help=texts.get(field.name))],
            dataclasses.field(default=field.default, default_factory=field.default_factory),
        )
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
    ]
    return make_dataclass(kind.__name__, changed, bases=(kind,), frozen=True)


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


def parse_training(
    kind: type[Options], default: Options, preset: str, presets: list[str], arguments: Sequence[str]
) -> Training[Options]:
    """The options of `gradlab train`: `default` but for what is given."""
    told = (
        f"Values that the options below replace: {', '.join(presets)}, or a cell of the paper such "
        "as Voting-IP-1.7B-Math. Without it clean, or what goes with --model smollm2-135m, "
        "--model tiny-code or --task programs."
    )
    dry = (
        "Print data, model, policies, tokens, memory, time and disk, and train nothing. Status 2 "
        "where the problems of the task are not there."
    )
    origin = (
        "Begin a new run at a checkpoint of this one (--at), with its options but for those that "
        "are given. It is not changed."
    )
    at = (
        "With --from: the newest checkpoint up to this step is the beginning, and steps are "
        "counted on from there; 0 trains from the beginning."
    )
    training = explained(kind)
    options = make_dataclass(
        "TrainOptions",
        [
            ("preset", Annotated[str, tyro.conf.arg(help=told)]),
            ("dry_run", Annotated[bool, tyro.conf.arg(help=dry)]),
            ("source", Annotated[Path, tyro.conf.arg(name="from", help=origin)]),
            ("at", Annotated[int, tyro.conf.arg(help=at)]),
            ("training", training),
        ],
        frozen=True,
    )
    values = vars(default)
    # tyro takes pairs only where there are none yet: those of the default are put back below.
    pairs = {name: value for name, value in values.items() if isinstance(value, dict)}
    empty: dict[str, Any] = {name: {} for name in pairs}
    parsed = tyro.cli(
        options,
        prog="gradlab train",
        description=(
            "Train a multi-agent workflow with reinforcement learning, gradients measured by agent."
        ),
        default=options(preset, False, Path("none"), 0, training(**values | empty)),
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
    )
    kept = {name: value for name, value in pairs.items() if not _is_given(name, arguments)}
    return Training(kind(**vars(parsed.training)), kept, parsed.dry_run, parsed.source, parsed.at)


def _is_given(name: str, arguments: Sequence[str]) -> bool:
    """Whether an option is among the arguments, written with - or _."""
    flags = {f"--{name}", f"--{name.replace('_', '-')}"}
    return any(argument.partition("=")[0] in flags for argument in arguments)


def split_pairs(kind: type[Any], arguments: Sequence[str]) -> list[str]:
    """The arguments with `name=value` as two words, after options that take pairs."""
    hints = get_type_hints(kind)
    pairs = {f"--{name}" for name, hint in hints.items() if get_origin(hint) is dict}
    pairs |= {option.replace("_", "-") for option in pairs}
    split, is_pair = list[str](), False
    for word in arguments:
        if word.startswith("--"):
            is_pair = word in pairs
        name, equals, value = word.partition("=")
        split += [name, value] if is_pair and equals and not word.startswith("--") else [word]
    return split


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
            if len(words) % 2 or (is_number and not all(map(_is_number, words[1::2]))):
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
