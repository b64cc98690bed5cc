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
        self._command = _launching_command()

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
        if not self._received and _launching_command() != self._command:
            self.receive(signal.SIGTERM, None)
        asked = torch.tensor(float(bool(self._received)), device=self._ranks.device)
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        return bool(asked)


def _launching_command() -> int:
    """Process number of our parent's parent: `deepspeed`, which started the launcher, which
    started us. It changes when that process ends."""
    return psutil.Process(os.getppid()).ppid()


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
