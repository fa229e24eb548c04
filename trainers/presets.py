"""Name whole configurations: defaults, the paper's choices and cells, and the demo's runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from trainers.config import TrainConfig


def clean() -> TrainConfig:
    """The defaults: the pitfalls of the paper's code fixed. `gradlab train`, under a minute."""
    return TrainConfig()


def faithful() -> TrainConfig:
    """The choices and quirks of arXiv 2605.24202's code, on the embedded model.

    Batch sizes are scaled down to it; see `cell` for the paper's own sizes. Quirks kept: malformed
    evaluator chats (chat models only: the compact prompts of tiny keep no history), raw-reward
    singletons, one schedule for all policies that ticks after each and starts at 0, length-ordered
    mini-batches, partial mini-batches divided by the full size, and, where coherence is damped, a
    mean that starts at the first gradient. The paper pools the workers of
    orchestrator_workers in one group: add --group-by role there.
    """
    return TrainConfig(
        temperature=0.7,
        history="shared",
        singleton="reward",
        scheduler_tick="policy",
        warmup_steps=15,
        minibatches="length",
        partial_minibatch="full",
        old_logprobs="trainer",
        coherence_start="first",
    )


def smollm2() -> TrainConfig:
    """SmolLM2-135M on GSM8K, sized for two CPU cores: a minute or two a step, 4 GB of memory.

    It solves few of these problems, so a small entropy bonus keeps a gradient in batches that are
    all wrong.
    """
    return TrainConfig(
        model="smollm2-135m",
        task="gsm8k",
        steps=2,
        problems_per_step=1,
        samples=4,
        eval_problems=2,
        eval_every=2,
        max_response_tokens=64,
        learning_rate=1e-4,
        entropy_coefficient=1e-3,
        rows_per_update=16,
        micro_tokens=1024,
    )


def programs() -> TrainConfig:
    """Voting on tiny-code: short programs from examples. `gradlab train --task programs`."""
    return TrainConfig(
        model="tiny-code",
        task="programs",
        max_response_tokens=24,
        learning_rate=6e-4,  # at 1e-3 accuracy climbs faster, and may fall back after 40 steps
    )


DEMO = Path("runs/demo")


def demo_shared() -> TrainConfig:
    """Voting on tiny, one adapter for both roles: climbs within a minute."""
    return TrainConfig(
        out=DEMO / "shared",
        routing="shared",
        steps=60,
        eval_every=3,
        eval_problems=200,
        learning_rate=1.5e-3,
    )


def demo_isolated() -> TrainConfig:
    """Voting on tiny, one adapter per role: climbs within a minute."""
    return replace(demo_shared(), out=DEMO / "isolated", routing="isolated", learning_rate=1e-3)


def demo_cliff() -> TrainConfig:
    """A harsh setting: many small updates, and a learning rate that ramps up to 8e-3.

    It climbs while the rate is small and falls once it is not; which step that is, training says.
    Checkpoints are frequent enough that one from before can be replayed (`diagnose --confirm`).
    """
    return replace(
        demo_isolated(),
        out=DEMO / "cliff",
        learning_rate=8e-3,
        warmup_steps=60,
        rows_per_update=48,
        checkpoint_every=10,
    )


PRESETS: dict[str, Callable[[], TrainConfig]] = {
    "clean": clean,
    "faithful": faithful,
    "smollm2": smollm2,
    "programs": programs,
    "demo-shared": demo_shared,
    "demo-isolated": demo_isolated,
    "demo-cliff": demo_cliff,
}

CELL = re.compile(
    r"(?P<workflow>Voting|EvalOpt|OrchWorkers|Single)-(?P<routing>IP|SP)-"
    r"(?P<size>0\.6B|1\.7B|4B|tiny)-(?P<task>Math|Code)"
)
_WORKFLOWS: dict[str, str] = {
    "Voting": "voting",
    "EvalOpt": "evaluator_optimizer",
    "OrchWorkers": "orchestrator_workers",
    "Single": "solo",
}
_MATH_PROMPT_TOKENS = {"Voting": 20480, "EvalOpt": 30720, "OrchWorkers": 20480, "Single": 15360}


def cell(name: str) -> TrainConfig:
    """A cell of the paper's matrix, e.g. 'Voting-IP-1.7B-Math': Qwen3, rank 64, 64 x 8 episodes.

    500 steps of 512 episodes, responses drawn by vLLM in the same process and on the same GPU;
    docs/gpu.md has memory and time. DAPO-Math-17K, or DeepCoder for Code, is read from --data. Size
    'tiny' is the cell's embedded counterpart, see `tiny_cell`.
    """
    match = CELL.fullmatch(name)
    if match is None:
        raise ValueError(f"'{name}' is no cell; expected e.g. Voting-IP-1.7B-Math ({CELL.pattern})")
    if match["size"] == "tiny":
        return tiny_cell(name, match)
    is_code = match["task"] == "Code"
    code_prompt = 4096 if match["workflow"] == "Single" else 10240
    return replace(
        faithful(),
        out=Path("runs") / name,
        model=f"Qwen/Qwen3-{match['size']}",
        dtype="bfloat16",
        device="cuda",
        task="deepcoder" if is_code else "dapo-math",
        split="paper",
        code_workers=16,
        workflow=_WORKFLOWS[match["workflow"]],
        routing="isolated" if match["routing"] == "IP" else "shared",
        lora_rank=64,
        lora_alpha=32,
        gradient_checkpointing=True,
        steps=500,
        eval_every=10,
        checkpoint_every=5,
        keep_states=2,
        keep_state_every=50,
        eval_problems=1000 if is_code else 1412,
        problems_per_step=64,
        samples=8,
        sampler="vllm",
        sampler_memory=0.6 if match["size"] == "4B" else 0.75,  # of 80 GB, beside the trainer
        rollout_rows=256,
        max_prompt_tokens=code_prompt if is_code else _MATH_PROMPT_TOKENS[match["workflow"]],
        max_response_tokens=2048 if is_code else 5120,
        rounds=2 if is_code else 3,
        rows_per_update=512,
        micro_tokens=8192,
        learning_rate=2e-5,
        group_by="role" if is_code or match["workflow"] != "Voting" else "role_number",
    )


def fitting(model: str | None, task: str | None) -> str:
    """Name of the preset that goes with a model and a task; None: nobody asked for one."""
    if model == "smollm2-135m":
        return "smollm2"
    if model == "tiny-code" or (model is None and task == "programs"):
        return "programs"
    return "clean"


def usual_preset(config: TrainConfig) -> str:
    """Name of the preset with usual settings for a model that is not embedded."""
    if config.model == "smollm2-135m":
        return "smollm2"
    short = {known: name for name, known in _WORKFLOWS.items()}
    workflow = short.get(config.workflow, "Voting")  # whose settings suit one of one's own best
    sharing = "SP" if config.routing == "shared" else "IP"
    size = next((size for size in ("0.6B", "4B") if config.model.endswith(f"-{size}")), "1.7B")
    kind = "Code" if config.task in ("humaneval", "mbpp", "deepcoder", "livecodebench") else "Math"
    return f"{workflow}-{sharing}-{size}-{kind}"


def tiny_cell(name: str, match: re.Match[str]) -> TrainConfig:
    """A cell on the embedded models, e.g. 'EvalOpt-SP-tiny-Code': a minute or two on two cores.

    Sums for Math, programs for Code; sizes and rates of the demo, groups and rounds of the paper:
    its code rewards all of a role's samples on a problem together, and revises once less.
    """
    is_code = match["task"] == "Code"
    is_pooled = is_code or match["workflow"] != "Voting"
    return replace(
        programs() if is_code else demo_isolated(),
        out=Path("runs") / name,
        workflow=_WORKFLOWS[match["workflow"]],
        routing="isolated" if match["routing"] == "IP" else "shared",
        rounds=2 if is_code else 3,
        group_by="role" if is_pooled else "role_number",
        eval_every=5,
        eval_problems=200,
    )


def preset(name: str) -> TrainConfig:
    """The configuration of a preset or cell.

    Raises ValueError listing what there is.
    """
    if name in PRESETS:
        return PRESETS[name]()
    if CELL.fullmatch(name):
        return cell(name)
    raise ValueError(
        f"--preset '{name}' is unknown; expected {', '.join(PRESETS)}, or a cell of the paper such "
        "as Voting-IP-1.7B-Math"
    )
