"""Where a data set's shards are read from: their folder, a cache of it, or through a command."""

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import IO

import numpy as np

from sid_scale.config.groups import StreamConfig
from sid_scale.data.remote import FetchError, RetryPolicy, local_path, open_url
from sid_scale.data.shard_cache import CacheFullError, ShardCache
from sid_scale.data.shards import (
    BadSampleError,
    Record,
    Shard,
    ShardError,
    ShardIndex,
    decode,
    read_index,
    read_shard,
)
from sid_scale.data.tar_layout import Layout, RandomAccessShard, is_laid_out
from sid_scale.errors import SidScaleError


class ShardSource:
    """The shards of one data set; `close` it.

    A local file that has the layout of `write_shards` is read in place; any other is read
    through. What is not local is fetched into the cache first, or without one read through too.

    Args:
        folder: see `read_index`.
        rank: of this process; ranks retry at different moments.
        log: takes one line.

    Raises:
        ShardError: the index is missing or damaged, or the cache cannot be used.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: StreamConfig,
        rank: int = 0,
        log: Callable[[str], None] = print,
    ):
        self._folder, self._local = str(folder), local_path(folder)
        self._timeout, self._log = settings.timeout_seconds, log
        self._retry = RetryPolicy(settings.retries, settings.backoff_seconds, rank)
        self._stop = Event()
        self.index: ShardIndex = read_index(folder, self._retry, self._timeout)
        self.layout = Layout(self.index)
        self._cache: ShardCache | None = None
        self._ahead: ThreadPoolExecutor | None = None
        if settings.cache_dir is not None:
            capacity = int(settings.cache_gb * 1e9)
            self._cache = ShardCache(settings.cache_dir, capacity, self._stop)
            self._ahead = ThreadPoolExecutor(settings.workers, "shard-fetcher")
        self._logged_full = False

    @property
    def is_fetched(self) -> bool:
        """Whether opening a shard may mean waiting for a network."""
        return self._local is None or self._cache is not None

    def open(self, number: int, *, in_place: bool = True) -> "RandomAccessShard | SequentialShard":
        """Shard `number`: in place, if that is wanted and its layout allows it.

        Raises:
            ShardError: it is not the file that the index describes.
            FetchError: it stays away.
        """
        shard = self.index.shards[number]
        if in_place and (file := self._file(shard)):
            if is_laid_out(file, self.layout, shard, self._url(shard)):
                return RandomAccessShard(file, self.layout, self._url(shard))
            file.close()
        return SequentialShard(lambda first: self.records(number, first))

    def ahead(self, number: int) -> None:
        """Shard `number` will be opened soon: fetches it into the cache, if there is one."""
        if self._ahead is not None and self._cache is not None:
            self._ahead.submit(self._fetch_ahead, self._cache, self.index.shards[number])

    def records(self, number: int, first: int = 0) -> Generator[Record, None, None]:
        """The records of shard `number` from `first` on, as `read_shard` reads them.

        Raises:
            ShardError: see `read_shard`.
            FetchError: it stays away.
        """
        shard = self.index.shards[number]
        if file := self._file(shard):
            yield from read_shard(self._folder, shard, first, lambda url: file)
            return
        failures = 0
        while first < shard.samples:
            try:
                for record in read_shard(self._folder, shard, first, self._open_url):
                    yield record
                    first, failures = first + 1, 0
            except ShardError as error:
                url = self._url(shard)
                wait, failures = self._retry.wait(url, failures), failures + 1
                if failures > self._retry.retries or self._stop.wait(wait):
                    raise FetchError(f"{error}; tried {failures} times") from error

    def sample(self, number: int, record: int) -> tuple[np.ndarray, int]:
        """A sample read through to, of the index's shape and dtype, and its class.

        Raises:
            BadSampleError: it is not what the index promises; the message names shard and key.
        """
        with closing(self.records(number, record)) as records:
            return decode(next(records), self.index)

    def neighbour(self, number: int, record: int) -> tuple[np.ndarray, int]:
        """The nearest sound sample before a bad one in its shard, or else the first behind it.

        Raises:
            ShardError: the shard has no sound sample.
        """
        nearest: tuple[np.ndarray, int] | None = None
        with closing(self.records(number)) as records:
            for at, candidate in enumerate(records):
                if at >= record and nearest is not None:
                    return nearest
                try:
                    nearest = decode(candidate, self.index)
                except BadSampleError:
                    continue  # reported when its turn comes
        if nearest is None:
            raise ShardError(f"{self._url(self.index.shards[number])}: has no sound sample")
        return nearest

    def close(self) -> None:
        """Ends waiting and fetching."""
        self._stop.set()
        if self._ahead is not None:
            self._ahead.shutdown(wait=False, cancel_futures=True)

    def _url(self, shard: Shard) -> str:
        return f"{self._folder}/{shard.name}"

    def _open_url(self, url: str) -> IO[bytes]:
        return open_url(url, self._timeout, self._stop)

    def _file(self, shard: Shard) -> IO[bytes] | None:
        """A shard as a file: the cache's, or the local one; None: it must be read from afar."""
        if self._cache is not None:
            try:
                return self._fetched(self._cache, shard)
            except CacheFullError as error:
                if not self._logged_full:
                    self._log(f"{error}; shards that are not there are read without it")
                self._logged_full = True
        if self._local is None:
            return None
        try:
            return open(self._local / shard.name, "rb")
        except OSError as error:
            raise ShardError(f"{self._url(shard)}: {error.strerror}; fetch it again") from error

    def _fetched(self, cache: ShardCache, shard: Shard) -> IO[bytes]:
        """A shard in the cache, fetched if it is not there."""
        url = self._url(shard)

        def fetch() -> IO[bytes] | None:
            return cache.open(shard) or cache.add(shard, lambda: self._open_url(url), url)

        while True:
            file = self._retry.attempts(fetch, url, self._stop, final=(CacheFullError,))
            if file is not None:
                return file

    def _fetch_ahead(self, cache: ShardCache, shard: Shard) -> None:
        try:
            self._fetched(cache, shard).close()
        except SidScaleError:
            return  # opening the shard tries again, and reports


class SequentialShard:
    """A shard that is read from its beginning on: what was announced is held.

    Args:
        records: the shard's records from a number on.
    """

    def __init__(self, records: Callable[[int], Generator[Record, None, None]]):
        self._open = records
        self._records: Generator[Record, None, None] | None = None
        self._at = 0  # number of the next record
        self._held: dict[int, Record] = {}

    def expect(self, first: int, last: int) -> None:
        """Samples [first, last) will be asked for: reads them, and forgets others.

        Raises:
            ShardError, FetchError: see `ShardSource.records`.
        """
        if self._records is None or self._at > first:
            self.close()
            self._records, self._at = self._open(first), first
        for _ in range(first - self._at):  # of lanes that ranks share
            next(self._records)
        self._held = {number: next(self._records) for number in range(first, last)}
        self._at = last

    def take(self, number: int) -> Record:
        """A sample that was announced; each once."""
        return self._held.pop(number)

    def close(self) -> None:
        if self._records is not None:
            self._records.close()
