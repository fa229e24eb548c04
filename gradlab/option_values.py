"""Read options from TOML: its values become what the fields of a dataclass of options hold."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

COMMAND_LINE = ("resume", "extend-to", "from", "at", "config", "like", "dry-run")
"""Options that say what to do now, and not how to train."""


def read_toml(path: Path, where: str) -> dict[str, Any]:
    """What a TOML file holds; `where` begins the errors."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise ValueError(f"{where} cannot be read: {reason}") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{where} is no TOML: {error}") from error


def options_of(kind: type[Any], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The options that a table gives, by field name; `preset` may be among them.

    `where` begins the errors. Raises ValueError for an unknown option, with the nearest known one,
    and a value of another type. Whether values go together is told once all are known.
    """
    hints = {name.replace("_", "-"): hint for name, hint in get_type_hints(kind).items()}
    hints["preset"] = str
    found: dict[str, Any] = {}
    for key, value in given.items():
        option = key.replace("_", "-")
        name = option.replace("-", "_")
        if option in COMMAND_LINE:
            raise ValueError(
                f"{where}: '{key}' says what to do now; expected --{option} on the command line "
                "instead"
            )
        if option not in hints:
            raise ValueError(f"{where}: {unknown(key, value, list(hints))}")
        if name in found:
            raise ValueError(f"{where}: '{option}' is there twice, with - and with _")
        found[name] = converted(value, hints[option], f"{where}: {key}")
    return found


def unknown(key: str, value: Any, known: list[str]) -> str:
    option = key.replace("_", "-")
    near = difflib.get_close_matches(option, known, n=1, cutoff=0.5)
    hint = f"the nearest is '{near[0]}'" if near else "gradlab train --help lists them"
    if isinstance(value, Mapping) and set(value) & set(known):
        hint = "options stand at the top of the file, only pairs such as kl-coefficient are tables"
    return f"there is no option '{key}'; {hint}"


def converted(value: Any, hint: Any, where: str) -> Any:
    """A TOML value as what the field holds."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        [one] = [argument for argument in arguments if argument is not NoneType]
        return converted(value, one, where)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            raise _wrong(where, value, f"one of {', '.join(map(str, arguments))}")
        return value
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(where, value, "a table of names and values")
        return {key: _inner(one, arguments[1], f"{where}.{key}") for key, one in value.items()}
    if origin is tuple:
        if not isinstance(value, list):
            raise _wrong(where, value, "a list")
        return tuple(converted(one, arguments[0], where) for one in value)
    return _plain(value, hint, where)


def _inner(value: Any, hint: Any, where: str) -> Any:
    """A value of a table; of a table of texts, as it would be typed."""
    if hint is str and isinstance(value, int | float):
        return str(value).lower() if isinstance(value, bool) else str(value)
    return _plain(value, hint, where)


def _plain(value: Any, hint: Any, where: str) -> Any:
    words = {
        bool: "true or false", int: "a whole number", float: "a number", str: "a text in quotes",
        Path: "a path in quotes",
    }  # fmt: skip
    wanted = {float: (int, float), Path: (str,)}.get(hint, (hint,))
    is_truth = isinstance(value, bool)
    if not isinstance(value, wanted) or (is_truth and hint is not bool):
        raise _wrong(where, value, words[hint])
    return hint(value)


def _wrong(where: str, value: Any, expected: str) -> ValueError:
    return ValueError(f"{where} is {value!r}; expected {expected}")
