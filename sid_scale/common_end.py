"""How an error on one rank ends all ranks.

Ranks meet at a small key-value store; the rank that fails first leaves its number there and prints
its traceback, and a watching thread on every other rank then ends that rank, even if it waits in a
collective that will never finish.
"""

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress

import torch.distributed as dist

from sid_scale.errors import SidScaleError

POLL_SECONDS = 0.5
END_POLLS = 20  # that an end waits for a store that is silent, or for ranks that may be gone
# torchrun's store outlives a restart of the ranks: each start has keys of its own.
START = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
FAILED = f"sid_scale/failed/{START}"


def watch(
    store: dist.TCPStore, rank: int, leaving: threading.Event, answered: threading.Event
) -> None:
    """Ends this rank when another one has failed, or rank 0 is gone; until it is `leaving`. Sets
    `answered` as often as the store is asked."""
    while not leaving.wait(POLL_SECONDS):
        answered.set()
        try:
            failed, status, who = store.check([FAILED]), 1, ""
            if failed:
                who, status = _read_failed(store.get(FAILED))
        except (RuntimeError, dist.DistError) as error:
            failed, status, who = True, 1, f"rank 0 is gone ({type(error).__name__})"
        if failed and not leaving.wait(2 * POLL_SECONDS):  # time to end in our own way
            print(f"rank {rank} stops: {who}", file=sys.stderr, flush=True)
            _note_end(store, rank)
            os._exit(status)


def _note_end(store: dist.TCPStore, rank: int) -> None:
    """Lets rank 0 know that this rank needs its store no more."""
    with suppress(RuntimeError, dist.DistError):  # the store is gone already
        store.set(_ended(rank), "")


def _await_ends(store: dist.TCPStore, world_size: int) -> None:
    """Waits for the other ranks' ends, on rank 0, whose store tells them why and with what status.

    A rank that is gone notes nothing: after a while it is waited for no more.
    """
    others = [_ended(rank) for rank in range(1, world_size)]
    deadline = time.monotonic() + END_POLLS * POLL_SECONDS
    with suppress(RuntimeError, dist.DistError):
        while others and not store.check(others) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS / 5)


def _ended(rank: int) -> str:
    return f"{FAILED}/ended/{rank}"


def _read_failed(value: bytes) -> tuple[str, int]:
    """Who failed, and the exit status that all ranks then have: of `end_all_ranks`."""
    rank, status = value.decode().split()
    return f"rank {rank} failed", int(status)


def guard(
    rank: int, leaving: threading.Event, answered: threading.Event, timeout_seconds: float
) -> None:
    """Ends this rank when the store is silent: a stopped rank 0 leaves its clients waiting."""
    while answered.wait(timeout_seconds):
        answered.clear()
    if not leaving.is_set():
        silent = f"rank 0 has not answered for {timeout_seconds:g} s"
        print(f"rank {rank} stops: {silent}", file=sys.stderr, flush=True)
        os._exit(1)


def end_all_ranks(
    store: dist.TCPStore,
    rank: int,
    world_size: int,
    error: BaseException,
    on_failure: Callable[[BaseException, str], None] | None,
) -> None:
    """Ends this process, and so all ranks, for an error; prints it if it was the first."""

    def report(first: bool) -> None:
        text = f"rank {rank} stops: another rank failed\n"
        if first and isinstance(error, SidScaleError):
            text = f"error: {error}\n"
        elif first:
            text = f"rank {rank} failed:\n" + "".join(traceback.format_exception(error))
        print(text, end="", file=sys.stderr, flush=True)
        try:
            if first and on_failure is not None:
                on_failure(error, text)
        except Exception as also:  # ending matters more
            print(f"rank {rank}: {type(also).__name__}: {also}", file=sys.stderr, flush=True)

    def end_alone() -> None:
        report(first=True)
        os._exit(status)

    status = error.exit_status if isinstance(error, SidScaleError) else 1
    alone = threading.Timer(END_POLLS * POLL_SECONDS, end_alone)  # the store does not answer
    alone.start()
    try:
        mine = f"{rank} {status}"
        told = store.compare_set(FAILED, "", mine)
        first, status = told.decode() == mine, _read_failed(told)[1]
    except (RuntimeError, dist.DistError):
        first = False  # the store went down with rank 0, which has printed why
    alone.cancel()
    report(first)
    if rank == 0:
        _await_ends(store, world_size)
    else:
        _note_end(store, rank)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: tearing down a broken process group can hang.
    os._exit(status)
