"""Try parts of one's own on canned episodes, before anything of a run is written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gradlab.own_parts import is_own
from trainers.config import TrainConfig
from trainers.credit import credit
from trainers.judge import own_grade
from trainers.preview.dry_play import NONSENSE, canned_episodes
from trainers.preview.prompts import replies_of, workers_of
from trainers.prompts.chat import Prompts
from trainers.rundir.own_parts import own_parts
from trainers.tasks.problem import Task


def check_own_parts(
    config: TrainConfig, task: Task, tokenizer: Any, prompts: Prompts
) -> tuple[str, ...]:
    """Names of the components of the reward, found out by playing and crediting canned episodes.

    Raises PartError, with file and line, for a part that would fail in the run.
    """
    if not own_parts(config):
        return ()
    workflow, problem = config.build_workflow(), task.train[0]
    if task.judge is not None:
        for answer in (problem.answer, NONSENSE):
            own_grade(task.judge, problem, answer)
    replies = replies_of(tokenizer, problem.kind, workers_of(workflow))
    episodes = list(canned_episodes(workflow, prompts, problem, replies))
    if not is_own(config.reward) and not is_own(config.advantage):
        return ()
    # As if each had been solved, and as if not: a reward may name other things then.
    both = [
        replace(
            episode, outcome=outcome,
            turns=tuple(replace(turn, outcome=outcome) for turn in episode.turns),
        )
        for episode in episodes
        for outcome in (False, True)
    ]  # fmt: skip
    turns = [turn for episode in credit(both, config) for turn in episode.turns]
    return tuple(dict.fromkeys(name for turn in turns for name, _ in turn.components))
