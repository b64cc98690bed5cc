"""The stream of latents: one global order, the same for every number of ranks, resumable anywhere.

Position i = 0, 1, 2, ... of the global order is image number i of the run. Epoch e is the N
positions from e N on and holds every sample once. The order is a pure function of the seed and
the index; its parts are:

- Lanes. Blocks of BLOCK positions are dealt to a fixed number of lanes in turn, for ever. In
  each epoch the shards are laid end to end in a seeded order, and each lane takes a contiguous
  stretch, as long as the number of its positions in that epoch. Lanes need no equal shards.
- Windows. A lane shuffles its stretch window by window; all lanes' windows together hold SHUFFLE
  samples. That is the shuffle's quality, besides the order of shards and the interleaving of
  lanes: shards should be written in a shuffled order. The first windows of an epoch are cut
  shorter, each lane's by its own measure, so that the lanes refill in turn.

A rank opens only the lanes that its positions fall on (1/world_size of them when world_size
micro-batches of BLOCK fit into one turn of the lanes), holds at most one window of each, and
resumes by reading one shard a lane up to the place, since the index's counts tell where it is.
"""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from sid_scale.data.shards import Record, ShardIndex, decode, read_index, read_shard

# These define the order: another value is another order, and old runs would resume elsewhere.
BLOCK = 16
MAX_LANES = 64
SHUFFLE = 4096

PREFETCH = 4  # micro-batches that wait ready


@dataclass(frozen=True, eq=False)
class Batch:
    """One micro-batch: stored float32 (n, 2C, H, W), labels int64 (n,), and index int64 (n,),
    the positions in the global order: unique over the run, the key for per-sample noise."""

    stored: Tensor
    labels: Tensor
    index: Tensor


@dataclass(frozen=True)
class Schedule:
    """Which positions a rank takes: global batch k is [k, k + 1) * global_batch, cut into
    micro-batches that the ranks take in turn.

    Raises:
        ValueError: the numbers do not divide as they must.
    """

    global_batch: int
    rank: int
    world_size: int
    micro_batch: int
    start: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} is not in a world of {self.world_size}")
        turn = self.micro_batch * self.world_size
        if self.micro_batch < 1 or self.global_batch < 1 or self.global_batch % turn:
            raise ValueError(
                f"a global batch of {self.global_batch} is not a multiple of "
                f"{self.world_size} ranks x micro-batch {self.micro_batch}"
            )
        if self.start < 0 or self.start % self.global_batch:
            raise ValueError(
                f"start {self.start} is not a multiple of the global batch {self.global_batch}"
            )

    def __iter__(self) -> Iterator[range]:
        """The positions of this rank's micro-batches, without end."""
        first = self.start + self.rank * self.micro_batch
        for begin in count(first, self.micro_batch * self.world_size):
            yield range(begin, begin + self.micro_batch)


@final
class LatentStream:
    """This rank's micro-batches, without end, read ahead on a background thread.

    Use it as a context manager, or `close` it. Batches lie in pinned memory if CUDA is there.

    Args:
        folder: what `write_shards` made: a local folder, or what WebDataset opens when `/` and
            a file's name are put behind it ("pipe:curl -sf https://host/folder").
        seed: at least 0; another seed is another order.
        start: images seen, a multiple of `global_batch`.

    Raises:
        ShardError: the index or, from `__next__`, a shard is missing or damaged.
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
    ):
        schedule = Schedule(global_batch, rank, world_size, micro_batch, start)
        self.index = read_index(folder)
        self._failure: BaseException | None = None
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(PREFETCH)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=_prefetch,
            args=(_batches(folder, self.index, seed, schedule), self._ready, self._stop),
            name="latent-stream",
            daemon=True,
        )
        self._thread.start()

    def __iter__(self) -> "LatentStream":
        return self

    def __next__(self) -> Batch:
        if self._failure is None:
            ready = self._ready.get()
            if isinstance(ready, Batch):
                return ready
            self._failure = ready
        raise self._failure

    def close(self) -> None:
        """Stop reading and wait for the thread; a closed stream raises `ValueError`."""
        self._stop.set()
        self._thread.join(timeout=5)  # a read that hangs must not keep the run from ending
        self._failure = self._failure or ValueError("this LatentStream is closed")

    def __enter__(self) -> "LatentStream":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Lane:
    """One lane's samples by position; positions must be asked for in rising order."""

    def __init__(self, folder: str | Path, index: ShardIndex, seed: int, lane: int, lanes: int):
        self.folder, self.index, self.seed = folder, index, seed
        self.lane, self.lanes, self.total = lane, lanes, index.samples
        self.size = SHUFFLE // lanes
        self.window: tuple[int, int] | None = None  # epoch and number of the window held
        self.held: dict[int, Record] = {}  # by ordinal within this lane and epoch
        self.source: Iterator[Record] = iter(())
        self.at = (-1, 0)  # epoch and ordinal of the source's next record

    def record(self, position: int) -> Record:
        epoch = position // self.total
        offset = _dealt(epoch * self.total, self.lane, self.lanes)
        length = _dealt((epoch + 1) * self.total, self.lane, self.lanes) - offset
        ordinal = _dealt(position, self.lane, self.lanes) - offset
        phase = self.lane * self.size // self.lanes
        number = (ordinal + phase) // self.size
        if self.window != (epoch, number):
            first = max(0, number * self.size - phase)
            last = min(length, (number + 1) * self.size - phase)
            self._load(epoch, first, last)
            self.window = (epoch, number)
        return self.held.pop(ordinal)

    def _load(self, epoch: int, first: int, last: int) -> None:
        """Hold the shuffled window [first, last) of the epoch."""
        self.held.clear()
        if self.at[0] != epoch or self.at[1] > first:
            self.source, self.at = self._records(epoch, first), (epoch, first)
        # Windows are passed over only where ranks share a lane, a few at a time: read through.
        for _ in range(first - self.at[1]):
            next(self.source)
        order = _permutation(last - first, self.seed, 1 + self.lane, epoch, first)
        for slot in order:
            self.held[first + int(slot)] = next(self.source)
        self.at = (epoch, last)

    def _records(self, epoch: int, ordinal: int) -> Iterator[Record]:
        """The lane's stretch of the epoch from `ordinal` on, and what lies behind it."""
        skip = ordinal
        for lane in range(self.lane):
            skip += _dealt((epoch + 1) * self.total, lane, self.lanes)
            skip -= _dealt(epoch * self.total, lane, self.lanes)
        for number in _permutation(len(self.index.shards), self.seed, 0, epoch):
            shard = self.index.shards[number]
            if skip < shard.samples:
                yield from read_shard(self.folder, shard, skip)
            skip = max(0, skip - shard.samples)


def lane_count(index: ShardIndex) -> int:
    """Lanes of a data set: a power of two, as numbers of ranks tend to be, at most one a shard."""
    return 1 << (min(len(index.shards), MAX_LANES).bit_length() - 1)


def _batches(
    folder: str | Path, index: ShardIndex, seed: int, schedule: Schedule
) -> Iterator[Batch]:
    lanes = lane_count(index)
    opened: dict[int, _Lane] = {}
    for positions in schedule:
        arrays, labels = [], []
        for position in positions:
            number = position // BLOCK % lanes
            if number not in opened:
                opened[number] = _Lane(folder, index, seed, number, lanes)
            array, label = decode(opened[number].record(position), index)
            arrays.append(array)
            labels.append(label)
        stored = torch.from_numpy(np.stack(arrays).astype(np.float32, copy=False))
        tensors = [stored, torch.tensor(labels), torch.arange(positions.start, positions.stop)]
        if torch.cuda.is_available():
            tensors = [tensor.pin_memory() for tensor in tensors]
        yield Batch(*tensors)


def _prefetch(batches: Iterator[Batch], ready: "queue.Queue[Any]", stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            item: Batch | BaseException = next(batches)
        except BaseException as error:  # raised again in `__next__`
            item = error
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                break
            except queue.Full:
                continue
        if isinstance(item, BaseException):
            return


def _dealt(positions: int, lane: int, lanes: int) -> int:
    """How many of the first `positions` positions fall on a lane."""
    turns, rest = divmod(positions, lanes * BLOCK)
    return turns * BLOCK + min(max(rest - lane * BLOCK, 0), BLOCK)


def _permutation(size: int, *key: int) -> np.ndarray:
    # From raw bits: NumPy promises those for ever, but not what Generator.permutation does.
    bits = np.random.Philox(np.random.SeedSequence(key)).random_raw(size)
    return np.argsort(bits, kind="stable")
