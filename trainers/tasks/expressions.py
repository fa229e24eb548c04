"""Run an integer expression in x that a model wrote, in a language too small to do harm.

Numbers, x, + - * // %, parentheses, min and max: anything else is no expression. Python's own
`eval` would run whatever a model says inside the trainer; the sandbox that real programs get
(`trainers.sandbox`) starts a process, which thousands of one-line answers per step need not pay.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Sequence

MAX_CHARACTERS = 64
"""Longer texts are refused unread: this bounds nesting, and the time spent on hostile input."""
MAX_MAGNITUDE = 10**9
"""No value on the way may be larger: factors stay small, whatever is multiplied."""

_TOKENS = re.compile(r"(?:[0-9]|x|min|max|//|[-+*%(), ])+")
_NUMBER_RUN_INTO_A_WORD = re.compile(r"\d[a-z]")
_BINARY: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_CALLS: dict[str, Callable[[list[int]], int]] = {"min": min, "max": max}


class NotAnExpression(ValueError):
    """The text is outside of the language, or has no value."""


def values(text: str, inputs: Sequence[int]) -> list[int] | None:
    """The expression's value at every input; None if it is none, or has no value at one of them."""
    try:
        tree = _parse(text)
        return [_value(tree, x) for x in inputs]
    except NotAnExpression:
        return None


def agrees(text: str, examples: Sequence[tuple[int, int]]) -> bool:
    """Whether the expression gives every output from its input."""
    return values(text, [x for x, _ in examples]) == [y for _, y in examples]


def _parse(text: str) -> ast.expr:
    # Checked before Python's parser sees it: some texts make it warn, or exhaust its stack.
    if len(text) > MAX_CHARACTERS or not _TOKENS.fullmatch(text):
        raise NotAnExpression(text)
    if _NUMBER_RUN_INTO_A_WORD.search(text):
        raise NotAnExpression(text)
    try:
        return ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise NotAnExpression(text) from error


def _value(node: ast.expr, x: int) -> int:
    """The value of one node: what is not listed here does not exist in the language."""
    match node:
        case ast.Constant(value=int(number)):
            value = number
        case ast.Name(id="x"):
            value = x
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            value = -_value(operand, x)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            value = _binary(type(op), _value(left, x), _value(right, x))
        case ast.Call(func=ast.Name(id="min" | "max" as name), args=args, keywords=[]) if (
            len(args) > 1
        ):
            value = _CALLS[name]([_value(argument, x) for argument in args])
        case _:
            raise NotAnExpression(ast.dump(node))
    if abs(value) > MAX_MAGNITUDE:
        raise NotAnExpression(f"a value beyond {MAX_MAGNITUDE}")
    return value


def _binary(op: type[ast.operator], left: int, right: int) -> int:
    if right == 0 and op in (ast.FloorDiv, ast.Mod):
        raise NotAnExpression("division by zero")
    return _BINARY[op](left, right)
