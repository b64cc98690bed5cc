"""Seeded shuffles that are the same for ever."""

import numpy as np


def permutation(size: int, *key: int) -> np.ndarray:
    """The numbers 0 to size - 1, int64, in an order that `key` (integers, at least 0) chooses."""
    # From raw bits: NumPy promises those for ever, but not what Generator.permutation does.
    bits = np.random.Philox(np.random.SeedSequence(key)).random_raw(size)
    return np.argsort(bits, kind="stable")
