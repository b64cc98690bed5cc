"""The stream of latents: one global order, the same for every number of ranks, resumable anywhere.

The order is arithmetic (order.py); the shards are opened by shard_readers.py. A rank opens only the
lanes that its positions fall on (1/world_size of them when world_size micro-batches of BLOCK fit
into one turn of the lanes). Of local and cached shards each payload is read straight into the
batch that goes to the device, from where the layout says it lies, so nothing is held and resuming
costs what starting costs. Other shards are read through: a rank then holds one window of each of
its lanes, and resumes by reading one shard a lane up to the place.

Noise for a sample is keyed to (seed, position). Within a run that is (seed, epoch, sample): the
order puts each sample at one position of each epoch, and that position lies in no other epoch.
"""

import sys
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby, repeat
from operator import itemgetter
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sid_scale.config.groups import StreamConfig
from sid_scale.data.draft import Draft, Memory
from sid_scale.data.handover import Handover
from sid_scale.data.order import Order, Run, Schedule, Window
from sid_scale.data.shard_readers import SequentialShard, ShardSource
from sid_scale.data.shards import BadSampleError
from sid_scale.data.tar_layout import RandomAccessShard

OPEN_SHARDS = 4  # a lane's window of more of them (tiny ones) is read through, not kept open
TOLD = 20  # bad samples that are told of one by one


@dataclass(frozen=True, eq=False)
class Batch:
    """One micro-batch: stored float32 (n, 2C, H, W), labels int64 (n,), and its positions in
    the global order. `skipped` of its samples are bad ones' neighbours."""

    stored: Tensor
    labels: Tensor
    positions: range
    skipped: int = 0

    @property
    def index(self) -> Tensor:
        """The positions, int64 (n,): unique over the run, the key for per-sample noise."""
        return torch.arange(self.positions.start, self.positions.stop)


@final
class LatentStream:
    """This rank's micro-batches, without end, read ahead on a background thread.

    Use it as a context manager, or `close` it: a program that ends without may have to wait for
    shards that come from afar. `stored` and `labels` lie in pinned memory if CUDA is there;
    PyTorch hands a pinned block out again only when copies from it are done.

    Args:
        folder: what `write_shards` made: a local folder, or what WebDataset opens when `/` and
            a file's name are put behind it ("https://host/folder", "pipe:ssh host cat folder").
        seed: at least 0; another seed is another order.
        start: images seen, a multiple of `global_batch`.
        settings: how to read; no setting changes the order.

    Raises:
        SidScaleError: the index or, from `__next__`, a shard is missing or damaged, or stays
            away; or a sample is bad and `settings.on_bad_sample` is stop.
        ValueError: the batch sizes or `start` do not divide as they must.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        seed: int,
        global_batch: int,
        rank: int,
        world_size: int,
        micro_batch: int,
        start: int = 0,
        settings: StreamConfig | None = None,
    ):
        settings = settings or StreamConfig()
        schedule = Schedule(global_batch, rank, world_size, micro_batch, start)

        def tell(line: str) -> None:
            tqdm.write(f"rank {rank}: {line}", file=sys.stderr)  # not into a progress bar's line

        self._source = ShardSource(folder, settings, rank, tell)
        self.index = self._source.index
        self._handover: Handover[Batch] = Handover(settings.prefetch)
        reader = _Reader(self._source, Order(self.index, seed), micro_batch, settings, tell)
        self._thread = threading.Thread(
            target=_read_ahead,
            args=(reader, schedule, self._handover),
            name="latent-stream",
            daemon=True,
        )
        self._thread.start()
        # Also when the stream is forgotten, or the program ends: a thread that is still in
        # C++ code then would abort it.
        self._end = weakref.finalize(self, _end, self._handover, self._source, self._thread)

    def __iter__(self) -> "LatentStream":
        return self

    def __next__(self) -> Batch:
        return self._handover.take()

    def close(self) -> None:
        """Stop reading and wait for the thread; a closed stream raises `ValueError`."""
        self._end()

    def __enter__(self) -> "LatentStream":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Reader:
    """Makes micro-batches of positions."""

    def __init__(
        self,
        source: ShardSource,
        order: Order,
        micro_batch: int,
        settings: StreamConfig,
        tell: Callable[[str], None],
    ):
        self._source, self._order, self._tell = source, order, tell
        self._skips = settings.on_bad_sample == "skip"
        self._told: set[tuple[int, int]] = set()
        self._lanes: defaultdict[int, _Lane] = defaultdict(partial(_Lane, source))
        self._memory = Memory(source, micro_batch)
        self._workers = settings.workers
        self._pool = ThreadPoolExecutor(settings.workers, "latent-reader", _quiet)

    def batch(self, positions: range) -> Batch:
        """The samples at these positions, checked."""
        stored, rows = self._memory.rows()
        draft = Draft(self._source, rows)
        work: defaultdict[int, list[tuple[Run, int]]] = defaultdict(list)
        for run in self._order.runs(positions):
            work[run.window.lane].append((run, len(draft.places)))
            draft.places += run.places
        # One thread to a lane: a lane is read in order.
        several = len(work) > 1 and self._source.is_fetched and self._workers > 1
        lanes = [self._lanes[number] for number in work]
        for _ in (self._pool.map if several else map)(_read, lanes, work.values(), repeat(draft)):
            pass
        skipped = sum(self._mend(draft, row) for row in draft.unsound())
        labels = self._memory.pinned(torch.from_numpy(draft.labels))
        return Batch(stored, labels, positions, skipped)

    def close(self) -> None:
        """Ends reading on all threads, and only then closes what they read."""
        self._source.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for lane in self._lanes.values():
            lane.close()

    def _mend(self, draft: Draft, row: int) -> int:
        """Reads a sample that is not as it should be by the book. -> 1 if it was skipped.

        Raises:
            BadSampleError: it is bad, and bad samples end the run.
        """
        shard, number = draft.places[row]
        try:
            draft.mend(row, *self._source.sample(shard, number))
            return 0
        except BadSampleError as error:
            if not self._skips:
                raise
            self._tell_of(error, (shard, number))
        draft.mend(row, *self._source.neighbour(shard, number))
        return 1

    def _tell_of(self, error: BadSampleError, place: tuple[int, int]) -> None:
        if place not in self._told and len(self._told) < TOLD:
            self._told.add(place)
            self._tell(f"skipped {error}")
            if len(self._told) == TOLD:
                self._tell("further bad samples are only counted")


class _Lane:
    """The shards that one lane's window lies in, open."""

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


def _read(lane: _Lane, runs: list[tuple[Run, int]], draft: Draft) -> None:
    """A lane's part of a micro-batch: runs, each with the row where it begins."""
    for (window, places), row in runs:
        opened = lane.shards(window)
        for shard, stretch in groupby(places, itemgetter(0)):
            numbers = [number for _, number in stretch]
            draft.read(opened[shard], numbers, row)
            row += len(numbers)


def _quiet() -> None:
    """NumPy need not warn, on this thread, of numbers that `Draft.unsound` finds out."""
    np.seterr(over="ignore", invalid="ignore")


def _read_ahead(reader: _Reader, schedule: Schedule, handover: Handover[Batch]) -> None:
    _quiet()
    handover.fill(map(reader.batch, schedule))
    reader.close()


def _end(handover: Handover[Batch], source: ShardSource, thread: threading.Thread) -> None:
    handover.end()
    source.close()
    if thread is not threading.current_thread():
        thread.join(timeout=5)  # a read that hangs must not keep the run from ending
