"""Train a multi-agent workflow with GRPO, every backward pass measured by agent.

    for step in …: rollout -> rewards -> advantages -> updates of every policy -> evaluate

Left out of textbook GRPO on purpose: no value model, no reference model in the reward (a KL anchor
per role is a loss term), no dynamic sampling. What differs from arXiv 2605.24202's code is listed
in docs/training.md; the preset `faithful` takes the differences back.
"""

from __future__ import annotations

import errno
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from gradlab.alarms import Watch, drop_alarms
from gradlab.ledger import RoleTally
from gradlab.own_parts import holding
from gradlab.records import Agent, EvalRecord, RunMeta, StepRecord, routing_table
from gradlab.run_directory import STORE, episodes_path
from gradlab.store.writer import RunStore
from gradlab.workflows import Workflow
from trainers.config import TrainConfig
from trainers.credit import check_components, compared, with_rewards
from trainers.engines.choose import check_sampler, open_sampler
from trainers.episodes import Episode, trained_turns
from trainers.evaluate import evaluate
from trainers.judge import Judge, judge_of
from trainers.learn import learn
from trainers.models.language import LanguageModel, load_language_models
from trainers.models.sampler import Sampler, Speaker
from trainers.policies import Policy, TrainingError, build_policies
from trainers.preview.advice import advice
from trainers.preview.own_parts import check_own_parts
from trainers.ranks.agreement import check_same_config, check_same_credit, check_same_start
from trainers.ranks.joining import device_of, joined
from trainers.ranks.peers import ALONE, Agreed, Peers, check_dealing, with_draws
from trainers.ranks.sharding import check_sharding, shard_base
from trainers.ranks.writing import Nowhere, shared_watch
from trainers.rollout import rollout
from trainers.rundir.checkpoint import last_checkpoint, load_checkpoint, restore, save_checkpoint
from trainers.rundir.directory import (
    check_unstarted,
    create_run_directory,
    first_step,
    last_recorded,
    read_run_directory,
    stored_config,
)
from trainers.rundir.own_parts import check_parts, parts_in_use
from trainers.rundir.transcripts import save_episodes
from trainers.tasks.load import load_task
from trainers.tasks.problem import Problem, Task, problem_ids
from trainers.watch.callbacks import Callback, Callbacks
from trainers.watch.ledger import step_record
from trainers.watch.lookout import Lookout, check_watch
from trainers.watch.progress import Progress

TRAINING = 0
"""Part of the sampling key that keeps training apart from evaluation."""

REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
"""What a disk says that takes no more."""


class Interrupted(Agreed, KeyboardInterrupt):
    """A signal asked the run to stop; it did, after a checkpoint."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number
        """Of the signal."""


@dataclass
class Run:
    """A run that is being trained."""

    config: TrainConfig
    task: Task
    workflow: Workflow
    speakers: dict[Agent, Speaker]
    languages: dict[str, LanguageModel]
    """By name of the base model."""
    policies: dict[str, Policy]
    sampler: Sampler
    store: RunStore | Nowhere
    """Nowhere on ranks that do not write."""
    judge: Judge
    done: int
    """Training steps finished."""
    first: int = 0
    """Training steps finished when it began: more than 0 where it continues another run."""
    components: tuple[str, ...] = ()
    """Names of what the reward is the sum of."""
    resumed: str = ""
    """What a resumed run continues from, and what it trains again."""
    peers: Peers = ALONE
    """The processes that train it."""


def train(
    config: TrainConfig,
    progress: Progress | None = None,
    watch: Watch | None = None,
    callbacks: Sequence[Callback] = (),
) -> Path:
    """Train as `config` says and return the run directory.

    `watch`: what judges the run while it trains, needed with `config.alarm`; e.g.
    `analysis.online.Online()`. `callbacks` are told of steps, evaluations and checkpoints.
    Raises ValueError for a configuration that cannot be run, before anything is written where that
    can be told; TrainingError when a loss or gradient is not finite, or the disk refuses. After
    Ctrl-C or SIGTERM the step in hand is finished, a checkpoint is written, and Interrupted is
    raised.
    """
    told = Callbacks(callbacks)
    with joined(config.device) as peers:
        if not peers.is_first:
            told, progress = Callbacks(()), Progress(Console(quiet=True))
        return _train(peers, config, progress or Progress(), watch, told)


def _train(
    peers: Peers, config: TrainConfig, progress: Progress, watch: Watch | None, told: Callbacks
) -> Path:
    run = open_run_for_training(config, watch, peers)
    config = run.config
    lookout = Lookout(
        config, run.policies, progress, shared_watch(watch, peers), keeps=peers.is_first
    )
    with (
        explaining_refusals(config.out),
        holding(parts_in_use(config)),
        run.store,
        closing(run.judge),
        closing(run.sampler),
        progress.showing(config, run.done),
        interruptible() as asked_to_stop,
    ):
        if peers.is_first:
            drop_alarms(config.out, run.done)
        if run.resumed:
            progress.note(run.resumed)
        for name, text in protection_of(run.judge).items():
            progress.note(f"{name}: {text}")
        for text in advice(config) if run.done < config.steps else ():
            progress.note(f"warning: {text}")
        if run.done == run.first:
            base = measure(run)
            progress.evaluated(base)
            told.on_evaluation(base)
        for step in range(run.done + 1, config.steps + 1):
            record = train_step(run, step)
            run.done = step
            progress.trained(record, run.policies)
            evaluation = None
            if step % config.eval_every == 0 or step == config.steps:
                started = time.perf_counter()
                evaluation = measure(run)
                progress.evaluated(evaluation)
                lookout.look(step)
                seconds = time.perf_counter() - started
                ledger = replace(
                    record.run, eval_seconds=seconds, alarms=float(len(lookout.alarms))
                )
                record = replace(record, run=ledger)
            run.store.append(record)
            told.on_step(record)
            if evaluation:
                told.on_evaluation(evaluation)
            # Asked once: Ctrl-C between the checkpoint and the question would lose the steps.
            number = peers.most(asked_to_stop())
            is_last = step == config.steps or number > 0
            if step % config.checkpoint_every == 0 or is_last or lookout.wants_checkpoint:
                run.store.flush()
                peers.check_same_weights(run.policies, step)
                path = peers.first(lambda: save_checkpoint(
                    config.out, run.done, run.policies, config.keep_states,
                    config.keep_state_every,
                ))  # fmt: skip
                told.on_checkpoint(path)
            if step < config.steps:
                lookout.stop_if_asked(step)
            if is_last and step < config.steps:
                further = f" --extend-to {config.extend_to}" if config.extend_to else ""
                raise Interrupted(
                    f"stopped after step {step}; continue with: gradlab train --resume "
                    f"--out {config.out}{further}",
                    number,
                )
    return config.out


def train_step(run: Run, step: int) -> StepRecord:
    """One training step: play episodes, credit them, update every policy, sum up."""
    config, started = run.config, time.perf_counter()
    problems = step_problems(run.task.train, config, step)
    key = (config.training_seed, step, TRAINING)
    run.judge.forget()  # the next step has other problems

    def play(mine: list[Problem]) -> list[Episode]:
        episodes = rollout(
            run.sampler, run.workflow, run.speakers, mine, config.samples, key, run.judge,
            config.draws,
        )  # fmt: skip
        run.sampler.rest()
        episodes = with_rewards(episodes, config)
        check_components(episodes, run.components, config)
        return episodes

    episodes = compared(run.peers.play(problems, play), config)
    check_same_credit(run.peers, trained_turns(episodes), config)
    ungraded = run.peers.total(run.judge.ungraded)
    played = time.perf_counter()
    if run.peers.is_first:
        save_episodes(episodes_path(config.out, "step", step), episodes)

    turns = trained_turns(episodes)
    tallies: dict[str, dict[str, RoleTally]] = {}
    for policy in run.policies.values():
        mine = [turn for turn in turns if turn.agent in policy.agents]
        tallies[policy.name] = learn(policy.language, policy, mine, config, step, run.peers)
        run.sampler.publish(policy.name, step)
        is_shared = config.scheduler_tick == "policy"
        for other in run.policies.values() if is_shared else (policy,):
            other.rate.tick()
    ended = time.perf_counter()
    return step_record(
        step, episodes, run.workflow.agents, tallies,
        {
            "rollout_seconds": played - started,
            "train_seconds": ended - played,
            "step_seconds": ended - started,
        },
        ungraded,
    )  # fmt: skip


def measure(run: Run) -> EvalRecord:
    """Evaluate the policies as they are and record it."""
    config = run.config
    record, episodes = evaluate(
        run.sampler, run.workflow, run.speakers, run.task.heldout, config, run.done, run.judge,
        run.peers,
    )  # fmt: skip
    if run.peers.is_first:
        save_episodes(episodes_path(config.out, "eval", run.done), episodes)
    run.store.append(record)
    return record


def step_problems(problems: Sequence[Problem], config: TrainConfig, step: int) -> list[Problem]:
    """The problems of a step: consecutive slices of a new permutation in every epoch.

    What does not fill a step is left out of the epoch, so that no step holds a problem twice.
    """
    size = config.problems_per_step
    epoch, index = divmod(step - 1, len(problems) // size)
    order = np.random.default_rng([config.seed, epoch]).permutation(len(problems))
    return [problems[i] for i in order[index * size : (index + 1) * size]]


def task_of(config: TrainConfig) -> Task:
    """The problems that a configuration names.

    Raises ValueError where they cannot be read, or are too few.
    """
    task = load_task(
        config.task, heldout=config.eval_problems, seed=config.data_seed, data=config.data,
        difficulty=config.difficulty, options=config.task_options, math_rule=config.math_rule,
        split=config.split,
    )  # fmt: skip
    if config.problems_per_step > len(task.train):
        raise ValueError(
            f"--problems-per-step is {config.problems_per_step}; task '{config.task}' has "
            f"{len(task.train)} problems left to train on"
        )
    return task


def open_run_for_training(
    config: TrainConfig, watch: Watch | None = None, peers: Peers = ALONE
) -> Run:
    """Load everything a run needs; with `config.resume`, as it was at the last checkpoint."""
    about: dict[str, Any] | None = None
    if config.resume:
        about = peers.first(lambda: read_run_directory(config.out))
        check_parts(config.out, about)
        config = stored_config(about, config)
    config = with_draws(config, peers.size)
    check_dealing(config, peers.size)
    check_sharding(config, peers.size)
    check_same_config(peers, config)
    check_watch(config, watch)
    check_sampler(config, peers.size)
    if config.threads:
        torch.set_num_threads(config.threads)
    workflow = config.build_workflow()
    task = task_of(config)
    if about and about["data"]["sha256"] != task.content_hash:
        raise ValueError(
            f"--resume: the problems of task '{config.task}' have changed since the run began "
            f"(SHA-256 {about['data']['sha256'][:12]}… then, {task.content_hash[:12]}… now); put "
            "the original --data back, or start a new run"
        )
    here = replace(config, device=device_of(peers.launch, config.device))
    languages = load_language_models(here)
    check_same_start(peers, task, languages)
    if config.shard_base:
        shard_base(languages[config.model], peers)
    policies = build_policies(languages, config)
    with ExitStack() as undo:
        judge = judge_of(config, (*task.train, *task.heldout), task.judge)
        undo.callback(judge.close)  # also if the directory or the store is refused
        sampler = open_sampler(config, languages, task, workflow, peers.rank)
        undo.callback(sampler.close)
        language = next(iter(languages.values()))  # all are asked in the same style
        components = check_own_parts(config, task, language.tokenizer, language.prompts)
        made = about or peers.first(lambda: create_run_directory(config, task))
        first = first_step(made)
        meta = _meta(config, task, made, policies, judge, components)
        recorded = peers.first(lambda: last_recorded(config.out))
        step, store = _open_store(config, meta, policies, first, peers)
        undo.pop_all()
    for policy in policies.values():
        if policy.probe and isinstance(store, RunStore):
            policy.probe.send_to(store)
    resumed = continuing(config, step, recorded) if config.resume else ""
    if "from" in made and not recorded:
        resumed = ""  # it begins; where, was said when it was made
    for name in policies:
        sampler.publish(name, step)
    return Run(
        config, task, workflow, config.speakers(), languages, policies, sampler, store, judge, step,
        first, components, resumed, peers,
    )  # fmt: skip


def continuing(config: TrainConfig, done: int, recorded: int) -> str:
    """What a run that is resumed after step `done` goes on with; its record ended at `recorded`."""
    if done >= config.steps:
        return f"already finished at step {done}; --extend-to M goes on"
    begin = f"continuing after step {done}" if done else "no checkpoint was written yet"
    if recorded <= done:
        return begin
    steps = f"step {recorded} is" if recorded == done + 1 else f"steps {done + 1} to {recorded} are"
    return f"{begin}: {steps} trained again"


def _meta(
    config: TrainConfig,
    task: Task,
    about: dict[str, Any],
    policies: dict[str, Policy],
    judge: Judge,
    components: tuple[str, ...],
) -> RunMeta:
    """What is fixed for the run; `about` is its config.json, `components` those of the reward."""
    return RunMeta(
        run_id=about["run_id"],
        workflow=config.build_workflow().name,
        task=config.task,
        model=config.model,
        roles=config.build_workflow().roles,
        routing=routing_table(config.policy_by_agent()),
        frozen=config.freeze,
        models=other_models(config),
        policies=tuple(policy.meta() for policy in policies.values()),
        problems=problem_ids(task.heldout),
        eval_samples=config.eval_samples,
        reward_components=components,
        config=about["config"] | {key: about[key] for key in ("from", "parts") if key in about},
        versions=about["versions"] | protection_of(judge),
    )


def other_models(config: TrainConfig) -> dict[str, str]:
    """`RunMeta.models`: whose base model is not the one of --model."""
    named = {policy: config.model_of_policy(policy) for policy in config.policies}
    others = {name: model for name, model in named.items() if model != config.model}
    for role in config.freeze:
        agents = [agent for agent in config.build_workflow().agents if agent.role == role]
        models = {str(agent): config.model_of(agent) for agent in agents}
        if len(set(models.values())) > 1 or role in named:
            others |= models
        elif (model := models[str(agents[0])]) != config.model:
            others[role] = model
    return others


def protection_of(judge: Judge) -> dict[str, str]:
    """What model-written programs run in, for the run's metadata."""
    if judge.code is None:
        return {}
    return {"sandbox": judge.code.protection.describe()}


def _open_store(
    config: TrainConfig,
    meta: RunMeta,
    policies: dict[str, Policy],
    first: int,
    peers: Peers,
) -> tuple[int, RunStore | Nowhere]:
    """The run's store, and the step of the checkpoint that both were put back to (0: none)."""
    if peers.is_first:
        step, store = _open_store_for_writing(config, meta, policies, first)
        peers.first(lambda: step)
        return step, store
    step = peers.first(lambda: 0)
    if step:
        load_checkpoint(config.out, step, policies)
    return step, Nowhere()


def _open_store_for_writing(
    config: TrainConfig,
    meta: RunMeta,
    policies: dict[str, Policy],
    first: int,
) -> tuple[int, RunStore]:
    """Of `_open_store`, what the process does that writes.

    `first`: step of the checkpoint that a run begins with, if it continues another one; else 0.
    """
    path = config.out / STORE
    if not path.exists():
        if (last_checkpoint(config.out) or 0) != first:
            raise ValueError(
                f"--resume: {path} is missing although the run has checkpoints; put it back, or "
                "start a new run"
            )
        restore(config.out, policies)
        return first, RunStore.create(path, meta)
    restored = restore(config.out, policies)
    if restored is None:
        check_unstarted(config, first)
    step = restored or 0
    # Killed before a checkpoint of its own there is nothing to continue from: all rows go.
    return step, RunStore.resume(path, after_step=step if step > first else -1, meta=meta)


@contextmanager
def explaining_refusals(out: Path) -> Iterator[None]:
    """Say what a full or read-only disk means for the run."""
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        step = last_checkpoint(out)
        kept = "its beginning" if step is None else f"the checkpoint of step {step}"
        raise TrainingError(
            f"cannot write to {out} ({error.strerror}); the run stopped and can be continued from "
            f"{kept}. Make room, then: gradlab train --resume --out {out}"
        ) from error


@contextmanager
def interruptible() -> Iterator[Callable[[], int]]:
    """Yield a function that tells which signal asked to stop: SIGINT (Ctrl-C), SIGTERM, or 0.

    A second one stops at once.
    """
    asked = 0

    def remember(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = number

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
