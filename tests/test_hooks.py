"""Copies of a watched model are models like any other."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from test_probe import AGENTS, ROWS, Small, batch, loss_of, step
from torch import nn

from gradlab.probe.capture.capture import Capture
from gradlab.probe.probe import Probe, attach
from gradlab.records import Mode


def pickled(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize("mode", ["exact", "fused", "streaming", "sketch"])
@pytest.mark.parametrize("make", [copy.deepcopy, pickled])
def test_a_copy_of_the_model_is_not_watched(mode: Mode, make: object, tmp_path: Path) -> None:
    """As a reference model is made; the probe, its buffers and its store stay where they are."""
    assert callable(make)
    model = Small()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    probe = attach(model, optimizer, agents=AGENTS, mode=mode, record=tmp_path / "run.zarr")
    gc.collect()
    kinds = (Probe, Capture)
    before = sum(type(thing) in kinds for thing in gc.get_objects())
    probe.tag(ROWS)
    reference = make(model)
    assert sum(type(thing) in kinds for thing in gc.get_objects()) == before
    loss_of(reference, batch(7)).backward()  # other rows than were tagged, nobody minds
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        assert p.grad is None
        assert q.grad is not None
        q.grad = None
    record = step(model, optimizer, probe)
    assert record.metrics.residual < 1e-5
    probe.close()
    twin = Small()
    twin_optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-2)
    alone = step(twin, twin_optimizer, attach(twin, twin_optimizer, agents=AGENTS, mode=mode))
    np.testing.assert_array_equal(record.gram_BAA, alone.gram_BAA)


@pytest.mark.parametrize("mode", ["exact", "fused", "streaming", "sketch"])
def test_a_closed_probe_is_held_by_nothing(mode: Mode) -> None:
    model = Small()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    probe = attach(model, optimizer, agents=AGENTS, mode=mode)
    step(model, optimizer, probe)
    probe.close()
    gone = weakref.ref(probe)
    del probe
    gc.collect()
    assert gone() is None
    assert not any("forward" in vars(module) for module in model.modules())
