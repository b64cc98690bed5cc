"""Labels alone, for `sid`: drawn from the class histogram, without opening a shard."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from sid_scale.data.stream import Schedule


@dataclass(frozen=True, eq=False)
class LabelBatch:
    """One micro-batch: labels int64 (n,), and index int64 (n,), the positions in the global
    order: unique over the run, the key for per-sample noise."""

    labels: Tensor
    index: Tensor


@final
class LabelStream:
    """This rank's micro-batches of labels, without end; the label at a position is a pure
    function of (seed, position), whatever the number of ranks.

    Args:
        histogram: how often each class occurs: `ShardIndex.class_histogram`; for uniform labels
            `[1] * num_classes`; for draws from a list of labels `np.bincount(list)`.
        seed: at least 0.
        start: images seen, a multiple of `global_batch`.

    Raises:
        ValueError: the histogram is empty or negative, or the batch sizes or `start` do not
            divide as they must.
    """

    def __init__(
        self,
        histogram: Sequence[int],
        *,
        seed: int,
        global_batch: int,
        rank: int,
        world_size: int,
        micro_batch: int,
        start: int = 0,
    ):
        counts = np.asarray(histogram, dtype=np.int64)
        if counts.ndim != 1 or counts.sum() < 1 or counts.min() < 0:
            raise ValueError(f"not a class histogram: {histogram}")
        self._cumulative = counts.cumsum().astype(np.uint64)
        self._key = np.random.SeedSequence(seed).generate_state(2, np.uint64)
        self._positions = iter(Schedule(global_batch, rank, world_size, micro_batch, start))

    def __iter__(self) -> Iterator[LabelBatch]:
        return self

    def __next__(self) -> LabelBatch:
        positions = next(self._positions)
        # Philox counts: position i owns counter value i, of whose four words the first is used.
        philox = np.random.Philox(key=self._key, counter=positions.start)
        bits = philox.random_raw(4 * len(positions))[::4]
        labels = np.searchsorted(self._cumulative, bits % self._cumulative[-1], side="right")
        return LabelBatch(
            torch.from_numpy(labels.astype(np.int64)),
            torch.arange(positions.start, positions.stop),
        )

    def close(self) -> None:
        """Nothing to close: here so that the loop can treat both streams alike."""

    def __enter__(self) -> "LabelStream":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
