"""Say how a program is tested: by its output, by a function's value, or by a test program.

Values are kept as JSON text, so that a problem is hashable and its tests are part of its hash.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True)
class StdinTest:
    """Run the program with `input` on standard input; it must print `output`."""

    input: str
    output: str


@dataclass(frozen=True)
class FunctionTest:
    """Call a function of the program; it must return `expected`.

    `fn_name` is a function, or a method of a class `Solution` where the program defines one.
    """

    fn_name: str
    arguments: str
    """JSON list of positional arguments."""
    expected: str
    """JSON value."""
    is_wrapped: bool = False
    """Whether `[value]` is also written where `value` is meant, as in APPS and TACO."""


@dataclass(frozen=True)
class AssertTest:
    """Run `code` after the program; it must not raise."""

    code: str
    setup: str = ""
    """Runs before the program."""


@dataclass(frozen=True)
class CheckProgram:
    """Run `code`, which defines `check(candidate)`, after the program; then call it with
    `entry_point`. Nothing may raise."""

    code: str
    entry_point: str
    prelude: str = ""
    """Runs before the program: the imports and helpers that the question gave."""


Test: TypeAlias = StdinTest | FunctionTest | AssertTest | CheckProgram


def as_json(test: Test) -> dict[str, Any]:
    """The test with its kind, e.g. {"kind": "StdinTest", "input": …}."""
    return {"kind": type(test).__name__, **asdict(test)}
