"""A role's micro-batches with their noise, made on a thread one micro-batch ahead."""

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch

from sid_scale.data.labels import LabelBatch, LabelStream
from sid_scale.data.stream import Batch, SampleStream
from sid_scale.diffusion.noise import Draw, KeyedNoise


class Prepared(NamedTuple):
    """A micro-batch, and all that is random about its samples."""

    batch: Batch | LabelBatch
    noise: KeyedNoise


class ReadAhead:
    """Takes micro-batches off a stream, and draws the noise that losses have asked for before.

    Noise is a function of the samples, so what is drawn ahead is what the loss would have drawn;
    the first two micro-batches, and whatever is asked for the first time, are drawn when asked for.
    An error of the stream is raised when the micro-batch is wanted. A run's position is that of
    the micro-batches it was given.

    Args:
        stream: of the role; `close` closes it.
        seed, role: of the noise.
        device: where the noise is wanted.
    """

    def __init__(
        self, stream: SampleStream | LabelStream, seed: int, role: str, device: torch.device
    ):
        self._batches: Iterator[Batch | LabelBatch] = stream
        self._close, self._seed, self._role, self._device = stream.close, seed, role, device
        self._thread = ThreadPoolExecutor(1, f"ahead-{role}")
        self._asked: dict[str, Draw] = {}  # by name, what losses have asked for
        self._given: Prepared | None = None
        self._next: Future[Prepared] | None = None
        self.waited = 0.0  # seconds in `__next__`, all together

    def __iter__(self) -> Iterator[Prepared]:
        return self

    def __next__(self) -> Prepared:
        began = time.perf_counter()
        if self._given is not None:
            self._asked |= self._given.noise.first_draws
        ready, self._next = self._next or self._submit(), None
        self._given = ready.result()
        self.waited += time.perf_counter() - began
        self._next = self._submit()
        return self._given

    def close(self) -> None:
        """Closes the stream and ends the thread."""
        self._close()
        self._thread.shutdown(cancel_futures=True)

    def _submit(self) -> Future[Prepared]:
        return self._thread.submit(self._prepare, dict(self._asked))

    def _prepare(self, expected: dict[str, Draw]) -> Prepared:
        batch = next(self._batches)
        noise = KeyedNoise(self._seed, self._role, batch.index, self._device)
        noise.draw_ahead(expected)
        return Prepared(batch, noise)


def waited(streams: Mapping[str, ReadAhead]) -> float:
    """Seconds that a loop has waited for micro-batches of these streams."""
    return sum(stream.waited for stream in streams.values())
