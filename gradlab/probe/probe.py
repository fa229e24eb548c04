"""Measure every agent's exact gradient, and its part of the step, in an ordinary training loop.

    probe = attach(model, optimizer, agents=[Agent("generator", 0), Agent("aggregator")])
    for batch in batches:
        probe.tag(batch.agents)      # the agent of every row, before the forward
        loss(model, batch).backward()
    optimizer.step()                 # everything else happens on the optimizer's hooks

Legend: A agents of the policy, B parameter blocks, P measured parameters (elements), n rows,
K sketch buckets.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from gradlab.probe.attachment_checks import check_request, check_steps, measured
from gradlab.probe.audit import Audit
from gradlab.probe.capture.hooks import Hook
from gradlab.probe.capture.reference import backward_per_agent
from gradlab.probe.capture.tags import whole_numbers
from gradlab.probe.instrument import Instrument, PendingUpdate, Setup
from gradlab.probe.layout import lay_out
from gradlab.probe.measures.requested import Extras, Request
from gradlab.probe.messages import complaint, report
from gradlab.probe.ranks.distributed import Losses, Ranks, unwrap
from gradlab.probe.ranks.fsdp1 import ordinary
from gradlab.probe.segment_checks import check_segments, mixes_tokens
from gradlab.probe.selfcheck import SelfCheck
from gradlab.probe.sink import Record, Recording
from gradlab.records import Agent, FloatArray, Mode, PolicyMeta, RunMeta, UpdateRecord


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    agents: Sequence[Agent],
    policy: str = "shared",
    record: Record = None,
    projection_seed: int = 0,
    group: ProcessGroup | None = None,
    mode: Mode = "exact",
    sketch_rank: int = 32,
    sketch_buckets: int = 0,
    effective: bool = False,
    losses: Losses = "mean",
) -> Probe:
    """Watch the parameters that `optimizer` trains, and split every update into `agents`.

    Measured are the optimizer's parameters that require a gradient now; all of them if none does
    (an adapter that is switched off at the moment). `record` receives an `UpdateRecord` per
    `optimizer.step()`: a function, a `RunStore`, or the path of a `.zarr` to create; None keeps
    only `probe.last`. Cost: 2 x A x P floats of memory and a few percent of a LoRA step.

    `mode`: how the gradient is split.
    'exact': beside the ordinary backward. Gradients, parameters and random numbers stay bitwise
    those of a run without the probe.
    'fused': the weight gradient of linear layers is computed once, by agent, and the optimizer gets
    the sum. Cheaper; gradients differ by rounding (1e-7 in float32) and cannot be differentiated
    again.
    'streaming': as 'fused', for full fine-tuning: every parameter's gradients are folded into the
    Gram as soon as its backward is done. Exact, and no more than one parameter's gradients are held
    at a time; an update has to be one backward, updates are not split.
    'sketch': as 'exact', but of each weight gradient only a random projection to `sketch_rank` x
    `sketch_rank` is kept, drawn anew every step: A x rank^2 floats per parameter and no full-size
    buffer, for full fine-tuning. Grams are then unbiased estimates; updates are not split.
    'reference': one backward per agent, called as `probe.backward({agent: loss})` in place of
    `loss.backward()` and `tag`. As many backwards as agents; for audits, and for sequences in which
    tokens of several agents attend to each other.

    `sketch_buckets`: keep a sketch of that many buckets (a prime such as 4093 or 16381) of every
    agent's gradient and part of the step, to compare updates with each other: see
    `gradlab.probe.measures.sketches`. 2 x A x buckets x 2 bytes on disk per update.

    `effective`: measure gradients with respect to the weights of linear layers, adapters merged,
    too. Unlike those of LoRA's factors they compare between policies; see
    `gradlab.probe.measures.effective`. One process.

    Data parallel (DDP, FSDP): attach on every rank, after wrapping. Each tags its own rows, the
    agents' gradients are averaged over `group` (all ranks if None) once per update, and its first
    rank records.

    `losses='sum'`: of a trainer without such a wrapper, whose ranks weigh their rows by the whole
    batch, so that the loss is the sum of theirs. It calls `probe.reduce()` before the step.

    Example:
        >>> agents = [Agent("generator", 0), Agent("generator", 1), Agent("aggregator")]
        >>> probe = attach(model, optimizer, agents=agents, record="run.zarr")
        >>> probe.tag([agents[0], agents[0], agents[1], agents[2]])  # one per row
        >>> model(**batch).loss.backward(); optimizer.step()
        >>> probe.last.gram_BAA.sum(0)
    """
    agents = tuple(agents)
    model = unwrap(model)
    check_request(agents, policy, mode, sketch_rank)
    check_steps(optimizer)
    ranks, layout = Ranks(group, losses), lay_out(measured(model, optimizer, policy))
    why = {
        "reference": "wrappers of data-parallel training expect one backward per forward",
        "streaming": "what a rank has folded cannot be added to another's; use 'exact' or 'sketch'",
    }.get(mode)
    if why is not None and ranks.size > 1:
        raise ValueError(
            f"attach: mode '{mode}' runs in one process, there are {ranks.size}; {why}"
        )
    if why is not None:
        ordinary(layout.parameters, f"attach: mode '{mode}'")
    ranks.agree("agents", [str(agent) for agent in agents])
    ranks.agree("parameters", [(slot.name, tuple(slot.shape)) for slot in layout.slots])
    rank = sketch_rank if mode == "sketch" else None
    ranks.agree("mode, rank and seed", [mode, rank, projection_seed])
    request = Request(sketch_buckets, effective)
    request.check(mode, ranks.size, losses)
    extras = Extras(request, model, layout, len(agents), projection_seed)
    setup = Setup(policy, mode, projection_seed, rank)
    instrument = Instrument(model, optimizer, agents, layout, setup, ranks, extras)
    probe = Probe(model, optimizer, instrument)
    try:
        probe.send_to(record)
    except Exception:  # a store that is there already
        probe.detach()
        raise
    return probe


class Probe:
    """The instrument on one policy; made by `attach`."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, instrument: Instrument
    ) -> None:
        setup = instrument.setup
        self.mode = setup.mode
        self.policy = setup.policy
        self.agents = instrument.agents
        self.num_parameters = instrument.num_parameters
        """Elements that are measured."""
        self.step: int | None = None
        """Training step of the coming updates, set by the trainer; None: count updates from 1."""
        self.loss = math.nan
        """Loss of the coming update, if the trainer wants it on record; reset by each update."""
        self.loss_scale = 1.0
        """By what the loss was multiplied for the backward, e.g. `scaler.get_scale()` before every
        step: what is recorded is of the loss itself."""
        self.last: UpdateRecord | None = None
        self.last_check: SelfCheck | None = None
        self.worst_residual = 0.0
        self.unsplit_reason = instrument.unsplit_reason
        self._instrument = instrument
        self._model_name = type(model).__name__
        self._index = {agent: i for i, agent in enumerate(self.agents)}
        self._mixes_tokens = mixes_tokens(model)
        self._are_apart = False
        self._recording = Recording(None, self._make_meta)
        self._pending: PendingUpdate | None = None
        self._warned: set[str] = set()
        self._is_auditing = False
        self._handles = [
            model.register_forward_pre_hook(Hook(self._check_forward), with_kwargs=True),
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    # What the trainer calls.

    @property
    def blocks(self) -> tuple[str, ...]:
        """Parameter blocks, in the order of `gram_BAA`."""
        return tuple(name for name, _, _ in self._instrument.layout.blocks)

    @property
    def num_updates(self) -> int:
        return self._instrument.num_updates

    @property
    def meta(self) -> PolicyMeta:
        """What a run's metadata says about this policy."""
        meta = PolicyMeta(self.policy, self.agents, self.blocks, self.num_parameters, self.mode)
        return self._instrument.extras.complete(meta)

    @property
    def current_step(self) -> int:
        """Training step that the coming update belongs to."""
        return self.num_updates + 1 if self.step is None else self.step

    def tag(
        self,
        agents: Sequence[Agent] | Tensor,
        prompts: Sequence[int] | Tensor | None = None,
        samples: Sequence[int] | Tensor | None = None,
        advantages: Sequence[float] | Tensor | None = None,
        *,
        are_apart: bool = False,
    ) -> None:
        """Say whose rows the next forwards hold, until the optimizer steps or the next tag.

        `agents`: one Agent per row, or their indices in `probe.agents` as a tensor (rows,), or per
        token (rows, tokens) for packed batches; -1 is nobody's (padding). One row or packed segment
        must belong to one agent: tokens of different agents that attend to each other cannot be
        told apart, and a forward whose arguments show no segments is refused (`are_apart`: the
        model keeps them apart all the same). `prompts` and `samples`: the prompt and the sample
        index of each row; they switch on row statistics (a product per row instead of per agent).
        `advantages`: of each row; only their signs are used, to split a role's gradient by them.
        """
        if self.mode == "reference":
            raise ValueError(
                "tag: this probe has mode 'reference', which attributes losses, not rows; call "
                "probe.backward({agent: loss}), or attach with mode='exact'"
            )
        index = self._agent_index(agents)
        if self._is_auditing:
            return
        self._are_apart = are_apart
        step = self.current_step
        self._instrument.listen(index, prompts, samples, advantages, step)

    def backward(self, losses: Mapping[Agent | None, Tensor]) -> None:
        """In mode 'reference', in place of `loss.backward()`: one backward per agent.

        `losses`: each agent's part of the loss, whose sum is the loss, None for what belongs to
        nobody. They may share one graph. Agents without a part may be left out.

        Example:
            >>> loss_B = losses_of(model, batch)  # agent_B: index of the agent of every row
            >>> probe.backward({agent: loss_B[agent_B == a].sum() for a, agent in enumerate(team)})
        """
        if self.mode != "reference":
            raise ValueError(
                f"backward: this probe has mode '{self.mode}', which splits the ordinary backward; "
                "call loss.backward() under probe.tag(agents), or attach with mode='reference'"
            )
        unknown = [str(agent) for agent in losses if agent and agent not in self._index]
        if unknown or not losses:
            raise ValueError(
                f"backward: policy '{self.policy}' got losses of {unknown or 'nobody'}; its "
                f"agents are {[*map(str, self.agents)]}"
            )
        for agent, loss in losses.items():
            if loss.numel() != 1 or not loss.requires_grad:
                raise ValueError(
                    f"backward: the loss of {agent} has shape {tuple(loss.shape)} and "
                    f"requires_grad={loss.requires_grad}; expected a scalar that depends on the "
                    "model (leave out agents that have no rows)"
                )
        capture, layout = self._instrument.capture, self._instrument.layout
        capture.allocate()
        self._instrument.drop_if_dropped(self.current_step)
        by_index = {-1 if a is None else self._index[a]: loss for a, loss in losses.items()}
        capture.attributed |= backward_per_agent(by_index, layout, capture.gradient_AP)

    def audit(
        self, rerun: Callable[[Agent], Tensor | None], agents: Sequence[Agent] | None = None
    ) -> Audit:
        """Check the tags of the update in hand against each agent's gradient alone.

        Call it after the backwards of an update and before the optimizer steps. `rerun(agent)` does
        those forwards and backwards once more on the same rows, with the advantages (and any other
        weight in the loss) of all other agents at zero, or returns the loss to differentiate. Its
        calls of `tag` are ignored, gradients and records stay as they were. Dropout needs the
        random numbers of the first time: set the seed in `rerun`. Cost: a forward and a backward
        per agent.

        Example:
            >>> probe.tag(agents); loss_of(batch, advantage_B).backward()
            >>> found = probe.audit(
            ...     lambda agent: loss_of(batch, advantage_B * (agent_B == agents.index(agent)))
            ... )
            >>> print(found)
            >>> optimizer.step()
        """
        chosen = self.agents if agents is None else tuple(agents)
        unknown = [str(agent) for agent in chosen if agent not in self._index]
        if unknown:
            raise ValueError(
                f"audit: policy '{self.policy}' does not know {unknown}; its agents are "
                f"{[*map(str, self.agents)]}"
            )
        if self._instrument.ranks.size > 1:
            raise ValueError(
                f"audit: {self._instrument.ranks.size} processes train this policy; audit one "
                "process with the same tags"
            )
        if self.mode == "streaming":
            raise ValueError(
                "audit: mode 'streaming' has forgotten the gradients; audit one update with "
                "mode='exact' and the same tags"
            )
        if not self._instrument.capture.attributed:
            raise ValueError(
                "audit: nothing was captured for this update; call it after the backwards and "
                "before optimizer.step()"
            )
        self._is_auditing, loss = True, self.loss
        try:
            return Audit(self.policy, tuple(self._instrument.audit(rerun, chosen)))
        finally:
            self._is_auditing, self.loss = False, loss

    def captured_gram(self) -> FloatArray:
        """[A, A] <g_a, g_b> of the update in hand, in the order of `agents`; before the step."""
        self._check_whole("captured_gram")
        return self._instrument.captured_gram()

    def reweight(self, factors: Mapping[str, float]) -> None:
        """Multiply the parts that roles have in the optimizer's gradient: g <- sum_r f_r g_r.

        Call it after the backwards of an update and before clipping. Roles that are left out keep
        factor 1; a second call multiplies. The record holds the gradients as captured and the
        factors (`UpdateRecord.factor_A`); the self-check and the split of the optimizer's step are
        of the re-weighted gradient.

        Example:
            >>> loss.backward()
            >>> probe.reweight({"aggregator": 0.5})
            >>> torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0); optimizer.step()
        """
        self._check_whole("reweight")
        roles = list(dict.fromkeys(agent.role for agent in self.agents))
        for role, factor in factors.items():
            if role not in roles:
                raise ValueError(
                    f"reweight: policy '{self.policy}' has no role '{role}'; its roles are {roles}"
                )
            if not 0 <= factor < math.inf:
                raise ValueError(f"reweight: factor of '{role}' is {factor}; expected 0 or more")
        if not self._instrument.capture.attributed:
            raise ValueError(
                "reweight: nothing was captured for this update; call it after the backwards and "
                "before optimizer.step()"
            )
        gradient_AP = self._instrument.capture.gradient_AP
        self._instrument.reweight(
            gradient_AP.new_tensor([factors.get(agent.role, 1.0) for agent in self.agents])
        )

    def reduce(self) -> None:
        """Add up the gradients of all ranks, the optimizer's and the agents', in one message.

        With `attach(losses='sum')`: every rank calls it after the backwards of an update and before
        clipping, also one that had no rows. From then on `captured_gram` and `reweight` are of all
        rows. With one process it does nothing.
        """
        instrument = self._instrument
        if instrument.ranks.size == 1:
            return
        if not instrument.ranks.is_sum:
            raise ValueError(
                "reduce: this probe was attached with losses='mean', for wrappers that average the "
                "gradients themselves; attach with losses='sum' to a bare model"
            )
        instrument.share(self.loss)

    def _check_whole(self, what: str) -> None:
        if self.mode in ("sketch", "streaming"):
            raise ValueError(
                f"{what}: mode '{self.mode}' does not keep the agents' gradients until the step; "
                "attach with mode='exact' or 'fused'"
            )
        if self._instrument.ranks.size > 1 and self._instrument.shared is None:
            raise ValueError(
                f"{what}: {self._instrument.ranks.size} processes train this policy, and a rank "
                "knows only its own rows before the step; weigh the rows' losses instead"
            )

    def untag(self) -> None:
        """Stop listening, e.g. before sampling or a reference forward. A step does it by itself."""
        self._instrument.unlisten()

    def discard(self) -> None:
        """Forget what was captured since the last step, whose gradients the trainer drops.

        Needed only with sharded parameters: otherwise the probe sees the empty gradients itself.
        """
        self._forget()

    def close(self) -> None:
        """Detach, and close the store if the probe made it (a path given as `record`)."""
        self.detach()
        self._recording.close()

    def detach(self) -> None:
        """Take every hook off the model and the optimizer."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._instrument.remove()

    def report(self) -> str:
        """What is measured and how complete it was, for people."""
        return report(self._instrument, self.last_check, self.worst_residual, self._model_name)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to continue to the same numbers."""
        return {
            "agents": [(agent.role, agent.number) for agent in self.agents],
            "num_updates": self.num_updates,
            "step": self.step,
            **self._instrument.state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of a probe on the same parameters and agents."""
        agents = tuple(Agent(role, number) for role, number in state["agents"])
        if agents != self.agents:
            raise ValueError(
                f"load_state_dict: policy '{self.policy}' has agents {[*map(str, self.agents)]}, "
                f"the state was saved with {[*map(str, agents)]}"
            )
        self._instrument.load_state(state)
        self._instrument.num_updates, self.step = state["num_updates"], state["step"]

    def send_to(self, record: Record) -> None:
        """Where the records go from now on; see `attach`."""
        is_heard = self._instrument.ranks.is_first
        self._recording = Recording(record if is_heard else None, self._make_meta)

    def _make_meta(self, run_id: str) -> RunMeta:
        return RunMeta.of_policies(
            run_id,
            [self.meta],
            model=self._model_name,
            versions={"torch": torch.__version__},
        )

    # Before a forward.

    def _agent_index(self, agents: Sequence[Agent] | Tensor) -> Tensor:
        if isinstance(agents, Tensor):
            index = whole_numbers("agent indices", agents)
            if index.dim() not in (1, 2) or index.numel() == 0:
                raise ValueError(
                    f"tag: agent indices have shape {tuple(index.shape)}; expected (rows,) or "
                    "(rows, tokens)"
                )
            low, high = int(index.min()), int(index.max())
            if low < -1 or high >= len(self.agents):
                raise ValueError(
                    f"tag: agent indices run from {low} to {high}; policy '{self.policy}' has "
                    f"agents 0..{len(self.agents) - 1} (-1 for nobody)"
                )
            return index
        unknown = [agent for agent in agents if agent not in self._index]
        if unknown:
            raise ValueError(
                f"tag: policy '{self.policy}' does not know {sorted({str(a) for a in unknown})}; "
                f"its agents are {[*map(str, self.agents)]} (indices go into a tensor)"
            )
        if not agents:
            raise ValueError("tag: no agents; expected one per row of the batch")
        return torch.tensor([self._index[agent] for agent in agents])

    def _check_forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        instrument = self._instrument
        tags = instrument.capture.tags
        if tags is None or not torch.is_grad_enabled():
            return
        named = [kwargs[key] for key in ("input_ids", "inputs_embeds") if key in kwargs]
        inputs = next((x for x in (*args[:1], *named) if isinstance(x, Tensor)), None)
        if inputs is not None and tuple(inputs.shape[: len(tags.shape)]) != tags.shape:
            raise ValueError(
                f"the batch has shape {tuple(inputs.shape)} but tag() named agents for shape "
                f"{tags.shape}; tag every forward with one agent per row (or per token), and call "
                "untag() before forwards that train nobody"
            )
        if torch.compiler.is_compiling():
            return
        if self._mixes_tokens and not self._are_apart:
            check_segments(module, kwargs, tags, self.agents)
        if not instrument.attached.is_proven:
            instrument.attached.check(module)
            if not instrument.capture.attributed:
                instrument.attached.check_learning()

    # Around the optimizer's step.

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if self._is_auditing:
            raise ValueError("audit: rerun(agent) stepped the optimizer; stop before the step")
        closures = (*args[1:], kwargs.get("closure"))  # args[0] is the optimizer
        if any(closure is not None for closure in closures):
            raise ValueError(
                "optimizer.step(closure) computes gradients inside the step, where the probe "
                "cannot read them before they are used; call backward(), then step() without "
                "a closure"
            )
        instrument = self._instrument
        if not instrument.attached.is_proven:
            instrument.attached.check()
        if instrument.ranks.is_sum and instrument.ranks.size > 1 and instrument.shared is None:
            raise ValueError(
                f"policy '{self.policy}': optimizer.step() without probe.reduce(): this rank would "
                "step by its own rows alone; call it on every rank after the backwards"
            )
        self._pending = instrument.before_step(self.current_step, self.loss, self.loss_scale)
        if self._pending is None:
            self._forget()
            return
        told = complaint(instrument, self._pending.check, self.current_step, self._warned)
        if told is not None:
            warnings.warn(told, stacklevel=3)

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if self._pending is None:
            return
        record, check = (
            self._instrument.after_step(self._pending, self.current_step),
            self._pending.check,
        )
        self._instrument.num_updates += 1
        self._instrument.attached.is_proven = True
        self.last, self.last_check = record, check
        residual = math.inf if math.isnan(check.residual) else check.residual
        self.worst_residual = max(self.worst_residual, residual)
        self._forget()
        self._recording.emit(record)

    def _forget(self) -> None:
        self._instrument.forget()
        self._pending, self.loss = None, math.nan
