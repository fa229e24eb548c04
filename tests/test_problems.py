"""Tasks: what they hold, that held-out problems are never trained on, and what bad files say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from trainers.grading.code_tests import FunctionTest, StdinTest
from trainers.judge import Judge
from trainers.tasks.load import load_task
from trainers.tasks.problem import Problem, Task
from trainers.tasks.problem_list import write_problem_list
from trainers.tasks.sources.embedded import arithmetic

GSM8K = {"question": "2+2 apples?", "answer": "2+2=<<2+2=4>>4\n#### 4"}

OTHER = {"question": "3+3 pears?", "answer": "#### 6"}


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_arithmetic_holds_every_pair_once() -> None:
    """Two digits: 90 numbers from 10 to 99, so 90 * 90 = 8100 sums."""
    problems = arithmetic(2)
    assert len(problems) == len({problem.id for problem in problems}) == 8100
    assert problems[0] == Problem("sum-10-10", "math", "10+10", "20")
    assert problems[-1] == Problem("sum-99-99", "math", "99+99", "198")
    assert len(arithmetic(1)) == 81  # 1 to 9


def test_long_sums_are_drawn_the_same_every_time() -> None:
    problems = arithmetic(4)
    assert problems == arithmetic(4)
    assert len({problem.id for problem in problems}) == len(problems) > 19_000
    for problem in problems[:100]:
        a, b = map(int, problem.question.split("+"))
        assert 1000 <= min(a, b) <= max(a, b) <= 9999
        assert problem.answer == str(a + b)


def test_no_answer_is_wrong_and_every_asked_answer_gets_its_verdict() -> None:
    first, second = arithmetic(1)[:2]  # 1+1 and 1+2
    judge = Judge()
    for _ in range(2):
        asked = [(first, "2.0"), (second, "2.0"), (first, None), (second, "3"), (first, "2.0")]
        assert judge(asked) == [True, False, False, True, True]
    assert judge([]) == []


@pytest.mark.parametrize("seed", [0, 1])
def test_training_and_heldout_problems_are_disjoint_and_complete(seed: int) -> None:
    task = load_task("arithmetic", heldout=100, seed=seed)
    train, heldout = ({problem.id for problem in part} for part in (task.train, task.heldout))
    assert len(heldout) == 100
    assert not train & heldout
    assert len(train | heldout) == 8100


def test_the_split_and_the_hash_depend_on_the_seed_alone() -> None:
    first, again = (load_task("arithmetic", heldout=10, seed=3) for _ in range(2))
    other = load_task("arithmetic", heldout=10, seed=4)
    assert first == again
    assert first.content_hash == again.content_hash != other.content_hash
    # Pinned: a run is resumed only on the problems it began with, so a change of this number
    # breaks the resumption of every older run.
    assert load_task("arithmetic", heldout=10, seed=0).content_hash.startswith("9209b5708ceca353")


def test_gsm8k_is_read_with_its_answer(tmp_path: Path) -> None:
    path = write(
        tmp_path / "gsm8k.jsonl",
        json.dumps(GSM8K),
        "",  # blank lines count as lines but hold no problem
        json.dumps({"question": "Café?", "answer": "x #### 3 #### 1,200"}),
    )
    task = load_task("gsm8k", heldout=0, seed=0, data=path)
    problems = sorted(task.train, key=lambda problem: problem.id)
    assert problems == [
        Problem("gsm8k-1", "math", "2+2 apples?", "4"),
        Problem("gsm8k-3", "math", "Café?", "1,200"),
    ]
    assert Judge()([(problems[1], "1200")]) == [True]
    task = load_task("gsm8k", heldout=1, seed=0, data=path)
    assert (len(task.train), len(task.heldout)) == (1, 1)


def test_a_changed_problem_changes_the_hash(tmp_path: Path) -> None:
    hashes = set()
    for answer in ("#### 4", "#### 5"):
        path = write(tmp_path / "a.jsonl", json.dumps({"question": "q", "answer": answer}))
        hashes.add(load_task("gsm8k", heldout=0, seed=0, data=path).content_hash)
    assert len(hashes) == 2


def test_dapo_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "dapo.jsonl", json.dumps({"prompt": "6*7?", "solution": "42"}))
    task = load_task("dapo-math", heldout=0, seed=0, data=path)
    assert task.train == (Problem("dapo-1", "math", "6*7?", "42"),)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"question": "q"', "not JSON"),
        ("[1, 2]", "got a list; expected a JSON object"),
        ("3", "got a int; expected a JSON object"),
        ('{"question": "q"}', r"got fields \['question'\]; expected"),
        ('{"question": 3, "answer": "#### 3"}', "got fields"),
        ('{"question": "q", "answer": "it is 4"}', "no number after '####'"),
        ('{"question": "q", "answer": "#### four"}', "no number after '####'"),
        ('{"question": "q", "answer": "####"}', "no number after '####'"),
    ],
)
def test_a_malformed_line_is_named_by_file_and_number(
    tmp_path: Path, line: str, complaint: str
) -> None:
    path = write(tmp_path / "bad.jsonl", json.dumps(GSM8K), "", line)
    with pytest.raises(ValueError, match=f"bad.jsonl, line 3: {complaint}"):
        load_task("gsm8k", heldout=1, seed=0, data=path)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [('{"prompt": "p"}', "got fields"), ('{"prompt": "p", "solution": 42}', "got fields")],
)
def test_a_malformed_dapo_line_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    path = write(tmp_path / "bad.jsonl", line)
    with pytest.raises(ValueError, match=f"bad.jsonl, line 1: {complaint}.*integer"):
        load_task("dapo-math", heldout=1, seed=0, data=path)


def test_a_missing_file_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file .*nowhere\.jsonl; expected train\.jsonl of"):
        load_task("gsm8k", heldout=1, seed=0, data=tmp_path / "nowhere.jsonl")


def test_an_empty_file_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "empty.jsonl", "", "  ")
    with pytest.raises(ValueError, match=r"empty\.jsonl holds no problem"):
        load_task("gsm8k", heldout=1, seed=0, data=path)


def test_without_data_the_folders_searched_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRADLAB_DATA", str(tmp_path / "mine"))
    with pytest.raises(ValueError, match=r"no gsm8k\*\.jsonl .*mine, data, .*--data FILE"):
        load_task("gsm8k", heldout=1, seed=0)
    (tmp_path / "mine").mkdir()
    write(tmp_path / "mine" / "gsm8k_part.jsonl", json.dumps(GSM8K), json.dumps(OTHER))
    assert len(load_task("gsm8k", heldout=1, seed=0).train) == 1


def test_a_task_smaller_than_its_heldout_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has 81 problems; expected more than the 81 held out"):
        load_task("arithmetic", heldout=81, seed=0, difficulty=1)


def test_an_unknown_task_lists_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match="'chess' is unknown; expected one of arithmetic, programs"
    ):
        load_task("chess", heldout=1, seed=0)


@pytest.mark.parametrize("digits", [0, 7])
def test_difficulty_has_bounds(digits: int) -> None:
    with pytest.raises(ValueError, match="expected 1 to 6 digits"):
        arithmetic(digits)


def test_a_question_that_is_held_out_is_not_trained_on(tmp_path: Path) -> None:
    lines = [json.dumps({"question": f"q{i % 7}", "answer": f"#### {i % 7}"}) for i in range(70)]
    task = load_task("gsm8k", heldout=2, seed=0, data=write(tmp_path / "a.jsonl", *lines))
    held = {problem.question for problem in task.heldout}
    assert len(task.heldout) == 2
    assert not held & {problem.question for problem in task.train}
    assert len(task.train) == 70 - 10 * len(held)


def test_the_split_of_a_run_can_be_taken_over(tmp_path: Path) -> None:
    first = load_task("arithmetic", heldout=10, seed=3)
    path = tmp_path / "problems.jsonl.gz"
    write_problem_list(path, first)
    again = load_task("arithmetic", heldout=10, seed=8, split=str(path))
    assert again == first
    with pytest.raises(ValueError, match=r"lists problem 'sum-.*which task 'programs' does not"):
        load_task("programs", heldout=10, seed=8, split=str(path))
    with pytest.raises(ValueError, match=r"nowhere: cannot be read .*expected 'seed', 'paper'"):
        load_task("arithmetic", heldout=10, seed=8, split="nowhere")


def test_the_papers_split_is_that_of_the_package_datasets(tmp_path: Path) -> None:
    """Which holds out ceil(0.1 n) problems of `train_test_split(test_size=0.1, seed=42)`."""
    datasets = pytest.importorskip("datasets")
    lines = [json.dumps({"prompt": f"q{i}", "solution": str(i)}) for i in range(123)]
    path = write(tmp_path / "dapo.jsonl", *lines)
    task = load_task("dapo-math", heldout=13, seed=7, data=path, split="paper")
    truth = datasets.Dataset.from_dict({"answer": [str(i) for i in range(123)]})
    parts = truth.train_test_split(test_size=0.1, seed=42)
    assert [problem.answer for problem in task.heldout] == list(parts["test"]["answer"])
    assert [problem.answer for problem in task.train] == list(parts["train"]["answer"])
    fewer = load_task("dapo-math", heldout=5, seed=0, data=path, split="paper")
    assert fewer.heldout == task.heldout[:5]
    assert fewer.train == task.train, "what is held out and not evaluated is not trained on"
    with pytest.raises(ValueError, match="the paper does not use task 'arithmetic'"):
        load_task("arithmetic", heldout=5, seed=0, split="paper")


def test_the_hash_covers_all_that_a_verdict_depends_on() -> None:
    plain = Problem("a", "code", "q", "")
    variants = [
        plain,
        replace(plain, rule="code"),
        replace(plain, rule="code", tests=(StdinTest("1", "2"),)),
        replace(plain, rule="code", tests=(StdinTest("1", "3"),)),
        replace(plain, rule="code", tests=(FunctionTest("f", "[1]", "2"),)),
        replace(plain, rule="code", tests=(FunctionTest("f", "[1]", "2", True),)),
        replace(plain, rule="reasoning", entry="{}"),
    ]
    hashes = {Task("t", (problem,), ()).content_hash for problem in variants}
    assert len(hashes) == len({problem.content_hash for problem in variants}) == len(variants)


def test_options_are_for_generators() -> None:
    with pytest.raises(ValueError, match="--task-options are for rg"):
        load_task("arithmetic", heldout=1, seed=0, options={"size": "3"})


def test_two_problems_with_one_id_are_refused(tmp_path: Path) -> None:
    line = json.dumps({"id": "x", "question": "q", "answer": "1"})
    with pytest.raises(ValueError, match="2 problems have the id 'x'"):
        load_task("file", heldout=0, seed=0, data=write(tmp_path / "a.jsonl", line, line))


def test_half_a_character_in_a_question_is_told_before_training(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(
        '{"question": "1+1?", "answer": "2"}\n{"question": "2+2 \\ud83d", "answer": "4"}'
    )
    with pytest.raises(ValueError, match=r"problem 'file-2' is no Unicode text .* at character 4"):
        load_task("file", heldout=1, seed=0, data=path)


@pytest.mark.parametrize("line", ['{"question": "q", "answer": ' + 5000 * "9" + "}", 100_000 * "["])
def test_lines_that_json_gives_up_on_are_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"question": "1+1?", "answer": "2"}\n' + line)
    with pytest.raises(ValueError, match=r"mine\.jsonl, line 2: not JSON"):
        load_task("file", heldout=1, seed=0, data=path)


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    text = "".join(f'{{"question": "{i}+1?", "answer": "{i + 1}"}}\n' for i in range(2))
    path.write_text(text, encoding="utf-8-sig")
    assert len(load_task("file", heldout=1, seed=0, data=path).train) == 1
