"""Catch each agent's share of every weight gradient while the ordinary backward runs.

A forward hook leaves a *ticket*: a dangling autograd node that keeps the module's input and is
never on the path of the loss, so gradients stay bitwise what they were and activation checkpointing
still frees (and recomputes) the input. A tensor hook on the module's output meets the output
gradient in the backward, redeems the ticket and lets a rule turn (input, output gradient) into
weight gradients, one per agent.

Legend: A agents, P measured parameters (elements), n units (rows, or tokens where tokens are
tagged), K sketch buckets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

SKETCH_BUCKETS = 257
"""Prime, so that a strided sketch of a matrix does not put whole columns into one bucket."""

LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.([^.]+)")


def block_of(name: str) -> str:
    """Block of a parameter by its name: layer x attention/MLP/norm, embeddings, head or other.

    Example:
        >>> block_of("model.layers.3.self_attn.q_proj.lora_A.default.weight")
        'layers.3.attention'
    """
    layer = LAYER.search(name)
    if layer:
        index, part = layer.groups()
        if "norm" in part or part.startswith("ln"):
            return f"layers.{index}.norm"
        if "attn" in part or "attention" in part:
            return f"layers.{index}.attention"
        if "mlp" in part or "feed_forward" in part:
            return f"layers.{index}.mlp"
        return "other"
    if "embed" in name or "wte" in name or "wpe" in name:
        return "embeddings"
    if "lm_head" in name or name.startswith("score."):
        return "head"
    return "other"


def block_order(block: str) -> tuple[int, int, str]:
    """Sort key: embeddings, layers by number, other, head."""
    layer = re.match(r"layers\.(\d+)\.(.*)", block)
    if layer:
        return (1, int(layer[1]), layer[2])
    return ({"embeddings": 0, "other": 2, "head": 3}[block], 0, block)


@dataclass(frozen=True)
class Slot:
    """Where one parameter lives in the flat axis P."""

    name: str
    block: str
    shape: torch.Size
    start: int
    stop: int


@dataclass(frozen=True)
class Layout:
    """The flat axis P: measured parameters ordered by block, so that a block is a slice."""

    slots: tuple[Slot, ...]
    parameters: tuple[nn.Parameter, ...]
    """In the order of the slots."""
    blocks: tuple[tuple[str, int, int], ...]
    """(name, start, stop) in store order."""
    num_parameters: int


def lay_out(named_parameters: Mapping[str, nn.Parameter]) -> Layout:
    """Order parameters by block; the order within a block is the model's."""
    ordered = sorted(named_parameters, key=lambda name: block_order(block_of(name)))
    slots, start = [], 0
    for name in ordered:
        parameter = named_parameters[name]
        stop = start + parameter.numel()
        slots.append(Slot(name, block_of(name), parameter.shape, start, stop))
        start = stop
    blocks = []
    for block, members in groupby(slots, key=lambda slot: slot.block):
        inside = list(members)
        blocks.append((block, inside[0].start, inside[-1].stop))
    return Layout(
        tuple(slots), tuple(named_parameters[name] for name in ordered), tuple(blocks), start
    )


@dataclass
class RowSketches:
    """Row gradients of one tagged batch: exact squared norms and sketches, filled by backward."""

    agent_n: Tensor
    prompt_n: Tensor
    sample_n: Tensor
    """-1 where samples were not tagged."""
    one_hot_An: Tensor
    norm2_n: Tensor
    sketch_nK: Tensor
    is_filled: bool = False
    awaited: dict[int, int] = field(default_factory=dict)
    """Slot -> calls of its modules whose gradient has not come yet."""
    held: dict[int, Tensor] = field(default_factory=dict)
    """Slot -> [n, size] row gradients so far, where a parameter is used more than once."""

    def expect(self, slot: int) -> None:
        self.awaited[slot] = self.awaited.get(slot, 0) + 1

    def settle(self, slot: int) -> None:
        """Add the norms of a parameter that all its uses have contributed to."""
        gradient_nM = self.held.pop(slot)
        self.norm2_n.add_(torch.linalg.vecdot(gradient_nM, gradient_nM))


@dataclass(frozen=True)
class Tags:
    """Who owns the units of one forward."""

    shape: tuple[int, ...]
    """(rows,) or (rows, tokens)."""
    agents: tuple[int, ...]
    """Agent of each unit; -1 where nobody's."""
    runs: tuple[tuple[int, int, int], ...]
    """(agent, first, last + 1) over units, after `order`."""
    order: tuple[int, ...] | None
    """Permutation that makes the runs contiguous; None if they are already."""
    order_n: Tensor | None
    """The same on the parameters' device."""
    rows: RowSketches | None = None

    @classmethod
    def of(cls, index: Tensor, device: torch.device, rows: RowSketches | None = None) -> Tags:
        """Tags from agent indices of shape (rows,) or (rows, tokens), in host memory."""
        agents = tuple(index.flatten().tolist())
        runs = runs_of(agents)
        if len(runs) <= 2 * len({agent for agent, _, _ in runs}):
            return cls(tuple(index.shape), agents, tuple(runs), None, None, rows)
        # Many short products cost more than one gather of the inputs.
        order = tuple(sorted(range(len(agents)), key=agents.__getitem__))
        runs = runs_of([agents[unit] for unit in order])
        on_device = torch.tensor(order, device=device)
        return cls(tuple(index.shape), agents, tuple(runs), order, on_device, rows)


def runs_of(agents: Sequence[int]) -> list[tuple[int, int, int]]:
    """(agent, first, last + 1) of maximal stretches of one agent; -1 belongs to nobody."""
    runs, start = [], 0
    for agent, members in groupby(agents):
        stop = start + sum(1 for _ in members)
        if agent >= 0:
            runs.append((agent, start, stop))
        start = stop
    return runs


@dataclass
class Site:
    """One module that directly owns measured parameters."""

    name: str
    rule: Callable[..., None]
    slots: Mapping[str, int]
    """Local parameter name -> index of its slot."""
    views: dict[str, list[Tensor]] = field(default_factory=dict)
    """Local parameter name -> its gradient per agent, a view of the shared buffer."""


class Ticket(torch.autograd.Function):
    """Keep tensors the way autograd keeps them, in a node that no backward reaches."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return anchor.new_empty(0)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise AssertionError("a ticket is never on the path of a loss")


@dataclass(frozen=True)
class Arguments:
    """Arguments of a module call: tensors live in the ticket, everything else here."""

    num_positional: int
    keywords: tuple[str, ...]
    others: Mapping[int, Any]
    """Position -> value of arguments that are not tensors."""


GRAM_CHUNK = 4096
"""Elements that one inner product sums in its own precision."""


def inner_products(left_AN: Tensor, right_AN: Tensor) -> Tensor:
    """[A, A] inner products of rows, in float64.

    A plain float32 product over millions of elements is off by 1e-4 on a CPU, an order above what
    the probe promises; sums of 4096 collected in float64 are good to 3e-7 and no slower.
    """
    num_rows, size = left_AN.shape
    whole = size // GRAM_CHUNK * GRAM_CHUNK
    left, right = (
        x[:, :whole].reshape(num_rows, -1, GRAM_CHUNK).transpose(0, 1) for x in (left_AN, right_AN)
    )
    found = torch.bmm(left, right.transpose(1, 2)).sum(0, dtype=torch.float64)
    return found + left_AN[:, whole:] @ right_AN[:, whole:].T


NO_ARGUMENTS = Arguments(0, (), {})


@dataclass(slots=True)
class Call:
    """One tagged forward of a module that its rule will need in the backward."""

    module: Any
    tags: Tags
    tickets: list[Any]
    """The ticket's node; empty once redeemed."""
    arguments: Arguments
    learning: list[str]
    """Local names of the parameters that required a gradient."""
    is_ambiguous: bool
    """Recomputed in a backward that several tagged forwards share."""


class Capture:
    """Per-agent gradients of the parameters of one layout, summed over the backwards of an update.

    Cost: A x P floats; one extra weight-gradient product per site, split by agent.
    """

    def __init__(self, model: nn.Module, layout: Layout, num_agents: int) -> None:
        self.layout = layout
        self.num_agents = num_agents
        is_double = any(p.dtype == torch.float64 for p in layout.parameters)
        self.dtype = torch.float64 if is_double else torch.float32
        self.gradient_AP = torch.zeros(0)
        self.tags: Tags | None = None
        """Tags of the next forward; None while the probe is not listening."""
        self.attributed: set[int] = set()
        """Slots that received a share in this update."""
        self.failures: dict[str, str] = {}
        """Site -> why its gradients could not be attributed."""
        self.is_low_precision = False
        """True once a 16-bit activation was met: the optimizer's gradient is then rounded."""
        self.sign_P: Tensor | None = None
        """Random signs of the row sketches; set by whoever tags prompts."""
        self._latest: Tags | None = None
        self._num_pending = 0
        self._is_first = True
        self._before_first: Callable[[], None] = lambda: None
        self._anchor = torch.zeros(0, requires_grad=True)
        index = {id(p): i for i, p in enumerate(layout.parameters)}
        self.sites = list(self._find_sites(model, index))
        self._handles = [
            module.register_forward_hook(
                partial(self._on_forward, site), prepend=True, with_kwargs=True
            )
            if site.rule == self._rerun
            else module.register_forward_hook(partial(self._on_plain_forward, site), prepend=True)
            for site, module in self.sites
        ]

    def _find_sites(
        self, model: nn.Module, index: Mapping[int, int]
    ) -> Iterator[tuple[Site, nn.Module]]:
        for name, module in model.named_modules():
            slots = {
                local: index[id(p)]
                for local, p in module.named_parameters(recurse=False, remove_duplicate=False)
                if id(p) in index
            }
            if slots:
                yield Site(name, self._rule_of(module), slots), module

    def _rule_of(self, module: nn.Module) -> Callable[..., None]:
        # A subclass with its own forward is not the layer its class name says.
        if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
            return self._linear
        if (
            isinstance(module, nn.Embedding)
            and type(module).forward is nn.Embedding.forward
            and not module.scale_grad_by_freq
            and module.max_norm is None
        ):
            return self._embedding
        return self._rerun

    def remove(self) -> None:
        """Take all hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def listen(self, tags: Tags | None, before_first: Callable[[], None]) -> None:
        """Attribute the coming forwards to `tags` (None: to nobody, and do not capture them).

        `before_first` is called once, when the first gradient of these forwards arrives: the last
        moment at which the optimizer's gradients are those of the earlier backwards alone.
        """
        self.allocate()
        self.tags = tags
        if tags is not None:
            self._num_pending = 1 if not self._is_first else self._num_pending + 1
            self._latest, self._is_first, self._before_first = tags, True, before_first

    def allocate(self) -> None:
        """Make the buffers on the device where the parameters are now."""
        device = self.layout.parameters[0].device
        if len(self.gradient_AP) and self.gradient_AP.device == device:
            return
        size = (self.num_agents, self.layout.num_parameters)
        self.gradient_AP = torch.zeros(size, dtype=self.dtype, device=device)
        for site, _ in self.sites:
            for local, i in site.slots.items():
                slot = self.layout.slots[i]
                part = self.gradient_AP[:, slot.start : slot.stop]
                site.views[local] = [row.view(slot.shape) for row in part]

    def clear(self) -> None:
        """Forget what was captured; called after every update."""
        self.gradient_AP.zero_()
        self.attributed.clear()
        self.tags = self._latest = None
        self._num_pending, self._is_first = 0, True

    # Hooks. They run between products that flush the caches, so every line here is a slow one.

    def _on_plain_forward(
        self, site: Site, module: nn.Module, args: tuple[Any, ...], output: Any
    ) -> None:
        if torch.is_grad_enabled():
            self._on_forward(site, module, args, {}, output)

    def _on_forward(
        self,
        site: Site,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> None:
        if not torch.is_grad_enabled():
            return
        learning = [local for local in site.slots if module._parameters[local].requires_grad]  # type: ignore[union-attr] # a slot is a parameter
        if not learning:
            return
        everything = (*args, *kwargs.values()) if kwargs else args
        tensors = [value for value in everything if isinstance(value, Tensor)]
        # Left in every forward, tagged or not: checkpointing counts saved tensors and compares the
        # first forward with its recomputation.
        ticket = Ticket.apply(self._anchor, *tensors).grad_fn  # type: ignore[no-untyped-call]
        tags = self.tags
        is_ambiguous, is_recomputed = False, torch._C._current_graph_task_id() != -1
        if is_recomputed:
            # Recomputation inside a backward. Non-reentrant: this hook's gradient never comes, the
            # first forward's does. Reentrant: the first forward left nothing, so this one counts.
            tags, is_ambiguous = self._latest, self._num_pending > 1
        if tags is None:
            return
        if not isinstance(output, Tensor):
            self._fail(site, f"returns {type(output).__name__}, not a tensor")
            return
        if not output.requires_grad:
            return
        arguments = NO_ARGUMENTS
        if site.rule == self._rerun:
            others = {i: v for i, v in enumerate(everything) if not isinstance(v, Tensor)}
            arguments = Arguments(len(args), tuple(kwargs), others)
        if tags.rows is not None:
            for local in learning:
                i = site.slots[local]
                if not is_recomputed or not tags.rows.awaited.get(i):
                    tags.rows.expect(i)
        call = Call(module, tags, [ticket], arguments, learning, is_ambiguous)
        output.register_hook(partial(self._on_gradient, site, call))  # type: ignore[no-untyped-call]

    def _on_gradient(self, site: Site, call: Call, gradient: Tensor) -> None:
        if self._is_first:
            self._is_first = False
            self._before_first()
        if call.is_ambiguous:
            self._fail(site, "reentrant checkpointing: several tagged forwards before one backward")
            return
        tensors = call.tickets[0].saved_tensors
        if not torch._C._autograd._get_current_graph_task_keep_graph():
            # As autograd does, so that a loss kept for logging pins no activations.
            call.tickets.clear()
        try:
            if torch.is_grad_enabled() or torch.is_autocast_enabled(gradient.device.type):
                with torch.no_grad(), torch.autocast(gradient.device.type, enabled=False):
                    site.rule(site, call, tensors, gradient)
            else:
                site.rule(site, call, tensors, gradient)
        except Exception as error:  # a measuring instrument must never stop a training run
            self._fail(site, f"{type(error).__name__}: {error}")
            return
        for local in call.learning:
            i = site.slots[local]
            self.attributed.add(i)
            if call.tags.rows is not None:
                self._account(site, i, call.tags.rows)

    def _account(self, site: Site, slot: int, rows: RowSketches) -> None:
        """One use of a parameter has contributed to its row gradients."""
        rows.awaited[slot] -= 1
        if rows.awaited[slot] < 0:
            self._fail(site, "several backwards under one tag(): norms of rows are too small")
        elif rows.awaited[slot] == 0 and slot in rows.held:
            rows.settle(slot)

    def _fail(self, site: Site, reason: str) -> None:
        self.failures.setdefault(site.name, reason)

    # Rules: (input, output gradient) -> weight gradients per agent.

    def _units(self, tensor: Tensor, tags: Tags) -> Tensor:
        """`tensor` with one leading axis of units, in the order of the runs."""
        dims = len(tags.shape)
        if tuple(tensor.shape[:dims]) != tags.shape:
            raise ValueError(f"saw shape {tuple(tensor.shape)}, tags have shape {tags.shape}")
        units = tensor.flatten(0, 1) if dims == 2 else tensor
        return units if tags.order_n is None else units.index_select(0, tags.order_n)

    def _accumulating(self, tensor: Tensor) -> Tensor:
        if tensor.element_size() < 4:
            self.is_low_precision = True
        return tensor.to(self.dtype)

    def _linear(self, site: Site, call: Call, tensors: Sequence[Tensor], gradient: Tensor) -> None:
        if call.tags.rows is not None:
            self._linear_rows(site, call.tags.rows, call, tensors[0], gradient)
            return
        out = self._accumulating(self._units(gradient, call.tags))
        num_units = len(out)
        out = out.reshape(-1, out.shape[-1])
        tokens = len(out) // num_units
        if "weight" in call.learning:
            into = self._accumulating(self._units(tensors[0], call.tags))
            into = into.reshape(-1, into.shape[-1])
            weight = site.views["weight"]
            is_tall = out.shape[1] > into.shape[1]  # the wide orientation is a quarter faster
            for agent, lo, hi in call.tags.runs:
                part = slice(lo * tokens, hi * tokens)
                if is_tall:
                    weight[agent].add_((into[part].T @ out[part]).T)
                else:
                    weight[agent].addmm_(out[part].T, into[part])
        if "bias" in call.learning:
            bias = site.views["bias"]
            for agent, lo, hi in call.tags.runs:
                bias[agent].add_(out[lo * tokens : hi * tokens].sum(0))

    def _linear_rows(
        self, site: Site, rows: RowSketches, call: Call, into: Tensor, gradient: Tensor
    ) -> None:
        if tuple(into.shape[:1]) != call.tags.shape:
            raise ValueError(f"saw shape {tuple(into.shape)}, tags have shape {call.tags.shape}")
        n = len(into)
        out = self._accumulating(gradient).reshape(n, -1, gradient.shape[-1])
        if "weight" in call.learning:
            tokens = self._accumulating(into).reshape(n, -1, into.shape[-1])
            weight = torch.bmm(out.transpose(1, 2), tokens)
            self._add_rows(site.slots["weight"], rows, weight.view(n, -1))
        if "bias" in call.learning:
            self._add_rows(site.slots["bias"], rows, out.sum(1))

    def _add_rows(self, slot: int, rows: RowSketches, gradient_nM: Tensor) -> None:
        """Add row gradients of one parameter to their agents, norms and sketches."""
        span = self.layout.slots[slot]
        self.gradient_AP[:, span.start : span.stop].addmm_(rows.one_hot_An, gradient_nM)
        self._sketch(slot, gradient_nM, rows, slice(None))

    def _sketch(self, slot: int, gradient_nM: Tensor, rows: RowSketches, which: slice) -> None:
        """Add row gradients to the norms and strided sign-sum sketches of the rows `which`."""
        assert self.sign_P is not None
        rows.is_filled = True
        span = self.layout.slots[slot]
        if rows.awaited[slot] > 1 or slot in rows.held:
            # Tied, or called twice: the norm of the sum is not the sum of the norms.
            if slot not in rows.held:
                rows.held[slot] = gradient_nM.new_zeros(len(rows.norm2_n), gradient_nM.shape[1])
            rows.held[slot][which].add_(gradient_nM)
        else:
            rows.norm2_n[which].add_(torch.linalg.vecdot(gradient_nM, gradient_nM))
        sketch_nK = rows.sketch_nK[which]
        num_buckets = sketch_nK.shape[1]
        signed = gradient_nM * self.sign_P[span.start : span.stop]
        full = signed.shape[1] // num_buckets * num_buckets
        sketch_nK.add_(signed[:, :full].reshape(len(signed), -1, num_buckets).sum(1))
        sketch_nK[:, : signed.shape[1] - full].add_(signed[:, full:])

    def _embedding(
        self, site: Site, call: Call, tensors: Sequence[Tensor], gradient: Tensor
    ) -> None:
        tags, padding = call.tags, call.module.padding_idx
        token, out = self._units(tensors[0], tags), self._accumulating(self._units(gradient, tags))
        if padding is not None:
            out = out * (token != padding).unsqueeze(-1)
        views = site.views["weight"]
        for agent, lo, hi in tags.runs:
            views[agent].index_add_(0, token[lo:hi].flatten(), out[lo:hi].flatten(0, -2))
        if tags.rows is not None:
            slot = site.slots["weight"]
            order = range(len(token)) if tags.order is None else tags.order
            for unit, row in enumerate(order):
                dense = torch.zeros_like(views[0])
                dense.index_add_(0, token[unit].flatten(), out[unit].flatten(0, -2))
                self._sketch(slot, dense.view(1, -1), tags.rows, slice(row, row + 1))

    def _rerun(self, site: Site, call: Call, tensors: Sequence[Tensor], gradient: Tensor) -> None:
        """Any module: run it again per agent and differentiate. Exact if it treats rows apart."""
        tags = call.tags
        if tuple(gradient.shape[: len(tags.shape)]) != tags.shape:
            raise ValueError(f"saw shape {tuple(gradient.shape)}, tags have shape {tags.shape}")
        devices = [gradient.device] if gradient.is_cuda else []
        with torch.random.fork_rng(devices):  # a module that draws must not shift the run's numbers
            for row, agent, shares in self._rerun_groups(call, tensors, gradient):
                for local, share in zip(call.learning, shares, strict=True):
                    if share is None:
                        continue
                    share = self._accumulating(share)
                    if agent >= 0:
                        site.views[local][agent].add_(share)
                    if tags.rows is not None:
                        one = slice(row, row + 1)
                        self._sketch(site.slots[local], share.view(1, -1), tags.rows, one)

    def _rerun_groups(
        self, call: Call, tensors: Sequence[Tensor], gradient: Tensor
    ) -> Iterator[tuple[int, int, tuple[Tensor | None, ...]]]:
        """(row or -1, agent, gradients): per row if rows are sketched, else per run."""
        tags = call.tags
        parameters = [call.module._parameters[local] for local in call.learning]
        if len(tags.shape) == 2:
            with torch.enable_grad():
                output = call_again(call, tensors)
            index = torch.tensor(tags.agents, device=gradient.device)
            for agent in dict.fromkeys(agent for agent, _, _ in tags.runs):
                mask = (index == agent).view(*tags.shape, *[1] * (gradient.dim() - 2))
                yield -1, agent, differentiate(output, parameters, gradient * mask)
            return
        num_rows = tags.shape[0]
        if tags.rows is not None:
            groups = [(row, agent, [row]) for row, agent in enumerate(tags.agents)]
        else:
            order = range(num_rows) if tags.order is None else tags.order
            groups = [(-1, agent, [*order[lo:hi]]) for agent, lo, hi in tags.runs]
        for row, agent, members in groups:
            part = [t[members] if t.shape[:1] == (num_rows,) else t for t in tensors]
            with torch.enable_grad():
                output = call_again(call, part)
            yield row, agent, differentiate(output, parameters, gradient[members])


def call_again(call: Call, tensors: Iterable[Tensor]) -> Tensor:
    """The module's output for these tensors, without hooks and cut off from what came before."""
    rest, arguments = iter(tensors), call.arguments
    count = arguments.num_positional + len(arguments.keywords)
    values = [
        arguments.others[i] if i in arguments.others else next(rest).detach() for i in range(count)
    ]
    keywords = zip(arguments.keywords, values[arguments.num_positional :], strict=True)
    output: Tensor = call.module.forward(*values[: arguments.num_positional], **dict(keywords))
    return output


def differentiate(
    output: Tensor, parameters: Sequence[Tensor | None], gradient: Tensor
) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(
        output,
        [p for p in parameters if p is not None],
        gradient,
        retain_graph=True,
        allow_unused=True,
    )
