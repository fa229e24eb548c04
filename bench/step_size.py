"""Count what one reads to follow a training step: functions, lines, files and named types.

    python bench/step_size.py [FOLDER OF A CHECKOUT]

The closure of calls from `train_step`: every function and method of trainers/ and of the ledger
that it reaches, by name. Graders, the sandbox, the probe and the store are left out: they are
measured, not trained. Named types are the classes whose fields or methods these functions use.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from pathlib import Path

LEFT_OUT = ("trainers/grading", "trainers/sandbox", "trainers/tasks", "gradlab/probe",
            "gradlab/store", "trainers/config.py")  # fmt: skip
INSIDE = ("trainers", "gradlab/ledger.py")


class Tree:
    """The functions, classes and imports of a checkout."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.functions: dict[tuple[str, str], ast.FunctionDef] = {}
        self.methods: dict[str, list[tuple[str, str]]] = defaultdict(list)
        self.classes: dict[tuple[str, str], ast.ClassDef] = {}
        self.imports: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)
        for file in [*sorted((root / "trainers").rglob("*.py")), root / "gradlab" / "ledger.py"]:
            if file.exists():
                self._read(str(file.relative_to(root)), ast.parse(file.read_text("utf-8")))

    def _read(self, name: str, tree: ast.Module) -> None:
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    path = f"{node.module.replace('.', '/')}.py"
                    self.imports[name][alias.asname or alias.name] = (path, alias.name)
                    whole = f"{node.module.replace('.', '/')}/{alias.name}.py"
                    if (self.root / whole).exists():
                        self.imports[name][alias.asname or alias.name] = (whole, "")
        for node in tree.body:
            if isinstance(node, ast.FunctionDef):
                self.functions[name, node.name] = node
            elif isinstance(node, ast.ClassDef):
                self.classes[name, node.name] = node
                for item in node.body:
                    if isinstance(item, ast.FunctionDef):
                        key = (name, f"{node.name}.{item.name}")
                        self.functions[key] = item
                        self.methods[item.name].append(key)

    def find(self, file: str, name: str) -> tuple[str, str]:
        """Where a name that a file uses is defined."""
        return self.imports[file].get(name, (file, name))


def is_counted(file: str) -> bool:
    return file.startswith(INSIDE) and not file.startswith(LEFT_OUT)


def closure(
    tree: Tree, start: tuple[str, str]
) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """(functions, classes) that are reached from `start`."""
    waiting, seen, types = [start], set[tuple[str, str]](), set[tuple[str, str]]()
    while waiting:
        key = waiting.pop()
        if key in seen or key not in tree.functions or not is_counted(key[0]):
            continue
        seen.add(key)
        file = key[0]
        for node in ast.walk(tree.functions[key]):
            if isinstance(node, ast.Name):
                found = tree.find(file, node.id)
                waiting.append(found)
                if found in tree.classes and is_counted(found[0]):
                    types.add(found)
                    waiting.append((found[0], f"{found[1]}.__call__"))
            elif isinstance(node, ast.Attribute):
                base = node.value
                if isinstance(base, ast.Name):  # a function of an imported module
                    module, _ = tree.imports[file].get(base.id, ("", ""))
                    waiting.append((module, node.attr))
                if len(tree.methods[node.attr]) == 1:
                    waiting += tree.methods[node.attr]
    return seen, types


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent).resolve()
    tree = Tree(root)
    [start] = [key for key in tree.functions if key[1] == "train_step"]
    functions, types = closure(tree, start)
    lines: dict[str, int] = defaultdict(int)
    for file, name in functions:
        node = tree.functions[file, name]
        lines[file] += (node.end_lineno or node.lineno) - node.lineno + 1
    for file, count in sorted(lines.items()):
        names = sorted(name for where, name in functions if where == file)
        print(f"{count:5d}  {file:38s} {', '.join(names)}")
    print(f"{sum(lines.values())} lines of {len(functions)} functions in {len(lines)} files")
    print(f"{len(types)} named types: {', '.join(sorted(name for _, name in types))}")


if __name__ == "__main__":
    main()
