"""Plans become cells: products, exclusions, names and overrides by hand, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gradlab.commands.matrix import check_plan
from trainers.matrix.estimate import Kind, described, kinds_of
from trainers.matrix.plan import Cell, Plan, find_plan, read_plan, shipped
from trainers.matrix.product import label_of
from trainers.presets import preset
from trainers.training import task_of

PLAN = """
about = "by hand"
[options]
preset = "clean"
steps = 7
eval-problems = 20
[vary]
workflow = ["voting", "solo"]
routing = ["shared", "isolated"]
rate.low = { learning-rate = 1e-4 }
rate.high = { learning-rate = 1e-2, warmup-steps = 3 }
seed = [0, 5]
[[exclude]]
workflow = "solo"
routing = "isolated"
[[exclude]]
workflow = "solo"
rate = "high"
seed = 5
[[set]]
where = { workflow = "voting", rate = ["high"] }
votes = 5
[[set]]
where = { workflow = "voting", routing = "shared", rate = "high", seed = 5 }
votes = 2
clip-norm = 0.5
"""


def planned(tmp_path: Path, text: str) -> Plan:
    (tmp_path / "by-hand.toml").write_text(text)
    return read_plan(tmp_path / "by-hand.toml")


def by_name(plan: Plan) -> dict[str, Cell]:
    return {cell.name: cell for cell in plan.cells}


def test_cells_are_every_combination_that_is_not_excluded(tmp_path: Path) -> None:
    # 2 x 2 x 2 x 2 = 16, less 4 (solo, isolated), less 1 (solo, high, 5; its isolated twin is gone
    # already) = 11. The last axis is the fastest.
    assert [cell.name for cell in planned(tmp_path, PLAN).cells] == [
        "voting.shared.low.s0", "voting.shared.low.s5",
        "voting.shared.high.s0", "voting.shared.high.s5",
        "voting.isolated.low.s0", "voting.isolated.low.s5",
        "voting.isolated.high.s0", "voting.isolated.high.s5",
        "solo.shared.low.s0", "solo.shared.low.s5",
        "solo.shared.high.s0",
    ]  # fmt: skip


def test_a_cell_is_a_whole_configuration(tmp_path: Path) -> None:
    cells = by_name(planned(tmp_path, PLAN))
    low, high = cells["voting.isolated.low.s5"], cells["voting.isolated.high.s0"]
    assert low.place == {"workflow": "voting", "routing": "isolated", "rate": "low", "seed": "s5"}
    assert (low.config.seed, low.config.learning_rate, low.config.votes) == (5, 1e-4, 3)
    assert (high.config.learning_rate, high.config.warmup_steps, high.config.votes) == (1e-2, 3, 5)
    assert low.config.steps == 7
    assert low.config.samples == preset("clean").samples
    # Rules follow each other: the later one goes before the earlier, an untouched option stays.
    last = cells["voting.shared.high.s5"].config
    assert (last.votes, last.clip_norm, last.learning_rate) == (2, 0.5, 1e-2)


def test_cells_of_a_task_share_their_held_out_problems(tmp_path: Path) -> None:
    cells = planned(tmp_path, PLAN).cells
    first, *others = [task_of(cell.config) for cell in cells]
    assert len(first.heldout) == 20
    assert all(task.heldout == first.heldout for task in others)
    differ = planned(tmp_path, "test-sets = 'differ'\n" + PLAN).cells
    assert task_of(differ[0].config).heldout != task_of(differ[1].config).heldout


def test_words_of_a_plan_stand_in_its_texts(tmp_path: Path) -> None:
    text = """
    [options]
    preset = "{team}-{kind}-tiny-{task}"
    [vary]
    team = ["Voting", "Single"]
    kind = ["SP"]
    task = { Math = {}, Code = {} }
    seed = [3]
    """
    cells = by_name(planned(tmp_path, text))
    assert list(cells) == [
        "Voting.SP.Math.s3", "Voting.SP.Code.s3", "Single.SP.Math.s3", "Single.SP.Code.s3",
    ]  # fmt: skip
    config = cells["Single.SP.Code.s3"].config
    assert (config.workflow, config.task, config.model) == ("solo", "programs", "tiny-code")


@pytest.mark.parametrize(
    ("axis", "value", "expected"),
    [
        ("seed", 3, "s3"),
        ("votes", 5, "votes5"),
        ("learning-rate", 2e-05, "learning-rate2e-05"),
        ("equalize", True, "equalize"),
        ("equalize", False, "no-equalize"),
        ("model", "Qwen/Qwen3-1.7B", "Qwen3-1.7B"),
        ("model", "models/mine/", "mine"),
        ("workflow", "my_flows.py:debate", "my_flows.py-debate"),
        ("routing", "generator=a,aggregator=a", "generator-a-aggregator-a"),
    ],
)
def test_labels_are_readable(axis: str, value: object, expected: str) -> None:
    assert label_of(axis, value) == expected


HEAD = '[options]\npreset = "clean"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD, "names no axis"),
        (HEAD + "[vary]\nseed = []", "axis 'seed' has no value"),
        (HEAD + "[vary]\nseed = 3", "axis 'seed' is 3; expected a list"),
        (HEAD + "[vary]\nseed = [1, 1]", "two values that are called 's1'"),
        (HEAD + "[vary]\nsede = [1]", "'sede' is no option of gradlab train"),
        (HEAD + "[vary]\nx.a = { sede = 1 }\nx.b = {}", "no option 'sede'; the nearest is 'seed'"),
        (HEAD + "[vary]\nseed = ['a']", "cell a: seed is 'a'; expected a whole number"),
        (HEAD + "[vary]\nx.'a b' = {}", "a value called 'a b'; expected letters"),
        (HEAD + "[vary]\nx.'7' = {}", "a cell would be called '7'"),
        (HEAD + "[vary]\nx.matrix = {}", "which is a folder of the matrix"),
        (HEAD + "[vary]\nx.a = { seed = 1 }\nseed = [2]", "axes 'x' and 'seed' both give 'seed'"),
        (HEAD + "[vary]\nvotes = [99]", "cell votes99: --votes is 99; expected 1 to 16"),
        (HEAD + "[vary]\nx.a = { out = 'here' }", "'out' is given by the matrix"),
        (HEAD + "[vary]\ndevice = ['cuda:1']", "deals out GPUs"),
        (HEAD + "[vary]\npreset = ['none']", "--preset 'none' is unknown"),
        (HEAD + "[vary]\nx.a = {}\nx.b = {}", "cells a and b are the same run"),
        (HEAD + "[vary]\nseed = [0]\n[[exclude]]\nseed = 1", "has no value 1; it has s0"),
        (HEAD + "[vary]\nseed = [0]\n[[exclude]]\nsteps = 1", "names axis 'steps'; the plan has"),
        (HEAD + "[vary]\nseed = [0]\n[[exclude]]\nseed = 0", "every combination is excluded"),
        (HEAD + "[vary]\nseed = [0]\n[[set]]\nsteps = 2", "is empty and would match every"),
        (
            HEAD + "[vary]\nseed = [0, 1]\n[[exclude]]\nseed = 0\n[[set]]\nwhere = { seed = 0 }",
            "matches no cell",
        ),
        (
            HEAD + "[vary]\nseed = [0, 1]\n[[exclude]]\nseed = 0\n[[exclude]]\nseed = [0, 1]",
            "every combination is excluded",
        ),
        (HEAD + "[vary]\neval-problems = [10, 20]", "evaluated on different problems"),
        (HEAD + "[vary]\nseed = [0]\n[extra]", "there is no 'extra'"),
        ("test-sets = 'all'\n" + HEAD + "[vary]\nseed = [0]", "expected 'same' or 'differ'"),
        ("options = 3\n[vary]\nseed = [0]", "'options' is 3; expected a table"),
        ("not toml", "is no TOML"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        planned(tmp_path, text)
    assert "by-hand.toml" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[vary]\nworkflow = ['voting', 'solo']\nvotes = [1, 2]", r"cell solo\.votes1.*--votes"),
        ("[options]\nrounds = 2\n[vary]\nworkflow = ['voting', 'solo']", "in every cell --rounds"),
    ],
)
def test_options_that_no_cell_looks_at_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_plan(planned(tmp_path, text))


def test_an_option_of_all_that_some_cells_look_at_is_taken(tmp_path: Path) -> None:
    check_plan(
        planned(tmp_path, "[options]\nvotes = 2\n[vary]\nworkflow = ['voting', 'solo']")
    )  # fmt: skip


def test_plans_are_found_by_name_and_path(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(PLAN)
    assert find_plan(str(tmp_path / "mine.toml")) == tmp_path / "mine.toml"
    assert read_plan(find_plan("sharing")).name == "sharing"
    with pytest.raises(ValueError, match="no plan 'none'; expected a TOML file, or one of agents"):
        find_plan("none")


SIZES = {"agents": 75, "interventions": 57, "paper-qwen3": 42, "paper-tiny": 84, "sharing": 30}


def test_the_plans_that_ship() -> None:
    # agents: voting 2 routings x 5 numbers x 2 kinds of updates, solo 5: 25 x 3 seeds.
    # interventions: shared 10 (agents is isolated alone), isolated 9 (no equalize, no cap): 19 x 3.
    # paper-qwen3: 3 workflows x 2 + single = 7, x 3 scales x 2 tasks.
    # paper-tiny: 7 x (3 scales of sums + 1 of code) x 3 seeds.
    # sharing: 2 workflows x 5 x 3 seeds.
    assert {name: len(read_plan(path).cells) for name, path in shipped().items()} == SIZES


@pytest.mark.parametrize("name", SIZES)
def test_a_plan_that_ships_is_what_it_says(name: str) -> None:
    plan = read_plan(find_plan(name))
    check_plan(plan)
    assert plan.about
    configs = [cell.config for cell in plan.cells]
    assert all(config.alarm == "tell" for config in configs) or name == "paper-qwen3"
    if name == "agents":
        votes = {c.config.votes for c in plan.cells if c.config.workflow == "voting"}
        assert votes == {1, 2, 3, 5, 8}
        for cell in plan.cells:  # as many responses a step for one generator as for a team
            team = int(cell.place["agents"].removeprefix("n")) + 1
            per_problem = team if cell.config.workflow == "voting" else 1
            assert cell.config.problems_per_step * per_problem == 16 * team
    if name == "sharing":
        named = {cell.name: cell.config for cell in plan.cells}
        partial = named["orchestrator_workers.partial.s0"].roles_by_policy()
        assert partial == {"lead": ("orchestrator", "synthesizer"), "solver": ("worker",)}
        assert named["orchestrator_workers.frozen.s0"].freeze == ("orchestrator",)
    if name == "paper-qwen3":
        assert {config.model for config in configs} == {
            "Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B", "Qwen/Qwen3-4B",
        }  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n == "paper-qwen3" else ()) for n in SIZES]
)
def test_every_cell_of_a_plan_that_ships_dry_runs(name: str, tmp_path: Path) -> None:
    plan = read_plan(find_plan(name))
    kinds = kinds_of(plan.cells)
    assert sum(len(kind.cells) for kind in kinds) == len(plan.cells)
    is_tiny = name != "paper-qwen3"
    assert all((kind.seconds is not None and not kind.missing) == is_tiny for kind in kinds)
    lines = list(described(kinds, frozenset(), 2, tmp_path))
    assert f"cells   {len(plan.cells)}: 0 finished, {len(plan.cells)} to train" in lines


def test_what_is_left_is_added_up_by_hand(tmp_path: Path) -> None:
    cells = planned(tmp_path, PLAN).cells
    first = Kind("a", cells[:2], 600.0, 1 << 30, 1 << 20, "")
    second = Kind("a", cells[2:5], 60.0, 3 << 30, 1 << 20, "no data")
    done = frozenset([cells[0].name, cells[2].name])
    lines = list(described([first, second], done, 2, tmp_path))
    assert [line.split()[:2] for line in lines[1:3]] == [["a", "1"], ["a", "2"]]
    # 600 + 2 x 60 s; two at a time no less than the longest. Memory 3 + 3, disk 3 x 1 MiB.
    assert lines[4:7] == [
        "cells   5: 2 finished, 3 to train",
        "time    about 12 min one after the other, 10 min with --at-once 2 if each is as fast "
        "beside the others",
        "memory  at most about 3.0 GiB a cell, 6.0 GiB with --at-once 2, beside 0.5 GiB of Python "
        "and libraries a process",
    ]
    assert lines[7].startswith("disk    at most 3.0 MiB, ")
    assert lines[8] == "missing no data"
    here = list(described([replace(first, seconds=None)], done, 1, tmp_path))
    assert "time    unknown: the device of some cells is not here, so no seconds" in here
