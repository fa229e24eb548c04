"""Read a run: labelled access to everything its store recorded, without torch.

Legend: A agents of a policy, B parameter blocks, E evaluations, K signature buckets, P problems,
R roles, S samples per problem, T training steps, U updates of a policy.

Example:
    >>> run = open_run("runs/voting")
    >>> run.norm("generator").value_T  # mean gradient norm per step
    >>> run.cosine("generator", "aggregator").value_T
    >>> run.cosine(Agent("generator", 0), Agent("generator", 1), per="update")
    >>> run.step_mass("share")["aggregator"].value_T
    >>> run.gram("shared").gram_UBAA  # what all of the above is read out of
    >>> run.ledger("entropy", "generator")
    >>> run.evaluations().accuracy().value_T
    >>> run.to_xarray()["updates/shared"].gram.sel(agent="generator[0]")
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from gradlab.arrays import Floats
from gradlab.readout import gram as readout
from gradlab.readout.pooling import (
    Reduce,
    last_update,
    mean_of_defined,
    mean_over_updates,
    sum_over_updates,
    trailing_mean,
)
from gradlab.readout.sketch_cosines import Sketched, cosines, directness, paired_cosines
from gradlab.records import (
    Agent,
    PolicyMeta,
    RoleEvaluation,
    RowStatistics,
    RunLedger,
    Signal,
    UpdateMetrics,
    names,
)
from gradlab.run_directory import STORE
from gradlab.store.disk import DOCUMENT, journal_path
from gradlab.store.documents import read_group, row_dtype
from gradlab.store.group import StoredGroup
from gradlab.store.identity import read_root
from gradlab.store.journal import read as read_journal
from gradlab.store.journal import replay
from gradlab.store.schema import describe, groups, unit_of

if TYPE_CHECKING:
    import xarray

Per = Literal["step", "update"]
Measure = Literal["mass", "share", "pull", "update"]
Space = Literal["parameters", "weights"]


@dataclass(frozen=True)
class Gram:
    """The recorded Gram matrices of one policy."""

    policy: str
    agents: tuple[Agent, ...]
    blocks: tuple[str, ...]
    step_U: NDArray[np.int64]
    gram_UBAA: Floats
    """<g_a, g_b> per update and block, before clipping, in loss units squared."""


@dataclass(frozen=True)
class Evaluations:
    """Every evaluation of a run; empty arrays if there was none."""

    step_E: NDArray[np.int64]
    """Training steps done before the evaluation."""
    problems: tuple[str, ...]
    roles: tuple[str, ...]
    correct_EPS: Floats
    """1 solved, 0 not, NaN missing."""
    role_correct_ERP: Floats
    """Mean own correctness of a role's turns; NaN where undefined."""
    metrics: tuple[str, ...]
    """Fields of `RoleEvaluation` that were recorded."""
    metric_ERM: Floats
    rate_E: Floats | None = None
    """Share of answers right where that is all that is known; None: answers are kept by problem."""
    answers_E: Floats | None = None
    """Graded answers behind `rate_E`; NaN: unknown."""

    def num_correct_E(self) -> NDArray[np.int64]:
        """Solved samples over all problems; 0 where the number of answers is unknown."""
        if self.rate_E is not None and self.answers_E is not None:
            return np.rint(np.nan_to_num(self.rate_E * self.answers_E)).astype(np.int64)
        return np.asarray(np.sum(self.correct_EPS == 1, axis=(1, 2)), dtype=np.int64)

    def num_samples_E(self) -> NDArray[np.int64]:
        """Samples that were not missing; 0 where their number is unknown."""
        if self.answers_E is not None:
            return np.rint(np.nan_to_num(self.answers_E)).astype(np.int64)
        return np.asarray(np.sum(np.isfinite(self.correct_EPS), axis=(1, 2)), dtype=np.int64)

    def accuracy(self) -> Signal:
        """Share of samples solved."""
        if self.rate_E is not None:
            return Signal("accuracy", "1", "run", self.step_E, self.rate_E)
        accuracy = readout.quotient(self.num_correct_E(), self.num_samples_E())
        return Signal("accuracy", "1", "run", self.step_E, accuracy)

    def role(self, name: str, role: str) -> Signal:
        """One field of `RoleEvaluation`, per evaluation; NaN where the store is too old for it."""
        place = _index(self.roles, role, "role")
        if name not in self.metrics and name in names(RoleEvaluation):
            value = np.full(len(self.step_E), np.nan)
        else:
            metric = _index(self.metrics, name, "evaluation metric")
            value = self.metric_ERM[:, place, metric]
        unit = describe(RoleEvaluation)[name]["unit"]
        return Signal(name, unit, role, self.step_E, value)


class Run:
    """A recorded run, as it was when it was opened; arrays are read when first asked for.

    A run may be opened while it is written, or after its writer was killed: rows that only the
    journal holds are included. Open it again to see later rows.
    """

    def __init__(self, path: Path, until: int | None = None) -> None:
        """Open the store at `path`; see `open_run`."""
        self.path = path
        self.meta, attributes = read_root(path)
        self.closed = bool(attributes.get("closed", False))
        # The journal before the commit points: a flush between the two then loses no row.
        entries = [] if self.closed else list(read_journal(journal_path(path)))
        self._groups: dict[str, StoredGroup] = {}
        for number, spec in enumerate(groups(self.meta)):
            state = read_group(path, spec)
            tail = replay(entries, number, state.generation, state.committed, row_dtype(state.spec))
            self._groups[spec.path] = StoredGroup(path, state, tail, until)
        self._pooled: dict[tuple[str, str | None], Floats] = {}
        self.until = until if self._groups["train"].is_cut else None
        """Last step that was asked for, where the store holds later ones."""
        if self.until is not None:
            self.closed = False

    def __repr__(self) -> str:
        state = "closed" if self.closed else "not closed"
        last = int(self.steps[-1]) if len(self.steps) else 0
        return (
            f"Run({str(self.path)!r}: {self.meta.workflow} on {self.meta.task} with "
            f"{' and '.join(self.meta.all_models)}, {last} steps, {state})"
        )

    # -- what there is -------------------------------------------------------------------------

    @property
    def roles(self) -> tuple[str, ...]:
        return self.meta.roles

    @property
    def policies(self) -> tuple[PolicyMeta, ...]:
        return self.meta.policies

    @property
    def steps(self) -> NDArray[np.int64]:
        """[T] training steps recorded."""
        return self._groups["train"].array("step")

    def policies_of(self, role: str) -> tuple[PolicyMeta, ...]:
        """The policies that learn from the role: one, one per agent or so, or none if frozen."""
        _index(self.roles, role, "role")
        return tuple(self._policy(name) for name in self.meta.policies_of(role))

    def policy_of(self, role: str) -> PolicyMeta:
        """The policy that learns from the role.

        Raises ValueError for a role that is frozen, or whose agents train several policies.
        """
        policies = self.policies_of(role)
        if not policies:
            raise ValueError(
                f"role '{role}' is frozen: it speaks with the base model, and no policy or "
                "gradient is its own"
            )
        if len(policies) > 1:
            raise ValueError(
                f"the agents of '{role}' train several policies, "
                f"{', '.join(policy.name for policy in policies)}, and their gradients live in "
                f"different spaces; name an agent, such as {self.agents(role)[0]!r}"
            )
        return policies[0]

    def agents(self, role: str) -> tuple[Agent, ...]:
        """The players of a role that are trained."""
        policies = self.policies_of(role)
        return tuple(a for policy in policies for a in policy.agents if a.role == role)

    # -- gradients -----------------------------------------------------------------------------

    def gram(self, policy: str) -> Gram:
        """The Gram matrices that norms, cosines and masses are read out of."""
        meta = self._policy(policy)
        group = self._groups[f"updates/{policy}"]
        return Gram(
            policy,
            meta.agents,
            meta.blocks,
            group.array("step"),
            group.array("gram").astype(np.float64),
        )

    def update_gram(self, policy: str) -> Floats:
        """[U, A, A] <d_a, d_b> of the agents' parts of the optimizer step; NaN where absent."""
        return self._update_array("update_gram", policy)

    def factors(self, policy: str) -> Floats:
        """[U, A] by what the trainer multiplied each agent's gradient before the optimizer used it.

        1 where it did not. Norms, cosines and masses are of the gradients as captured: multiply
        by these for those that the optimizer saw.
        """
        factor_UA = self._update_array("factor", policy)
        return np.where(np.isfinite(factor_UA), factor_UA, 1.0)

    def effective_gram(self, policy: str) -> Floats:
        """[U, A, A] estimated <W_a, W_b> of gradients with respect to effective weights."""
        return self._update_array("effective_gram", policy)

    def transfer(self, policy: str) -> Floats:
        """[U, A, A] <g_a, d_b>: change of a's loss by b's part of the step; NaN where absent."""
        return self._update_array("transfer", policy)

    def norm(self, who: str | Agent, *, block: str | None = None, per: Per = "step") -> Signal:
        """||g_who|| before clipping; per step the mean over the step's updates.

        Of a role whose agents train several policies the root of the sum of squares, per step.
        """
        if isinstance(who, str) and who in self.roles and len(self.policies_of(who)) > 1:
            return self._norm_of_several(who, block, per)
        policy = self.policy_for(who)
        value_U = readout.norm(self._gram_UAA(policy, block), readout.members(policy.agents, who))
        return self._signal(
            _named("norm", block), "loss", str(who), policy, value_U, per, mean_over_updates
        )

    def cosine(
        self,
        a: str | Agent,
        b: str | Agent,
        *,
        block: str | None = None,
        per: Per = "step",
        space: Space = "parameters",
    ) -> Signal:
        """cos(g_a, g_b) of two roles or agents of one policy, or of one and 'total'.

        NaN in an update where either gradient is 0; per step the mean over the other updates.
        In space 'weights', an estimate for the gradients with respect to effective weights, also of
        two policies: then of their sums over the updates of a step.
        """
        if space == "weights":
            return self._cosine_of_weights(a, b, block, per)
        if space != "parameters":
            raise ValueError(f"space is '{space}'; expected 'parameters' or 'weights'")
        policy = self._common_policy(a, b)
        value_U = readout.cosine(
            self._gram_UAA(policy, block),
            readout.members(policy.agents, a),
            readout.members(policy.agents, b),
        )
        subject = f"{a}, {b}"
        return self._signal(
            _named("cosine", block), "1", subject, policy, value_U, per, mean_of_defined
        )

    def step_mass(
        self, measure: Measure = "share", *, block: str | None = None
    ) -> dict[str, Signal]:
        """How much of a step is each trained role's; shares are within the policies of the role.

        mass: sum over updates of ||g_r||. share: mass / sum of the masses of the policy's roles.
        pull: sum over updates of <g_r, g> / sum of ||g||^2, signed. update: the same of the
        optimizer step, <d_r, d> / ||d||^2; NaN where it was not split, and not known by block.
        With a block, the roles whose policy has it.
        """
        if measure not in ("mass", "share", "pull", "update"):
            raise ValueError(
                f"unknown step mass '{measure}'; expected 'mass', 'share', 'pull' or 'update'"
            )
        if measure == "update" and block is not None:
            raise ValueError("update shares are recorded for the whole policy; leave block out")
        if block is not None:
            blocks = dict.fromkeys(name for policy in self.policies for name in policy.blocks)
            _index(blocks, block, "block")
        unit = "loss" if measure == "mass" else "1"
        signals: dict[str, Signal] = {}
        several: dict[str, list[_Part]] = {}
        for policy in self.policies:
            if block is not None and block not in policy.blocks:
                continue
            roles = _roles(policy)
            step_U = self._groups[f"updates/{policy.name}"].array("step")
            gram_UAA = (
                self.update_gram(policy.name)
                if measure == "update"
                else self._gram_UAA(policy, block)
            )
            gram_URR = readout.grouped(gram_UAA, readout.grouping(policy.agents, roles))
            if measure in ("mass", "share"):
                norm_UR = np.sqrt(np.maximum(np.diagonal(gram_URR, axis1=-2, axis2=-1), 0.0))
                step_T, part_TR = sum_over_updates(step_U, norm_UR)
                value_TR = readout.shares(part_TR) if measure == "share" else part_TR
            else:  # the pull of the step's updates pooled
                step_T, gram_TRR = sum_over_updates(step_U, gram_URR)
                value_TR, part_TR = readout.pull(gram_TRR), gram_TRR.sum(axis=-1)
            for index, role in enumerate(roles):
                if len(self.meta.policies_of(role)) > 1:
                    part = (step_T, part_TR[:, index], part_TR.sum(axis=1))
                    several.setdefault(role, []).append(part)
                    continue
                name = _named(measure, block)
                signals[role] = Signal(name, unit, role, step_T, value_TR[:, index])
        for role, parts in several.items():
            step_T, own_T, whole_T = _joined(parts)
            value_T = own_T if measure == "mass" else readout.quotient(own_T, whole_T)
            signals[role] = Signal(_named(measure, block), unit, role, step_T, value_T)
        return {role: signals[role] for role in self.roles if role in signals}

    def cosine_with_history(self, who: str | Agent, *, per: Per = "step") -> Signal:
        """cos(g_who, m_who): the gradient against its own first moment from before the update.

        The moment averages about 1 / (1 - b1) updates. NaN in the first update and where the
        optimizer's step was not split; per step the mean over the other updates.
        """
        policy = self.policy_for(who)
        w_A = readout.members(policy.agents, who)
        inner_U = readout.inner(self._update_array("history", policy.name), w_A, w_A)
        moment_U = readout.norm(self._update_array("moment_gram", policy.name), w_A)
        norm_U = readout.norm(self._gram_UAA(policy, None), w_A)
        value_U = np.clip(readout.quotient(inner_U, norm_U * moment_U), -1.0, 1.0)
        name = "cosine_with_history"
        return self._signal(name, "1", str(who), policy, value_U, per, mean_of_defined)

    def update_to_weight(self, who: str | Agent, *, per: Per = "step") -> Signal:
        """||d_who|| / ||theta||, theta the measured parameters before the update."""
        policy = self.policy_for(who)
        weight_U = self.update_metric("weight_norm", policy.name).value_T
        value_U = readout.quotient(self._update_norm_U(policy, who), weight_U)
        return self._signal(
            "update_to_weight", "1", str(who), policy, value_U, per, mean_over_updates
        )

    def path_length(self, who: str | Agent) -> Signal:
        """Sum of ||d_who|| over the updates of a step: how far the step walked for it."""
        policy = self.policy_for(who)
        value_U = self._update_norm_U(policy, who)
        return self._signal("path_length", "1", str(who), policy, value_U, "step", sum_over_updates)

    # -- across updates ------------------------------------------------------------------------

    def sketch(self, who: str | Agent, *, of: Sketched = "gradient") -> Floats:
        """[U, K] sketch of g_who, or of its part of the optimizer's step, per update.

        Inner products of sketches estimate those of what was sketched; see
        `gradlab.probe.measures.sketches`. NaN where the step was not split.
        """
        if of not in ("gradient", "update"):
            raise ValueError(f"of is '{of}'; expected 'gradient' or 'update'")
        return self._sketch(who, of)

    def _sketch(self, who: str | Agent, of: Sketched | Literal["effective"]) -> Floats:
        policy = self.policy_for(who)
        if of == "gradient":
            gram_UAA, name = self._gram_UAA(policy, None), "sketch"
        else:
            name = f"{of}_sketch"
            gram_UAA = self._update_array(f"{of}_gram", policy.name)
        norm_UA = np.sqrt(np.maximum(np.diagonal(gram_UAA, axis1=-2, axis2=-1), 0.0))
        unit_UAK = self._update_array(name, policy.name)
        chosen = np.flatnonzero(readout.members(policy.agents, who))
        sketch_UK: Floats = np.einsum("ua,uak->uk", norm_UA[:, chosen], unit_UAK[:, chosen])
        return sketch_UK

    def cosine_across(
        self, a: str | Agent, b: str | Agent | None = None, *, of: Sketched = "gradient"
    ) -> Floats:
        """[U, U] estimated cosine of a in one update and b (None: a) in another, of one policy.

        Off by about (1 - cos^2) / sqrt(sketch buckets). `cosine_between` compares runs.
        """
        b = a if b is None else b
        self._common_policy(a, b)
        return cosines(self.sketch(a, of=of), self.sketch(b, of=of))

    def cosine_between(
        self, other: Run, a: str | Agent, b: str | Agent | None = None, *, of: Sketched = "gradient"
    ) -> Floats:
        """[U, V] estimated cosines of `a` in updates of this run and `b` (None: `a`) of `other`.

        Raises ValueError unless both train the same parameters: it is their order along the flat
        axis that is compared.
        """
        b = a if b is None else b
        left, right = self.policy_for(a), other.policy_for(b)
        for what in ("sketch_buckets", "sketch_seed", "num_parameters", "blocks"):
            mine, theirs = getattr(left, what), getattr(right, what)
            if mine != theirs:
                raise ValueError(
                    f"cosine_between: {what} of policy '{left.name}' in {self.path} is {mine}, of "
                    f"'{right.name}' in {other.path} {theirs}; only sketches over the same "
                    "parameters with the same buckets compare"
                )
        return cosines(self.sketch(a, of=of), other.sketch(b, of=of))

    def directness(self, who: str | Agent, *, window: int = 10) -> Signal:
        """||sum d|| / sum ||d|| of who's parts of the last `window` steps: march or random walk."""
        policy = self.policy_for(who)
        step_T, value_T = directness(
            self._groups[f"updates/{policy.name}"].array("step"),
            self.sketch(who, of="update"),
            self._update_norm_U(policy, who),
            window,
        )
        return Signal("directness", "1", str(who), step_T, value_T)

    # -- metrics -------------------------------------------------------------------------------

    def reward_components(self, role: str) -> dict[str, Signal]:
        """Name -> mean over the role's turns of that part of the reward; empty if it has none."""
        place = _index(self.roles, role, "role")
        if not self.meta.reward_components:
            return {}
        value_TRC = self._groups["train"].array("reward_components").astype(np.float64)
        return {
            name: Signal(name, "reward", role, self.steps, value_TRC[:, place, index])
            for index, name in enumerate(self.meta.reward_components)
        }

    def update_metric(self, name: str, policy: str) -> Signal:
        """A field of `UpdateMetrics`, per update."""
        self._policy(policy)
        group = self._groups[f"updates/{policy}"]
        value_U = group.metric("metrics", "update_metric", name)
        unit = describe(UpdateMetrics)[name]["unit"]
        return Signal(name, unit, policy, group.array("step"), value_U)

    def row_statistic(self, name: str, role: str, policy_name: str | None = None) -> Signal:
        """A field of `RowStatistics`, per step: the value of the step's last update.

        Of a role whose agents train several policies, over those of the one that is named.
        """
        policy = self.policy_of(role) if policy_name is None else self._policy(policy_name)
        group = self._groups[f"updates/{policy.name}"]
        place = _index(group.labels("role"), role, "role with agents in its policy")
        value_U = group.metric("rows", "row_metric", name, place)
        unit = describe(RowStatistics)[name]["unit"]
        return self._signal(name, unit, role, policy, value_U, "step", last_update)

    @property
    def row_statistics_gap(self) -> str | None:
        """Why most steps have no row statistics, where the run was told so; else None."""
        every = self.meta.config.get("row_statistics", 1)
        if every == 0:
            return "row statistics were switched off (--row-statistics 0)"
        if every == 1:
            return None
        return f"row statistics were measured every {every} steps (--row-statistics {every})"

    def noise_scale(self, role: str, *, window: int = 1) -> Signal:
        """trS / mu2, per step: prompts at which signal and noise of the role's gradient are equal.

        The "simple noise scale" of McCandlish et al. 2018 with prompts as examples; both parts are
        averaged over the last `window` steps first. NaN where the estimated signal is not above 0.
        """
        signal_T, noise_T, _ = self._signal_and_noise(role, window)
        value_T = readout.quotient(noise_T, np.where(signal_T > 0, signal_T, 0.0))
        return Signal("noise_scale", "prompts", role, self._role_steps(role), value_T)

    def snr(self, role: str, *, window: int = 1) -> Signal:
        """n mu2 / trS, per step: below 1, the role trains mostly on noise. NaN as `noise_scale`."""
        signal_T, noise_T, prompts_T = self._signal_and_noise(role, window)
        above_T = prompts_T * np.where(signal_T > 0, signal_T, np.nan)
        value_T = readout.quotient(above_T, noise_T)
        return Signal("snr", "1", role, self._role_steps(role), value_T)

    def sign_split(self, role: str) -> dict[str, Signal]:
        """The role's gradient by the sign of the advantage, per step.

        'positive' and 'negative': ||g+|| and ||g-||; 'cosine': cos(g+, g-). NaN where advantages
        were not tagged.
        """
        positive_T, negative_T, inner_T = (
            self.row_statistic(name, role).value_T
            for name in ("positive", "negative", "opposition")
        )
        # The estimates come from sketches and may fall below 0.
        norms = [np.sqrt(np.maximum(norm2_T, 0.0)) for norm2_T in (positive_T, negative_T)]
        cosine_T = np.clip(readout.quotient(inner_T, norms[0] * norms[1]), -1.0, 1.0)
        step_T = self._role_steps(role)
        return {
            name: Signal(name, unit, role, step_T, value_T)
            for name, unit, value_T in (
                ("positive", "loss", norms[0]),
                ("negative", "loss", norms[1]),
                ("cosine", "1", cosine_T),
            )
        }

    def ledger(self, name: str, role: str) -> Signal:
        """A field of `RoleLedger`, per step."""
        group = self._groups["train"]
        value_T = group.metric("roles", "role_metric", name, _index(self.roles, role, "role"))
        return Signal(name, unit_of("role_metric", name), role, self.steps, value_T)

    def run_metric(self, name: str) -> Signal:
        """A field of `RunLedger`, per step; NaN where the store is older than the field."""
        group = self._groups["train"]
        value_T = group.metric("run", "run_metric", name)
        unit = describe(RunLedger)[name]["unit"]
        return Signal(name, unit, "run", self.steps, value_T)

    def signature(self, role: str) -> NDArray[np.float32]:
        """[T, K] share of the role's response tokens per hash bucket; NaN where not recorded."""
        signature_TRK: NDArray[np.float32] = self._groups["train"].array("signature")
        return signature_TRK[:, _index(self.roles, role, "role")]

    def evaluations(self) -> Evaluations:
        """Every evaluation on the held-out problems."""
        group = self._groups.get("eval")
        rates = self._groups.get("rates")
        num_roles = len(self.roles)
        if group is None and rates is not None:
            step_E = rates.array("step")
            return Evaluations(
                step_E,
                (),
                self.roles,
                np.empty((len(step_E), 0, self.meta.eval_samples)),
                np.empty((len(step_E), num_roles, 0)),
                rates.labels("eval_metric"),
                rates.array("roles").astype(np.float64),
                rates.array("accuracy"),
                rates.array("answers"),
            )
        if group is None:
            return Evaluations(
                np.empty(0, np.int64),
                (),
                self.roles,
                np.empty((0, 0, self.meta.eval_samples)),
                np.empty((0, num_roles, 0)),
                (),
                np.empty((0, num_roles, 0)),
            )
        correct = group.array("correct")
        return Evaluations(
            group.array("step"),
            self.meta.problems,
            self.roles,
            np.where(correct == 255, np.nan, correct),
            group.array("role_correct").astype(np.float64),
            group.labels("eval_metric"),
            group.array("roles").astype(np.float64),
        )

    def to_xarray(self) -> xarray.DataTree:
        """All groups with labelled dimensions, units and meanings; reads everything."""
        import xarray

        datasets: dict[str, xarray.Dataset] = {}
        for path, group in self._groups.items():
            spec = group.state.spec
            datasets[path] = xarray.Dataset(
                {
                    array.name: (
                        array.dims,
                        group.array(array.name),
                        {"unit": array.unit, "meaning": array.meaning},
                    )
                    for array in spec.arrays
                },
                coords={dim: list(labels) for dim, labels in spec.labels.items()},
            )
        return xarray.DataTree.from_dict(datasets, name=self.meta.run_id)

    # -- inside --------------------------------------------------------------------------------

    def _policy(self, name: str) -> PolicyMeta:
        return self.policies[_index([policy.name for policy in self.policies], name, "policy")]

    def policy_for(self, who: str | Agent) -> PolicyMeta:
        """The policy whose gradient space `who` lives in."""
        if who == "total":
            if len(self.policies) > 1:
                raise ValueError(
                    f"'total' is ambiguous: the run has the policies "
                    f"{[policy.name for policy in self.policies]}; name a role or an agent"
                )
            return self.policies[0]
        if isinstance(who, str):
            return self.policy_of(who)
        for policy in self.policies_of(who.role):
            if who in policy.agents:
                return policy
        known = self.agents(who.role) or self.policy_of(who.role).agents
        raise ValueError(f"unknown agent '{who}'; this run has {[str(agent) for agent in known]}")

    def _norm_of_several(self, role: str, block: str | None, per: Per) -> Signal:
        """Of a role of several policies, whose gradients live in spaces of their own."""
        if per != "step":
            raise ValueError(
                f"the agents of '{role}' train several policies, each with updates of its own; "
                "use per='step', or name an agent"
            )
        parts: list[_Part] = []
        for policy in self.policies_of(role):
            if block is not None and block not in policy.blocks:
                continue
            w_A = readout.members(policy.agents, role)
            norm_U = readout.norm(self._gram_UAA(policy, block), w_A)
            step_U = self._groups[f"updates/{policy.name}"].array("step")
            step_T, norm_T = mean_over_updates(step_U, norm_U)
            parts.append((step_T, norm_T**2, norm_T))
        step_T, square_T, _ = _joined(parts)
        return Signal(_named("norm", block), "loss", role, step_T, np.sqrt(square_T))

    def _cosine_of_weights(
        self, a: str | Agent, b: str | Agent, block: str | None, per: Per
    ) -> Signal:
        if block is not None:
            raise ValueError("gradients of effective weights are kept for the whole policy only")
        name, subject = "cosine of weights", f"{a}, {b}"
        if a == "total" or b == "total" or self.policy_for(a) == self.policy_for(b):
            policy = self._common_policy(a, b)
            w_A, v_A = (readout.members(policy.agents, who) for who in (a, b))
            value_U = readout.cosine(self._update_array("effective_gram", policy.name), w_A, v_A)
            return self._signal(name, "1", subject, policy, value_U, per, mean_of_defined)
        if per != "step":
            raise ValueError(f"{a} and {b} have policies and updates of their own; use per='step'")
        names = [self.policy_for(who).name for who in (a, b)]
        models = [self.meta.models.get(name, self.meta.model) for name in names]
        if models[0] != models[1]:
            raise ValueError(
                f"cosine of {a} and {b}: their policies have different base models, {models[0]} "
                f"and {models[1]}, whose weights do not compare"
            )
        prints = [self.policy_for(who).effective for who in (a, b)]
        if prints[0] != prints[1]:
            raise ValueError(
                f"cosine of {a} and {b}: gradients of their effective weights were kept as "
                f"'{prints[0]}' and '{prints[1]}' ('': not at all); attach both policies with "
                "effective=True to the same layers"
            )
        sums = []
        for who in (a, b):
            step_U = self._groups[f"updates/{self.policy_for(who).name}"].array("step")
            sums.append(sum_over_updates(step_U, self._sketch(who, "effective")))
        step_T, places_a, places_b = np.intersect1d(sums[0][0], sums[1][0], return_indices=True)
        value_T = paired_cosines(sums[0][1][places_a], sums[1][1][places_b])
        return Signal(name, "1", subject, step_T, value_T)

    def _common_policy(self, a: str | Agent, b: str | Agent) -> PolicyMeta:
        if a == "total" or b == "total":
            return self.policy_for(b if a == "total" else a)
        first, second = self.policy_for(a), self.policy_for(b)
        if first.name != second.name:
            raise ValueError(
                f"cosine of {a} and {b}: {a} trains policy '{first.name}' and {b} trains "
                f"'{second.name}'; their gradients live in different spaces and have no angle. "
                f"Compare them in a run in which they share a policy"
            )
        return first

    def _role_steps(self, role: str) -> NDArray[np.int64]:
        """[T] steps in which the role's policy was updated."""
        return self.row_statistic("rows", role).step_T

    def _signal_and_noise(self, role: str, window: int) -> tuple[Floats, Floats, Floats]:
        """mu2, trS and the number of prompts, averaged over the last `window` steps."""
        signal_T, noise_T, prompts_T = (
            trailing_mean(np.asarray(self.row_statistic(name, role).value_T), window)
            for name in ("group_signal", "group_noise", "prompts")
        )
        return signal_T, noise_T, prompts_T

    def _gram_UAA(self, policy: PolicyMeta, block: str | None) -> Floats:
        key = (policy.name, block)
        if key not in self._pooled:
            gram_UBAA = self._groups[f"updates/{policy.name}"].array("gram")
            if block is None:
                self._pooled[key] = gram_UBAA.sum(axis=1, dtype=np.float64)
            else:
                index = _index(policy.blocks, block, f"block of policy '{policy.name}'")
                self._pooled[key] = gram_UBAA[:, index].astype(np.float64)
        return self._pooled[key]

    def _update_array(self, name: str, policy: str) -> Floats:
        self._policy(policy)
        group = self._groups[f"updates/{policy}"]
        if not group.has(name):
            raise ValueError(
                f"'{name}' was not recorded in {self.path} for policy '{policy}': it was written "
                f"by an older gradlab, or with this measurement off"
            )
        return group.array(name).astype(np.float64)

    def _update_norm_U(self, policy: PolicyMeta, who: str | Agent) -> Floats:
        w_A = readout.members(policy.agents, who)
        return readout.norm(self._update_array("update_gram", policy.name), w_A)

    def _signal(
        self,
        name: str,
        unit: str,
        subject: str,
        policy: PolicyMeta,
        value_U: Floats,
        per: Per,
        reduce: Reduce,
    ) -> Signal:
        step_U = self._groups[f"updates/{policy.name}"].array("step")
        if per == "update":
            return Signal(name, unit, subject, step_U, value_U)
        if per != "step":
            raise ValueError(f"per is '{per}'; expected 'step' or 'update'")
        step_T, value_T = reduce(step_U, value_U)
        return Signal(name, unit, subject, step_T, value_T)


def open_run(path: Path | str, *, until: int | None = None) -> Run:
    """Open a run for reading: a run directory (one that holds run.zarr), or a store itself.

    `until`: as it was after that training step, later rows left out.

    Raises `StoreError` (a `ValueError`) if it is missing, foreign, of another schema or damaged.
    """
    path = Path(path)
    if not (path / DOCUMENT).exists() and (path / STORE).exists():
        path = path / STORE
    return Run(path, until)


_Part = tuple[NDArray[np.int64], Floats, Floats]
"""[T] steps, and what one policy adds to a role's and to everybody's part."""


def _joined(parts: list[_Part]) -> _Part:
    """Sums of the parts over all steps that any of them has."""
    step_T = np.unique(np.concatenate([part[0] for part in parts]))
    own_T, whole_T = np.zeros(len(step_T)), np.zeros(len(step_T))
    for known_T, own, whole in parts:
        row = np.searchsorted(step_T, known_T)
        own_T[row] += own
        whole_T[row] += whole
    return step_T, own_T, whole_T


def _roles(policy: PolicyMeta) -> tuple[str, ...]:
    return tuple(dict.fromkeys(agent.role for agent in policy.agents))


def _named(name: str, block: str | None) -> str:
    return name if block is None else f"{name} in {block}"


def _index(known: Any, name: Any, what: str) -> int:
    if name not in known:
        raise ValueError(f"unknown {what} '{name}'; this run has {[str(item) for item in known]}")
    return list(known).index(name)
