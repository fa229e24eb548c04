"""Turn finished episodes into rewarded rows: one row per turn.

`own_correct`, `outcome` and `reward` stay three separate numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainers.config import TrainConfig
from trainers.episodes import Episode, Row, Turn


def reward_rows(episodes: Sequence[Episode], config: TrainConfig) -> list[Row]:
    """Rows of all episodes that were not given up, in episode and turn order, without advantage."""
    return [
        Row(
            turn,
            episode.problem.id,
            episode.sample,
            episode.outcome,
            turn_reward(turn, episode.outcome, config),
        )
        for episode in episodes
        if episode.failure is None
        for turn in episode.turns
    ]


def turn_reward(turn: Turn, outcome: bool, config: TrainConfig) -> float:
    """Reward of one turn.

    outcome  1 if the episode was solved, for every turn (the paper's broadcast)
    own      1 if the turn is right by itself; the outcome where that is undefined
    mix      mix * outcome + (1 - mix) * own
    rubric   the paper's Voting-V2 rubric, see `rubric_reward`
    """
    own = outcome if turn.own_correct is None else turn.own_correct
    match config.reward:
        case "outcome":
            return float(outcome)
        case "own":
            return float(own)
        case "mix":
            return config.mix * float(outcome) + (1 - config.mix) * float(own)
        case "rubric":
            return rubric_reward(turn, outcome)


def rubric_reward(turn: Turn, outcome: bool) -> float:
    """Voting V2 of arXiv 2605.24202's code, carried over to roles it does not name.

    A solver earns 0.5 for a right answer, 0.5 for a solved episode, and loses 1 for a wrong answer
    that could be read. A role that is given solutions earns +1 if it is right and -1 if not, but 0
    when none it was given was correct. A planner earns the outcome.
    """
    if turn.own_correct is None:
        return float(outcome)
    if turn.kind == "verdict":
        return 1.0 if turn.own_correct else -1.0
    if turn.offered_correct is not None:
        return 0.0 if not turn.offered_correct else (1.0 if turn.own_correct else -1.0)
    is_confidently_wrong = not turn.own_correct and turn.parse_ok
    return 0.5 * turn.own_correct + 0.5 * outcome - 1.0 * is_confidently_wrong
