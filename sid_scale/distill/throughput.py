"""How fast a run trains: its rates, what share of the device they are, and what it waited for."""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist

from sid_scale.config.run import RunConfig
from sid_scale.devices import synchronize
from sid_scale.distill.build import Run
from sid_scale.ranks import Ranks

SIZES = (512, 1024, 2048, 4096, 8192)  # of the matrices that a device's peak is measured with
LONG_ENOUGH = 0.01  # seconds of one product
REPEATS = 5

# Of a config on so many ranks: FLOP that an image takes in one update, by the update's label.
CountFlop = Callable[[RunConfig, int], Mapping[str, float]]


class Work(NamedTuple):
    """What an image takes, and what a device can do."""

    flop: Mapping[str, float] = {}  # of an image in one update, by its label; {}: not known
    peak: float = 0.0  # FLOP/s of a device
    messages: tuple[str, ...] = ()  # for the log


def work_of(run: Run, count_flop: CountFlop | None) -> Work:
    """The work of a run's updates, on the first rank, which logs it; the others need none."""
    if count_flop is None or not run.ranks.is_first:
        return Work()
    given, dtype = run.config.log.peak_tflops, run.settings.compute_dtype
    try:
        flop = count_flop(run.config, run.ranks.world_size)
        peak = given * 1e12 if given else measured_peak(run.ranks.device, dtype)
    except Exception as error:  # a method of one's own may not be countable: it can be trained
        return Work(messages=(f"no tflops_per_device, no mfu: {error}",))
    how = "log.peak_tflops" if given else f"{str(dtype).removeprefix('torch.')} matrix products"
    shown = ", ".join(f"{label} {value / 1e12:.3g}" for label, value in flop.items())
    per_second = f"mfu is the share of {peak / 1e12:.4g} TFLOP/s ({how})"
    return Work(flop, peak, (f"TFLOP of an image by update: {shown}; {per_second}",))


@torch.no_grad()
def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a device in products of square matrices, the largest of several rates.

    Numbers are random ones, of which a GPU is as slow as in training; the run's are left alone.
    """
    generator = torch.Generator(device).manual_seed(0)
    best = 0.0
    for size in SIZES:
        a = torch.empty(size, size, device=device).normal_(generator=generator).to(dtype)
        a @ a  # loads and chooses kernels
        seconds = min(_seconds_of_product(a) for _ in range(REPEATS))
        best = max(best, 2 * size**3 / seconds)
        if seconds > LONG_ENOUGH:
            break
    return best


def _seconds_of_product(a: torch.Tensor) -> float:
    synchronize(a.device)
    began = time.perf_counter()
    a @ a
    synchronize(a.device)
    return time.perf_counter() - began


class Throughput:
    """The clock of a training loop, read once a logging interval."""

    def __init__(self, config: RunConfig, ranks: Ranks, work: Work):
        self._batch_size, self._ranks, self._work = config.batch_size, ranks, work
        self.start(0)

    def start(self, images_seen: int) -> None:
        """The first iteration begins now."""
        self._began, self._images_then = time.perf_counter(), images_seen
        self._paused = self._flop = self._waited_then = 0.0

    def pause(self, seconds: float) -> None:
        """Leaves out time in which something else than training was done, for the rates."""
        self._paused += seconds

    def updated(self, label: str) -> None:
        """A batch went through an update."""
        self._flop += self._work.flop.get(label, 0.0) * self._batch_size

    def read(self, images_seen: int, waited: float) -> dict[str, float]:
        """The metrics of the interval that ends now. Collective.

        Args:
            waited: seconds that this rank has waited for data since the first iteration.
        """
        now = time.perf_counter()
        seconds = now - self._began - self._paused
        devices = self._ranks.world_size
        rate = (images_seen - self._images_then) / seconds
        flop_rate = self._flop / seconds / devices
        metrics = {
            "images_per_second": rate,
            "images_per_second_per_device": rate / devices,
            "data_wait_seconds": _most(waited - self._waited_then, self._ranks.device),
            "pause_seconds": self._paused,
        }
        if self._work.flop:
            metrics["tflops_per_device"] = flop_rate / 1e12
            metrics["mfu"] = flop_rate / self._work.peak
        self.start(images_seen)
        self._waited_then = waited
        return metrics


def _most(value: float, device: torch.device) -> float:
    """The largest of all ranks' values. Collective."""
    values = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values.item()
