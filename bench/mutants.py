"""Break one thing at a time in a module, and count how often its tests notice.

    python bench/mutants.py [--per-file 12] [--seconds 900] [--only NAME] [--survivors]

A mutant flips a comparison, swaps `and` with `or` or + with -, negates a condition, changes a
constant, or deletes a statement. The tests are collected once, in a copy of the tree, and run once
to learn which lines each of them runs. Every mutant is then tried in a fork that has everything
imported: its function gets the changed code, and the tests that run the changed line are run, the
quickest first, until the first failure. What stands at the level of the module has run when the
tests begin, and is not changed. Adds to bench/results/mutants.json, which holds every mutant that
was tried, and writes it out as bench/results/mutants.md; `--survivors` tries those again that were
not noticed, say after a test was written.
"""

from __future__ import annotations

import argparse
import ast
import copy
import gc
import importlib
import json
import math
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

ROOT = Path(__file__).parent.parent
STATE = ROOT / "bench" / "results" / "mutants.json"
RESULT = STATE.with_suffix(".md")
TESTS: dict[str, tuple[str, ...]] = {
    "trainers/advantages.py": ("test_advantages", "test_estimators"),
    "trainers/credit.py": ("test_rewards", "test_advantages", "test_estimators", "test_own_parts"),
    "trainers/correction.py": ("test_correction",),
    "trainers/batches.py": ("test_minibatches", "test_losses"),
    "trainers/learn.py": ("test_losses", "test_ledger"),
    "trainers/rollout.py": ("test_rollout", "test_sampler"),
    "trainers/policies.py": ("test_own_settings", "test_sampler"),
    "trainers/models/routing.py": ("test_config",),
    "trainers/models/sampler.py": ("test_sampler",),
    "trainers/models/local_sampler.py": ("test_sampler",),
    "gradlab/ledger.py": ("test_ledger", "test_advantages"),
    "gradlab/records.py": ("test_ledger", "test_writer"),
    "gradlab/workflows.py": ("test_workflows", "test_one_shot"),
    "gradlab/own_parts.py": ("test_own_parts", "test_estimators"),
    "gradlab/store/packing.py": ("test_writer",),
    "analysis/detectors/table.py": ("test_remedies",),
    "analysis/detectors/silent_agent.py": ("test_silent_agent",),
    "analysis/detectors/shape.py": ("test_levels", "test_silent_agent"),
    "analysis/explain/order.py": ("test_causes",),
    "analysis/explain/beginning.py": ("test_causes",),
    "analysis/explain/suspects.py": ("test_causes",),
    "analysis/cliff/cliff.py": ("test_cliff",),
    "analysis/cliff/scan.py": ("test_scan",),
    "analysis/cliff/noise.py": ("test_cliff",),
    "analysis/cliff/fall.py": ("test_cliff",),
    "gradlab/interop/logs/naming/names.py": ("test_interop_names", "test_interop_matching"),
    "gradlab/store/writer.py": ("test_writer",),
}
"""Module -> the test files about it."""
LONGEST = 30.0
"""Seconds of a mutant's tests, as they took unchanged; quickest first, so the slow are left out."""
PATIENCE = 4.0
"""A mutant whose tests take this many times as long counts as noticed: it does not end."""
GRACE = 20.0
"""Seconds more that it has: what is loaded once was loaded by a test that may not be among them."""

FLIPPED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
SWAPPED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change of one module, and what became of it."""

    module: str
    line: int
    before: str
    after: str
    noticed: bool = False
    """When it was first tried."""
    now: bool = False
    """When it was last tried."""
    equivalent: str = ""
    """Why no test can notice it; written by hand."""

    @property
    def key(self) -> tuple[str, int, str, str]:
        return self.module, self.line, self.before, self.after


@dataclass(frozen=True)
class Change:
    """A mutant, and what it takes to try it."""

    mutant: Mutant
    tree: ast.Module
    function: tuple[str, int]
    """Name and line of the outermost function that it is in."""
    lines: frozenset[int]
    """Of the statement that is changed, or of its head."""


def places(tree: ast.Module) -> list[tuple[int, int]]:
    """What can be changed inside functions: number of the node, and of the change to it."""
    inside = {id(n) for f in functions(tree) for body in f.body for n in ast.walk(body)}
    return [
        (i, k)
        for i, node in enumerate(ast.walk(tree))
        for k, (place, _) in enumerate(changes(node))
        if id(place) in inside
    ]


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """The outermost functions: of the module and of its classes."""
    blocks: list[ast.stmt] = list(tree.body)
    for node in blocks:
        if isinstance(node, ast.FunctionDef):
            yield node
        elif isinstance(node, ast.ClassDef):
            blocks.extend(node.body)


def changed(module: str, tree: ast.Module, i: int, k: int) -> Change:
    """The k-th change of the i-th node, in a copy of the tree."""
    other = copy.deepcopy(tree)
    target = next(n for j, n in enumerate(ast.walk(other)) if j == i)
    place, change = [*changes(target)][k]
    within = next(f for f in functions(other) if any(n is place for n in ast.walk(f)))
    first = min([within.lineno, *(d.lineno for d in within.decorator_list)])
    statements = [
        n for n in ast.walk(within) if isinstance(n, ast.stmt) and any(m is place for m in own(n))
    ]
    lines = frozenset(
        line for m in own(statements[0]) for line in range(at(m)[0], at(m)[1] + 1) if line
    )
    line, before = at(place)[0], ast.unparse(place)
    change()
    ast.fix_missing_locations(other)
    after = "pass" if place is not target else ast.unparse(target)
    return Change(Mutant(module, line, before, after), other, (within.name, first), lines)


def own(statement: ast.stmt) -> Iterator[ast.AST]:
    """The nodes of a statement that are not in statements within it."""
    yield statement
    todo = list(ast.iter_child_nodes(statement))
    while todo:
        node = todo.pop()
        if not isinstance(node, ast.stmt):
            yield node
            todo.extend(ast.iter_child_nodes(node))


def at(node: ast.AST) -> tuple[int, int]:
    """First and last line; only the first of a statement, whose parts say the rest."""
    first = getattr(node, "lineno", 0)
    is_simple = not isinstance(node, ast.stmt) or not hasattr(node, "body")
    return first, (getattr(node, "end_lineno", first) if is_simple else first)


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


@dataclass(frozen=True)
class Seen:
    """What a test did when nothing was changed."""

    passed: bool
    seconds: float
    work: float
    """Of this process, in seconds; that of its children is in `seconds` alone."""
    lines: frozenset[tuple[str, int]]
    """(module, line)"""


class Trial:
    """A pytest plugin: tries mutants on the collected tests instead of running them."""

    def __init__(
        self,
        tree: Path,
        chosen: Sequence[Change],
        seconds: float,
        folder: Path,
        seen: Path | None,
    ) -> None:
        self.tree, self.chosen, self.seconds, self.folder = tree, chosen, seconds, folder
        self.seen = seen or folder / "seen"
        self.has_failed = False
        self.checked: set[str] = set()
        """Modules whose tests pass with their own code put in again."""
        self.was_stopped = False
        self.unfit: set[str] = set()
        """Those whose tests do not."""

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.has_failed |= report.failed
        if report.failed:
            print(report.nodeid, report.longreprtext[-2500:], flush=True)

    def pytest_runtestloop(self, session: Any) -> bool:
        begun = time.monotonic()
        modules = sorted({one.mutant.module for one in self.chosen})
        for module in modules:
            importlib.import_module(module.removesuffix(".py").replace("/", "."))
        held = self.held(modules)
        if not self.seen.exists():
            self.forked(lambda: self.learn(session.items, modules), 3600)
        seen: dict[str, Seen] = pickle.loads(self.seen.read_bytes())
        print(f"{len(seen)} tests, {time.monotonic() - begun:.0f} s", flush=True)
        for change in self.chosen:
            if time.monotonic() - begun > self.seconds:
                break
            self.record(change, held, seen, session.items)
        return True

    def record(self, change: Change, held: Any, seen: dict[str, Seen], items: Any) -> None:
        """Try one mutant and write down what became of it."""
        mutant = change.mutant
        touching = [
            item
            for item in items
            if seen[item.nodeid].passed
            and any((mutant.module, line) in seen[item.nodeid].lines for line in change.lines)
        ]
        touching.sort(key=lambda item: seen[item.nodeid].seconds)
        tests: list[Any] = []
        total = 0.0
        for item in touching:
            total += seen[item.nodeid].seconds
            if tests and total > LONGEST:
                break
            tests.append(item)
        functions = held[mutant.module].get(change.function, [])
        if not functions:
            print(f"{mutant.module}:{mutant.line} is in no function that stands", flush=True)
            return
        if not tests:
            print(f"{mutant.module}:{mutant.line} is run by none of these tests", flush=True)
            return
        before = time.monotonic()
        limit = PATIENCE * (sum(seen[item.nodeid].seconds for item in tests) + GRACE)
        work = PATIENCE * sum(seen[item.nodeid].work for item in tests) + GRACE
        if mutant.module in self.unfit:
            return
        if mutant.module not in self.checked:
            source = (self.tree / mutant.module).read_text(encoding="utf-8")
            same = replace(change, tree=ast.parse(source))
            if not self.forked(lambda: self.run(same, functions, tests), limit, work):
                print((self.folder / "said").read_text(errors="replace")[-3000:])
                print(f"{mutant.module}: its tests fail with the same code put in", flush=True)
                self.unfit.add(mutant.module)
                return
            self.checked.add(mutant.module)
        survived = self.forked(lambda: self.run(change, functions, tests), limit, work)
        keep(replace(mutant, noticed=not survived, now=not survived))
        how = "SURVIVED" if survived else "stopped" if self.was_stopped else "killed"
        print(f"{mutant.module}:{mutant.line} {how} "
              f"({len(tests)} of {len(touching)} tests, {time.monotonic() - before:.0f} s): "
              f"{mutant.before[:80]!r} -> {mutant.after[:80]!r}", flush=True)  # fmt: skip

    def held(self, modules: Sequence[str]) -> dict[str, dict[tuple[str, int], list[FunctionType]]]:
        """The functions of the modules, by name and line."""
        found: dict[str, dict[tuple[str, int], list[FunctionType]]] = {m: {} for m in modules}
        files = {str(self.tree / module): module for module in modules}
        for one in gc.get_objects():
            if type(one) is FunctionType and one.__code__.co_filename in files:
                code = one.__code__
                place = found[files[code.co_filename]]
                place.setdefault((code.co_name, code.co_firstlineno), []).append(one)
        return found

    def forked(self, work: Callable[[], bool], limit: float, cpu: float = 3600) -> bool:
        """What `work` returns in a child; False if it takes longer, or more of the processor."""
        child = os.fork()
        if child == 0:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(cpu), math.ceil(cpu)))
            quiet = os.open(self.folder / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            is_good = False
            try:
                is_good = work()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(0 if is_good else 1)
        end = time.monotonic() + limit
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                self.was_stopped = os.WIFSIGNALED(status)
                return status == 0
            time.sleep(0.02)
        self.was_stopped = True
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return False

    def learn(self, items: Any, modules: Sequence[str]) -> bool:
        """Run all tests, and write down which lines of the modules each runs."""
        files = {str(self.tree / module): module for module in modules}
        lines: set[tuple[str, int]] = set()

        def line(frame: FrameType, event: str, _: Any) -> Any:
            lines.add((files[frame.f_code.co_filename], frame.f_lineno))
            return line

        def call(frame: FrameType, event: str, _: Any) -> Any:
            return line if frame.f_code.co_filename in files else None

        seen = {}
        for item, following in zip(items, [*items[1:], None], strict=True):
            self.has_failed, begun, worked = False, time.monotonic(), time.process_time()
            lines.clear()
            sys.settrace(call)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            sys.settrace(None)
            took, work = time.monotonic() - begun, time.process_time() - worked
            seen[item.nodeid] = Seen(not self.has_failed, took, work, frozenset(lines))
        self.seen.write_bytes(pickle.dumps(seen))
        return True

    def run(self, change: Change, functions: Sequence[FunctionType], items: Any) -> bool:
        """Whether all of these tests pass with the change made."""
        file = self.tree / change.mutant.module
        code = compile(change.tree, str(file), "exec", dont_inherit=True)
        new = next(one for one in nested(code) if (one.co_name, one.co_firstlineno)
                   == change.function)  # fmt: skip
        for function in functions:
            function.__code__ = new
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.has_failed:
                return False
        return True


def nested(code: CodeType) -> Iterator[CodeType]:
    """The code of everything that stands in a code, outermost first."""
    todo = [code]
    for one in todo:
        yield one
        todo.extend(const for const in one.co_consts if isinstance(const, CodeType))


def known() -> dict[tuple[str, int, str, str], Mutant]:
    """Every mutant that was tried so far."""
    rows = json.loads(STATE.read_text(encoding="utf-8")) if STATE.exists() else []
    found = [Mutant(**row) for row in rows]
    return {one.key: one for one in found}


def keep(mutant: Mutant) -> None:
    """Write down a mutant that was tried; how it went the first time stays."""
    every = known()
    first = every.get(mutant.key)
    every[mutant.key] = replace(first, now=mutant.now) if first is not None else mutant
    order = sorted(every.values(), key=lambda one: (one.module, one.line, one.before, one.after))
    rows = ",\n".join(json.dumps(asdict(one)) for one in order)
    STATE.write_text(f"[\n{rows}\n]\n", encoding="utf-8")
    RESULT.write_text(document(order), encoding="utf-8")


def sample(per_file: int, only: str, is_again: bool) -> list[Change]:
    """The mutants to try: a random sample per module, or those that were not noticed."""
    before, chosen = known(), []
    for module in TESTS:
        if not any(part in module for part in only.split(",")):
            continue
        tree = ast.parse((ROOT / module).read_text(encoding="utf-8"))
        every = places(tree)
        if not is_again:
            every = random.Random(module).sample(every, min(per_file, len(every)))
        missed = {one.key for one in before.values() if not one.now and not one.equivalent}
        if is_again and not any(one[0] == module for one in missed):
            continue
        for i, k in every:
            change = changed(module, tree, i, k)
            if (change.mutant.key in missed) if is_again else (change.mutant.key not in before):
                chosen.append(change)
    turn: dict[str, int] = {}
    order = []
    for one in chosen:  # a mutant of each module, then the next of each: time may be short
        turn[one.mutant.module] = turn.get(one.mutant.module, 0) + 1
        order.append(turn[one.mutant.module])
    return [chosen[i] for i in sorted(range(len(chosen)), key=lambda i: order[i])]


def document(tried: Sequence[Mutant]) -> str:
    """What was tried, as Markdown."""
    lines = [
        "| module | tried | noticed at first | with the new tests | equivalent |",
        "|---|---|---|---|---|",
    ]
    modules = list(dict.fromkeys(one.module for one in tried))
    for name in [*modules, ""]:
        mine = [one for one in tried if name in ("", one.module)]
        counts = (sum(map(bool, (getattr(one, what) for one in mine)))
                  for what in ("noticed", "now", "equivalent"))  # fmt: skip
        row = [f"`{name}`" if name else "all", str(len(mine)), *map(str, counts)]
        lines.append(f"| {' | '.join(row)} |")
    lines += ["", "## Not noticed", ""]
    for one in tried:
        if not one.now:
            before, after = (" ".join(text.split())[:110] for text in (one.before, one.after))
            why = f": equivalent, {one.equivalent}" if one.equivalent else ""
            lines.append(f"- `{one.module}` line {one.line}: `{before}` -> `{after}`{why}")
    return HEAD + "\n".join(lines) + "\n"


HEAD = """# Mutants

One thing broken at a time inside the functions of a module (a comparison, a condition, an operator,
a constant, a deleted statement), a random sample per module, against the tests of its own test
files that run the changed line, until the first failure. Lines that none of these files runs, and
what stands at the level of a module, are left out. `bench/mutants.py` tries them again;
`mutants.json` beside this page holds every one. "with the new tests" counts once more after a test
was written for what had not been noticed. A mutant is equivalent where no test can tell it from the
original. Python 3.11.7, torch 2.13.0, numpy 2.4.6, scipy 1.17.1, pytest 9.2.0; two processor cores,
shared with other work.

"""


def preload() -> None:
    """Import what takes seconds."""
    import peft  # noqa: F401
    import scipy.optimize
    import scipy.stats  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--per-file", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=1e9, help="for all files together")
    parser.add_argument(
        "--only", default="", help="modules whose path holds this, or one of several with commas"
    )
    parser.add_argument("--survivors", action="store_true", help="those that were not noticed")
    parser.add_argument("--tests", default="", help="those whose names fit, as in pytest's -k")
    parser.add_argument("--seen", type=Path, help="keep here what each test runs, and use it")
    given = parser.parse_args()
    chosen = sample(given.per_file, given.only, given.survivors)
    preload()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        tree = folder / "tree"
        skipped = shutil.ignore_patterns(".git", ".venv", "__pycache__", "old_runs", ".*_cache")
        shutil.copytree(ROOT, tree, ignore=skipped)
        os.chdir(tree)
        sys.path[0] = str(tree)  # in place of bench/
        os.environ["PYTHONPATH"] = str(tree)
        import pytest

        modules = {one.mutant.module for one in chosen}
        files = dict.fromkeys(f for m in TESTS if m in modules for f in TESTS[m])
        pytest.main(
            ["-s", "-pno:cacheprovider", f"--basetemp={folder / 'tmp'}", "-k", given.tests,
             "-Wignore:Module already imported", *(f"tests/{file}.py" for file in files)],
            plugins=[Trial(tree, chosen, given.seconds, folder, given.seen)],
        )  # fmt: skip
        os.chdir(ROOT)


if __name__ == "__main__":
    main()
