"""Labels alone, of generated images: drawn from a histogram, without opening a shard."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from sid_scale.data.order import Schedule
from sid_scale.data.shards import ShardIndex
from sid_scale.errors import SidScaleError


class LabelsError(SidScaleError):
    """Labels that cannot be drawn from; the message says which and why."""


@dataclass(frozen=True, eq=False)
class LabelBatch:
    """One micro-batch: labels int64 (n,), in pinned memory if CUDA is there, or None without
    classes; and index int64 (n,), the positions in the global order: unique over the run, the key
    for per-sample noise."""

    labels: Tensor | None
    index: Tensor


@final
class LabelStream:
    """This rank's micro-batches of labels, without end; the label at a position is a pure
    function of (seed, position), whatever the number of ranks.

    Args:
        histogram: how often each class occurs (`label_histogram`); empty without classes.
        seed: at least 0.
        start: images seen, a multiple of `global_batch`.

    Raises:
        ValueError: the histogram is negative or all zero, or the batch sizes or `start` do not
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
        if counts.ndim != 1 or (len(counts) and (counts.sum() < 1 or counts.min() < 0)):
            raise ValueError(f"not a class histogram: {histogram}")
        self._cumulative = counts.cumsum().astype(np.uint64)
        self._key = np.random.SeedSequence(seed).generate_state(2, np.uint64)
        self._positions = iter(Schedule(global_batch, rank, world_size, micro_batch, start))

    def __iter__(self) -> Iterator[LabelBatch]:
        return self

    def __next__(self) -> LabelBatch:
        positions = next(self._positions)
        index = torch.arange(positions.start, positions.stop)
        if not len(self._cumulative):
            return LabelBatch(None, index)
        # Philox counts: position i owns counter value i, of whose four words the first is used.
        philox = np.random.Philox(key=self._key, counter=positions.start)
        bits = philox.random_raw(4 * len(positions))[::4]
        labels = np.searchsorted(self._cumulative, bits % self._cumulative[-1], side="right")
        return LabelBatch(pinned(torch.from_numpy(labels.astype(np.int64))), index)

    def close(self) -> None:
        """Nothing to close: here so that both kinds of streams are treated alike."""

    def __enter__(self) -> "LabelStream":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def pinned(tensor: Tensor) -> Tensor:
    """In pinned memory if CUDA is there: from there a copy to a GPU need not be waited for."""
    return tensor.pin_memory() if torch.cuda.is_available() else tensor


def label_histogram(labels: str, num_classes: int, index: ShardIndex | None) -> list[int]:
    """How often each class occurs among the labels to draw, (num_classes,); [] without classes.

    Args:
        labels: "histogram", as often as in the data, or all alike if there is none; "uniform";
            or a text file of class indices between blanks or line ends, as often as there.

    Raises:
        LabelsError: the file is missing or empty, or holds something else.
    """
    if num_classes == 0:
        return []
    if labels == "uniform" or (labels == "histogram" and index is None):
        return [1] * num_classes
    if labels == "histogram" and index is not None:
        return list(index.class_histogram)
    try:
        words = Path(labels).read_text(encoding="ascii").split()
    except (OSError, UnicodeError) as error:
        raise LabelsError(
            f"labels: {labels} is neither histogram, uniform nor a text file of classes ({error})"
        ) from error
    if not words:
        raise LabelsError(f"labels: {labels} holds no class")
    histogram = [0] * num_classes
    for number, word in enumerate(words, 1):
        if not word.isdigit() or int(word) >= num_classes:
            raise LabelsError(
                f"labels: {labels}: entry {number}, {word!r}, is no class of 0..{num_classes - 1}"
            )
        histogram[int(word)] += 1
    return histogram
