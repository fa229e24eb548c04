"""Measure how the updates of a step grow with votes, rows, tokens and roles.

    python bench/scaling.py [--repeat 3] [--only votes]

Rows are made, not sampled, with the lengths that voting has on the embedded model: a generator
reads 8 tokens and says 7, the aggregator reads 6 and every vote, and says 4. Times are CPU seconds
of `learn` under a shared policy, the least of alternating repetitions: without probe, with the
exact one, and without probe in micro-batches that are filled up. The exponent of a sweep is the
slope of log time over its upper half: 1 is linear.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from gradlab.records import Agent
from trainers.config import TrainConfig
from trainers.episodes import Turn
from trainers.learn import learn
from trainers.models.language import load_language_models
from trainers.policies import Policy, build_policies

EPISODES = 32
SWEEPS = {"votes": (1, 2, 4, 8, 16), "rows": (1, 2, 4, 8), "tokens": (8, 16, 32, 64),
          "roles": (1, 2, 4, 8)}  # fmt: skip
WAYS = ("off", "exact", "off, filled")


def rows_of(agents: dict[Agent, tuple[int, int]], episodes: int) -> list[Turn]:
    """Turns of every agent in every episode; agent -> prompt and response tokens."""
    draw = np.random.default_rng(0)
    return [
        Turn(
            agent, f"p{episode // 4}", episode, 0, "answer", "", (5,) * prompt, "",
            tuple(draw.integers(4, 20, response).tolist()), (-0.5,) * response, True, False, None,
            None, reward=1.0, advantage=float(draw.normal()),
        )
        for episode in range(episodes)
        for agent, (prompt, response) in agents.items()
    ]  # fmt: skip


def case(sweep: str, size: int) -> dict[Agent, tuple[int, int]]:
    """Who speaks, with how many tokens."""
    if sweep == "roles":
        return {Agent(f"role{i}"): (24, 8) for i in range(size)}
    votes, said = (size, 7) if sweep == "votes" else (3, size if sweep == "tokens" else 7)
    lengths = {Agent("generator", i): (8, said) for i in range(votes)}
    return lengths | {Agent("aggregator"): (6 + said * votes, 4)}


def policy_of(folder: Path, agents: list[Agent], probe: str) -> tuple[TrainConfig, Policy]:
    counts = {agent.role: 0 for agent in agents}
    for agent in agents:
        counts[agent.role] += 1
    flow = folder / "flow.py"
    flow.write_text(
        "from gradlab import Agent, Ask, workflow\n"
        f"@workflow(roles={counts})\n"
        "def flow(problem):\n"
        "    [reply] = yield [Ask(Agent('x'), problem.question)]\n"
        "    return reply.value\n"
    )
    config = TrainConfig(
        out=folder / "run", workflow=f"{flow}:flow", routing="shared", device="cpu", threads=1,
        probe=probe, updates="fixed", max_response_tokens=64,
    )  # type: ignore[arg-type]  # fmt: skip
    languages = load_language_models(config)
    return config, build_policies(languages, config)["shared"]


def runner(folder: Path, sweep: str, size: int, way: str) -> Callable[[], float]:
    """A function that trains one step and returns its CPU seconds."""
    lengths = case(sweep, size)
    rows = rows_of(lengths, EPISODES * (size if sweep == "rows" else 1))
    config, policy = policy_of(folder, list(lengths), "exact" if way == "exact" else "off")
    config = replace(config, micro_batches="filled" if way == "off, filled" else "cut")

    def run() -> float:
        started = time.process_time()
        learn(policy.language, policy, rows, config, 1)
        return time.process_time() - started

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", choices=SWEEPS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*rollout and trainer log-probs differ")
    for sweep, sizes in SWEEPS.items():
        if given.only not in (None, sweep):
            continue
        print(f"| {sweep} | {' | '.join(WAYS)} |\n|---|{'---|' * len(WAYS)}")
        least = np.full((len(sizes), len(WAYS)), np.inf)
        for i, size in enumerate(sizes):
            with tempfile.TemporaryDirectory() as folder:
                runs = [runner(Path(folder), sweep, size, way) for way in WAYS]
                for run in runs:
                    run()
                for _ in range(given.repeat):
                    for way, run in enumerate(runs):
                        least[i, way] = min(least[i, way], run())
            print(
                f"| {size} | {' | '.join(f'{seconds:.3f}' for seconds in least[i])} |", flush=True
            )
        upper = slice(len(sizes) // 2, None)
        slopes = np.polyfit(np.log(sizes[upper]), np.log(least[upper]), 1)[0]
        print(f"| exponent | {' | '.join(f'{slope:.2f}' for slope in slopes)} |\n", flush=True)


if __name__ == "__main__":
    main()
