"""Shards from afar: fetched, tried again, cached; and what is bad in them."""

import errno
import json
import os
import re
import sys
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tqdm import tqdm

from sid_scale.config.groups import StreamConfig
from sid_scale.data import shard_readers
from sid_scale.data.prepare.shard_writer import write_shards
from sid_scale.data.remote import FetchError, RetryPolicy
from sid_scale.data.shards import PIXELS, BadSampleError, ShardError, read_index
from sid_scale.data.stream import Batch, SampleStream
from sid_scale.errors import SidScaleError
from tests.data.server import Server, served
from tests.data.shards import (
    SHAPE,
    as_gnu_tar,
    numbered,
    numbers_of,
    put_class,
    put_value,
    write,
)
from tests.ranks import free_port

SHARD = "shard-000002.tar"
SAMPLES = 4 * 60
SILENT_SECONDS = 3  # in which a server that does not hang sends something, on a busy machine too


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("shards"), SAMPLES, 60)


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with served(folder) as server:
        yield server


def batches(source: str | Path, count: int = SAMPLES // 8, **reading: Any) -> list[Batch]:
    """Batches of 8 of one rank; all of one epoch, unless another number is asked for."""
    reading = {"backoff_seconds": 0.01, "retries": 2, "timeout_seconds": 60, **reading}
    place = {"global_batch": 8, "rank": 0, "world_size": 1, "micro_batch": 8}
    with SampleStream(source, seed=0, settings=StreamConfig(**reading), **place) as stream:
        return list(islice(stream, count))


def numbers(source: str | Path, count: int = SAMPLES // 8, **reading: Any) -> list[int]:
    found = batches(source, count, **reading)
    return [int(number) for batch in found for number in numbers_of(batch.stored)]


# What is fetched


@pytest.mark.parametrize("cached", [False, True])
def test_http_gives_what_the_folder_gives(
    folder: Path, server: Server, tmp_path: Path, cached: bool
) -> None:
    cache = {"cache_dir": str(tmp_path / "cache")} if cached else {}
    assert numbers(server.url, 60, **cache) == numbers(folder, 60)


def test_what_is_cached_is_fetched_once(folder: Path, server: Server, tmp_path: Path) -> None:
    for _ in range(2):
        assert numbers(server.url, 60, cache_dir=str(tmp_path)) == numbers(folder, 60)
    assert {name: server.requests[name] for name in server.requests if "shard" in name} == {
        shard.name: 1 for shard in read_index(folder).shards
    }


def test_a_folder_may_be_cached_too(folder: Path, tmp_path: Path) -> None:
    assert numbers(folder, cache_dir=str(tmp_path)) == numbers(folder)
    assert len(list(tmp_path.glob("*.tar"))) == 4


def test_data_sets_share_a_cache(folder: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", SAMPLES, 120)
    for source in (folder, other, folder):
        assert sorted(numbers(source, cache_dir=str(tmp_path / "cache"))) == list(range(SAMPLES))


# What fails on the way


@pytest.mark.faults
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("fault", [500, 404, "cut", "hang"])
def test_what_is_better_the_next_time_does_not_matter(
    folder: Path, server: Server, tmp_path: Path, fault: int | str, cached: bool
) -> None:
    server.faults = {SHARD: [fault, fault, None], "index.json": [500, None]}
    reading: dict[str, Any] = {"cache_dir": str(tmp_path)} if cached else {}
    if fault == "hang":
        reading |= {"timeout_seconds": SILENT_SECONDS, "retries": 5}
    assert numbers(server.url, **reading) == numbers(folder)
    assert server.requests[SHARD] >= 3


@pytest.mark.faults
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (500, "500"),
        (404, "404"),
        ("cut", "curl|ends after"),
        ("hang", f"nothing came for {SILENT_SECONDS}"),
    ],
)
def test_a_shard_that_stays_away_is_named_with_the_reason(
    server: Server, tmp_path: Path, fault: int | str, told: str, cached: bool
) -> None:
    server.faults = {SHARD: [fault]}
    reading = {"cache_dir": str(tmp_path)} if cached else {}
    seconds = SILENT_SECONDS if fault == "hang" else 60
    with pytest.raises(FetchError, match=rf"(?s)http.*{SHARD}.*({told})") as raised:
        numbers(server.url, timeout_seconds=seconds, **reading)
    assert "3 times" in str(raised.value)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.faults
def test_a_server_that_is_not_there_is_named() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ShardError, match=rf"{url}/index\.json.*tried 3 times.*curl"):
        numbers(url)


@pytest.mark.faults
def test_an_address_that_nothing_opens_is_named() -> None:
    with pytest.raises(ShardError, match=r"nosuch://host/index\.json.*gopen"):
        numbers("nosuch://host")


@pytest.mark.faults
@pytest.mark.parametrize("cached", [False, True])
def test_a_page_in_place_of_a_shard_is_not_read_as_one(
    folder: Path, server: Server, tmp_path: Path, cached: bool
) -> None:
    server.faults = {SHARD: [404]}
    reading = {"cache_dir": str(tmp_path)} if cached else {}
    with pytest.raises(FetchError, match=SHARD):  # curl without --fail gives the error's page
        numbers(f"pipe:curl -s {server.url}", **reading)


@pytest.mark.faults
def test_a_failing_command_is_told_with_its_status(folder: Path) -> None:
    with pytest.raises(ShardError, match="ended with status 3"):
        numbers(f"pipe:exit 3; cat {folder}")


@pytest.mark.faults
@pytest.mark.parametrize("source", ["", "pipe:cat "])
def test_a_shard_swapped_for_another_of_the_same_size_is_found(tmp_path: Path, source: str) -> None:
    write(tmp_path, SAMPLES, 60)
    (tmp_path / SHARD).write_bytes((tmp_path / "shard-000001.tar").read_bytes())
    with pytest.raises(SidScaleError, match=rf"{SHARD}.*not the shard that index\.json describes"):
        numbers(f"{source}{tmp_path}", retries=0)


def test_an_index_without_checksums_of_heads_is_read(folder: Path, tmp_path: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    for shard in index["shards"]:
        del shard["head_sha256"]
        (tmp_path / shard["name"]).write_bytes((folder / shard["name"]).read_bytes())
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert numbers(tmp_path) == numbers(folder)


def test_waits_double_up_to_a_limit_and_differ_between_ranks() -> None:
    waits = [RetryPolicy(backoff=1, who=0).wait("url", attempt) for attempt in range(12)]
    for attempt, wait in enumerate(waits):
        assert min(60, 2**attempt) / 2 <= wait <= min(60, 2**attempt)
    assert waits == [RetryPolicy(backoff=1, who=0).wait("url", attempt) for attempt in range(12)]
    assert waits != [RetryPolicy(backoff=1, who=1).wait("url", attempt) for attempt in range(12)]


# Bad samples


def harm(folder: Path, *bad: int, value: float = np.nan) -> Path:
    """Puts a value into samples of the third shard, which holds numbers from 120 on."""
    put_value(folder, SHARD, [f"{120 + number:06d}" for number in bad], value)
    return folder


@pytest.mark.faults
@pytest.mark.parametrize("source", ["", "pipe:cat "])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_bad_sample_stops_the_stream_by_name(tmp_path: Path, source: str, value: float) -> None:
    harm(write(tmp_path, SAMPLES, 60), 7, value=value)
    with pytest.raises(BadSampleError, match=rf"{SHARD}: sample '000127': NaN or infinity"):
        numbers(f"{source}{tmp_path}")


@pytest.mark.parametrize("value", [3e38, -1e30])
def test_a_huge_value_is_not_bad(tmp_path: Path, value: float) -> None:
    harm(write(tmp_path, SAMPLES, 60), 7, value=value)
    assert max(abs(number) for number in numbers(tmp_path)) == abs(np.float32(value))


@pytest.mark.faults
@pytest.mark.parametrize("source", ["", "pipe:cat "])
def test_a_skipped_sample_is_replaced_by_its_neighbour_and_counted(
    folder: Path, tmp_path: Path, source: str, capfd: pytest.CaptureFixture[str]
) -> None:
    harm(write(tmp_path, SAMPLES, 60), 0, 1, 7, 8)
    instead = {120: 122, 121: 122, 127: 126, 128: 126}
    found = batches(f"{source}{tmp_path}", on_bad_sample="skip")
    whole = numbers(folder)
    expected = [instead.get(number, number) for number in whole]
    assert [int(n) for batch in found for n in batch.stored[:, 0, 0, 0]] == expected
    assert [int(n) for batch in found for n in batch.labels] == [n % 7 for n in expected]
    assert [batch.skipped for batch in found] == [
        sum(number in instead for number in whole[begin : begin + 8])
        for begin in range(0, SAMPLES, 8)
    ]
    assert capfd.readouterr().err.count("rank 0: skipped ") == 4


def test_a_skipped_sample_is_told_on_a_line_of_its_own_beside_a_progress_bar(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    harm(write(tmp_path, SAMPLES, 60), 7)
    with tqdm(total=1, file=sys.stderr):
        batches(tmp_path, on_bad_sample="skip")
    lines = re.split(r"[\r\n]", capfd.readouterr().err)
    assert [line.startswith("rank 0: skipped ") for line in lines if "skipped" in line] == [True]


@pytest.mark.faults
def test_a_shard_without_any_sound_sample_stops_even_then(tmp_path: Path) -> None:
    harm(write(tmp_path, SAMPLES, 60), *range(60))
    with pytest.raises(ShardError, match=rf"{SHARD}.*no sound sample"):
        numbers(tmp_path, on_bad_sample="skip")


@pytest.mark.faults
def test_a_class_out_of_range_is_named(tmp_path: Path) -> None:
    write(tmp_path, SAMPLES, 60)
    path = tmp_path / SHARD
    content = bytearray(path.read_bytes())
    place = content.index(b"000127.cls") + 512
    content[place : place + 1] = b"9"
    path.write_bytes(content)
    harm(tmp_path)
    with pytest.raises(BadSampleError, match=rf"{SHARD}: sample '000127': class 9 is not in 0..6"):
        numbers(tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize("at", [257, 124, 156, 1024 + 124, 1536])
def test_a_damaged_header_is_never_read_over(tmp_path: Path, at: int) -> None:
    write(tmp_path, SAMPLES, 60)
    path = tmp_path / SHARD
    content = bytearray(path.read_bytes())
    content[content.index(b"000127.cls") + at] ^= 1
    path.write_bytes(content)
    harm(tmp_path)
    with pytest.raises(ShardError, match=SHARD):
        numbers(tmp_path)


@pytest.mark.faults
def test_a_key_that_hides_behind_a_zero_is_no_key(tmp_path: Path) -> None:
    """tar programs end a name at the first zero."""
    write(tmp_path, SAMPLES, 60)
    path = tmp_path / SHARD
    content = path.read_bytes()
    for name in (b"000127.cls", b"000127.npy"):
        content = content.replace(name, name.replace(b"0127", b"\x00127"))
    path.write_bytes(content)
    harm(tmp_path)
    with pytest.raises(ShardError, match=SHARD):
        numbers(tmp_path)


@pytest.mark.faults
def test_a_disk_that_fails_is_told_with_shard_and_sample(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, preadv = numbers(folder, 1), os.preadv

    def fails(descriptor: int, buffers: Any, offset: int, *flags: int) -> int:
        if len(buffers) == 2 and os.readlink(f"/proc/self/fd/{descriptor}").endswith(name):
            reads.append(offset)
            if len(reads) == 2:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(descriptor, buffers, offset, *flags)

    shard, reads = whole[1] // 60, list[int]()
    name = f"shard-{shard:06d}.tar"
    monkeypatch.setattr(os, "preadv", fails)
    with pytest.raises(ShardError, match=rf"{name}: sample {whole[1] % 60}: Input/output error"):
        numbers(folder, 1)


@pytest.mark.faults
def test_after_an_error_other_lanes_are_closed_in_peace(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One shard cannot be had while the others, on other threads, are still awaited."""
    unseen: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", unseen.append)
    missing = f"shard-{numbers(folder, 1)[0] // 60:06d}.tar"
    serve = tmp_path / "serve"
    serve.write_text(
        f'case "$1" in */index.json) cat {folder}/index.json;; '
        f"*/{missing}) exit 3;; *) exec sleep 1000;; esac"
    )
    place = {"global_batch": 64, "rank": 0, "world_size": 1, "micro_batch": 64}  # of all lanes
    settings = StreamConfig(retries=0, workers=4)
    with SampleStream(f"pipe:exec bash {serve} set", seed=0, settings=settings, **place) as stream:
        with pytest.raises(FetchError, match=f"{missing}.*status 3"):
            next(stream)
    assert not [thread for thread in threading.enumerate() if "latent" in thread.name]
    assert not unseen


# Other layouts


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_shards_of_any_tar_program_are_read(folder: Path, tmp_path: Path, dtype: str) -> None:
    for shard in sorted(write(tmp_path, SAMPLES, 60, dtype).glob("*.tar")):
        as_gnu_tar(shard)
    assert numbers(tmp_path) == numbers(folder)


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_memory_that_is_used_again_keeps_nothing_of_its_last_batch(
    folder: Path, tmp_path: Path, dtype: str
) -> None:
    """Shards of both kinds, bad samples in both, and each batch forgotten before the next."""
    write(tmp_path, SAMPLES, 60, dtype)
    as_gnu_tar(tmp_path / "shard-000000.tar")
    as_gnu_tar(tmp_path / "shard-000002.tar")
    for shard, key in (("shard-000001.tar", "000075"), ("shard-000002.tar", "000175")):
        if dtype == PIXELS:
            put_class(tmp_path, shard, [key], 9)
        else:
            put_value(tmp_path, shard, [key], np.nan, dtype)
    instead = {75: 74, 175: 174}
    whole = numbers(folder, 5 * SAMPLES // 8)
    place = {"global_batch": 40, "rank": 0, "world_size": 1, "micro_batch": 40}
    with SampleStream(
        tmp_path, seed=0, settings=StreamConfig(on_bad_sample="skip", prefetch=1), **place
    ) as stream:
        for first in range(0, 5 * SAMPLES, 40):
            batch, here = next(stream), whole[first : first + 40]
            wanted = [instead.get(number, number) for number in here]
            assert numbers_of(batch.stored).tolist() == wanted
            assert batch.labels.tolist() == [number % 7 for number in wanted]
            assert batch.skipped == sum(number in instead for number in here)
            del batch


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_what_write_shards_made_is_never_read_through(
    tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That would give the same samples, hundreds of times slower."""
    samples = (
        (f"{'long/' * 17}{i}" if i % 2 else f"{i}", numbered(i, dtype), i % 1000)
        for i in range(2000)
    )
    write_shards(tmp_path, samples, codec={}, num_classes=1000, shard_samples=500, dtype=dtype)

    def refused(*how: Any) -> Any:
        raise AssertionError("read through")

    monkeypatch.setattr(shard_readers, "read_shard", refused)
    for batch in batches(tmp_path, 250):
        assert batch.labels.equal(numbers_of(batch.stored).long() % 1000)


def test_tiny_shards_are_read(tmp_path: Path) -> None:
    assert sorted(numbers(write(tmp_path, SAMPLES, 1))) == list(range(SAMPLES))


@pytest.mark.parametrize("classes", [1, 1000])
def test_classes_of_any_length_are_read(tmp_path: Path, classes: int) -> None:
    samples = ((f"{i}", np.full(SHAPE, i), i * 37 % classes) for i in range(64))
    write_shards(tmp_path, samples, codec={}, num_classes=classes, shard_samples=16)
    for batch in batches(tmp_path, 8):
        assert batch.labels.equal(batch.stored[:, 0, 0, 0].long() * 37 % classes)
