"""This process among the ranks: joining, leaving, and what all ranks do together.

The launcher (`deepspeed`, `torchrun`) says in the environment which rank a process is. Ranks meet
at a small key-value store. An error on one ends all (common_end.py).
"""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import deepspeed
import torch
import torch.distributed as dist

from sid_scale.agreed_device import agreed_device
from sid_scale.common_end import START, end_all_ranks, guard, watch
from sid_scale.devices import check_accelerator
from sid_scale.errors import SidScaleError, first_line, launched_rank

T = TypeVar("T")

WORKING_SECONDS = 5.0  # from one sign of life of a rank that others wait for to the next
DEVICES = f"sid_scale/devices/{START}"  # keys of the store begin so
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
        target=watch, args=(watched, rank, leaving, answered), name="watch", daemon=True
    )
    watching.start()
    threading.Thread(
        target=guard, args=(rank, leaving, answered, timeout_seconds), name="guard", daemon=True
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
        end_all_ranks(store, rank, world_size, error, on_failure)
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
        said = first_line(error)
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
