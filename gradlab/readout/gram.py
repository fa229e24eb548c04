"""Read norms, cosines, pulls, shares and coherence out of Gram matrices.

A Gram matrix holds the inner products of the agents' gradients, G[a, b] = <g_a, g_b>. Whatever is
linear in the gradients is a read-out of it: the gradient of a set of agents is sum_a w_a g_a with
w 1 inside the set and 0 outside, and <sum_a w_a g_a, sum_b v_b g_b> = w^T G v.

Legend: A agents, N agents of one role, R roles; `...` any leading axes (updates, blocks).
All results are float64; a quotient whose denominator is 0 is NaN. An entry that is NaN (imported
runs may know norms alone) makes NaN of what needs it, and of nothing else.

Example:
    >>> gram_AA = np.array([[4.0, 3.0], [3.0, 9.0]])  # ||g_0|| = 2, ||g_1|| = 3, <g_0, g_1> = 3
    >>> float(norm(gram_AA, np.array([1.0, 1.0])))  # sqrt(4 + 9 + 2 * 3)
    4.358898943540674
    >>> float(cosine(gram_AA, np.array([1.0, 0.0]), np.array([0.0, 1.0])))  # 3 / (2 * 3)
    0.5
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gradlab.arrays import Floats
from gradlab.records import Agent, FloatArray


def members(agents: Sequence[Agent], who: str | Agent) -> Floats:
    """[A] weights of one agent, of the agents of a role, or of all of them ('total')."""
    if isinstance(who, Agent):
        chosen = [agent == who for agent in agents]
    else:
        chosen = [who in ("total", agent.role) for agent in agents]
    return np.array(chosen, dtype=np.float64)


def grouping(agents: Sequence[Agent], roles: Sequence[str]) -> Floats:
    """[R, A] matrix M that sums agents into roles: the role Gram is M G M^T."""
    return np.array([members(agents, role) for role in roles]).reshape(len(roles), len(agents))


def grouped(gram: FloatArray, grouping_RA: FloatArray) -> Floats:
    """[..., R, R] Gram of the roles: every entry is the sum of its agents' entries."""
    gram64 = np.asarray(gram, dtype=np.float64)
    if np.isnan(gram64).any():
        rows = [
            np.stack([inner(gram64, w_A, v_A) for v_A in grouping_RA], -1) for w_A in grouping_RA
        ]
        return np.stack(rows, -2)
    result: Floats = grouping_RA @ gram64 @ np.swapaxes(grouping_RA, -1, -2)
    return result


def inner(gram: FloatArray, w_A: FloatArray, v_A: FloatArray) -> Floats:
    """[...] inner product of two weighted sums of agents."""
    gram64 = np.asarray(gram, dtype=np.float64)
    if np.isnan(gram64).any():  # 0 * NaN is NaN: look only at the entries that have a weight
        gram64 = np.where(np.outer(w_A, v_A) == 0, 0.0, gram64)
    result: Floats = (gram64 @ v_A) @ w_A
    return result


def squared_norm(gram: FloatArray, w_A: FloatArray) -> Floats:
    """[...] squared norm of a weighted sum; rounding below 0 is cut, NaN stays."""
    return np.maximum(inner(gram, w_A, w_A), 0.0)


def norm(gram: FloatArray, w_A: FloatArray) -> Floats:
    """[...] norm of a weighted sum of agents."""
    return np.sqrt(squared_norm(gram, w_A))


def cosine(gram: FloatArray, w_A: FloatArray, v_A: FloatArray) -> Floats:
    """[...] cosine between two weighted sums of agents, in [-1, 1]."""
    # The product of the norms, not of the squared norms, which underflows for gradients of 1e-80.
    cosines = quotient(inner(gram, w_A, v_A), norm(gram, w_A) * norm(gram, v_A))
    return np.clip(cosines, -1.0, 1.0)


def pull(gram_RR: FloatArray) -> Floats:
    """[..., R] <g_r, g> / ||g||^2 with g the sum over r: signed, sums to 1."""
    toward = np.asarray(gram_RR, dtype=np.float64).sum(axis=-1)
    return quotient(toward, toward.sum(axis=-1, keepdims=True))


def shares(mass_R: FloatArray) -> Floats:
    """[..., R] masses divided by their sum."""
    mass = np.asarray(mass_R, dtype=np.float64)
    return quotient(mass, mass.sum(axis=-1, keepdims=True))


def coherence(gram_NN: FloatArray) -> Floats:
    """[...] ||sum_a g_a||^2 / sum_a ||g_a||^2: N when all agree, 1 when orthogonal, 0 opposed."""
    gram = np.asarray(gram_NN, dtype=np.float64)
    together = np.maximum(gram.sum(axis=(-2, -1)), 0.0)
    return quotient(together, np.trace(gram, axis1=-2, axis2=-1))


def quotient(
    numerator: FloatArray | NDArray[np.int64], denominator: FloatArray | NDArray[np.int64]
) -> Floats:
    """numerator / denominator, NaN where the denominator is 0."""
    above, below = np.broadcast_arrays(
        np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    )
    result = np.full(above.shape, np.nan)
    with np.errstate(invalid="ignore"):  # a diverged run may hold inf / inf
        np.divide(above, below, out=result, where=below != 0)
    return result
