"""Turn a task name into training and held-out problems with stable ids and a content hash."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainers.grading import final_number, same_number

Kind = Literal["math"]

TASKS = ("arithmetic", "gsm8k")


@dataclass(frozen=True)
class Problem:
    """One item of a task."""

    id: str
    kind: Kind
    question: str
    answer: str
    """The reference answer, e.g. '91' or '1,200'."""

    def is_correct(self, answer: str | None) -> bool:
        """Whether `answer` equals the reference; None (nothing could be read) is wrong."""
        return answer is not None and same_number(answer, self.answer)


@dataclass(frozen=True)
class Task:
    """The problems of a run; training and held-out sets are disjoint."""

    name: str
    train: tuple[Problem, ...]
    heldout: tuple[Problem, ...]

    @property
    def content_hash(self) -> str:
        """SHA-256 over ids, questions and answers, in order; kept in the run."""
        digest = hashlib.sha256()
        for problem in (*self.train, *self.heldout):
            row = (problem.id, problem.question, problem.answer)
            digest.update(json.dumps(row).encode())
        return digest.hexdigest()


def load_task(
    name: str, *, heldout: int, seed: int, data: Path | None = None, difficulty: int = 2
) -> Task:
    """Load a task by name.

    `heldout` problems are set aside by a shuffle with `seed`; the rest trains. `data` is the JSONL
    file of a task that needs one; `difficulty` is the number of digits of `arithmetic`.

    Raises ValueError for an unknown task, a missing or malformed file (with the line number), or a
    task too small for the held-out set.
    """
    if name == "arithmetic":
        problems = arithmetic(difficulty)
    elif name == "gsm8k":
        if data is None:
            raise ValueError(
                "task 'gsm8k' needs --data FILE, a JSONL file with 'question' and 'answer' per "
                "line (train.jsonl of openai/grade-school-math)"
            )
        problems = read_gsm8k(data)
    else:
        raise ValueError(f"task '{name}' is unknown; expected one of {', '.join(TASKS)}")
    if heldout >= len(problems):
        raise ValueError(
            f"task '{name}' has {len(problems)} problems; expected more than the {heldout} held "
            "out by --eval-problems: lower it, or give more problems"
        )
    shuffled = random.Random(seed).sample(problems, len(problems))
    return Task(name, tuple(shuffled[heldout:]), tuple(shuffled[:heldout]))


def arithmetic(digits: int) -> list[Problem]:
    """Sums of two numbers with `digits` digits each; every pair up to two digits, else 20,000."""
    if not 1 <= digits <= 6:
        raise ValueError(f"task 'arithmetic': difficulty is {digits}; expected 1 to 6 digits")
    low, high = 10 ** (digits - 1), 10**digits - 1
    if digits <= 2:
        pairs = [(a, b) for a in range(low, high + 1) for b in range(low, high + 1)]
    else:
        draw = random.Random(digits)
        pairs = list(
            dict.fromkeys((draw.randint(low, high), draw.randint(low, high)) for _ in range(20_000))
        )
    return [Problem(f"sum-{a}-{b}", "math", f"{a}+{b}", str(a + b)) for a, b in pairs]


def read_gsm8k(path: Path) -> list[Problem]:
    """Read GSM8K's own format: `question`, and `answer` whose last line is `#### number`."""
    if not path.is_file():
        raise ValueError(f"task 'gsm8k': no file {path}; expected the JSONL file given by --data")
    problems = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        question, answer = _gsm8k_line(line, f"{path}, line {number}")
        problems.append(Problem(f"gsm8k-{number}", "math", question, answer))
    if not problems:
        raise ValueError(f"task 'gsm8k': {path} holds no problem; expected one JSON object a line")
    return problems


def _gsm8k_line(line: str, where: str) -> tuple[str, str]:
    expected = 'expected {"question": "…", "answer": "… #### number"}'
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error}); {expected}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where}: got a {type(row).__name__}; {expected}")
    texts = [row.get("question"), row.get("answer")]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where}: got fields {sorted(row)}; {expected}")
    question, solution = map(str, texts)
    _, mark, answer = solution.rpartition("####")
    if not mark or final_number(answer) is None:
        raise ValueError(f"{where}: no number after '####' in the answer; {expected}")
    return question, answer.strip()


def problem_ids(problems: Sequence[Problem]) -> tuple[str, ...]:
    return tuple(problem.id for problem in problems)
