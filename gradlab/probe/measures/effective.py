"""Catch each agent's gradient with respect to the effective weight of every trained linear layer.

LoRA's factors are a gauge: B, A and B/8, 8A are the same layer with other gradients, and those of
two adapters have no angle at all. The layer's weight W = W0 + s B A has: its gradient is the output
gradient times the input, whoever trains it. Kept is a projection from both sides by random signs
that depend on the seed, the training step and the layer's name alone, so that policies of one run
can be compared in the same step. Dropout in the adapter is left out: the input is that of W.

Legend: A agents, P elements kept, k rank of the projections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from zlib import crc32

import numpy as np
import torch
from torch import nn

from gradlab.probe.capture.capture import Capture
from gradlab.probe.capture.projections import Projection, draw, projected
from gradlab.probe.capture.rules import Site, linear
from gradlab.probe.capture.tags import Tags
from gradlab.probe.layout import Layout, Slot
from gradlab.probe.ranks.fsdp1 import Parameter

RANK = 32
"""Of the projections: matrices with no side longer are kept whole."""


class Effective(Capture):
    """Projected gradients [A, P] of effective weights, by the same tickets as the parameters'."""

    def __init__(
        self,
        model: nn.Module,
        parameters: Sequence[Parameter],
        num_agents: int,
        seed: int,
        rank: int = RANK,
    ) -> None:
        """Raises ValueError where no linear layer holds one of the parameters."""
        self._layers = layers_of(model, {id(p) for p in parameters})
        if not self._layers:
            raise ValueError(
                "attach: effective=True measures linear layers, and none of them is trained, "
                "directly or by an adapter with a base_layer; attach without it"
            )
        self._seed, self._rank = seed, rank
        self._step: int | None = None
        whole = lay_out(self._layers, parameters)
        self._shapes = [slot.shape for slot in whole.slots]
        super().__init__(model, projected(whole, rank), num_agents)

    @property
    def fingerprint(self) -> str:
        """The same where gradients may be compared: layers, shapes, rank and seed."""
        layers = [
            (slot.name, *shape) for slot, shape in zip(self.layout.slots, self._shapes, strict=True)
        ]
        return f"{crc32(repr([layers, self._rank, self._seed]).encode()):08x}"

    def follow(self, tags: Tags, step: int, before_first: Callable[[], None]) -> None:
        """Listen to the coming forwards; see `Capture.listen`. `step`: their training step."""
        if step != self._step and not self.attributed:
            self._step = step
            device = self.layout.parameters[0].device
            projections: dict[int, Projection] = {}
            for i, (name, shape) in enumerate(zip(self._layers, self._shapes, strict=True)):
                key = [self._seed, step, 3, crc32(name.encode())]
                seed = int(np.random.SeedSequence(key).generate_state(1)[0])
                drawn = draw([shape], self._rank, seed, device, self.dtype)
                if drawn:
                    projections[i] = drawn[0]
            self.projections = projections
        self.listen(replace(tags, rows=None), before_first)

    def _find_sites(
        self, model: nn.Module, index: Mapping[int, int]
    ) -> Iterator[tuple[Site, nn.Module]]:
        for i, (name, (module, _)) in enumerate(self._layers.items()):
            yield Site(name, linear, {"weight": i}, type(module).__name__), module

    @staticmethod
    def _learning(site: Site, module: nn.Module) -> list[str]:
        return ["weight"] if any(p.requires_grad for p in module.parameters()) else []


def layers_of(model: nn.Module, measured: set[int]) -> dict[str, tuple[nn.Module, nn.Linear]]:
    """Name -> (the module whose output is W x, the linear layer that W has the shape of)."""
    found: dict[str, tuple[nn.Module, nn.Linear]] = {}
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        # What peft wraps, of whatever kind of adapter, keeps what it wrapped under this name.
        base = getattr(module, "base_layer", module)
        if module not in inside and isinstance(base, nn.Linear):
            if any(id(p) in measured for p in module.parameters()):
                found[name] = module, base
            inside |= set(module.modules())
        elif base is not module:  # an adapter of something else: its own layers are no weights
            adapters = [child for child in module.children() if child is not base]
            inside |= {part for child in adapters for part in child.modules()}
    return found


def lay_out(
    layers: Mapping[str, tuple[nn.Module, nn.Linear]], parameters: Sequence[Parameter]
) -> Layout:
    """The effective weights along one flat axis, in the model's order."""
    slots, start = [], 0
    for name, (_, base) in layers.items():
        shape = torch.Size((base.out_features, base.in_features))
        slots.append(Slot(name, "all", shape, start, start + shape.numel()))
        start = slots[-1].stop
    return Layout(tuple(slots), tuple(parameters), (("all", 0, start),), start)
