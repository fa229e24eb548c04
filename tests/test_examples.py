"""Every example as somebody would use it: trained, resumed, replayed, audited, diagnosed, drawn."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from figures.style import role_style
from gradlab.commands.main import main
from gradlab.store.run import Run, open_run
from trainers.rundir.transcripts import read_episodes

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
SMALL = [
    "--eval-every", "3", "--checkpoint-every", "1", "--problems-per-step", "3",
    "--eval-problems", "6", "--rows-per-update", "64", "--lora-rank", "4",
    "--threads", "1", "--device", "cpu", "--seed", "3",
]  # fmt: skip
WORKFLOWS = {
    "debate.py:debate": (["rounds=2"], ("debater",), [("debater", 0), ("debater", 1)]),
    "planner_worker_critic.py:plan_work_criticize": (
        ["workers=2", "rounds=2"],
        ("planner", "worker", "critic"),
        [("planner", 0), ("worker", 0), ("worker", 1), ("critic", 0)],
    ),
    "calculator.py:with_calculator": (
        ["calls=1"],
        ("solver", "finisher"),
        [("solver", 0), ("finisher", 0)],
    ),
}

Command = Callable[..., str]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Run a command of gradlab in the repository; what it printed."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object, status: int = 0) -> str:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            found = main([str(argument) for argument in arguments])
        assert found == status, err.getvalue()
        return out.getvalue() if status == 0 else err.getvalue()

    return run


def measured(run: Run) -> dict[str, np.ndarray[Any, Any]]:
    """Everything of a run that does not depend on the clock."""
    found = {f"signature {role}": run.signature(role) for role in run.roles}
    for policy in run.policies:
        gram = run.gram(policy.name)
        found[f"gram {policy.name}"] = gram.gram_UBAA
        found[f"update {policy.name}"] = run.update_gram(policy.name)
        found[f"loss {policy.name}"] = run.update_metric("loss", policy.name).value_T
    found["correct"] = run.evaluations().correct_EPS
    return found


def assert_same(one: Run, other: Run) -> None:
    left, right = measured(one), measured(other)
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name], err_msg=name)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_of_ones_own_is_a_run_like_any_other(
    name: str, command: Command, tmp_path: Path
) -> None:
    options, roles, agents = WORKFLOWS[name]
    mine = ["--workflow", f"examples/{name}", "--workflow-options", *options, *SMALL]
    mine += ["--samples", "4", "--steps"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    command("train", *mine, "3", "--out", whole)
    run = open_run(whole)
    assert run.roles == roles
    assert [(a.role, a.number) for p in run.policies for a in p.agents] == agents
    assert run.meta.workflow == name.partition(":")[2]
    assert json.loads((whole / "config.json").read_text())["parts"] == run.meta.config["parts"]
    assert run.meta.config["parts"]["workflow"]["name"] == f"examples/{name}"
    assert all(np.isfinite(run.norm(role).value_T).all() for role in roles)

    command("train", *mine, "2", "--out", resumed)
    command("train", "--resume", "--out", resumed, "--extend-to", "3")
    assert_same_but_evaluations(open_run(resumed), run)

    command("replay", whole, "--with", "lr:0.5", "--from", "1", "--steps", "2", "--seeds", "1")
    [control] = whole.glob("replays/*/control-seed-3")
    assert_tail(open_run(control), run)

    assert "policy" in command("audit", whole)
    assert roles[0] in command("diagnose", whole, "--json", "--no-page")
    command("diagnose", whole, "--page", tmp_path / "page.html")
    assert "<html" in (tmp_path / "page.html").read_text()
    drawn = command("figures", whole, "--out", tmp_path / "figures").split()
    assert any(path.endswith("norms.png") for path in drawn), drawn

    [problem, *_] = [e["problem"] for e in read_episodes(whole / "episodes/step-000003.jsonl.gz")]
    shown = command("show", whole, "--step", "3", "--problem", problem)
    assert all(f"{role}[0]" in shown for role in roles)
    asked = command("prompts", "--workflow", f"examples/{name}", "--workflow-options", *options)
    assert f"=== {roles[0]}[0]" in asked
    assert roles[0] in command("train", *mine, "3", "--out", tmp_path / "dry", "--dry-run")
    assert not (tmp_path / "dry").exists()


def assert_same_but_evaluations(resumed: Run, whole: Run) -> None:
    """The resumed one was evaluated once more, at its first end."""
    left, right = measured(resumed), measured(whole)
    np.testing.assert_array_equal(left.pop("correct")[[0, -1]], right.pop("correct")[[0, -1]])
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name], err_msg=name)


def assert_tail(arm: Run, whole: Run) -> None:
    """A control repeats the steps of the run after its checkpoint, bit for bit."""
    for policy in whole.policies:
        gram, theirs = whole.gram(policy.name), arm.gram(policy.name)
        np.testing.assert_array_equal(gram.gram_UBAA[gram.step_U > 1], theirs.gram_UBAA)


def test_named_rewards_are_recorded_by_role_and_sum_to_the_reward(
    command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command(
        "train", "--reward", "examples/brief_reward.py:right_and_brief",
        "--advantage", "examples/brief_reward.py:by_rank", *SMALL, "--out", out,
        "--samples", "4", "--steps", "3",
    )  # fmt: skip
    run = open_run(out)
    assert run.meta.reward_components == ("solved", "right", "brief")
    for role in run.roles:
        parts = run.reward_components(role)
        total = sum(signal.value_T for signal in parts.values())
        np.testing.assert_allclose(total, run.ledger("reward_mean", role).value_T, atol=1e-6)
        assert (parts["brief"].value_T > 0).all()
    spoken = [
        (turn, episode)
        for episode in read_episodes(out / "episodes" / "step-000001.jsonl.gz")
        for turn in episode["turns"]
    ]
    for turn, episode in spoken:
        assert turn["components"]["solved"] == float(episode["outcome"])
        assert turn["reward"] == pytest.approx(sum(turn["components"].values()))
    mean = np.mean([t["components"]["brief"] for t, _ in spoken if t["role"] == "generator"])
    assert run.reward_components("generator")["brief"].value_T[0] == pytest.approx(mean, rel=1e-6)
    shown = command("show", out, "--step", "1", "--problem", spoken[0][1]["problem"])
    assert "brief 0." in shown


def test_grades_are_paid_and_full_marks_counted(command: Command, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command(
        "train", "--task", "examples/near_sums.py:load", "--task-options", "most=40",
        "--workflow", "solo", *SMALL, "--out", out, "--samples", "8", "--steps", "3",
    )  # fmt: skip
    episodes = [
        episode
        for step in (1, 2, 3)
        for episode in read_episodes(out / "episodes" / f"step-{step:06d}.jsonl.gz")
    ]
    assert {episode["grade"] for episode in episodes if "grade" in episode} <= {0.0, 0.5, 1.0}
    near = [e for e in episodes if e.get("grade") == 0.5]
    assert near
    for episode in near:
        assert abs(int(episode["answer"]) - int(episode["reference"])) in (1, 10)
        assert not episode["outcome"]
        assert all(turn["reward"] == 0.5 for turn in episode["turns"])
    run = open_run(out)
    solved = [
        np.mean([e["outcome"] for e in read_episodes(out / f"episodes/step-{step:06d}.jsonl.gz")])
        for step in (1, 2, 3)
    ]
    np.testing.assert_allclose(run.run_metric("accuracy").value_T, solved, rtol=1e-6)
    assert set(run.meta.config["parts"]) == {"task"}


def test_the_examples_are_short_and_all_of_them_are_run() -> None:
    files = {path.name for path in EXAMPLES.glob("*.py")}
    run = {name.partition(":")[0] for name in WORKFLOWS} | {"brief_reward.py", "near_sums.py"}
    assert files == run
    assert all(len((EXAMPLES / name).read_text().splitlines()) < 80 for name in files)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_the_roles_of_an_example_look_different_in_figures(name: str) -> None:
    styles = [role_style(role, WORKFLOWS[name][1]) for role in WORKFLOWS[name][1]]
    assert len({style.color for style in styles}) == len(styles)
