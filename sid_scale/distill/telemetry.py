"""The log of a run: a progress bar, metrics.jsonl, TensorBoard. Rank 0 alone writes."""

import json
import math
import resource
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from sid_scale.config.run import RunConfig
from sid_scale.distill.build import Progress
from sid_scale.metrics_log import METRICS
from sid_scale.ranks import Ranks

LOSS = "loss/"  # prefix of the terms that the line beside the bar shows


class Telemetry:
    """The log of one run. Use as a context manager."""

    def __init__(self, config: RunConfig, ranks: Ranks, images_seen: int):
        self._ranks = ranks
        self._folder = Path(config.run_dir)
        self._noted: dict[str, float] = {}
        self.start_clock(images_seen)
        if ranks.is_first:
            self._metrics = open(self._folder / METRICS, "a", buffering=1)  # noqa: SIM115
            board = str(self._folder / "tensorboard")
            self._board = SummaryWriter(board, purge_step=images_seen + 1)
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

    def start_clock(self, images_seen: int) -> None:
        """The first iteration begins now."""
        self._clock, self._images_then = time.perf_counter(), images_seen

    def pause(self, seconds: float) -> None:
        """Leaves out time in which something else than training was done, for the rates."""
        self._clock += seconds

    def __enter__(self) -> "Telemetry":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._ranks.is_first:
            self._bar.close()
            self._board.close()
            self._metrics.close()

    def tick(self, images: int) -> None:
        """`images` more have been seen."""
        if self._ranks.is_first:
            self._bar.update(images)

    def report(
        self,
        progress: Progress,
        means: dict[str, float],
        learning_rates: dict[str, float],
        slowest: str = "",
    ) -> None:
        """Writes one logging interval; `slowest` says which rank was."""
        images_seen, skipped_updates = progress.images_seen, progress.skipped_updates
        now = time.perf_counter()
        rate = (images_seen - self._images_then) / (now - self._clock)
        self._clock, self._images_then = now, images_seen
        if not self._ranks.is_first:
            return
        values = {**means, **self._noted}
        self._noted = {}
        values["images_per_second"] = rate
        values["images_per_second_per_device"] = rate / self._ranks.world_size
        values["memory_gb"] = _memory_gb(self._ranks.device)
        values["skipped_updates"] = skipped_updates
        values.update({f"learning_rate/{role}": lr for role, lr in learning_rates.items()})
        record = {
            "images_seen": images_seen,
            "time": round(time.time(), 1),  # seconds since 1970
            **{name: value if math.isfinite(value) else None for name, value in values.items()},
        }
        self._metrics.write(json.dumps(record) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, images_seen)
        self._board.flush()
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
        self._board.add_image(name, image, images_seen)


def _memory_gb(device: torch.device) -> float:
    """High-water mark of the device's memory, or on a CPU of the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
