"""The latent stream: one global order, every epoch complete, the same for every number of ranks."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sid_scale.data import stream as module
from sid_scale.data.shards import Record, Shard, ShardError, read_index, read_shard
from sid_scale.data.stream import LatentStream, lane_count
from sid_scale.data.writing import write_shards

SHAPE = (2, 1, 2)


def write(folder: Path, count: int, shard_samples: int, dtype: str = "float32") -> Path:
    """Samples that carry their number, so that they can be told apart."""
    samples = ((f"{i:06d}", np.full(SHAPE, i), i % 7) for i in range(count))
    write_shards(folder, samples, codec={}, num_classes=7, shard_samples=shard_samples, dtype=dtype)
    return folder


def order(
    folder: Path,
    batches: int,
    *,
    world_size: int = 1,
    micro_batch: int = 4,
    start: int = 0,
    seed: int = 0,
    global_batch: int = 32,
) -> list[int]:
    """The samples of `batches` global batches in the global order, gathered from all ranks."""
    found: dict[int, int] = {}
    for rank in range(world_size):
        with LatentStream(
            folder,
            seed=seed,
            global_batch=global_batch,
            rank=rank,
            world_size=world_size,
            micro_batch=micro_batch,
            start=start,
        ) as stream:
            for batch in islice(stream, batches * global_batch // micro_batch // world_size):
                numbers = batch.stored[:, 0, 0, 0].long()
                assert batch.labels.equal(numbers % 7)
                found.update(zip(batch.index.tolist(), numbers.tolist(), strict=True))
    assert sorted(found) == list(range(start, start + batches * global_batch))
    return [found[position] for position in sorted(found)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine shards, the last one short: 300 samples, eight lanes."""
    return write(tmp_path_factory.mktemp("shards"), 300, 36)


@contextmanager
def windows(samples: int) -> Iterator[None]:
    """Windows of this size in all: 4096 holds whole lanes here, 64 far less, as ImageNet's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SHUFFLE", samples)
        yield


@pytest.fixture
def small_windows() -> Iterator[None]:
    with windows(64):
        yield


# The order


def test_a_batch_is_plain_tensors(folder: Path) -> None:
    with LatentStream(
        folder, seed=0, global_batch=8, rank=1, world_size=2, micro_batch=4
    ) as stream:
        batch = next(stream)
    assert batch.stored.shape == (4, *SHAPE)
    assert batch.stored.dtype == torch.float32
    assert batch.labels.shape == (4,)
    assert batch.labels.dtype == torch.int64
    assert batch.index.tolist() == [4, 5, 6, 7]
    assert batch.index.dtype == torch.int64


def test_float16_shards_arrive_as_float32(tmp_path: Path) -> None:
    assert sorted(order(write(tmp_path, 32, 8, "float16"), 1)) == list(range(32))


def test_every_epoch_holds_every_sample_once_in_another_order(folder: Path) -> None:
    samples = order(folder, 75, global_batch=16)  # four epochs of 300
    epochs = [samples[begin : begin + 300] for begin in range(0, 1200, 300)]
    assert all(sorted(epoch) == list(range(300)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_order_is_the_same_for_every_number_of_ranks(folder: Path, world_size: int) -> None:
    assert order(folder, 20, world_size=world_size) == order(folder, 20)


@pytest.mark.parametrize("micro_batch", [1, 2, 16, 32])
def test_the_order_is_the_same_for_every_micro_batch(folder: Path, micro_batch: int) -> None:
    assert order(folder, 12, micro_batch=micro_batch) == order(folder, 12)


def test_the_order_is_the_same_for_every_global_batch(folder: Path) -> None:
    assert order(folder, 24, global_batch=16) == order(folder, 12)


def test_seeds_give_different_orders_and_repetition_the_same(folder: Path) -> None:
    assert order(folder, 4, seed=1) != order(folder, 4) == order(folder, 4)


@pytest.mark.parametrize("batch", [1, 9, 10, 21])
def test_resuming_equals_going_on(folder: Path, small_windows: None, batch: int) -> None:
    resumed = order(folder, 4, start=32 * batch, world_size=2)
    assert resumed == order(folder, batch + 4)[32 * batch :]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    shuffle=st.sampled_from([64, 4096]),
    count=st.integers(1, 200),
    shard_samples=st.integers(3, 60),
    seed=st.integers(0, 2**40),
    world_size=st.sampled_from([2, 4, 8]),
    batch=st.integers(1, 10),
)
def test_any_data_set_is_complete_elastic_and_resumable(
    tmp_path_factory: pytest.TempPathFactory,
    shuffle: int,
    count: int,
    shard_samples: int,
    seed: int,
    world_size: int,
    batch: int,
) -> None:
    folder = write(tmp_path_factory.mktemp("any"), count, shard_samples)
    with windows(shuffle):
        whole = order(folder, batch + 4, seed=seed)
        resumed = order(folder, 4, seed=seed, start=32 * batch, world_size=world_size)
    for begin in range(0, len(whole) - count + 1, count):
        assert sorted(whole[begin : begin + count]) == list(range(count))
    assert resumed == whole[32 * batch :]


def test_the_order_is_pinned(folder: Path) -> None:
    """Runs resume from images seen alone, so a change of the order breaks them: make none
    without meaning to."""
    assert order(folder, 1)[:8] == [24, 19, 15, 7, 12, 23, 20, 8]


# What it costs


def test_a_rank_opens_only_its_own_lanes(
    folder: Path, small_windows: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    class Lane(module._Lane):
        def __init__(self, *args: Any):
            opened.append(args[3])
            super().__init__(*args)

    monkeypatch.setattr(module, "_Lane", Lane)
    assert lane_count(read_index(folder)) == 8
    with LatentStream(
        folder, seed=0, global_batch=64, rank=1, world_size=4, micro_batch=16
    ) as stream:
        list(islice(stream, 60))
    assert opened == [1, 5]


def test_resuming_reads_no_more_than_a_shard_a_lane(
    folder: Path, small_windows: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PREFETCH", 1)  # what is read ahead stays within one block
    opened = []

    def read(folder: Path, shard: Shard, first: int) -> Iterator[Record]:
        opened.append(shard.name)
        return read_shard(folder, shard, first)

    monkeypatch.setattr(module, "read_shard", read)
    with LatentStream(
        folder, seed=0, global_batch=4, rank=0, world_size=1, micro_batch=4, start=300 * 1000 + 128
    ) as stream:
        next(stream)
    # One lane, hence one window, and that may span two shards.
    assert 1 <= len(opened) <= 2


# What goes wrong


@pytest.mark.faults
@pytest.mark.parametrize(
    "change", [{"start": 4}, {"rank": 2}, {"micro_batch": 3}, {"global_batch": 12}, {"start": -8}]
)
def test_numbers_that_do_not_divide_are_refused(folder: Path, change: dict[str, int]) -> None:
    numbers = {"global_batch": 8, "rank": 0, "world_size": 2, "micro_batch": 4} | change
    with pytest.raises(ValueError, match="is not"):
        LatentStream(folder, seed=0, **numbers)


@pytest.mark.faults
def test_a_missing_shard_is_refused_at_once(tmp_path: Path) -> None:
    (write(tmp_path, 40, 10) / "shard-000002.tar").unlink()
    with pytest.raises(ShardError, match=r"shard-000002\.tar: missing"):
        order(tmp_path, 1)


@pytest.mark.faults
@pytest.mark.timeout(20)
@pytest.mark.parametrize("damage", ["truncated", "cut at a member", "swapped", "deleted"])
def test_a_shard_damaged_under_way_ends_the_stream_with_its_name(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 400, 100)
    index = read_index(tmp_path)
    monkeypatch.setattr(module, "read_index", lambda folder: index)
    shard, content = tmp_path / "shard-000003.tar", (tmp_path / "shard-000003.tar").read_bytes()
    if damage == "deleted":
        shard.unlink()
    elif damage == "swapped":
        write(tmp_path / "other", 90, 100)
        shard.write_bytes((tmp_path / "other" / "shard-000000.tar").read_bytes())
    else:
        shard.write_bytes(content[: 50 * 2048 + (100 if damage == "truncated" else 0)])
    with LatentStream(
        tmp_path, seed=0, global_batch=4, rank=0, world_size=1, micro_batch=4
    ) as stream:
        with pytest.raises(ShardError, match=r"shard-000003\.tar"):
            list(islice(stream, 100))
        with pytest.raises(ShardError, match=r"shard-000003\.tar"):  # and goes on saying so
            next(stream)


@pytest.mark.faults
def test_closing_ends_the_thread_in_whatever_state_it_is(folder: Path) -> None:
    before = threading.active_count()
    for taken in (0, 1, 5):
        stream = LatentStream(folder, seed=0, global_batch=4, rank=0, world_size=1, micro_batch=4)
        list(islice(stream, taken))
        stream.close()
        stream.close()
        with pytest.raises(ValueError, match="closed"):
            next(stream)
    assert threading.active_count() == before
