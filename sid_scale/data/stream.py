"""The stream of real samples: one global order, the same for every number of ranks, resumable
anywhere.

The order is arithmetic (order.py); shards are opened by shard_readers.py and read by
batch_reader.py on a thread of its own, a few micro-batches ahead. A rank opens only the lanes that
its positions fall on (1/world_size of them when world_size micro-batches of BLOCK fit into one turn
of the lanes). Resuming costs what starting costs; of shards that cannot be read in place a rank
reads one a lane up to the place.

Noise for a sample is keyed to (seed, position). Within a run that is (seed, epoch, sample): the
order puts each sample at one position of each epoch, and that position is in no other epoch.
"""

import sys
import threading
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Full, Queue
from typing import final

import torch
from torch import Tensor
from tqdm import tqdm

from sid_scale.config.groups import StreamConfig
from sid_scale.data.batch_reader import BatchReader
from sid_scale.data.labels import pinned
from sid_scale.data.order import Order, Schedule
from sid_scale.data.shard_readers import ShardSource

POLL_SECONDS = 0.1  # between two looks at whether the stream was closed, while the queue is full


@dataclass(frozen=True, eq=False)
class Batch:
    """One micro-batch: what shards store, (n, ...) uint8 if they hold pixels, else float32; labels
    int64 (n,) or None without classes; and its positions in the global order. `skipped` of its
    samples are neighbours of bad ones."""

    stored: Tensor
    labels: Tensor | None
    positions: range
    skipped: int = 0

    @property
    def index(self) -> Tensor:
        """The positions, int64 (n,): unique over the run, the key for per-sample noise."""
        return torch.arange(self.positions.start, self.positions.stop)


@final
class SampleStream:
    """This rank's micro-batches, without end, read ahead on a background thread.

    Use it as a context manager, or `close` it: a program that ends without may have to wait for
    shards that come from afar. `stored` and `labels` are in pinned memory if CUDA is there.

    Args:
        folder: what `write_shards` made: a local folder, or what WebDataset opens when `/` and
            a file's name are put behind it ("https://host/folder", "pipe:ssh host cat folder").
        seed: at least 0; another seed is another order.
        start: samples taken before, a multiple of `global_batch`.
        settings: how to read; no setting changes the order.

    Raises:
        SidScaleError: the index or, from `__next__`, a shard is missing or damaged, or stays
            away; or a sample is bad and `settings.on_bad_sample` is stop.
        ValueError: the batch sizes or `start` do not divide as they must; from `__next__`, the
            stream is closed.
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

        def log(line: str) -> None:
            tqdm.write(f"rank {rank}: {line}", file=sys.stderr)  # not into a progress bar's line

        source = ShardSource(folder, settings, rank, log)
        self.index = source.index
        reader = BatchReader(
            source,
            Order(self.index, seed),
            skips=settings.on_bad_sample == "skip",
            workers=settings.workers,
            log=log,
        )
        self._queue: Queue[Batch | BaseException] = Queue(settings.prefetch)
        self._failure: BaseException | None = None
        closed = threading.Event()
        thread = threading.Thread(
            target=_read_ahead,
            args=(reader, schedule, self.index.num_classes > 0, self._queue, closed),
            name="sample-stream",
            daemon=True,
        )
        thread.start()
        # Also when the stream is garbage, or the program ends: a thread that is still in C++ code
        # then would abort it.
        self._end = weakref.finalize(self, _end, self._queue, closed, source, thread)

    def __iter__(self) -> "SampleStream":
        return self

    def __next__(self) -> Batch:
        if self._failure is None:
            item = self._queue.get()
            if isinstance(item, Batch):
                return item
            self._failure = item
        raise self._failure

    def close(self) -> None:
        """Stops reading and waits for the thread."""
        self._failure = self._failure or ValueError("the stream is closed")
        self._end()

    def __enter__(self) -> "SampleStream":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _read_ahead(
    reader: BatchReader,
    schedule: Schedule,
    has_classes: bool,
    queue: "Queue[Batch | BaseException]",
    closed: threading.Event,
) -> None:
    """Fills the queue with micro-batches until the stream is closed; an error is the last item."""
    try:
        for positions in schedule:
            buffer, skipped = reader.read(positions)
            labels = pinned(torch.from_numpy(buffer.labels)) if has_classes else None
            if not _put(queue, Batch(buffer.stored, labels, positions, skipped), closed):
                return
    except BaseException as error:  # raised by `__next__`
        _put(queue, error, closed)
    finally:
        reader.close()


def _put(
    queue: "Queue[Batch | BaseException]", item: Batch | BaseException, closed: threading.Event
) -> bool:
    """Waits for room in the queue; False: the stream was closed meanwhile."""
    while not closed.is_set():
        try:
            queue.put(item, timeout=POLL_SECONDS)
            return True
        except Full:
            continue
    return False


def _end(
    queue: "Queue[Batch | BaseException]",
    closed: threading.Event,
    source: ShardSource,
    thread: threading.Thread,
) -> None:
    closed.set()
    source.close()
    with suppress(Empty):
        while True:  # makes room for the thread that waits in `_put`
            queue.get_nowait()
    with suppress(Full):  # then `__next__` has something to take already
        queue.put_nowait(ValueError("the stream is closed"))  # for one that waits in `__next__`
    if thread is not threading.current_thread():
        thread.join(timeout=5)  # a read that hangs must not keep the run from ending
