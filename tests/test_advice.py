"""What a run is told before it starts, against what then happens."""

from __future__ import annotations

import io
import random
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from conftest import SmallConfig, make_turn
from rich.console import Console

from gradlab.store.run import open_run
from trainers.config import TrainConfig
from trainers.credit import turn_reward, with_advantages
from trainers.episodes import Turn
from trainers.presets import PRESETS, preset, usual_preset
from trainers.preview.advice import advice
from trainers.preview.dryrun import described
from trainers.preview.estimates import plan
from trainers.training import train
from trainers.watch.progress import Progress
from trainers.workflows import WORKFLOWS


def turns_of_an_episode(config: TrainConfig, draw: random.Random) -> list[Turn]:
    """Whose turns an episode may have, each right or wrong by chance; plans are neither."""
    rounds = draw.randint(1, config.rounds) if config.workflow == "evaluator_optimizer" else 1
    workers = draw.randint(1, config.workers)
    return [
        make_turn(
            agent,
            round=number,
            kind={"evaluator": "verdict", "aggregator": "choice"}.get(agent.role, "answer"),
            own_correct=None if agent.role == "orchestrator" else draw.random() < 0.5,
            offered_correct=draw.random() < 0.5 if agent.role != "generator" else None,
        )
        for number in range(rounds)
        for agent in config.build_workflow().agents
        if agent.role != "worker" or agent.number < workers
    ]


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_roles_that_one_episode_teaches_nothing_are_named(workflow: str) -> None:
    """Every way to group, credit and reward one episode per problem, played 100 times."""
    choices = product(
        ("role", "role_number", "role_turn"),
        ("zero", "reward"),
        ("outcome", "own", "mix", "rubric"),
    )
    for group_by, singleton, reward in choices:
        options: dict[str, Any] = {"group_by": group_by, "singleton": singleton, "reward": reward}
        config = TrainConfig(workflow=workflow, samples=1, votes=2, **options)
        draw, taught = random.Random(0), set()
        for _ in range(100):
            outcome = draw.random() < 0.5
            rows = [replace(turn, outcome=outcome) for turn in turns_of_an_episode(config, draw)]
            paid = [replace(row, reward=turn_reward(row, config)) for row in rows]
            credited = with_advantages(paid, config)
            taught |= {row.agent.role for row in credited if abs(row.advantage) > 1e-9}
        silent = [role for role in config.build_workflow().roles if role not in taught]
        told = list(advice(config))
        assert len(told) == bool(silent), (options, silent)
        if silent and taught:
            assert f"all advantages of {', '.join(silent)} are 0" in told[0], options
        elif silent:
            assert "--samples is 1, so every group has one episode: all advantages are 0" in told[0]


def test_a_run_of_single_episodes_learns_nothing_and_says_so(small_config: SmallConfig) -> None:
    config, said = small_config(samples=1, steps=1), io.StringIO()
    run = open_run(train(config, Progress(Console(file=said, width=1000))))
    assert all(np.nansum(run.norm(role).value_T) == 0 for role in run.roles)
    assert "warning: --samples is 1" in said.getvalue()
    assert any("warning     --samples is 1" in line for line in described(config, plan(config)))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"task": "gsm8k"}, "--model tiny was made for --task arithmetic and knows nothing of"),
        ({"model": "tiny-code"}, "tiny-code was made for --task programs and knows nothing of"),
        ({"difficulty": 3}, "was taught numbers of 2 digits; --difficulty is 3"),
        (
            {"model": "some/model", "task": "gsm8k"},
            "--max-response-tokens 16 (5120), --learning-rate 0.001 (2e-05); in brackets what "
            "--preset Voting-IP-1.7B-Math uses",
        ),
        (
            {"model": "smollm2-135m", "task": "gsm8k", "max_response_tokens": 99},
            "embedded models: --learning-rate 0.001 (0.0001); in brackets what --preset smollm2",
        ),
        (
            {"model": "some/model", "task": "gsm8k", "learning_rate": 1e-5, "device": "cuda"},
            "--max-response-tokens 16 (5120), --dtype float32 (bfloat16)",
        ),
    ],
)
def test_settings_of_another_kind_of_model_are_told(options: dict[str, Any], told: str) -> None:
    [said] = advice(TrainConfig(**options))
    assert told in said


@pytest.mark.parametrize(
    "name", [*PRESETS, "EvalOpt-SP-tiny-Code", "Voting-IP-1.7B-Math", "OrchWorkers-SP-4B-Code"]
)
def test_presets_need_no_advice(name: str) -> None:
    assert list(advice(preset(name))) == []


def test_the_usual_preset_is_that_of_the_workflow_and_the_task() -> None:
    config = TrainConfig(model="Qwen/Qwen3-4B", task="mbpp", routing="shared", workflow="solo")
    assert usual_preset(config) == "Single-SP-4B-Code"
    assert usual_preset(replace(config, model="/models/mine")) == "Single-SP-1.7B-Code"
