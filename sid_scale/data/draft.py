"""A micro-batch in the making: where its samples are read to, and whether they are sound.

Payloads go from a shard's file straight into the tensor that goes to the device. That the arrays
are finite and the heads in order is then checked for what was read, not sample by sample: anything
out of order is left to `shards.decode`, which says what is wrong.
"""

import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sid_scale.data.layout import LaidOutShard, Layout
from sid_scale.data.shards import DTYPES, BadSampleError, Record, decode
from sid_scale.data.source import ReadThrough, ShardSource

CACHED_ROWS = 4  # that are looked at before the next ones are read: they fill half a megabyte
HUGE_PAGE = 2 << 20
BLAS_ONE_THREAD = 10_000  # numbers up to which OpenBLAS keeps a dot product on this thread


class Rows:
    """Where a micro-batch is read to, and views of it that reading needs.

    Args:
        values: float32 (n, 2C, H, W), any values.
    """

    def __init__(self, values: np.ndarray, layout: Layout, dtype: np.dtype[Any]):
        self.values = values.reshape(len(values), -1)
        # What is stored in half precision is read beside the place where it is wanted.
        in_place = dtype == values.dtype
        self._stored = self.values if in_place else np.empty(self.values.shape, dtype)
        self.heads = layout.heads(len(values))
        self.buffers = [list(map(_memory, row)) for row in zip(self.heads.bytes, self._stored)]
        # Each row in parts, as row vectors and as column vectors: their products are the sums of
        # squares.
        size = self.values.shape[1]
        self._across = values.reshape(len(values), -1, 1, _divisor(size, BLAS_ONE_THREAD))
        self._down = self._across.swapaxes(2, 3)
        self._squares = np.zeros((*self._across.shape[:3], 1), np.float32)

    def look_at(self, rows: slice) -> None:
        """What is done with rows that have just been read, while the processor's cache holds
        them: their values, and what `finite` has to know, the quickest pass over them."""
        if self._stored is not self.values:
            np.copyto(self.values[rows], self._stored[rows])
        np.matmul(self._across[rows], self._down[rows], out=self._squares[rows])

    def finite(self) -> np.ndarray:
        """Which rows hold no NaN, no infinity, and no values so large that their squares are
        infinite, bool (n,)."""
        finite = np.isfinite(self._squares[:, :, 0, 0]).all(axis=1)
        return np.asarray(finite)


class Memory:
    """Rows in memory that was used before, pinned if CUDA is there.

    Fresh memory would cost as much as the copy into it: the system has to clear it first.
    """

    def __init__(self, source: ShardSource):
        self._layout, self._dtype = source.layout, DTYPES[source.index.dtype]
        self._pins = torch.cuda.is_available()
        self._lent: list[tuple[weakref.ref[np.ndarray], np.ndarray, Rows]] = []

    def pinned(self, tensor: Tensor) -> Tensor:
        """The tensor, pinned if CUDA is there."""
        return tensor.pin_memory() if self._pins else tensor

    def rows(self, shape: tuple[int, ...]) -> tuple[Tensor, Rows]:
        """A tensor of a shape (always the same one) with any values, and its rows."""
        if self._pins:
            stored = torch.empty(shape, pin_memory=True)  # PyTorch keeps pinned memory for reuse
            return stored, Rows(stored.numpy(), self._layout, self._dtype)
        free = (at for at, (borrower, *_) in enumerate(self._lent) if borrower() is None)
        at = next(free, len(self._lent))
        if at == len(self._lent):
            memory = _in_huge_pages(shape)
            rows = Rows(memory, self._layout, self._dtype)
        else:
            _, memory, rows = self._lent[at]
        # Gone when the last tensor that shares the memory is gone.
        view = memory.view()
        self._lent[at : at + 1] = [(weakref.ref(view), memory, rows)]
        return torch.from_numpy(view), rows


class Draft:
    """A micro-batch in the making."""

    def __init__(self, source: ShardSource, rows: Rows):
        self._index, self._layout, self._rows = source.index, source.layout, rows
        self.labels = np.empty(0, np.int64)  # of all rows, once `unsound` was called
        self._taken: dict[int, int] = {}  # labels of rows that were not read in place; -1: unsound
        self.places: list[tuple[int, int]] = []  # shard and number of the sample in each row

    def read(self, first: int, source: LaidOutShard | ReadThrough, numbers: list[int]) -> None:
        """Samples of one shard into the rows from `first` on; whether they are sound, `unsound`
        tells."""
        if isinstance(source, ReadThrough):
            for row, number in enumerate(numbers, first):
                self._take(row, source.take(number))
            return
        for begin in range(0, len(numbers), CACHED_ROWS):
            some = numbers[begin : begin + CACHED_ROWS]
            rows = slice(first + begin, first + begin + len(some))
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
        self.labels, finite = self._layout.labels(self._rows.heads), self._rows.finite()
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


def _memory(array: Any) -> memoryview:
    return memoryview(array).cast("B")


def _divisor(number: int, limit: int) -> int:
    """The largest divisor of a number up to a limit."""
    return next(d for d in range(min(number, limit), 0, -1) if number % d == 0)
