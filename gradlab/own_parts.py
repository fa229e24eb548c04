"""Load a part that somebody wrote in a file of their own, and say where it fails."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from gradlab.own_modules import (
    Module,
    file_of_module,
    forget_changed,
    forget_compiled,
    own_modules,
    reach,
    sha256_of,
)


class PartError(ValueError):
    """A part of one's own does not do what is expected of it; names its file and line."""


@dataclass(frozen=True)
class Part:
    """What a name such as `my_flows.py:debate` or `package.module:name` stands for."""

    name: str
    value: Any
    file: Path
    sha256: str
    """Of the file's content."""
    modules: tuple[Module, ...] = ()
    """Of one's own that the file imports."""


def is_own(name: str) -> bool:
    """Whether it names a part in a file or module of one's own; `rg:NAME` is a task."""
    return ":" in name and not name.startswith("rg:")


_held: dict[tuple[str, str], Part] = {}
"""Parts of the run that is being trained, as they were when it began."""


@contextmanager
def holding(parts: Mapping[tuple[str, str], Part]) -> Iterator[None]:
    """Within it these parts stay what they are, by option and name, whatever becomes of their
    files: a run that is edited while it trains is still the run that its record describes."""
    before = dict(_held)
    _held.update(parts)
    try:
        yield
    finally:
        _held.clear()
        _held.update(before)


def load_part(option: str, name: str, is_fit: Callable[[Any], bool], what: str) -> Part:
    """The part that `option` names: `FILE.py:NAME` or `package.module:NAME`.

    `is_fit` tells what can be meant from what else is in the file; `what` says it in words.
    Raises PartError for a file that is not there or does not import, and for a name that is not in
    it, with the names that are.
    """
    if (option, name) in _held:
        return _held[option, name]
    place, _, attribute = name.rpartition(":")
    file, digest, modules = files_of(option, name)
    module = _module(option, name, place, file, (digest, modules))
    if not hasattr(module, attribute):
        fit = [key for key, value in vars(module).items() if key[:1] != "_" and is_fit(value)]
        mine = [key for key in fit if _is_from(vars(module)[key], module)]
        there = f"there is {', '.join(mine or fit)}" if mine or fit else "there is none"
        raise PartError(f"{option} {name}: {file} has no '{attribute}'; expected {what}: {there}")
    value = getattr(module, attribute)
    if not is_fit(value):
        raise PartError(
            f"{option} {name}: '{attribute}' in {where_of(value, file)} is "
            f"a {type(value).__name__}; expected {what}"
        )
    return Part(name, value, file, digest, modules)


def num_required(function: Callable[..., Any]) -> int:
    """Parameters of a function without default."""
    parameters = inspect.signature(function).parameters.values()
    return sum(parameter.default is parameter.empty for parameter in parameters)


def files_of(option: str, name: str) -> tuple[Path, str, tuple[Module, ...]]:
    """The file that a name stands for, its SHA-256, and the modules of one's own that it imports:
    as they are now, without running any."""
    place = name.rpartition(":")[0]
    is_path = place.endswith(".py")
    file = _file_of(option, name, place)
    reach(file.parent if is_path else Path.cwd())
    return file, sha256_of(file), own_modules(file, None if is_path else place)


def failed_at(error: BaseException, file: Path | str) -> str:
    """`file:line` of the last line of `file` that an error went through; its last line, if none."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if Path(frame.filename) == Path(file)]
    last = (inside or frames)[-1]
    return f"{shown(Path(last.filename))}:{last.lineno}"


def where_of(value: Any, file: Path | str = "") -> str:
    """`file:line` where a function begins; the file alone for what has no line."""
    code = _code(value)
    if code is None:
        return shown(Path(file))
    return f"{shown(Path(code.co_filename))}:{code.co_firstlineno}"


def file_of(value: Any) -> str:
    """The file that a function stands in; '' for what has no code of its own."""
    code = _code(value)
    return "" if code is None else code.co_filename


def _code(value: Any) -> CodeType | None:
    function = getattr(value, "func", value)  # of a functools.partial
    code = getattr(inspect.unwrap(function) if callable(function) else None, "__code__", None)
    return code if isinstance(code, CodeType) else None


def shown(file: Path) -> str:
    """A path as one would write it here."""
    try:
        return _shown(file, Path.cwd())
    except OSError:  # there is no such folder any more
        return str(file)


@functools.lru_cache(maxsize=64)
def _shown(file: Path, here: Path) -> str:
    # Every wave of every episode says where it is from, and looking up links took as long as a
    # third of its forward passes.
    try:
        return str(file.resolve().relative_to(here))
    except (ValueError, OSError):
        return str(file)


def in_words(error: BaseException) -> str:
    """`ZeroDivisionError: division by zero`."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _file_of(option: str, name: str, place: str) -> Path:
    if place.endswith(".py"):
        file = Path(place)
        if not file.is_file():
            raise PartError(
                f"{option} {name}: there is no file {place} in {Path.cwd()}; expected FILE.py:NAME "
                "or package.module:NAME"
            )
        return file.resolve()
    reach(Path.cwd())
    found = file_of_module(place)
    if found is None:
        raise PartError(
            f"{option} {name}: there is no module '{place}' that can be imported; expected "
            "FILE.py:NAME or package.module:NAME"
        )
    return found


def _module(
    option: str, name: str, place: str, file: Path, content: tuple[str, tuple[Module, ...]]
) -> ModuleType:
    digest, modules = content
    try:
        if place.endswith(".py"):
            forget_changed(modules)
            return _executed(file, digest, modules)
        forget_changed((*modules, Module(place, file, digest)))
        return importlib.import_module(place)
    except SyntaxError as error:
        at = f"{shown(Path(error.filename or file))}:{error.lineno}"
        raise PartError(f"{option} {name}: {at}: {error.msg}; the file cannot be read") from error
    except Exception as error:  # whatever a file of one's own does when it is imported
        raise PartError(
            f"{option} {name}: {failed_at(error, file)}: {in_words(error)}; the file does not "
            "import: expected one that defines its parts and runs nothing else"
        ) from error


@functools.lru_cache(maxsize=64)
def _executed(file: Path, digest: str, modules: tuple[Module, ...]) -> ModuleType:
    """The module of a file; run once for each content that it and what it imports have."""
    content = digest + "".join(module.sha256 for module in modules)
    module_name = f"{file.stem}_{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    assert spec is not None, file
    assert spec.loader is not None, file
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up
    forget_compiled(file)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


def _is_from(value: Any, module: ModuleType) -> bool:
    function = getattr(value, "function", value)
    return getattr(function, "__module__", None) == module.__name__
