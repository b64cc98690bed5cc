"""Stopping when asked: SIGTERM and Ctrl-C end a run after its iteration, on all ranks alike.

Asking may also mean ending the `deepspeed` command: on one node it dies of SIGTERM without a
word to the processes that it started, so each rank looks whether it is still there.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import psutil
import torch
import torch.distributed as dist

from sid_scale.ranks import Ranks

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequests:
    """Signals that have reached this rank."""

    def __init__(self, ranks: Ranks):
        self._ranks = ranks
        self._received: set[int] = set()
        self._launcher = _deepspeed_launcher()
        self._command = None if self._launcher is None else self._launcher.ppid()

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The signal handler. The same signal a second time ends this process at once."""
        # Ctrl-C comes once from the terminal and once more, as SIGTERM, from the launcher: only
        # a repetition of the same signal is somebody's impatience.
        if number in self._received:
            os._exit(128 + number)
        self._received.add(number)
        if self._ranks.is_first:
            name = signal.Signals(number).name
            print(f"{name}: stopping after this iteration", file=sys.stderr, flush=True)

    def agreed(self) -> bool:
        """Whether any rank was asked to stop. Collective: one number."""
        if not self._received and self._command_is_gone():
            self.receive(signal.SIGTERM, None)
        asked = torch.tensor(float(bool(self._received)), device=self._ranks.device)
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        return bool(asked)

    def _command_is_gone(self) -> bool:
        if self._launcher is None:
            return False
        try:
            return self._launcher.ppid() != self._command
        except psutil.Error:
            return True  # even the launcher is


def _deepspeed_launcher() -> psutil.Process | None:
    """DeepSpeed's launcher if it is our parent; its own parent is the `deepspeed` command."""
    try:
        parent = psutil.Process(os.getppid())
        return parent if "deepspeed.launcher.launch" in parent.cmdline() else None
    except psutil.Error:
        return None


@contextmanager
def stop_requests(ranks: Ranks) -> Iterator[StopRequests]:
    """Inside, SIGTERM and SIGINT are requests to stop rather than the end of the process."""
    requests = StopRequests(ranks)
    before = {number: signal.signal(number, requests.receive) for number in SIGNALS}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
