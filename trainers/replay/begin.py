"""Begin a new run at a checkpoint of another one, with options changed: `gradlab train --from`.

Everything that is not changed is the other run's: its options, adapters, optimizer moments, place
in the schedule, and the random numbers and problems of every later step. With nothing changed the
new run gives what the other one gave, bit for bit on a CPU with the same number of threads.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from gradlab.run_directory import CONFIG, beginning, continuable
from trainers.config import TrainConfig
from trainers.models.language import load_tokenizer, prompts_for
from trainers.preview.own_parts import check_own_parts
from trainers.replay.fork import policy_origins, write_fork
from trainers.rundir.directory import (
    changes,
    check_free,
    config_of,
    create_run_directory,
    description,
    read_run_directory,
    unwritable,
)
from trainers.rundir.own_parts import changed_parts, own_parts
from trainers.tasks.problem import Task
from trainers.training import task_of

FIXED = (
    "model", "policy_model", "workflow", "lora_rank", "lora_alpha", "policy_lora_rank",
    "policy_lora_alpha",
)  # fmt: skip
"""Options that a checkpoint fits only as they were: its weights, its roles, its adapters."""
DATA = (
    "task", "data", "task_options", "split", "seed", "problem_seed", "eval_problems", "difficulty",
    "math_rule",
)  # fmt: skip
"""Options that say which problems there are."""


def starting_step(run: Path, at: int, until: int) -> int:
    """Step of the newest checkpoint with optimizer state no later than `at`; 0 for 0: the start.

    Raises ValueError where there is none, or no step is left to train up to `until`.
    """
    if at < 0:
        raise ValueError(f"--at is {at}; expected a training step, or 0 for the beginning")
    steps = continuable(run)
    early = [step for step in steps if step <= at]
    if early or not at:
        start = max(early, default=0)
        if until > start:
            return start
        raise ValueError(
            f"--steps is {until} and the run would begin at step {start}; expected more: steps are "
            "counted from the beginning of the run that it continues"
        )
    raise ValueError(
        f"--at {at}: there is no checkpoint to begin with at or before step {at} ({there(run)}); "
        "give one of those, or --at 0 to train from the beginning with the run's options"
    )


def there(run: Path) -> str:
    """What a run can be begun from, in words."""
    steps = continuable(run)
    if not steps:
        return f"{run} has no checkpoint with optimizer state"
    return f"{run} has checkpoints with optimizer state of steps {', '.join(map(str, steps))}"


def begin(run: Path, at: int, config: TrainConfig) -> str:
    """Make `config.out` a run that begins where `run` was at step `at`; says in words where.

    Train it with `train(replace(config, resume=True))`. Raises ValueError for what does not fit the
    checkpoint, before anything is written.
    """
    original = config_of(run)
    check_fits(run, original, config)
    start = starting_step(run, at, config.steps)
    check_free(config.out)
    about = read_run_directory(run)
    task = task_of(config)
    _check_problems(run, about, original, config, task)
    origins = policy_origins(original, config, None)
    tokenizer = load_tokenizer(config.model)
    check_own_parts(config, task, tokenizer, prompts_for(tokenizer, config))
    begun = {
        "path": str(run),
        "run_id": about["run_id"],
        "step": start,
        "config_sha256": hashlib.sha256((run / CONFIG).read_bytes()).hexdigest(),
        "changed": {
            **changes(original, config),
            **changed_parts(about.get("parts", {}), own_parts(config)),
        },
    }
    if not start:
        create_run_directory(config, task, begun)
        return beginning(begun)
    try:
        write_fork(run, start, original, config, origins, description(config, task, begun), task)
    except OSError as error:
        raise unwritable(config.out, error) from error
    return beginning(begun)


def check_fits(run: Path, original: TrainConfig, config: TrainConfig) -> None:
    """Raise ValueError for options that a checkpoint of `run` does not fit."""
    for name in FIXED:
        old, new = getattr(original, name), getattr(config, name)
        if old != new:
            raise ValueError(
                f"--{name.replace('_', '-')} is {new}, and {run} was trained with {old}, which its "
                "checkpoints need; leave the option out, or train from the beginning without --from"
            )


def _check_problems(
    run: Path, about: dict[str, Any], original: TrainConfig, config: TrainConfig, task: Task
) -> None:
    """Other problems are a change only where they were asked for."""
    if any(getattr(original, name) != getattr(config, name) for name in DATA):
        return
    if about["data"]["sha256"] != task.content_hash:
        raise ValueError(
            f"the problems of task '{config.task}' have changed since {run} began (SHA-256 "
            f"{about['data']['sha256'][:12]}… then, {task.content_hash[:12]}… now); put the "
            "original --data back, or name the new ones with --data"
        )
