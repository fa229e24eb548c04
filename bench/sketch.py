"""Measure how far sketched Grams are from the exact ones, and write the table.

    python bench/sketch.py [--draws 40] [--write]

A Llama of random weights under full fine-tuning: its gradients are of low rank, the hard case for a
projection. Errors over independent draws: root mean square of ||g_a|| / exact - 1, and of the
difference in the cosine of two agents, for the whole policy and for its worst block.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from probe import AGENTS, Size, make_model, row_losses

from gradlab.probe import attach

RESULT = Path(__file__).parent / "results" / "sketch.md"
SIZE = Size(256, 4, 2048, 16, 64, is_full=True)


def grams(rank: int | None, draws: int) -> NDArray[np.float64]:
    """[draws, B, A, A]; exact without rank."""
    model = make_model(SIZE)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, SIZE.vocabulary, (SIZE.rows, SIZE.tokens), generator=generator)
    weight = torch.randn(SIZE.rows, generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    mode = "exact" if rank is None else "sketch"
    probe = attach(model, optimizer, agents=AGENTS, mode=mode, sketch_rank=rank or 2)  # type: ignore[arg-type] # one of the modes
    found = []
    for _ in range(draws):
        probe.tag(torch.arange(SIZE.rows) * len(AGENTS) // SIZE.rows)
        row_losses(model, ids, weight).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert probe.last is not None
        found.append(probe.last.gram_BAA)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    (exact_BAA,) = grams(None, 1)
    lines = [
        "| rank | norm, policy | cosine, policy | norm, worst block | cosine, worst block |",
        "|---|---|---|---|---|",
    ]
    print(*lines, sep="\n")
    for rank in (16, 32, 64, 128):
        found_DBAA = grams(rank, options.draws)
        whole = errors(found_DBAA.sum(1), exact_BAA.sum(0))
        blocks = [errors(found_DBAA[:, b], exact) for b, exact in enumerate(exact_BAA)]
        worst = [max(block[i] for block in blocks) for i in (0, 1)]
        lines.append(f"| {rank} | " + " | ".join(f"{x:.3f}" for x in (*whole, *worst)) + " |")
        print(lines[-1], flush=True)
    if options.write:
        head = [
            "# How far sketches are off",
            "",
            f"`python bench/sketch.py --draws {options.draws} --write`: full fine-tuning of a "
            f"Llama of width {SIZE.hidden} with {SIZE.layers} layers and random weights, "
            f"{len(AGENTS)} agents, {SIZE.rows} x {SIZE.tokens} tokens; root mean square errors of "
            "one update. Errors of training steps are independent: a mean over 25 steps has a "
            "fifth of them.",
            "",
        ]
        RESULT.write_text("\n".join([*head, *lines, ""]))


if __name__ == "__main__":
    main()
