"""16-bit products keep the digits of float32 sums, on a CPU by casting and on a GPU without."""

from __future__ import annotations

import pytest
import torch
from test_capture import AGENTS
from torch import nn

from gradlab.probe.measures.exact_sums import (
    adds_up_in_float32,
    norm_of,
    squared_norms_of,
    total_of,
)
from gradlab.probe.probe import attach
from gradlab.records import Mode


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 3_000_001])
def test_norms_and_totals_keep_their_digits(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, size, generator=generator) * torch.rand(size, generator=generator).exp()
    exact = float(x[0].double().norm())
    assert norm_of(x[0]) == pytest.approx(exact, rel=3e-7)
    assert norm_of(x[0].double()) == pytest.approx(exact, rel=1e-12)
    rounded = x[0].bfloat16()
    assert norm_of(rounded) == pytest.approx(float(rounded.double().norm()), rel=3e-7)
    assert torch.equal(total_of(x), x[0] + x[1] + x[2])


@pytest.mark.parametrize("size", [0, 1, 255, 256, 100_001])
def test_squared_norms_of_rows_keep_their_digits(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, size, generator=generator) * torch.rand(size, generator=generator).exp()
    exact_n = x.double().square().sum(1)
    torch.testing.assert_close(squared_norms_of(x).double(), exact_n, rtol=3e-7, atol=0)
    torch.testing.assert_close(squared_norms_of(x.double()), exact_n, rtol=1e-12, atol=0)


@pytest.mark.parametrize("size", [3, 5000])
def test_a_norm_of_what_is_not_a_number_is_none(size: int) -> None:
    x = torch.zeros(size)
    x[1] = torch.nan
    assert norm_of(x) != norm_of(x)


def test_a_cpu_casts_and_a_gpu_is_asked() -> None:
    assert not adds_up_in_float32(torch.device("cpu"), torch.bfloat16)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("has_prompts", [False, True])
@pytest.mark.parametrize("mode", ["exact", "fused"])
@pytest.mark.parametrize("shape", [(64, 16), (16, 64)])
def test_a_bfloat16_layer_is_captured_to_float32_digits(
    shape: tuple[int, int], mode: Mode, has_prompts: bool, device: str
) -> None:
    if device == "cuda":
        assert adds_up_in_float32(torch.device("cuda", 0), torch.bfloat16)
    torch.manual_seed(0)
    layer = nn.Linear(*shape).to(device, torch.bfloat16)
    x, weight = (torch.randn(6, 32, side).to(device, torch.bfloat16) for side in shape)
    agent_B = torch.tensor([0, 1, 2, 0, 1, 2])
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    probe = attach(layer, optimizer, agents=AGENTS, mode=mode)
    probe.tag(agent_B, prompts=[0, 0, 0, 1, 1, 1] if has_prompts else None)
    (layer(x) * weight).sum().backward()  # so that `weight` is the gradient of the output, exactly
    out, into = weight.double().cpu(), x.double().cpu()
    expected = torch.stack(
        [
            torch.cat([part.flatten() for part in slot])
            for slot in (
                (torch.einsum("bto,bti->oi", out[own], into[own]), out[own].sum((0, 1)))
                for own in (agent_B == a for a in range(3))
            )
        ]
    )
    error = (
        probe._instrument.capture.gradient_AP.double().cpu() - expected
    ).norm() / expected.norm()
    assert float(error) < 1e-6
    total = torch.cat([p.grad.flatten() for p in layer.parameters() if p.grad is not None])
    whole = expected.sum(0)
    assert float((total.double().cpu() - whole).norm() / whole.norm()) < 5e-3
