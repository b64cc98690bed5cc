"""The global order: which sample is at which position of a run. Arithmetic alone, no file.

Position i = 0, 1, 2, ... of the global order is image number i of the run. Epoch e is the N
positions from e N on and holds every sample once. The order is a pure function of the seed and
the index; its parts are:

- Lanes. Blocks of BLOCK positions are dealt to a fixed number of lanes in turn, for ever. In
  each epoch the shards are laid end to end in a seeded order, and each lane takes a contiguous
  stretch, as long as the number of its positions in that epoch. Lanes need no equal shards.
- Windows. A lane shuffles its stretch window by window; all lanes' windows together hold SHUFFLE
  samples, or WINDOW_BYTES of them if that is less. The first windows of an epoch are cut
  shorter, each lane's by its own measure, so that the lanes refill in turn.

How well this shuffles: SHUFFLE consecutive positions draw from every lane, that is from `lanes`
places spread evenly over a fresh order of the shards (ImageNet: 64 shards or more, none with twice
its share). Within a lane, samples stored side by side mostly share a window: with 64 lanes a
quarter of them meet in one block of BLOCK, the others come whole turns of the lanes (1024
positions) apart. So shards should be written in a shuffled order; then neighbours are nothing to
each other, and any stretch of positions is a fair sample of all classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import NamedTuple

import numpy as np

from sid_scale.data.shards import DTYPES, ShardIndex

# These define the order: another value is another order, and old runs would resume elsewhere.
BLOCK = 16
MAX_LANES = 64
SHUFFLE = 4096
WINDOW_BYTES = 512 << 20


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


class Span(NamedTuple):
    """Neighbouring samples of one shard: numbers [first, last) of shard number `shard`."""

    shard: int
    first: int
    last: int


@dataclass(frozen=True, eq=False)
class Window:
    """A window of a lane: the positions it fills and the samples there."""

    lane: int
    first: int  # position within the lane, all epochs together
    spans: tuple[Span, ...]  # where its samples are stored
    places: list[tuple[int, int]]  # shard of the sample in each slot, and its number there
    next_shard: int | None  # what the lane reads after the last of `spans`, in this epoch

    def __len__(self) -> int:
        return len(self.places)


class Run(NamedTuple):
    """Neighbouring positions in one window, and the places of their samples."""

    window: Window
    places: list[tuple[int, int]]


class Order:
    """The order of one data set and seed."""

    def __init__(self, index: ShardIndex, seed: int):
        self.seed = seed
        self.total = index.samples
        self.lanes = lane_count(index)
        self.size = window_samples(index) // self.lanes
        self._counts = np.array([shard.samples for shard in index.shards])
        # Of an epoch's end and the next one's beginning, lanes ask in turn.
        self._layout = lru_cache(maxsize=2)(self._laid_end_to_end)
        self._current: dict[int, Window] = {}  # by lane: most positions follow the one before

    def runs(self, positions: range) -> Iterator[Run]:
        """The samples at these positions, in order."""
        at = positions.start
        while at < positions.stop:
            window, slot = self._find(at)
            block_end = (at // BLOCK + 1) * BLOCK
            places = window.places[slot : slot + min(positions.stop, block_end) - at]
            yield Run(window, places)
            at += len(places)

    def _find(self, position: int) -> tuple[Window, int]:
        """The window of a position, and its slot there."""
        lane = position // BLOCK % self.lanes
        at = position // (self.lanes * BLOCK) * BLOCK + position % BLOCK  # within the lane
        window = self._current.get(lane)
        if window is None or not 0 <= at - window.first < len(window):
            window = self._current[lane] = self._window(lane, position // self.total, at)
        return window, at - window.first

    def _window(self, lane: int, epoch: int, at: int) -> Window:
        """The window around a lane's sample number `at`, which is in an epoch."""
        before = self._dealt(epoch * self.total, lane)
        ordinal = at - before  # within the epoch
        begin, end = self._stretch(epoch, lane)
        length = end - begin
        phase = lane * self.size // self.lanes
        cut = (ordinal + phase) // self.size * self.size - phase
        first, last = max(0, cut), min(length, cut + self.size)
        shards, ends = self._layout(epoch)
        source = np.empty(last - first, np.int64)  # stored place of the sample in each slot
        source[permutation(last - first, self.seed, 1 + lane, epoch, first)] = np.arange(
            begin + first, begin + last
        )
        place = np.searchsorted(ends, source, side="right")
        numbers = source - (ends - self._counts[shards])[place]
        low, high = np.searchsorted(ends, [begin + first, begin + last - 1], side="right")
        spans = []
        for i in range(low, high + 1):
            start = int(ends[i] - self._counts[shards[i]])
            inside = max(begin + first, start) - start, min(begin + last, int(ends[i])) - start
            spans.append(Span(int(shards[i]), *inside))
        ahead = int(shards[high + 1]) if ends[high] < end else None
        places = list(zip(shards[place].tolist(), numbers.tolist(), strict=True))
        return Window(lane, before + first, tuple(spans), places, ahead)

    def _stretch(self, epoch: int, lane: int) -> tuple[int, int]:
        """Where a lane's stretch of an epoch's samples begins and ends: the lanes take as many
        as positions are dealt to them, one lane after the other."""
        first, last = epoch * self.total, (epoch + 1) * self.total
        begin, end = (
            self._dealt_below(last, at) - self._dealt_below(first, at) for at in (lane, lane + 1)
        )
        return begin, end

    def _dealt(self, positions: int, lane: int) -> int:
        """How many of the first `positions` positions fall on a lane."""
        return self._dealt_below(positions, lane + 1) - self._dealt_below(positions, lane)

    def _dealt_below(self, positions: int, lane: int) -> int:
        """How many of the first `positions` positions fall on the lanes before a lane."""
        turns, rest = divmod(positions, self.lanes * BLOCK)
        return turns * BLOCK * lane + min(rest, lane * BLOCK)

    def _laid_end_to_end(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's order of shards, and where each of them ends in it."""
        shards = permutation(len(self._counts), self.seed, 0, epoch)
        return shards, self._counts[shards].cumsum()


def lane_count(index: ShardIndex) -> int:
    """Lanes of a data set: a power of two, as numbers of ranks tend to be, at most one a shard."""
    return 1 << (min(len(index.shards), MAX_LANES).bit_length() - 1)


def window_samples(index: ShardIndex) -> int:
    """Samples of all lanes' windows together, at least one a lane."""
    sample_bytes = int(np.prod(index.sample_shape)) * DTYPES[index.dtype].itemsize
    return max(lane_count(index), min(SHUFFLE, WINDOW_BYTES // sample_bytes))


def permutation(size: int, *key: int) -> np.ndarray:
    """A permutation of range(size), int64 (size,): a pure function of size and key (>= 0 each)."""
    # From raw bits: NumPy promises those for ever, but not what Generator.permutation does.
    bits = np.random.Philox(np.random.SeedSequence(key)).random_raw(size)
    return np.argsort(bits, kind="stable")
