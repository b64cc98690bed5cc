"""Stopping when asked: SIGTERM, SIGUSR1 and Ctrl-C end a run after its iteration, on all ranks.

A scheduler asks with SIGUSR1 before the time limit and with SIGTERM when it wants the nodes
back. Asking may also mean ending the `deepspeed` command: on one node it dies of SIGTERM without
a word to the processes that it started, so each rank looks whether it is still there.

A signal only leaves a note, which the ranks compare between iterations. A thread takes it, so
that a rank whose main thread hangs in a collective can still be made to end.
"""

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from sid_scale.errors import launched_rank

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# Launcher, scheduler and terminal may each pass on one and the same request, some of them late.
SAME_REQUEST_SECONDS = 5.0
POLL_SECONDS = 0.5
EX_STOPPED = os.EX_TEMPFAIL  # exit status of a run that was asked to stop: `resume: auto` goes on


class StopRequests:
    """Signals that have reached this rank."""

    def __init__(self, timeout_seconds: float = 600.0):
        """`timeout_seconds` after the first request this process ends, wherever it is."""
        self.reason = ""  # the first signal's name
        self._timeout = timeout_seconds
        self._first: dict[int, float] = {}  # signal -> when it came first
        self._deadline: float | None = None
        self._launcher = _deepspeed_launcher()
        self._command = None if self._launcher is None else self._launcher.ppid()

    def asked(self) -> bool:
        """Whether this rank was asked to stop."""
        if not self.reason and self._command_is_gone():
            self.receive(signal.SIGTERM)
        return bool(self.reason)

    def receive(self, number: int) -> None:
        """Takes note of a signal. The same one again, seconds later, ends this process at once."""
        now = time.monotonic()
        first = self._first.setdefault(number, now)
        if now - first > SAME_REQUEST_SECONDS:
            _end(number, "asked again")
        if not self.reason:
            self._deadline = now + self._timeout
            self.reason = signal.Signals(number).name
            if launched_rank() == 0:
                say = f"{self.reason}: stopping after this iteration"
                print(say, file=sys.stderr, flush=True)

    def listen(self, pipe: int) -> None:
        """Receives the signals whose numbers are written to `pipe`, until that is closed."""
        while True:
            if not select.select([pipe], [], [], POLL_SECONDS)[0]:
                if self._deadline is not None and time.monotonic() > self._deadline:
                    _end(getattr(signal, self.reason), f"no end within {self._timeout:g} s of it")
                continue
            numbers = os.read(pipe, 64)
            if not numbers:
                return
            for number in numbers:
                if number in SIGNALS:
                    self.receive(number)

    def _command_is_gone(self) -> bool:
        if self._launcher is None:
            return False
        try:
            return self._launcher.ppid() != self._command
        except psutil.Error:
            return True  # even the launcher is


def _end(number: int, why: str) -> None:
    print(f"{signal.Signals(number).name}: {why}; this rank ends now", file=sys.stderr, flush=True)
    os._exit(128 + number)


def _deepspeed_launcher() -> psutil.Process | None:
    """DeepSpeed's launcher if it is our parent; its own parent is the `deepspeed` command."""
    try:
        parent = psutil.Process(os.getppid())
        return parent if "deepspeed.launcher.launch" in parent.cmdline() else None
    except psutil.Error:
        return None


@contextmanager
def stop_requests(timeout_seconds: float) -> Iterator[StopRequests]:
    """Inside, the SIGNALS are requests to stop rather than the end of the process.

    For the main thread. Signals that were blocked before (node_task.py) arrive now.
    """
    requests = StopRequests(timeout_seconds)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    listener = threading.Thread(target=requests.listen, args=(reading,), daemon=True)
    listener.start()
    wakeup = signal.set_wakeup_fd(writing)
    before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        yield requests
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        os.close(writing)
        listener.join()
        os.close(reading)
