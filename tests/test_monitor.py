"""Sampler, trainer and base model are compared on a share of the turns, without extra forwards."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import SmallConfig

from gradlab.ledger import RoleTally
from trainers.batches import plan_updates, response_logprobs, to_batch
from trainers.credit import credit
from trainers.episodes import Turn, trained_turns
from trainers.learn import learn
from trainers.models.language import LanguageModel
from trainers.rollout import rollout
from trainers.training import TRAINING, open_run_for_training, step_problems
from trainers.watch.monitor import with_reference


@pytest.mark.parametrize("minibatches", ["prompts", "length"])
def test_the_means_are_those_of_a_forward_of_their_own(
    small_config: SmallConfig, monkeypatch: pytest.MonkeyPatch, minibatches: str
) -> None:
    """Whether a role is in the first update, whose forward tells, or in a later one: by length the
    aggregator's long prompts come last. All turns are compared here, so that the twin needs none of
    the choice."""
    monkeypatch.setattr("trainers.watch.monitor.MONITORED_SHARE", 1.0)
    monkeypatch.setattr("trainers.watch.monitor.MONITORED_TURNS", 1000)
    config = small_config(
        routing="shared", minibatches=minibatches, rows_per_update=8, learning_rate=0.05
    )
    run = open_run_for_training(config)
    policy, language = run.policies["shared"], run.languages[config.model]
    with torch.no_grad():  # away from the base model
        for number, parameter in enumerate(policy.parameters):
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.manual_seed(number)))
    problems = step_problems(run.task.train, config, 1)
    played = rollout(
        run.sampler, run.workflow, run.speakers, problems, 4, (0, 1, TRAINING), run.judge
    )
    # What the sampler says is off by .01 at every token.
    rows = [
        replace(turn, logprobs=tuple(value - 0.01 for value in turn.logprobs))
        for turn in trained_turns(credit(played, config))
    ]
    first = plan_updates(rows, config, (config.training_seed, 1, *b"shared"))[0]
    compared = {
        role: [row for row in first if row.agent.role == role]
        or [row for row in rows if row.agent.role == role]
        for role in policy.roles
    }
    expected = {role: means(language, mine) for role, mine in compared.items()}
    with pytest.warns(UserWarning, match="rollout and trainer log-probs differ by 0.01"):
        tallies = learn(language, policy, rows, config, 1)
    run.judge.close()
    for role, tally in tallies.items():
        assert tally.compared_turns == len(compared[role])
        assert (tally.logprob_gap, tally.kl) == pytest.approx(
            expected[role], rel=1e-3
        )  # k3 in float32
    is_late = not any(row.agent.role == "aggregator" for row in first)
    assert is_late is (minibatches == "length"), "both ways are taken"


def means(language: LanguageModel, rows: list[Turn]) -> tuple[float, float]:
    """(gap, KL) per token, one row at a time, k3 written out."""
    gap, kl, tokens = 0.0, 0.0, 0
    with torch.no_grad():
        for row in rows:
            batch = to_batch([row], language)
            own = response_logprobs(language, batch)[0][0].numpy()
            with language.model.disable_adapter():
                base = response_logprobs(language, batch)[0][0].numpy()
            gap += float(np.abs(own - np.array(row.logprobs)).sum())
            kl += float((np.exp(base - own) - (base - own) - 1).sum())
            tokens += len(row.response_ids)
    return gap / tokens, kl / tokens


def test_a_sixteenth_of_the_turns_is_compared_at_most_sixteen(small_config: SmallConfig) -> None:
    run = open_run_for_training(small_config(routing="shared"))
    policy, language = run.policies["shared"], run.languages[run.config.model]
    problems = step_problems(run.task.train, run.config, 1)
    played = rollout(run.sampler, run.workflow, run.speakers, problems, 4, (0,), run.judge)
    run.judge.close()
    rows = trained_turns(played)  # 48 of generators, 16 of the aggregator
    for copies, expected in ((1, (3, 1)), (8, (16, 8))):
        many = [replace(row, sample=i) for i in range(copies) for row in rows]
        many = [replace(row, round=i) for i, row in enumerate(many)]  # no two alike
        tallies = {role: RoleTally() for role in policy.roles}
        marked = with_reference(language, policy, many, many, run.config, tallies)
        assert [replace(row, reference_logprobs=None) for row in marked] == many
        of_role = [
            sum(r.reference_logprobs is not None and r.agent.role == role for r in marked)
            for role in ("generator", "aggregator")
        ]
        assert tuple(of_role) == expected
