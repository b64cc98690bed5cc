"""A micro-batch in the making: where its samples are read to, and whether they are sound.

Payloads go from a shard's file straight into the tensor that goes to the device. That the arrays
are finite and the heads in order is then checked for what was read, not sample by sample: anything
out of order is left to `shards.decode`, which says what is wrong.
"""

import weakref
from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sid_scale.data.layout import LaidOutShard, Layout
from sid_scale.data.shards import DTYPES, BadSampleError, Record, decode
from sid_scale.data.source import ReadThrough, ShardSource

BLAS_ONE_THREAD = 10_000  # numbers up to which OpenBLAS keeps a dot product on this thread


class Rows:
    """Where a micro-batch is read to, and views of it that reading needs.

    Args:
        values: float32 (n, 2C, H, W), any values.
    """

    def __init__(self, values: np.ndarray, layout: Layout, dtype: np.dtype[Any]):
        flat = values.reshape(len(values), -1)
        self.values = list(flat)
        # What is stored in half precision is read beside the place where it is wanted.
        self.in_place = dtype == flat.dtype
        stored = flat if self.in_place else np.empty(flat.shape, dtype)
        self.stored = list(stored)
        self.heads = np.zeros((len(values), layout.head_bytes), np.uint8)
        self.buffers = [list(map(_memory, pair)) for pair in zip(self.heads, stored, strict=True)]
        # Each row as row vectors and as column vectors: their products are the sums of squares.
        parts = flat.reshape(len(values), -1, 1, _divisor(flat.shape[1], BLAS_ONE_THREAD))
        self.products = np.zeros((*parts.shape[:3], 1), np.float32)
        self.factors = list(zip(parts, parts.swapaxes(2, 3), self.products, strict=True))


class Memory:
    """Rows in memory that was used before, pinned if CUDA is there.

    Fresh memory would cost as much as the copy into it: the system has to clear it first.
    """

    def __init__(self, source: ShardSource):
        self._layout, self._dtype = source.layout, DTYPES[source.index.dtype]
        self._free: deque[tuple[np.ndarray, Rows]] = deque()

    def rows(self, shape: tuple[int, ...]) -> tuple[Tensor, Rows]:
        """A tensor of a shape (always the same one) with any values, and its rows."""
        if torch.cuda.is_available():
            stored = torch.empty(shape, pin_memory=True)  # PyTorch keeps pinned memory for reuse
            return stored, Rows(stored.numpy(), self._layout, self._dtype)
        if self._free:
            memory, rows = self._free.pop()
        else:
            memory = np.empty(shape, np.float32)
            rows = Rows(memory, self._layout, self._dtype)
        # The last tensor that shares the memory drops this view, and so hands the memory back.
        view = memory.view()
        weakref.finalize(view, self._free.append, (memory, rows)).atexit = False
        return torch.from_numpy(view), rows


class Draft:
    """A micro-batch in the making."""

    def __init__(self, source: ShardSource, rows: Rows):
        self._index, self._layout, self._rows = source.index, source.layout, rows
        size = len(rows.values)
        self._laid_out, self._sound = np.zeros(size, bool), np.zeros(size, bool)
        self.labels = np.full(size, -1)
        self.places = [(-1, -1)] * size  # shard and number of the sample in each row

    def read(self, source: LaidOutShard | ReadThrough, numbers: list[int], rows: list[int]) -> None:
        """Samples of one shard into their rows; whether they are sound, `unsound` tells."""
        if isinstance(source, ReadThrough):
            for number, row in zip(numbers, rows, strict=True):
                self._take(row, source.take(number))
            return
        self._laid_out[rows] = True
        buffers = [self._rows.buffers[row] for row in rows]
        for row, _ in zip(rows, source.read_into(numbers, buffers), strict=True):
            if not self._rows.in_place:
                np.copyto(self._rows.values[row], self._rows.stored[row])
            # Whether all is finite: the quickest pass, now that the cache holds the row.
            across, down, products = self._rows.factors[row]
            np.matmul(across, down, out=products)

    def _take(self, row: int, record: Record) -> None:
        try:
            self.put(row, *decode(record, self._index))
        except BadSampleError:
            self._sound[row] = False  # and named when it is mended

    def put(self, row: int, array: np.ndarray, label: int) -> None:
        """A decoded sample into a row."""
        self._rows.values[row][:] = array.reshape(-1)
        self.labels[row], self._sound[row] = label, True

    def unsound(self) -> list[int]:
        """Rows whose samples are not what the index promises, when all have been read; with
        them some whose values are only huge."""
        labels, sound = self._layout.labels(self._rows.heads)
        sound &= np.isfinite(self._rows.products).all(axis=(1, 2, 3))
        self.labels = np.where(self._laid_out, labels, self.labels)
        return np.flatnonzero(~np.where(self._laid_out, sound, self._sound)).tolist()


def _memory(array: Any) -> memoryview:
    return memoryview(array).cast("B")


def _divisor(number: int, limit: int) -> int:
    """The largest divisor of a number up to a limit."""
    return next(d for d in range(min(number, limit), 0, -1) if number % d == 0)
