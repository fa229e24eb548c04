"""Two agents in one row: accepted where the model keeps them apart, refused where it does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_qwen3
from torch import Tensor, nn

from gradlab.probe.probe import Probe, attach
from gradlab.probe.segment_checks import first_mixed, mixes_tokens
from gradlab.records import Agent

AGENTS = (Agent("generator", 0), Agent("generator", 1), Agent("judge"))
TAGS = torch.tensor([[0, 0, 0, 0, 2, 2, 2, 2, 2, 1, 1, 1]])
"""Segments of 4, 5 and 3 tokens."""
LENGTHS = (4, 5, 3)
POSITIONS = torch.cat([torch.arange(n) for n in LENGTHS])[None]
IDS = torch.randint(1, 40, (1, 12), generator=torch.Generator().manual_seed(0))


def blocked() -> Tensor:
    """[1, 1, 12, 12] additive, causal within each segment."""
    is_open = torch.block_diag(*[torch.ones(n, n).tril() for n in LENGTHS]).bool()
    return torch.zeros(12, 12).double().masked_fill(~is_open, -1e9)[None, None]


def setup(**settings: Any) -> tuple[nn.Module, torch.optim.Optimizer, Probe]:
    model = make_qwen3(attn_implementation="sdpa", **settings)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return model, optimizer, attach(model, optimizer, agents=AGENTS)


def test_one_sequence_with_turns_of_two_agents_is_refused() -> None:
    model, _, probe = setup()
    probe.tag(TAGS)
    with pytest.raises(ValueError, match=r"row 0 holds tokens of generator\[0\] and judge\[0\]"):
        model(input_ids=IDS)
    with pytest.raises(ValueError, match="mode='reference'"):
        model(input_ids=IDS, position_ids=torch.arange(12)[None])
    rows = torch.tensor([[1, 1, 1], [0, 0, 1]])
    probe.tag(rows)
    with pytest.raises(ValueError, match="row 1 holds"):
        model(input_ids=IDS[:, :6].view(2, 3))


@pytest.mark.parametrize(
    "arguments",
    [
        {"position_ids": POSITIONS, "use_cache": False},
        {"position_ids": POSITIONS, "attention_mask": blocked()},
        {"position_ids": POSITIONS, "attention_mask": {"full_attention": blocked()}},
    ],
)
def test_packed_segments_are_split_as_rows_of_their_own(arguments: dict[str, Any]) -> None:
    model, optimizer, probe = setup()
    probe.tag(TAGS)
    logits = model(input_ids=IDS, **arguments).logits[0]
    weight = torch.arange(1.0, 13)[:, None]
    (logits.square() * weight).sum().backward()
    optimizer.step()
    assert probe.last is not None
    apart, again, other = setup()
    start = 0
    for agent, length in zip((0, 2, 1), LENGTHS, strict=True):
        own = slice(start, start + length)
        other.tag(torch.tensor([agent]))
        logits = apart(input_ids=IDS[:, own], use_cache=False).logits[0]
        (logits.square() * weight[own]).sum().backward()
        start += length
    again.step()
    assert other.last is not None
    np.testing.assert_allclose(probe.last.gram_BAA, other.last.gram_BAA, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention_mask": torch.ones(1, 12)}, "beside an attention_mask"),
        ({"use_cache": True}, "while a cache is filled"),
    ],
)
def test_positions_that_the_model_ignores_count_for_nothing(
    arguments: dict[str, Any], message: str
) -> None:
    model, _, probe = setup()
    given = {"use_cache": False, "position_ids": POSITIONS} | arguments
    free = model(input_ids=IDS, **given).logits
    with torch.no_grad():
        shorter = model(input_ids=IDS[:, 4:9], use_cache=False).logits
    assert not torch.allclose(free[:, 4:9], shorter), "the model does look across segments"
    probe.tag(TAGS)
    with pytest.raises(ValueError, match=message):
        model(input_ids=IDS, **given)


def test_a_mask_is_read_and_not_trusted() -> None:
    model, _, probe = setup()
    probe.tag(TAGS)
    leaking = blocked()
    leaking[0, 0, 9, 0] = 0
    with pytest.raises(ValueError, match=r"generator\[1\] and generator\[0\].*by the attention_m"):
        model(input_ids=IDS, attention_mask=leaking, position_ids=POSITIONS)
    with pytest.raises(ValueError, match="by the attention_mask"):
        model(input_ids=IDS, attention_mask=torch.ones(1, 1, 12, 12).tril().bool())


def test_segments_must_end_where_agents_do() -> None:
    model, _, probe = setup()
    probe.tag(TAGS)
    late = torch.cat([torch.arange(5), torch.arange(4), torch.arange(3)])[None]
    with pytest.raises(ValueError, match="within the segments of position_ids"):
        model(input_ids=IDS, position_ids=late, use_cache=False)


class Packed(nn.Module):
    """A model with lengths of its own, as of kernels for packed rows."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = SelfAttention()

    def forward(self, x: Tensor, **lengths: Tensor) -> Tensor:
        out: Tensor = self.attention(x)
        return out


class SelfAttention(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 3)


def test_other_signs_of_segments() -> None:
    model = Packed()
    probe = attach(model, torch.optim.SGD(model.parameters()), agents=AGENTS)
    x = torch.randn(1, 12, 3)
    probe.tag(TAGS)
    model(x, cu_seq_lens_q=torch.tensor([0, 4, 9, 12]))
    model(x, seq_idx=torch.repeat_interleave(torch.arange(3), torch.tensor(LENGTHS))[None])
    with pytest.raises(ValueError, match="within the segments of its lengths"):
        model(x, cu_seq_lens_q=torch.tensor([0, 5, 9, 12]))
    with pytest.raises(ValueError, match="within the segments of seq_idx"):
        model(x, seq_idx=torch.zeros(1, 12, dtype=torch.int64))
    with pytest.raises(ValueError, match="row 0 holds"):
        model(x)
    probe.tag(TAGS, are_apart=True)
    model(x)


def test_models_without_attention_need_no_segments() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    assert not mixes_tokens(model)
    assert mixes_tokens(make_qwen3())
    assert mixes_tokens(nn.Sequential(nn.LSTM(3, 3)))
    probe = attach(model, torch.optim.SGD(model.parameters()), agents=AGENTS)
    probe.tag(TAGS)
    model(torch.randn(1, 12, 3))


def test_the_first_mixed_segment_is_found_as_by_a_loop() -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(300):
        agent_nT = torch.randint(-1, 3, (2, 6), generator=generator)
        starts = torch.rand((2, 6), generator=generator) < 0.6
        starts[:, 0] = True
        segment_nT = starts.flatten().cumsum(0).view(2, 6)
        expected = None
        for segment in range(1, int(segment_nT.max()) + 1):
            place = (segment_nT == segment).nonzero()
            owners = {int(agent_nT[n, t]) for n, t in place} - {-1}
            if len(owners) > 1:
                expected = (int(place[0, 0]), min(owners), max(owners))
                break
        assert first_mixed(agent_nT, segment_nT) == expected
