"""Two debaters answer, see each other's answer, and answer again until they agree.

    gradlab train --workflow examples/debate.py:debate --workflow-options rounds=3

Its prompts are those of the embedded model, which knows a question and answers in a bracket:
`g80+11` is answered by `[91]`, `r80+11 [90] [n]` asks to answer again. A chat model gets sentences.
"""

from gradlab import Agent, Ask, workflow


@workflow(roles={"debater": 2})
def debate(problem, *, rounds=3):
    prompts = [f"g{problem.question}"] * 2
    for _ in range(rounds):
        replies = yield [Ask(Agent("debater", i), prompts[i], read) for i in range(2)]
        mine, theirs = (reply.value for reply in replies)
        if mine == theirs and mine is not None:
            return mine  # they agree: the debate is over
        # Each sees what it said and, as what speaks against it, what the other one said.
        said = [reply.text for reply in replies]
        prompts = [f"r{problem.question} {said[i]} {said[1 - i]}" for i in range(2)]
    return mine if mine is not None else theirs


def read(text):
    """What stands in the bracket; None where there is none, which is counted."""
    _, bracket, rest = text.partition("[")
    return rest.partition("]")[0] if bracket and "]" in rest else None
