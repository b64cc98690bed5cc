"""What one thread makes, another takes."""

import threading
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from sid_scale.data.handover import Handover

pytestmark = pytest.mark.timeout(20)


def filling(handover: Handover[int], items: Iterator[int]) -> threading.Thread:
    thread = threading.Thread(target=handover.fill, args=(items,), daemon=True)
    thread.start()
    return thread


def test_items_come_in_order() -> None:
    handover: Handover[int] = Handover(3)
    thread = filling(handover, count())
    assert [handover.take() for _ in range(100)] == list(range(100))
    handover.end()
    thread.join()


@pytest.mark.parametrize("room", [1, 4])
def test_no_more_is_made_than_there_is_room_for(room: int) -> None:
    made: list[int] = []
    full = threading.Semaphore(0)

    def items() -> Iterator[int]:
        for number in count():
            made.append(number)
            full.release()
            yield number

    handover: Handover[int] = Handover(room)
    thread = filling(handover, items())
    for taken in range(5):
        for _ in range(room if taken == 0 else 1):
            full.acquire()  # the next one is in the making
        assert len(made) == taken + room
        assert handover.take() == taken
    handover.end()
    thread.join()
    assert len(made) <= 5 + room


@pytest.mark.faults
def test_no_room_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="room for 0 items"):
        Handover(0)


@pytest.mark.faults
def test_an_error_comes_after_what_was_made_before_it_and_stays() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("third shelf")

    handover: Handover[int] = Handover(4)
    filling(handover, items()).join()
    assert handover.take() == 1
    for _ in range(2):
        with pytest.raises(KeyError, match="third shelf"):
            handover.take()


@pytest.mark.faults
def test_the_end_wakes_whoever_waits() -> None:
    full: Handover[int] = Handover(1)
    making = filling(full, count())
    empty: Handover[int] = Handover(1)
    raised: list[Any] = []

    def take() -> None:
        try:
            empty.take()
        except ValueError as error:
            raised.append(error)

    taking = threading.Thread(target=take, daemon=True)
    taking.start()
    for handover, thread in ((full, making), (empty, taking)):
        handover.end()
        thread.join()
    assert "closed" in str(*raised)
    with pytest.raises(ValueError, match="closed"):
        full.take()
