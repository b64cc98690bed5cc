"""Independent work on a CPU's threads."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
S = TypeVar("S")


def one_thread_each(make: Callable[[S], T], parts: Iterable[S]) -> list[T]:
    """`make` of all parts, several at once (OMP_NUM_THREADS), but none on more than one thread.

    What comes out does not depend on the number of threads, and small networks get through
    sooner than with all threads at work on each (`make` must switch gradients off itself: that
    is a setting of the thread).
    """
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        return list(pool.map(make, parts))
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # what a thread sets, threads to come inherit
