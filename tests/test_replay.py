"""Replays: the control is the run again, an arm differs by its change alone, figures by hand."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import SmallConfig
from test_train import adapters, assert_same_states, assert_same_tensors

from analysis.replays.compare import Difference, compare, described
from analysis.replays.results import read_replays
from gradlab.commands.main import main
from gradlab.records import Agent, EvalRecord, PolicyMeta, RoleEvaluation, RunMeta, StepRecord
from gradlab.run_directory import checkpoint_path, continuable
from gradlab.store.run import Run, open_run
from gradlab.store.writer import RunStore
from trainers.config import TrainConfig
from trainers.policies import Policy
from trainers.replay.arms import ReplayPlan, arm_config, make_plan, run_arms
from trainers.replay.changes import changed
from trainers.replay.fork import policy_origins
from trainers.rundir.directory import config_of
from trainers.training import train
from trainers.watch.progress import Progress


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shared run of 4 steps with checkpoints and evaluations at 2 and 4."""
    config = TrainConfig(
        out=tmp_path_factory.mktemp("runs") / "whole",
        steps=4, eval_every=2, checkpoint_every=2, problems_per_step=4, samples=4,
        eval_problems=6, rows_per_update=32, lora_rank=4, threads=1, device="cpu",
        routing="shared", warmup_steps=8,
    )  # fmt: skip
    return train(config)


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of that run, to replay."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def arms_of(plan: ReplayPlan, quiet: Progress) -> dict[tuple[str, int], Path]:
    return {(arm, seed): out for arm, seed, out in run_arms(plan, lambda: quiet)}


class Dying(Progress):
    """Stops the process, so to speak, after one step: before the arm's first own checkpoint."""

    def trained(self, record: StepRecord, policies: Mapping[str, Policy]) -> None:
        raise RuntimeError("killed")


# The arms.


def test_the_control_is_the_run_again_and_the_change_is_felt(run: Path, quiet: Progress) -> None:
    plan = make_plan(run, ("lr:0.5", "max-share:generator=0.3"), at_most=3, num_seeds=2)
    assert (plan.start, plan.end, plan.seeds) == (2, 4, (0, 1))
    arms = arms_of(plan, quiet)
    control = arms["control", 0]
    assert_same_tensors(adapters(control, 4), adapters(run, 4))
    assert_same_states(control, run, 4)
    original, again = open_run(run).gram("shared"), open_run(control).gram("shared")
    late = original.step_U > 2
    np.testing.assert_array_equal(original.gram_UBAA[late], again.gram_UBAA)
    assert again.step_U.min() == 3
    assert open_run(control).evaluations().step_E.tolist() == [2, 4]

    # Step 3 is played with the same weights and random numbers: gradients are those of the run.
    other = open_run(arms["changed", 0])
    first = original.step_U == 3
    found = other.gram("shared").gram_UBAA[other.gram("shared").step_U == 3]
    np.testing.assert_array_equal(found[0], original.gram_UBAA[first][0])
    rate = other.update_metric("learning_rate", "shared").value_T[0]
    own = open_run(run).update_metric("learning_rate", "shared").value_T[first][0]
    assert rate == pytest.approx(own / 2, rel=1e-6), "the warm-up goes on, at half the rate"
    assert (other.factors("shared") < 1).any()
    assert (open_run(control).factors("shared") == 1).all()

    # Another seed: the same problems and evaluation, other samples.
    second = open_run(arms["control", 1])
    evaluations = second.evaluations(), open_run(run).evaluations()
    np.testing.assert_array_equal(
        evaluations[0].correct_EPS[0], evaluations[1].correct_EPS[1]
    )  # at step 2 it is the same model
    assert not np.array_equal(second.gram("shared").gram_UBAA, again.gram_UBAA)

    result = compare(
        open_run(run),
        [open_run(arms["control", seed]) for seed in (0, 1)],
        [open_run(arms["changed", seed]) for seed in (0, 1)],
        plan.start,
    )
    assert result.reproduction.is_exact
    assert result.reproduction.steps == (2, 4)
    assert result.verdict in ("undecided", "not reproduced"), "two seeds decide nothing"


def test_a_killed_replay_goes_on_where_it_was(run: Path, quiet: Progress) -> None:
    plan = make_plan(run, ("lr:0.5",), at_most=2, num_seeds=1, name="whole")
    expected = arms_of(plan, quiet)
    killed = replace(plan, name="killed")
    displays = iter([quiet, Dying(quiet.console)])
    with pytest.raises(RuntimeError, match="killed"):
        list(run_arms(killed, lambda: next(displays)))
    control = killed.path("control", 0)
    assert open_run(killed.path("changed", 0)).evaluations().step_E.tolist() == [2]
    before = (control / "config.json").stat().st_mtime_ns
    found = arms_of(killed, quiet)
    assert (control / "config.json").stat().st_mtime_ns == before, "a finished arm is kept"
    assert_same_tensors(adapters(found["changed", 0], 4), adapters(expected["changed", 0], 4))
    evaluations = [open_run(arms["changed", 0]).evaluations() for arms in (found, expected)]
    np.testing.assert_array_equal(evaluations[0].step_E, [2, 4])
    np.testing.assert_array_equal(evaluations[0].correct_EPS, evaluations[1].correct_EPS)
    with pytest.raises(ValueError, match=r"holds another replay: .*give another --name"):
        next(iter(run_arms(replace(killed, end=3), lambda: quiet)))


def test_an_isolated_role_starts_as_what_it_shared(run: Path, quiet: Progress) -> None:
    plan = make_plan(run, ("isolate",), at_most=2, num_seeds=1)
    arms = arms_of(plan, quiet)
    isolated = open_run(arms["changed", 0])
    assert [policy.name for policy in isolated.policies] == ["generator", "aggregator"]
    at_start = isolated.evaluations().correct_EPS[0], open_run(run).evaluations().correct_EPS[1]
    np.testing.assert_array_equal(*at_start)
    for role in ("generator", "aggregator"):
        assert np.isfinite(isolated.update_metric("distance", role).value_T).all()
        assert (isolated.update_metric("residual", role).value_T < 1e-5).all()


def test_joined_policies_start_as_the_role_that_is_named(
    small_config: SmallConfig, quiet: Progress, tmp_path: Path
) -> None:
    run = train(small_config(out=tmp_path / "two", checkpoint_every=1), quiet)
    arms = arms_of(make_plan(run, ("merge:generator",), at_most=1, num_seeds=1), quiet)
    start = checkpoint_path(arms["changed", 0], 1)
    assert [path.name for path in start.iterdir() if path.is_dir()] == ["shared"]
    mine = {name.split("/", 1)[1]: t for name, t in adapters(arms["changed", 0], 1).items()}
    theirs = adapters(run, 1)
    assert_same_tensors(
        mine, {n.split("/", 1)[1]: t for n, t in theirs.items() if n.startswith("generator/")}
    )
    with pytest.raises(ValueError, match=r"no common start: say whose .*--with merge:generator"):
        policy_origins(config_of(run), replace(config_of(run), routing="shared"), None)


def test_states_are_kept_sparsely_over_the_run(small_config: SmallConfig, quiet: Progress) -> None:
    config = small_config(steps=7, eval_every=7, checkpoint_every=1, keep_states=2, samples=2)
    run = train(replace(config, keep_state_every=3), quiet)
    assert continuable(run) == [3, 6, 7]
    assert make_plan(run, ("lr:0.5",), at_most=5).start == 3
    with pytest.raises(
        ValueError,
        match=r"step 2 \(there: steps 3, 6, 7\)\. .*--checkpoint-every .*--keep-state-every",
    ):
        make_plan(run, ("lr:0.5",), at_most=2)


# What is asked for.


def test_changes_change_one_thing(small_config: SmallConfig) -> None:
    config = small_config(routing="shared", kl_coefficient={"generator": 0.1})
    expected = {
        "kl-anchor:aggregator=0.05": {"kl_coefficient": {"generator": 0.1, "aggregator": 0.05}},
        "lr:0.5": {"learning_rate": 5e-4},
        "lr=0.5": {"learning_rate": 5e-4},
        "max-share:generator=0.5": {"max_share": {"generator": 0.5}},
        "equalize": {"equalize": True},
        "role-clip:generator=1": {"role_clip": {"generator": 1.0}},
        "role-weight:aggregator=0": {"role_weight": {"aggregator": 0.0}},
        "clip:0.5": {"clip_norm": 0.5},
        "damping:0.3,32": {"coherence_damping": 0.3, "coherence_window": 32},
        "updates:1": {"updates": "fixed", "fixed_updates": 1},
        "entropy:0.001": {"entropy_coefficient": 0.001},
        "group-by:role": {"group_by": "role"},
        "reward:own": {"reward": "own"},
        "isolate": {"routing": "isolated"},
    }
    for text, fields in expected.items():
        assert changed(config, [text]) == replace(config, **fields), text  # type: ignore[arg-type]
    isolated = small_config()
    damped = changed(isolated, ["role-damping:generator=0.3"])
    assert damped == replace(isolated, role_damping={"generator": 0.3})
    assert changed(isolated, ["merge:generator"]) == replace(isolated, routing="shared")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed:2", r"--with speed:2: unknown; expected one of\n +kl-anchor:ROLE"),
        ("kl-anchor:0.5", r"cannot be read; expected kl-anchor:ROLE=0.05"),
        ("lr", r"cannot be read; expected lr:0.5"),
        ("equalize:3", r"takes no value; expected equalize"),
        ("kl-anchor:judge=0.5", r"names role 'judge'"),
        ("lr:fast", r"--with lr:fast: expected a number"),
        ("lr:1", r"changes nothing"),
        ("reward:much", r"expected outcome, own"),
        ("isolate", r"changes nothing"),
    ],
)
def test_changes_that_cannot_be_made_are_explained(
    small_config: SmallConfig, text: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        changed(small_config(), [text])


def test_a_replay_that_cannot_be_made_is_refused_before_anything_is_written(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        (["--with", "lr:0.5"], "shows no drop or breakdown; give a step"),
        (["--from", "2"], "needs something to change"),
        (["--from", "1", "--with", "lr:0.5"], "at or before step 1 (there: steps 2, 4)"),
        (["--from", "soon", "--with", "lr:0.5"], "--from is 'soon'"),
        (["--from", "4", "--with", "lr:0.5"], "expected a checkpoint before the end"),
        (["--from", "2", "--with", "lr:0.5", "--seeds", "0"], "--seeds is 0"),
        (["--from", "2", "--with", "lr:0.5", "--name", "../x"], "--name is '../x'"),
    ):
        assert main(["replay", str(run), *arguments]) == 2
        assert message in capsys.readouterr().err
    assert main(["replay", str(run.parent / "nowhere"), "--from", "2", "--with", "lr:0.5"]) == 2
    assert "cannot be trained again" in capsys.readouterr().err
    assert main(["replay", str(run), "--from", "2", "--with", "lr:0.5", "--dry-run"]) == 0
    assert "6 arms of 2 steps: about" in capsys.readouterr().err
    assert not (run / "replays").exists()


def test_the_command_writes_a_result_that_a_diagnosis_reads(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["replay", str(run), "--from", "2", "--with", "lr:0.5", "--seeds", "1"]
    assert main([*arguments, "--name", "half"]) == 0
    said = capsys.readouterr().err
    assert "gave its 2 evaluations again, bit for bit" in said
    assert "for this seed only" in said
    result = json.loads((run / "replays/half/result.json").read_text())
    assert result["plan"]["start"] == 2
    assert result["reproduction"]["is_exact"] is True
    (replayed,) = read_replays(run)
    assert replayed.is_open
    assert replayed.change == "--with lr:0.5"


# The figures.

MakeRun = Callable[[str, dict[int, list[int]]], Run]


@pytest.fixture
def made(tmp_path: Path) -> MakeRun:
    """Make a run from its graded answers: evaluation step -> answer per problem."""

    def make(name: str, answers: dict[int, list[int]]) -> Run:
        num_problems = len(next(iter(answers.values())))
        policy = PolicyMeta("solver", (Agent("solver"),), ("all",), 1)
        problems = tuple(f"p{i}" for i in range(num_problems))
        meta = RunMeta.of_policies(name, [policy], problems=problems)
        path = tmp_path / f"{name}.zarr"
        with RunStore.create(path, meta) as store:
            for step, correct in answers.items():
                solved = np.array(correct, dtype=np.uint8)[:, None]
                roles = {"solver": RoleEvaluation(*[math.nan] * 9)}
                store.append(EvalRecord(step, solved, roles, solved.T.astype(float)))
        return open_run(path)

    return make


def share(of_ten: int) -> list[int]:
    """Answers to 40 problems, this many in ten right."""
    return [int(i % 10 < of_ten) for i in range(40)]


def planted(made: MakeRun, after: list[int], before: list[int]) -> tuple[Run, list[Run], list[Run]]:
    """A run that fell from 8 to 2 in ten after step 10; controls end at `before`, changed runs at
    `after`, in tenths."""
    own = {step: share(8) for step in (0, 5, 10)} | {15: share(5), 20: share(2), 25: share(2)}
    original = made("own", own)
    controls = [
        made(f"c{i}", {10: share(8), 15: share(5), 20: share(n), 25: share(n)})
        for i, n in enumerate(before)
    ]
    changed_runs = [
        made(f"x{i}", {10: share(8), 15: share(8), 20: share(n), 25: share(n)})
        for i, n in enumerate(after)
    ]
    return original, controls, changed_runs


def test_a_fall_that_the_change_prevents_is_confirmed(made: MakeRun) -> None:
    result = compare(*planted(made, after=[8, 7, 8], before=[2, 2, 3]), 10)
    assert result.verdict == "confirmed"
    # of evaluations 15, 20, 25 the last two; seeds: 0.6, 0.5, 0.5
    assert result.window == 2
    assert result.per_seed == pytest.approx((0.6, 0.5, 0.5))
    assert result.final.difference == pytest.approx(1.6 / 3)
    assert result.fall == pytest.approx(0.8 - 0.7 / 3)
    assert result.run_fall == pytest.approx(0.6)
    assert 0.1 < result.final.lower < result.final.difference < result.final.upper
    # Between seeds 0.0577^2 / 3 = 0.00111. Of ten problems four gain 1, two 2/3, four 0: variance
    # 0.4889 - 0.5333^2 = 0.2044, over 40 problems 0.00511. Together 0.0789^2, with 0.00622^2 /
    # (0.00111^2 / 2 + 0.00511^2 / 39) = 30 degrees of freedom: t = 2.042.
    half = result.final.upper - result.final.difference
    assert half == pytest.approx(2.042 * 0.0789, rel=0.05)  # problems are drawn 2000 times
    assert result.sentence.startswith("Confirmed by replay: accuracy ended at 77 % instead of 23 %")
    assert not result.reproduction.is_exact or result.reproduction.steps == (10, 15, 20, 25)


def test_a_fall_that_comes_all_the_same_is_not_confirmed(made: MakeRun) -> None:
    result = compare(*planted(made, after=[2, 2, 2], before=[2, 2, 2]), 10)
    assert result.verdict == "not confirmed"
    assert result.sentence.startswith("Refuted by replay")
    assert result.reproduction.is_exact
    assert [d.step for d in result.evaluations] == [15, 20, 25]
    assert result.evaluations[0].difference == pytest.approx(0.3)


def test_a_fall_that_comes_a_little_slower_is_not_confirmed(made: MakeRun) -> None:
    """All seeds are better by 1 in ten after a fall of 6, beyond chance."""
    result = compare(*planted(made, after=[3, 3, 3], before=[2, 2, 2]), 10)
    assert result.window == 2
    assert 0 < result.final.lower < result.final.upper < result.fall / 2
    assert result.verdict == "not confirmed"


def test_less_than_half_of_the_fall_settles_nothing(made: MakeRun) -> None:
    result = compare(*planted(made, after=[4, 4, 5], before=[2, 2, 2]), 10)
    assert result.final.lower > 0
    assert result.final.difference < result.fall / 2 < result.final.upper
    assert result.verdict == "undecided"


def test_a_confirmation_says_what_the_changed_runs_lost(made: MakeRun) -> None:
    result = compare(*planted(made, after=[7, 7, 7], before=[2, 2, 2]), 10)
    assert result.sentence.endswith(
        "from the checkpoint to step 25 the controls lost 60 points, the changed runs lost 10."
    )


def test_controls_that_do_not_fall_settle_nothing(made: MakeRun) -> None:
    result = compare(*planted(made, after=[8, 8, 8], before=[2, 8, 8]), 10)
    assert result.verdict == "not reproduced"
    assert "the controls did not fall again" in result.sentence


def test_seeds_that_disagree_settle_nothing(made: MakeRun) -> None:
    assert compare(*planted(made, after=[8, 2, 2], before=[2, 2, 2]), 10).verdict == "undecided"


def test_few_seeds_give_an_interval_for_themselves_only(made: MakeRun) -> None:
    result = compare(*planted(made, after=[8], before=[2]), 10)
    assert result.verdict == "undecided"
    assert result.interval == "95 % over problems, for this seed only"
    # 24 of 40 problems gained: binomial sd sqrt(.6 * .4 / 40) = 0.077
    half = (result.final.upper - result.final.lower) / 2
    assert half == pytest.approx(1.96 * 0.077, rel=0.15)


def test_a_control_that_differs_is_told(made: MakeRun) -> None:
    original, controls, changed_runs = planted(made, after=[8], before=[3])
    found = compare(original, controls, changed_runs, 10).reproduction
    assert not found.is_exact
    assert found.first_difference == 20
    assert found.largest == pytest.approx(0.1)
    assert "differs from the run since step 20 (by 10.0 points at most)" in str(found)


def test_the_interval_holds_the_truth_as_often_as_it_says(made: MakeRun) -> None:
    """200 experiments of 3 seeds and 60 problems, a true gain of 0.2 that differs by problem and
    seed."""
    from analysis.replays.compare import difference_of

    rng, held = np.random.default_rng(4), 0
    for number in range(200):
        base_P = rng.uniform(0.2, 0.7, 60)
        gain_P = 0.2 + rng.normal(0, 0.08, 60)
        seed_R = rng.normal(0, 0.04, 3)
        control = rng.random((3, 60)) < base_P
        after = rng.random((3, 60)) < np.clip(base_P + gain_P + seed_R[:, None], 0, 1)
        found = difference_of(number, control.astype(float), after.astype(float), 3)
        assert isinstance(found, Difference)
        held += found.lower <= 0.2 <= found.upper
    assert 182 <= held <= 199  # 95 % of 200 is 190; simulated over many settings: 92-99 %


def test_a_plan_says_how_long_it_takes(whole: Path) -> None:
    lines = described(open_run(whole), "n", 2, 4, ("lr:0.5",), (0, 1, 2))
    assert lines[0] == "replay n: steps 3 to 4 with lr:0.5 and without, seeds 0, 1, 2"
    assert lines[1].startswith("6 arms of 2 steps: about")


def test_the_seed_of_a_replay_leaves_problems_and_evaluations(small_config: SmallConfig) -> None:
    config = small_config(seed=5)
    assert config.training_seed == 5
    assert replace(config, replay_seed=9).training_seed == 9
    plan = ReplayPlan(Path("run"), "n", 1, 2, ("lr:0.5",), (5, 6))
    assert arm_config(plan, config, "control", 5).replay_seed is None
    other = arm_config(plan, config, "changed", 6)
    assert (other.seed, other.replay_seed, other.learning_rate) == (5, 6, 5e-4)
