"""Measure what a gap between sampler and trainer does to role gradients, and what corrections undo.

    python bench/correction.py [--seeds 3] [--write]

The workflow is played by a copy of the policy whose weights are rounded (to bfloat16; to 8 bits a
row, as engines that quantize do; or one learning step old), and trained in float32. For each role:
the gradient of its rows with the ratio taken over the trainer's log-probabilities, without and with
each correction, against the one without. What it should have been is the mean gradient over the
trainer's own samples, which a finite sample hides: so the table also has the cosine between two
halves of the episodes, which says how much of a gradient is noise.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models import machine, tabled
from torch import Tensor

from gradlab.ledger import RoleTally
from trainers.batches import with_old_logprobs
from trainers.config import TrainConfig
from trainers.correction import corrected
from trainers.episodes import Turn, trained_turns
from trainers.judge import Judge
from trainers.learn import accumulate
from trainers.models.language import LanguageModel, load_language_model
from trainers.models.local_sampler import LocalSampler
from trainers.policies import Policy, build_policies
from trainers.rollout import rollout
from trainers.tasks.load import load_task

RESULT = Path(__file__).parent / "results" / "correction.md"
WAYS = [(kind, level) for kind in ("tis", "mis") for level in ("token", "sequence")]
ROLES = ("generator", "aggregator")


def to_bfloat16(weight: Tensor) -> Tensor:
    return weight.bfloat16().float()


def to_8_bits(weight: Tensor) -> Tensor:
    """255 levels between the largest magnitudes of each row."""
    if weight.ndim < 2:
        return weight
    scale = weight.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127
    return (weight / scale).round() * scale


def one_step_old(weight: Tensor) -> Tensor:
    return weight


SAMPLERS: dict[str, Callable[[Tensor], Tensor]] = {
    "float32": one_step_old,
    "bfloat16 weights": to_bfloat16,
    "8-bit weights": to_8_bits,
    "one step old": one_step_old,
}


def make(config: TrainConfig, seed: int) -> tuple[LanguageModel, Policy]:
    """A policy some steps into training: adapters away from zero, by the same draw for a seed."""
    torch.manual_seed(seed)
    language = load_language_model(config, config.policies)
    for name, parameter in language.model.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.02 * torch.randn_like(parameter)
    (policy,) = build_policies({config.model: language}, config).values()
    return language, policy


def play(config: TrainConfig, sampler: str, seed: int) -> list[Turn]:
    """Turns of one step as that sampler plays it, with advantages of their groups."""
    language, policy = make(config, seed)
    draw = torch.Generator().manual_seed(1000 + seed)
    with torch.no_grad():
        for _, parameter in language.model.named_parameters():
            parameter.copy_(SAMPLERS[sampler](parameter))
        if sampler == "one step old":  # Adam moves every element by about the learning rate
            for parameter in policy.parameters:
                sign = torch.randn(parameter.shape, generator=draw).sign().to(parameter.device)
                parameter.add_(config.learning_rate * sign)
    task = load_task("arithmetic", heldout=1, seed=seed)
    episodes = rollout(
        LocalSampler({config.model: language}), config.build_workflow(), config.speakers(),
        task.train[: config.problems_per_step], config.samples, (seed, 1), Judge(),
    )  # fmt: skip
    turns = trained_turns(episodes)
    rewards: dict[tuple[str, Any], list[float]] = {}
    for turn in turns:
        rewards.setdefault((turn.problem, turn.agent), []).append(turn.outcome)
    return [
        replace(turn, advantage=turn.outcome - float(np.mean(rewards[turn.problem, turn.agent])))
        for turn in turns
    ]


def gradient(
    language: LanguageModel, policy: Policy, turns: Sequence[Turn], role: str, config: TrainConfig
) -> Tensor:
    mine = [t if t.agent.role == role else replace(t, advantage=0.0) for t in turns]
    problems = {problem: i for i, problem in enumerate(dict.fromkeys(t.problem for t in mine))}
    tallies = {name: RoleTally() for name in policy.roles}
    accumulate(language, policy, mine, problems, config, 1, tallies)
    flat = torch.cat([p.grad.flatten() for p in policy.parameters])  # type: ignore[union-attr]
    policy.optimizer.zero_grad(set_to_none=True)
    return flat


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a, b) / (a.norm() * b.norm()).clamp_min(1e-30))


def measure(config: TrainConfig, sampler: str, seed: int) -> dict[str, dict[str, float]]:
    turns = play(config, sampler, seed)
    language, policy = make(config, seed)
    language.activate(policy.name)
    turns = with_old_logprobs(language, turns, config)
    found: dict[str, dict[str, float]] = {}
    for role in ROLES:
        plain = gradient(language, policy, turns, role, config)
        halves = [
            gradient(language, policy, [t for t in turns if t.sample % 2 == k], role, config)
            for k in (0, 1)
        ]
        gaps = [
            abs(float(old) - new)
            for t in turns if t.agent.role == role and t.old_logprobs is not None
            for old, new in zip(t.old_logprobs, t.logprobs, strict=True)
        ]  # fmt: skip
        row = {"gap": statistics.mean(gaps), "largest": max(gaps), "halves": cosine(*halves)}
        for kind, level in WAYS:
            asked = replace(config, rollout_correction=kind, rollout_correction_level=level)
            tallies = {name: RoleTally() for name in policy.roles}
            weighed = corrected(turns, asked, tallies)
            there = gradient(language, policy, weighed, role, asked)
            row[f"{kind} {level}"] = cosine(there, plain)
            row[f"ess {level}"] = tallies[role].correction_ess
            row[f"cut {kind} {level}"] = tallies[role].correction_cut
        found[role] = row
    return found


def settings(model: str, dtype: str, device: str, problems: int = 16) -> TrainConfig:
    return TrainConfig(
        model=model, routing="shared", probe="off", old_logprobs="trainer", device=device,
        dtype=dtype, threads=1, problems_per_step=problems, samples=8,
    )  # fmt: skip


def table(config: TrainConfig, samplers: Sequence[str], num_seeds: int) -> list[str]:
    """Per sampler and role: gaps, effective sample sizes, cosines and cuts; medians of seeds."""
    rows = []
    for sampler in samplers:
        seeds = [measure(config, sampler, seed) for seed in range(num_seeds)]
        for role in ROLES:
            values = {
                key: statistics.median(seed[role][key] for seed in seeds) for key in seeds[0][role]
            }
            angles = " | ".join(f"{values[f'{kind} {level}']:.4f}" for kind, level in WAYS)
            cuts = " | ".join(f"{100 * values[f'cut {kind} {level}']:.1f}" for kind, level in WAYS)
            rows.append(
                f"| {sampler} | {role} | {values['gap']:.1e} | {values['largest']:.1e} "
                f"| {values['ess token']:.4f} | {values['ess sequence']:.4f} | {angles} | {cuts} "
                f"| {values['halves']:.2f} |"
            )
            assert all(math.isfinite(value) for value in values.values())
    names = [f"{kind}, {level}" for kind, level in WAYS]
    columns = [
        "sampler", "role", "mean gap (nats)", "largest", "ESS, tokens", "ESS, sequences",
        *[f"cosine, {name}" for name in names], *[f"cut %, {name}" for name in names],
        "cosine of halves",
    ]  # fmt: skip
    return tabled(columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", default="tiny-1m")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--write", action="store_true", help=f"replace {RESULT.name}")
    options = parser.parse_args()
    config = settings(options.model, options.dtype, options.device)
    rows = table(config, list(SAMPLERS), options.seeds)
    text = "\n".join(
        [
            "# What a gap between sampler and trainer does to role gradients",
            "",
            f"`python bench/correction.py`: {options.model}, Voting, shared policy, 16 problems x "
            f"8 episodes, trained in {options.dtype}, cap {config.rollout_correction_cap:g}; "
            f"medians of {options.seeds} seeds. Cosines are between the role's corrected and "
            "uncorrected gradient; that of halves is between the gradients of even and odd "
            "episodes, without correction.",
            "",
            machine(("torch", "transformers")),
            "",
            *rows,
            "",
        ]
    )
    print(text)
    if options.write:
        RESULT.write_text(text)


if __name__ == "__main__":
    main()
