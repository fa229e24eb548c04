"""Read a plan: a TOML file that says which cells there are, each a whole configuration.

    [options]                      # of every cell, as gradlab train --config takes them
    preset = "demo-isolated"
    [vary]                         # every combination is a cell; names follow this order
    workflow = ["voting", "solo"]
    scale.1m = { model = "tiny-1m" }
    scale.3m = { model = "tiny-3m" }
    seed = [0, 1, 2]
    [[exclude]]                    # combinations that are left out
    workflow = "solo"
    scale = "3m"
    [[set]]                        # options of the cells that match
    where = { workflow = "solo" }
    problems-per-step = 64

docs/matrix.md has all of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from gradlab.option_values import options_of, read_toml
from trainers.config import TrainConfig
from trainers.matrix.product import Combination, Rule, Value, combine, filled, read_axes
from trainers.presets import fitting, preset

PLANS = Path(__file__).parent / "plans"
"""Those that ship, by name."""
TABLES = ("about", "test-sets", "options", "vary", "exclude", "set")
DEALT = ("out",)
"""Options that a matrix gives its cells itself."""
FIELDS = frozenset(field.name for field in fields(TrainConfig))


@dataclass(frozen=True)
class Cell:
    """A run of the matrix."""

    name: str
    """Of its directory: the labels of its values, in the order of the axes."""
    place: Mapping[str, str]
    """Axis -> label of its value."""
    config: TrainConfig
    """`out` is its name alone."""
    varied: frozenset[str] = frozenset()
    """Fields of the configuration that the axes give."""
    given: frozenset[str] = frozenset()
    """Fields that the plan names at all."""


@dataclass(frozen=True)
class Plan:
    """Which cells there are."""

    name: str
    about: str
    text: str
    """Of the file."""
    cells: tuple[Cell, ...]


def shipped() -> dict[str, Path]:
    """Name -> file of the plans that come with the package."""
    return {path.stem: path for path in sorted(PLANS.glob("*.toml"))}


def find_plan(name: str) -> Path:
    """The file of a plan: one that ships by its name, or a path.

    Raises ValueError for neither.
    """
    if (path := Path(name)).is_file():
        return path
    if name in shipped():
        return shipped()[name]
    raise ValueError(
        f"there is no plan '{name}'; expected a TOML file, or one of {', '.join(shipped())} "
        "(gradlab matrix --list)"
    )


def read_plan(path: Path) -> Plan:
    """The plan in a file, its cells whole and checked.

    Raises ValueError that says which table or cell of the file is wrong.
    """
    where = f"plan {path}"
    given = read_toml(path, where)
    for table in given:
        if table not in TABLES:
            raise ValueError(f"{where}: there is no '{table}'; expected {', '.join(TABLES)}")
    test_sets = given.get("test-sets", "same")
    if test_sets not in ("same", "differ"):
        raise ValueError(f"{where}: test-sets is {test_sets!r}; expected 'same' or 'differ'")
    common = _table(given, "options", where)
    axes = read_axes(_table(given, "vary", where), where)
    exclude, set_ = (_tables(given, name, where) for name in ("exclude", "set"))
    rules = [
        Rule(_table(one, "where", f"{where}: [[set]] {number}"), _without_where(one))
        for number, one in enumerate(set_, 1)
    ]
    axes = _with_words(axes, [common, *(rule.options for rule in rules)], where)
    combinations = combine(axes, exclude, rules, where)
    cells = tuple(_cell(common, one, test_sets == "same", where) for one in combinations)
    _check_different(cells, where)
    if test_sets == "same":
        _check_test_sets(cells, where)
    return Plan(path.stem, str(given.get("about", "")), path.read_text(encoding="utf-8"), cells)


def _table(given: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    found = given.get(name, {})
    if not isinstance(found, dict):
        raise ValueError(f"{where}: '{name}' is {found!r}; expected a table")
    return found


def _tables(given: Mapping[str, Any], name: str, where: str) -> list[dict[str, Any]]:
    found = given.get(name, [])
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ValueError(f"{where}: '{name}' is {found!r}; expected tables, as [[{name}]]")
    return found


def _without_where(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name != "where"}


def _with_words(
    axes: Mapping[str, list[Value]], tables: Sequence[Mapping[str, Any]], where: str
) -> dict[str, list[Value]]:
    """The axes; those that are no option are words, which some text of the plan has to mention."""
    texts = [value for table in tables for value in table.values() if isinstance(value, str)]
    found = dict(axes)
    for axis, values in axes.items():
        is_option = axis.replace("-", "_") in FIELDS or axis == "preset"
        if any(value.raw is None for value in values) or is_option:
            continue
        if not any(f"{{{axis}}}" in text for text in texts):
            raise ValueError(
                f"{where}: axis '{axis}' is no option of gradlab train; expected one, a table of "
                f"named values, or a text of [options] that mentions {{{axis}}}"
            )
        found[axis] = [Value(value.label, {}, value.raw) for value in values]
    return found


def _cell(common: Mapping[str, Any], one: Combination, is_same: bool, where: str) -> Cell:
    where = f"{where}, cell {one.name}"
    written = {option.replace("-", "_"): value for option, value in filled(dict(common), one.place)}
    written |= one.varied | dict(filled(one.set_, one.place))
    values = options_of(TrainConfig, written, where)
    for name in DEALT:
        if name in values:
            raise ValueError(f"{where}: '{name}' is given by the matrix; leave it out")
    given = frozenset(values)
    try:
        base = preset(values.pop("preset", fitting(values.get("model"), values.get("task"))))
        config = replace(base, **values, out=Path(one.name))
        if config.device.startswith("cuda:"):
            raise ValueError(
                f"--device is {config.device}; expected auto, cpu or cuda: the matrix deals out "
                "GPUs"
            )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if is_same and config.split == "seed" and config.problem_seed is None:
        config = replace(config, problem_seed=0)
    varied = frozenset(one.varied) & FIELDS
    return Cell(one.name, one.place, config, varied, given & FIELDS)


def _check_different(cells: Sequence[Cell], where: str) -> None:
    """Two cells of one configuration are one run: an axis does nothing there."""
    seen: list[tuple[TrainConfig, str]] = []
    for cell in cells:
        config = replace(cell.config, out=Path())
        for other, name in seen:
            if other == config:
                raise ValueError(
                    f"{where}: cells {name} and {cell.name} are the same run; [[exclude]] one"
                )
        seen.append((config, cell.name))


def _check_test_sets(cells: Sequence[Cell], where: str) -> None:
    """Cells of a task are evaluated on the same problems."""
    found: dict[tuple[Any, ...], dict[tuple[Any, ...], str]] = defaultdict(dict)
    for cell in cells:
        config = cell.config
        options = tuple(sorted(config.task_options.items()))
        task = (config.task, config.data, options, config.difficulty, config.math_rule)
        held = (config.split, config.problem_seed, config.eval_problems)
        found[task].setdefault(held, cell.name)
    for (task, *_), sets in found.items():
        if len(sets) > 1:
            (one, first), (other, second), *_rest = sets.items()
            raise ValueError(
                f"{where}: cells {first} and {second} of task {task} would be evaluated on "
                f"different problems (split, problem-seed, eval-problems: {one} and {other}); give "
                "them the same, or say test-sets = 'differ' at the top of the plan"
            )
