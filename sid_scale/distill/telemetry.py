"""The log of a run: a progress bar, lines, and boards (boards.py). Rank 0 alone writes."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from tqdm import tqdm

from sid_scale.config.run import RunConfig
from sid_scale.distill.boards import open_boards
from sid_scale.distill.build import Progress
from sid_scale.distill.throughput import Throughput, Work
from sid_scale.ranks import Ranks

LOSS = "loss/"  # prefix of the terms that the line beside the bar shows


class Telemetry:
    """The log of one run. Use as a context manager."""

    def __init__(self, config: RunConfig, ranks: Ranks, images_seen: int, work: Work):
        self._ranks = ranks
        self._noted: dict[str, float] = {}
        self._throughput = Throughput(config, ranks, work)
        if ranks.is_first:
            self._bar = tqdm(
                total=config.total_images,
                initial=images_seen,
                unit="img",
                unit_scale=True,
                desc=config.method,
                dynamic_ncols=True,
                mininterval=1.0 if sys.stderr.isatty() else 60.0,  # seconds; logs stay short
                file=sys.stderr,
            )
            self._boards = open_boards(config, images_seen, self.say)

    def start_clock(self, images_seen: int) -> None:
        """The first iteration begins now."""
        self._throughput.start(images_seen)

    def pause(self, seconds: float) -> None:
        """Leaves out time in which something else than training was done, for the rates."""
        self._throughput.pause(seconds)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, something else than training is done."""
        began = time.perf_counter()
        yield
        self.pause(time.perf_counter() - began)

    def __enter__(self) -> "Telemetry":
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        if self._ranks.is_first:
            self._bar.close()
            for board in self._boards:
                board.close(failed=kind is not None)

    def updated(self, label: str) -> None:
        """A batch went through an update."""
        self._throughput.updated(label)

    def tick(self, images: int) -> None:
        """`images` more have been seen."""
        if self._ranks.is_first:
            self._bar.update(images)

    def report(
        self,
        progress: Progress,
        means: dict[str, float],
        learning_rates: dict[str, float],
        waited: float,
        slowest: str = "",
    ) -> None:
        """Writes one logging interval. Collective.

        Args:
            waited: seconds that this rank has waited for data since the first iteration.
            slowest: which rank was, for the line of the log.
        """
        images_seen, skipped_updates = progress.images_seen, progress.skipped_updates
        rates = self._throughput.read(images_seen, waited)
        if not self._ranks.is_first:
            return
        values = {**means, **self._noted, **rates}
        self._noted = {}
        values["memory_gb"] = _memory_gb(self._ranks.device)
        values["skipped_updates"] = skipped_updates
        values.update({f"learning_rate/{role}": lr for role, lr in learning_rates.items()})
        for board in self._boards:
            board.scalars(values, images_seen)
        shown = {tag: value for tag, value in means.items() if tag.startswith(LOSS)}
        losses = " ".join(f"{tag.removeprefix(LOSS)} {v:.4g}" for tag, v in shown.items())
        line = (
            f"{images_seen:>11,} images  {values['images_per_second_per_device']:.1f} img/s/device"
            f"  {losses}  skipped {skipped_updates}"
            f"{slowest and '  ' + slowest}"
        )
        self._bar.write(line, file=sys.stdout)
        sys.stdout.flush()

    def note(self, metrics: dict[str, float]) -> None:
        """Metrics that go into the next record."""
        self._noted |= metrics

    def say(self, message: str) -> None:
        """Logs one line."""
        if self._ranks.is_first:
            self._bar.write(message, file=sys.stdout)
            sys.stdout.flush()

    def image(self, name: str, image: Tensor, images_seen: int) -> None:
        """Logs a uint8 image (3, H, W). For rank 0."""
        for board in self._boards:
            board.image(name, image, images_seen)


def _memory_gb(device: torch.device) -> float:
    """High-water mark of the device's memory, or on a CPU of the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
