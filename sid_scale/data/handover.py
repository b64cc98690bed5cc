"""Handing what one thread makes to another, a little ahead of it.

Two of Python's simple queues, one for the items and one that counts the room for more: they wake
the other thread less often than `queue.Queue`, and nobody has to look from time to time.
"""

from collections.abc import Iterator
from queue import SimpleQueue
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class _Failure(NamedTuple):
    error: BaseException


class Handover(Generic[T]):
    """Items on their way from the thread that calls `fill` to the one that calls `take`.

    Args:
        room: how many may wait to be taken, the one in the making counted, at least 1.
    """

    def __init__(self, room: int):
        if room < 1:
            raise ValueError(f"room for {room} items: nothing could ever be handed over")
        self._ready: SimpleQueue[T | _Failure] = SimpleQueue()
        self._room: SimpleQueue[None] = SimpleQueue()
        for _ in range(room):
            self._room.put(None)
        self._ended = False
        self._failure: BaseException | None = None

    def fill(self, items: Iterator[T]) -> None:
        """Hands over items, each made when there is room for it, until `end` or an error, which
        `take` raises."""
        try:
            while self._is_room():
                self._ready.put(next(items))
        except BaseException as error:  # nothing may end this thread unseen
            self._ready.put(_Failure(error))

    def take(self) -> T:
        """The next item.

        Raises:
            ValueError: `end` was called.
            BaseException: what ended the making, after the items that were made before; and
                from then on always.
        """
        if self._failure is None:
            item = self._ready.get()
            if not isinstance(item, _Failure):
                self._room.put(None)
                return item
            self._failure = item.error
        raise self._failure

    def end(self) -> None:
        """No more is made or taken; whoever waits in `fill` or `take` waits no longer."""
        closed = ValueError("closed: no more is handed over")
        self._failure = self._failure or closed
        self._ended = True
        self._room.put(None)
        self._ready.put(_Failure(closed))

    def _is_room(self) -> bool:
        """Waits for room; False: none is wanted any more."""
        self._room.get()
        return not self._ended
