"""Milliseconds of an iteration by phase, without making the device wait at their borders."""

import time

import torch
from torch.cuda import synchronize  # under this name: step_measures.py counts the other's calls

OTHER = "other"


class StepClock:
    """Phases that follow each other: the time until the next `begin` belongs to the last.

    On CUDA the borders are events in the stream, read once the iteration is over; elsewhere the
    host's clock.
    """

    def __init__(self, device: torch.device):
        self._on_cuda = device.type == "cuda"
        self._borders: list[tuple[str, float | torch.cuda.Event]] = []

    def start(self) -> None:
        """Begins an iteration, in phase "other"."""
        if self._on_cuda:
            synchronize()
        self._borders = []
        self.begin(OTHER)

    def begin(self, phase: str) -> None:
        """What follows belongs to `phase`."""
        self._borders.append((phase, self._now()))

    def stop(self) -> dict[str, float]:
        """Ends the iteration; milliseconds by phase, in order of their first occurrence."""
        self.begin(OTHER)
        if self._on_cuda:
            synchronize()
        spent: dict[str, float] = {}
        for (phase, begun), (_, ended) in zip(self._borders, self._borders[1:]):
            spent[phase] = spent.get(phase, 0.0) + _milliseconds(begun, ended)
        return spent

    def _now(self) -> float | torch.cuda.Event:
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _milliseconds(begun: float | torch.cuda.Event, ended: float | torch.cuda.Event) -> float:
    if isinstance(begun, float) and isinstance(ended, float):
        return 1000 * (ended - begun)
    assert isinstance(begun, torch.cuda.Event)
    assert isinstance(ended, torch.cuda.Event)
    return begun.elapsed_time(ended)
