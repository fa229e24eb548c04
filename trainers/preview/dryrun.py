"""Say what a training run will take before it starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from trainers.config import TrainConfig
from trainers.models.language import pick_device
from trainers.preview.advice import advice
from trainers.preview.engine_memory import told_of_engine
from trainers.preview.estimates import Plan, evaluations_of, plan
from trainers.preview.words import duration, size
from trainers.tasks.problem import Task
from trainers.training import task_of


def dry_run(config: TrainConfig, say: Callable[[str], None] = print) -> None:
    """Say what a run will take.

    Raises ValueError for a device that is not here, but for `cuda` where there is none: that plans
    for another machine. Also, once all else is said, where its problems cannot be read.
    """
    pick_device(config.device, check=False)
    task, missing = None, None
    try:
        task = task_of(config)
    except ValueError as error:
        missing = error
    for line in described(config, plan(config, task), task):
        say(line)
    if missing is not None:
        raise missing


def described(config: TrainConfig, found: Plan, task: Task | None = None) -> Iterator[str]:
    """The plan in words, line by line."""
    if task is not None:
        yield (
            f"data        {', '.join(map(str, task.paths)) or f'{task.name}, generated'}: "
            f"{len(task.train) + len(task.heldout):,} problems, {len(task.heldout):,} held out"
        )
    memory = found.memory
    yield f"model       {found.model}: {found.parameters:,} parameters, {config.dtype}"
    for policy in found.policies:
        yield (
            f"policy      {policy.name}: {policy.num_parameters:,} trainable parameters, "
            f"spoken by {', '.join(map(str, policy.agents))}, at most {found.updates[policy.name]} "
            "updates a step"
        )
    if config.freeze:
        yield (
            f"frozen      {', '.join(config.freeze)}: the base model, without adapter, updates and "
            "probe"
        )
    yield (
        f"step        {config.problems_per_step} problems x {config.samples} samples, at most "
        f"{found.turns:,} turns; {found.tokens:,} tokens with prompts of "
        f"{found.lengths.prompt:,.0f} and responses of {found.lengths.response:,.0f} "
        f"({found.lengths.source})"
    )
    yield (
        f"memory      about {size(memory.peak)}: weights {size(memory.weights)}, adapters and Adam "
        f"{size(memory.adapters)}, probe {size(memory.probe)}, then the larger of activations "
        f"{size(memory.activations)} and rollout cache {size(memory.cache)}"
    )
    if memory.merged:
        yield (
            f"            the rollout holds {size(memory.merged)} more: copies of the layers with "
            "merged adapters; --no-sampler-merge does without, and is slower"
        )
    if memory.cache_at_limits > memory.cache:
        yield (
            f"            a rollout with every prompt at --max-prompt-tokens would hold "
            f"{size(memory.cache_at_limits)} of cache: --rollout-rows is {config.rollout_rows}"
        )
    if found.engine is not None:
        yield from told_of_engine(
            config, found.engine, memory.peak, memory.idle, found.times.speed.held
        )
    disk = found.disk
    yield (
        f"disk        at most {size(disk.store + disk.adapters + disk.states + disk.episodes)}: "
        f"store {size(disk.store)} before compression, {disk.checkpoints[0]} checkpoints with "
        f"adapters of {size(disk.adapters)}, {disk.checkpoints[1]} of them with optimizer states "
        f"of {size(disk.states)}, episodes about {size(disk.episodes)}"
    )
    yield from told_of_time(config, found)
    for text in advice(config):
        yield f"warning     {text}"


def told_of_time(config: TrainConfig, found: Plan) -> Iterator[str]:
    times, speed = found.times, found.times.speed
    yield (
        f"time        about {duration(times.step)} a step (rollout {duration(times.rollout)}, "
        f"updates {duration(times.learning)}), {duration(times.evaluation)} an evaluation, "
        f"{duration(found.all_seconds)} for {config.steps} steps and {evaluations_of(config)} "
        "evaluations"
    )
    yield (
        f"            on {speed.products / 1e12:.2g} TFLOP/s and {speed.memory / 1e9:,.0f} GB/s, "
        f"{speed.source}"
    )
    if not found.is_here:
        yield f"            --device {config.device} is not here, and no GPU was compared with this"
