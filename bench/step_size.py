"""Count what one reads to follow a training step: functions, lines, files and named types.

    python bench/step_size.py [FOLDER OF A CHECKOUT]

The closure of uses from `train_step`: every function, method and property of the project that it
reaches. What a name means is asked of mypy, so `seat.play.send` is no call of a `send` of ours, and
a call of a protocol's method is a call of the protocol's, not of everything called alike.

The lines are told apart by what they are. The step is what leads from `train_step` to the loss and
back. Recording is what a step does to be read later. Behind an interface stand the parts that a
step is given and that have others in their place: who samples, who judges, what a workflow may
yield, the options, what measures gradients; there the closure ends at what the step itself calls.
Graders, the sandbox, tasks and the store are left out.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mypy import build, nodes, types
from mypy.fscache import FileSystemCache
from mypy.main import process_options

LEFT_OUT = ("trainers/grading/", "trainers/sandbox/", "trainers/tasks/", "gradlab/store/")
RECORDING = ("gradlab/ledger", "gradlab/signature", "gradlab/records", "gradlab/run_directory",
             "trainers/watch/", "trainers/rundir/")  # fmt: skip
INTERFACES = ("trainers/judge", "trainers/config", "trainers/models/sampler", "gradlab/workflows",
              "gradlab/own_parts", "gradlab/probe/", "gradlab/readout/")  # fmt: skip
NOT_WRITTEN = ("node", "info", "type", "analyzed", "expanded", "original_def")
"""What mypy keeps with a node beside what is written in it."""
KINDS = ("the step", "recording", "behind an interface")


def inside(node: Any) -> Iterator[nodes.Expression]:
    """Every expression that is written inside a node of mypy's tree."""
    if isinstance(node, nodes.Expression):
        yield node
    written = [name for kind in type(node).__mro__ for name in getattr(kind, "__mypyc_attrs__", ())]
    for name in written:
        # Where a name leads is not written here, and types are not run.
        part = None if name in NOT_WRITTEN else getattr(node, name, None)
        for one in flat(part):
            yield from inside(one)


def flat(part: Any) -> Iterator[Any]:
    if isinstance(part, list | tuple):
        for one in part:
            yield from flat(one)
    elif isinstance(part, nodes.Expression | nodes.Statement | nodes.Argument):
        yield part


def uses(function: nodes.FuncDef, known: dict[nodes.Expression, types.Type]) -> set[str]:
    """Full names of all that a function uses."""
    found: set[str] = set()
    for node in inside(function):
        if isinstance(node, nodes.NameExpr | nodes.MemberExpr):
            found.add(node.fullname)
        if isinstance(node, nodes.MemberExpr):
            for info in classes_of(known.get(node.expr)):
                owners = [one.fullname for one in info.mro if node.name in one.names]
                found |= {f"{owners[0]}.{node.name}", owners[0]} if owners else set()
        elif isinstance(node, nodes.CallExpr):
            called = types.get_proper_type(known.get(node.callee))
            if isinstance(called, types.Instance):
                found.add(f"{called.type.fullname}.__call__")
    return found


def classes_of(found: types.Type | None) -> Iterator[nodes.TypeInfo]:
    """The classes whose member an attribute of this type may be."""
    found = types.get_proper_type(found)
    if isinstance(found, types.Instance):
        yield found.type
    elif isinstance(found, types.UnionType):
        for item in found.items:
            yield from classes_of(item)
    elif isinstance(found, types.TypeVarType):
        yield from classes_of(found.upper_bound)
    elif isinstance(found, types.CallableType) and found.is_type_obj():
        yield found.type_object()


class Checkout:
    """The functions and classes of a checkout, and what each function uses."""

    def __init__(self, root: Path) -> None:
        cache = FileSystemCache()
        files = [str(f) for top in ("gradlab", "trainers") for f in (root / top).rglob("*.py")]
        sources, options = process_options(
            ["--ignore-missing-imports", "--cache-dir", "/tmp/step-size-mypy", *files],
            fscache=cache, require_targets=True,
        )  # fmt: skip
        options.export_types = options.preserve_asts = True
        # A text given by hand is not taken from mypy's cache, which keeps no trees.
        read = [
            build.BuildSource(s.path, s.module, Path(s.path or "").read_text("utf-8"))
            for s in sources
        ]
        result = build.build(read, options, fscache=cache)
        self.types = result.types
        self.functions: dict[str, nodes.FuncDef] = {}
        self.file: dict[str, str] = {}
        self.classes: set[str] = set()
        self.differentiable: set[str] = set()
        """Classes that are functions with a gradient."""
        for module, tree in result.files.items():
            file = Path(tree.path).resolve()
            if module.partition(".")[0] in ("gradlab", "trainers") and file.is_relative_to(root):
                self._add(str(file.relative_to(root)), module, tree.defs)

    def _add(self, file: str, prefix: str, found: list[nodes.Statement]) -> None:
        for node in found:
            node = node.func if isinstance(node, nodes.Decorator) else node
            if isinstance(node, nodes.FuncDef | nodes.ClassDef):
                name = f"{prefix}.{node.name}"
                self.file[name] = file
                if isinstance(node, nodes.ClassDef):
                    self.classes.add(name)
                    bases = [base for base in node.base_type_exprs if hasattr(base, "fullname")]
                    if any(base.fullname.endswith(".autograd.function.Function") for base in bases):
                        self.differentiable.add(name)
                    self._add(file, name, node.defs.body)
                else:
                    self.functions[name] = node


def kind_of(file: str) -> str | None:
    """What a file's functions are to the step; None: left out."""
    for kind, files in ((None, LEFT_OUT), ("recording", RECORDING), (KINDS[2], INTERFACES)):
        if file.startswith(files):
            return kind
    return "the step"


def closure(checkout: Checkout, start: str) -> tuple[set[str], set[str]]:
    """(functions, classes) that are reached from `start`."""
    waiting, seen, classes = [start], set[str](), set[str]()
    while waiting:
        name = waiting.pop()
        kind = kind_of(checkout.file.get(name, "trainers/grading/"))
        if name in checkout.classes and kind is not None:
            classes.add(name)
            waiting.append(f"{name}.__post_init__")
            if name in checkout.differentiable:  # torch calls these
                waiting += [f"{name}.forward", f"{name}.backward"]
        if name in seen or name not in checkout.functions or kind is None:
            continue
        seen.add(name)
        used = uses(checkout.functions[name], checkout.types)
        # What stands behind an interface is not followed to its end.
        waiting += [one for one in used if kind != KINDS[2] or one in checkout.classes]
    return seen, classes


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent).resolve()
    checkout = Checkout(root)
    [start] = [name for name in checkout.functions if name.endswith(".train_step")]
    functions, classes = closure(checkout, start)
    sizes: dict[str, dict[str, int]] = {kind: defaultdict(int) for kind in KINDS}
    for name in functions:
        node = checkout.functions[name]
        file = checkout.file[name]
        sizes[str(kind_of(file))][file] += (node.end_line or node.line) - node.line + 1
    for kind in KINDS:
        print(f"{kind}: {sum(sizes[kind].values())} lines in {len(sizes[kind])} files")
        for file, count in sorted(sizes[kind].items()):
            module = file.removesuffix(".py").replace("/", ".")
            names = sorted(
                name.removeprefix(f"{module}.") for name in functions if checkout.file[name] == file
            )
            print(f"{count:5d}  {file:28s} {', '.join(names)}")
        named = sorted(
            name.rpartition(".")[2] for name in classes if kind_of(checkout.file[name]) == kind
        )
        print(f"       {len(named)} named types: {', '.join(named)}\n")


if __name__ == "__main__":
    main()
