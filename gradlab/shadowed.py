"""Say which folder hides one of our packages, where an import of ours fails for it.

`analysis`, `figures` and `trainers` are names that projects give to folders of their own, and what
stands first on Python's path is found. Such a project may well use `gradlab` alone: nothing is said
before one of the other packages is needed.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
"""Where our packages lie side by side."""

FACES = {
    "trainers": ("train", "TrainConfig", "Callback"),
    "analysis": ("diagnose",),
    "figures": ("make_figures",),
}
"""Package beside gradlab -> what it gives by its own name."""


def is_ours(package: ModuleType) -> bool:
    """Whether a loaded package is the one beside gradlab."""
    return any(Path(place).resolve() == ROOT / package.__name__ for place in package.__path__)


def letter(name: str, place: str) -> str:
    """What to tell who got the package at `place` for ours."""
    return (
        f"'{name}' is {place} here, which hides gradlab's own package {ROOT / name}: it stands "
        f"before it on Python's path. Rename that folder, start Python elsewhere, or put {ROOT} "
        "first on PYTHONPATH; the commands of gradlab work as they are"
    )


def place_of(package: ModuleType) -> str:
    return str(package.__file__ or ", ".join(getattr(package, "__path__", ())))


class Hidden:
    """Asked by Python last, for modules that nobody has: those of ours explain themselves when
    they are imported."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        name, _, rest = fullname.partition(".")
        package = sys.modules.get(name)
        if name not in FACES or not rest or package is None:
            return None
        if hasattr(package, "__path__") and is_ours(package):
            return None
        if rest not in FACES[name] and not _has(name, rest):
            return None
        # importlib.util.find_spec asks whether it could be imported: it could not.
        asking = sys._getframe(1).f_back
        if asking is not None and asking.f_globals.get("__name__") == "importlib.util":
            return None
        return ModuleSpec(
            fullname, Explanation(f"no {fullname}: {letter(name, place_of(package))}")
        )


class Explanation(Loader):
    """Loads nothing, and says why."""

    def __init__(self, words: str) -> None:
        self.words = words

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        # By the package's name: `from analysis import diagnose` passes over a module of its own
        # name that is not found.
        raise ModuleNotFoundError(self.words, name=spec.name.partition(".")[0])

    def exec_module(self, module: ModuleType) -> None:
        raise AssertionError(module)  # none was created


def _has(name: str, module: str) -> bool:
    """Whether our package has this module."""
    file = ROOT.joinpath(name, *module.split("."))
    return file.with_suffix(".py").is_file() or (file / "__init__.py").is_file()


def explain() -> None:
    """Have Python ask `Hidden`, once."""
    if Hidden not in sys.meta_path:
        sys.meta_path.append(Hidden)


def take_ours() -> None:
    """Load our packages whatever stands before them on Python's path.

    `python -m gradlab` has the user's folder first. Raises ImportError where another package of the
    name was loaded before.
    """
    for name in FACES:
        loaded = sys.modules.get(name)
        if loaded is not None:
            if not hasattr(loaded, "__path__") or not is_ours(loaded):
                raise ImportError(letter(name, place_of(loaded)), name=name)
            continue
        spec = PathFinder.find_spec(name, [str(ROOT)])
        if spec is None or spec.loader is None:
            raise ImportError(f"there is no {ROOT / name}: gradlab is not whole; install it again")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)


def check_ours(name: str) -> None:
    """Raise ImportError where our package `name` is hidden from another one of ours."""
    spec = sys.modules[name].__spec__ if name in sys.modules else importlib.util.find_spec(name)
    places = [*(spec.submodule_search_locations or ())] if spec else []
    if ROOT / name not in [Path(place).resolve() for place in places]:
        place = (spec and spec.origin) or ", ".join(places) or "nowhere"
        raise ImportError(letter(name, place), name=name)
