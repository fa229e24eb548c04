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
import torch
from conftest import SmallConfig
from ranks import Processes
from rich.console import Console
from test_train import arrays
from torch.distributed.tensor import DTensor
from xarray import DataArray

from gradlab.commands.main import main
from gradlab.run_directory import checkpoint_path, episodes_path
from gradlab.store.run import open_run
from trainers.config import TrainConfig
from trainers.ranks.joining import joined
from trainers.ranks.launch import launched
from trainers.ranks.peers import fingerprint
from trainers.ranks.sharding import layers_of
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
    "sparse": {
        "workflow": "evaluator_optimizer",
        "rows_per_update": 1,
        "eval_problems": 1,
        "coherence_damping": 0.3,
    },
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
    "capped": {
        "routing": "shared",
        "max_share": {"generator": 0.5},
        "role_clip": {"aggregator": 1},
    },
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


ROUNDING = {8: 1e-10, 4: 2e-7, 2: 2e-3}
"""Of what the store keeps in float64, float32 and float16."""


def directed(run: Mapping[str, DataArray], name: str) -> np.ndarray:
    """The values of an array; the direction of a gradient that is nothing but rounding is none."""
    values: np.ndarray = run[name].values
    if name.endswith("/effective_sketch"):
        gram_UAA = run[name.replace("sketch", "gram")].values
        is_rounding_UA = np.diagonal(gram_UAA, axis1=1, axis2=2) < 1e-25 * gram_UAA.max()
        values = np.where(is_rounding_UA[..., None], 0, values)
    return values


def assert_equal_runs(one: Path, two: Path) -> None:
    """The same figures to 1e-10 of the largest of each array, and the same words."""
    mine, theirs = arrays(one), arrays(two)
    assert mine.keys() == theirs.keys()
    assert len(mine) > 4
    for name, array in mine.items():
        if array.dtype.kind != "f":
            np.testing.assert_array_equal(array, theirs[name], err_msg=name)
            continue
        for left, right in zip(
            np.atleast_1d(directed(mine, name)), np.atleast_1d(directed(theirs, name)), strict=True
        ):
            scale = np.nanmax(np.abs(left), initial=1e-30)
            rounding = ROUNDING[array.dtype.itemsize]
            np.testing.assert_allclose(
                right, left, rtol=rounding, atol=rounding * scale, err_msg=name
            )
    for kind, step in (("step", 1), ("step", 2), ("eval", 0), ("eval", 2)):
        said, also = ([*read_episodes(episodes_path(run, kind, step))] for run in (one, two))
        assert said == also


def both(
    tmp_path: Path, small_config: SmallConfig, cases: Mapping[str, Mapping[str, object]]
) -> None:
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


def run_command(*words_by_rank: list[str]) -> int:
    """What each of the processes does: its own command line."""
    words = words_by_rank[launched().rank % len(words_by_rank)]
    return main(words)


def options(out: Path, **settings: object) -> list[str]:
    """A command line of a small run."""
    small = {**SMALL, "eval_every": 2, "device": "cpu", "out": out, **settings}
    return ["train"] + [f"--{name.replace('_', '-')}={value}" for name, value in small.items()]


REWARD = """
import os, signal

calls = 0

def pay(episode, turn):
    global calls
    calls += 1
    if os.environ.get("RANK") == "1" and calls > 40:
        {deed}
    return float(turn.outcome)
"""


def rewarded(folder: Path, deed: str) -> str:
    """A reward that does something in the second step, on rank 1 alone."""
    (folder / "my_reward.py").write_text(REWARD.format(deed=deed))
    return f"{folder / 'my_reward.py'}:pay"


def test_two_processes_train_what_one_does(tmp_path: Path, small_config: SmallConfig) -> None:
    """Among the cases: batch-wide advantages, an update of one row (one rank has none of any role)
    and an evaluation of one problem, interventions on whole gradients."""
    both(tmp_path, small_config, TOGETHER)
    two = tmp_path / "two" / "sparse"
    assert open_run(two).closed
    assert (checkpoint_path(two, 2) / "checkpoint.json").is_file()


def train_sharded(configs: list[TrainConfig]) -> int:
    """Layers are divided in half; how much of them a rank holds is written down."""
    with joined("cpu") as peers:
        for config in configs:
            train(config, quiet())
            (found,) = peers.lockstep
            layers = layers_of(found._model)
            whole = sum(p.numel() for n, p in layers.named_parameters() if ".lora_" not in n)
            mine = sum(p.to_local().numel() for p in layers.parameters() if isinstance(p, DTensor))
            print(f"{mine} of {whole}")
            peers.lockstep.clear()
    return 0


@pytest.mark.slow
def test_a_base_model_that_is_divided_between_ranks_trains_the_same(
    tmp_path: Path, small_config: SmallConfig
) -> None:
    """Responses and rows differ between ranks, roles are anchored to the base model in one of them,
    and one case has updates of a single row: passes meet all the same."""
    cases: dict[str, dict[str, object]] = {
        "anchored": {"kl_coefficient": {"aggregator": 0.05}, "old_logprobs": "trainer"},
        "checkpointed": {"gradient_checkpointing": True, "routing": "shared"},
        "sparse": {"workflow": "evaluator_optimizer", "rows_per_update": 1},
    }
    configs = {
        name: small_config(**{**SMALL, **case, "out": tmp_path / "one" / name})
        for name, case in cases.items()
    }
    divided = [
        replace(config, out=tmp_path / "two" / name, shard_base=True)
        for name, config in configs.items()
    ]
    pair = Processes(tmp_path / "said", train_sharded, divided)
    for config in configs.values():
        train(config, quiet())
    assert pair.wait() == [0, 0], pair.said()
    for name in cases:
        assert_equal_runs(tmp_path / "one" / name, tmp_path / "two" / name)
    for said in pair.said():
        for line in said.splitlines():
            mine, _, whole = line.split()
            assert int(mine) == pytest.approx(int(whole) / 2, rel=0.01)


@pytest.mark.slow
def test_figures_of_both_are_the_same(tmp_path: Path, small_config: SmallConfig) -> None:
    """Every number that is drawn, to what float32 keeps."""
    both(tmp_path, small_config, {"run": {"routing": "shared"}})
    drawn = []
    for kind in ("one", "two"):
        out = tmp_path / "figures" / kind
        assert main(["figures", str(tmp_path / kind / "run"), f"--out={out}"]) == 0
        drawn.append({file.name: file.read_text() for file in sorted(out.glob("*.csv"))})
    one, two = drawn
    assert one.keys() == two.keys()
    assert len(one) >= 3
    for name, text in one.items():
        for left, right in zip(
            text.replace("\n", ",").split(","), two[name].replace("\n", ",").split(","), strict=True
        ):
            assert left == right or float(left) == pytest.approx(float(right), rel=1e-6, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("names", [[*WIDE][:9], [*WIDE][9:]], ids=["workflows", "options"])
def test_two_processes_train_what_one_does_in_every_workflow(
    tmp_path: Path, small_config: SmallConfig, names: list[str]
) -> None:
    both(tmp_path, small_config, {name: WIDE[name] for name in names})


# Ends.


def test_a_killed_rank_ends_the_other_and_the_run_goes_on_in_one_process(tmp_path: Path) -> None:
    """It ends in a rollout; nothing of the first step is lost, and the end is as if undisturbed."""
    words = options(tmp_path / "run", reward=rewarded(tmp_path, "os.kill(os.getpid(), 9)"))
    pair = Processes(tmp_path / "said", run_command, words)
    assert pair.wait() == [2, -signal.SIGKILL]
    first, second = pair.said()
    assert f"rank 1 (process {pair.all[1].pid} on " in first
    assert "ended without a word" in first
    assert "Traceback" not in first + second

    assert main(["train", "--resume", f"--out={tmp_path / 'run'}"]) == 0
    straight = options(tmp_path / "straight", reward=words[-1].partition("=")[2])
    assert main(straight) == 0
    assert_equal_runs(tmp_path / "straight", tmp_path / "run")


def test_an_error_on_one_rank_is_told_once_and_ends_all(tmp_path: Path) -> None:
    reward = rewarded(tmp_path, "raise RuntimeError('no reward today')")
    pair = Processes(tmp_path / "said", run_command, options(tmp_path / "run", reward=reward))
    assert pair.wait() == [2, 2]
    first, second = pair.said()
    assert f"gradlab train: rank 1 (process {pair.all[1].pid} on " in first
    assert "my_reward.py:10: --reward" in first
    assert "no reward today" in first
    assert "no reward today" not in second
    assert open_run(tmp_path / "run").closed


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            [{}, {"learning_rate": 0.5}],
            "rank 1 was started otherwise than rank 0: --learning-rate is",
        ),
        ([{"problems_per_step": 1}], "2 processes and --problems-per-step 1"),
        ([{"draws": "batch"}], "2 processes cannot draw from the one stream of numbers"),
        ([{"device": "cuda"}], "2 processes were started on this machine and torch sees"),
    ],
    ids=["configuration", "problems", "draws", "devices"],
)
def test_what_cannot_be_shared_is_refused_before_anything_is_written(
    tmp_path: Path, words: list[dict[str, object]], expected: str
) -> None:
    lines = [options(tmp_path / "run", **changes) for changes in words]
    pair = Processes(tmp_path / "said", run_command, *lines)
    assert pair.wait() == [2, 2]
    first, second = pair.said()
    # What both find before they meet, each says.
    assert expected in (second if "--device" in str(words) and not first else first)
    assert not (tmp_path / "run").exists()


def test_other_code_on_one_rank_is_refused(tmp_path: Path) -> None:
    pair = Processes(tmp_path / "said", other_code, options(tmp_path / "run"))
    assert pair.wait() == [2, 2]
    assert "rank 1 runs other code than rank 0: trainers/learn.py is 0 there" in pair.said()[0]


def other_code(words: list[str]) -> int:
    from trainers.ranks import agreement

    if launched().rank == 1:
        mine = agreement.code() | {"trainers/learn.py": "0"}
        agreement.code = lambda: mine
    return main(words)


def test_other_commands_run_in_one_process(tmp_path: Path) -> None:
    pair = Processes(tmp_path / "said", run_command, ["replay", str(tmp_path)])
    assert pair.wait() == [2, 2]
    assert "run gradlab replay in one" in pair.said()[0]


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_after_a_checkpoint(tmp_path: Path) -> None:
    """Then on with one process, with two, and with one: the same as one process throughout."""
    out = tmp_path / "run"
    pair = Processes(tmp_path / "said", run_command, options(out, steps=200, eval_every=100))
    until = time.monotonic() + 120
    while not checkpoint_path(out, 1).is_dir() and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(pair.all[1].pid or 0, signal.SIGINT)
    assert pair.wait() == [130, 130]
    assert "continue with: gradlab train --resume" in pair.said()[0]
    assert pair.said()[1] == ""


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(2, 1), (1, 2), (2, 3)])
def test_a_run_goes_on_with_another_number_of_processes(
    tmp_path: Path, small_config: SmallConfig, sizes: tuple[int, int]
) -> None:
    config = small_config(**{**SMALL, "out": tmp_path / "straight", "steps": 3})
    train(config, quiet())
    begun = replace(config, out=tmp_path / "run", steps=2)
    for size, part in zip(sizes, (begun, replace(begun, resume=True, extend_to=3)), strict=True):
        processes = Processes(tmp_path / f"said{size}", train_all, [part], size=size)
        assert processes.wait() == [0] * size, processes.said()
    assert_equal_runs(tmp_path / "straight", tmp_path / "run")


# Parts.


def test_a_launch_is_read_from_the_environment() -> None:
    told = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    found = launched(told)
    assert (found.rank, found.size, found.local_rank, found.local_size) == (5, 8, 1, 4)
    assert not found.is_one_machine
    assert launched({"WORLD_SIZE": "1", "RANK": "0"}) == launched({})
    with pytest.raises(ValueError, match="RANK=8, WORLD_SIZE=8"):
        launched(told | {"RANK": "8"})


def test_a_fingerprint_tells_every_bit_and_every_place() -> None:
    tensors = [torch.arange(6.0).view(2, 3), torch.ones(4).double()]
    same = [tensor.clone() for tensor in tensors]
    assert fingerprint(tensors) == fingerprint(same)
    same[0][0, 0] = torch.nextafter(torch.tensor(0.0), torch.tensor(1.0))
    assert fingerprint(tensors) != fingerprint(same)
    exchanged = [tensors[0].flip(0), tensors[1]]
    assert fingerprint(tensors) != fingerprint(exchanged)
