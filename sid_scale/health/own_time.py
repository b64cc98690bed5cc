"""How long a rank works by itself.

All ranks of a synchronous run take equally long for an iteration: whoever is done waits for the
slowest in the next collective. What tells them apart is the time from one collective to the next.
It is taken here where no collective is: around the forward pass of a network, and around the wait
for data. Of a network whose weights are gathered layer by layer, as at ZeRO stage 3, it is that of
each layer, from when its weights are there.

On a GPU events of the stream tell the time. They are read after an iteration, for whose end the
host waits anyway. A wait for data counts as far as the device had nothing else to do.
"""

import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn

T = TypeVar("T")
Mark = float | torch.cuda.Event


class OwnTime:
    """Seconds of this rank's own work since they were last taken."""

    def __init__(self, device: torch.device):
        self._device = device
        self._depth = 0  # of what is being timed in what is being timed
        self._began: Mark = 0.0
        self._spans: list[tuple[Mark, Mark]] = []

    def follow(self, network: nn.Module, *, gathered: bool) -> None:
        """Times the network's forward passes from now on.

        `gathered` says whether its weights are fetched from other ranks inside of them. The hooks
        that fetch must be there before.
        """
        modules = [m for m in network.modules() if not any(m.children())] if gathered else [network]
        for module in modules:
            module.register_forward_pre_hook(self._start)  # after DeepSpeed's, which fetches
            # Always: one that is computed again for the backward pass ends by an exception.
            module.register_forward_hook(self._stop, prepend=True, always_call=True)

    def waiting_for(self, items: Iterable[T]) -> Iterator[T]:
        """The items; the time until they are there counts."""
        iterator = iter(items)
        while True:
            self._start()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self._stop()
            yield item

    def take(self) -> float:
        """Seconds since the last time, or since `forget`. Waits until the device has done what is
        timed."""
        spans, self._spans = self._spans, []
        if spans and isinstance(last := spans[-1][1], torch.cuda.Event):
            last.synchronize()
        return sum(map(_seconds, spans))

    def forget(self) -> None:
        """What was timed until now does not count."""
        self._spans = []

    def _start(self, *_: Any) -> None:
        if self._depth == 0:
            self._began = self._mark()
        self._depth += 1

    def _stop(self, *_: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._spans.append((self._began, self._mark()))

    def _mark(self) -> Mark:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _seconds(span: tuple[Any, Any]) -> float:
    began, ended = span
    if isinstance(began, float):
        return float(ended - began)
    return float(began.elapsed_time(ended)) / 1000
