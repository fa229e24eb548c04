"""Arrows point down: figures -> analysis -> gradlab <- trainers, and who may import torch."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("gradlab", "trainers", "analysis", "figures")
MAY_IMPORT = {
    "gradlab": set(),
    "trainers": {"gradlab"},
    "analysis": {"gradlab"},
    "figures": {"gradlab", "analysis"},
}
LOOKS_UP = "gradlab/commands"


def files_of(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found, f"no file in {folder}"
    return found


def modules_of(folder: str) -> list[str]:
    return [
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for file in files_of(folder)
        if file.name not in {"__init__.py", "__main__.py"}
    ]


WITHOUT_TORCH = (
    "gradlab.run_directory",
    "gradlab.records",
    "gradlab.probe.measures.row_statistics",
    *modules_of("gradlab/readout"),
    *modules_of("gradlab/store"),
)


def imports(file: Path, *, names: bool = False) -> list[tuple[str, int]]:
    """(module, line) of every import of a file, also those inside functions.

    With `names`, `from a import b` counts as `a.b`, too: b may be a module.
    """
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: imports are absolute"
            found.append((node.module or "", node.lineno))
            if names:
                found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
    return found


def top(module: str) -> str:
    return module.partition(".")[0]


ALL_FILES = [
    pytest.param(package, file, id=str(file.relative_to(ROOT)))
    for package in PACKAGES
    for file in sorted((ROOT / package).rglob("*.py"))
]


@pytest.mark.parametrize(("package", "file"), ALL_FILES)
def test_imports_point_down(package: str, file: Path) -> None:
    if file.is_relative_to(ROOT / LOOKS_UP):
        return
    for module, line in imports(file):
        if top(module) in PACKAGES and top(module) != package:
            assert top(module) in MAY_IMPORT[package], f"{file}:{line}: {package} -> {module}"


def test_commands_look_up_inside_their_functions_alone() -> None:
    """Everything heavy is imported where it is needed: `gradlab --help` answers at once."""
    looked_up = set()
    for file in files_of(LOOKS_UP):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in tree.body:  # the top level of the module
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names]
                module = node.module if isinstance(node, ast.ImportFrom) else names[0]
                assert top(module or "") not in {"trainers", "analysis", "figures"}, module
        looked_up |= {top(module) for module, _ in imports(file)} & set(PACKAGES)
    assert looked_up == set(PACKAGES), "the commands reach nothing: this looks at the wrong folder"


def test_no_circle_of_files() -> None:
    """Imports, wherever they stand, lead down: no file reaches itself through others."""
    known = {name for package in PACKAGES for name in modules_of(package)}
    arrows = {
        name: {
            found
            for module, _ in imports(ROOT / f"{name.replace('.', '/')}.py", names=True)
            if (found := module) in known and found != name
        }
        for name in known
    }
    try:
        list(TopologicalSorter(arrows).static_order())
    except CycleError as circle:
        pytest.fail(f"these files import each other in a circle: {' <- '.join(circle.args[1])}")


@pytest.mark.parametrize("package", ["analysis", "figures"])
def test_analysis_and_figures_never_name_torch(package: str) -> None:
    for file in files_of(package):
        for module, line in imports(file):
            assert top(module) not in {"torch", "transformers", "peft"}, f"{file}:{line}: {module}"


FACES = {
    "gradlab": {
        "Agent",
        "Ask",
        "Message",
        "Reading",
        "RunStore",
        "attach",
        "open_run",
        "workflow",
    },
    "trainers": {"Callback", "TrainConfig", "train"},
    "analysis": {"diagnose"},
    "figures": {"make_figures"},
    "gradlab/interop/trl": {"watch"},
}
"""Folder -> what its package gives by its own name."""


def folders() -> list[str]:
    found = {str(file.parent.relative_to(ROOT)) for top in PACKAGES for file in files_of(top)}
    return sorted(found)


@pytest.mark.parametrize("folder", folders())
def test_packages_have_a_docstring_and_at_most_a_face(folder: str) -> None:
    """A face: imports for type checkers, __all__ and the table of where names live."""
    tree = ast.parse((ROOT / folder / "__init__.py").read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    if folder not in FACES:
        assert len(tree.body) == 1
        return
    kinds = [type(node) for node in tree.body if not isinstance(node, ast.ImportFrom)]
    docstring, all_, table, *call = kinds
    assert (docstring, all_, table) == (ast.Expr, ast.Assign, ast.If)
    assert call in ([], [ast.Expr]), "a look at Python's path, nothing more"
    loaded = {name for name, _ in imports(ROOT / folder / "__init__.py", names=True)}
    module = importlib.import_module(folder.replace("/", "."))
    assert set(module.__all__) == FACES[folder]
    for name in module.__all__:
        value = getattr(module, name)
        assert f"{value.__module__}.{name}" in loaded, "type checkers see what is loaded"
        assert name in dir(module)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'; it gives"):
        _ = module.nothing


def test_the_readme_lists_every_folder() -> None:
    """Folders of the tree in README.md, by their indentation."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    listed, above = set(), list[str]()
    for line in text.partition("a folder is a kind of thing.")[2].split("```")[1].splitlines():
        if line.strip() and line.split()[0].endswith("/"):
            depth = (len(line) - len(line.lstrip())) // 2
            above = [*above[:depth], line.split()[0].rstrip("/")]
            listed.add("/".join(above))
    folders = {
        str(file.parent.relative_to(ROOT)) for package in PACKAGES for file in files_of(package)
    }
    assert folders == listed - {"bench", "docs", "examples"}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_begins_with_one_sentence(package: str) -> None:
    for file in files_of(package):
        docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
        assert docstring, file
        assert docstring.split("\n\n")[0].rstrip().endswith((".", ":")), file


def test_reading_analysing_and_drawing_load_no_torch() -> None:
    """Every module for real, in a fresh interpreter: an import can hide behind another package."""
    wanted = [*WITHOUT_TORCH, *modules_of("analysis"), *modules_of("figures")]
    program = (
        "import importlib, sys\n"
        f"for name in {wanted!r}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_faces_load_nothing_before_they_are_asked() -> None:
    program = (
        "import sys, gradlab, trainers, analysis, figures, gradlab.interop.trl\n"
        "heavy = {'torch', 'numpy', 'scipy', 'zarr', 'matplotlib', 'trl', 'transformers'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "from gradlab import Agent, open_run, RunStore\n"
        "from analysis import diagnose\n"
        "from figures import make_figures\n"
        "assert 'torch' not in sys.modules\n"
        "from gradlab import attach\n"
        "assert 'torch' in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
