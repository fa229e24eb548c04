"""Two processes train what one does, to rounding; one that fails ends the other, and says why."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import SmallConfig
from ranks import Processes
from rich.console import Console
from test_train import arrays

from gradlab.commands.main import main
from gradlab.run_directory import checkpoint_path, episodes_path
from gradlab.store.run import open_run
from trainers.config import TrainConfig
from trainers.ranks.joining import joined
from trainers.ranks.launch import launched
from trainers.ranks.peers import fingerprint
from trainers.rundir.transcripts import read_episodes
from trainers.training import train
from trainers.watch.progress import Progress

SMALL = {
    "steps": 2,
    "eval_every": 1,
    "checkpoint_every": 1,
    "problems_per_step": 3,
    "samples": 2,
    "eval_problems": 5,
    "rows_per_update": 7,
    "max_response_tokens": 8,
    "lora_rank": 2,
    "dtype": "float64",
    "threads": 1,
    "draws": "problem",
}
"""Nothing that two ranks divide evenly."""
TOGETHER: Mapping[str, Mapping[str, object]] = {
    "batch-wide": {"routing": "shared", "advantage": "reinforce++", "equalize": True},
    "sparse": {"workflow": "evaluator_optimizer", "rows_per_update": 1, "coherence_damping": 0.3},
    "agents": {"workflow": "orchestrator_workers", "routing": "agents", "probe": "off"},
}
WIDE: Mapping[str, Mapping[str, object]] = {
    **{
        f"{workflow} {routing}": {"workflow": workflow, "routing": routing}
        for workflow in ("voting", "evaluator_optimizer", "orchestrator_workers")
        for routing in ("shared", "isolated", "agents")
    },
    "faithful": {
        "routing": "shared",
        "minibatches": "length",
        "partial_minibatch": "full",
        "scheduler_tick": "policy",
        "warmup_steps": 3,
        "singleton": "reward",
        "old_logprobs": "trainer",
        "coherence_damping": 0.3,
        "coherence_start": "first",
        "workflow": "evaluator_optimizer",
    },
    "capped": {"routing": "shared", "max_share": {"generator": 0.5}, "role_clip": {"aggregator": 1}},
    "anchored": {"kl_coefficient": {"aggregator": 0.05}, "entropy_coefficient": 0.01},
    "frozen": {"workflow": "orchestrator_workers", "freeze": ("worker",), "probe": "fused"},
    "kept": {"routing": "shared", "effective": True, "sketch_buckets": 4093},
    "one update": {"updates": "fixed", "fixed_updates": 1, "aggregation": "token_mean"},
    "two models": {"policy_model": {"aggregator": "tiny-1m"}, "group_by": "role"},
    "unmeasured": {"probe": "off", "routing": "shared", "coherence_damping": 0.3},
}


def quiet() -> Progress:
    return Progress(Console(quiet=True))


def train_all(configs: list[TrainConfig]) -> int:
    """What each of the processes does."""
    with joined("cpu"):
        for config in configs:
            train(config, quiet())
    return 0


def assert_equal_runs(one: Path, two: Path) -> None:
    """The same figures to 1e-10 of the largest of each array, and the same words."""
    mine, theirs = arrays(one), arrays(two)
    assert mine.keys() == theirs.keys()
    assert len(mine) > 4
    for name, array in mine.items():
        if array.dtype.kind != "f":
            np.testing.assert_array_equal(array, theirs[name], err_msg=name)
            continue
        # A coordinate and its unit of float32 is what the store keeps of most.
        for left, right in zip(np.atleast_1d(array.values), np.atleast_1d(theirs[name].values), strict=True):
            scale = np.nanmax(np.abs(left), initial=1e-30)
            rounding = 1e-10 if array.dtype == np.float64 else 2e-7
            np.testing.assert_allclose(right, left, rtol=rounding, atol=rounding * scale, err_msg=name)
    for kind, step in (("step", 1), ("step", 2), ("eval", 0), ("eval", 2)):
        said, also = (
            [*read_episodes(episodes_path(run, kind, step))] for run in (one, two)
        )
        assert said == also


def both(tmp_path: Path, small_config: SmallConfig, cases: Mapping[str, Mapping[str, object]]) -> None:
    """Train every case in one process and in two, and compare."""
    configs = {
        name: small_config(**{**SMALL, **case, "out": tmp_path / "one" / name})
        for name, case in cases.items()
    }
    together = [replace(config, out=tmp_path / "two" / name) for name, config in configs.items()]
    pair = Processes(tmp_path / "said", train_all, together)
    for config in configs.values():
        train(config, quiet())
    assert pair.wait() == [0, 0], pair.said()
    for name in cases:
        assert_equal_runs(tmp_path / "one" / name, tmp_path / "two" / name)


def test_two_processes_train_what_one_does(tmp_path: Path, small_config: SmallConfig) -> None:
    """Among the cases: batch-wide advantages, an update of one row (one rank has none of any role),
    interventions on whole gradients, policies without a probe."""
    both(tmp_path, small_config, TOGETHER)
    two = tmp_path / "two" / "sparse"
    assert open_run(two).closed
    assert (checkpoint_path(two, 2) / "checkpoint.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("names", [[*WIDE][:9], [*WIDE][9:]], ids=["workflows", "options"])
def test_two_processes_train_what_one_does_in_every_workflow(
    tmp_path: Path, small_config: SmallConfig, names: list[str]
) -> None:
    both(tmp_path, small_config, {name: WIDE[name] for name in names})
