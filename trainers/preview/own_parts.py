"""Try parts of one's own on a canned episode, before anything of a run is written."""

from __future__ import annotations

from trainers.config import TrainConfig
from trainers.models.language import LanguageModel
from trainers.preview.dry_play import canned_episodes
from trainers.preview.prompts import replies_of, workers_of
from trainers.rundir.own_parts import own_parts
from trainers.tasks.problem import Task


def check_own_parts(config: TrainConfig, task: Task, language: LanguageModel) -> None:
    """Play the workflow with canned replies on a problem of the task.

    Raises PartError, with file and line, for a part that would fail in the run.
    """
    if not own_parts(config):
        return
    workflow, problem = config.build_workflow(), task.train[0]
    replies = replies_of(language.tokenizer, problem.kind, workers_of(workflow))
    for _ in canned_episodes(workflow, language.prompts, problem, replies):
        pass
