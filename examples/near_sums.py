"""Sums whose answers are graded: full marks for the right one, some for a near one.

    gradlab train --task examples/near_sums.py:load --task-options most=40 --eval-problems 20

Accuracy counts full marks only; the reward `outcome` pays the grade.
"""


def load(most=99):
    """Problems, and the judge of their answers; the arguments are given with --task-options."""
    problems = [
        {"id": f"near-{a}-{b}", "question": f"{a}+{b}", "answer": str(a + b)}
        for a in range(10, most)
        for b in range(10, most, 3)
    ]
    return problems, grade


def grade(problem, answer):
    """1 for the sum, half a mark less for every digit that is off; any text is to be judged."""
    if not answer.isascii() or not answer.isdecimal() or len(answer) > 6:
        return 0.0
    missed = abs(int(answer) - int(problem.answer))
    return 1.0 if missed == 0 else 0.5 if missed in (1, 10) else 0.0
