"""A solver may have a calculator work something out before it answers: a tool between two waves.

    gradlab train --workflow examples/calculator.py:with_calculator

The tool is any Python function. It is called with what the model wrote, so it must take anything:
here it adds, and gives None for all else.
"""

import re

from gradlab import Agent, Ask, workflow


@workflow(roles={"solver": 1, "finisher": 1})
def with_calculator(problem, *, calls=2):
    notes = ""
    for _ in range(calls):
        prompt = f"w{problem.question} t{notes}"
        [working] = yield [Ask(Agent("solver"), prompt, read_sum, kind="plan")]
        if working.value is None:
            break
        result = add(*working.value)  # the tool
        notes = f" {working.value[0]}+{working.value[1]}={result}"
    [final] = yield [Ask(Agent("finisher"), f"s{problem.question}{notes}")]
    return final.value


def read_sum(text):
    """The sum that the solver wants to have worked out, as in `80+11=`; None if it wants none."""
    found = re.match(r"(\d{1,6})\+(\d{1,6})", text)
    return (int(found[1]), int(found[2])) if found else None


def add(left, right):
    return left + right
