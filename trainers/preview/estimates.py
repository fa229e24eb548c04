"""Estimate what a training run will take: sizes, memory, time and disk.

Everything is computed from shapes, and from the problems and the tokenizer where they are here: no
weights are read. Memory and time are estimates of the largest tensors and products;
docs/training.md says what was measured against them.

Legend: A agents of a policy, P trainable parameters of a policy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from gradlab.own_parts import is_own
from gradlab.probe.layout import block_of, block_order
from gradlab.records import Agent, PolicyMeta, RunMeta, routing_table
from gradlab.store.schema import groups
from trainers.batches import CHUNK_LOGITS, num_updates
from trainers.config import TrainConfig
from trainers.models.architectures import KNOWN, architecture
from trainers.models.language import (
    add_adapters,
    check_styles,
    is_compact,
    load_tokenizer,
    locate,
    near,
    prompts_for,
    reachable,
    render,
)
from trainers.models.merging import adapted_parameters
from trainers.policies import adapter_parameters
from trainers.preview.dry_play import most_turns
from trainers.preview.engine_memory import EngineMemory, engine_memory
from trainers.preview.prompts import (
    COMPACT_REPLIES,
    COMPACT_SAMPLES,
    played,
    replies_of,
    workers_of,
)
from trainers.preview.times import CARD, Load, Speed, Times, speed_here, times_of
from trainers.prompts.compact import STRATEGIES, CompactPrompts
from trainers.tasks.problem import Task

TYPICAL_PROMPT = 1024
"""Tokens of a prompt where none can be measured and the limit is not lower; limits of 20,000 are
for rare long ones."""
MEASURED = 16
"""Problems whose prompts are measured."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of a turn."""

    prompt: float
    """Mean over turns."""
    longest_prompt: int
    response: float
    """Mean over turns: at its limit, but of the embedded models, whose answers are known."""
    source: str
    """Where the numbers are from, in words."""


@dataclass(frozen=True)
class Disk:
    """Bytes of a run directory at its end."""

    store: int
    """Of the arrays of the run store, before compression."""
    adapters: int
    """Of all checkpoints."""
    states: int
    """Optimizer and probe states of the checkpoints that keep them."""
    checkpoints: tuple[int, int]
    """How many there are, and how many of them keep states."""
    episodes: int
    """Estimated, compressed."""


@dataclass(frozen=True)
class Memory:
    """Bytes on the device."""

    weights: int
    adapters: int
    """Parameters, gradients and Adam's two moments, float32."""
    probe: int
    """Each agent's gradient and moment, and the starting point, float32."""
    activations: int
    """Kept for the backward of one micro-batch, its logits included."""
    cache: int
    """Keys and values of one chunk of rollout rows, prompts typical and responses at the limit."""
    cache_at_limits: int
    """The same with all prompts at their limit."""
    merged: int
    """Copies of the adapted layers, which policies speak through during a rollout."""

    @property
    def idle(self) -> int:
        """What is always there."""
        return self.weights + self.adapters + self.probe

    @property
    def peak(self) -> int:
        """The larger of rollout and training, beside what is always there."""
        return self.idle + max(self.activations, self.cache + self.merged)


@dataclass(frozen=True)
class Plan:
    """What a run will take."""

    model: str
    parameters: int
    policies: tuple[PolicyMeta, ...]
    turns: int
    """Most turns in a step."""
    tokens: int
    """Tokens of a step with typical prompts and responses at their limit."""
    updates: dict[str, int]
    """Most updates per policy and step."""
    memory: Memory
    times: Times
    """Of that step and an evaluation, on this machine or, where its device is not here, on a card
    of a data sheet."""
    all_seconds: float
    """Of all steps and evaluations."""
    is_here: bool
    """Whether the device is."""
    lengths: Lengths
    disk: Disk
    engine: EngineMemory | None
    """Of an engine that draws the responses, if there is one."""


def plan(config: TrainConfig, task: Task | None = None, speed: Speed | None = None) -> Plan:
    """Compute what `config` takes; `task`: its problems, where they are here; `speed`: of its
    device, where it was measured before.

    Raises ValueError for a model whose shapes are neither known nor to be found.
    """
    parts = [_part(config, name) for name in config.models]
    policies = [policy for name in config.policies for p in parts for policy in p.policies
                if policy.name == name]  # fmt: skip
    turns = turns_of(config, task)
    episodes, _ = episodes_of(config)
    total_turns = sum(turns.values()) * episodes
    updates = {
        policy.name: num_updates(
            episodes * sum(turns_of_agent(turns, agent, config) for agent in policy.agents), config
        )
        for policy in policies
    }
    lengths = lengths_of(config, task)
    tokens = round(total_turns * (lengths.prompt + lengths.response))
    loads = [load_of(config, part, lengths, turns, updates) for part in parts]
    speed = speed or speed_here(config)
    engine = None
    if config.sampler != "transformers":
        sizes = {policy.name: policy.num_parameters for policy in policies}
        engine = engine_memory(
            config, parts[0].shapes, parts[0].base, sizes, lengths.longest_prompt
        )
    times = times_of(config, loads, speed or CARD, engine)
    return Plan(
        " + ".join(config.models),
        sum(part.base for part in parts),
        tuple(policies),
        total_turns,
        tokens,
        updates,
        together([
            memory_of(config, p.shapes, p.base, p.policies, lengths, p.adapted) for p in parts
        ]),
        times,
        config.steps * times.step + evaluations_of(config) * times.evaluation,
        speed is not None,
        lengths,
        disk_of(config, policies, updates, {k: v for p in parts for k, v in p.tensors.items()},
                lengths, task),
        engine,
    )  # fmt: skip


@dataclass(frozen=True)
class _Part:
    """One base model of a run, with the policies on it."""

    shapes: Any
    base: int
    """Parameters without adapters."""
    policies: list[PolicyMeta]
    tensors: dict[str, int]
    """Policy -> tensors of its adapter."""
    agents: list[Agent]
    """Who speaks with it."""
    adapted: int
    """Parameters of the layers that carry adapters, without them."""


def _part(config: TrainConfig, model_name: str) -> _Part:
    routing = config.policy_by_agent()
    names = [name for name in config.policies if config.model_of_policy(name) == model_name]
    shapes, model = empty_model(config, names, model_name)
    policies, tensors = [], {}
    for name in names:
        sizes = adapter_parameters(model, name)
        blocks = sorted({block_of(key) for key in sizes}, key=block_order)
        agents = tuple(agent for agent in routing if routing[agent] == name)
        size = sum(p.numel() for p in sizes.values())
        policies.append(measured_policy(config, name, agents, tuple(blocks), size))
        tensors[name] = len(sizes)
    base = sum(p.numel() for p in model.parameters()) - sum(p.num_parameters for p in policies)
    speakers = [a for a, speaker in config.speakers().items() if speaker.model == model_name]
    return _Part(shapes, base, policies, tensors, speakers, adapted_parameters(model))


def together(parts: Sequence[Memory]) -> Memory:
    """Memory of several base models: all are held, one at a time is computed with."""
    return Memory(
        **{
            name: sum(getattr(p, name) for p in parts)
            for name in ("weights", "adapters", "probe", "merged")
        },
        **{
            name: max(getattr(p, name) for p in parts)
            for name in ("activations", "cache", "cache_at_limits")
        },
    )


def load_of(
    config: TrainConfig,
    part: _Part,
    lengths: Lengths,
    turns: Mapping[str, int],
    updates: Mapping[str, int],
) -> Load:
    """What a base model has to do in a step; `turns` of each role in an episode."""
    widths = widths_of(part.shapes)
    trained = sum(policy.num_parameters for policy in part.policies)
    routing = config.policy_by_agent()
    side_by_side = {
        role: sum(agent.role == role for agent in part.agents)
        for role in dict.fromkeys(agent.role for agent in part.agents)
    }
    spoken = [turns_of_agent(turns, agent, config) for agent in part.agents]
    learned = [turns_of_agent(turns, agent, config) for agent in part.agents if agent in routing]
    return Load(
        part.base, trained / max(len(part.policies), 1), trained, part.shapes.num_hidden_layers,
        widths.kept, widths.queries, widths.keys, part.shapes.vocab_size,
        torch.finfo(getattr(torch, config.dtype)).bits // 8, lengths.prompt, lengths.response,
        max(config.max_response_tokens_of(agent.role) for agent in config.speakers()),
        {
            role: (turns[role] / sum(a.role == role for a in config.build_workflow().agents), side)
            for role, side in side_by_side.items()
        },
        sum(learned) / max(sum(spoken), 1),
        sum(updates[policy.name] for policy in part.policies),
    )  # fmt: skip


@dataclass(frozen=True)
class Widths:
    """Numbers of a layer per token."""

    queries: int
    keys: int
    kept: int
    """What autograd keeps."""


def widths_of(shapes: Any) -> Widths:
    hidden, heads, wide = shapes.hidden_size, shapes.num_attention_heads, shapes.intermediate_size
    width = getattr(shapes, "head_dim", None) or hidden // heads
    queries, keys = heads * width, (getattr(shapes, "num_key_value_heads", None) or heads) * width
    # Two norms with their inputs, queries, keys and values before and after rotation, the
    # attention's result, gate, up, their product and SiLU.
    return Widths(queries, keys, 6 * hidden + 3 * queries + 3 * keys + 4 * wide)


def lengths_of(config: TrainConfig, task: Task | None) -> Lengths:
    """Lengths of the prompts of the task's first problems in an episode that goes on to its end.

    Replies are those that the embedded models are taught, or as long as they can be. Where task or
    tokenizer are not here, lengths are assumed.
    """
    limits = [config.max_response_tokens_of(agent.role) for agent in config.speakers()]
    assumed_response = sum(limits) / len(limits)
    try:
        tokenizers = {n: load_tokenizer(n, only_here=True) for n in config.models if task}
    except ValueError:
        tokenizers = {}
    if task is None or not tokenizers:
        assumed = min(config.max_prompt_tokens, TYPICAL_PROMPT)
        missing = "problems are" if task is None else "tokenizer is"
        return Lengths(assumed, assumed, assumed_response, f"assumed, since the {missing} not here")
    check_styles(tokenizers)
    tokenizer = tokenizers[config.models[0]]
    workflow, prompts = config.build_workflow(), prompts_for(tokenizer, config)
    prompt_B, response_B = [], []
    for problem in task.train[:MEASURED]:
        replies = replies_of(tokenizer, problem.kind, workers_of(workflow))
        if not is_compact(tokenizer):
            longest = max(limits)
            replies = {kind: filled(tokenizer, text, longest) for kind, text in replies.items()}
        for wave in played(workflow, prompts, problem, replies):
            for ask in wave:
                tokenizer = tokenizers[config.model_of(ask.agent)]
                text = render(tokenizer, ask.messages)
                prompt_B.append(len(tokenizer.encode(text, add_special_tokens=False)))
                reply = tokenizer.encode(replies[ask.kind], add_special_tokens=False)
                limit = config.max_response_tokens_of(ask.agent.role)
                response_B.append(min(len(reply) + 1, limit))  # with the end token
    kept = np.minimum(prompt_B, config.max_prompt_tokens)
    return Lengths(
        float(kept.mean()), int(kept.max()), float(np.mean(response_B)),
        f"measured on {min(MEASURED, len(task.train))} problems",
    )  # fmt: skip


def filled(tokenizer: Any, text: str, tokens: int) -> str:
    """A reply of about so many tokens that is read as `text` is."""
    missing = tokens - len(tokenizer.encode(text, add_special_tokens=False))
    return "so " * missing + text


def measured_policy(
    config: TrainConfig, name: str, agents: tuple[Agent, ...], blocks: tuple[str, ...], size: int
) -> PolicyMeta:
    """What the store will say about a policy, which decides what is kept of each update."""
    if config.probe == "off":
        return PolicyMeta(name, agents, ("unmeasured",), size)
    return PolicyMeta(
        name, agents, blocks, size, config.probe, config.sketch_buckets,
        effective="yes" if config.effective else "",
    )  # fmt: skip


def empty_model(config: TrainConfig, names: Sequence[str], name: str) -> tuple[Any, Any]:
    """The architecture, and a model of it with adapters and without storage."""
    # The hub has nothing to add to shapes that are known.
    where, options = locate(name) if name in KNOWN else reachable(name)
    try:
        shapes = architecture(name, where, **options)
    except OSError as error:
        raise ValueError(
            f"--model {name}: its config.json cannot be found "
            f"({str(error).splitlines()[0]}); give a local directory that holds one"
            f"{near(name)}"
        ) from error
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shapes)  # type: ignore[no-untyped-call]
        return shapes, add_adapters(model, config, names) if names else model


def turns_of(config: TrainConfig, task: Task | None) -> dict[str, int]:
    """Most turns of each role in an episode; one of each agent where there is nothing to play."""
    workflow = config.build_workflow()
    if is_own(config.workflow) and task is None:
        return {
            role: sum(agent.role == role for agent in workflow.agents) for role in workflow.roles
        }
    problem = COMPACT_SAMPLES["math"] if task is None else task.train[0]
    plan = f"[{STRATEGIES[0] * workers_of(workflow)}]"
    replies = {**COMPACT_REPLIES.get(problem.kind, COMPACT_REPLIES["math"]), "plan": plan}
    return most_turns(workflow, CompactPrompts(), problem, replies)


def turns_of_agent(turns: Mapping[str, int], agent: Agent, config: TrainConfig) -> int:
    """Most turns of an agent in an episode: the `turns` of its role are dealt equally."""
    agents = config.build_workflow().agents
    return turns[agent.role] // sum(other.role == agent.role for other in agents)


def episodes_of(config: TrainConfig) -> tuple[int, int]:
    """Episodes of a step, and of an evaluation."""
    return config.problems_per_step * config.samples, config.eval_problems * config.eval_samples


def evaluations_of(config: TrainConfig) -> int:
    """Step 0 and the last step are always evaluated."""
    return 1 + math.ceil(config.steps / config.eval_every)


def largest_wave(config: TrainConfig) -> int:
    """Most responses wanted at once: one of every episode's agent, or of its parallel agents."""
    workflow = config.build_workflow()
    parallel = max(sum(a.role == role for a in workflow.agents) for role in workflow.roles)
    return max(episodes_of(config)) * parallel


def memory_of(
    config: TrainConfig,
    shapes: Any,
    base: int,
    policies: list[PolicyMeta],
    lengths: Lengths,
    adapted: int = 0,
) -> Memory:
    """Of one base model; `adapted`: parameters of the layers that carry adapters."""
    element = torch.finfo(getattr(torch, config.dtype)).bits // 8
    hidden, layers = shapes.hidden_size, shapes.num_hidden_layers
    widths = widths_of(shapes)
    keys, per_token = widths.keys, widths.kept
    kept = layers * hidden + per_token if config.gradient_checkpointing else layers * per_token
    tokens = max(config.micro_tokens, 1)
    response = max(config.max_response_tokens_of(agent.role) for agent in config.speakers())
    longest = lengths.longest_prompt + response
    answered = min(tokens, max(1, tokens // longest) * response)
    # By chunks, three times in float32 and once in the model's dtype; of a token, its hidden state
    # and that one's gradient are kept.
    chunk = min(answered * shapes.vocab_size, CHUNK_LOGITS) * (element + 12)
    logits = chunk + 2 * answered * hidden * element
    row_bytes = layers * 2 * keys * element * min(config.rollout_rows, largest_wave(config))
    if config.sampler != "transformers":
        row_bytes = 0  # an engine keeps them
    probe = 0
    if config.probe != "off":
        probe = sum((2 * len(p.agents) + 2) * p.num_parameters * 4 for p in policies)
    return Memory(
        weights=base * element,
        adapters=sum(p.num_parameters for p in policies) * 16,
        probe=probe,
        activations=tokens * kept * element + logits,
        cache=longest * row_bytes,
        cache_at_limits=(config.max_prompt_tokens + response) * row_bytes,
        merged=adapted * element * config.merges_adapters,
    )


def disk_of(
    config: TrainConfig,
    policies: list[PolicyMeta],
    updates: dict[str, int],
    tensors: dict[str, int],
    lengths: Lengths,
    task: Task | None,
) -> Disk:
    """What a run leaves, without what alarms save; `tensors` of each policy's adapter."""
    last, every = config.steps, config.checkpoint_every
    steps = sorted({*range(every, last + 1, every), last})
    kept = set(steps[-config.keep_states :])  # all of them for 0
    if config.keep_state_every:
        kept |= {step for step in steps if step % config.keep_state_every == 0}
    adapters = sum(4 * p.num_parameters + 128 * tensors[p.name] for p in policies)
    turns = sum(turns_of(config, task).values())
    episodes, evaluated = episodes_of(config)
    played = config.steps * episodes + evaluations_of(config) * evaluated
    return Disk(
        store_bytes(config, policies, updates),
        len(steps) * adapters,
        len(kept) * sum(state_bytes(config, p, tensors[p.name]) for p in policies),
        (len(steps), len(kept)),
        round(played * turns * (8 + 1.5 * lengths.response)),
    )


def state_bytes(config: TrainConfig, policy: PolicyMeta, tensors: int) -> int:
    """Size of a policy's trainer_state.pt: float32 vectors as long as its adapter.

    Adam keeps two; the probe one and one per agent; coherence damping one.
    """
    vectors = 2 + (config.damping_of(policy.agents[0].role) > 0)
    if config.probe != "off":
        vectors += 1 + len(policy.agents)
    return 4 * vectors * policy.num_parameters + 800 * tensors + 6000  # names, random state


def store_bytes(config: TrainConfig, policies: list[PolicyMeta], updates: dict[str, int]) -> int:
    """Bytes of the arrays of the run store, before compression."""
    workflow = config.build_workflow()
    meta = RunMeta(
        "dry-run", config.workflow, config.task, config.model, workflow.roles,
        routing_table(config.policy_by_agent()), tuple(policies),
        problems=tuple(str(i) for i in range(config.eval_problems)),
        eval_samples=config.eval_samples,
        frozen=config.freeze,
    )  # fmt: skip
    total = 0
    for group in groups(meta):
        row = sum(
            math.prod(group.row_shape(array)) * np.dtype(array.dtype).itemsize
            for array in group.arrays
        )
        rows = {"step": config.steps, "eval": evaluations_of(config)}.get(group.row)
        if rows is None:
            rows = config.steps * updates[group.path.removeprefix("updates/")]
            rows *= config.probe != "off"
        total += rows * row
    return total
