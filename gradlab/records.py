"""Name who learns, and what one update, one step and one evaluation of a run leave behind.

The records are the contract between whoever measures (the probe, the trainer, an importer) and the
store. Every array and every metric is declared once, here, with dimensions, unit and meaning; the
schema of the store and the packing of its rows follow from these declarations.

Legend: A agents of a policy, B parameter blocks of a policy, P problems, S samples per problem,
R roles, K signature buckets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]

Mode = Literal["exact", "fused", "streaming", "sketch", "reference"]
"""How a probe splits the gradient; see `gradlab.probe.probe.attach`."""

MODES: tuple[Mode, ...] = get_args(Mode)

SIGNATURE_BUCKETS = 128
"""Buckets of a role signature (hashed token histogram)."""


Dtype = Literal["int64", "float64", "float32", "float16", "uint8"]


@dataclass(frozen=True)
class Kept:
    """How a field of a record is kept: one array of the record's group, one row per record."""

    name: str
    """Of the array."""
    dims: tuple[str, ...]
    """Dimensions after the row's. A mapping's keys are the labels of the first."""
    dtype: Dtype
    unit: str
    meaning: str
    since: str = "1.0"
    """Schema version that introduced it: older stores do without."""
    needs: tuple[str, ...] = ()
    """Settings of PolicyMeta, or of RunMeta, without which there is no such array."""


def kept(
    name: str, dims: tuple[str, ...], dtype: Dtype, unit: str, meaning: str, since: str = "1.0",
    needs: tuple[str, ...] = (),
) -> dict[str, Kept]:  # fmt: skip
    """Metadata that declare a field as an array; the store's schema and packing follow from it."""
    return {"kept": Kept(name, dims, dtype, unit, meaning, since, needs)}


def table(name: str, dims: tuple[str, ...], meaning: str, since: str = "1.0") -> dict[str, Kept]:
    """The same for records of measured fields, whose names are the labels of the last dimension."""
    return kept(name, dims, "float32", "see metric", meaning, since)


def measured(unit: str, meaning: str) -> float:
    """Declare a measured field: NaN until somebody measures it, with its unit and meaning."""
    declared: float = field(default=math.nan, metadata={"unit": unit, "meaning": meaning})
    return declared


@dataclass(frozen=True, order=True)
class Agent:
    """One player of a role, e.g. the third voter: `Agent("generator", 2)`.

    Example:
        >>> str(Agent("worker", 2))
        'worker[2]'
    """

    role: str
    number: int = 0

    def __post_init__(self) -> None:
        if not self.role:
            raise ValueError("Agent: role is empty; expected a name such as 'generator'")
        if self.number < 0:
            raise ValueError(f"Agent: number is {self.number}; expected 0 or more")

    def __str__(self) -> str:
        return f"{self.role}[{self.number}]"


@dataclass(frozen=True)
class UpdateMetrics:
    """Scalars of one optimizer update of one policy."""

    learning_rate: float = measured("1", "learning rate of the first parameter group")
    grad_norm: float = measured("loss", "norm of the policy's gradient before clipping")
    clip_factor: float = measured(
        "1", "scalar c fitted in g = c * sum_a g_a: clipping, averaging and loss scale together"
    )
    residual: float = measured(
        "1", "||g - c sum_a g_a|| / ||g||: 0 when the agents' gradients explain the whole gradient"
    )
    coverage: float = measured("1", "share of trainable parameters whose gradient was attributed")
    update_norm: float = measured("1", "||theta_after - theta_before|| without weight decay")
    decay_norm: float = measured("1", "norm of the weight decay part of the update")
    distance: float = measured("1", "||theta - theta_0|| since the probe was attached")
    weight_norm: float = measured("1", "||theta|| of the measured parameters, before the update")
    step_coherence: float = measured(
        "1",
        "Adam: rms of m_hat / (sqrt(v_hat) + eps) over moved elements; 1 = the same gradient in "
        "every update, sqrt((1 - b1) / (1 + b1)) = noise alone",
    )
    loss: float = measured("loss", "value of the training loss, summed over micro-batches")
    rows: float = measured("count", "rows (turns) in the update")
    probe_seconds: float = measured("s", "time the probe spent reading out this update")


@dataclass(frozen=True)
class RowStatistics:
    """How a role's gradient is made up of its rows, over all rows of the step so far.

    U-statistics of row-gradient inner products; i != j agents, x != x' prompts, k != k' samples.
    Components as variance shares of E||g||^2: see docs/probe.md and
    `gradlab.probe.measures.row_statistics`.
    """

    total: float = measured("loss^2", "E ||g_i(x,k)||^2")
    signal: float = measured("loss^2", "E <g_i(x,k), g_j(x',k')>: the common direction")
    within: float = measured("loss^2", "E <g_i(x,k), g_i(x,k')> - signal: same agent and prompt")
    prompt: float = measured("loss^2", "E <g_i(x,k), g_j(x,k')> - signal: shared prompt")
    episode: float = measured("loss^2", "E <g_i(x,k), g_j(x,k)> - E <g_i(x,k), g_j(x,k')>")
    coherence: float = measured("1", "||sum_i G_i||^2 / sum_i ||G_i||^2 over agents, in [0, N]")
    crosscov: float = measured(
        "loss^2", "mean over prompts of the centred cross-covariance between agents"
    )
    crosscov_se: float = measured("loss^2", "standard error of crosscov over prompts")
    agents: float = measured("count", "agents of the role with rows")
    prompts: float = measured("count", "prompts with rows of the role")
    rows: float = measured("count", "rows of the role")
    dead_rows: float = measured("1", "share of rows whose gradient is exactly zero")
    top_row: float = measured("1", "largest ||g_row||^2 / sum ||g_row||^2")
    dead_prompts: float = measured("1", "share of prompts all of whose rows are dead")
    group_signal: float = measured(
        "loss^2", "mu2 = (||sum_x g_x||^2 - sum_x ||g_x||^2) / (n (n - 1)) over n prompts x"
    )
    group_noise: float = measured("loss^2", "trS = mean_x ||g_x||^2 - mu2, g_x one prompt's rows")
    positive: float = measured("loss^2", "||g+||^2 of the rows with a positive advantage")
    negative: float = measured("loss^2", "||g-||^2 of the rows with a negative advantage")
    opposition: float = measured("loss^2", "<g+, g->; below 0 where the two undo each other")


PAIR = ("agent", "agent2")
SKETCH = ("agent", "sketch_bucket")


@dataclass(frozen=True)
class UpdateRecord:
    """One optimizer update of one policy, as the probe saw it. Order of agents: the policy's."""

    policy: str
    step: int = field(metadata=kept("step", (), "int64", "step", "training step of the update"))
    gram_BAA: FloatArray = field(
        metadata=kept(
            "gram", ("block", "agent", "agent2"), "float32", "loss^2",
            "<g_a, g_b> per parameter block, before clipping",
        )
    )  # fmt: skip
    """[B, A, A]."""
    _: KW_ONLY
    update_gram_AA: FloatArray | None = field(
        default=None,
        metadata=kept("update_gram", PAIR, "float64", "1", "<d_a, d_b> of the optimizer step"),
    )
    """[A, A] of the agents' parts of the optimizer step; None without an exact split."""
    transfer_AA: FloatArray | None = field(
        default=None, metadata=kept("transfer", PAIR, "float64", "loss", "<g_a, d_b>")
    )
    """[A, A] first-order change of a's loss by b's part of the step."""
    history_AA: FloatArray | None = field(
        default=None,
        metadata=kept(
            "history", PAIR, "float64", "loss^2",
            "<g_a, m_b>, m_b the agent's part of the first moment before the update", "1.1",
        ),
    )  # fmt: skip
    """[A, A]."""
    moment_gram_AA: FloatArray | None = field(
        default=None,
        metadata=kept(
            "moment_gram", PAIR, "float64", "loss^2", "<m_a, m_b> before the update", "1.1"
        ),
    )
    """[A, A]."""
    factor_A: FloatArray | None = field(
        default=None,
        metadata=kept(
            "factor", ("agent",), "float64", "1",
            "by what the trainer multiplied g_a before the optimizer used it; NaN: by nothing",
            "1.2",
        ),
    )  # fmt: skip
    """[A] None: not re-weighted. Grams, transfer and history are of g_a as captured, update_gram is
    of the step as made."""
    metrics: UpdateMetrics = field(
        default_factory=UpdateMetrics,
        metadata=table("metrics", ("update_metric",), "update scalars"),
    )
    row_statistics: Mapping[str, RowStatistics] = field(
        default_factory=dict,
        metadata=table(
            "rows", ("role", "row_metric"),
            "row statistics per role over the rows of the step so far",
        ),
    )  # fmt: skip
    """By role; empty when rows were not tagged with prompts."""
    effective_gram_AA: FloatArray | None = field(
        default=None,
        metadata=kept(
            "effective_gram", PAIR, "float64", "loss^2",
            "estimated <W_a, W_b> of gradients with respect to the effective weights", "1.1",
            ("effective",),
        ),
    )  # fmt: skip
    """[A, A]."""
    sketch_AK: FloatArray | None = field(
        default=None,
        metadata=kept(
            "sketch", SKETCH, "float16", "1",
            "sketch of g_a / ||g_a||: buckets i mod K of signed elements i", "1.1",
            ("sketch_buckets",),
        ),
    )  # fmt: skip
    """[A, K] see `gradlab.probe.measures.sketches`; K sketch buckets of the policy."""
    update_sketch_AK: FloatArray | None = field(
        default=None,
        metadata=kept(
            "update_sketch", SKETCH, "float16", "1",
            "sketch of d_a / ||d_a||, d_a the agent's part of the optimizer step", "1.1",
            ("sketch_buckets",),
        ),
    )  # fmt: skip
    """[A, K]."""
    effective_sketch_AK: FloatArray | None = field(
        default=None,
        metadata=kept(
            "effective_sketch", SKETCH, "float16", "1",
            "sketch of W_a / ||W_a||, the projections of the step", "1.1",
            ("sketch_buckets", "effective"),
        ),
    )  # fmt: skip
    """[A, K] they compare within a training step only."""


@dataclass(frozen=True)
class RoleLedger:
    """One role in one training step."""

    episodes: float = measured("count", "episodes in which the role spoke")
    turns: float = measured("count", "responses of the role")
    prompt_tokens: float = measured("tokens", "prompt tokens, summed over turns")
    response_tokens: float = measured("tokens", "response tokens, summed over turns")
    optimizer_steps: float = measured("count", "updates of the step that held rows of the role")
    learning_rate: float = measured("1", "learning rate of the role's policy, last update")
    loss_weight: float = measured(
        "1", "the role's share of its policy's loss weight: capture's null"
    )
    reward_mean: float = measured("reward", "mean reward over turns")
    reward_std: float = measured("reward", "standard deviation of the reward over turns")
    own_accuracy: float = measured("1", "share of turns correct by themselves, where defined")
    outcome_accuracy: float = measured("1", "share of the role's turns whose episode was solved")
    advantage_std: float = measured("1", "standard deviation of the advantage over turns")
    zero_variance_groups: float = measured("1", "share of groups whose rewards are all equal")
    all_right_groups: float = measured(
        "1", "share of groups of several equal rewards in which every turn's episode was solved"
    )
    all_wrong_groups: float = measured(
        "1", "share of groups of several equal rewards in which no turn's episode was solved"
    )
    singleton_groups: float = measured("1", "share of groups with one member")
    inflation: float = measured(
        "1", "Dr. MAS kappa = [sigma_k^2 + (mu_k - mu)^2] / sigma^2 under global normalization"
    )
    entropy: float = measured("nats", "mean token entropy of the policy at the role's responses")
    perplexity: float = measured("1", "exp of the mean negative log-probability of the responses")
    kl: float = measured(
        "nats",
        "mean estimate of KL(policy || reference) per token; k3 but for imports",
    )
    clip_fraction: float = measured("1", "share of tokens where the PPO clip was active")
    ratio_std: float = measured("1", "standard deviation of the importance ratio over tokens")
    length_mean: float = measured("tokens", "mean response length")
    length_p95: float = measured("tokens", "95th percentile of response length")
    truncated: float = measured("1", "share of responses cut by the token limit")
    parse_failures: float = measured("1", "share of responses whose format was not understood")
    logprob_gap: float = measured(
        "nats", "mean |rollout log-prob - trainer log-prob| per token before the first update"
    )
    compared_turns: float = measured(
        "count",
        "turns of the role that logprob_gap and kl are means over, where a few stand for all",
    )


@dataclass(frozen=True)
class RunLedger:
    """The whole run in one training step."""

    accuracy: float = measured("1", "share of training episodes solved")
    reward_mean: float = measured("reward", "mean reward over all turns")
    penalized_reward: float = measured(
        "reward",
        "mean reward over all turns with the KL penalty inside, where the trainer puts it there",
    )
    episodes: float = measured("count", "episodes of the step")
    failed_episodes: float = measured("count", "episodes dropped by an error")
    tokens: float = measured("tokens", "prompt and response tokens of the step")
    rollout_seconds: float = measured("s", "time spent in rollout and rewards")
    train_seconds: float = measured("s", "time spent in forward, backward and optimizer")
    eval_seconds: float = measured("s", "time spent in evaluation at this step")
    step_seconds: float = measured("s", "wall time of the step")
    alarms: float = measured("count", "alarms raised after the step; see alarms.jsonl in the run")
    ungraded: float = measured(
        "count", "different answers that could not be judged in time, counted as wrong"
    )


@dataclass(frozen=True)
class StepRecord:
    """One training step (rollout, then the updates of every policy)."""

    step: int = field(metadata=kept("step", (), "int64", "step", "training step, starting at 1"))
    wall_time: float = field(
        metadata=kept("wall_time", (), "float64", "s", "end of the step, since the epoch")
    )
    run: RunLedger = field(metadata=table("run", ("run_metric",), "run ledger"))
    roles: Mapping[str, RoleLedger] = field(
        metadata=table("roles", ("role", "role_metric"), "role ledger")
    )
    signatures: Mapping[str, FloatArray] = field(
        default_factory=dict,
        metadata=kept(
            "signature", ("role", "bucket"), "float32", "1",
            "share of the role's response tokens per hash bucket",
        ),
    )  # fmt: skip
    """[K] per role; sums to 1."""
    components: Mapping[str, Mapping[str, float]] = field(
        default_factory=dict,
        metadata=kept(
            "reward_components", ("role", "reward_component"), "float32", "reward",
            "mean over the role's turns of each component of the reward, which is their sum",
            "1.3", ("reward_components",),
        ),
    )  # fmt: skip
    """Per role and name."""


@dataclass(frozen=True)
class RoleEvaluation:
    """One role in one evaluation."""

    own_accuracy: float = measured("1", "share of turns correct by themselves, where defined")
    any_correct: float = measured(
        "1", "share of episodes with at least one correct turn of the role"
    )
    choice_accuracy: float = measured(
        "1", "share of episodes solved, given that a correct candidate was offered to the role"
    )
    false_accept: float = measured(
        "1", "share of wrong solutions that the evaluator called correct"
    )
    false_reject: float = measured(
        "1", "share of correct solutions that the evaluator called wrong"
    )
    length_mean: float = measured("tokens", "mean response length")
    length_p95: float = measured("tokens", "95th percentile of response length")
    truncated: float = measured("1", "share of responses cut by the token limit")
    parse_failures: float = measured("1", "share of responses whose format was not understood")
    code_form: float = measured("1", "share of responses with a code fence around 3 lines or more")
    stamp_form: float = measured(
        "1", "share of verdicts that are a bare stamp: readable, at most 200 tokens, no code fence"
    )
    terse: float = measured("1", "share of responses of at most 30 tokens that were understood")
    hedging: float = measured("1", "share of responses with a phrase of doubt")
    echo: float = measured("1", "mean share of a response's word 3-grams that its prompt holds")
    sibling_jaccard: float = measured(
        "1", "mean Jaccard index of the word 3-grams of two agents asked at once in an episode"
    )


@dataclass(frozen=True)
class EvalRecord:
    """One evaluation on the fixed held-out set; problems in the order of `RunMeta.problems`."""

    step: int = field(metadata=kept("step", (), "int64", "step", "training steps done before"))
    """0 is the base model."""
    correct_PS: NDArray[np.uint8] = field(
        metadata=kept(
            "correct", ("problem", "sample"), "uint8", "1", "1 solved, 0 not, 255 missing"
        )
    )
    """[P, S]."""
    roles: Mapping[str, RoleEvaluation] = field(
        metadata=table("roles", ("role", "eval_metric"), "role evaluation")
    )
    role_correct_RP: FloatArray = field(
        metadata=kept(
            "role_correct", ("role", "problem"), "float32", "1",
            "mean own correctness of the role's turns on the problem",
        )
    )  # fmt: skip
    """[R, P] NaN where undefined."""


@dataclass(frozen=True)
class RateRecord:
    """One evaluation of which only the share of right answers is known; see `RunMeta.rates`."""

    step: int = field(
        metadata=kept("step", (), "int64", "step", "training steps done before", "1.2")
    )
    """0 is the base model."""
    accuracy: float = field(
        metadata=kept("accuracy", (), "float64", "1", "share of answers right", "1.2")
    )
    answers: float = field(
        default=math.nan,
        metadata=kept("answers", (), "float64", "count", "graded answers; NaN: unknown", "1.2"),
    )
    """NaN: nothing says how noisy the accuracy is."""
    roles: Mapping[str, RoleEvaluation] = field(
        default_factory=dict,
        metadata=table("roles", ("role", "eval_metric"), "role evaluation", "1.2"),
    )


@dataclass(frozen=True)
class PolicyMeta:
    """What is fixed about one policy for a whole run."""

    name: str
    agents: tuple[Agent, ...]
    blocks: tuple[str, ...]
    """Parameter blocks in store order, e.g. 'layers.0.attention', 'layers.0.mlp', 'embeddings'."""
    num_parameters: int
    """Trainable parameters."""
    mode: Mode | Literal["imported"] = "exact"
    """How the gradients were split; 'imported': by somebody else, see `gradlab.interop`."""
    sketch_buckets: int = 0
    """Buckets of the sketches that are kept of every update; 0: none are."""
    sketch_seed: int = 0
    """Of their signs."""
    effective: str = ""
    """Where gradients of effective weights are kept: those of policies with the same compare."""


@dataclass(frozen=True)
class RunMeta:
    """What is fixed for a whole run; written once as attributes of the store."""

    run_id: str
    workflow: str
    task: str
    model: str
    roles: tuple[str, ...]
    routing: Mapping[str, str]
    """role -> policy name; `generator[0]` -> policy name where a role's agents have several."""
    policies: tuple[PolicyMeta, ...]
    problems: tuple[str, ...] = ()
    """Ids of the held-out problems, in the order of `EvalRecord.correct_PS`."""
    eval_samples: int = 1
    rates: bool = False
    """Evaluations are `RateRecord`s; `problems` is empty then."""
    reward_components: tuple[str, ...] = ()
    """Names of what the reward is the sum of, where it has names."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The whole configuration, JSON-able. Detectors read only its `steps` and `dtype`, if there."""
    versions: Mapping[str, str] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    """Roles that speak with the base model and are not trained; they have no policy."""
    models: Mapping[str, str] = field(default_factory=dict)
    """Policy, or frozen role -> its base model, where that is not `model`."""

    @classmethod
    def of_policies(cls, run_id: str, policies: Sequence[PolicyMeta], **settings: Any) -> RunMeta:
        """Roles and routing are those of the policies' agents, unless given among `settings`.

        Example:
            >>> solver = PolicyMeta("solver", (Agent("voter", 0), Agent("voter", 1)), ("all",), 10)
            >>> RunMeta.of_policies("a", [solver], task="gsm8k").routing
            {'voter': 'solver'}
        """
        routing = routing_table({a: policy.name for policy in policies for a in policy.agents})
        roles = tuple(dict.fromkeys(a.role for policy in policies for a in policy.agents))
        derived: dict[str, Any] = {"workflow": "custom", "task": "custom", "model": "custom"}
        derived |= {"roles": roles, "routing": routing, "policies": tuple(policies)}
        return cls(run_id=run_id, **{**derived, **settings})

    def __post_init__(self) -> None:
        names = {policy.name for policy in self.policies}
        for role in self.roles:
            routed = self.policies_of(role)
            if not routed and role not in self.frozen:
                raise ValueError(
                    f"RunMeta: role '{role}' has no policy; routing covers {sorted(self.routing)}"
                )
            if routed and role in self.frozen:
                raise ValueError(
                    f"RunMeta: role '{role}' is frozen and routed to policy '{routed[0]}'; "
                    "expected one of the two"
                )
            for policy in set(routed) - names:
                raise ValueError(
                    f"RunMeta: role '{role}' is routed to policy '{policy}', "
                    f"expected one of {sorted(names)}"
                )

    @property
    def all_models(self) -> tuple[str, ...]:
        """Names of the base models, each once."""
        owners = [*(policy.name for policy in self.policies), *self.frozen]
        return tuple(dict.fromkeys(self.models.get(name, self.model) for name in owners))

    def policies_of(self, role: str) -> tuple[str, ...]:
        """Names of the policies that the role's agents train: one but where each has its own."""
        if role in self.routing:
            return (self.routing[role],)
        agents = (a for policy in self.policies for a in policy.agents if a.role == role)
        return tuple(dict.fromkeys(p for a in agents if (p := self.routing.get(str(a)))))

    def policy_of(self, agent: Agent) -> str | None:
        """Name of the policy that learns from an agent; None for one that is frozen."""
        return self.routing.get(str(agent), self.routing.get(agent.role))


def routing_table(policy_by_agent: Mapping[Agent, str]) -> dict[str, str]:
    """`RunMeta.routing` of these agents: by role, or by agent where a role's agents differ.

    Example:
        >>> routing_table({Agent("a", 0): "x", Agent("a", 1): "y", Agent("b"): "x"})
        {'a[0]': 'x', 'a[1]': 'y', 'b': 'x'}
    """
    policies: dict[str, set[str]] = {}
    for agent, policy in policy_by_agent.items():
        policies.setdefault(agent.role, set()).add(policy)
    return {
        agent.role if len(policies[agent.role]) == 1 else str(agent): policy
        for agent, policy in policy_by_agent.items()
    }


@dataclass(frozen=True)
class Signal:
    """A named series of a run with unit and subject; what detectors and figures work on."""

    name: str
    unit: str
    subject: str
    """Role, agent pair, policy or 'run'."""
    step_T: NDArray[np.int64]
    value_T: FloatArray
    lower_T: FloatArray | None = None
    upper_T: FloatArray | None = None


def values_of(record: Any, metrics: Sequence[str]) -> FloatArray:
    """The measured fields of these names, as a float64 vector in their order."""
    return np.array([getattr(record, name) for name in metrics], dtype=np.float64)


def names(record: type[Any]) -> tuple[str, ...]:
    """Names of the measured fields of a record type, in store order."""
    return tuple(f.name for f in fields(record) if "unit" in f.metadata)


def values(record: Any) -> FloatArray:
    """Measured fields of a record as a float64 vector, in the order of `names`."""
    return values_of(record, names(type(record)))
