"""Pay for being right and, a little, for being brief; a debater also for winning the other over.

    gradlab train --reward examples/brief_reward.py:right_and_brief

A reward gets the episode and one of its turns and returns a number, or numbers with names: the
reward is their sum, and the run records the mean of each by role and step.
"""


def right_and_brief(episode, turn):
    length = len(turn.response_ids)
    return {
        "solved": 1.0 if episode.is_solved else 0.0,
        "right": 0.5 if turn.own_correct else 0.0,
        "brief": max(0.0, 0.2 - 0.02 * length) if turn.parse_ok else 0.0,
    }


def by_rank(reward_K):
    """An advantage of one's own: by rank in the group, so that outliers weigh no more than others.

    gradlab train --advantage examples/brief_reward.py:by_rank
    """
    rank_K = reward_K.argsort().argsort().astype(float)
    for value in set(reward_K):  # equal rewards have equal ranks
        rank_K[reward_K == value] = rank_K[reward_K == value].mean()
    return rank_K - rank_K.mean()
