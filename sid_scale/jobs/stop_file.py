"""Requests to stop by a file, for ranks that no signal reaches: those of other nodes.

A request is a line with the name of a signal. One rank of each node reads the file every second
and sends itself what is new: to the run it is that signal (stop.py).
"""

import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sid_scale.errors import SidScaleError, UsageError
from sid_scale.jobs.stop import SIGNALS

POLL_SECONDS = 1.0


class StopFileError(SidScaleError):
    """A rank does not see the file; the message says what to do."""

    exit_status = 2


@contextmanager
def stop_file(folder: Path) -> Iterator[Path]:
    """A new, empty file of requests in `folder`, which all nodes must see; removed at the end.

    Raises:
        UsageError: the folder cannot be written to.
    """
    file = folder / f".stop-{secrets.token_hex(6)}"
    try:
        file.touch(exist_ok=False)  # a network file system is slow to see new files, not new text
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be written to ({error.strerror}): start the run in a folder that "
            "can, and that all of its nodes see; requests to stop go through a file there"
        ) from error
    try:
        yield file
    finally:
        with suppress(OSError):
            file.unlink()


def request(file: Path, number: int) -> None:
    """Asks the ranks that watch `file` to stop, as the signal of this number does."""
    with open(file, "a") as opened:
        opened.write(f"{signal.Signals(number).name}\n")


@contextmanager
def watched(file: Path) -> Iterator[None]:
    """Inside, this process gets the signals that are requested in `file`, now or before.

    For one rank of a node, inside `stop_requests`.

    Raises:
        StopFileError: the file is not there.
    """
    if not file.is_file():
        raise StopFileError(
            f"--stop-file: {socket.gethostname()} does not see {file}: start `sid-scale launch` in "
            "a folder that all nodes see"
        )
    ended = threading.Event()
    thread = threading.Thread(target=_pass_on, args=(file, ended), name="stop file", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _pass_on(file: Path, ended: threading.Event) -> None:
    known = {number.name: number for number in SIGNALS}
    passed = 0
    while not ended.wait(POLL_SECONDS):
        try:
            names = file.read_text(errors="replace").rpartition("\n")[0].split("\n")
        except OSError:
            continue  # the file server is silent, or `launch` is gone
        for name in names[passed:]:
            if name in known:
                os.kill(os.getpid(), known[name])
        passed = len(names) if names != [""] else 0
