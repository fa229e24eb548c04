"""Keep which files of one's own a run was made with, and name those that have changed since."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gradlab.own_modules import Module
from gradlab.own_parts import Part, PartError, files_of, is_own, load_part, shown
from gradlab.run_directory import OWN_PARTS
from trainers.config import TrainConfig

OPTIONS = ("workflow", "reward", "task", "advantage")
"""Options that may name a part of one's own."""


def own_parts(config: TrainConfig) -> dict[str, dict[str, Any]]:
    """Option -> name, file and SHA-256 of each part that is one's own, and of the modules of one's
    own that it imports."""
    return {
        option.removeprefix("--"): _described(name, part.file, part.sha256, part.modules)
        for (option, name), part in parts_in_use(config).items()
    }


def _described(name: str, file: Path, sha256: str, modules: Iterable[Module]) -> dict[str, Any]:
    return {
        "name": name,
        "file": shown(file),
        "sha256": sha256,
        "modules": {
            module.place: {"file": shown(module.file), "sha256": module.sha256}
            for module in modules
        },
    }


def parts_in_use(config: TrainConfig) -> dict[tuple[str, str], Part]:
    """(option, name) -> each part that is one's own, as it is now."""
    names = {f"--{option}": getattr(config, option) for option in OPTIONS}
    return {
        (option, name): load_part(option, name, lambda value: True, "a part")
        for option, name in names.items()
        if is_own(name)
    }


def copy_parts(out: Path, parts: Mapping[str, Mapping[str, Any]]) -> None:
    """Put a copy of each file into the run directory; those of one name get their option's, too."""
    for option, part in parts.items():
        for copy, (file, _) in _files(out / OWN_PARTS / option, part).items():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


def _files(folder: Path, part: Mapping[str, Any]) -> dict[Path, tuple[str, str]]:
    """Copy in a run directory -> file that it is of, and SHA-256; the part's own comes first."""
    return {folder / Path(part["file"]).name: (part["file"], part["sha256"])} | {
        folder / "modules" / place: (module["file"], module["sha256"])
        for place, module in part.get("modules", {}).items()
    }


def check_parts(out: Path, about: Mapping[str, Any]) -> None:
    """Refuse to go on with a run whose files are not what they were when it began.

    Steps before and after would be those of two workflows, and no record would say so.
    Raises PartError, which names the file and how to go on.
    """
    for option, part in about.get("parts", {}).items():
        folder = out / OWN_PARTS / option
        began = _files(folder, part)
        try:
            found = files_of(f"--{option}", part["name"])
        except PartError as error:
            copy = next(iter(began))
            raise PartError(f"{error}; {out} was made with it, and a copy is {copy}") from error
        now = _files(folder, _described(part["name"], *found))
        if "modules" not in part:  # a run from before they were kept
            now = {copy: now[copy] for copy in began}
        named = f"--{option} {part['name']}"
        to_go_on = (
            "To go on with what it is, begin a new run where this one is: gradlab train --from "
            f"{out} --at STEP --out NEW"
        )
        # The part's own file first: where that changed, what it imports may have, too.
        for copy, (file, then) in began.items():
            if copy not in now:
                raise PartError(
                    f"{named}: {file} is no longer there to be imported, and {out} was made with "
                    f"it. To go on with what it was, put it back: cp {copy} {file}. {to_go_on}"
                )
            file, digest = now[copy]
            if digest != then:
                raise PartError(
                    f"{named}: {file} has changed since {out} began (SHA-256 {then[:12]}… then, "
                    f"{digest[:12]}… now). To go on with what it was, put it back: cp {copy} "
                    f"{file}. {to_go_on}"
                )
        if new := [file for copy, (file, _) in now.items() if copy not in began]:
            raise PartError(
                f"{named}: {', '.join(new)} would be imported, and was not there when {out} "
                f"began. To go on with what was, move it away. {to_go_on}"
            )


def changed_parts(
    old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[str]]:
    """File -> its SHA-256 there and here, of the files that both were made with and that differ."""
    changed: dict[str, list[str]] = {}
    for option in old.keys() & new.keys():
        before, after = _files(Path(), old[option]), _files(Path(), new[option])
        # Whatever its name is now: of an option there is one file, beside its modules.
        pairs = [(old[option]["sha256"], new[option]["sha256"], new[option]["file"])]
        pairs += [
            (before[copy][1], after[copy][1], after[copy][0])
            for copy in before.keys() & after.keys()
            if copy.parts[0] == "modules"
        ]
        changed |= {file: [then, now] for then, now, file in pairs if then != now}
    return changed
