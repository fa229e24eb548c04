"""Measure how far sketched Grams are from the exact ones, and write the tables.

    python bench/sketch.py [--draws 40] [--write]

Two-sided projections (mode 'sketch') on a Llama of random weights, whose gradients are of low rank:
the hard case. Then projections and sign-sums of the exact gradient beside each other on the
embedded tiny-1m under a policy-gradient loss. Errors over independent draws: root mean square of
||g_a|| / exact - 1, and of the difference in the cosine of two agents.

Legend: A agents, B parameter blocks, D draws, K sketch buckets, P trained parameters (elements).
"""

from __future__ import annotations

import argparse
import random
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from models import Case, Size, machine, make_model, row_losses
from numpy.typing import NDArray
from torch import Tensor, nn

from gradlab.probe.probe import attach
from trainers.models.language import load_base
from trainers.models.tiny import Teacher, batch
from trainers.prompts.compact import CompactPrompts
from trainers.tasks.sources.embedded import arithmetic

RESULT = Path(__file__).parent / "results" / "sketch.md"
CASE = Case(Size(256, 4, 2048), 16, 64, lora_rank=None)
BUCKETS = (257, 1021, 4093, 16381)
"""Primes: the strides of a sign-sum must not line up with the columns of a matrix."""
LOSSES = Callable[[], Tensor]


def grams(
    model: nn.Module, losses: LOSSES, case: Case, rank: int | None, draws: int
) -> NDArray[np.float64]:
    """[D, B, A, A] as the probe has them; exact without rank."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    probe = attach(
        model,
        optimizer,
        agents=case.agents,
        mode="exact" if rank is None else "sketch",
        sketch_rank=rank or 2,
    )
    found = []
    for _ in range(draws):
        probe.tag(case.agent_n)
        losses().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert probe.last is not None
        found.append(probe.last.gram_BAA)
    probe.close()
    return np.stack(found)


def errors(found_DAA: NDArray[np.float64], exact_AA: NDArray[np.float64]) -> tuple[float, float]:
    """Root mean square of the relative error of norms, and of the error of cosines."""
    pairs = np.triu_indices(len(exact_AA), 1)

    def read(gram: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        norm = np.sqrt(np.einsum("...aa->...a", gram))
        return norm, (gram / norm[..., None] / norm[..., None, :])[..., pairs[0], pairs[1]]

    (norm_DA, cosine_DQ), (norm_A, cosine_Q) = read(found_DAA), read(exact_AA)
    return (
        float(np.sqrt(((norm_DA / norm_A - 1) ** 2).mean())),
        float(np.sqrt(((cosine_DQ - cosine_Q) ** 2).mean())),
    )


def of_ranks(draws: int) -> list[str]:
    """The table of two-sided projections by rank, on random weights."""
    model = make_model(CASE)
    losses = partial(row_losses, model, *CASE.batch)
    (exact_BAA,) = grams(model, losses, CASE, None, 1)
    lines = [
        "| rank | norm, policy | cosine, policy | norm, worst block | cosine, worst block |",
        "|---|---|---|---|---|",
    ]
    for rank in (16, 32, 64, 128):
        found_DBAA = grams(model, losses, CASE, rank, draws)
        whole = errors(found_DBAA.sum(1), exact_BAA.sum(0))
        blocks = [errors(found_DBAA[:, b], exact) for b, exact in enumerate(exact_BAA)]
        worst = [max(block[i] for block in blocks) for i in (0, 1)]
        lines.append(f"| {rank} | " + " | ".join(f"{x:.3f}" for x in (*whole, *worst)) + " |")
    return lines


# The embedded model.


def real_losses(model: Any, tokenizer: Any, rows_per_agent: int = 8) -> tuple[LOSSES, Case]:
    """Policy-gradient losses of rows that play the roles of a vote, with random advantages."""
    case = Case(CASE.size, 4 * rows_per_agent, 0)
    draw = random.Random(0)
    teacher = Teacher(arithmetic(2), CompactPrompts(), 0.5, 0.35, draw)
    makers = [teacher.generator] * 3 + [teacher.aggregator]
    examples = [
        maker(draw.choice(teacher.problems)) for maker in makers for _ in range(rows_per_agent)
    ]
    ids_nT, labels_nT = batch(tokenizer, examples)
    advantage_n = torch.tensor([draw.choice([-1.0, 1.0]) for _ in examples])

    def losses() -> Tensor:
        logits = model(input_ids=ids_nT, attention_mask=(ids_nT != 0).long()).logits[:, :-1]
        found = nn.functional.cross_entropy(
            logits.flatten(0, 1), labels_nT[:, 1:].flatten(), ignore_index=-100, reduction="none"
        )
        return found.view(len(ids_nT), -1).sum(1) * advantage_n

    return losses, case


def real_model(is_full: bool) -> tuple[Any, LOSSES, Case]:
    """tiny-1m, in full, or with adapters that have been trained a little."""
    model, tokenizer = load_base("tiny-1m", torch.float32)
    if is_full:
        return model, *real_losses(model, tokenizer)
    torch.manual_seed(0)
    lora = peft.LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, lora)
    losses, case = real_losses(model, tokenizer)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    for _ in range(10):  # fresh adapters have a gradient in one of their two factors only
        losses().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, losses, case


def gradients(model: nn.Module, losses: LOSSES, case: Case) -> Tensor:
    """[A, P] in float64."""
    trained = [p for p in model.parameters() if p.requires_grad]
    parts = []
    for agent in range(case.num_agents):
        found = torch.autograd.grad(losses()[case.agent_n == agent].sum(), trained)
        parts.append(torch.cat([g.flatten() for g in found]).double())
    return torch.stack(parts)


def hashed(gradient_AP: Tensor, buckets: int, generator: torch.Generator) -> Tensor:
    """[A, K] CountSketch: every element, with a random sign, into a random bucket."""
    size = gradient_AP.shape[1]
    bucket_P = torch.randint(0, buckets, (size,), generator=generator)
    return gradient_AP.new_zeros(len(gradient_AP), buckets).index_add_(
        1, bucket_P, gradient_AP * signs(size, generator)
    )


def strided(gradient_AP: Tensor, buckets: int, generator: torch.Generator) -> Tensor:
    """[A, K] sign-sum: element i, with a random sign, into bucket i modulo K."""
    size = gradient_AP.shape[1]
    signed = gradient_AP * signs(size, generator)
    padded = nn.functional.pad(signed, (0, -size % buckets))
    return padded.view(len(signed), -1, buckets).sum(1)


def signs(size: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (size,), generator=generator).double() * 2 - 1


def kept(model: nn.Module, rank: int) -> int:
    """Floats of an agent's two-sided projections; vectors are kept whole."""
    shapes = [p.shape for p in model.parameters() if p.requires_grad]
    return sum(
        shape.numel() if len(shape) < 2 else min(shape[0], rank) * min(shape[1], rank)
        for shape in shapes
    )


def of_sketches(draws: int) -> list[str]:
    """The table of sign-sums and projections beside each other, on tiny-1m."""
    lines = [
        "| trained | sketch | floats per agent | norm | cosine |",
        "|---|---|---|---|---|",
    ]
    for is_full in (False, True):
        model, losses, case = real_model(is_full)
        gradient_AP = gradients(model, losses, case)
        exact_AA = (gradient_AP @ gradient_AP.T).numpy()
        (probed_BAA,) = grams(model, losses, case, None, 1)
        assert np.allclose(probed_BAA.sum(0), exact_AA, atol=1e-4 * exact_AA.max())
        trained = f"{'all' if is_full else 'LoRA r16'}, {gradient_AP.shape[1]:,}"
        generator = torch.Generator().manual_seed(0)
        found: list[tuple[str, int, NDArray[np.float64]]] = []
        for name, sketch in (("CountSketch", hashed), ("strided sign-sum", strided)):
            for buckets in BUCKETS:
                sketches = [sketch(gradient_AP, buckets, generator) for _ in range(draws)]
                found.append((name, buckets, torch.stack([s @ s.T for s in sketches]).numpy()))
        for rank in (16, 32):
            gram_DAA = grams(model, losses, case, rank, draws).sum(1)
            found.append((f"two-sided, rank {rank}", kept(model, rank), gram_DAA))
        for name, size, gram_DAA in found:
            cells = " | ".join(f"{x:.4f}" for x in errors(gram_DAA, exact_AA))
            lines.append(f"| {trained} | {name} | {size:,} | {cells} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)
    lines = [
        "# How far sketches are off",
        "",
        f"`python bench/sketch.py --draws {options.draws} --write`: root mean square errors of one "
        "update, over draws and agents. Errors of training steps are independent: a mean over 25 "
        "steps has a fifth of them.",
        "",
        machine(("torch", "transformers", "peft")),
        "",
        "## By rank",
        "",
        f"Two-sided projections (mode 'sketch') in full fine-tuning of a Llama of width "
        f"{CASE.size.hidden} with {CASE.size.layers} layers and random weights, "
        f"{CASE.num_agents} agents, {CASE.rows} x {CASE.tokens} tokens.",
        "",
        *of_ranks(options.draws),
        "",
        "## Beside sign-sums of the exact gradient",
        "",
        "The embedded tiny-1m, policy-gradient loss on 8 rows of each of three generators and an "
        "aggregator, random advantages; adapters trained for 10 steps. CountSketch throws every "
        "element into a random bucket with a random sign; the strided sign-sum, without a "
        "scatter, puts element i into bucket i modulo a prime.",
        "",
        *of_sketches(options.draws),
        "",
    ]
    print(*lines, sep="\n")
    if options.write:
        RESULT.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
