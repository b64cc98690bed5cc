"""The global order: how well it shuffles."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sid_scale.data.order import BLOCK, SHUFFLE, Order, window_samples
from sid_scale.data.shards import Shard, ShardIndex


def data_set(
    shards: int, samples: int, shape: tuple[int, ...] = (8, 64, 64), dtype: str = "float32"
) -> ShardIndex:
    return data_set_of([samples] * shards, shape, dtype)


def data_set_of(
    sizes: list[int], shape: tuple[int, ...] = (8, 64, 64), dtype: str = "float32"
) -> ShardIndex:
    """A data set that is nowhere, with shards of so many samples: the order needs none."""
    entries = tuple(Shard(f"{i}.tar", samples, 0, "") for i, samples in enumerate(sizes))
    return ShardIndex(shape, dtype, 1, (sum(sizes),), {}, entries)


def stored_places(index: ShardIndex, epoch: int = 0, seed: int = 0) -> np.ndarray:
    """Which of the data set's samples lies at each position of an epoch."""
    return places(index, seed, range(epoch * index.samples, (epoch + 1) * index.samples))


def places(index: ShardIndex, seed: int, positions: range) -> np.ndarray:
    """Which of the data set's samples lie at these positions."""
    starts = np.cumsum([0] + [shard.samples for shard in index.shards])
    runs = Order(index, seed).runs(positions)
    return np.array([starts[shard] + number for run in runs for shard, number in run.places])


# ImageNet in shards of 512 MB would be 320 times 4000; here a tenth of the samples in each.
IMAGENET = data_set(320, 400)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 90), min_size=1, max_size=150),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 1000),
    length=st.integers(1, 40),
)
def test_shards_of_any_sizes_are_read_once_an_epoch_wherever_reading_begins(
    sizes: list[int], seed: int, epoch: int, length: int
) -> None:
    index = data_set_of(sizes)
    whole = stored_places(index, epoch, seed)
    assert np.array_equal(np.sort(whole), np.arange(sum(sizes)))
    begin = len(whole) // 2
    first = epoch * len(whole) + begin
    part = places(index, seed, range(first, first + length))
    assert np.array_equal(part[: len(whole) - begin], whole[begin : begin + length])


def test_every_stretch_of_the_order_draws_from_the_whole_data_set() -> None:
    """SHUFFLE positions at any place hold samples of 64 shards or more, none in excess."""
    shards = stored_places(IMAGENET) // 400
    for begin in range(0, len(shards) - SHUFFLE, SHUFFLE // 2):
        found = Counter(shards[begin : begin + SHUFFLE].tolist())
        assert len(found) >= 64
        assert max(found.values()) <= 2 * SHUFFLE / 64


def test_samples_stored_side_by_side_come_apart() -> None:
    """A quarter of them meet in a block; the others lie whole turns of the lanes apart."""
    positions = np.argsort(stored_places(IMAGENET))
    inside = np.arange(len(positions) - 1) % 400 != 399
    apart = np.abs(np.diff(positions))[inside]
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
