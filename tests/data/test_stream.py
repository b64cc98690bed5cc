"""The stream: one global order, every epoch complete, the same for every number of ranks."""

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

from sid_scale.config.groups import StreamConfig
from sid_scale.data import order as order_module
from sid_scale.data import shard_readers
from sid_scale.data.labels import LabelStream, label_histogram
from sid_scale.data.order import Order, Schedule, lane_count
from sid_scale.data.prepare.shard_writer import write_shards
from sid_scale.data.shard_readers import ShardSource
from sid_scale.data.shards import Shard, ShardError, read_index, read_shard
from sid_scale.data.stream import SampleStream
from tests.data.shards import SHAPE, numbers_of, write


def order(
    folder: Path | str,
    batches: int,
    *,
    world_size: int = 1,
    micro_batch: int = 4,
    start: int = 0,
    seed: int = 0,
    global_batch: int = 32,
    **reading: Any,
) -> list[int]:
    """The samples of `batches` global batches in the global order, gathered from all ranks."""
    found: dict[int, int] = {}
    for rank in range(world_size):
        with SampleStream(
            folder,
            seed=seed,
            global_batch=global_batch,
            rank=rank,
            world_size=world_size,
            micro_batch=micro_batch,
            start=start,
            settings=StreamConfig(**reading),
        ) as stream:
            for batch in islice(stream, batches * global_batch // micro_batch // world_size):
                numbers = numbers_of(batch.stored).long()
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
        patch.setattr(order_module, "SHUFFLE", samples)
        yield


@pytest.fixture
def small_windows() -> Iterator[None]:
    with windows(64):
        yield


# The order


def test_a_batch_is_plain_tensors(folder: Path) -> None:
    with SampleStream(
        folder, seed=0, global_batch=8, rank=1, world_size=2, micro_batch=4
    ) as stream:
        batch = next(stream)
    assert batch.stored.shape == (4, *SHAPE)
    assert batch.stored.dtype == torch.float32
    assert batch.labels.shape == (4,)
    assert batch.labels.dtype == torch.int64
    assert batch.index.tolist() == [4, 5, 6, 7]
    assert batch.index.dtype == torch.int64


@pytest.mark.parametrize(
    ("stored", "arrives"), [("float16", torch.float32), ("uint8", torch.uint8)]
)
def test_half_precision_arrives_as_float32_and_pixels_as_they_are(
    tmp_path: Path, stored: str, arrives: torch.dtype
) -> None:
    folder = write(tmp_path, 300, 36, stored)
    assert sorted(order(folder, 75, global_batch=4)) == list(range(300))
    with SampleStream(
        folder, seed=0, global_batch=4, rank=0, world_size=1, micro_batch=4
    ) as stream:
        assert next(stream).stored.dtype == arrives


def test_the_order_does_not_depend_on_what_is_stored(folder: Path, tmp_path: Path) -> None:
    assert order(write(tmp_path, 300, 36, "uint8"), 20) == order(folder, 20)


def test_every_epoch_holds_every_sample_once_in_another_order(folder: Path) -> None:
    samples = order(folder, 75, global_batch=16)  # four epochs of 300
    epochs = [samples[begin : begin + 300] for begin in range(0, 1200, 300)]
    assert all(sorted(epoch) == list(range(300)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_how_it_is_read_does_not_change_the_order(folder: Path, small_windows: None) -> None:
    in_place = order(folder, 12)
    assert order(folder, 12, workers=1, prefetch=1) == in_place
    for workers in (1, 3):  # through a command all is read through, here by several threads
        piped = order(f"pipe:cat {folder}", 12, world_size=2, micro_batch=16, workers=workers)
        assert piped == in_place


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
    workers=st.integers(1, 4),
    dtype=st.sampled_from(["float32", "float16", "uint8"]),
    batch=st.integers(1, 10),
)
def test_any_data_set_is_complete_elastic_and_resumable(
    tmp_path_factory: pytest.TempPathFactory,
    shuffle: int,
    count: int,
    shard_samples: int,
    seed: int,
    world_size: int,
    workers: int,
    dtype: str,
    batch: int,
) -> None:
    folder = write(tmp_path_factory.mktemp("any"), count, shard_samples, dtype)
    with windows(shuffle):
        whole = order(folder, batch + 4, seed=seed)
        resumed = order(
            folder, 4, seed=seed, start=32 * batch, world_size=world_size, workers=workers
        )
    for begin in range(0, len(whole) - count + 1, count):
        assert sorted(whole[begin : begin + count]) == list(range(count))
    assert resumed == whole[32 * batch :]


def test_the_order_is_pinned(folder: Path) -> None:
    """Runs resume from images seen alone, so a change of the order breaks them: make none
    without meaning to."""
    assert order(folder, 1)[:8] == [24, 19, 15, 7, 12, 23, 20, 8]


# What it costs


def test_a_rank_reads_only_its_own_lanes(folder: Path, small_windows: None) -> None:
    index = read_index(folder)
    assert lane_count(index) == 8
    order = Order(index, seed=0)
    mine = islice(Schedule(global_batch=64, rank=1, world_size=4, micro_batch=16), 60)
    assert {run.window.lane for positions in mine for run in order.runs(positions)} == {1, 5}


@pytest.mark.parametrize("command", ["", "pipe:cat "])
def test_resuming_opens_no_more_than_a_window_needs(
    folder: Path, small_windows: None, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    opened: list[str] = []

    def open_in_place(self: ShardSource, number: int, **how: Any) -> Any:
        opened.append(self.index.shards[number].name)
        return open_shard(self, number, **how)

    def read_through(folder: str, shard: Shard, *how: Any) -> Any:
        read.append(shard.name)
        return read_shard(folder, shard, *how)

    open_shard, read = ShardSource.open, list[str]()
    monkeypatch.setattr(ShardSource, "open", open_in_place)
    monkeypatch.setattr(shard_readers, "read_shard", read_through)
    with SampleStream(
        f"{command}{folder}",
        seed=0,
        global_batch=4,
        rank=0,
        world_size=1,
        micro_batch=4,
        start=300 * 1000 + 128,
        settings=StreamConfig(prefetch=1),  # what is read ahead stays within one block
    ) as stream:
        next(stream)
    # One lane, hence one window, and that may span two shards.
    assert 1 <= len(opened) <= 2
    assert read == (opened if command else [])


def test_a_data_set_without_classes_has_no_labels(tmp_path: Path) -> None:
    samples = ((f"{i}", np.full((2, 2, 2), i, np.float32), 0) for i in range(8))
    write_shards(tmp_path, samples, codec={}, num_classes=0, shard_samples=4)
    place = {"global_batch": 4, "rank": 0, "world_size": 1, "micro_batch": 4}
    with SampleStream(tmp_path, seed=0, **place) as stream:
        batch = next(stream)
    assert batch.labels is None
    assert stream.index.class_histogram == ()
    labels = LabelStream(label_histogram("histogram", 0, stream.index), seed=0, **place)
    assert next(labels).labels is None


# What goes wrong


@pytest.mark.faults
@pytest.mark.parametrize(
    "change", [{"start": 4}, {"rank": 2}, {"micro_batch": 3}, {"global_batch": 12}, {"start": -8}]
)
def test_numbers_that_do_not_divide_are_refused(folder: Path, change: dict[str, int]) -> None:
    numbers = {"global_batch": 8, "rank": 0, "world_size": 2, "micro_batch": 4} | change
    with pytest.raises(ValueError, match="is not"):
        SampleStream(folder, seed=0, **numbers)


@pytest.mark.faults
def test_a_missing_shard_is_refused_at_once(tmp_path: Path) -> None:
    (write(tmp_path, 40, 10) / "shard-000002.tar").unlink()
    with pytest.raises(ShardError, match=r"shard-000002\.tar: missing"):
        order(tmp_path, 1)


@pytest.mark.faults
@pytest.mark.parametrize("damage", ["truncated", "cut at a member", "swapped", "deleted"])
def test_a_shard_damaged_under_way_ends_the_stream_with_its_name(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 400, 100)
    index = read_index(tmp_path)
    monkeypatch.setattr(shard_readers, "read_index", lambda *arguments: index)
    shard, content = tmp_path / "shard-000003.tar", (tmp_path / "shard-000003.tar").read_bytes()
    if damage == "deleted":
        shard.unlink()
    elif damage == "swapped":
        write(tmp_path / "other", 90, 100)
        shard.write_bytes((tmp_path / "other" / "shard-000000.tar").read_bytes())
    else:
        shard.write_bytes(content[: 50 * 2048 + (100 if damage == "truncated" else 0)])
    with SampleStream(
        tmp_path, seed=0, global_batch=4, rank=0, world_size=1, micro_batch=4
    ) as stream:
        with pytest.raises(ShardError, match=r"shard-000003\.tar"):
            list(islice(stream, 100))
        with pytest.raises(ShardError, match=r"shard-000003\.tar"):  # and goes on saying so
            next(stream)


@pytest.mark.faults
def test_a_forgotten_stream_ends_its_thread(folder: Path) -> None:
    before = set(threading.enumerate())
    stream = SampleStream(folder, seed=0, global_batch=4, rank=0, world_size=1, micro_batch=4)
    next(stream)
    assert set(threading.enumerate()) - before
    del stream
    assert not set(threading.enumerate()) - before


@pytest.mark.faults
@pytest.mark.parametrize("prefetch", [1, 4])
def test_closing_ends_the_thread_in_whatever_state_it_is(folder: Path, prefetch: int) -> None:
    before = set(threading.enumerate())
    place = {"global_batch": 4, "rank": 0, "world_size": 1, "micro_batch": 4}
    for taken in (0, 1, 5, *[2] * 10):
        settings = StreamConfig(prefetch=prefetch)
        stream = SampleStream(folder, seed=0, settings=settings, **place)
        list(islice(stream, taken))
        stream.close()
        stream.close()
        with pytest.raises(ValueError, match="closed"):
            next(stream)
    assert not set(threading.enumerate()) - before
