"""Break one thing at a time in a module, and count how often its tests notice.

    python bench/mutants.py [--per-file 15] [--seconds 900] [--only NAME]

A mutant flips a comparison, swaps `and` with `or` or + with -, negates a condition, changes a
constant, or deletes a statement. Each runs in a copy of the tree against the test files of its
module, until the first failure. Writes bench/results/mutants.md.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "bench" / "results" / "mutants.md"
TESTS: dict[str, tuple[str, ...]] = {
    "gradlab/interop/logs/naming/names.py": ("test_interop_names", "test_interop_matching"),
    "gradlab/store/writer.py": ("test_writer", "test_store"),
    "trainers/learn.py": ("test_losses", "test_ledger", "test_exactness"),
    "analysis/explain/suspects.py": ("test_causes", "test_story"),
    "analysis/cliff/fall.py": ("test_real_curves", "test_cliff"),
    "analysis/cliff/cliff.py": ("test_real_curves", "test_cliff"),
}
"""Module -> the test files about it."""
LONGEST = 150
"""Seconds after which a mutant counts as noticed: it does not end."""

FLIPPED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
SWAPPED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change of one module."""

    line: int
    before: str
    after: str
    source: str


def mutants(source: str) -> list[Mutant]:
    """All mutants of a module, in the order of its nodes."""
    tree = ast.parse(source)
    found = []
    for i, node in enumerate(ast.walk(tree)):
        for k, _ in enumerate(changes(node)):
            other = copy.deepcopy(tree)
            target = next(n for j, n in enumerate(ast.walk(other)) if j == i)
            place, change = [*changes(target)][k]
            line, before = getattr(place, "lineno", 0), ast.unparse(place)
            change()
            ast.fix_missing_locations(other)
            after = "pass" if place is not target else ast.unparse(target)
            found.append(Mutant(line, before, after, ast.unparse(other)))
    return found


def changes(node: ast.AST) -> Iterator[tuple[ast.AST, Callable[[], None]]]:
    """What can be done to a node: what is changed, and a function that does it in place."""
    match node:
        case ast.Compare(ops=[op]) if type(op) in FLIPPED:
            yield node, lambda: setattr(node, "ops", [FLIPPED[type(op)]()])
        case ast.BoolOp(op=op):
            other = ast.Or if isinstance(op, ast.And) else ast.And
            yield node, lambda: setattr(node, "op", other())
        case ast.BinOp(op=op) if type(op) in SWAPPED and not _is_text(node):
            yield node, lambda: setattr(node, "op", SWAPPED[type(op)]())
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
            yield node, lambda: setattr(node, "test", ast.UnaryOp(ast.Not(), test))
        case ast.Constant(value=bool(value)):
            yield node, lambda: setattr(node, "value", not value)
        case ast.Constant(value=int() | float() as value):
            yield node, lambda: setattr(node, "value", value + 1)
    for name in ("body", "orelse"):
        block = getattr(node, name, None)
        if isinstance(block, list) and not isinstance(node, ast.Module | ast.ClassDef):
            for i, statement in enumerate(block):
                if _is_deletable(statement):
                    yield statement, partial(block.__setitem__, i, ast.Pass())


def _is_text(node: ast.BinOp) -> bool:
    """Whether it joins strings, where a minus is no mistake that anybody makes."""
    return any(
        isinstance(side, ast.JoinedStr)
        or (isinstance(side, ast.Constant) and isinstance(side.value, str))
        for side in (node.left, node.right)
    )


def _is_deletable(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Expr):
        return not isinstance(statement.value, ast.Constant)  # a docstring
    return isinstance(statement, ast.AugAssign | ast.Continue | ast.Break | ast.Delete)


def survives(tree: Path, tests: tuple[str, ...]) -> bool:
    """Whether the tests pass in the copy; in a child, which has the libraries already."""
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(tree)
        sys.path[0] = str(tree)  # in place of bench/
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        import pytest

        files = [f"tests/{name}.py" for name in tests]
        os._exit(
            int(
                pytest.main(
                    ["-xq", "-pno:cacheprovider", "-Wignore:Module already imported", *files]
                )
            )
        )
    end = time.monotonic() + LONGEST
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def preload() -> None:
    """Import what takes seconds, and nothing of our own nor what pytest rewrites."""
    import numpy as np  # noqa: F401
    import peft  # noqa: F401
    import scipy.optimize
    import scipy.stats  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--per-file", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=1e9, help="for all files together")
    parser.add_argument("--only", default="", help="modules whose path holds this")
    given = parser.parse_args()
    preload()
    modules = [name for name in TESTS if given.only in name]
    begun, tables = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        skipped = shutil.ignore_patterns(".git", ".venv", "__pycache__", "old_runs", ".*_cache")
        shutil.copytree(ROOT, tree, ignore=skipped)
        for k, module in enumerate(modules):
            end = begun + given.seconds * (k + 1) / len(modules)
            tables.append(table(tree, module, given.per_file, end))
            RESULT.write_text(document(tables), encoding="utf-8")


@dataclass(frozen=True)
class Table:
    """What was done to one module."""

    module: str
    possible: int
    tried: int
    survivors: tuple[Mutant, ...]


def table(tree: Path, module: str, per_file: int, end: float) -> Table:
    """Try a random sample of a module's mutants, as long as there is time."""
    target, tests = tree / module, TESTS[module]
    source = target.read_text(encoding="utf-8")
    if not survives(tree, tests):
        raise SystemExit(f"{module}: its tests fail as it is: {', '.join(tests)}")
    every = mutants(source)
    chosen = random.Random(module).sample(every, min(per_file, len(every)))
    survivors, tried = [], 0
    for mutant in chosen:
        if tried and time.monotonic() > end:
            break
        target.write_text(mutant.source, encoding="utf-8")
        if survives(tree, tests):
            survivors.append(mutant)
        tried += 1
        print(f"{module}:{mutant.line} {'SURVIVED' if mutant in survivors else 'killed'}: "
              f"{mutant.before[:80]!r} -> {mutant.after[:80]!r}", flush=True)  # fmt: skip
    target.write_text(source, encoding="utf-8")
    return Table(module, len(every), tried, tuple(survivors))


def document(tables: list[Table]) -> str:
    """The tables as Markdown."""
    tried = sum(one.tried for one in tables)
    killed = tried - sum(len(one.survivors) for one in tables)
    lines = [
        "# Mutants",
        "",
        "One thing broken at a time (a comparison, a condition, an operator, a constant, a deleted",
        "statement), a random sample per module, against the module's own test files until the",
        f"first failure: {killed} of {tried} were noticed. `bench/mutants.py` tries them again.",
        "",
        "| module | possible | tried | noticed | tests |",
        "|---|---|---|---|---|",
    ]
    for one in tables:
        noticed = one.tried - len(one.survivors)
        tests = ", ".join(TESTS[one.module])
        lines.append(f"| `{one.module}` | {one.possible} | {one.tried} | {noticed} | {tests} |")
    lines += ["", "## Not noticed", ""]
    for one in tables:
        for mutant in one.survivors:
            before, after = (" ".join(text.split())[:90] for text in (mutant.before, mutant.after))
            lines.append(f"- `{one.module}` line {mutant.line}: `{before}` became `{after}`")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
