"""Where a run's metrics and images go: metrics.jsonl, TensorBoard, Weights & Biases."""

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from sid_scale.config.run import RunConfig
from sid_scale.distill.wandb_board import WandbBoard, wandb_mode
from sid_scale.metrics_log import METRICS


class Board(Protocol):
    """One of these places. What it takes comes in the order of images seen."""

    def scalars(self, values: Mapping[str, float], images_seen: int) -> None:
        """Takes the metrics of one logging interval."""

    def image(self, name: str, image: Tensor, images_seen: int) -> None:
        """Takes a uint8 image (3, H, W)."""

    def close(self, *, failed: bool) -> None:
        """Takes no more. `failed`: an error ends the run."""


def open_boards(config: RunConfig, images_seen: int, say: Callable[[str], None]) -> list[Board]:
    """The boards of a run that goes on from `images_seen`. For one rank to call.

    Args:
        say: logs one line.
    """
    folder = Path(config.run_dir)
    boards: list[Board] = [MetricsFile(folder), TensorBoard(folder, images_seen)]
    if config.log.wandb is not None and wandb_mode(config.log.wandb) != "disabled":
        boards.append(WandbBoard(config, say))
    return boards


class MetricsFile:
    """metrics.jsonl: a record a logging interval."""

    def __init__(self, folder: Path):
        self._file = open(folder / METRICS, "a", buffering=1)  # noqa: SIM115

    def scalars(self, values: Mapping[str, float], images_seen: int) -> None:
        record = {
            "images_seen": images_seen,
            "time": round(time.time(), 1),  # seconds since 1970
            **{name: value if math.isfinite(value) else None for name, value in values.items()},
        }
        self._file.write(json.dumps(record) + "\n")

    def image(self, name: str, image: Tensor, images_seen: int) -> None:
        pass  # samples/ has it

    def close(self, *, failed: bool) -> None:
        self._file.close()


class TensorBoard:
    """tensorboard/; what earlier attempts wrote after `images_seen` is no longer shown."""

    def __init__(self, folder: Path, images_seen: int):
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=images_seen + 1)

    def scalars(self, values: Mapping[str, float], images_seen: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, images_seen)
        self._writer.flush()

    def image(self, name: str, image: Tensor, images_seen: int) -> None:
        self._writer.add_image(name, image, images_seen)

    def close(self, *, failed: bool) -> None:
        self._writer.close()
