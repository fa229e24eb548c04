"""Refuse what cannot be measured, and tell at the first step whether that is still trained.

Wrapping, converting or rebuilding after `attach` leaves the probe on parameters that nobody trains:
it would record nothing, or less than everything, without a word.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gradlab.probe.layout import Layout
from gradlab.probe.ranks.distributed import Ranks
from gradlab.probe.ranks.fsdp1 import FlatShard, Parameter, is_sharded, named_parameters, owner_of
from gradlab.records import MODES, Agent, Mode

ORDER = (
    "build and wrap the model (peft, FSDP, dtype), then the optimizer, then attach; load weights "
    "into the parameters that are there"
)


def check_request(agents: tuple[Agent, ...], policy: str, mode: Mode, sketch_rank: int) -> None:
    """Refuse what `attach` cannot be asked for, whatever the model is."""
    if mode not in MODES:
        raise ValueError(f"attach: mode is {mode!r}; expected one of {', '.join(MODES)}")
    if sketch_rank < 2:
        raise ValueError(f"attach: sketch_rank is {sketch_rank}; expected 2 or more")
    if not agents:
        raise ValueError(f"attach: policy '{policy}' has no agents; expected at least one Agent")
    twice = sorted({str(agent) for agent in agents if agents.count(agent) > 1})
    if twice:
        raise ValueError(f"attach: policy '{policy}' lists {', '.join(twice)} more than once")


def measured(
    model: nn.Module, optimizer: torch.optim.Optimizer, policy: str
) -> dict[str, Parameter]:
    """The parameters to measure, by name; ValueError if there are none, or on several devices."""
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    named = {name: p for name, p in named_parameters(model).items() if id(owner_of(p)) in owned}
    named = {name: p for name, p in named.items() if p.requires_grad} or named
    if not named:
        raise ValueError(
            f"attach: the optimizer of policy '{policy}' owns {len(owned)} parameters, none of "
            f"them one of the given {type(model).__name__}; pass the model whose parameters it "
            "trains (and build the optimizer after moving or wrapping the model)"
        )
    devices = sorted({str(p.device) for p in named.values()})
    if len(devices) > 1:
        raise ValueError(
            f"attach: policy '{policy}' trains parameters on {', '.join(devices)}; "
            "the probe keeps one buffer and needs them on one device"
        )
    return named


class Attached:
    """What was attached to."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        layout: Layout,
        ranks: Ranks,
        policy: str,
    ) -> None:
        self.late: set[str] = set()
        """Parameters that got a gradient although they were not measured."""
        self.is_proven = False
        """An update was measured: it is what was attached to that is trained."""
        self._model = model
        self._optimizer = optimizer
        self._layout = layout
        self._ranks = ranks
        self._policy = policy
        self._dtypes = [p.dtype for p in layout.parameters]
        self._shapes = [p.shape for p in layout.parameters]
        self._version = self._count_changes()
        self._num_foreign = 0
        self._measured = {id(owner_of(p)) for p in layout.parameters}
        self._names: dict[int, str | None] = {}
        """Of parameters that are not measured; None: not one of the model's."""

    def check(self, model: nn.Module | None = None) -> None:
        """Raise ValueError if the optimizer trains other parameters than were measured, or the
        model (if given) computes with others."""
        owned = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        current = None if model is None else named_parameters(model)
        for slot, parameter, dtype, shape in zip(
            self._layout.slots, self._layout.parameters, self._dtypes, self._shapes, strict=True
        ):
            if id(owner_of(parameter)) not in owned:
                self._refuse(slot.name, "the optimizer no longer has it: it was given others")
            if parameter.shape != shape:
                self._refuse(
                    slot.name, f"its shape went from {tuple(shape)} to {tuple(parameter.shape)}"
                )
            if parameter.dtype != dtype:
                self._refuse(slot.name, f"its dtype went from {dtype} to {parameter.dtype}")
            if current is None:
                continue
            found = current.get(slot.name)
            if found is None:
                self._refuse(
                    slot.name, f"the {type(model).__name__} has no such parameter any more"
                )
            elif not is_same(found, parameter):
                self._refuse(slot.name, "the model computes with another parameter of that name")
        if not self._ranks.is_current:
            raise ValueError(
                f"policy '{self._policy}': the probe was attached before torch.distributed was "
                "started, and would take this process's rows for all; attach after it"
            )

    def check_learning(self) -> None:
        """Raise ValueError if nothing that was attached to can get a gradient."""
        if not any(p.requires_grad for p in self._layout.parameters):
            self._refuse(self._layout.slots[0].name, "neither it nor another requires a gradient")

    def unmeasured(self) -> dict[str, Tensor]:
        """Gradients that the optimizer is about to use of the model's other parameters.

        They were frozen, or not the optimizer's, when the probe was attached.
        """
        found: dict[str, Tensor] = {}
        for p in (p for group in self._optimizer.param_groups for p in group["params"]):
            if p.grad is None or id(p) in self._measured:
                continue
            if id(p) not in self._names:
                named = named_parameters(self._model).items()
                self._names[id(p)] = {id(owner_of(q)): name for name, q in named}.get(id(p))
            name = self._names[id(p)]
            if name is not None:
                found[name] = p.grad
        self.late |= set(found)
        return found

    def note_dropped(self) -> None:
        """Gradients were captured and are gone: raise ValueError if somebody used them."""
        version = self._count_changes()
        if version == self._version:
            return
        self._version = version
        self._num_foreign += 1
        if self._num_foreign >= 2:  # once may be a look ahead, as of sharpness-aware optimizers
            raise ValueError(
                f"policy '{self._policy}': parameters were stepped twice, and not by the "
                f"{type(self._optimizer).__name__} that the probe is attached to: nothing is on "
                "record. Attach to the optimizer whose step() is called, once it is built"
            )

    def _count_changes(self) -> int:
        return sum(p._version for p in self._layout.parameters if isinstance(p, nn.Parameter))

    def _refuse(self, name: str, why: str) -> None:
        raise ValueError(
            f"policy '{self._policy}': the probe was attached to '{name}', and now {why}; " + ORDER
        )


def is_same(found: Parameter, attached: Parameter) -> bool:
    """Whether the model's parameter is the measured one."""
    if isinstance(found, FlatShard) or isinstance(attached, FlatShard):
        return owner_of(found) is owner_of(attached)
    # FSDP shows another tensor in its place while it runs.
    return found is attached or is_sharded(attached) or not isinstance(found, nn.Parameter)


def check_steps(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError if this optimizer's steps cannot be seen."""
    if "_optimizer_step_pre_hooks" not in vars(optimizer):
        raise ValueError(
            f"attach: {type(optimizer).__name__} is a wrapper without hooks on its steps; pass the "
            "optimizer inside it (accelerate: optimizer.optimizer)"
        )
