"""Data sets for tests."""

from pathlib import Path

import numpy as np

from sid_scale.data.writing import write_shards

SHAPE = (2, 1, 2)


def write(folder: Path, count: int, shard_samples: int, dtype: str = "float32") -> Path:
    """Samples that carry their number, so that they can be told apart."""
    samples = ((f"{i:06d}", np.full(SHAPE, i), i % 7) for i in range(count))
    write_shards(folder, samples, codec={}, num_classes=7, shard_samples=shard_samples, dtype=dtype)
    return folder
