"""What `gradlab show` prints of a run's episodes."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import make_turn
from rich.console import Console

from gradlab.records import Agent
from trainers.episodes import Episode
from trainers.inspect.episodes import show_episodes
from trainers.rundir.transcripts import save_episodes
from trainers.tasks.problem import Problem

PROBLEM = Problem("sum-80-11", "math", "80+11", "91")
OTHER = Problem("sum-1-1", "math", "What is\n[bold]1+1[/bold]?", "2")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with one solved, one unsolved and one failed episode in step 7."""
    turns = (
        make_turn(Agent("generator", 2), prompt="<user>g80+11", response="[91]", own_correct=True),
        make_turn(Agent("aggregator"), prompt="a80+11 [91]", response="[bold] nonsense",
                  parse_ok=False, truncated=True, round=1),
    )  # fmt: skip
    episodes = [
        Episode(PROBLEM, 0, turns, "91", True),
        Episode(PROBLEM, 1, (replace(turns[0], own_correct=False),), "90", False),
        Episode(OTHER, 0, (), None, False, failure="prompt of 99 tokens, limit [12]"),
    ]
    credited = tuple(replace(turn, outcome=True, reward=1.0, advantage=-0.25) for turn in turns)
    trained = [Episode(PROBLEM, 0, credited, "91", True), *episodes[1:]]
    save_episodes(tmp_path / "episodes" / "step-000007.jsonl.gz", trained)
    save_episodes(tmp_path / "episodes" / "step-000009.jsonl.gz", trained)
    save_episodes(tmp_path / "episodes" / "eval-000000.jsonl.gz", episodes[:2])
    return tmp_path


def shown(run: Path, step: int, **options: object) -> str:
    out = io.StringIO()
    show_episodes(run, step, console=Console(file=out, width=120), **options)  # type: ignore[arg-type]
    return out.getvalue()


def test_every_turn_is_shown_with_reward_and_advantage(run: Path) -> None:
    text = shown(run, 7, problem="sum-80-11", sample=0)
    assert "sample 0: solved" in text
    assert "sample 1" not in text
    assert "reference 91, answer 91" in text
    assert "generator[2], round 1: 2 tokens, right, reward 1.00, advantage -0.25" in text
    assert "aggregator[0], round 2: 2 tokens, reward 1.00, advantage -0.25, not parsed, cut" in text
    assert "<user>g80+11" in text
    assert "[bold] nonsense" in text, "what an agent said is not markup"


def test_all_samples_of_a_problem(run: Path) -> None:
    text = shown(run, 7, problem="sum-80-11")
    assert "sample 0: solved" in text
    assert "sample 1: not solved" in text


def test_a_failed_episode_says_why(run: Path) -> None:
    assert "given up: prompt of 99 tokens, limit [12]" in shown(run, 7, problem="sum-1-1")


def test_without_a_problem_the_steps_problems_are_listed(run: Path) -> None:
    text = shown(run, 7)
    assert "sum-80-11" in text
    assert "1/2" in text
    assert "What is [bold]1+1[/bold]?" in text
    assert "--problem" in text


def test_references_are_no_markup_and_stay_on_one_line(tmp_path: Path) -> None:
    program = Problem("task[/0]", "code", "Sort.", "def f(a):\n    return a[/1]" + 90 * "x")
    save_episodes(
        tmp_path / "episodes" / "step-000001.jsonl.gz", [Episode(program, 0, (), None, False)]
    )
    text = shown(tmp_path, 1)
    assert "task[/0]" in text
    assert "def f(a):     return a[/1]" in text
    assert len(text.splitlines()) == 3


def test_evaluation_episodes_have_no_reward(run: Path) -> None:
    text = shown(run, 0, problem="sum-80-11", sample=0, is_evaluation=True)
    assert "generator[2], round 1: 2 tokens, right\n" in text


@pytest.mark.parametrize(
    ("step", "options", "complaint"),
    [
        (8, {}, "no episodes of step 8; there are 2, from 7 to 9"),
        (3, {"is_evaluation": True}, "no episodes of eval 3; there are 1, from 0 to 0"),
        (7, {"problem": "x"}, "step 7 has no problem 'x'; it has sum-1-1, sum-80-11"),
        (7, {"problem": "sum-80-11", "sample": 5}, "no sample 5; there are 0, 1"),
    ],
)
def test_what_is_not_there_is_told_with_what_there_is(
    run: Path, step: int, options: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        shown(run, step, **options)


def test_a_directory_without_episodes_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a run directory with step episodes"):
        shown(tmp_path, 1)
