"""Catch each agent's share of every weight gradient while the ordinary backward runs.

A forward hook leaves a *ticket*: a dangling autograd node that keeps the module's input and is
never on the path of the loss, so gradients stay bitwise what they were and activation checkpointing
still frees (and recomputes) the input. A tensor hook on the module's output meets the output
gradient in the backward, redeems the ticket and lets a rule (`gradlab.probe.capture.rules`) turn
input and output gradient into weight gradients, one per agent. Fused, a linear layer's forward is
replaced instead: its weight gradient is the sum of the agents' (`gradlab.probe.capture.fused`),
and no product is computed twice.

Legend: A agents, P measured parameters (elements).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gradlab.probe.capture.buffer import Buffer
from gradlab.probe.capture.fused import FusedLinear, as_autocast, can_fuse, fits, is_fused
from gradlab.probe.capture.hooks import Forward, Hook
from gradlab.probe.capture.projections import Projection
from gradlab.probe.capture.rules import (
    NO_ARGUMENTS,
    Arguments,
    Call,
    Rule,
    Site,
    linear,
    parameter_of,
    rerun,
    rule_of,
)
from gradlab.probe.capture.streaming import Stream
from gradlab.probe.capture.tags import RowSketches, Tags
from gradlab.probe.layout import Layout
from gradlab.probe.ranks.fsdp1 import canonical, is_sharded, uses
from gradlab.records import Mode

CONTAINERS = (nn.ParameterDict, nn.ParameterList)


class Ticket(torch.autograd.Function):
    """Keep tensors the way autograd keeps them, in a node that no backward reaches."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return anchor.new_empty(0)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise AssertionError("a ticket is never on the path of a loss")


class Capture:
    """Per-agent gradients of the parameters of one layout, summed over the backwards of an update.

    Cost: A x P floats; one extra weight-gradient product per site, split by agent, none if fused.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        num_agents: int,
        num_extras: int = 0,
        mode: Mode = "exact",
    ) -> None:
        """`num_extras`: floats that travel with the gradients between ranks; see `buffer`."""
        self.layout = layout
        self.num_agents = num_agents
        self._num_extras = num_extras
        is_double = any(p.dtype == torch.float64 for p in layout.parameters)
        self.dtype = torch.float64 if is_double else torch.float32
        self._kept: Buffer | None = None
        self.stream: Stream | None = None
        """In mode 'streaming', where gradients go instead of the buffer."""
        self._is_streaming = mode == "streaming"
        self.tags: Tags | None = None
        """Tags of the next forward; None while the probe is not listening."""
        self.attributed: set[int] = set()
        """Slots that received a share in this update."""
        self.failures: dict[str, str] = {}
        """Site -> why its gradients could not be attributed."""
        self.is_low_precision = False
        """True once a 16-bit activation was met: the optimizer's gradient is then rounded."""
        self.projections: Mapping[int, Projection] = {}
        """Slot -> projection, in mode 'sketch'; set by whoever tags."""
        self.sign_P: Tensor | None = None
        """Random signs of the row sketches; set by whoever tags prompts."""
        self._latest: Tags | None = None
        self._num_pending = 0
        self._is_first = True
        self._before_first: Callable[[], None] = lambda: None
        self._anchor = torch.zeros(0, requires_grad=True)
        self._is_sharded = any(is_sharded(p) for p in layout.parameters)
        index = {id(p): i for i, p in enumerate(layout.parameters)}
        self.sites = [] if mode == "reference" else list(self._find_sites(model, index))
        self._handles = [
            module.register_forward_hook(
                Hook(self._on_forward, site), prepend=True, with_kwargs=True
            )
            if site.rule is rerun
            else module.register_forward_hook(Hook(self._on_plain_forward, site), prepend=True)
            for site, module in self.sites
        ]
        for site, module in self.sites:
            if mode in ("fused", "streaming") and can_fuse(module):
                assert isinstance(module, nn.Linear)
                site.is_fused = True
                module.forward = Forward(self._fused_forward, site, module)  # type: ignore[method-assign] # until remove

    def _find_sites(
        self, model: nn.Module, index: Mapping[int, int]
    ) -> Iterator[tuple[Site, nn.Module]]:
        flattened = uses(self.layout.parameters)

        def own(module: nn.Module, prefix: str = "") -> dict[str, int]:
            named = module.named_parameters(recurse=False, remove_duplicate=False)
            here = {prefix + local: index[id(p)] for local, p in named if id(p) in index}
            return here | {prefix + local: i for local, i in flattened.get(module, {}).items()}

        for name, module in model.named_modules():
            if isinstance(module, CONTAINERS):
                continue  # without a forward: their parameters are used by the module around them
            slots, rule = own(module), rule_of(module)
            inside = [(key, m) for key, m in module.named_children() if isinstance(m, CONTAINERS)]
            held = {k: i for key, m in inside for k, i in own(m, f"{key}.").items()}
            # To run that module again is cheap unless it is a model of its own.
            if held and not any(own(part) for part in rest_of(module)):
                slots, rule = slots | held, rerun
            if slots:
                yield Site(canonical(name), rule, slots, type(module).__name__), module

    def remove(self) -> None:
        """Take all hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self.stream is not None:
            self.stream.remove()
        for site, module in self.sites:
            if site.is_fused:
                site.is_fused = False
                vars(module).pop("forward", None)

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

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Capture nothing inside, recomputation included, and go on afterwards."""
        kept = self.tags, self._latest
        self.tags = self._latest = None
        try:
            yield
        finally:
            self.tags, self._latest = kept

    def allocate(self) -> None:
        """Make the buffers on the device where the parameters are now."""
        device = self.layout.parameters[0].device
        if self._is_streaming:
            if self.stream is None or self.stream.device != device:
                self.stream = Stream(self.layout, self.num_agents, self.dtype)
            return
        if self._kept is None or self._kept.device != device:
            self._kept = Buffer(self.layout, self.num_agents, self._num_extras, self.dtype)

    @property
    def buffer(self) -> Tensor:
        """The gradients [A * P], then room for what ranks share with them in one message."""
        if self._kept is None:
            return torch.zeros(0)
        self._kept.settle()
        return self._kept.flat

    @property
    def gradient_AP(self) -> Tensor:
        """[A, P] the agents' gradients so far; empty in mode 'streaming'."""
        return torch.zeros(0) if self._kept is None else self._kept.gradient_AP

    def part(self, slot: int) -> Tensor:
        """[A, M] the agents' gradients of one parameter so far, to add to."""
        return self._store.part(slot)

    def views(self, slot: int) -> Sequence[Tensor]:
        """The same per agent and of the parameter's shape."""
        return self._store.views(slot)

    def fresh(self, slot: int) -> Tensor | None:
        """As `part`, but room that the caller has to write first; None if something is there."""
        return self._store.fresh_part(slot)

    @property
    def _store(self) -> Buffer | Stream:
        store = self._kept if self.stream is None else self.stream
        assert store is not None, "allocated by listen"
        return store

    def multiply(self, factor: float) -> None:
        """Multiply what was captured so far."""
        self._store.multiply(factor)

    def is_zero(self) -> bool:
        """Whether what was captured so far is zero everywhere."""
        if self.stream is not None:
            return not self.stream.gram().any()
        return not bool(self.gradient_AP.any())

    def drop(self) -> None:
        """Forget the gradients, not the tags: the trainer dropped its own."""
        for store in (self._kept, self.stream):
            if store is not None:
                store.clear()
        self.attributed.clear()

    def clear(self) -> None:
        """Forget what was captured; called after every update."""
        self.drop()
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
        if site.is_fused and is_fused(output):
            return
        learning = self._learning(site, module)
        if not learning:
            return
        everything = (*args, *kwargs.values()) if kwargs else args
        tensors = [value for value in everything if isinstance(value, Tensor)]
        # Left in every forward, tagged or not: checkpointing counts saved tensors and compares the
        # first forward with its recomputation.
        ticket = Ticket.apply(self._anchor, *tensors).grad_fn  # type: ignore[no-untyped-call]
        if self._current_tags() is None:
            return
        if not isinstance(output, Tensor):
            self._fail(site, f"returns {type(output).__name__}, not a tensor")
            return
        if not output.requires_grad:
            return
        arguments = NO_ARGUMENTS
        if site.rule is rerun:
            others = {i: v for i, v in enumerate(everything) if not isinstance(v, Tensor)}
            arguments = Arguments(len(args), tuple(kwargs), others)
        elif not tensors:
            self._fail(site, "got its input by keyword; call it with its input first")
            return
        call = self._new_call(site, module, learning, [ticket], arguments)
        on_gradient = partial(self._on_gradient, site, call)
        if self._is_sharded and output.grad_fn is not None:
            # After the tensor hook with which a sharded module gathers its weights: a rule may need
            # them, and what checkpointing recomputes here has to find it ready.
            place = output.output_nr
            output.grad_fn.register_prehook(lambda gradients: on_gradient(gradients[place]))
        else:
            output.register_hook(on_gradient)  # type: ignore[no-untyped-call]

    def _fused_forward(self, site: Site, module: nn.Linear, input: Tensor) -> Tensor:
        """What stands in for the forward of a fused linear layer; same argument, same output."""
        weight, bias = module.weight, module.bias
        learning = self._learning(site, module) if fits(input, weight) else []
        if not learning:
            return nn.functional.linear(input, weight, bias)
        # Tagged or not, for the sake of checkpointing: see the ticket.
        call = None
        if self._current_tags() is not None:
            call = self._new_call(site, module, learning, [], NO_ARGUMENTS)
        output: Tensor = FusedLinear.apply(  # type: ignore[no-untyped-call]
            partial(self._on_fused_gradient, site, call),
            as_autocast(input),
            as_autocast(weight),
            None if bias is None else as_autocast(bias),
        )
        return output

    @staticmethod
    def _learning(site: Site, module: nn.Module) -> list[str]:
        # Asked in every forward: adapters are switched on and off.
        return [local for local in site.slots if parameter_of(module, local).requires_grad]

    def _current_tags(self) -> Tags | None:
        # Recomputation inside a backward. Non-reentrant: this forward's gradient never comes, the
        # first forward's does. Reentrant: the first forward left nothing, so this one counts.
        return self._latest if is_recomputing() else self.tags

    def _new_call(
        self,
        site: Site,
        module: nn.Module,
        learning: list[str],
        tickets: list[Any],
        arguments: Arguments,
    ) -> Call:
        tags, is_again = self._current_tags(), is_recomputing()
        assert tags is not None
        if tags.rows is not None:
            for local in learning:
                i = site.slots[local]
                if not is_again or not tags.rows.awaited.get(i):
                    tags.rows.expect(i)
        is_ambiguous = is_again and self._num_pending > 1
        return Call(module, tags, tickets, arguments, learning, is_ambiguous)

    def _on_gradient(self, site: Site, call: Call, gradient: Tensor) -> None:
        tensors = call.tickets[0].saved_tensors
        if not torch._C._autograd._get_current_graph_task_keep_graph():
            # As autograd does, so that a loss kept for logging pins no activations.
            call.tickets.clear()
        self._attribute(site, call, site.rule, tensors, gradient)

    def _on_fused_gradient(
        self, site: Site, call: Call | None, into: Tensor, gradient: Tensor
    ) -> dict[str, Tensor]:
        """The layer's gradients as sums over agents; empty where the agents cannot be told."""
        totals: dict[str, Tensor] = {}
        if call is None:
            return totals
        is_split = self._attribute(site, call, partial(linear, totals=totals), (into,), gradient)
        return totals if is_split else {}

    def _attribute(
        self, site: Site, call: Call, rule: Rule, tensors: tuple[Tensor, ...], gradient: Tensor
    ) -> bool:
        """Add what one call contributed to the agents' gradients; False if it cannot be told."""
        if self._is_first:
            self._is_first = False
            self._before_first()
        if call.is_ambiguous:
            self._fail(site, "reentrant checkpointing: several tagged forwards before one backward")
            return False
        try:
            if torch.is_grad_enabled() or torch.is_autocast_enabled(gradient.device.type):
                with torch.no_grad(), torch.autocast(gradient.device.type, enabled=False):
                    rule(self, site, call, tensors, gradient)
            else:
                rule(self, site, call, tensors, gradient)
        except Exception as error:  # a measuring instrument must never stop a training run
            self._fail(site, f"{type(error).__name__}: {error}")
            return False
        if self._kept is not None:
            self._kept.keep([site.slots[local] for local in call.learning])
        for local in call.learning:
            i = site.slots[local]
            self.attributed.add(i)
            if call.tags.rows is not None:
                self._account(site, i, call.tags.rows)
        return True

    def _account(self, site: Site, slot: int, rows: RowSketches) -> None:
        """One use of a parameter has contributed to its row gradients."""
        rows.awaited[slot] -= 1
        if rows.awaited[slot] < 0:
            self._fail(site, "several backwards under one tag(): norms of rows are too small")
        elif rows.awaited[slot] == 0 and slot in rows.held:
            rows.settle(slot)

    def _fail(self, site: Site, reason: str) -> None:
        self.failures.setdefault(site.name, reason)


def is_recomputing() -> bool:
    """Whether a backward is running, so that a forward now is one that checkpointing repeats."""
    return bool(torch._C._current_graph_task_id() != -1)


def rest_of(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that this one calls."""
    for child in module.children():
        if not isinstance(child, CONTAINERS):
            yield from child.modules()
