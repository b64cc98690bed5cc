"""Opening what an address names: a local file, or anything that WebDataset's `gopen` opens.

A command that delivers nothing for a while is ended, one that fails is an error, and what may
be better in a moment is tried again, each time after a longer wait.
"""

import os
import random
import select
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import IO, Any, TypeVar
from urllib.parse import urlparse
from urllib.request import url2pathname

import webdataset as wds
from webdataset.gopen import Pipe, rewrite_url

from sid_scale.errors import SidScaleError

T = TypeVar("T")

TIMEOUT = 60.0  # seconds without a byte
LONGEST_WAIT = 60.0  # seconds between two attempts
POLL_SECONDS = 0.2
BLOCK_BYTES = 1 << 20


class FetchError(SidScaleError):
    """What an address names could not be read; the message says which, how often and why."""


@dataclass(frozen=True)
class RetryPolicy:
    """How often and when to try again: after about 1, 2, 4, ... times `backoff` seconds.

    The waits are shortened at random, by another measure for every `who`, lest all ranks come
    back at once.
    """

    retries: int = 5
    backoff: float = 1.0
    who: int = 0

    def attempts(
        self,
        action: Callable[[], T],
        url: str,
        stop: Event | None = None,
        final: tuple[type[Exception], ...] = (),
    ) -> T:
        """What `action` returns, the first time that it raises neither OSError nor SidScaleError.

        Raises:
            FetchError: it never did, or `stop` was set while waiting.
            Exception: at once, what `action` raised of the kinds `final`.
        """
        stop = stop or Event()
        for attempt in range(self.retries + 1):
            try:
                return action()
            except final:
                raise
            except (OSError, SidScaleError) as error:
                last: Exception = error
            if attempt < self.retries and stop.wait(self.wait(url, attempt)):
                break
        raise FetchError(
            f"{url}: cannot be read, tried {attempt + 1} times; the last time: {last}"
        ) from last

    def wait(self, url: str, attempt: int) -> float:
        """Seconds to wait after attempt number `attempt` (from 0 on) has failed."""
        full = min(LONGEST_WAIT, self.backoff * 2**attempt)
        return full * random.Random(f"{self.who} {url} {attempt}").uniform(0.5, 1)


ONCE = RetryPolicy(retries=0)


def local_path(url: str | Path) -> Path | None:
    """The path of a local file or folder; None for what has to be fetched."""
    parsed = urlparse(str(url))
    if parsed.scheme == "file":
        return Path(url2pathname(parsed.path))
    return None if parsed.scheme else Path(url)


def open_url(url: str, timeout: float = TIMEOUT, stop: Event | None = None) -> IO[bytes]:
    """Opens for reading; use it as a context manager, and only `read` it.

    Raises:
        OSError: it cannot be opened or, from `read`, its command failed or delivered nothing
            for `timeout` seconds, or `stop` was set while waiting for it.
    """
    if path := local_path(url):
        return open(path, "rb")
    url = rewrite_url(url)
    if urlparse(url).scheme in ("http", "https"):
        # As gopen calls it, but for its own retries: it would try for minutes, and say nothing.
        limits = ["--connect-timeout", str(timeout)]
        command = ["curl", "--fail", "--silent", "--show-error", "--location", *limits, url]
        stream: Any = Pipe(command, mode="rb", bufsize=0, stderr=subprocess.PIPE)
    else:
        try:
            stream = wds.gopen(url, "rb")
        except ValueError as error:  # no such scheme
            raise OSError(str(error)) from error
    return _Piped(stream, timeout, stop) if isinstance(stream, Pipe) else stream  # type: ignore


class _Piped:
    """A command's output, read with a time limit."""

    def __init__(self, pipe: Pipe, timeout: float, stop: Event | None):
        self._pipe = pipe  # which closes its streams when it is forgotten
        self._process, self._timeout, self._stop = pipe.proc, timeout, stop or Event()
        self._accepted = pipe.ignore_status
        self._output = pipe.stream.fileno()
        self._poll = select.poll()  # `select.select` ends at descriptor 1023
        self._poll.register(self._output, select.POLLIN)

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, or all; fewer only at the end."""
        parts, wanted = [], size
        while wanted and (part := self._part(wanted)):
            parts.append(part)
            wanted -= len(part) if size >= 0 else 0
        return b"".join(parts)

    def _part(self, wanted: int) -> bytes:
        deadline = time.monotonic() + self._timeout
        while not self._is_ready(min(POLL_SECONDS, deadline - time.monotonic())):
            if self._stop.is_set() or time.monotonic() >= deadline:
                self.close()
                raise OSError(f"nothing came for {self._timeout:g} seconds")
        part = os.read(self._output, BLOCK_BYTES if wanted < 0 else min(wanted, BLOCK_BYTES))
        if not part:
            self._check()
        return part

    def _is_ready(self, seconds: float) -> bool:
        return bool(self._poll.poll(1000 * max(0, seconds)))

    def _check(self) -> None:
        """At the end of its output a command should end well."""
        try:
            status = self._process.wait(self._timeout)
        except subprocess.TimeoutExpired:
            self.close()
            raise OSError(f"its command did not end within {self._timeout:g} seconds") from None
        if status not in self._accepted:
            said = (
                self._process.stderr.read().decode(errors="replace") if self._process.stderr else ""
            )
            raise OSError(said.strip() or f"its command ended with status {status}")

    def close(self) -> None:
        """Ends the command, if it still runs."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe:
                pipe.close()
        self._process.wait()

    def __enter__(self) -> "_Piped":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
