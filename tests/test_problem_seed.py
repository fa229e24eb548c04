"""--problem-seed holds the problems of a task fixed while --seed changes the training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from trainers.config import EARLIER, TrainConfig
from trainers.models.language import load_language_models
from trainers.tasks.problem import problem_ids
from trainers.training import step_problems, task_of

SmallConfig = Callable[..., TrainConfig]


@pytest.mark.parametrize("task", ["arithmetic", "programs"])
def test_seeds_share_their_problems_and_nothing_else(small_config: SmallConfig, task: str) -> None:
    first = small_config(task=task, seed=1, problem_seed=7)
    second = replace(first, seed=2)
    one, other = task_of(first), task_of(second)
    assert one == other  # training problems, held-out problems, and their order
    drawn = [problem_ids(step_problems(one.train, config, 1)) for config in (first, second)]
    assert drawn[0] != drawn[1]
    weights = [
        torch.cat([
            value.flatten()
            for model in load_language_models(config).values()
            for name, value in model.model.named_parameters()
            if "lora_A" in name
        ])
        for config in (first, second)
    ]  # fmt: skip
    assert not torch.equal(*weights)


def test_without_it_the_seed_chooses_them_as_before(small_config: SmallConfig) -> None:
    assert EARLIER["problem_seed"] is None
    old = small_config(seed=3)
    assert task_of(old) == task_of(small_config(seed=0, problem_seed=3))
    assert task_of(old).heldout != task_of(replace(old, seed=4)).heldout


def test_it_is_refused_where_something_else_says_what_is_held_out(
    small_config: SmallConfig,
) -> None:
    with pytest.raises(ValueError, match=r"--problem-seed is 3 and --split paper.*one of the two"):
        small_config(problem_seed=3, split="paper")
    with pytest.raises(ValueError, match="--problem-seed is -1; expected 0 or more"):
        small_config(problem_seed=-1)
