"""Replay a step of a run from its last checkpoint and check whose gradient is whose.

Every policy does one update of the step that would follow the checkpoint, first as in training and
then once per agent with everybody else's rows at weight zero. Nothing in the run is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from gradlab.ledger import RoleTally
from gradlab.probe.audit import Audit
from trainers.batches import plan_updates, with_old_logprobs
from trainers.config import TrainConfig
from trainers.correction import corrected
from trainers.episodes import Turn, trained_turns
from trainers.judge import judge_of
from trainers.learn import accumulate
from trainers.models.language import LanguageModel, load_language_models
from trainers.models.local_sampler import LocalSampler
from trainers.policies import Policy, build_policies
from trainers.rollout import rollout
from trainers.rundir.checkpoint import last_checkpoint, load_checkpoint
from trainers.rundir.directory import check_trained, read_run_directory, stored_config
from trainers.rundir.own_parts import check_parts
from trainers.training import TRAINING, step_problems, task_of


def audit_run(out: Path) -> tuple[int, list[Audit]]:
    """The step that was replayed, and the audit of every policy that had rows in it.

    Raises ValueError for a directory without a run or a checkpoint.
    """
    check_trained(out, "an imported one has no model to check")
    done = last_checkpoint(out)
    if done is None:
        raise ValueError(
            f"{out} has no checkpoint yet; a run writes one every --checkpoint-every steps, at its "
            "end and on Ctrl-C"
        )
    about = read_run_directory(out)
    check_parts(out, about)
    config = stored_config(about, TrainConfig(out=out))
    if config.probe == "off":
        config = replace(config, probe="exact")
    if config.threads:
        torch.set_num_threads(config.threads)
    workflow = config.build_workflow()
    task = task_of(config)
    languages = load_language_models(config)
    policies = build_policies(languages, config)
    load_checkpoint(out, done, policies)
    step = done + 1
    problems, key = step_problems(task.train, config, step), (config.training_seed, step, TRAINING)
    judge = judge_of(config, problems, task.judge)
    sampler = LocalSampler(languages, config.sampler_merge)
    speakers = config.speakers()
    episodes = rollout(
        sampler, workflow, speakers, problems, config.samples, key, judge, config.draws
    )
    # Any advantages tell agents apart; the step's own may be zero for all rows of one.
    draw = np.random.default_rng(key)
    rows = [replace(row, advantage=float(draw.normal())) for row in trained_turns(episodes)]
    found = []
    for policy in policies.values():
        mine = [row for row in rows if row.agent in policy.agents]
        if mine:
            found.append(audit_update(policy.language, policy, mine, config, step))
    return step, found


def audit_update(
    language: LanguageModel, policy: Policy, rows: Sequence[Turn], config: TrainConfig, step: int
) -> Audit:
    """Do the policy's first update of the step up to its optimizer, and audit it."""
    assert policy.probe is not None
    language.activate(policy.name)
    language.model.train()
    tallies = {role: RoleTally() for role in policy.roles}  # nobody reads them
    rows = corrected(with_old_logprobs(language, rows, config), config, tallies)
    problems = {problem: i for i, problem in enumerate(dict.fromkeys(r.problem for r in rows))}
    update = plan_updates(rows, config, (config.training_seed, step, *policy.name.encode()))[0]
    again = partial(accumulate, language, policy, update, problems, config, step, tallies)
    again()
    found = policy.probe.audit(lambda agent: again(only=agent))
    policy.probe.discard()
    policy.optimizer.zero_grad(set_to_none=True)
    return found
