"""Micro-batches are read, and their noise drawn, one ahead; nothing else changes."""

import threading
from collections.abc import Iterator
from itertools import islice

import pytest
import torch
from torch import Tensor

from sid_scale.data.labels import LabelStream
from sid_scale.diffusion.noise import KeyedNoise
from sid_scale.distill.ahead import ReadAhead

CPU = torch.device("cpu")
SEED = 3


def labels(rank: int = 0, world_size: int = 1, start: int = 0) -> LabelStream:
    place = {"rank": rank, "world_size": world_size, "micro_batch": 4, "start": start}
    return LabelStream([1, 2, 3], seed=0, global_batch=16, **place)


@pytest.fixture
def open_ahead() -> Iterator:
    """Opens streams, and closes them."""
    opened = []

    def open_(stream) -> ReadAhead:
        opened.append(ReadAhead(stream, SEED, "generator", CPU))
        return opened[-1]

    yield open_
    for ahead in opened:
        ahead.close()


def draws(noise: KeyedNoise, number: int) -> dict[str, Tensor]:
    """What the loss of a micro-batch asks for; the fifth asks for other things than the rest."""
    if number == 4:
        return {"z": noise.of("z").uniform(3), "new": noise.of("new").normal(1)}
    z = noise.of("z")
    return {"sigma": noise.of("sigma").uniform(1), "z": z.normal(2, 2), "more": z.normal(5)}


def test_micro_batches_and_noise_are_those_of_the_stream_on_any_number_of_ranks(open_ahead):
    alone = list(islice(labels(), 8))
    on_two = [open_ahead(labels(rank, 2)) for rank in (0, 1)]
    for number, batch in enumerate(alone):
        given, noise = next(on_two[number % 2])
        assert given.index.equal(batch.index)
        assert given.labels.equal(batch.labels)
        on_demand = draws(KeyedNoise(SEED, "generator", batch.index), number // 2)
        for name, drawn in draws(noise, number // 2).items():
            assert drawn.equal(on_demand[name])


def test_going_on_at_a_position_equals_having_read_up_to_it(open_ahead):
    whole, later = open_ahead(labels()), open_ahead(labels(start=16))
    list(islice(whole, 4))
    for _ in range(4):
        ours, theirs = next(whole), next(later)
        assert ours.batch.index.equal(theirs.batch.index)
        assert ours.noise.of("z").normal(2).equal(theirs.noise.of("z").normal(2))


def test_the_training_thread_draws_only_what_no_earlier_loss_has_asked_for(
    open_ahead, monkeypatch: pytest.MonkeyPatch
):
    drawn, randn = [], torch.randn

    def recorded(shape, **options) -> Tensor:
        drawn.append((threading.current_thread() is threading.main_thread(), shape))
        return randn(shape, **options)

    monkeypatch.setattr(torch, "randn", recorded)
    here = []
    for number, (_, noise) in enumerate(islice(open_ahead(labels()), 4)):
        drawn.clear()
        noise.of("z").normal(2)
        if number == 3:
            noise.of("new").normal(7)
        here.append({shape for by_main, shape in drawn if by_main})
    assert here == [{(2,)}, {(2,)}, set(), {(7,)}]


class Fails:
    """A stream whose third micro-batch, and every later one, is an error."""

    def __init__(self) -> None:
        self.labels, self.taken, self.closed = labels(), 0, threading.Event()

    def __next__(self):
        self.taken += 1
        if self.taken > 2:
            raise OSError("the disk is gone")
        return next(self.labels)

    def close(self) -> None:
        self.closed.set()


@pytest.mark.faults
def test_an_error_is_raised_in_place_of_its_micro_batch(open_ahead):
    stream = Fails()
    ahead = open_ahead(stream)
    next(ahead)
    assert next(ahead).batch.index.equal(torch.arange(4, 8))
    for _ in range(2):
        with pytest.raises(OSError, match="the disk is gone"):
            next(ahead)


class Waits(Fails):
    """A stream that gives one micro-batch, and then nothing until it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = threading.Event()

    def __next__(self):
        self.taken += 1
        if self.taken > 1:
            self.waits.set()
            self.closed.wait()
            raise ValueError("the stream is closed")
        return next(self.labels)


@pytest.mark.faults
def test_closing_ends_the_thread_and_the_stream_whatever_they_wait_for():
    stream = Waits()
    ahead = ReadAhead(stream, SEED, "generator", CPU)
    assert stream.taken == 0
    next(ahead)
    assert stream.waits.wait(60)
    assert stream.taken == 2  # one ahead
    ahead.close()
    assert stream.closed.is_set()
    assert not [t for t in threading.enumerate() if t.name.startswith("ahead")]
