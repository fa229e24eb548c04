"""Create or reopen a run directory: configuration, versions and data that explain the run.

What else lies in it, and what everything is called: `gradlab.run_directory`.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import time
import uuid
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from gradlab.run_directory import CHECKPOINTS, CONFIG, OWN_PARTS, PROBLEMS, STORE, is_trained
from gradlab.store.disk import PARTIAL, put
from gradlab.store.run import open_run
from trainers.config import EARLIER, TrainConfig
from trainers.rundir.own_parts import copy_parts, own_parts
from trainers.tasks.problem import Task, problem_ids
from trainers.tasks.problem_list import write_problem_list

WHERE = frozenset(
    {
        "out", "resume", "extend_to", "device", "threads", "sampler_url", "sampler_directory",
        "sampler_seconds", "sampler_memory", "sampler_sleep", "shard_base",
    }
)  # fmt: skip
"""Options that say where and how far, not what."""


def create_run_directory(
    config: TrainConfig, task: Task, begun: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Make `config.out` and write config.json; returns what was written.

    `begun`: what a run that begins where another one was remembers of it.
    Raises ValueError when the directory is not empty or cannot be written.
    """
    out = config.out
    check_free(out)
    about = description(config, task, begun)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_problem_list(out / PROBLEMS, task)
        copy_parts(out, about.get("parts", {}))
        write_description(out, about)  # last: now it is a run
    except OSError as error:
        raise unwritable(out, error) from error
    return about


def unwritable(out: Path, error: OSError) -> ValueError:
    return ValueError(f"--out {out} cannot be written ({error.strerror}); give another")


def check_free(out: Path) -> None:
    """Raise ValueError for a directory that a new run would overwrite."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; expected a directory to create")
    above = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not above.is_dir():
        raise ValueError(f"--out {out}: {above} is a file; expected a folder to write in")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(f"--out {out}: {above} cannot be written to; give another")
    # A kill right at the start leaves these, which nobody can continue or miss.
    remains = {CONFIG + PARTIAL, PROBLEMS, OWN_PARTS}
    if out.is_dir() and {path.name for path in out.iterdir()} - remains:
        what = "holds a run" if is_trained(out) else "is not empty and holds no run"
        raise ValueError(
            f"--out {out} {what}; nothing was overwritten. Continue a run with --resume, or give "
            "another --out"
        )


def description(
    config: TrainConfig, task: Task, begun: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What config.json of a new run holds."""
    about = {
        "run_id": uuid.uuid4().hex[:12],
        "created": now(),
        "config": config.to_json(),
        "versions": versions(),
        "data": {
            "task": task.name,
            "train_problems": len(task.train),
            "heldout": list(problem_ids(task.heldout)),
            "sha256": task.content_hash,
            "files": dict(task.files),
        },
    }
    if parts := own_parts(config):
        about["parts"] = parts
    return about | ({"from": dict(begun)} if begun else {})


def write_description(out: Path, about: Mapping[str, Any]) -> None:
    put(out / CONFIG, (json.dumps(about, indent=1) + "\n").encode())


def now() -> str:
    """The time as config.json has it, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def first_step(about: Mapping[str, Any]) -> int:
    """Step of the checkpoint that a run began with, in a replay or by --from; else 0."""
    origin = about.get("replay") or about.get("from") or {}
    return int(origin.get("step", 0))


def check_trained(run: Path, otherwise: str) -> None:
    """Raise ValueError for what is not the directory of a trained run; `otherwise` says more."""
    if not is_trained(run):
        raise ValueError(
            f"{run} has no {CONFIG}: expected the directory of a run trained by gradlab; "
            f"{otherwise}"
        )


def read_run_directory(out: Path) -> dict[str, Any]:
    """config.json of an existing run.

    Raises ValueError when there is none, or it cannot be read.
    """
    path = out / CONFIG
    if not path.is_file():
        raise ValueError(f"{out} holds no {CONFIG}; expected the directory of a trained run")
    try:
        about: dict[str, Any] = json.loads(path.read_text())
        about["config"]["steps"], about["data"]["sha256"], about["run_id"]
    except KeyError as error:
        raise ValueError(
            f"{path} is damaged (it has no {error}); restore it from a copy, or train anew"
        ) from error
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); restore it from a copy, or train anew"
        ) from error
    return about


def stored_config(about: dict[str, Any], given: TrainConfig) -> TrainConfig:
    """The configuration a run was made with.

    Only --out, --extend-to, --device, --threads, --shard-base and a given --sampler-url are taken
    from `given`: they say where and how far, not what. Options that are younger than the run do
    what was done before there were any (`trainers.config.EARLIER`, else their defaults).

    Raises ValueError for options that this version does not know, and for an --extend-to that
    extends nothing.
    """
    stored = {**EARLIER, **about["config"]}
    unknown = sorted(set(about["config"]) - {field.name for field in fields(TrainConfig)})
    if unknown:
        wrote = ", ".join(
            f"{name} {about['versions'][name]}"
            for name in ("gradlab", "commit")
            if name in about.get("versions", {})
        )
        raise ValueError(
            f"{given.out / CONFIG}: a later version wrote the run ({wrote or 'not named'}) and has "
            f"options that this version does not know: {', '.join(unknown)}; use that version, or "
            "a newer one"
        )
    stored["data"] = _path(stored.get("data"))
    stored["sampler_directory"] = _path(stored.get("sampler_directory"))
    stored |= {name: getattr(given, name) for name in ("out", "device", "threads", "shard_base")}
    if given.sampler_url:  # a server that was started anew may have another address
        stored["sampler_url"] = given.sampler_url
    config = replace(TrainConfig(**stored | {"extend_to": 0}), resume=True)
    if not given.extend_to:
        return config
    if given.extend_to <= config.steps:
        raise ValueError(
            f"--extend-to is {given.extend_to} and the run in {given.out} is one of {config.steps} "
            f"steps; expected more than {config.steps}, or --resume alone to finish it"
        )
    return replace(config, steps=given.extend_to, extend_to=given.extend_to)


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def config_of(run: Path) -> TrainConfig:
    """The configuration that a run was made with, device and threads included.

    Raises ValueError for what was not trained here, such as an imported run.
    """
    check_trained(
        run, "what was imported or made up holds figures only, and cannot be trained again"
    )
    about = read_run_directory(run)
    stored = about["config"]
    where = TrainConfig(
        out=run, device=stored.get("device", "auto"), threads=stored.get("threads", 0)
    )
    return replace(stored_config(about, where), resume=False)


def changes(original: TrainConfig, config: TrainConfig) -> dict[str, list[Any]]:
    """Option -> its value there and here, as JSON values."""
    old, new = original.to_json(), config.to_json()
    names = [field.name for field in fields(TrainConfig) if field.name not in WHERE]
    return {name: [old[name], new[name]] for name in names if old[name] != new[name]}


def last_recorded(out: Path) -> int:
    """The last training step in the store of a run; 0 where there is none."""
    if not (out / STORE).exists():
        return 0
    return max(open_run(out).steps.tolist(), default=0)


def check_unstarted(config: TrainConfig, first: int) -> None:
    """Let a run without any checkpoint start over only if it was killed before its first one.

    `first`: step of the checkpoint that a replay begins with. Raises ValueError for a record that
    longer training left: its checkpoints are gone, and starting over would throw it away.
    """
    recorded = last_recorded(config.out)
    # A kill or a full disk at the last step leaves an open store, or the directory.
    is_finished = (
        recorded >= config.steps
        and open_run(config.out).closed
        and not (config.out / CHECKPOINTS).is_dir()
    )
    if recorded <= config.checkpoint_every and not is_finished and not first:
        return
    raise ValueError(
        f"--resume: {config.out} has measurements up to step {recorded} and no checkpoint to "
        f"continue from; expected one in {config.out / CHECKPOINTS}. Put them back from a copy, "
        "or train from the beginning elsewhere with another --out (or here, once this directory is "
        "moved away); nothing was changed, and what was measured is readable"
    )


def versions() -> dict[str, str]:
    """Versions of everything whose change could change a number, and the commit if there is one."""
    packages = ("gradlab", "torch", "transformers", "peft", "numpy", "zarr")
    found = {name: importlib.metadata.version(name) for name in packages}
    found["python"] = platform.python_version()
    found["machine"] = f"{platform.system()} {platform.machine()}"
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if commit.returncode == 0:
        found["commit"] = commit.stdout.strip()
    return found
