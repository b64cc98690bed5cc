"""A micro-batch in the making: where its samples are read to, and whether they are sound.

Payloads go from a shard's file straight into the tensor that goes to the device, those in half
precision by way of a buffer. That the arrays are finite and the heads in order is then checked for
what was read, not sample by sample: anything out of order is left to `shards.decode`, which says
what is wrong.
"""

import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sid_scale.data.shard_readers import SequentialShard, ShardSource
from sid_scale.data.shards import DTYPES, BadSampleError, Record, decode
from sid_scale.data.tar_layout import RandomAccessShard

CACHED_BYTES = 1 << 19  # that are read before they are looked at
HUGE_PAGE = 2 << 20
BLAS_ONE_THREAD = 10_000  # numbers up to which OpenBLAS keeps a dot product on this thread


class Scratch:
    """What reading needs beside the memory of a micro-batch: one is in the making at a time."""

    def __init__(self, size: int, source: ShardSource):
        elements, dtype = int(np.prod(source.index.sample_shape)), DTYPES[source.index.dtype]
        self.heads = source.layout.heads(size)
        self.head_buffers = [memoryview(head) for head in self.heads.bytes]
        # What is stored in half precision is read beside the place where it is wanted.
        self.halves = None if dtype == np.float32 else np.empty((size, elements), dtype)
        # Each row is squared in parts.
        self.parts = elements // _divisor(elements, BLAS_ONE_THREAD)
        self.squares = np.empty((size, self.parts, 1, 1), np.float32)
        self.rows_in_cache = max(1, CACHED_BYTES // (elements * dtype.itemsize))


class Rows:
    """The rows of a micro-batch, as reading needs them.

    Args:
        values: float32 (n, 2C, H, W), any values.
    """

    def __init__(self, values: np.ndarray, scratch: Scratch):
        self.scratch = scratch
        self.values = values.reshape(len(values), -1)
        self._across = values.reshape(len(values), scratch.parts, 1, -1)
        self._down = self._across.swapaxes(2, 3)
        read_to: Any = self.values if scratch.halves is None else scratch.halves
        size, whole = read_to[0].nbytes, memoryview(read_to).cast("B")
        self.buffers = [
            [head, whole[row * size : (row + 1) * size]]
            for row, head in enumerate(scratch.head_buffers)
        ]

    def forget(self) -> None:
        """What was read before is nobody's any more."""
        self.scratch.squares.fill(np.nan)

    def look_at(self, rows: slice) -> None:
        """Makes rows that have just been read float32, and sums their squares for `finite`: the
        quickest pass over them, while the processor's cache holds them."""
        if self.scratch.halves is not None:
            np.copyto(self.values[rows], self.scratch.halves[rows])
        np.matmul(self._across[rows], self._down[rows], out=self.scratch.squares[rows])

    def finite(self) -> np.ndarray:
        """Which rows were looked at and hold no NaN, no infinity, and no values so large that
        their squares are infinite, bool (n,)."""
        finite: np.ndarray = np.isfinite(self.scratch.squares).reshape(len(self.values), -1)
        return np.logical_and.reduce(finite, axis=1)


class Memory:
    """Memory for micro-batches that was used before, pinned if CUDA is there.

    Fresh memory would cost as much as the copy into it: the system has to clear it first.
    """

    def __init__(self, source: ShardSource, micro_batch: int):
        self._shape = (micro_batch, *source.index.sample_shape)
        self._scratch = Scratch(micro_batch, source)
        self._pins = torch.cuda.is_available()
        self._lent: list[tuple[weakref.ref[np.ndarray], Rows]] = []

    def pinned(self, tensor: Tensor) -> Tensor:
        """The tensor, pinned if CUDA is there."""
        return tensor.pin_memory() if self._pins else tensor

    def rows(self) -> tuple[Tensor, Rows]:
        """A tensor float32 (n, 2C, H, W) of any values, and its rows, for the next draft."""
        if self._pins:  # PyTorch keeps pinned memory for reuse
            stored = torch.empty(self._shape, pin_memory=True)
            return stored, Rows(stored.numpy(), self._scratch)
        free = (at for at, (borrower, _) in enumerate(self._lent) if borrower() is None)
        at = next(free, len(self._lent))
        if at == len(self._lent):
            rows = Rows(_in_huge_pages(self._shape), self._scratch)
        else:
            _, rows = self._lent[at]
        # A new view, which is gone when the last tensor that shares the memory is gone.
        view = rows.values.reshape(self._shape)
        self._lent[at : at + 1] = [(weakref.ref(view), rows)]
        return torch.from_numpy(view), rows


class Draft:
    """A micro-batch in the making."""

    def __init__(self, source: ShardSource, rows: Rows):
        self._index, self._layout, self._rows = source.index, source.layout, rows
        rows.forget()
        self.labels = np.empty(0, np.int64)  # of all rows, once `unsound` was called
        self._taken: dict[int, int] = {}  # labels of rows that were not read in place; -1: unsound
        self.places: list[tuple[int, int]] = []  # shard and number of the sample in each row

    def read(
        self, source: RandomAccessShard | SequentialShard, numbers: list[int], row: int
    ) -> None:
        """Samples of one shard into the rows from `row` on; whether they are sound, `unsound`
        tells."""
        if isinstance(source, SequentialShard):
            for at, number in enumerate(numbers, row):
                self._take(at, source.take(number))
            return
        together = self._rows.scratch.rows_in_cache
        for begin in range(0, len(numbers), together):
            some = numbers[begin : begin + together]
            rows = slice(row + begin, row + begin + len(some))
            source.read_into(some, self._rows.buffers[rows])
            self._rows.look_at(rows)

    def _take(self, row: int, record: Record) -> None:
        try:
            array, self._taken[row] = decode(record, self._index)
            self._fill(row, array)
        except BadSampleError:
            self._taken[row] = -1  # and named when it is mended

    def unsound(self) -> list[int]:
        """Rows whose samples are not what the index promises, when all have been read; with
        them some whose values are only huge."""
        self.labels, finite = self._layout.labels(self._rows.scratch.heads), self._rows.finite()
        for row, label in self._taken.items():
            self.labels[row], finite[row] = label, True
        return np.flatnonzero((self.labels < 0) | ~finite).tolist()

    def mend(self, row: int, array: np.ndarray, label: int) -> None:
        """A decoded sample into an unsound row."""
        self._fill(row, array)
        self.labels[row] = label

    def _fill(self, row: int, array: np.ndarray) -> None:
        self._rows.values[row] = array.reshape(-1)


def _in_huge_pages(shape: tuple[int, ...]) -> np.ndarray:
    """An array float32 of any values that begins where a huge page may: NumPy asks for them."""
    size = 4 * int(np.prod(shape))
    slab = np.empty(size + HUGE_PAGE, np.uint8)
    begin = -slab.ctypes.data % HUGE_PAGE
    return slab[begin : begin + size].view(np.float32).reshape(shape)


def _divisor(number: int, limit: int) -> int:
    """The largest divisor of a number up to a limit."""
    return next(d for d in range(min(number, limit), 0, -1) if number % d == 0)
