"""The global order: how well it shuffles."""

from collections import Counter

import numpy as np
import pytest

from sid_scale.data.order import BLOCK, SHUFFLE, Order, window_samples
from sid_scale.data.shards import Shard, ShardIndex


def data_set(
    shards: int, samples: int, shape: tuple[int, ...] = (8, 64, 64), dtype: str = "float32"
) -> ShardIndex:
    """A data set that is nowhere: the order needs none."""
    entries = tuple(Shard(f"{i}.tar", samples, 0, "") for i in range(shards))
    return ShardIndex(shape, dtype, 1, (shards * samples,), {}, entries)


def stored_places(index: ShardIndex, epoch: int = 0, seed: int = 0) -> np.ndarray:
    """Which of the data set's samples lies at each position of an epoch."""
    starts = np.cumsum([0] + [shard.samples for shard in index.shards])
    positions = range(epoch * index.samples, (epoch + 1) * index.samples)
    runs = Order(index, seed).runs(positions)
    parts = [starts[w.shards[slots]] + w.numbers[slots] for w, _, slots in runs]
    return np.concatenate(parts)


# ImageNet in shards of 512 MB would be 320 times 4000; here a tenth of the samples in each.
IMAGENET = data_set(320, 400)


def test_every_stretch_of_the_order_draws_from_the_whole_data_set() -> None:
    """SHUFFLE positions at any place hold samples of 64 shards or more, none in excess."""
    shards = stored_places(IMAGENET) // 400
    for begin in range(0, len(shards) - SHUFFLE, SHUFFLE // 2):
        found = Counter(shards[begin : begin + SHUFFLE].tolist())
        assert len(found) >= 64
        assert max(found.values()) <= 2 * SHUFFLE / 64


def test_samples_stored_side_by_side_come_apart() -> None:
    """A quarter of them meet in a block; the others lie whole turns of the lanes apart."""
    places = np.argsort(stored_places(IMAGENET))
    inside = np.arange(len(places) - 1) % 400 != 399
    apart = np.abs(np.diff(places))[inside]
    assert (apart < BLOCK).mean() < 0.25
    assert 1000 < np.median(apart) < 2000


def test_epochs_and_seeds_are_unrelated() -> None:
    first = stored_places(IMAGENET)
    for other in (stored_places(IMAGENET, epoch=1), stored_places(IMAGENET, seed=1)):
        assert abs(np.corrcoef(np.argsort(first), np.argsort(other))[0, 1]) < 0.3
        assert (first == other).mean() < 0.001


@pytest.mark.parametrize(
    ("shape", "dtype", "samples"),
    [
        ((8, 64, 64), "float32", 4096),
        ((8, 64, 64), "float16", 4096),
        ((6, 512, 512), "float32", 85),  # pixels: no more than 512 MB
        ((6, 4096, 4096), "float32", 64),  # but one a lane
    ],
)
def test_windows_are_bounded_in_samples_and_bytes(
    shape: tuple[int, ...], dtype: str, samples: int
) -> None:
    assert window_samples(data_set(320, 100, shape, dtype)) == samples
