"""Real ranks for tests: processes that talk over gloo."""

import os
import socket
from collections.abc import Callable
from random import SystemRandom
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from sid_scale.ranks import Ranks, joined_ranks, tell_deepspeed

PRELOADED = ["sid_scale.distill.loop"]


def run_ranks(world_size: int, work: Callable[..., Any], *arguments: Any) -> None:
    """Runs `work(rank, *arguments)` on `world_size` ranks; an error on any is raised here.

    The ranks are forked from a server that has imported what takes its time.
    """
    mp.set_forkserver_preload(PRELOADED)
    place = (world_size, free_port(), work, arguments)
    mp.start_processes(_rank, place, nprocs=world_size, start_method="forkserver")


def run_joined(world_size: int, work: Callable[..., Any], *arguments: Any) -> None:
    """Runs `work(ranks, *arguments)` on ranks that have joined as those of a run do: on GPUs, if
    there are any, over NCCL. An error on any is raised here."""
    mp.set_forkserver_preload(PRELOADED)
    place = (world_size, free_port(), work, arguments)
    mp.start_processes(_joined_rank, place, nprocs=world_size, start_method="forkserver")


def joined() -> Ranks:
    """This process among those of `run_ranks`, on a CPU."""
    return Ranks(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))


def free_port() -> int:
    """A port on which nobody listens; none of those that the system gives to connections, one of
    which might take it before the test does, nor of the cluster's jobs, nor of the tests beside."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 10
    while True:
        port = 10_000 + 1000 * worker + SystemRandom().randrange(1000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue  # somebody has it: another one
            return port


def _rank(
    rank: int, world_size: int, port: int, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    _set_place(rank, world_size, port)
    dist.init_process_group("gloo")
    tell_deepspeed("gloo")
    try:
        work(rank, *arguments)
    finally:
        dist.destroy_process_group()


def _joined_rank(
    rank: int, world_size: int, port: int, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    _set_place(rank, world_size, port)
    with joined_ranks(300) as ranks:
        work(ranks, *arguments)


def _set_place(rank: int, world_size: int, port: int) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
