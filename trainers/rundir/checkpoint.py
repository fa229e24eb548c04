"""Write a checkpoint that is whole or absent, and continue from the last one.

A checkpoint is a directory `checkpoints/step-000123/` with, per policy, an adapter in PEFT format
(loads with `PeftModel.from_pretrained`) and `trainer_state.pt` (optimizer, schedule, probe).
Sampling and shuffling are seeded by (seed, step), so no other state is needed. `checkpoint.json`
is written last and holds the SHA-256 of every file: a checkpoint that a disk has damaged is told
from a whole one, and passed over.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import load_peft_weights, set_peft_model_state_dict
from safetensors import SafetensorError

from gradlab.run_directory import (
    DONE,
    STATE,
    checkpoint_path,
    steps_of_checkpoints,
    whole_checkpoints,
)
from trainers.models.language import LanguageModel
from trainers.policies import Policy


class CheckpointError(ValueError):
    """A checkpoint cannot be written or read; the message says what to do."""


def save_checkpoint(
    run: Path,
    step: int,
    language: LanguageModel,
    policies: Mapping[str, Policy],
    keep_states: int = 0,
    keep_state_every: int = 0,
) -> Path:
    """Write the checkpoint of `step` under a temporary name, sync it to disk and rename it.

    Older checkpoints than the newest `keep_states` lose their optimizer state (0: none does; those
    of multiples of `keep_state_every` do not) and keep their adapters.
    Raises CheckpointError when the disk refuses; nothing is left of it then.
    """
    target = checkpoint_path(run, step)
    temporary = target.with_name(f".{target.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        _write(temporary, step, language, policies)
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
        _sync(target.parent)
        _sync(run)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)  # makes room for the store's last rows
        # torch's own error speaks of file positions; the disk's is behind it.
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        whole = last_checkpoint(run)
        raise CheckpointError(
            f"cannot write the checkpoint of step {step} ({cause}); "
            + ("there is none yet" if whole is None else f"the last one is of step {whole}")
            + f". Make room in {run}, then continue with: gradlab train --resume --out {run}"
        ) from error
    for old in whole_checkpoints(run)[:-keep_states] if keep_states else []:
        if keep_state_every and old % keep_state_every == 0:
            continue
        for state_file in checkpoint_path(run, old).glob(f"*/{STATE}"):
            state_file.unlink()
    return target


def _write(
    directory: Path, step: int, language: LanguageModel, policies: Mapping[str, Policy]
) -> None:
    directory.mkdir(parents=True)
    # Embeddings are never trained here; looking whether they were would ask the hub.
    language.model.save_pretrained(
        str(directory), selected_adapters=list(policies), save_embedding_layers=False
    )
    for name, policy in policies.items():
        state = {
            "optimizer": policy.optimizer.state_dict(),
            "schedule": policy.schedule.state_dict(),
            "probe": policy.probe.state_dict() if policy.probe else None,
            "damping": policy.damping.state_dict() if policy.damping else None,
            "torch_rng": torch.get_rng_state(),
        }
        (directory / name).mkdir(exist_ok=True)
        with open(directory / name / STATE, "wb") as file:
            torch.save(state, file)
    seal(directory, step, list(policies))


def seal(directory: Path, step: int, policies: list[str]) -> None:
    """Make the files in a directory a checkpoint: list their checksums, and sync all to disk."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    about = {
        "step": step,
        "policies": policies,
        "sha256": {str(path.relative_to(directory)): _sha256(path) for path in files},
    }
    (directory / DONE).write_text(json.dumps(about, indent=1) + "\n")
    for path in [*directory.rglob("*"), directory]:
        _sync(path)


def last_checkpoint(run: Path) -> int | None:
    """Step of the newest whole checkpoint, or None."""
    return max(whole_checkpoints(run), default=None)


def restore(run: Path, language: LanguageModel, policies: Mapping[str, Policy]) -> int | None:
    """Load the newest checkpoint that can be read; its step, or None where none was ever written.

    One that is damaged is passed over with a warning. Raises CheckpointError when there is none
    left: starting over would throw the measurements away.
    """
    damaged: list[str] = []
    for step in reversed(steps_of_checkpoints(run)):
        try:
            load_checkpoint(run, step, language, policies)
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        if damaged:
            warnings.warn(
                f"{'; '.join(damaged[:3])}. Continuing from the checkpoint of step {step} instead; "
                "later steps are trained again",
                RuntimeWarning,
                stacklevel=3,
            )
        return step
    if damaged:
        raise CheckpointError(
            f"{run} has no checkpoint to continue from: {'; '.join(damaged[:3])}. Restore one from "
            "a copy, or start a new run; nothing was changed, and what was measured is readable"
        )
    return None


def load_checkpoint(
    run: Path, step: int, language: LanguageModel, policies: Mapping[str, Policy]
) -> None:
    """Put adapters, optimizers, schedules and probes back to what they were after `step`.

    Raises CheckpointError when a file is missing or damaged, ValueError when the checkpoint is of
    other policies.
    """
    directory = checkpoint_path(run, step)
    saved = checked(directory)
    for name, policy in policies.items():
        if name not in saved:
            raise ValueError(
                f"checkpoint {directory} has no policy '{name}'; the run was made with another "
                "--routing. Use the configuration in config.json, or start a new run."
            )
        where = directory / name
        set_peft_model_state_dict(
            language.model, load_peft_weights(str(where), device=str(language.device)), name
        )
        state: dict[str, Any] = torch.load(
            where / STATE, map_location=language.device, weights_only=True
        )
        policy.optimizer.load_state_dict(state["optimizer"])
        policy.schedule.load_state_dict(state["schedule"])
        if policy.probe and state["probe"] is not None:
            policy.probe.load_state_dict(state["probe"])
        if policy.damping and state.get("damping") is not None:
            policy.damping.load_state_dict(state["damping"])
        torch.set_rng_state(state["torch_rng"].cpu())


def checked(directory: Path) -> list[str]:
    """The policies of a checkpoint all of whose files are what was written.

    Raises CheckpointError for one that a disk has damaged.
    """
    try:
        about = json.loads((directory / DONE).read_text())
        # Checkpoints of before there were checksums are taken as they are.
        policies, expected = list(about["policies"]), dict(about.get("sha256", {}))
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {directory} is damaged: {DONE} is missing") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {directory} is damaged: {DONE}: {error}") from error
    for name, checksum in expected.items():
        path = directory / name
        if not path.is_file():
            why = "; --keep-states keeps those of the newest only" if path.name == STATE else ""
            raise CheckpointError(f"checkpoint {directory} is not whole: {name} is missing{why}")
        if _sha256(path) != checksum:
            raise CheckpointError(
                f"checkpoint {directory} is damaged: the checksum of {name} does not match"
            )
    return policies


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
