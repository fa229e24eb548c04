"""Say everything about a training run in one frozen dataclass; docstrings become `--help`."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gradlab.own_parts import Part, is_own, load_part, num_required
from gradlab.records import Agent
from gradlab.workflows import Workflow, parse_options
from trainers.advantages import find_estimator
from trainers.models.routing import parse_routing
from trainers.models.sampler import Speaker
from trainers.preview.highest import HIGHEST, LOWEST_TEMPERATURE, ROLE_VALUE, check_highest
from trainers.sandbox.pool import package_path
from trainers.workflows import find_workflow

_LOWEST: tuple[tuple[tuple[str, ...], int, str], ...] = (
    (
        (
            "steps", "eval_every", "checkpoint_every", "problems_per_step", "samples",
            "rows_per_update", "fixed_updates", "max_response_tokens", "micro_tokens",
            "rollout_rows", "lora_rank", "eval_samples", "eval_problems", "difficulty",
            "max_prompt_tokens", "coherence_window", "code_workers",
        ),
        1,
        "1 or more",
    ),
    (
        (
            "temperature", "learning_rate", "lora_alpha", "code_seconds", "sampler_seconds",
            "sampler_memory",
        ),
        0,
        "more than 0",
    ),
    (("code_memory_mb",), 64, "64 or more, an interpreter's own included"),
    (
        (
            "clip_low", "clip_high", "dual_clip", "clip_norm", "warmup_steps", "weight_decay",
            "entropy_coefficient", "threads", "keep_states", "keep_state_every",
            "coherence_damping", "extend_to", "row_statistics",
        ),
        0,
        "0 or more",
    ),
)  # fmt: skip
"""Numeric options, their lowest value and how to say it."""

EARLIER: Mapping[str, Any] = {
    "freeze": [], "workflow_options": {}, "advantage": "grpo",
    "role_temperature": {}, "role_max_response_tokens": {}, "policy_model": {},
    "policy_learning_rate": {}, "policy_weight_decay": {}, "policy_lora_rank": {},
    "policy_lora_alpha": {},
    "rollout_correction": "none", "rollout_correction_level": "token",
    "rollout_correction_cap": 2.0,
    "sampler": "transformers", "sampler_url": [], "sampler_directory": None,
    "sampler_seconds": 600.0, "sampler_memory": 0.5, "sampler_sleep": False,
    "sampler_merge": False,
    "row_statistics": 1,
    "micro_batches": "filled", "logits": "whole",
    "problem_seed": None,
    "draws": "auto", "shard_base": False,
}  # fmt: skip
"""Option -> what runs did before there was that option, as JSON has it. A new option gets its line
here, whatever its default: a run of an earlier version is continued, audited and replayed with it.
"""


LARGEST_ENGINE_RANK = 512
"""Of an adapter that vLLM takes."""
REWARDS = ("outcome", "own", "rubric", "mix")
"""Rewards by name, see `trainers.credit`."""
SIZES = {"votes": 16, "rounds": 9, "workers": 9}
"""Options that are keyword arguments of the built-in workflows, and the highest value of each."""


@dataclass(frozen=True)
class TrainConfig:
    """Train a multi-agent workflow with reinforcement learning, gradients measured by role."""

    out: Path = Path("runs/run")
    """Run directory to create; an existing one is refused unless --resume is given."""
    resume: bool = False
    """Whether to continue the run in --out from its last checkpoint, to the same numbers."""
    extend_to: int = 0
    """With --resume: train up to this many steps, more than the run's own number."""
    seed: int = 0
    """Seed of everything random: problems, sampling, adapters, mini-batches."""
    problem_seed: int | None = None
    """Seed of which problems there are and which are held out, in its place: runs of different
    --seed then have the same test set."""
    replay_seed: int | None = None
    """Seed of sampling and mini-batches in its place: replays vary it, and keep the problems, their
    order and the evaluations."""
    steps: int = 60
    """Training steps (one rollout and its updates each)."""
    eval_every: int = 5
    """Steps between evaluations; step 0 and the last step are always evaluated."""
    checkpoint_every: int = 20
    """Steps between checkpoints; the last step always has one."""
    keep_states: int = 0
    """Newest checkpoints that keep optimizer states, as large as 3 adapters and one more per agent
    of the policy (2 without probe); 0 keeps all. Only those can be continued from."""
    keep_state_every: int = 0
    """With --keep-states: checkpoints whose step is a multiple of this keep theirs, too, so that
    the run can be replayed from them."""
    device: str = "auto"
    """cpu, cuda, one of several such as cuda:1, or auto: cuda where there is one."""
    threads: int = 0
    """Torch threads; 0 leaves torch's own choice."""

    model: str = "tiny"
    """tiny (= tiny-0.3m), tiny-1m, tiny-3m, smollm2-135m, a hub id or a local directory."""
    policy_model: dict[str, str] = field(default_factory=dict)
    """--model of single policies, e.g. judge tiny-1m, and of what frozen roles speak with; the
    names are those of --routing. All models are asked in the same style, compact or as a chat."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Dtype of the frozen weights; adapters are float32, or float64 with it, which compares runs to
    more digits than training needs."""
    lora_rank: int = 16
    """Rank of the adapters."""
    lora_alpha: int = 16
    """Scale of the adapters is alpha / rank."""
    policy_lora_rank: dict[str, int] = field(default_factory=dict)
    """--lora-rank of single policies, e.g. aggregator 8; names are those of --routing."""
    policy_lora_alpha: dict[str, int] = field(default_factory=dict)
    """--lora-alpha of single policies."""
    shard_base: bool = False
    """Whether the frozen layers are divided between the processes that torchrun started, for a
    model too large for one device (docs/gpu.md)."""
    gradient_checkpointing: bool = False
    """Whether activations are recomputed in the backward pass, to save memory."""

    task: str = "arithmetic"
    """arithmetic, programs, gsm8k, math, aime, dapo-math, deepscaler, humaneval, mbpp, deepcoder,
    livecodebench, file (your own problems), rg:NAME for a dataset of reasoning-gym, or your own
    problems and judge as my_task.py:load (docs/problems.md)."""
    data: Path | None = None
    """JSONL or Parquet file of the task, a folder of them, or the id of a dataset in the hub's
    cache; without it $GRADLAB_DATA, data/ and ../shared/data/ are searched, then that cache."""
    task_options: dict[str, str] = field(default_factory=dict)
    """Configuration of an rg:… task, e.g. min_digits 2 max_digits 3; size is its number of training
    problems (1000). Keyword arguments of a task of your own."""
    math_rule: Literal["auto", "number", "math", "paper-math"] = "auto"
    """How mathematical answers are compared: the task's own rule, as numbers, as expressions, or
    as strictly as the paper's code."""
    code_workers: int = 2
    """Programs that are run at once, in tasks that are solved by programs."""
    code_seconds: float = 3.0
    """CPU time of a program on each test."""
    code_memory_mb: int = 512
    """Memory (MiB of address space) of a program."""
    code_packages: tuple[str, ...] = ()
    """Installed packages that programs can import beside the standard library, e.g. numpy."""
    unsafe_code: bool = False
    """Whether model-written programs are run even where nothing protects this machine from them."""
    split: str = "seed"
    """What is held out: 'seed' (--eval-problems by a shuffle with --seed), 'paper' (dapo-math and
    deepcoder), or the problems.jsonl.gz of a run, whose split is taken over."""
    difficulty: int = 2
    """Digits of the numbers in arithmetic."""
    eval_problems: int = 100
    """Problems held out for evaluation."""
    eval_samples: int = 1
    """Episodes per held-out problem."""

    workflow: str = "voting"
    """The workflow to train: voting, evaluator_optimizer, orchestrator_workers, majority (of the
    generators' answers, without an aggregator), solo, or one of your own as my_flows.py:debate or
    package.module:debate (docs/workflows.md)."""
    workflow_options: dict[str, str] = field(default_factory=dict)
    """Keyword arguments of a workflow of your own, e.g. rounds 4."""
    votes: int = 3
    """Parallel generators of voting."""
    rounds: int = 3
    """Most rounds of evaluator_optimizer."""
    workers: int = 3
    """Most workers of orchestrator_workers."""
    history: Literal["own", "shared"] = "own"
    """What evaluator and refiner see: self-contained chats, or the paper's malformed shared one."""
    examples: bool = False
    """Whether every role of a chat model is shown a worked example first: small models then keep
    the format."""
    routing: str = "isolated"
    """shared, isolated (an adapter per role), agents (one per agent), or a map of roles and agents,
    as in orchestrator=lead,worker=solver,worker[0]=lead,synthesizer=lead."""
    freeze: tuple[str, ...] = ()
    """Roles that speak with the base model and are not trained: no adapter, backward, optimizer or
    probe, e.g. worker."""

    problems_per_step: int = 16
    """Problems per rollout."""
    samples: int = 8
    """Episodes per problem: the size of a GRPO group."""
    temperature: float = 1.0
    """Sampling temperature, in training and evaluation."""
    role_temperature: dict[str, float] = field(default_factory=dict)
    """--temperature of single roles, e.g. aggregator 0.2."""
    max_prompt_tokens: int = 2048
    """Episodes whose prompt grows longer are dropped and counted."""
    max_response_tokens: int = 16
    """Longest response; longer ones are cut and counted."""
    role_max_response_tokens: dict[str, int] = field(default_factory=dict)
    """--max-response-tokens of single roles, e.g. aggregator 8."""
    rollout_rows: int = 512
    """Most responses generated at once."""
    sampler: Literal["transformers", "vllm", "vllm-server"] = "transformers"
    """Who draws responses: transformers, from the very weights that are trained, or vLLM, in this
    process or in servers, from copies that are proven right at every step (docs/sampling.md)."""
    sampler_merge: bool = True
    """With --sampler transformers, whether policies speak through copies of the adapted layers that
    their adapters are merged into: faster, for one more copy of the base model's layers while
    responses are drawn. In bfloat16, and with --shard-base, adapters are applied, as without it."""
    sampler_url: tuple[str, ...] = ()
    """Address of a server, e.g. http://127.0.0.1:8000, as `gradlab serve` prints it; several share
    the requests."""
    sampler_directory: Path | None = None
    """Where adapters are written for an engine; one on another machine must see it under the same
    path. By default in memory."""
    sampler_seconds: float = 600
    """How long an engine has for one answer, and to come back when it is gone."""
    sampler_memory: float = 0.5
    """Share of a GPU's memory that an engine takes for weights, keys and values."""
    sampler_sleep: bool = False
    """Whether the engine gives its memory back while policies are updated: for one GPU that both
    use."""
    draws: Literal["auto", "batch", "problem"] = "auto"
    """Random numbers of sampling: batch (one stream for all that is sampled at once), problem (each
    response by numbers of its own, so that it does not depend on what is sampled beside it, or on
    how many processes), or auto: batch in one process, problem in several."""

    reward: str = "outcome"
    """outcome of the episode for all its turns, own correctness, rubric (Voting-V2), mix, or one of
    your own as my_rewards.py:fn (docs/workflows.md)."""
    mix: float = 0.5
    """Weight of the outcome in --reward mix; the rest is own correctness."""
    group_by: Literal["role", "role_number", "role_turn"] = "role_number"
    """Whose rewards on one problem are compared: a role's, an agent's, or a round's of a role."""
    advantage: str = "grpo"
    """How rewards become advantages: grpo, dr-grpo, rloo, reinforce, reinforce++,
    reinforce++-baseline, lite-ppo, or one of your own as my_advantages.py:fn
    (docs/own_parts.md)."""
    normalize_std: bool = True
    """Whether advantages are divided by the group's standard deviation (GRPO), or only the mean is
    taken away (Dr. GRPO)."""
    singleton: Literal["zero", "reward"] = "zero"
    """Advantage of a group of one: 0, or the raw reward as in the paper."""

    clip_low: float = 0.2
    """PPO clip: lower bound of the ratio is 1 - clip_low."""
    clip_high: float = 0.28
    """PPO clip: upper bound of the ratio is 1 + clip_high."""
    dual_clip: float = 3.0
    """Bound of the ratio for negative advantages; 0 switches it off."""
    kl_coefficient: dict[str, float] = field(default_factory=dict)
    """KL anchor per role to the base model, e.g. aggregator 0.05 (k3 estimate); none by default."""
    entropy_coefficient: float = 0.0
    """Weight of an entropy bonus."""
    aggregation: Literal["sequence_mean_token_mean", "token_mean", "sequence_sum"] = (
        "sequence_mean_token_mean"
    )
    """How token losses become one loss."""
    old_logprobs: Literal["rollout", "trainer"] = "rollout"
    """Denominator of the ratio: log-probs kept from sampling, or recomputed before the updates."""
    rollout_correction: Literal["none", "tis", "mis"] = "none"
    """With --old-logprobs trainer, weigh the policy loss by trainer / sampler probability, for an
    engine that rounds otherwise than the trainer: truncated at the cap (tis), or without what lies
    outside 1 / cap to cap (mis)."""
    rollout_correction_level: Literal["token", "sequence"] = "token"
    """Whether each token has a weight of its own, or all of a response their product."""
    rollout_correction_cap: float = 2.0
    """The cap of --rollout-correction."""

    updates: Literal["samples", "fixed"] = "samples"
    """Updates per policy and step: one per --rows-per-update rows (parallel roles get more, as in
    the paper), or --fixed-updates for every policy."""
    rows_per_update: int = 128
    """Turns per optimizer update under --updates samples."""
    fixed_updates: int = 1
    """Updates per policy and step under --updates fixed."""
    minibatches: Literal["prompts", "length"] = "prompts"
    """Split a step by shuffled prompts, or by length without shuffle (as in the paper's code)."""
    partial_minibatch: Literal["own", "full"] = "own"
    """Denominator of a smaller last mini-batch: its own size, or the full one as in the paper."""
    micro_tokens: int = 16384
    """Most padded tokens per forward and backward."""
    micro_batches: Literal["cut", "filled"] = "cut"
    """How rows, in order of length, become micro-batches: cut where padding would cost more than
    one more, or each filled up to --micro-tokens. The numbers differ by rounding."""
    logits: Literal["chunks", "whole"] = "chunks"
    """Take log-probs from hidden states by chunks of tokens, which needs least memory, or from the
    logits of a whole micro-batch. The numbers differ by rounding."""

    learning_rate: float = 1e-3
    """Learning rate of AdamW after warm-up (constant)."""
    policy_learning_rate: dict[str, float] = field(default_factory=dict)
    """--learning-rate of single policies, e.g. aggregator 5e-4."""
    warmup_steps: int = 0
    """Linear warm-up."""
    scheduler_tick: Literal["step", "policy"] = "step"
    """Advance the warm-up once per training step, or each time a policy was trained, for all of
    them (paper's code: R policies warm up R times as fast)."""
    weight_decay: float = 0.01
    """Decoupled weight decay of AdamW."""
    policy_weight_decay: dict[str, float] = field(default_factory=dict)
    """--weight-decay of single policies."""
    clip_norm: float = 1.0
    """Gradient clipping by global norm per policy and update; 0 switches it off."""
    role_weight: dict[str, float] = field(default_factory=dict)
    """Multiply a role's part of its policy's gradient, e.g. aggregator 0.5; at 0 the policy does
    not learn from the role. Without effect on a role alone: Adam undoes a constant factor."""
    role_clip: dict[str, float] = field(default_factory=dict)
    """Clip a role's own gradient to this norm, before --clip-norm, e.g. aggregator 0.5."""
    max_share: dict[str, float] = field(default_factory=dict)
    """Cap a role's share of its policy's gradient mass in every update, e.g. aggregator 0.5."""
    equalize: bool = False
    """Whether all roles of a shared policy get the same gradient mass in every update."""
    coherence_damping: float = 0.0
    """Shorten a gradient by this share of its cosine with the mean of those before, 0 to 1 (the
    paper's coherence regularizer, which it runs at 0.3 or less); 0 switches it off."""
    role_damping: dict[str, float] = field(default_factory=dict)
    """--coherence-damping of the policy of one role, in its place, e.g. generator 0.3; roles of one
    policy are damped alike."""
    coherence_window: int = 128
    """Updates that this mean remembers."""
    coherence_start: Literal["zero", "first"] = "zero"
    """Begin this mean at zero, which leaves the first update as it is, or at a copy of the first
    gradient, as the paper's code does: that one is damped fully, and weighs for a whole window."""
    alarm: Literal["off", "tell", "checkpoint", "slow", "stop"] = "off"
    """After every evaluation run the detectors of `gradlab diagnose`. What they find twice in a row
    is told and marked in the run; with checkpoint, also saved; with slow, the learning rates are
    multiplied by 0.3, once; with stop, the run ends after a checkpoint."""
    probe: Literal["exact", "fused", "off"] = "exact"
    """Measure gradients by agent: beside the ordinary backward, which stays bitwise what it was, or
    fused into it, which is cheaper and changes gradients by rounding. Off only for timing."""
    row_statistics: int = 1
    """Steps between those in which gradients of single rows are measured, too, from the first on:
    1 is every step, 0 none. They say how parallel agents repeat one another, and are the dearer
    part of the probe for small models."""
    sketch_buckets: Literal[0, 4093, 16381] = 0
    """Keep sketches of this size of every agent's gradient and part of the step, to compare updates
    with each other (0: none). Cosines are off by 1 / sqrt of it; 16 KB or 64 KB per agent and
    update on disk."""
    effective: bool = False
    """Whether gradients of the layers' weights with adapters merged are measured, too: with
    --sketch-buckets, roles of different policies can then be compared."""

    def __post_init__(self) -> None:
        # `not value >= low`, never `value < low`: NaN is neither.
        for names, low, expected in _LOWEST:
            for name in names:
                value = getattr(self, name)
                if not value >= low or (expected == "more than 0" and value == 0):
                    flag = name.replace("_", "-")
                    raise ValueError(f"--{flag} is {value}; expected {expected}")
                if value == math.inf:
                    flag = name.replace("_", "-")
                    raise ValueError(f"--{flag} is {value}; expected a finite number")
        check_highest(self)
        if self.extend_to and not self.resume:
            raise ValueError(
                f"--extend-to is {self.extend_to} and there is no --resume; expected both, to "
                "train a run further, or --steps to say how long a new run is"
            )
        if self.clip_low > 1:
            raise ValueError(f"--clip-low is {self.clip_low}; expected at most 1: ratios are > 0")
        if not 0 <= self.mix <= 1:
            raise ValueError(f"--mix is {self.mix}; expected 0 to 1")
        if 0 < self.dual_clip <= 1:
            raise ValueError(f"--dual-clip is {self.dual_clip}; expected more than 1, or 0 for off")
        self._check_correction()
        if self.partial_minibatch == "full" and self.updates == "fixed":
            raise ValueError(
                "--partial-minibatch full divides by --rows-per-update, which --updates fixed does "
                "not use; expected --partial-minibatch own"
            )
        if self.probe == "off" and (self.sketch_buckets or self.effective):
            raise ValueError("--sketch-buckets and --effective need a probe; expected none of them")
        if self.probe == "off" and self.row_statistics != 1:
            raise ValueError(
                f"--row-statistics is {self.row_statistics} and --probe is off, which measures no "
                "rows; expected --probe exact or fused, or no --row-statistics"
            )
        if self.problem_seed is not None and self.split != "seed":
            raise ValueError(
                f"--problem-seed is {self.problem_seed} and --split {self.split} says what is held "
                "out; expected one of the two"
            )
        self._check_sizes()
        self._check_credit()
        object.__setattr__(self, "code_packages", tuple(self.code_packages))  # a list in JSON
        freeze = tuple(role for names in self.freeze for role in names.split(",") if role)
        object.__setattr__(self, "freeze", tuple(dict.fromkeys(freeze)))
        self._check_frozen()
        self._check_packages()
        self._check_roles("kl_coefficient", 0, ROLE_VALUE)
        self._check_roles("role_weight", 0, ROLE_VALUE)
        self._check_roles("role_clip", math.ulp(0), ROLE_VALUE)
        self._check_roles("max_share", math.ulp(0), 1)
        self._check_roles("role_damping", 0, 1)
        high = HIGHEST["temperature"]
        self._check_roles("role_temperature", LOWEST_TEMPERATURE, high, frozen=True)
        high = HIGHEST["max_response_tokens"]
        self._check_roles("role_max_response_tokens", 1, high, frozen=True)
        named = parse_routing(self.routing, self.build_workflow().agents, self.freeze).values()
        for policy, model in self.policy_model.items():
            if policy not in named or not model:
                raise ValueError(
                    f"--policy-model gives policy '{policy}' the model '{model}'; expected the "
                    f"name of a model for one of {', '.join(dict.fromkeys(named))}"
                )
        for name, least in (
            ("policy_learning_rate", math.ulp(0.0)),
            ("policy_weight_decay", 0.0),
            ("policy_lora_rank", 1.0),
            ("policy_lora_alpha", math.ulp(0.0)),
        ):
            self._check_policies(name, least)
        for policy in self.policies:
            rate, decay = self.learning_rate_of(policy), self.weight_decay_of(policy)
            if rate * decay >= 1:
                raise ValueError(
                    f"policy '{policy}' has learning rate {rate:g} and weight decay {decay:g}; "
                    "expected a product below 1: every update multiplies the weights by 1 minus it"
                )
        self._check_interventions(self.roles_by_policy())
        self._check_sampler()

    def _check_sampler(self) -> None:
        object.__setattr__(self, "sampler_url", tuple(self.sampler_url))  # a list in JSON
        is_server = self.sampler == "vllm-server"
        # A resumed run keeps its sampler, which may be at another address by now.
        if is_server != bool(self.sampler_url) and not self.resume:
            raise ValueError(
                f"--sampler is {self.sampler} and --sampler-url is "
                f"{' '.join(self.sampler_url) or 'not given'}; expected --sampler vllm-server and "
                "the address that gradlab serve prints, or neither"
            )
        for url in self.sampler_url:
            if not re.fullmatch(r"https?://[^/\s:]+(:\d+)?", url):
                raise ValueError(
                    f"--sampler-url is '{url}'; expected an address such as http://127.0.0.1:8000"
                )
        if self.sampler == "transformers":
            return
        if self.dtype == "float64":
            raise ValueError(
                f"--dtype float64: --sampler {self.sampler} takes float32 or bfloat16; expected "
                "--sampler transformers"
            )
        if len(set(self.sampler_url)) < len(self.sampler_url):
            raise ValueError("--sampler-url names a server twice; expected each once")
        if len(self.models) > 1:
            raise ValueError(
                f"--sampler {self.sampler} serves one base model, and there are "
                f"{', '.join(self.models)}; expected --sampler transformers with --policy-model"
            )
        for policy in self.policies:
            if self.lora_rank_of(policy) > LARGEST_ENGINE_RANK:
                raise ValueError(
                    f"--lora-rank of {policy} is {self.lora_rank_of(policy)}; --sampler "
                    f"{self.sampler} takes at most {LARGEST_ENGINE_RANK}"
                )

    def _check_sizes(self) -> None:
        for name, high in SIZES.items():
            if not 1 <= getattr(self, name) <= high:
                raise ValueError(f"--{name} is {getattr(self, name)}; expected 1 to {high}")
            if is_own(self.workflow):
                if getattr(self, name) != getattr(TrainConfig, name):
                    raise ValueError(
                        f"--{name} is {getattr(self, name)}, and {self.workflow} is no built-in "
                        f"workflow; expected --workflow-options {name}={getattr(self, name)} if it "
                        f"has that option, and --{name} {getattr(TrainConfig, name)}"
                    )
            elif name in self.workflow_options:
                raise ValueError(
                    f"--workflow-options {name}: workflow {self.workflow} takes it as --{name}"
                )

    def _check_credit(self) -> None:
        if self.reward not in REWARDS and not is_own(self.reward):
            raise ValueError(
                f"--reward {self.reward} is unknown; expected one of {', '.join(REWARDS)}, or one "
                "of your own as FILE.py:NAME or package.module:NAME"
            )
        if is_own(self.reward):
            self.own_reward()
        find_estimator(self.advantage, singleton=self.singleton, normalize_std=self.normalize_std)

    def _check_correction(self) -> None:
        if not self.rollout_correction_cap > 1:
            raise ValueError(
                f"--rollout-correction-cap is {self.rollout_correction_cap}; expected more than 1, "
                "the weight of a token on which sampler and trainer agree"
            )
        if self.rollout_correction == "none":
            for name in ("rollout_correction_level", "rollout_correction_cap"):
                if getattr(self, name) != getattr(TrainConfig, name):
                    flag = name.replace("_", "-")
                    raise ValueError(
                        f"--{flag} is {getattr(self, name)} and --rollout-correction is none; "
                        "expected --rollout-correction tis or mis with it"
                    )
        elif self.old_logprobs != "trainer":
            raise ValueError(
                f"--rollout-correction {self.rollout_correction} weighs by what the trainer gives "
                "before the updates; expected --old-logprobs trainer (with rollout, the ratio of "
                "the loss has the gap in it already)"
            )

    def _check_packages(self) -> None:
        for name in self.code_packages:
            if not name.isidentifier() or package_path(name) is None:
                raise ValueError(
                    f"--code-packages names '{name}', which is no package installed here; expected "
                    "names as they are imported, e.g. numpy; install it, or leave it out"
                )

    def _check_frozen(self) -> None:
        roles = self.build_workflow().roles
        for role in self.freeze:
            if role not in roles:
                raise ValueError(
                    f"--freeze names role '{role}'; workflow {self.workflow} has {', '.join(roles)}"
                )
        if set(self.freeze) == set(roles):
            raise ValueError(
                f"--freeze names all roles of {self.workflow}: nothing would be trained; leave one "
                "out"
            )

    def _check_policies(self, name: str, low: float) -> None:
        flag, policies = f"--{name.replace('_', '-')}", self.policies
        for policy, value in getattr(self, name).items():
            if policy not in policies:
                raise ValueError(
                    f"{flag} names policy '{policy}'; --routing {self.routing} has "
                    f"{', '.join(policies)}"
                )
            high = HIGHEST[name.removeprefix("policy_")]
            if not low <= value <= high:
                least = "more than 0" if low == math.ulp(0) else f"{low:g} or more"
                raise ValueError(
                    f"{flag} of {policy} is {value}; expected {least}, at most {high:g}"
                )

    def _check_roles(self, name: str, low: float, high: float, *, frozen: bool = False) -> None:
        """`frozen`: whether the option means something for frozen roles, too."""
        flag, roles = f"--{name.replace('_', '-')}", self.build_workflow().roles
        for role, value in getattr(self, name).items():
            if role not in roles:
                raise ValueError(
                    f"{flag} names role '{role}'; workflow {self.workflow} has {', '.join(roles)}"
                )
            if role in self.freeze and not frozen:
                raise ValueError(
                    f"{flag} names role '{role}', which is frozen and has no gradient; leave it out"
                )
            if not low <= value <= high:
                least = "more than 0" if low == math.ulp(0) else f"{low:g} or more"
                raise ValueError(f"{flag} of {role} is {value}; expected {least}, at most {high:g}")

    def _check_interventions(self, policies: dict[str, tuple[str, ...]]) -> None:
        """Refuse what would silently do nothing."""
        if self.coherence_damping > 1:
            raise ValueError(
                f"--coherence-damping is {self.coherence_damping}; expected 0 to 1: more would "
                "turn gradients around"
            )
        by_role = {
            "role-weight": bool(self.role_weight),
            "role-clip": bool(self.role_clip),
            "max-share": bool(self.max_share),
            "equalize": self.equalize,
        }
        given = [f"--{name}" for name, is_given in by_role.items() if is_given]
        if given and self.probe == "off":
            raise ValueError(f"{', '.join(given)} tells roles apart by the probe; it is off")
        if self.max_share and self.equalize:
            raise ValueError("--max-share and --equalize both set the roles' shares; give one")
        sharing = {role for roles in policies.values() if len(roles) > 1 for role in roles}
        alone = [role for role in self.max_share if role not in sharing]
        if alone:
            policy = next(name for name, roles in policies.items() if alone[0] in roles)
            raise ValueError(
                f"--max-share names {', '.join(alone)}, alone in policy '{policy}': its "
                "share is always 1. Use --role-clip, or share a policy with --routing"
            )
        if self.equalize and not sharing:
            raise ValueError("--equalize: no policy has two roles; share one with --routing")

        self._check_damping(policies)

    def _check_damping(self, policies: dict[str, tuple[str, ...]]) -> None:
        for policy, roles in policies.items():
            damped = {role: self.damping_of(role) for role in roles}
            if len(set(damped.values())) > 1:
                raise ValueError(
                    f"--role-damping: the roles of policy '{policy}' have "
                    f"{', '.join(f'{role} {value:g}' for role, value in damped.items())}; its "
                    "gradient is damped as a whole: expected one value, or --routing isolated"
                )

    def damping_of(self, role: str) -> float:
        """Coherence damping of the role's policy."""
        return self.role_damping.get(role, self.coherence_damping)

    @property
    def training_seed(self) -> int:
        """Seed of what a training step draws."""
        return self.seed if self.replay_seed is None else self.replay_seed

    @property
    def data_seed(self) -> int:
        """Seed of which problems there are and which are held out."""
        return self.seed if self.problem_seed is None else self.problem_seed

    def build_workflow(self) -> Workflow:
        """The workflow with its options.

        Raises ValueError where it cannot be found or loaded, or does not have them.
        """
        found = find_workflow(self.workflow)
        given = parse_options(self.workflow_options, found.options)
        if not is_own(self.workflow):
            given |= {name: getattr(self, name) for name in SIZES if name in found.options}
        return found.with_options(given)

    def own_reward(self) -> Part:
        """The function that `--reward FILE.py:NAME` names.

        Raises PartError where it cannot be found or loaded.
        """
        return load_part(
            "--reward",
            self.reward,
            lambda value: inspect.isfunction(value) and num_required(value) == 2,
            "a function of (episode, turn) that returns a number, or {name: number}",
        )

    def policy_by_agent(self) -> dict[Agent, str]:
        """agent -> policy name, for every agent that is trained, in the workflow's order."""
        routed = parse_routing(self.routing, self.build_workflow().agents, self.freeze)
        return {agent: policy for agent, policy in routed.items() if agent.role not in self.freeze}

    @property
    def policies(self) -> tuple[str, ...]:
        """Names of the policies, in the order in which their agents appear."""
        return tuple(dict.fromkeys(self.policy_by_agent().values()))

    @property
    def merges_adapters(self) -> bool:
        """Whether policies speak through copies of layers, with their adapters merged."""
        # In bfloat16 the sum would lose the adapter; divided layers are no plain weights.
        is_exact = self.dtype in ("float32", "float64") and not self.shard_base
        return self.sampler == "transformers" and self.sampler_merge and is_exact

    def roles_by_policy(self) -> dict[str, tuple[str, ...]]:
        """policy name -> the roles that some agents of train it."""
        routed = self.policy_by_agent()
        return {
            name: tuple(dict.fromkeys(a.role for a, policy in routed.items() if policy == name))
            for name in self.policies
        }

    def speakers(self) -> dict[Agent, Speaker]:
        """Whose weights answer each agent of the workflow."""
        routed = self.policy_by_agent()
        return {
            a: Speaker(
                routed.get(a, ""),
                self.model_of(a),
                self.role_temperature.get(a.role, self.temperature),
                self.max_response_tokens_of(a.role),
            )
            for a in self.build_workflow().agents
        }

    def model_of(self, agent: Agent) -> str:
        """Name of the base model that an agent speaks with, its policy's adapter aside."""
        workflow = self.build_workflow()
        routed = parse_routing(self.routing, workflow.agents, self.freeze)
        return self.policy_model.get(routed.get(agent, ""), self.model)

    def model_of_policy(self, policy: str) -> str:
        return self.policy_model.get(policy, self.model)

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the base models, in the order in which their agents appear."""
        return tuple(dict.fromkeys(speaker.model for speaker in self.speakers().values()))

    def max_response_tokens_of(self, role: str) -> int:
        return self.role_max_response_tokens.get(role, self.max_response_tokens)

    def learning_rate_of(self, policy: str) -> float:
        """After warm-up."""
        return self.policy_learning_rate.get(policy, self.learning_rate)

    def weight_decay_of(self, policy: str) -> float:
        return self.policy_weight_decay.get(policy, self.weight_decay)

    def lora_rank_of(self, policy: str) -> int:
        return self.policy_lora_rank.get(policy, self.lora_rank)

    def lora_alpha_of(self, policy: str) -> int:
        return self.policy_lora_alpha.get(policy, self.lora_alpha)

    @property
    def frozen_words(self) -> str:
        """What is said of frozen roles."""
        speak = "speaks" if len(self.freeze) == 1 else "speak"
        return f"{', '.join(self.freeze)} frozen: {speak} with the base model"

    def to_json(self) -> dict[str, Any]:
        """The configuration as JSON values."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self), default=str))
        return plain
