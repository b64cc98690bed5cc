"""Shards kept on a local disk: a folder of bounded size that the processes of a node share.

A shard is there under its SHA-256, so any number of data sets and runs may use one folder.
A process that fetches a shard holds an exclusive lock on its partial file, and others that want it
wait for that; it gets its name when it is complete and its checksum right. A process that reads one
holds a shared lock, and what is locked is not evicted. A process that dies drops its locks: the
next one takes its partial file over.
"""

import errno
import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import IO

from sid_scale.data.remote import BLOCK_BYTES
from sid_scale.data.shards import HEAD_BYTES, INDEX, Shard, ShardError

LOCK = "lock"  # held while sizes are summed up and shards evicted
LOCK_POLL_SECONDS = 0.05
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SHA256 = re.compile(r"[0-9a-f]{64}")


class CacheFullError(ShardError):
    """There is no room for another shard: all that is there is being read, or the disk is full."""


class ShardCache:
    """Shards in a folder, at most `capacity` bytes of them; `stop` ends waiting for others.

    Raises:
        ShardError: the folder cannot be used.
    """

    def __init__(self, folder: str | Path, capacity: int, stop: Event):
        self._folder, self._capacity, self._stop = Path(folder), capacity, stop
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                pass
        except OSError as error:
            raise ShardError(
                f"stream.cache_dir {folder} cannot be used ({error}): choose another or none"
            ) from error

    def open(self, shard: Shard) -> IO[bytes] | None:
        """A shard that is there, now the most recently used, locked until it is closed."""
        if not _SHA256.fullmatch(shard.sha256):
            raise CacheFullError(f"shard {shard.name} has no SHA-256 in its index to keep it by")
        path = self.path(shard)
        while True:
            try:
                file = open(path, "rb")  # noqa: SIM115
            except FileNotFoundError:
                return None
            fcntl.flock(file, fcntl.LOCK_SH)
            status = os.fstat(file.fileno())
            if status.st_nlink and _is_whole(file, shard):
                os.utime(path)
                return file
            file.close()  # evicted before it was locked, or not what was put there
            if status.st_nlink:
                path.unlink(missing_ok=True)

    def path(self, shard: Shard) -> Path:
        """The place of a shard, if it is there."""
        return self._folder / f"{shard.sha256}.tar"

    def add(self, shard: Shard, source: Callable[[], IO[bytes]], url: str) -> IO[bytes] | None:
        """Copies a shard here from what `source` opens, and opens it; None if another process
        has copied it meanwhile.

        Raises:
            CacheFullError: there is no room for it.
            ShardError: `source` holds other bytes than the index says.
            OSError: `source` cannot be opened or read, or `stop` was set.
        """
        path = self.path(shard)
        partial = path.with_suffix(".partial")
        file = self._alone(partial)
        try:
            if path.exists():
                partial.unlink()
                file.close()
                return None
            self._make_room(shard, partial, file)
            with source() as stream:
                _copy(stream, file, shard, url)
            os.replace(partial, path)
        except BaseException as error:
            partial.unlink(missing_ok=True)
            file.close()
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise CacheFullError(f"stream.cache_dir {self._folder}: {error}") from error
            raise
        fcntl.flock(file, fcntl.LOCK_SH)
        return file

    def _alone(self, partial: Path) -> IO[bytes]:
        """The partial file, locked; waits for the process that has it."""
        while True:
            file = os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0)
            try:
                while not _locked_at_once(file, fcntl.LOCK_EX):
                    if self._stop.wait(LOCK_POLL_SECONDS):
                        raise OSError("stopped")
                # The process that had it has renamed or removed it.
                if _is(file, partial):
                    return file
            except BaseException:
                file.close()
                raise
            file.close()

    def _make_room(self, shard: Shard, partial: Path, file: IO[bytes]) -> None:
        """Reserves a shard's bytes for its partial file, evicting the least recently used."""
        with self._locked():
            os.truncate(file.fileno(), 0)
            for path in self._folder.glob("*.partial"):
                if path != partial:
                    _removed_if_unused(path)  # of a process that died
            held = [(path, path.stat()) for path in self._folder.iterdir()]
            excess = sum(status.st_size for _, status in held) + shard.bytes - self._capacity
            shards = [(path, status) for path, status in held if path.suffix == ".tar"]
            for path, status in sorted(shards, key=lambda entry: entry[1].st_mtime_ns):
                if excess > 0 and _removed_if_unused(path):
                    excess -= status.st_size
            if excess > 0:
                raise CacheFullError(
                    f"stream.cache_dir {self._folder}: no room for {shard.name} within "
                    f"stream.cache_gb {self._capacity / 1e9:g}; all that is there is in use"
                )
            os.posix_fallocate(file.fileno(), 0, shard.bytes)  # a full disk is found out here

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with open(self._folder / LOCK, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _copy(source: IO[bytes], file: IO[bytes], shard: Shard, url: str) -> None:
    digest, count = hashlib.sha256(), 0
    while block := source.read(BLOCK_BYTES):
        count += len(block)
        if count > shard.bytes:
            raise ShardError(f"{url}: more than the {shard.bytes} bytes that {INDEX} says")
        digest.update(block)
        rest = memoryview(block)
        while rest:
            rest = rest[file.write(rest) :]
    if count < shard.bytes:
        raise ShardError(f"{url}: ends after {count} of {shard.bytes} bytes")
    if digest.hexdigest() != shard.sha256:
        raise ShardError(f"{url}: another SHA-256 than in {INDEX}")


def _is_whole(file: IO[bytes], shard: Shard) -> bool:
    """Whether a file has a shard's size and first bytes."""
    try:
        shard.check_head("", os.pread(file.fileno(), HEAD_BYTES, 0))
    except ShardError:
        return False
    return os.fstat(file.fileno()).st_size == shard.bytes


def _removed_if_unused(path: Path) -> bool:
    """Removes a file that is not locked. -> whether it is gone."""
    try:
        with open(path, "rb") as file:
            if not _locked_at_once(file, fcntl.LOCK_EX):
                return False
            path.unlink()
    except FileNotFoundError:
        return True  # another rank was faster
    return True


def _locked_at_once(file: IO[bytes], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is(file: IO[bytes], path: Path) -> bool:
    """Whether `path` still names this open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
