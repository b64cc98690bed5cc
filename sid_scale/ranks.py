"""This process among the ranks: joining, leaving, and how an error on one ends all.

The launcher (`deepspeed`, `torchrun`) says in the environment which rank a process is. Ranks meet
at a small key-value store; the rank that fails first leaves its number there and prints its
traceback, and a watching thread on every other rank then ends that rank, even if it waits in a
collective that will never finish.
"""

import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import deepspeed
import torch
import torch.distributed as dist

from sid_scale.agreed_device import agreed_device
from sid_scale.devices import check_accelerator
from sid_scale.errors import SidScaleError, launched_rank

T = TypeVar("T")

POLL_SECONDS = 0.5
END_POLLS = 20  # that an end waits for a store that is silent, or for ranks that may be gone
WORKING_SECONDS = 5.0  # from one sign of life of a rank that others wait for to the next
# torchrun's store outlives a restart of the ranks: each start has keys of its own.
START = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
FAILED = f"sid_scale/failed/{START}"
DEVICES = f"sid_scale/devices/{START}"
TIMEOUT_SECONDS = 1800.0  # where ranks work for themselves, some may be done much sooner


class MeetingError(SidScaleError):
    """The ranks cannot meet at the address or the port that they were given."""

    exit_status = 2


class AbsentError(SidScaleError):
    """The other ranks did not come; another start may do better."""


@dataclass(frozen=True)
class Ranks:
    """Who we are: rank of world_size, on a device."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0


@contextmanager
def joined_ranks(
    timeout_seconds: float = TIMEOUT_SECONDS,
    on_failure: Callable[[BaseException, str], None] | None = None,
) -> Iterator[Ranks]:
    """Inside, the ranks are joined (nccl on CUDA, gloo elsewhere).

    An exception that leaves this context ends every rank within seconds; its traceback (or,
    for a `SidScaleError`, its message) is printed once, by the rank where it happened first,
    which then calls `on_failure` with the exception and what it printed. So does, after
    `timeout_seconds`, a rank that does not answer.

    Raises:
        MeetingError: the address or the port where the ranks meet cannot be used.
        DeviceError: a rank has no device, or not DeepSpeed's. It ends all ranks, as above, and so
            does the next.
        SickNodeError: ranks of some nodes have no device, and those of others have.
    """
    timeout = timedelta(seconds=timeout_seconds)
    # Without a launcher this is a world of one.
    rank, world_size = launched_rank(), int(os.environ.get("WORLD_SIZE", "1"))
    host, store, watched = _meet(rank, world_size, timeout)
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=os.environ.get("LOCAL_RANK", "0"),
        MASTER_ADDR=host,
        MASTER_PORT=str(store.port),
    )
    leaving = threading.Event()
    answered = threading.Event()
    watching = threading.Thread(
        target=_watch, args=(watched, rank, leaving, answered), name="watch", daemon=True
    )
    watching.start()
    threading.Thread(
        target=_guard, args=(rank, leaving, answered, timeout_seconds), name="guard", daemon=True
    ).start()
    try:
        device = agreed_device(dist.PrefixStore(DEVICES, store), rank, world_size)
        check_accelerator(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend,
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=timeout,
            # Then NCCL need not guess it. A single rank would only get more communicators by it.
            device_id=device if backend == "nccl" and world_size > 1 else None,
        )
        tell_deepspeed(backend)
        yield Ranks(rank, world_size, device)
        dist.barrier()
        leaving.set()
        # An interpreter that ends while a thread asks the store aborts.
        watching.join(timeout_seconds)
        # Rank 0 takes the store along: a rank that is slow to leave would take that for a failure.
        dist.barrier()
    except BaseException as error:
        leaving.set()
        _end_all_ranks(store, rank, world_size, error, on_failure)
    dist.destroy_process_group()


def _meet(
    rank: int, world_size: int, timeout: timedelta
) -> tuple[str, dist.TCPStore, dist.TCPStore]:
    """The address where the ranks meet, and two clients of the store there.

    The second is for the watching thread: the first may be busy waiting for a peer.

    Raises:
        MeetingError: the address or the port cannot be used.
        AbsentError: the other ranks did not come in time.
    """
    host = os.environ.get("MASTER_ADDR", "127.0.0.1")
    given = os.environ.get("MASTER_PORT", "0")
    if not (given.isdecimal() and int(given) < 65536) or (world_size > 1 and int(given) == 0):
        raise _meeting_error(host, given, "a port is a number from 1 to 65535")
    try:
        # The store would look the name up again and again until its time is up.
        socket.getaddrinfo(host, int(given))
    except (OSError, UnicodeError) as error:
        refusal = _meeting_error(host, given, f"the address does not resolve ({error})")
        if getattr(error, "errno", None) == socket.EAI_AGAIN:
            refusal.exit_status = 1  # the name server is away: another start may do better
        raise refusal from error
    # torchrun's agent already serves a store at that address.
    serves = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        store = dist.TCPStore(host, int(given), world_size, serves, timeout=timeout)
        watched = dist.TCPStore(
            host, store.port, world_size, False, timeout=timeout, wait_for_workers=False
        )
    except (RuntimeError, dist.DistError) as error:
        said = str(error).splitlines()[0]
        if "EADDRINUSE" in said:
            raise _meeting_error(host, given, "another program uses the port") from error
        if "EACCES" in said:
            raise _meeting_error(host, given, "the port is the system's own") from error
        raise AbsentError(f"rank {rank} met no others at {host}, port {given}: {said}") from error
    return host, store, watched


def _meeting_error(host: str, port: str, why: str) -> MeetingError:
    return MeetingError(
        f"the ranks cannot meet at {host}, port {port}: {why}; give another with --master_addr or "
        "--master_port of the launcher, or SID_SCALE_PORT for a job of slurm/"
    )


def on_first_rank(action: Callable[[], T]) -> T:
    """What `action` returns on rank 0, returned or raised on every rank. Collective.

    For what one rank must do or look at alone, on a file system that all share. Only a
    `SidScaleError` is raised everywhere; any other exception ends rank 0, and so all.
    """
    outcome: list[T | SidScaleError | None] = [None]
    if dist.get_rank() == 0:
        try:
            outcome = [action()]
        except SidScaleError as error:
            outcome = [error]
    dist.broadcast_object_list(outcome)
    if isinstance(outcome[0], SidScaleError):
        raise outcome[0]
    return cast(T, outcome[0])


def while_others_wait(action: Callable[[], T] | None) -> T | None:
    """What `action` returns, on ranks that have one; no rank goes on before all have. Collective.

    For what may take longer than a rank may be silent, as a download.
    """
    outcome: list[T | BaseException] = []

    def work(action: Callable[[], T]) -> None:
        try:
            outcome.append(action())
        except BaseException as error:
            outcome.append(error)

    working = threading.Thread(target=work, args=(action,), daemon=True) if action else None
    if working is not None:
        working.start()
    busy = True
    while busy:
        if working is not None:
            working.join(WORKING_SECONDS)
        [busy] = on_any_rank(working is not None and working.is_alive())
    if outcome and isinstance(outcome[0], BaseException):
        raise outcome[0]
    return cast(T, outcome[0]) if outcome else None


def on_any_rank(*flags: bool) -> tuple[bool, ...]:
    """For each flag, whether it is set on any rank. Collective: one all-reduce for all."""
    on_cuda = dist.get_backend() == dist.Backend.NCCL
    device = torch.device("cuda", torch.cuda.current_device()) if on_cuda else torch.device("cpu")
    numbers = torch.tensor(flags, dtype=torch.float32, device=device)
    dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
    return tuple(number > 0 for number in numbers.tolist())


def limit_waiting(timeout_seconds: float) -> None:
    """No collective waits longer for a rank, in whatever group it happens.

    Groups that DeepSpeed makes have torch's own limits at first: half an hour with gloo.
    """
    for group in dist.distributed_c10d._world.pg_map:
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=timeout_seconds), group)


def tell_deepspeed(backend: str) -> None:
    """Lets DeepSpeed use the process group that there is."""
    if backend == "gloo":
        # On CPUs it would first compile an all-reduce for inference, which nothing here calls. (On
        # GPUs just to look at this table would try out every compiler.)
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=backend, verbose=False)


def _watch(
    store: dist.TCPStore, rank: int, leaving: threading.Event, answered: threading.Event
) -> None:
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
    """Who failed, and the exit status that all ranks then have: of `_end_all_ranks`."""
    rank, status = value.decode().split()
    return f"rank {rank} failed", int(status)


def _guard(
    rank: int, leaving: threading.Event, answered: threading.Event, timeout_seconds: float
) -> None:
    """Ends this rank when the store is silent: a stopped rank 0 leaves its clients waiting."""
    while answered.wait(timeout_seconds):
        answered.clear()
    if not leaving.is_set():
        silent = f"rank 0 has not answered for {timeout_seconds:g} s"
        print(f"rank {rank} stops: {silent}", file=sys.stderr, flush=True)
        os._exit(1)


def _end_all_ranks(
    store: dist.TCPStore,
    rank: int,
    world_size: int,
    error: BaseException,
    on_failure: Callable[[BaseException, str], None] | None,
) -> None:
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
