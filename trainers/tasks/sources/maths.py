r"""Read mathematics: GSM8K, MATH (Hendrycks), AIME, DAPO-Math-17K and DeepScaleR.

Answers of MATH and DeepScaleR are LaTeX and judged by equality (rule 'math'); the others' are
numbers (rule 'number').
"""

from __future__ import annotations

import math
import re

from trainers.grading.numbers import final_number
from trainers.grading.reading import last_boxed
from trainers.tasks.problem import Pool, Problem, Wanted
from trainers.tasks.sources.files import Place, Row, find_files, read_rows

GSM8K = Place(
    "gsm8k", ("gsm8k*.jsonl", "gsm8k*.jsonl.gz", "gsm8k*.parquet"),
    "train.jsonl of openai/grade-school-math", "openai/gsm8k", "main/train*",
)  # fmt: skip
MATH = Place(
    "math", ("MATH*.jsonl*", "math*.jsonl*", "MATH*.parquet", "math*.parquet"),
    "the training split of hendrycks/math, with fields problem and solution, as JSON lines",
    "EleutherAI/hendrycks_math",
)  # fmt: skip
AIME = Place(
    "aime", ("aime*.jsonl*", "AIME*.jsonl*", "aime*.parquet"),
    "AIME problems with their integer answers, such as math-ai/aime25, as JSON lines",
    "math-ai/aime25", "**/*",
)  # fmt: skip
DAPO = Place(
    "dapo-math", ("dapo*.jsonl*", "dapo*.parquet", "DAPO*.parquet"),
    "the 'en' part of open-r1/DAPO-Math-17k-Processed as JSON lines",
    "open-r1/DAPO-Math-17k-Processed", "en/train*",
)  # fmt: skip
DEEPSCALER = Place(
    "deepscaler", ("deepscaler*.json*", "deepscaler*.parquet"),
    "deepscaler.json of agentica-org/DeepScaleR-Preview-Dataset",
    "agentica-org/DeepScaleR-Preview-Dataset", "**/*.json",
)  # fmt: skip


def read_gsm8k(row: Row) -> Problem:
    """GSM8K's own format: `question`, and `answer` whose last line is `#### number`."""
    expected = 'expected {"question": "…", "answer": "… #### number"}'
    question, solution = row.text(["question"], expected), row.text(["answer"], expected)
    _, mark, answer = solution.rpartition("####")
    if not mark or final_number(answer) is None:
        raise ValueError(f"{row.where}: no number after '####' in the answer; {expected}")
    return Problem(f"gsm8k-{row.number}", "math", question, answer.strip())


def read_math(row: Row) -> Problem:
    r"""Hendrycks' format: `problem`, and `solution` with the answer in its last `\boxed{…}`."""
    expected = r'expected {"problem": "…", "solution": "… \\boxed{answer} …"}'
    question, solution = row.text(["problem"], expected), row.text(["solution"], expected)
    answer = row.fields.get("answer") or boxed(solution)
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError(f"{row.where}: no \\boxed answer in the solution; {expected}")
    return Problem(f"math-{row.number}", "math", question, unboxed(answer), "math")


def unboxed(answer: str) -> str:
    r"""A reference without the `\boxed{…}` around all of it: '5' for '$\boxed{5}$'."""
    answer = answer.strip()
    inner = last_boxed(answer)
    whole = inner is not None and answer.strip("$ ") == f"\\boxed{{{inner}}}"
    return inner.strip() if inner is not None and whole else answer


def boxed(solution: str) -> str | None:
    r"""The last boxed answer; MATH also writes `\fbox{3}` and `\boxed 3`."""
    bare = re.findall(r"\\f?boxed\s+([^\s$.{]+)", solution.replace("\\fbox", "\\boxed"))
    return last_boxed(solution.replace("\\fbox{", "\\boxed{")) or (bare[-1] if bare else None)


def read_aime(row: Row) -> Problem:
    """`problem` or `question`, and `answer`, else a boxed one in `solution`: an integer from 0 to
    999, maybe in degrees."""
    expected = 'expected {"problem": "…", "answer": an integer from 0 to 999}'
    question = row.text(["problem", "question", "Problem", "Question"], expected)
    given = row.fields.get("answer", row.fields.get("Answer"))
    if given is None:
        given = boxed(str(row.fields.get("solution") or "")) or ""
    answer = re.sub(r"\s*(?:\^\s*\{?\\circ\}?|°|\\degree)$", "", unboxed(str(given)).strip("$ "))
    if not re.fullmatch(r"\d{1,3}", answer):
        raise ValueError(f"{row.where}: the answer is '{answer}'; {expected}")
    return Problem(f"aime-{row.number}", "math", question, str(int(answer)))


def load_dapo(wanted: Wanted) -> Pool:
    """DAPO-Math-17K, processed or as verl reads it. The paper's split holds out ceil(10 %)."""
    files = find_files(DAPO, wanted.data)
    # verl's file repeats each problem a hundred times.
    problems = {p.question: p for p in reversed([*map(read_dapo, read_rows(DAPO, files))])}
    unique = tuple(reversed(problems.values()))
    return Pool(unique, files=tuple(files), paper_heldout=math.ceil(0.1 * len(unique)))


def read_dapo(row: Row) -> Problem:
    """Processed: `prompt` and `solution`; verl's: messages in `prompt`, and `reward_model`."""
    expected = 'expected {"prompt": "…", "solution": "integer"}'
    prompt, reward = row.fields.get("prompt"), row.fields.get("reward_model")
    if isinstance(prompt, list) and isinstance(reward, dict) and prompt:
        last = prompt[-1]
        question = last.get("content") if isinstance(last, dict) else None
        answer = str(reward.get("ground_truth") or "")
        if not isinstance(question, str):
            raise ValueError(
                f"{row.where}: the prompt is {str(prompt)[:80]}; expected "
                '[{"role": "user", "content": "…"}]'
            )
        if question.startswith("Solve the following math problem step by step."):
            question = question.partition("\n\n")[2].rpartition("\n\nRemember to put")[0]
        if not question or not answer:
            raise ValueError(f"{row.where}: no question or ground_truth; {expected}")
    else:
        question, answer = row.text(["prompt"], expected), row.text(["solution"], expected)
    return Problem(f"dapo-{row.number}", "math", question, unboxed(answer))


def read_deepscaler(row: Row) -> Problem:
    """`problem` and `answer`, which is LaTeX; a number is read as text."""
    expected = 'expected {"problem": "…", "answer": "…"}'
    answer = row.fields.get("answer")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float) or answer == "":
        raise ValueError(f"{row.where}: no answer; {expected}")
    question = row.text(["problem"], expected)
    return Problem(f"deepscaler-{row.number}", "math", question, unboxed(str(answer)), "math")
