"""Read command lines into dataclasses, with their fields' docstrings as help."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import textwrap
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import make_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_origin, get_type_hints

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
    options = tyro.cli(
        explained(kind),
        prog=f"gradlab {command}",
        description=inspect.cleandoc(kind.__doc__ or ""),
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    check_paths(vars(options))
    return options


NAME_BYTES, PATH_BYTES = 255, 4096
"""What Linux and macOS take."""


def check_paths(values: Mapping[str, Any]) -> None:
    """Raise ValueError for a path that no file system takes, by its option."""
    for name, value in values.items():
        for path in value if isinstance(value, tuple) else (value,):
            if not isinstance(path, Path):
                continue
            flag = f"--{name.replace('_', '-')}"
            for part, most in (
                (str(path), PATH_BYTES),
                *((part, NAME_BYTES) for part in path.parts),
            ):
                if (size := len(os.fsencode(part))) > most:
                    raise ValueError(
                        f"{flag} holds '{part[:20]}…', of {size} bytes; expected a path of at most "
                        f"{PATH_BYTES} with parts of at most {NAME_BYTES}"
                    )
            if "\0" in str(path):
                raise ValueError(f"{flag} holds a zero byte; expected a path")


def explained(kind: type[Options]) -> type[Options]:
    """The dataclass with its fields' docstrings as help: tyro keeps the breaks of their lines."""
    changed = [
        (
            field.name,
            hint,
            dataclasses.field(default=field.default, default_factory=field.default_factory),
        )
        for field, hint in explained_fields(kind)
    ]
    return make_dataclass(kind.__name__, changed, bases=(kind,), frozen=True)


def explained_fields(kind: type[Any]) -> list[tuple[dataclasses.Field[Any], Any]]:
    """Every field with its hint, which has the field's docstring as help."""
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
    return [
        (field, Annotated[hints[field.name], tyro.conf.arg(help=texts.get(field.name))])
        for field in dataclasses.fields(kind)
    ]


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


def gather(arguments: Sequence[str], option: str) -> list[str]:
    """The arguments with an option that takes several values given once, with those of all."""
    rest, values, is_value = list[str](), list[str](), False
    for word in arguments:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            is_value = name.replace("_", "-") == option
            if is_value:
                values += [value] if equals else []
                continue
        (values if is_value else rest).append(word)
    return [*rest, option, *values] if values else rest


def check_once(arguments: Sequence[str], repeatable: Collection[str]) -> None:
    """Raise ValueError for an option that is given twice: one of the two would be ignored."""
    given = [
        word.partition("=")[0].replace("_", "-") for word in arguments if word.startswith("--")
    ]
    for option, count in Counter(given).items():
        if count > 1 and option not in repeatable:
            raise ValueError(f"{option} is given {count} times; expected it once")
