"""Say which field of a record a logged metric goes to, in words that a map file can hold."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from gradlab.records import (
    RoleEvaluation,
    RoleLedger,
    RunLedger,
    UpdateMetrics,
    names,
)

Kind = Literal[
    "RunLedger", "RoleLedger", "UpdateMetrics", "RoleEvaluation", "Evaluation", "Gradient"
]
FIELDS: dict[Kind, tuple[str, ...]] = {
    "RunLedger": names(RunLedger),
    "RoleLedger": names(RoleLedger),
    "UpdateMetrics": names(UpdateMetrics),
    "RoleEvaluation": names(RoleEvaluation),
    "Evaluation": ("accuracy", "answers"),
    "Gradient": ("norm", "cosine"),
}
SUBJECT: dict[Kind, str] = {
    "RunLedger": "",
    "RoleLedger": "role",
    "UpdateMetrics": "policy",
    "RoleEvaluation": "role",
    "Evaluation": "",
    "Gradient": "role",
}
WRITTEN = re.compile(r"^\s*(\w+)\s*(?:\(([^)]*)\))?\s*\.\s*(\w+)\s*$")
EXAMPLES = (
    "RunLedger.accuracy, RoleLedger(generator).length_mean, UpdateMetrics(shared).learning_rate, "
    "Gradient(generator).norm, Gradient(generator, judge).cosine, Evaluation.accuracy, "
    "Evaluation.answers, RoleEvaluation(generator).own_accuracy"
)
SHARES = {
    "accuracy",
    "own_accuracy",
    "outcome_accuracy",
    "any_correct",
    "choice_accuracy",
    "false_accept",
    "false_reject",
    "truncated",
    "parse_failures",
    "clip_fraction",
    "zero_variance_groups",
    "all_right_groups",
    "all_wrong_groups",
    "code_form",
    "stamp_form",
    "terse",
    "hedging",
    "echo",
    "sibling_jaccard",
    "singleton_groups",
    "loss_weight",
    "coverage",
}
"""Fields that are shares: a percentage there is a mistake."""
POSITIVE = {
    "norm",
    "grad_norm",
    "learning_rate",
    "entropy",
    "perplexity",
    "length_mean",
    "length_p95",
    "answers",
}
"""Fields that cannot be below 0."""


@dataclass(frozen=True)
class Target:
    """A field of a record, of a role or policy where the record is about one.

    Example:
        >>> str(Target.parse("RoleLedger( generator ).length_mean"))
        'RoleLedger(generator).length_mean'
    """

    kind: Kind
    name: str
    subject: tuple[str, ...] = ()

    def __str__(self) -> str:
        of = f"({', '.join(self.subject)})" if self.subject else ""
        return f"{self.kind}{of}.{self.name}"

    @classmethod
    def parse(cls, text: str) -> Target:
        """From the words of a map file; a ValueError says what is wrong with them."""
        found = WRITTEN.match(text)
        if not found or found[1] not in get_args(Kind):
            raise ValueError(f"'{text}' is no field; expected such as {EXAMPLES}")
        kind: Kind = found[1]  # type: ignore[assignment]  # checked above
        subject = tuple(part.strip() for part in (found[2] or "").split(",") if part.strip())
        name = found[3]
        if name not in FIELDS[kind]:
            raise ValueError(
                f"'{text}': {kind} has no field '{name}'; it has {_list(FIELDS[kind])}"
            )
        expected = 2 if name == "cosine" else 1 if SUBJECT[kind] else 0
        if len(subject) != expected:
            wanted = f"{expected} {SUBJECT[kind] or 'name'}{'s' if expected > 1 else ''}"
            raise ValueError(
                f"'{text}': names {len(subject)}, expected {wanted} in the brackets, such as in "
                f"{EXAMPLES}"
            )
        return cls(kind, name, subject)

    def wrong(self, value: float) -> str:
        """What is wrong with a value of this field; '' if nothing is, or it is NaN."""
        if self.name in SHARES and not -1e-9 <= value <= 1 + 1e-9 and value == value:
            return f"{value:g}, expected 0 to 1"
        if self.name in POSITIVE and value < 0:
            return f"{value:g}, expected 0 or more"
        if self.name == "cosine" and abs(value) > 1 + 1e-6:
            return f"{value:g}, expected a cosine between -1 and 1"
        return ""


def scale_hint(value_T: NDArray[np.float64]) -> str:
    """How values that are no shares may become shares: by what a map adds and multiplies by."""
    known = value_T[np.isfinite(value_T)]
    lowest, highest = float(known.min()), float(known.max())
    if lowest < 0:
        if lowest >= -1 and highest <= 1:
            return "; with rewards of -1 and 1 say plus: 1, times: 0.5 in a map"
        return "; rewards are no accuracies unless a map makes them so with plus and times"
    if highest <= 2:
        return "; with rewards of 0 and 2 say times: 0.5 in a map"
    if highest <= 100:
        return "; if it is a percentage, say times: 0.01 in a map"
    return "; a map's plus and times may make it a share"


@dataclass(frozen=True)
class ColumnMap:
    """What a map file says; see docs/interop.md."""

    columns: Mapping[str, tuple[Target, ...]] = field(default_factory=dict)
    times: Mapping[str, float] = field(default_factory=dict)
    """Factors for columns in other units."""
    plus: Mapping[str, float] = field(default_factory=dict)
    """What is added to a column, before the factor."""
    step: str | None = None
    routing: str | Mapping[str, str] | None = None
    eval_size: str | None = None
    about: Mapping[str, str] = field(default_factory=dict)
    """workflow, task and model."""


KEYS = ("columns", "step", "routing", "eval_size", "workflow", "task", "model")


def read_map(path: Path) -> ColumnMap:
    """A map file: YAML or JSON."""
    document = _document(path)
    if not isinstance(document, dict) or not isinstance(document.get("columns"), dict):
        raise ValueError(
            f"{path}: expected an object with 'columns', a mapping of column to field; got "
            f"{sorted(document) if isinstance(document, dict) else type(document).__name__}"
        )
    unknown = sorted(set(document) - set(KEYS))
    if unknown:
        raise ValueError(f"{path}: unknown {', '.join(unknown)}; it may hold {', '.join(KEYS)}")
    columns: dict[str, tuple[Target, ...]] = {}
    times: dict[str, float] = {}
    plus: dict[str, float] = {}
    for column, entry in document["columns"].items():
        where = f"{path}, column '{column}'"
        scale: dict[str, Any] = {"plus": 0.0, "times": 1.0}
        if isinstance(entry, dict):
            if not {"to"} <= set(entry) <= {"to", *scale}:
                raise ValueError(
                    f"{where}: expected 'to' and maybe 'times' and 'plus', got {sorted(entry)}"
                )
            scale |= {key: value for key, value in entry.items() if key != "to"}
            entry = entry["to"]
        for key, value in scale.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{where}: {key} is {value!r}, expected a number")
        texts = entry if isinstance(entry, list) else [entry]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{where}: is {entry!r}, expected a field such as {EXAMPLES}")
        try:
            columns[str(column)] = tuple(Target.parse(text) for text in texts)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        times[str(column)] = float(scale["times"])
        plus[str(column)] = float(scale["plus"])
    twice = [target for targets in columns.values() for target in targets]
    for target in twice:
        if twice.count(target) > 1:
            raise ValueError(f"{path}: more than one column goes to {target}; leave one out")
    about = {key: str(document[key]) for key in ("workflow", "task", "model") if key in document}
    size = document.get("eval_size")
    return ColumnMap(
        columns,
        times,
        plus,
        document.get("step"),
        _routing(path, document.get("routing")),
        None if size is None else str(size),
        about,
    )


def _routing(path: Path, given: Any) -> str | dict[str, str] | None:
    if given is None or isinstance(given, str):
        return given
    if isinstance(given, dict):
        return {str(role): str(policy) for role, policy in given.items()}
    raise ValueError(f"{path}: routing is {given!r}, expected shared, isolated or role: policy")


def _document(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"--map {path}: there is no such file; expected YAML or JSON")
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() == ".json":
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: not JSON ({error.msg} in line {error.lineno})") from error
    try:
        import yaml
    except ImportError as error:
        raise ValueError(
            f"{path}: reading YAML needs PyYAML ({error}); pip install pyyaml, or write the map as "
            f"JSON in a file that ends in .json"
        ) from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {error}") from error


def _list(items: tuple[str, ...]) -> str:
    return ", ".join(items)
