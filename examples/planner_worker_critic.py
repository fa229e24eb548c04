"""A planner chooses a way, workers go it, and a critic sends a worker back until it is content.

    gradlab train --workflow examples/planner_worker_critic.py:plan_work_criticize \
        --workflow-options workers=2 rounds=2

A worker's chat grows with the conversation: it remembers what it said and what the critic replied.
"""

from gradlab import Agent, Ask, Message, Reading, workflow


@workflow(roles={"planner": 1, "worker": "workers", "critic": 1})
def plan_work_criticize(problem, prompts, *, workers=2, rounds=2):
    [plan] = yield [Ask(Agent("planner"), f"o{problem.question} {workers}", read_plan, kind="plan")]
    ways = [plan.value[i % len(plan.value)] for i in range(workers)]
    chats = [(Message("user", f"w{problem.question} {way}"),) for way in ways]
    working = list(range(workers))
    answers = [None] * workers
    for _ in range(rounds):
        # Without a reader of our own an answer is read as the model was taught to give it.
        replies = yield [Ask(Agent("worker", i), chats[i]) for i in working]
        for i, reply in zip(working, replies, strict=True):
            answers[i] = reply.value
            chats[i] += (Message("assistant", reply.text),)
        doubted = []
        for i, reply in zip(working, replies, strict=True):
            is_right = bool(reply.is_correct)
            [verdict] = yield [
                Ask(
                    Agent("critic"),
                    f"e{problem.question} {reply.text}",
                    read_verdict,
                    judge=lambda accepts, is_right=is_right: accepts == is_right,
                    offered_correct=is_right,
                    kind="verdict",
                )
            ]
            if not verdict.value:
                doubted.append(i)
                chats[i] += (Message("user", f"r{problem.question} {reply.text} {verdict.text}"),)
        if len(doubted) < len(working):
            return next(answers[i] for i in working if i not in doubted)
        working = doubted
    return answers[0]


def read_plan(text):
    """The letters of the ways, 't' tens first, 'o' ones first; 'd' (directly) if there are none."""
    letters = [letter for letter in text if letter in "tod"]
    return Reading(letters or ["d"], parse_ok=bool(letters))


def read_verdict(text):
    """Whether the critic accepts; what cannot be read does not."""
    return Reading("[y]" in text, parse_ok="[y]" in text or "[n]" in text)
