"""The cache: bounded, shared, never half a shard, never in the way."""

import errno
import io
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sid_scale.data.shard_cache import CacheFullError, ShardCache
from sid_scale.data.shards import Shard, ShardError
from tests.conftest import flip_last_bit
from tests.data.server import served
from tests.data.shards import write
from tests.data.test_shard_readers import SAMPLES, numbers

SIZE = 100_000


def shard(folder: Path, number: int, size: int = SIZE) -> tuple[Shard, bytes]:
    content = bytes([number]) * size
    path = folder / f"{number}.tar"
    path.write_bytes(content)
    return Shard.of(path, 1), content


def cache(folder: Path, shards: float) -> ShardCache:
    """A cache for so many shards."""
    return ShardCache(folder / "cache", int(shards * SIZE), threading.Event())


def add(cache: ShardCache, entry: tuple[Shard, bytes]) -> None:
    file = cache.add(entry[0], lambda: io.BytesIO(entry[1]), "url")
    assert file is not None
    assert os.pread(file.fileno(), SIZE, 0) == entry[1]
    file.close()


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    kept = cache(tmp_path, 3)
    entries = [shard(tmp_path, number) for number in range(4)]
    for number, entry in enumerate(entries[:3]):
        add(kept, entry)
        os.utime(kept.path(entry[0]), (number, number))
    found = kept.open(entries[0][0])  # the oldest, but now the last used
    assert found is not None
    found.close()
    add(kept, entries[3])
    assert [kept.path(entry[0]).exists() for entry in entries] == [True, False, True, True]


@pytest.mark.faults
def test_what_is_being_read_stays_and_counts(tmp_path: Path) -> None:
    kept = cache(tmp_path, 1.5)
    first, second = shard(tmp_path, 1), shard(tmp_path, 2)
    reading = kept.add(first[0], lambda: io.BytesIO(first[1]), "url")
    assert reading is not None
    with pytest.raises(CacheFullError, match=r"no room for 2\.tar within stream\.cache_gb"):
        add(kept, second)
    assert reading.read() == b""  # where it was written to
    assert os.pread(reading.fileno(), SIZE, 0) == first[1]
    reading.close()
    add(kept, second)
    assert not kept.path(first[0]).exists()


@pytest.mark.faults
@pytest.mark.parametrize("content", [b"\x01" * (SIZE - 1), b"\x01" * (SIZE + 1), b"\x02" * SIZE])
def test_what_is_not_the_shard_is_not_kept(tmp_path: Path, content: bytes) -> None:
    kept = cache(tmp_path, 3)
    entry, _ = shard(tmp_path, 1)
    with pytest.raises(ShardError, match="url: "):
        kept.add(entry, lambda: io.BytesIO(content), "url")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["lock"]


@pytest.mark.faults
def test_a_shard_damaged_in_the_cache_is_fetched_again(tmp_path: Path) -> None:
    kept = cache(tmp_path, 3)
    entry = shard(tmp_path, 1, size=1000)
    add(kept, entry)
    flip_last_bit(kept.path(entry[0]))
    assert kept.open(entry[0]) is None
    add(kept, entry)


def test_processes_that_want_the_same_shard_fetch_it_once(tmp_path: Path) -> None:
    kept = cache(tmp_path, 3)
    entry, content = shard(tmp_path, 1)
    started, go_on = threading.Event(), threading.Event()
    sources: list[str] = []

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            started.set()
            assert go_on.wait(120)
            return super().read(size)

    def fetch(name: str) -> None:
        def opened() -> io.BytesIO:
            sources.append(name)
            return Slow(content)

        file = kept.add(entry, opened, "url") or kept.open(entry)
        assert file is not None
        file.close()

    first = threading.Thread(target=fetch, args=("first",))
    first.start()
    assert started.wait(120)
    assert kept.open(entry) is None  # nobody sees the half of it
    second = threading.Thread(target=fetch, args=("second",))  # a lock belongs to an open file
    second.start()
    go_on.set()
    first.join(120)
    second.join(120)
    assert sources == ["first"]


DYING = """
import io, sys, threading
from pathlib import Path
from sid_scale.data.shard_cache import ShardCache
from sid_scale.data.shards import Shard
class Endless(io.BytesIO):
    def read(self, size=-1):
        if self.tell():
            print("half", flush=True)
            threading.Event().wait()
        return super().read(1000)
path = Path(sys.argv[1])
cache = ShardCache(path / "cache", 250_000, threading.Event())
cache.add(Shard.of(path / "1.tar", 1), lambda: Endless(bytes(100_000)), "url")
"""


@pytest.mark.faults
def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    one, two = shard(tmp_path, 1), shard(tmp_path, 2)
    dying = subprocess.Popen(
        [sys.executable, "-c", DYING, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert dying.stdout is not None
    assert dying.stdout.readline() == "half\n"
    kept = cache(tmp_path, 2.5)
    assert kept.open(one[0]) is None
    add(kept, two)  # beside the one that is being written
    dying.send_signal(signal.SIGKILL)
    dying.wait()
    dying.stdout.close()
    add(kept, shard(tmp_path, 3))  # what is left of it goes, and nothing else
    assert kept.path(two[0]).exists()
    add(kept, one)
    assert not list((tmp_path / "cache").glob("*.partial"))


@pytest.mark.faults
@pytest.mark.parametrize("remote", [False, True])
def test_a_cache_without_room_is_told_once_and_reading_goes_on(
    tmp_path: Path, remote: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "set", SAMPLES, 60)
    with served(folder) as server:
        source = server.url if remote else folder
        found = numbers(source, 60, cache_dir=str(tmp_path / "cache"), cache_gb=1e-5)
    assert found == numbers(folder, 60)
    assert capfd.readouterr().err.count("no room for") == 1


@pytest.mark.faults
def test_a_full_disk_is_told_once_and_reading_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    folder = write(tmp_path / "set", SAMPLES, 60)
    found = numbers(folder, cache_dir=str(tmp_path / "cache"))
    assert found == numbers(folder)
    assert capfd.readouterr().err.count("No space left on device") == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["lock"]


@pytest.mark.faults
def test_a_small_cache_stays_within_its_bound(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", 8 * 60, 60)
    size = (folder / "shard-000000.tar").stat().st_size
    bound = 3 * size
    sizes: list[int] = []
    for _ in range(2):
        assert numbers(folder, 60, cache_dir=str(tmp_path / "cache"), cache_gb=bound / 1e9)
        sizes.append(sum(path.stat().st_size for path in (tmp_path / "cache").iterdir()))
    assert all(size <= held <= bound for held in sizes)


@pytest.mark.faults
def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ShardError, match=r"stream\.cache_dir .*file/cache cannot be used"):
        ShardCache(tmp_path / "file" / "cache", SIZE, threading.Event())
