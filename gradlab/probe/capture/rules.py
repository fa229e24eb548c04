"""Turn a module's input and output gradient into one weight gradient per agent.

A rule adds what one call of a module contributed to the agents' gradients. Linear layers and
embeddings have their own; every other module is run again per agent and differentiated.

Legend: A agents, P measured parameters (elements), n units (rows, or tokens where tokens are
tagged), K sketch buckets, M elements of one parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gradlab.probe.capture.projections import Projection
from gradlab.probe.capture.tags import RowSketches, Tags
from gradlab.probe.layout import Layout
from gradlab.probe.measures.exact_sums import adds_up_in_float32, squared_norms_of, total_of


class Target(Protocol):
    """Where rules add the gradients."""

    layout: Layout
    dtype: torch.dtype
    projections: Mapping[int, Projection]
    """Slot -> what its gradients are projected by; empty where they are kept whole."""
    sign_P: Tensor | None
    """Random signs of the row sketches; needed where rows are sketched."""
    is_low_precision: bool
    """Set by a rule that meets 16-bit activations."""

    def part(self, slot: int) -> Tensor:
        """[A, M] the agents' gradients of one parameter so far, to add to."""

    def views(self, slot: int) -> Sequence[Tensor]:
        """The same per agent and of the parameter's shape."""

    def fresh(self, slot: int) -> Tensor | None:
        """As `part`, but room that the caller has to write first; None if something is there."""

    def paused(self) -> AbstractContextManager[None]:
        """Captures nothing inside."""


@dataclass
class Site:
    """One module that owns measured parameters, directly or in containers without a forward."""

    name: str
    rule: Rule
    slots: Mapping[str, int]
    """Local parameter name -> index of its slot."""
    kind: str
    """Class of the module."""
    is_fused: bool = False
    """Its forward is ours, and its weight gradient is computed once, by agent."""


@dataclass(frozen=True)
class Arguments:
    """Arguments of a module call: tensors live in the ticket, everything else here."""

    num_positional: int
    keywords: tuple[str, ...]
    others: Mapping[int, Any]
    """Position -> value of arguments that are not tensors."""


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


Rule = Callable[[Target, Site, Call, Sequence[Tensor], Tensor], None]
"""(target, site, call, tensors among the module's arguments, gradient of its output)."""

Totals = dict[str, Tensor]
"""Local parameter name -> sum of what was added for all units, those of nobody included."""


def parameter_of(module: nn.Module, local: str) -> Tensor:
    """Looked up in every call: FSDP exchanges parameters, adapters are switched."""
    found: Tensor | None = module._parameters.get(local)
    if found is None:  # in a container, or a plain tensor as FSDP1 has it
        found = attrgetter(local)(module)
    assert found is not None, "a slot is a parameter"
    return found


def rule_of(module: nn.Module) -> Rule:
    """The cheapest rule that is exact for this module."""
    # A subclass with its own forward is not the layer its class name says.
    if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
        return linear
    if (
        isinstance(module, nn.Embedding)
        and type(module).forward is nn.Embedding.forward
        and not module.scale_grad_by_freq
        and module.max_norm is None
    ):
        return embedding
    return rerun


def linear(
    target: Target,
    site: Site,
    call: Call,
    tensors: Sequence[Tensor],
    gradient: Tensor,
    totals: Totals | None = None,
) -> None:
    """A product per agent; with `totals` also their sum, which is the layer's whole gradient."""
    if call.tags.rows is not None:
        linear_rows(target, site, call, tensors[0], gradient, totals)
        return
    out = units(gradient, call.tags)
    num_units = len(out)
    out = out.reshape(-1, out.shape[-1])
    tokens = len(out) // num_units
    runs = call.tags.runs if totals is None else with_gaps(call.tags.runs, num_units)
    if "weight" in call.learning:
        into = units(tensors[0], call.tags)
        into = into.reshape(-1, into.shape[-1])
        slot = site.slots["weight"]
        left, into = factors(target, out, into, target.projections.get(slot))
        is_written = left.dtype == target.dtype and first_products(
            target, slot, left, into, runs, tokens, totals
        )
        if not is_written:
            weight = target.views(slot)
            is_tall = left.shape[1] > into.shape[1]  # the wide orientation is a quarter faster
            for agent, lo, hi in runs:
                part = slice(lo * tokens, hi * tokens)
                if left.dtype != target.dtype:
                    product = torch.mm(left[part].T, into[part], out_dtype=target.dtype)
                elif totals is None and not is_tall:
                    weight[agent].addmm_(left[part].T, into[part])
                    continue
                else:
                    product = (
                        (into[part].T @ left[part]).T if is_tall else left[part].T @ into[part]
                    )
                add(product, weight, agent, "weight", totals)
    if "bias" in call.learning:
        for agent, lo, hi in runs:
            product = accumulating(target, out[lo * tokens : hi * tokens]).sum(0)
            add(product, target.views(site.slots["bias"]), agent, "bias", totals)


def first_products(
    target: Target,
    slot: int,
    left: Tensor,
    into: Tensor,
    runs: Sequence[tuple[int, int, int]],
    tokens: int,
    totals: Totals | None,
) -> bool:
    """A weight's gradients written where they are kept, and their sum; False if some are there.

    Saves a pass to clear the room and one to add to it.
    """
    room_AM = target.fresh(slot)
    if room_AM is None:
        return False
    num_agents, others = len(room_AM), []
    room = room_AM.view(num_agents, left.shape[1], into.shape[1])
    if is_even(runs, num_agents, len(left) // tokens):
        left, into = (
            left.view(num_agents, -1, left.shape[1]),
            into.view(num_agents, -1, into.shape[1]),
        )
        torch.bmm(left.transpose(1, 2), into, out=room)
    else:
        written = set()
        for agent, lo, hi in runs:
            part = slice(lo * tokens, hi * tokens)
            if agent < 0:
                if totals is not None:
                    others.append(left[part].T @ into[part])
            elif agent in written:
                room[agent].addmm_(left[part].T, into[part])
            else:
                torch.mm(left[part].T, into[part], out=room[agent])
                written.add(agent)
        for agent in range(num_agents):
            if agent not in written:
                room[agent].zero_()
    if totals is not None:
        totals["weight"] = total_of([*room, *others])
    return True


def is_even(runs: Sequence[tuple[int, int, int]], num_agents: int, num_units: int) -> bool:
    """Whether all units are the agents', in their order and in equal numbers."""
    size, rest = divmod(num_units, num_agents)
    return (
        rest == 0
        and len(runs) == num_agents
        and all(run == (a, a * size, (a + 1) * size) for a, run in enumerate(runs))
    )


def add(
    product: Tensor, views: Sequence[Tensor], agent: int, local: str, totals: Totals | None
) -> None:
    """Add to the agent's gradient (-1: to nobody's) and to the total, which may keep `product`."""
    if agent >= 0:
        views[agent].add_(product)
    if totals is not None:
        totals[local] = totals[local].add_(product) if local in totals else product


def with_gaps(runs: Sequence[tuple[int, int, int]], num_units: int) -> list[tuple[int, int, int]]:
    """The runs, and between them runs of -1 for the units that are nobody's."""
    whole, start = [], 0
    for run in runs:
        if run[1] > start:
            whole.append((-1, start, run[1]))
        whole.append(run)
        start = run[2]
    if start < num_units:
        whole.append((-1, start, num_units))
    return whole


def linear_rows(
    target: Target,
    site: Site,
    call: Call,
    into: Tensor,
    gradient: Tensor,
    totals: Totals | None,
) -> None:
    rows = call.tags.rows
    assert rows is not None
    if tuple(into.shape[:1]) != call.tags.shape:
        raise ValueError(f"saw shape {tuple(into.shape)}, tags have shape {call.tags.shape}")
    n = len(into)
    out = gradient.reshape(n, -1, gradient.shape[-1])
    if "weight" in call.learning:
        tokens = into.reshape(n, -1, into.shape[-1])
        left, tokens = factors(target, out, tokens, target.projections.get(site.slots["weight"]))
        if left.dtype != target.dtype:
            weight = torch.bmm(left.transpose(1, 2), tokens, out_dtype=target.dtype)
        else:
            weight = torch.bmm(left.transpose(1, 2), tokens)
        add_rows(target, site, "weight", rows, weight, totals)
    if "bias" in call.learning:
        bias = accumulating(target, out).sum(1)
        add_rows(target, site, "bias", rows, bias, totals)


def embedding(
    target: Target, site: Site, call: Call, tensors: Sequence[Tensor], gradient: Tensor
) -> None:
    tags, padding = call.tags, call.module.padding_idx
    token, out = units(tensors[0], tags), accumulating(target, units(gradient, tags))
    if padding is not None:
        out = out * (token != padding).unsqueeze(-1)
    slot = site.slots["weight"]
    views = target.views(slot)
    projection = target.projections.get(slot)
    if projection is not None:
        out = projection.of_input(
            out
        )  # the columns of a table are what a linear layer's inputs are

    def of(part: slice | int) -> Tensor:
        dense = out.new_zeros(call.module.num_embeddings, out.shape[-1])
        dense.index_add_(0, token[part].flatten(), out[part].flatten(0, -2))
        return dense if projection is None else projection.of_output(dense.T).T

    for agent, lo, hi in tags.runs:
        if projection is None:
            views[agent].index_add_(0, token[lo:hi].flatten(), out[lo:hi].flatten(0, -2))
        else:
            views[agent].add_(of(slice(lo, hi)))
    if tags.rows is not None:
        order = range(len(token)) if tags.order is None else tags.order
        for unit, row in enumerate(order):
            sketch(target, slot, of(unit).reshape(1, -1), tags.rows, slice(row, row + 1))


def rerun(
    target: Target, site: Site, call: Call, tensors: Sequence[Tensor], gradient: Tensor
) -> None:
    """Any module: run it again per agent and differentiate. Exact if it treats rows apart."""
    tags = call.tags
    if tuple(gradient.shape[: len(tags.shape)]) != tags.shape:
        raise ValueError(f"saw shape {tuple(gradient.shape)}, tags have shape {tags.shape}")
    devices = [gradient.device] if gradient.is_cuda else []
    # Nothing inside may be captured again; a module that draws must not shift the run's numbers.
    with target.paused(), spared(call.module), torch.random.fork_rng(devices):
        for row, agent, shares in rerun_groups(call, tensors, gradient):
            for local, share in zip(call.learning, shares, strict=True):
                if share is None:
                    continue
                share = accumulating(target, share)
                projection = target.projections.get(site.slots[local])
                if projection is not None:
                    share = projection.of_gradient(share)
                if agent >= 0:
                    views = target.views(site.slots[local])
                    views[agent].add_(share.view_as(views[agent]))
                if tags.rows is not None:
                    one = slice(row, row + 1)
                    own = share.reshape(1, -1).clone()  # parameters may share their gradient
                    sketch(target, site.slots[local], own, tags.rows, one)


def rerun_groups(
    call: Call, tensors: Sequence[Tensor], gradient: Tensor
) -> Iterator[tuple[int, int, tuple[Tensor | None, ...]]]:
    """(row or -1, agent, gradients): per row if rows are sketched, else per run."""
    tags = call.tags
    parameters = [parameter_of(call.module, local) for local in call.learning]
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


@contextmanager
def spared(module: nn.Module) -> Iterator[None]:
    """Give the module copies of its buffers: running statistics and counters are the run's."""
    owners = [part for part in module.modules() if part._buffers]
    kept = [part._buffers.copy() for part in owners]
    try:
        for part in owners:
            for name, buffer in part._buffers.items():
                part._buffers[name] = None if buffer is None else buffer.clone()
        yield
    finally:
        for part, buffers in zip(owners, kept, strict=True):
            part._buffers.update(buffers)


def differentiate(
    output: Tensor, parameters: Sequence[Tensor], gradient: Tensor
) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(
        output,
        parameters,
        gradient,
        retain_graph=True,
        allow_unused=True,
    )


# What the rules share.


def units(tensor: Tensor, tags: Tags) -> Tensor:
    """`tensor` with one leading axis of units, in the order of the runs."""
    dims = len(tags.shape)
    if tuple(tensor.shape[:dims]) != tags.shape:
        raise ValueError(f"saw shape {tuple(tensor.shape)}, tags have shape {tags.shape}")
    flat = tensor.flatten(0, 1) if dims == 2 else tensor
    return flat if tags.order_n is None else flat.index_select(0, tags.order_n)


def accumulating(target: Target, tensor: Tensor) -> Tensor:
    """`tensor` in the dtype in which gradients are summed."""
    if tensor.element_size() < 4:
        target.is_low_precision = True
    return tensor.to(target.dtype)


def factors(
    target: Target, out: Tensor, into: Tensor, projection: Projection | None
) -> tuple[Tensor, Tensor]:
    """Output gradient and input as factors of the weight gradient.

    In the dtype in which gradients are summed, or both in 16 bit where the device multiplies those
    into float32.
    """
    if projection is None and out.dtype == into.dtype and out.element_size() < 4:
        target.is_low_precision = True
        if target.dtype == torch.float32 and adds_up_in_float32(out.device, out.dtype):
            return out, into
    out, into = accumulating(target, out), accumulating(target, into)
    if projection is None:
        return out, into
    return projection.of_output(out), projection.of_input(into)


def add_rows(
    target: Target,
    site: Site,
    local: str,
    rows: RowSketches,
    gradient: Tensor,
    totals: Totals | None,
) -> None:
    """Add row gradients [n, ...] of one parameter to agents, norms and sketches; uses them up."""
    slot, gradient_nM = site.slots[local], gradient.flatten(1)
    own_AM = target.fresh(slot)
    if own_AM is not None:
        torch.mm(rows.one_hot_An, gradient_nM, out=own_AM)
    elif totals is None:
        target.part(slot).addmm_(rows.one_hot_An, gradient_nM)
    else:
        own_AM = rows.one_hot_An @ gradient_nM
        target.part(slot).add_(own_AM)
    if totals is not None:
        assert own_AM is not None
        # From the agents' sums: a pass over agents, not a second one over rows.
        others = [gradient_nM[rows.agent_n < 0].sum(0)] if rows.has_others else []
        totals[local] = total_of([*own_AM, *others]).view(gradient.shape[1:])
    sketch(target, slot, gradient_nM, rows, slice(None))


def sketch(target: Target, slot: int, gradient_nM: Tensor, rows: RowSketches, which: slice) -> None:
    """Add row gradients to the norms and strided sign-sum sketches of the rows `which`.

    The gradients are used up: fresh memory for their products with the signs costs twice the time.
    """
    assert target.sign_P is not None
    rows.is_filled = True
    span = target.layout.slots[slot]
    if rows.awaited[slot] > 1 or slot in rows.held:
        # Tied, or called twice: the norm of the sum is not the sum of the norms.
        if slot not in rows.held:
            rows.held[slot] = gradient_nM.new_zeros(len(rows.norm2_n), gradient_nM.shape[1])
        rows.held[slot][which].add_(gradient_nM)
    else:
        rows.norm2_n[which].add_(squared_norms_of(gradient_nM))
    sketch_nK = rows.sketch_nK[which]
    num_buckets = sketch_nK.shape[1]
    signed = gradient_nM.mul_(target.sign_P[span.start : span.stop])
    full = signed.shape[1] // num_buckets * num_buckets
    sketch_nK.add_(signed[:, :full].reshape(len(signed), -1, num_buckets).sum(1))
    sketch_nK[:, : signed.shape[1] - full].add_(signed[:, full:])
