"""Keep which files of one's own a run was made with, and name those that have changed since."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradlab.own_parts import Part, PartError, hash_of, is_own, load_part, shown
from gradlab.run_directory import OWN_PARTS
from trainers.config import TrainConfig

OPTIONS = ("workflow", "reward", "task", "advantage")
"""Options that may name a part of one's own."""


def own_parts(config: TrainConfig) -> dict[str, dict[str, str]]:
    """Option -> name, file and SHA-256 of each part that is one's own."""
    return {
        option.removeprefix("--"): {"name": name, "file": shown(part.file), "sha256": part.sha256}
        for (option, name), part in parts_in_use(config).items()
    }


def parts_in_use(config: TrainConfig) -> dict[tuple[str, str], Part]:
    """(option, name) -> each part that is one's own, as it is now."""
    names = {f"--{option}": getattr(config, option) for option in OPTIONS}
    return {
        (option, name): load_part(option, name, lambda value: True, "a part")
        for option, name in names.items()
        if is_own(name)
    }


def copy_parts(out: Path, parts: Mapping[str, Mapping[str, str]]) -> None:
    """Put a copy of each file into the run directory; those of one name get their option's, too."""
    for option, part in parts.items():
        target = out / OWN_PARTS / option / Path(part["file"]).name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(part["file"], target)


def check_parts(out: Path, about: Mapping[str, Any]) -> None:
    """Refuse to go on with a run whose files are not what they were when it began.

    Steps before and after would be those of two workflows, and no record would say so.
    Raises PartError, which names the file and how to go on.
    """
    for option, part in about.get("parts", {}).items():
        file = Path(part["file"])
        copy = out / OWN_PARTS / option / file.name
        try:
            now = hash_of(part["name"], f"--{option}")
        except PartError as error:
            raise PartError(f"{error}; {out} was made with it, and a copy is {copy}") from error
        if now != part["sha256"]:
            raise PartError(
                f"--{option} {part['name']}: {file} has changed since {out} began (SHA-256 "
                f"{part['sha256'][:12]}… then, {now[:12]}… now). To go on with what it was, put it "
                f"back: cp {copy} {file}. To go on with what it is, begin a new run where this one "
                f"is: gradlab train --from {out} --at STEP --out NEW"
            )


def changed_parts(
    old: Mapping[str, Mapping[str, str]], new: Mapping[str, Mapping[str, str]]
) -> dict[str, list[str]]:
    """File -> its SHA-256 there and here, of the files that both were made with and that differ."""
    return {
        new[option]["file"]: [old[option]["sha256"], new[option]["sha256"]]
        for option in old
        if option in new and old[option]["sha256"] != new[option]["sha256"]
    }
