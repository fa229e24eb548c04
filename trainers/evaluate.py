"""Measure a run's accuracy on its held-out problems, and each role's own correctness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gradlab.ledger import mean
from gradlab.records import Agent, EvalRecord, RoleEvaluation
from gradlab.workflows import Workflow
from trainers.config import TrainConfig
from trainers.episodes import Episode, Turn
from trainers.judge import Judge
from trainers.models.sampler import Sampler, Speaker
from trainers.ranks.peers import ALONE, Peers
from trainers.rollout import rollout
from trainers.tasks.problem import Problem
from trainers.watch.forms import form_shares, sibling_indices

EVALUATION = 1 << 20
"""Part of the sampling key that keeps evaluation apart from training."""


def evaluate(
    sampler: Sampler,
    workflow: Workflow,
    speakers: Mapping[Agent, Speaker],
    problems: Sequence[Problem],
    config: TrainConfig,
    step: int,
    judge: Judge,
    peers: Peers = ALONE,
) -> tuple[EvalRecord, list[Episode]]:
    """Play every held-out problem `eval_samples` times with the policies as they are."""
    key = (config.seed, step, EVALUATION)
    episodes = peers.play(
        problems,
        lambda mine: rollout(
            sampler, workflow, speakers, mine, config.eval_samples, key, judge, config.draws
        ),
    )
    return evaluation_record(
        episodes, problems, workflow.roles, config.eval_samples, step
    ), episodes


def evaluation_record(
    episodes: Sequence[Episode],
    problems: Sequence[Problem],
    roles: Sequence[str],
    samples: int,
    step: int,
) -> EvalRecord:
    """Sum up evaluation episodes; one that was given up counts as wrong.

    Were it left out, prompts that grow too long would raise the accuracy.
    """
    place = {problem.id: i for i, problem in enumerate(problems)}
    correct_PS = np.full((len(problems), samples), 255, dtype=np.uint8)
    own_RP: list[list[list[bool]]] = [[[] for _ in problems] for _ in roles]
    turns: dict[str, list[Turn]] = {role: [] for role in roles}
    any_correct: dict[str, list[bool]] = {role: [] for role in roles}
    alike: dict[str, list[float]] = {role: [] for role in roles}
    for episode in episodes:
        problem = place[episode.problem.id]
        correct_PS[problem, episode.sample] = episode.is_solved
        if episode.failure is not None:
            continue
        for index, role in enumerate(roles):
            mine = [turn for turn in episode.turns if turn.agent.role == role]
            own = [turn.own_correct for turn in mine if turn.own_correct is not None]
            turns[role] += mine
            alike[role] += sibling_indices(mine)
            own_RP[index][problem] += own
            if own:
                any_correct[role].append(any(own))
    return EvalRecord(
        step,
        correct_PS,
        {role: role_evaluation(turns[role], any_correct[role], alike[role]) for role in roles},
        np.array([[mean(own) for own in own_P] for own_P in own_RP]),
    )


def role_evaluation(
    turns: Sequence[Turn], any_correct: Sequence[bool], sibling_jaccards: Sequence[float] = ()
) -> RoleEvaluation:
    """One role's part in an evaluation; fields that the role does not have stay NaN.

    `sibling_jaccards`: of every pair of its agents that were asked at once; those of different
    episodes are no siblings.
    """
    own = [turn.own_correct for turn in turns if turn.own_correct is not None]
    offered = [t for t in turns if t.offered_correct is not None and t.kind != "verdict"]
    verdicts = [turn for turn in turns if turn.kind == "verdict"]
    length_B = np.array([len(turn.response_ids) for turn in turns])
    return RoleEvaluation(
        own_accuracy=mean(own),
        any_correct=mean(any_correct),
        choice_accuracy=mean([bool(turn.own_correct) for turn in offered if turn.offered_correct]),
        # A verdict that is right about a wrong solution rejected it; one that is wrong accepted it.
        false_accept=mean([not turn.own_correct for turn in verdicts if not turn.offered_correct]),
        false_reject=mean([not turn.own_correct for turn in verdicts if turn.offered_correct]),
        length_mean=mean(length_B.tolist()),
        length_p95=float(np.percentile(length_B, 95)) if len(length_B) else float("nan"),
        truncated=mean([turn.truncated for turn in turns]),
        parse_failures=mean([not turn.parse_ok for turn in turns]),
        sibling_jaccard=mean(sibling_jaccards),
        **{name: mean(shares) for name, shares in form_shares(turns).items()},
    )
