"""Combine the axes of a plan into cells: every combination but the excluded ones, by name.

Nothing here knows what an option means.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LONGEST_NAME = 200
"""Bytes; a file system takes 255, and names are built with it."""
OWN_FOLDER = "matrix"
"""Where a matrix keeps what it knows of its cells, beside them."""

Options = dict[str, Any]


@dataclass(frozen=True)
class Value:
    """A value of an axis."""

    label: str
    """Its part of the names of cells."""
    options: Options
    """As the plan writes them; empty for a word that only texts of the plan mention."""
    raw: Any = None
    """The value itself, where the axis is an option."""

    def is_called(self, wanted: Any) -> bool:
        """Whether a plan means this value: by its label, or by the value itself."""
        by_value = self.raw is not None and type(wanted) is type(self.raw) and wanted == self.raw
        return wanted == self.label or by_value


Axes = Mapping[str, Sequence[Value]]


@dataclass(frozen=True)
class Rule:
    """Options for the combinations that match."""

    where: Mapping[str, Any]
    """Axis -> a value or a list of them."""
    options: Options


@dataclass(frozen=True)
class Combination:
    """One value of every axis."""

    name: str
    place: Mapping[str, str]
    """Axis -> label."""
    varied: Options
    """What the axes give."""
    set_: Options = field(default_factory=dict)
    """What rules give, which comes before what the axes give."""


def read_axes(given: Mapping[str, Any], where: str) -> dict[str, list[Value]]:
    """The axes of a plan: an option with a list of values, or named values that are tables.

    Raises ValueError for what is neither.
    """
    if not given:
        raise ValueError(f"{where}: [vary] names no axis; expected e.g. seed = [0, 1, 2]")
    axes = {}
    for axis, values in given.items():
        if isinstance(values, list):
            found = [Value(label_of(axis, value), {axis: value}, value) for value in values]
        elif isinstance(values, dict) and all(isinstance(one, dict) for one in values.values()):
            found = [Value(_checked(axis, label, where), one) for label, one in values.items()]
        else:
            raise ValueError(
                f"{where}: axis '{axis}' is {values!r}; expected a list of values, or a table of "
                f"named values with their options, as in {axis}.high = {{ learning-rate = 4e-3 }}"
            )
        labels = [value.label for value in found]
        if not labels:
            raise ValueError(f"{where}: axis '{axis}' has no value; expected one or more")
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(
                    f"{where}: axis '{axis}' has two values that are called '{label}'; expected "
                    "different ones, or a table that names them"
                )
        axes[axis] = found
    return axes


def label_of(axis: str, value: Any) -> str:
    """What a value is called: s0 for a seed, votes5 for a number, the last part of a path."""
    option = axis.replace("_", "-")
    if isinstance(value, bool):
        return option if value else f"no-{option}"
    if isinstance(value, int | float):
        return f"{'s' if axis == 'seed' else option}{value:g}".replace("+", "")
    text = str(value).rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "empty"


def _checked(axis: str, label: str, where: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", label):
        raise ValueError(
            f"{where}: axis '{axis}' has a value called '{label}'; expected letters, digits, . _ "
            "and -: it becomes part of a folder's name"
        )
    return label


def combine(
    axes: Axes, exclude: Sequence[Mapping[str, Any]], rules: Sequence[Rule], where: str
) -> list[Combination]:
    """Every combination that is not excluded, the last axis fastest.

    Raises ValueError for an exclusion or a rule that names what there is not, or that matches no
    combination, and for two combinations of one name.
    """
    for number, match in enumerate(exclude, 1):
        _check_match(axes, match, f"{where}: [[exclude]] {number}")
    for number, rule in enumerate(rules, 1):
        _check_match(axes, rule.where, f"{where}: [[set]] {number}: where")
    kept, used = [], set[int]()
    hit = set[int]()
    for values in itertools.product(*axes.values()):
        place = dict(zip(axes, values, strict=True))
        out = [number for number, match in enumerate(exclude) if matches(place, match)]
        hit |= set(out)
        if out:
            continue
        mine = [number for number, rule in enumerate(rules) if matches(place, rule.where)]
        used |= set(mine)
        kept.append(_combination(place, [rules[number] for number in mine], where))
    for number in set(range(len(exclude))) - hit:
        raise ValueError(
            f"{where}: [[exclude]] {number + 1} ({_told(exclude[number])}) matches no combination; "
            "correct it, or leave it out"
        )
    for number in set(range(len(rules))) - used:
        raise ValueError(
            f"{where}: [[set]] {number + 1} ({_told(rules[number].where)}) matches no cell; "
            "correct it, or leave it out"
        )
    if not kept:
        raise ValueError(f"{where}: every combination is excluded; expected some that are not")
    _check_names([one.name for one in kept], where)
    return kept


def _combination(place: Mapping[str, Value], rules: Sequence[Rule], where: str) -> Combination:
    name = ".".join(value.label for value in place.values())
    varied: Options = {}
    by: dict[str, str] = {}
    for axis, value in place.items():
        for option, one in value.options.items():
            key = option.replace("-", "_")
            if key in by:
                raise ValueError(
                    f"{where}: axes '{by[key]}' and '{axis}' both give '{option}' in {name}; "
                    "expected one of them, or [[set]]"
                )
            by[key] = axis
            varied[key] = one
    set_: Options = {}
    for rule in rules:
        set_ |= {option.replace("-", "_"): one for option, one in rule.options.items()}
    return Combination(name, {axis: v.label for axis, v in place.items()}, varied, set_)


def matches(place: Mapping[str, Value], match: Mapping[str, Any]) -> bool:
    """Whether a combination has, for every axis that is named, one of the values wanted."""
    return all(
        any(place[axis].is_called(one) for one in _listed(wanted)) for axis, wanted in match.items()
    )


def _check_match(axes: Axes, match: Mapping[str, Any], where: str) -> None:
    if not match:
        raise ValueError(f"{where} is empty and would match every cell; name axes and values")
    for axis, wanted in match.items():
        if axis not in axes:
            raise ValueError(f"{where} names axis '{axis}'; the plan has {', '.join(axes)}")
        for one in _listed(wanted):
            if not any(value.is_called(one) for value in axes[axis]):
                raise ValueError(
                    f"{where}: axis '{axis}' has no value {one!r}; it has "
                    f"{', '.join(value.label for value in axes[axis])}"
                )


def _check_names(names: Sequence[str], where: str) -> None:
    seen = set[str]()
    for name in names:
        if name in seen:
            raise ValueError(
                f"{where}: two cells would be called {name}; rename a value of an axis"
            )
        seen.add(name)
        if len(name.encode()) > LONGEST_NAME:
            raise ValueError(
                f"{where}: a cell would be called {name[:40]}…, of {len(name.encode())} bytes; "
                f"expected at most {LONGEST_NAME}: name values by a table"
            )
        if name.isdecimal() or name == OWN_FOLDER or name.startswith("."):
            raise ValueError(
                f"{where}: a cell would be called '{name}'; expected more than digits, and not "
                f"'{OWN_FOLDER}', which is a folder of the matrix"
            )


def _listed(wanted: Any) -> list[Any]:
    return wanted if isinstance(wanted, list) else [wanted]


def _told(match: Mapping[str, Any]) -> str:
    return ", ".join(f"{axis} = {wanted!r}" for axis, wanted in match.items())


def filled(options: Options, place: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """The options with every {axis} of a text replaced by the label that the cell has there."""
    for name, value in options.items():
        if isinstance(value, str) and "{" in value:
            for axis, label in place.items():
                value = value.replace(f"{{{axis}}}", label)
        yield name, value
