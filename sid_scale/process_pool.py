"""Independent tasks over processes that end with the one that started them."""

import multiprocessing as mp
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.connection import wait as wait_for_end
from typing import TypeVar

from sid_scale.errors import SidScaleError

T = TypeVar("T")
S = TypeVar("S")


class WorkerError(SidScaleError):
    """A worker process is gone."""


def usable_cores() -> int:
    """How many cores this process may use; a scheduler may grant fewer than there are."""
    return len(os.sched_getaffinity(0))


def over_processes(work: Callable[[T], S], tasks: Iterable[T], workers: int) -> Iterator[S]:
    """`work` of all tasks, in the order in which they get done; of the tasks, few are held.

    An exception in `work` is raised here, and the workers are ended. They end too when this
    process does, whatever ends it. With one worker the work is done in this process.

    Args:
        work: a function of a module; what it takes and gives is sent between processes.

    Raises:
        WorkerError: a worker was killed.
    """
    if workers == 1:
        yield from map(work, tasks)
        return
    remaining = iter(tasks)
    # From a server that has imported what `work` needs, and shares no thread with us.
    context = mp.get_context("forkserver")
    context.set_forkserver_preload([work.__module__])
    pool = ProcessPoolExecutor(workers, context, initializer=_begin)
    pending: set[Future[S]] = set()
    try:
        for task in islice(remaining, 2 * workers):
            pending.add(pool.submit(work, task))
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
                for task in islice(remaining, 1):
                    pending.add(pool.submit(work, task))
    except BrokenProcessPool as error:
        raise WorkerError(
            "a worker process was killed; was memory short? With fewer workers less is needed. "
            "The same command goes on from here"
        ) from error
    finally:
        if pending:  # the caller left early: the rest is not wanted
            for worker in mp.active_children():
                worker.terminate()
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    # Ctrl-C reaches all in the foreground: the first process answers for all.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = mp.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait_for_end([sentinel])
    os._exit(1)
