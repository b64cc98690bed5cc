"""Micro-batches out of shards: samples go from where they are stored into one tensor, and are
checked there.

Local and cached shards are read in place: one system call a sample puts its head and its payload
where they are wanted. Others are read through: a rank then holds one window of each of its lanes.
What is not in order is read again record by record, which says what is wrong.
"""

from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby, repeat
from operator import itemgetter
from typing import Any

import numpy as np
import torch

from sid_scale.data.order import Order, Run, Window
from sid_scale.data.shard_readers import SequentialShard, ShardSource
from sid_scale.data.shards import DTYPES, BadSampleError, decode
from sid_scale.data.tar_layout import RandomAccessShard

OPEN_SHARDS = 4  # a lane's window of more of them (tiny ones) is read through, not kept open
LOGGED = 20  # bad samples that are logged one by one


class BatchBuffer:
    """A micro-batch that is being read, row by row.

    Args:
        source: what the samples are read from.
        size: number of rows, n.
    """

    def __init__(self, source: ShardSource, size: int):
        index, layout = source.index, source.layout
        pins = torch.cuda.is_available()
        dtype = DTYPES[index.dtype]
        held = torch.uint8 if dtype == np.uint8 else torch.float32
        self.stored = torch.empty(size, *index.sample_shape, dtype=held, pin_memory=pins)
        self.places: list[tuple[int, int]] = []  # shard and number of the sample in each row
        self.labels = np.empty(0, np.int64)  # (n,), once `unsound` was called
        self._index, self._layout, self._heads = index, layout, layout.heads(size)
        self._values = self.stored.numpy().reshape(size, -1)
        # What is stored in half precision is read beside the place where it is wanted.
        self._read_to: Any = self._values
        if dtype != self._values.dtype:
            self._read_to = np.empty(self._values.shape, dtype)
        self._in_place = np.zeros(size, bool)  # rows that were read with their heads
        self._decoded: dict[int, int] = {}  # row that was decoded -> label; -1: unsound

    def read(
        self, shard: RandomAccessShard | SequentialShard, numbers: list[int], row: int
    ) -> None:
        """Samples of one shard into the rows from `row` on, not yet checked."""
        if isinstance(shard, SequentialShard):
            for at, number in enumerate(numbers, row):
                try:
                    self.fill(at, *decode(shard.take(number), self._index))
                except BadSampleError:
                    self._decoded[at] = -1  # named when it is read again
            return
        rows = range(row, row + len(numbers))
        shard.read_into(numbers, [[self._heads.bytes[i], self._read_to[i]] for i in rows])
        self._in_place[rows.start : rows.stop] = True

    def fill(self, row: int, array: np.ndarray, label: int) -> None:
        """A decoded sample into a row."""
        self._values[row] = array.reshape(-1)
        self._decoded[row] = label

    def unsound(self) -> list[int]:
        """Rows whose samples are not what the index promises, once all have been read; among
        them may be some whose values are only huge."""
        if self._read_to is not self._values:
            np.copyto(self._values, self._read_to, where=self._in_place[:, None])
        self.labels = np.where(self._in_place, self._layout.labels(self._heads), -1)
        finite = np.isfinite(self._values.sum(axis=1))  # NaN and infinity survive a sum
        for row, label in self._decoded.items():
            self.labels[row], finite[row] = label, True
        return np.flatnonzero((self.labels < 0) | ~finite).tolist()

    def mend(self, row: int, array: np.ndarray, label: int) -> None:
        """A decoded sample into an unsound row."""
        self.fill(row, array, label)
        self.labels[row] = label


class BatchReader:
    """Reads micro-batches; `close` it.

    Args:
        log: takes one line.
    """

    def __init__(
        self,
        source: ShardSource,
        order: Order,
        *,
        skips: bool,
        workers: int,
        log: Callable[[str], None],
    ):
        self._source, self._order, self._skips, self._log = source, order, skips, log
        self._logged: set[tuple[int, int]] = set()
        self._lanes: defaultdict[int, _Lane] = defaultdict(partial(_Lane, source))
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, "sample-reader", _quiet)

    def read(self, positions: range) -> tuple[BatchBuffer, int]:
        """The samples at these positions, checked, and how many are neighbours of bad ones.

        Raises:
            BadSampleError: a sample is bad, and bad samples end the run.
            ShardError, FetchError: a shard cannot be read.
        """
        buffer = BatchBuffer(self._source, len(positions))
        work: defaultdict[int, list[tuple[Run, int]]] = defaultdict(list)
        for run in self._order.runs(positions):
            work[run.window.lane].append((run, len(buffer.places)))
            buffer.places += run.places
        # One thread to a lane: a lane is read in order.
        several = len(work) > 1 and self._source.is_fetched and self._workers > 1
        lanes = [self._lanes[number] for number in work]
        for _ in (self._pool.map if several else map)(_read, lanes, work.values(), repeat(buffer)):
            pass
        with np.errstate(over="ignore", invalid="ignore"):
            unsound = buffer.unsound()
        return buffer, sum(self._mend(buffer, row) for row in unsound)

    def close(self) -> None:
        """Ends reading on all threads, and only then closes what they read."""
        self._source.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for lane in self._lanes.values():
            lane.close()

    def _mend(self, buffer: BatchBuffer, row: int) -> int:
        """Reads an unsound sample record by record. -> 1 if it was skipped.

        Raises:
            BadSampleError: it is bad, and bad samples end the run.
        """
        shard, number = buffer.places[row]
        try:
            buffer.mend(row, *self._source.sample(shard, number))
            return 0
        except BadSampleError as error:
            if not self._skips:
                raise
            self._log_once(error, (shard, number))
        buffer.mend(row, *self._source.neighbour(shard, number))
        return 1

    def _log_once(self, error: BadSampleError, place: tuple[int, int]) -> None:
        if place not in self._logged and len(self._logged) < LOGGED:
            self._logged.add(place)
            self._log(f"skipped {error}")
            if len(self._logged) == LOGGED:
                self._log("further bad samples are only counted")


class _Lane:
    """The open shards of one lane's window."""

    def __init__(self, source: ShardSource):
        self._source = source
        self._window: Window | None = None
        self._shards: dict[int, RandomAccessShard | SequentialShard] = {}

    def shards(self, window: Window) -> dict[int, RandomAccessShard | SequentialShard]:
        """What to read a window's samples from, by shard."""
        if window is not self._window:
            wanted = {span.shard for span in window.spans}
            for shard in [*self._shards]:
                if shard not in wanted:
                    self._shards.pop(shard).close()
            in_place = len(wanted) <= OPEN_SHARDS
            for shard, first, last in window.spans:
                if shard not in self._shards:
                    self._shards[shard] = self._source.open(shard, in_place=in_place)
                self._shards[shard].expect(first, last)
            if window.next_shard is not None:
                self._source.ahead(window.next_shard)
            self._window = window
        return self._shards

    def close(self) -> None:
        for shard in self._shards.values():
            shard.close()


def _read(lane: _Lane, runs: list[tuple[Run, int]], buffer: BatchBuffer) -> None:
    """A lane's part of a micro-batch: runs, each with the row where it begins."""
    for (window, places), row in runs:
        opened = lane.shards(window)
        for shard, neighbours in groupby(places, itemgetter(0)):
            numbers = [number for _, number in neighbours]
            buffer.read(opened[shard], numbers, row)
            row += len(numbers)


def _quiet() -> None:
    """Lets NumPy not warn, on this thread, of numbers that `BatchBuffer.unsound` finds."""
    np.seterr(over="ignore", invalid="ignore")
