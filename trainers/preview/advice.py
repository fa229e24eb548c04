"""Name what a configuration will do that nobody wants, before a run starts: told, not refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from gradlab.baselines import CENTRED
from gradlab.own_parts import is_own
from trainers.config import TrainConfig
from trainers.models.language import TINY, pick_device
from trainers.presets import preset, usual_preset

MADE_FOR = {name: "programs" if name == "tiny-code" else "arithmetic" for name in ("tiny", *TINY)}
"""Embedded model -> the one task that it was taught."""
DIGITS = 2
"""Of the numbers that the embedded models were taught to add."""


def advice(config: TrainConfig) -> Iterator[str]:
    """Sentences about a configuration, none for most."""
    for model in config.models:
        alone = replace(config, model=model, policy_model={})
        if model in MADE_FOR:
            yield from _another_task(alone)
        else:
            yield from _settings_of_the_embedded(alone)
    if config.samples == 1:
        yield from _nothing_to_compare(config)


def _another_task(config: TrainConfig) -> Iterator[str]:
    made_for = MADE_FOR[config.model]
    if config.task != made_for:
        yield (
            f"--model {config.model} was made for --task {made_for} and knows nothing of "
            f"'{config.task}': expect 0 %, before and after; give another --model for it"
        )
    elif made_for == "arithmetic" and config.difficulty != DIGITS:
        yield (
            f"--model {config.model} was taught numbers of {DIGITS} digits; --difficulty is "
            f"{config.difficulty}"
        )


def _settings_of_the_embedded(config: TrainConfig) -> Iterator[str]:
    """Values that no other model is usually trained with."""
    name = usual_preset(config)
    small, usual = TrainConfig(), preset(name)
    compared = ["max_response_tokens", "learning_rate"]
    if pick_device(config.device, check=False).type == "cuda":  # a CPU is slower in bfloat16
        compared.append("dtype")
    left = [
        f"--{option.replace('_', '-')} {getattr(config, option)} ({getattr(usual, option)})"
        for option in compared
        if getattr(config, option) == getattr(small, option) != getattr(usual, option)
    ]
    if left:
        yield (
            f"--model {config.model} with settings that suit the embedded models: "
            f"{', '.join(left)}; in brackets what --preset {name} uses"
        )


def _nothing_to_compare(config: TrainConfig) -> Iterator[str]:
    """The roles whose advantages are all 0 with one episode per problem."""
    if config.advantage not in CENTRED:
        return  # it compares with a batch, or with nothing; nobody knows what one of ones own does
    silent = [
        role for role in config.build_workflow().roles
        if role not in config.freeze and not _can_learn_from_one(config, role)
    ]  # fmt: skip
    if not silent:
        return
    roles = set(config.build_workflow().roles) - set(config.freeze)
    who = "all advantages" if set(silent) == roles else f"all advantages of {', '.join(silent)}"
    yield (
        f"--samples is 1, so every group has one episode: {who} are 0 with --group-by "
        f"{config.group_by}, --singleton {config.singleton} and --reward {config.reward}; give "
        "--samples 2 or more"
    )


def _can_learn_from_one(config: TrainConfig, role: str) -> bool:
    """Whether one episode can give a role's turns advantages other than 0."""
    agents = sum(agent.role == role for agent in config.build_workflow().agents)
    # Nobody knows how often a workflow of one's own asks; twice is enough to compare.
    rounds = 2 if is_own(config.workflow) else 1
    if config.workflow == "evaluator_optimizer":
        rounds = config.rounds
    most = {"role": agents * rounds, "role_number": rounds, "role_turn": 1}[config.group_by]
    # Rounds end early, and a plan may have one strategy; all voters always vote.
    is_fixed = "votes" in config.build_workflow().options and not is_own(config.workflow)
    can_be_alone = most == 1 or not is_fixed
    # An outcome is the same for every turn of its episode.
    can_differ = (
        is_own(config.reward)
        or config.reward in ("own", "rubric")
        or (config.reward == "mix" and config.mix < 1)
    )
    return (can_be_alone and config.singleton == "reward") or (most > 1 and can_differ)
