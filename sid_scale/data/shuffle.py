"""Seeded permutations that stay the same for ever."""

import numpy as np


def permutation(size: int, *key: int) -> np.ndarray:
    """A permutation of range(size), int64 (size,): a pure function of size and key (>= 0 each)."""
    # From raw bits: NumPy promises those for ever, but not what Generator.permutation does.
    bits = np.random.Philox(np.random.SeedSequence(key)).random_raw(size)
    return np.argsort(bits, kind="stable")
