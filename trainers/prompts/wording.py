"""Word what each role of a chat model is told, for every kind of problem."""

from __future__ import annotations

from dataclasses import dataclass

from trainers.tasks.problem import Kind


@dataclass(frozen=True)
class Wording:
    """Instructions of the roles; `trainers.prompts.chat` puts the problem and what was said
    around.
    """

    answer: str
    """The form of an answer: what `Prompts.reader` reads."""
    generate: str
    aggregate: str
    evaluate: str
    again: str
    """Refine, in the paper's shared history."""
    reviewed: str
    """Introduces the feedback to a refiner."""
    refine: str
    plans: str
    """What an orchestrator proposes."""
    not_yet: str
    """What it leaves to the workers."""
    work: str
    synthesize: str
    solution: str
    """What a solution is called."""


_VERDICT = r"End with \boxed{Correct} or \boxed{Incorrect}."
_CHOICE = r"End with its number, for example \boxed{1}."

MATH = Wording(
    answer=r"Put your final answer within \boxed{}.",
    generate="Solve this problem step by step.",
    aggregate=(
        "You are an expert reviewer. Check the reasoning of each proposed solution below and "
        f"pick the one most likely to be correct. {_CHOICE}"
    ),
    evaluate=(
        "Check the solution step by step. Do not reveal the answer. If it is wrong, name the "
        f"main mistake briefly. {_VERDICT}"
    ),
    # The paper's template is never formatted: its model sees the doubled braces.
    again=(
        "The solution above is wrong. Use a completely different method. "
        r"Put your final answer within \boxed{{}}."
    ),
    reviewed="A reviewer found a mistake in your solution:",
    refine="Keep what is right, correct the mistake, and give the whole solution again.",
    plans="strategies",
    not_yet="carry it out",
    work="Solve this problem completely, taking the given strategy as your main approach.",
    synthesize=(
        "Several solutions to one problem follow. Compare them: agreement between different "
        "approaches is a sign of correctness. Decide, and solve it yourself."
    ),
    solution="Solution",
)

_FENCED = (
    "Give the whole program, ready to run, in one block that begins with ```python and ends with "
    "```. It is the last block of your response."
)

CODE = Wording(
    answer=_FENCED,
    generate=(
        "You are an experienced competitive programmer. Solve this problem with a correct and "
        "efficient Python program. Keep exactly to the input and output, or to the function "
        "signature, that the problem states, and mind the edge cases."
    ),
    aggregate=(
        "You are an expert reviewer of programs. Check the logic, the edge cases and the running "
        "time of each proposed program below and pick the one most likely to pass all tests. "
        f"{_CHOICE}"
    ),
    evaluate=(
        "Review the program without running it: its logic, its edge cases and its running time. "
        "Do not write a corrected program. If it is wrong, describe the main problem briefly. "
        f"{_VERDICT}"
    ),
    again=(
        "The program above is wrong. Address the feedback; if the logic was wrong from the start, "
        f"use a different approach. {_FENCED}"
    ),
    reviewed="A reviewer found a problem in your program:",
    refine="Keep the parts that are right, correct the problem, and write the program again.",
    plans="algorithms",
    not_yet="write code",
    work=(
        "Solve this problem with a correct and efficient Python program, taking the given strategy "
        "as your main approach. Keep exactly to the input and output, or to the function "
        "signature, that the problem states, and mind the edge cases."
    ),
    synthesize=(
        "Several programs for one problem follow. Judge which are correct and fast enough; where "
        "different approaches agree they are more likely right. Then write the best solution, as a "
        "copy of one of them or a correction."
    ),
    solution="Program",
)

_LANGUAGE = (
    "Each pair below is input>output of one function of x. Find it as an expression of integers, "
    "x, + - * // %, parentheses, min and max."
)

EXPRESSION = Wording(
    answer=r"Put the expression within \boxed{}.",
    generate=f"{_LANGUAGE} Think step by step.",
    aggregate=f"{_LANGUAGE} Check each proposed solution and pick the best one. {_CHOICE}",
    evaluate=(
        f"{_LANGUAGE} Check the solution on every pair. Do not reveal the answer. If it is wrong, "
        f"name a pair that it gets wrong. {_VERDICT}"
    ),
    again=r"The solution above is wrong. Find another. Put the expression within \boxed{}.",
    reviewed=MATH.reviewed,
    refine="Correct the mistake and give the expression again.",
    plans="ways to find the function",
    not_yet="find it yet",
    work=f"{_LANGUAGE} Take the given strategy as your main approach.",
    synthesize=f"{_LANGUAGE} Several solutions follow. Check them on every pair, then decide.",
    solution="Solution",
)

WORDING: dict[Kind, Wording] = {"math": MATH, "code": CODE, "expression": EXPRESSION}
