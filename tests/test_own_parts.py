"""What is said of a part of one's own that does not do what is expected; and nothing is written."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import SmallConfig

import gradlab
from gradlab.commands.main import main
from gradlab.own_parts import PartError, holding, load_part
from gradlab.store.run import open_run
from gradlab.workflows import Message, Workflow
from trainers.config import TrainConfig
from trainers.credit import credit
from trainers.episodes import trained_turns
from trainers.inspect.audit import audit_run
from trainers.judge import Judge
from trainers.preview.dry_play import canned_episode
from trainers.prompts.compact import CompactPrompts
from trainers.replay.arms import make_plan
from trainers.replay.begin import begin
from trainers.tasks.load import load_task
from trainers.tasks.problem import Problem
from trainers.training import train
from trainers.watch.progress import Progress
from trainers.workflows import WORKFLOWS, find_workflow

PROBLEM = Problem("sum-80-11", "math", "80+11", "91")
HEAD = "from gradlab import Agent, Ask, Message, Reading, workflow\n"
GOOD = HEAD + (
    '@workflow(roles={"solver": 1})\n'
    "def mine(problem, *, rounds=1, share=0.5, word='a', loud=False):\n"
    "    for _ in range(rounds):\n"
    '        [reply] = yield [Ask(Agent("solver"), f"g{problem.question}")]\n'
    "    return reply.value\n"
)


def written(tmp_path: Path, body: str, name: str = "mine.py") -> str:
    path = tmp_path / name
    path.write_text(body)
    return f"{path}:mine"


def flow(line: str, last: str = "    return reply.value\n", roles: str = '{"solver": 1}') -> str:
    """A workflow whose fourth line is `line`."""
    return HEAD + f"@workflow(roles={roles})\ndef mine(problem):\n    {line}\n{last}"


ASKED = '[reply] = yield [Ask(Agent("solver"), "g1+1")]'
NOT_FOUND = [
    ("there is no file nowhere/f.py in .*; expected FILE.py:NAME", "nowhere/f.py:mine", ""),
    ("there is no module 'no.such'", "no.such:mine", ""),
    ("has no 'your'; expected a generator .*: there is mine", "mine.py:your", GOOD),
    ("has no 'your'; .*: there is mine$", "mine.py:your", f"{GOOD}\n_hidden = mine\n"),
    ("has no 'mine'; expected a generator .*: there is none", "mine.py:mine", "x = 1\n"),
    (r"mine.py:2: invalid syntax", "mine.py:mine", "x = 1\nx = = 2\n"),
    (r"mine.py:2: ZeroDivisionError: .*does not import", "mine.py:mine", "x = 1\nx = 1 / 0\n"),
    (r"mine.py:1: ModuleNotFoundError: No module named 'no'", "mine.py:mine", "import no\n"),
    (r"'mine' in .*mine.py:1 is a function; expected .*@gradlab.workflow", "mine.py:mine",
     "def mine(problem):\n    yield []\n"),
    (r"mine.py:2: mine yields nothing; expected a generator function", "mine.py:mine",
     HEAD + '@workflow(roles={"solver": 1})\ndef mine(problem):\n    return "91"\n'),
    (r"mine.py:2: .* has no roles", "mine.py:mine", flow(ASKED, roles="{}")),
    (r"role 'total'|named 'total'", "mine.py:mine", flow(ASKED, roles='{"total": 1}')),
    (r"as many agents as option 'many' says; its options are none", "mine.py:mine",
     flow(ASKED, roles='{"solver": "many"}')),
    (r"has 0 agents of role 'solver'; expected a whole number", "mine.py:mine",
     flow(ASKED, roles='{"solver": 0}')),
]  # fmt: skip


@pytest.mark.parametrize(("said", "name", "body"), NOT_FOUND)
def test_what_cannot_be_found_or_loaded_is_refused_with_its_line(
    small_config: SmallConfig, tmp_path: Path, said: str, name: str, body: str
) -> None:
    written(tmp_path, body)
    name = name.replace("mine.py", str(tmp_path / "mine.py"))
    with pytest.raises(ValueError, match=said):
        small_config(workflow=name)


PLAYED = [
    ("mine.py:4: workflow mine yielded []; expected a list of asks", flow("yield []", "")),
    ("mine.py:4: workflow mine yielded None", flow("yield", "")),
    ("mine.py:4: workflow mine yielded 'who?'", flow("yield 'who?'", "")),
    ("mine.py:4: workflow mine asks judge[0]; expected one of its agents, solver[0]",
     flow('yield [Ask(Agent("judge"), "g1+1")]', "")),
    ("mine.py:4: workflow mine asks solver[1]; expected one of its agents, solver[0]",
     flow('yield [Ask(Agent("solver", 1), "g1+1")]', "")),
    ("mine.py:4: workflow mine asks solver[0] 3; expected a text, or a tuple of Message",
     flow('yield [Ask(Agent("solver"), 3)]', "")),
    ("mine.py:2: workflow mine returned 91, a int; expected the final answer as text",
     flow(ASKED, "    return 91\n")),
    ("mine.py:2: workflow mine ended without asking anybody",
     flow("if problem is None: yield []", "")),
    ("mine.py:5: workflow mine raised AttributeError: 'NoneType' object has no attribute 'strip' "
     "on problem 'sum-80-11'; expected that it takes any reply",
     flow(ASKED, "    return reply.value.strip()\n")),
    ("mine.py:4: workflow mine raised ValueError: no on problem",
     flow('raise ValueError("no"); yield []', "")),
    ("mine.py:4: the reader of solver[0] raised IndexError: list index out of range on '?'",
     flow('[reply] = yield [Ask(Agent("solver"), "g", lambda text: text.split("[")[1])]')),
    ("mine.py:4: the reader of solver[0] gave 91; expected a text or None for kind 'answer'",
     flow('[reply] = yield [Ask(Agent("solver"), "g", lambda text: 91)]')),
    ("mine.py:4: the judge of solver[0] raised TypeError",
     flow('[reply] = yield [Ask(Agent("solver"), "g", lambda text: None, kind="choice", '
          'judge=lambda value: value + 1)]')),
    ("mine.py:4: workflow mine asks without end",
     flow('while True: yield [Ask(Agent("solver"), "g1+1")]', "")),
]  # fmt: skip


@pytest.mark.parametrize(("said", "body"), PLAYED)
def test_what_fails_when_it_is_played_is_refused_before_anything_is_written(
    small_config: SmallConfig, quiet: Progress, tmp_path: Path, said: str, body: str
) -> None:
    config = small_config(workflow=written(tmp_path, body))
    expected = said.replace("sum-80-11", "PROBLEM")
    with pytest.raises(PartError) as refused:
        train(config, quiet)
    assert expected in re.sub(r"problem 'sum-\d+-\d+'", "problem 'PROBLEM'", str(refused.value))
    assert not config.out.exists()


REWARDS = [
    ("mine.py:2: --reward", "ZeroDivisionError", "def mine(episode, turn):\n    return 1 / 0\n"),
    ("mine.py:1: --reward", "gave nan", "def mine(episode, turn):\n    return float('nan')\n"),
    ("mine.py:1: --reward", "gave brief = inf",
     "def mine(episode, turn):\n    return {'right': 1, 'brief': float('inf')}\n"),
    ("mine.py:1: --reward", "gave None, a NoneType", "def mine(episode, turn):\n    pass\n"),
    ("mine.py:1: --reward", "gave right = '1', a str",
     "def mine(episode, turn):\n    return {'right': '1'}\n"),
    ("mine.py:1: --reward", "gave {}", "def mine(episode, turn):\n    return {}\n"),
]  # fmt: skip


@pytest.mark.parametrize(("where", "said", "body"), REWARDS)
def test_a_reward_that_is_no_number_is_refused_before_anything_is_written(
    small_config: SmallConfig, quiet: Progress, tmp_path: Path, where: str, said: str, body: str
) -> None:
    config = small_config(reward=written(tmp_path, body))
    with pytest.raises(PartError) as refused:
        train(config, quiet)
    assert where in str(refused.value)
    assert said in str(refused.value)
    assert "generator[0], round 1, on problem" in str(refused.value)
    assert not config.out.exists()


def test_a_reward_takes_an_episode_and_a_turn(small_config: SmallConfig, tmp_path: Path) -> None:
    with pytest.raises(PartError, match=r"mine.py:1 is a function; expected a function of \(epis"):
        small_config(reward=written(tmp_path, "def mine(turn):\n    return 1\n"))
    with pytest.raises(ValueError, match="--reward fair is unknown; expected one of outcome, own,"):
        small_config(reward="fair")


def test_a_reward_that_fails_later_leaves_whole_steps(
    small_config: SmallConfig, quiet: Progress, tmp_path: Path
) -> None:
    """It passes the canned play, and fails in step 2: step 1 is there, and nothing of step 2."""
    body = (
        "calls = [0]\n"
        "def mine(episode, turn):\n"
        "    calls[0] += turn.prompt != 'canned' and len(turn.logprobs) > 1\n"
        "    return 1.0 if calls[0] <= 64 else float('nan')\n"
    )
    config = small_config(reward=written(tmp_path, body), steps=3, checkpoint_every=1)
    with pytest.raises(PartError, match=r"mine.py:2: .* gave nan"):
        train(config, quiet)
    assert open_run(config.out).steps.tolist() == [1]
    assert [path.name for path in sorted(config.out.glob("episodes/step-*"))] == [
        "step-000001.jsonl.gz"
    ]


def test_a_component_that_nobody_foresaw_is_named(
    small_config: SmallConfig, quiet: Progress, tmp_path: Path
) -> None:
    body = (
        "def mine(episode, turn):\n"
        "    return {'long' if len(turn.response_ids) > 1 else 'canned': 1.0}\n"
    )
    config = small_config(reward=written(tmp_path, body))
    with pytest.raises(PartError, match=r"mine.py:1: .*component 'long' for .*; expected canned"):
        train(config, quiet)
    assert open_run(config.out).steps.tolist() == []
    assert not list(config.out.glob("episodes/step-*"))


TASKS = [
    ("mine.py:2: --task .* raised ZeroDivisionError", "def mine():\n    return 1 / 0\n"),
    ("mine.py:1: --task .* gave no problems", "def mine():\n    return []\n"),
    ("problem 0 is 'x'; expected", "def mine():\n    return ['x']\n"),
    ("problem 0: kind is 'art'",
     "def mine():\n    return [dict(question='a', answer='b', kind='art')]"),
    ("problem 0: answer is None", "def mine():\n    return [dict(question='a', answer=None)]"),
    ("gave 3 as judge", "def mine():\n    return [dict(question='a', answer='b')], 3"),
    ("--task-options most: .* takes least", "def mine(least=1):\n    return []\n"),
]  # fmt: skip


@pytest.mark.parametrize(("said", "body"), TASKS)
def test_what_are_no_problems_is_refused(tmp_path: Path, said: str, body: str) -> None:
    options = {"most": "3"} if "most" in said else {}
    with pytest.raises(PartError, match=said):
        load_task(written(tmp_path, body), heldout=1, seed=0, options=options)


@pytest.mark.parametrize(
    ("said", "judge"),
    [
        ("mine.py:2: the task's judge raised ValueError: invalid literal", "int(a) == 3"),
        ("mine.py:2: the task's judge gave 7", "7"),
        ("mine.py:2: the task's judge gave nan", "float('nan')"),
        ("mine.py:2: the task's judge gave 'yes'", "'yes'"),
    ],
)
def test_a_judge_that_gives_no_grade_is_refused_before_anything_is_written(
    small_config: SmallConfig, quiet: Progress, tmp_path: Path, said: str, judge: str
) -> None:
    body = (
        "def mine():\n"
        f"    return [dict(question=str(i), answer='3') for i in range(20)], lambda p, a: {judge}\n"
    )
    config = small_config(task=written(tmp_path, body))
    with pytest.raises(PartError, match=re.escape(said)):
        train(config, quiet)
    assert not config.out.exists()


def test_a_judge_grades_and_solved_is_full_marks(tmp_path: Path, small_config: SmallConfig) -> None:
    task = load_task(
        written(
            tmp_path,
            "def mine(n=3):\n"
            "    return [dict(id=i, question=f'q{i}', answer=i) for i in range(n)], grade\n"
            "def grade(problem, answer):\n"
            "    return {'good': 1, 'fair': 0.25}.get(answer, False)\n",
        ),
        heldout=1, seed=0, options={"n": "5"},
    )  # fmt: skip
    assert len(task.train) + len(task.heldout) == 5
    assert {problem.rule for problem in task.train} == {"own"}
    judge = Judge(own=task.judge)
    asked = [(task.train[0], answer) for answer in ("good", "fair", "bad", None)]
    assert judge.grades(asked) == [1, 0.25, 0, 0]
    assert judge(asked) == [True, False, False, False]


def test_the_options_of_a_workflow_are_its_keyword_arguments(
    small_config: SmallConfig, tmp_path: Path
) -> None:
    name = written(tmp_path, GOOD)

    def options(**given: str) -> object:
        return small_config(workflow=name, workflow_options=given).build_workflow().options

    plain = {"rounds": 1, "share": 0.5, "word": "a", "loud": False}
    assert options() == plain
    assert options(rounds="4", share="1", word="4", loud="true") == {
        "rounds": 4, "share": 1, "word": "4", "loud": True,
    }  # fmt: skip
    with pytest.raises(PartError, match=r"option rounds of workflow mine is 0.5; expected a"):
        options(rounds="0.5")
    with pytest.raises(PartError, match="has no option 'votes'; expected one of rounds=1, share"):
        options(votes="3")
    with pytest.raises(ValueError, match="--workflow-options votes: workflow voting takes it as"):
        small_config(workflow_options={"votes": "3"})
    with pytest.raises(ValueError, match=r"--rounds is 5, and .*:mine is no built-in workflow"):
        small_config(workflow=name, rounds=5)


def test_a_workflow_is_found_in_a_module_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flows_of_mine").mkdir()
    (tmp_path / "flows_of_mine" / "__init__.py").write_text("")
    (tmp_path / "flows_of_mine" / "helper.py").write_text("QUESTION = 'g1+1'\n")
    body = flow('[reply] = yield [Ask(Agent("solver"), QUESTION)]')
    (tmp_path / "flows_of_mine" / "one.py").write_text(
        f"from flows_of_mine.helper import QUESTION\n{body}"
    )
    monkeypatch.chdir(tmp_path)
    found = find_workflow("flows_of_mine.one:mine")
    assert found.roles == ("solver",)
    assert next(found.play(PROBLEM, CompactPrompts()))[0].messages == (Message("user", "g1+1"),)


def test_the_built_in_workflows_go_through_the_same_door() -> None:
    assert {name: type(found) for name, found in WORKFLOWS.items()} == dict.fromkeys(
        ["voting", "evaluator_optimizer", "orchestrator_workers", "majority", "solo"], Workflow
    )
    with pytest.raises(ValueError, match="--workflow voter is unknown; expected one of voting, "):
        TrainConfig(workflow="voter")


def test_the_decorator_loads_neither_torch_nor_numpy_heavy_things() -> None:
    program = "import sys; from gradlab import workflow, Ask; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert gradlab.workflow is not None


def test_the_memory_of_a_conversation_is_what_the_workflow_keeps(tmp_path: Path) -> None:
    body = HEAD + (
        '@workflow(roles={"solver": 1})\n'
        "def mine(problem, *, rounds=3):\n"
        '    chat = (Message("system", "Add."), Message("user", problem.question))\n'
        "    for _ in range(rounds):\n"
        '        [reply] = yield [Ask(Agent("solver"), chat, kind="remark")]\n'
        '        chat += (Message("assistant", reply.text), Message("user", "Sure?"))\n'
        "    return reply.value\n"
    )
    play = find_workflow(written(tmp_path, body)).play(PROBLEM, CompactPrompts())
    wave = next(play)
    assert [ask.round for ask in wave] == [0]
    wave = play.send([gradlab.workflows.Reply("91", wave[0].reading("91").value)])
    assert [m.text for m in wave[0].messages] == ["Add.", "80+11", "91", "Sure?"]
    assert wave[0].round == 1


def test_a_changed_file_is_named_and_the_way_on_works(
    small_config: SmallConfig, quiet: Progress, tmp_path: Path
) -> None:
    name = written(tmp_path, GOOD)
    config = small_config(workflow=name, checkpoint_every=1)
    train(config, quiet)
    file, copy = tmp_path / "mine.py", config.out / "own_parts" / "workflow" / "mine.py"
    assert copy.read_text() == GOOD
    file.write_text(GOOD + "# another\n")
    again = replace(config, resume=True, extend_to=3)
    for refused in (
        lambda: train(again, quiet),
        lambda: audit_run(config.out),
        lambda: make_plan(config.out, ("lr:0.5",), at_most=1),
    ):
        with pytest.raises(PartError, match=f"mine.py has changed since {config.out} began .*cp "):
            refused()
    new = replace(config, out=tmp_path / "new", steps=3)
    begin(config.out, 2, new)
    train(replace(new, resume=True), quiet)
    about = json.loads((new.out / "config.json").read_text())
    [(old_hash, new_hash)] = [v for k, v in about["from"]["changed"].items() if "mine.py" in k]
    assert old_hash == open_run(config.out).meta.config["parts"]["workflow"]["sha256"]
    assert new_hash == about["parts"]["workflow"]["sha256"] != old_hash
    file.write_text(copy.read_text())  # put back
    train(again, quiet)
    assert open_run(config.out).steps.tolist() == [1, 2, 3]
    file.unlink()
    with pytest.raises(PartError, match=r"there is no file .*a copy is "):
        audit_run(config.out)


def test_the_command_line_takes_options_as_equations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, GOOD)
    monkeypatch.chdir(tmp_path)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        options = ["--workflow", "mine.py:mine", "--workflow-options", "rounds=2"]
        assert main(["prompts", *options]) == 0
    assert "=== solver[0], round 2" in out.getvalue()


def test_the_workflow_of_the_documentation_plays(tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent / "docs" / "own_parts.md").read_text()
    [(code, name)] = re.findall(r"```python\n(.*?def (\w+)\(.*?)```", text, re.DOTALL)
    (tmp_path / "doc.py").write_text(code)
    found = find_workflow(f"{tmp_path / 'doc.py'}:{name}")
    replies = dict.fromkeys(("answer",), "[91]")
    episode = canned_episode(found, CompactPrompts(), PROBLEM, replies, is_right=True)
    assert episode.answer == "91"
    assert [str(turn.agent) for turn in episode.turns] == ["debater[0]", "debater[1]", "judge[0]"]


def test_own_and_built_in_credit_agree_where_they_say_the_same(
    small_config: SmallConfig, quiet: Progress, tmp_path: Path
) -> None:
    """A reward of one's own that gives the outcome trains as the outcome does, bit for bit."""
    mine = written(tmp_path, "def mine(episode, turn):\n    return float(episode.outcome)\n")
    plain = train(small_config(out=tmp_path / "plain"), quiet)
    own = train(small_config(out=tmp_path / "own", reward=mine), quiet)
    for role in ("generator", "aggregator"):
        one, other = (open_run(out).norm(role).value_T for out in (plain, own))
        np.testing.assert_array_equal(one, other)
    assert open_run(own).meta.reward_components == ()
    assert credit([], small_config()) == trained_turns([]) == []


def test_a_file_that_is_edited_while_a_run_trains_changes_nothing(tmp_path: Path) -> None:
    """A run's record holds the hash of what it began with."""
    file = tmp_path / "mine.py"
    name = f"{file}:pay"

    def paid_now() -> float:
        value: float = load_part("--reward", name, callable, "a function").value()
        return value

    file.write_text("def pay():\n    return 1.0\n")
    first = load_part("--reward", name, callable, "a function")
    with holding({("--reward", name): first}):
        file.write_text("def pay():\n    return -1.0\n")
        assert paid_now() == 1.0
    assert paid_now() == -1.0
