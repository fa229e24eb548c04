"""Find the modules of one's own that a file imports, by reading and never by running it.

Of one's own are those beside the file or in its package; what is installed, Python's own modules
and gradlab's packages are not.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

OURS = tuple(
    Path(__file__).resolve().parent.parent / name
    for name in ("gradlab", "trainers", "analysis", "figures")
)
INSTALLED = {"site-packages", "dist-packages"}
STANDARD = Path(sysconfig.get_paths()["stdlib"]).resolve()


@dataclass(frozen=True)
class Module:
    """A file of one's own, and by what name it is imported."""

    name: str
    """`helper` or `package.helper`."""
    file: Path
    sha256: str
    """Of the file's content."""

    @property
    def place(self) -> str:
        """Its file from where its first package lies: `package/helper.py`."""
        end = "/__init__.py" if self.file.name == "__init__.py" else ".py"
        return self.name.replace(".", "/") + end


def sha256_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def reach(folder: Path) -> None:
    """Let a file import those beside it; at the end, so that it shadows nothing."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def file_of_module(name: str) -> Path | None:
    """The Python file that `import name` would run last, without running its packages.

    None where there is none: no such module, or one that is not written in Python.
    """
    top, *below = name.split(".")
    # Not importlib.util.find_spec: that tells where a module that is loaded was.
    found = (finder.find_spec(top, None) for finder in sys.meta_path) if top else ()
    spec = next((spec for spec in found if spec is not None), None)
    if spec is None:
        return None
    if not below:
        return _python(spec.origin)
    folders = [Path(place) for place in spec.submodule_search_locations or ()]
    for part in below[:-1]:
        # As Python looks: the first that is a package; folders without __init__ only together.
        whole = [folder / part for folder in folders if (folder / part / "__init__.py").is_file()]
        folders = whole[:1] or [folder / part for folder in folders if (folder / part).is_dir()]
    for folder in folders:
        for file in (folder / below[-1] / "__init__.py", folder / f"{below[-1]}.py"):
            if file.is_file():
                return file.resolve()
    return None


def _python(origin: str | None) -> Path | None:
    file = Path(origin or "")
    return file.resolve() if file.suffix == ".py" and file.is_file() else None


def own_modules(file: Path, name: str | None) -> tuple[Module, ...]:
    """Every module of one's own that `file` imports, and those that they import, by name.

    `name` is the file's own as a module; None for one that is run by its path. Imports count
    wherever they stand; names put together while running (`importlib.import_module`) are not seen.
    """
    root = _root(file, name)
    found: dict[str, Module] = {}
    packages = _packages(name) if name else ()
    open_ends: list[tuple[str | None, Path]] = [(name, file)]
    open_ends += [(package, where) for package in packages if (where := file_of_module(package))]
    seen = {file}
    while open_ends:
        module, where = open_ends.pop()
        content = where.read_bytes()
        if where != file and module is not None:
            found[module] = Module(module, where, hashlib.sha256(content).hexdigest())
        is_package = where.name == "__init__.py"
        for imported in _imported(content, module, is_package):
            target = file_of_module(imported)
            if target is not None and target not in seen and _is_own(target, root):
                seen.add(target)
                open_ends.append((imported, target))
    return tuple(found[key] for key in sorted(found))


def _root(file: Path, name: str | None) -> Path:
    """The folder that one's own modules lie in: where the file is, or its first package is."""
    if name is None:
        return file.parent
    depth = name.count(".") + (file.name == "__init__.py")
    root = file.parents[depth]
    # Whatever else is installed there is somebody else's.
    return root / name.partition(".")[0] if root.name in INSTALLED else root


def _is_own(file: Path, root: Path) -> bool:
    if not file.is_relative_to(root) or any(file.is_relative_to(ours) for ours in OURS):
        return False
    if INSTALLED & set(file.relative_to(root).parts):
        return False
    # Python itself may lie below: root is a home folder, say.
    return root.is_relative_to(STANDARD) or not file.is_relative_to(STANDARD)


def _packages(name: str) -> tuple[str, ...]:
    """`a.b.c` -> `a`, `a.b`."""
    parts = name.split(".")
    return tuple(".".join(parts[:end]) for end in range(1, len(parts)))


def _imported(content: bytes, module: str | None, is_package: bool) -> Iterator[str]:
    """Names that a file's imports may mean as modules, with their packages."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return  # importing it tells where and why
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = _above(module, is_package, node.level)
            base = ".".join(part for part in (above, node.module or "") if part)
            if base and (node.level == 0 or above):
                names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for name in names:
            yield from (*_packages(name), name)


def _above(module: str | None, is_package: bool, level: int) -> str:
    """The package that a relative import of this level begins at; '' for an absolute one."""
    if not level or module is None:
        return ""
    parts = module.split(".")
    return ".".join(parts[: len(parts) - level + is_package])


_content: dict[str, str] = {}
"""Name of a module -> SHA-256 of its file when this process met it first or imported it last."""


def forget_changed(modules: tuple[Module, ...]) -> None:
    """Have Python import modules anew where the file of one of them changed since it was loaded.

    Functions that others hold from before go on with the modules that they had.
    """
    loaded = [module for module in modules if module.name in sys.modules]
    changed = [
        module
        for module in loaded
        if _content.get(module.name, module.sha256) != module.sha256
        or Path(getattr(sys.modules[module.name], "__file__", None) or "").resolve() != module.file
    ]
    if changed:
        for module in loaded:
            del sys.modules[module.name]
    for module in modules:
        if _content.get(module.name, module.sha256) != module.sha256:
            forget_compiled(module.file)
        _content[module.name] = module.sha256
    importlib.invalidate_caches()


def forget_compiled(file: Path) -> None:
    """Remove a file's bytecode: it is told from its source by size and full second alone."""
    with contextlib.suppress(OSError, NotImplementedError):
        Path(importlib.util.cache_from_source(str(file))).unlink(missing_ok=True)
