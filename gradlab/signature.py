"""Hash tokens into the buckets of a role signature, alike for all trainers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradlab.records import SIGNATURE_BUCKETS

FIBONACCI_HASH = 2654435769
"""Multiplicative hashing spreads neighbouring token ids over the buckets (Knuth, vol. 3, 6.4)."""


def token_counts(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """[SIGNATURE_BUCKETS] tokens per hash bucket."""
    shift = np.uint64(32 - (SIGNATURE_BUCKETS - 1).bit_length())
    buckets = (ids.astype(np.uint64) * np.uint64(FIBONACCI_HASH) % np.uint64(2**32)) >> shift
    return np.bincount(buckets.astype(np.int64), minlength=SIGNATURE_BUCKETS)
