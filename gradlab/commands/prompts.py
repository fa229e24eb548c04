"""gradlab prompts: print what every role is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from gradlab.commands.parsing import parse, split_pairs


@dataclass(frozen=True)
class PromptsOptions:
    """Print what every role is asked, exactly as the model sees it.

    The workflow is played on a sample problem with canned replies. No weights are loaded.
    """

    workflow: str = "voting"
    """The workflow whose roles are asked: voting, evaluator_optimizer, orchestrator_workers, solo,
    or one of your own as my_flows.py:debate."""
    workflow_options: dict[str, str] = field(default_factory=dict)
    """Keyword arguments of a workflow of your own, e.g. rounds=4."""
    kind: Literal["math", "code", "expression"] = "math"
    """The kind of the sample problem."""
    model: str = "tiny"
    """Whose chat template: an embedded model, smollm2-135m, a hub id or a local directory."""
    routing: str = "isolated"
    """Which policies --policy-model may name, as for gradlab train."""
    policy_model: dict[str, str] = field(default_factory=dict)
    """--model of single policies, e.g. aggregator Qwen/Qwen3-1.7B: each role is asked by the
    template of its own."""
    history: Literal["own", "shared"] = "own"
    """What evaluator and refiner see: self-contained chats, or the paper's shared one."""
    examples: bool = False
    """Whether a worked example is shown first, to chat models."""
    votes: int = 3
    """Parallel generators of voting."""
    rounds: int = 3
    """Rounds of evaluator_optimizer; the canned verdict is no."""
    workers: int = 3
    """Workers of orchestrator_workers."""


def prompts(arguments: Sequence[str]) -> int:
    """Print what every role is asked, as the model sees it."""
    options = parse(PromptsOptions, "prompts", split_pairs(PromptsOptions, arguments))
    from trainers.config import TrainConfig
    from trainers.preview.prompts import show_prompts

    given = {name: value for name, value in vars(options).items() if name != "kind"}
    show_prompts(TrainConfig(**given), options.kind)
    return 0
