"""Answer grading requests on standard input, one JSON object per line: the process that may hang.

Started and killed by `trainers.grading.pool`. Requests name a rule, its texts and the seconds of
CPU time allowed; the kernel ends the process that takes longer, even inside one multiplication.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import json
import os
import random
import re
import resource
import signal
import sys
import time
import warnings
from typing import Any

MEMORY = 2 << 30
"""Bytes of address space."""

EVALUATING = (
    "binary_matrix", "countdown", "intermediate_integration", "n_queens",
    "polynomial_multiplication", "puzzle24", "simple_integration", "spiral_matrix",
    "string_insertion",
)  # fmt: skip
"""Datasets whose scorers evaluate the answer as Python."""

HARMLESS_NAMES = {
    "sqrt", "pi", "sin", "cos", "tan", "sec", "csc", "cot", "exp", "log", "ln", "asin", "acos",
    "atan", "sinh", "cosh", "tanh", "Abs", "abs",
}  # fmt: skip


CALCULATING = (
    ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Call, ast.List, ast.Tuple, ast.Set,
    ast.UnaryOp, ast.unaryop, ast.BinOp, ast.operator,
)  # fmt: skip


def prepare(request: dict[str, Any]) -> None:
    """Import and build what the first request of a kind needs, outside of its time."""
    if request.get("rule") == "reasoning":
        build(request["dataset"], scoring_options(request["options"]))
    elif request.get("rule") == "math":
        importlib.import_module("math_verify")
    else:
        importlib.import_module("sympy")


def answer_request(request: dict[str, Any]) -> dict[str, Any]:
    """Serve one request; raises whatever grading raises."""
    if "generate" in request:
        return {"entries": generate(**request["generate"])}
    if request["rule"] == "reasoning":
        return score(request["answer"], request["entry"], request["dataset"], request["options"])
    if request["rule"] == "math":
        from trainers.grading.maths import same_math as rule
    else:
        from trainers.grading.paper import same_in_paper as rule
    verdict = rule(request["answer"], request["reference"])
    return {"is_correct": verdict.is_correct, "reason": verdict.reason}


def generate(dataset: str, size: int, seed: int, options: dict[str, Any]) -> list[dict[str, str]]:
    """`size` problems of a reasoning-gym dataset: question, answer and the entry as text."""
    random.seed(seed)  # list_functions draws from the global generator
    source = build(dataset, json.dumps({**options, "size": size, "seed": seed}, sort_keys=True))
    entries = (source[i] for i in range(size))
    return [
        {
            "question": entry["question"],
            "answer": "" if entry["answer"] is None else str(entry["answer"]),
            "entry": encode(entry),
        }
        for entry in entries
    ]


@functools.lru_cache(maxsize=8)
def build(dataset: str, options: str) -> Any:
    reasoning_gym = importlib.import_module("reasoning_gym")
    return reasoning_gym.create_dataset(dataset, **json.loads(options))


def scoring_options(options: dict[str, Any]) -> str:
    return json.dumps({**options, "size": 1, "seed": 0}, sort_keys=True)


def score(answer: str, entry: str, dataset: str, options: dict[str, Any]) -> dict[str, Any]:
    """Right if the dataset's own scorer gives the full mark."""
    if dataset in EVALUATING and not is_harmless(answer):
        return {"is_correct": False, "reason": "not an expression"}
    source = build(dataset, scoring_options(options))
    mark = float(source.score_answer(answer, decode(entry)))
    return {"is_correct": mark == 1.0, "reason": f"the dataset's scorer gives {mark:.3g}"}


def is_harmless(text: str) -> bool:
    """Whether Python would only calculate: no attributes, no strings to run, no unknown names.

    Quoted words without parentheses are let through, as in "['Q', '_']". ASCII alone: Python reads
    full-width letters as plain ones, so that a name in them is known to it and not to us.
    """
    if not text.isascii():
        return False
    without_strings = re.sub(r"'[\w ]*'|\"[\w ]*\"", "", text)
    if without_strings != text and "(" in text:
        return False
    if re.search(r"_|\.\s*[A-Za-z]|['\"\\;:=@!%]", without_strings):
        return False
    if not set(re.findall(r"[A-Za-z]{2,}", without_strings)) <= HARMLESS_NAMES:
        return False
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return True  # Python cannot run it either; scorers that evaluate then read it as a text
    return all(isinstance(node, CALCULATING) for node in ast.walk(tree))


def encode(entry: dict[str, Any]) -> str:
    """The entry as text: a Python literal where that keeps it, since JSON has no tuples."""
    text = repr(entry)
    try:
        if ast.literal_eval(text) == entry:
            return text
    except (ValueError, SyntaxError):
        pass
    return json.dumps(entry, default=str)


def decode(text: str) -> dict[str, Any]:
    """What `encode` was given."""
    entry: dict[str, Any]
    try:
        entry = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        entry = json.loads(text)
    return entry


def serve() -> None:
    """Answer until standard input ends. What libraries print goes nowhere."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A cluster tells every process of a job; the trainer finishes its step, with our answers.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))
            prepare(request)
            # Whole seconds: a request gets its allowance and up to one more.
            end = int(time.process_time()) + 1 + request["cpu_seconds"]
            resource.setrlimit(resource.RLIMIT_CPU, (end, hard))
            reply = answer_request(request)
        except MemoryError:
            reply = {"is_correct": False, "reason": "out of memory", "is_graded": False}
        except Exception as error:  # a scorer that stumbles over an answer has not confirmed it
            reply = {
                "is_correct": False,
                "reason": f"{type(error).__name__}: {error}"[:200],
                "error": type(error).__name__,
            }
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    serve()
